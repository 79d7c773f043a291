"""A backup of a real etcd, and real gpg."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeup.backup import archive, encryption, opening
from kubeup.backup.encryption import Recipients
from kubeup.cluster import etcd_snapshot
from kubeup.errors import ClusterError, HostError, KbError, UsageError
from kubeup.machine.local_host import LocalHost
from tests.components.real_etcd import PROGRAM, Cluster
from tests.unit.backup.test_archive import WHOLE

pytestmark = pytest.mark.component
HOST = LocalHost()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if PROGRAM is None:
        pytest.skip("needs $KB_E2E_BIN with etcd")
    found = Cluster(tmp_path, 1)
    yield found
    found.stop()


class TestSnapshot:
    def test_it_is_what_etcd_has(self, cluster: Cluster) -> None:
        for number in range(200):
            cluster.members[0].put(f"/registry/x/{number}", "v" * 2000)
        client = cluster.client()
        data = b"".join(etcd_snapshot.stream_snapshot(client))
        assert len(data) % 512 == 32 and hashlib.sha256(data[:-32]).digest() == data[-32:]
        assert b"/registry/x/199" in data
        assert client.count_keys("/registry/") == 200
        assert sorted(client.list_keys("/registry/x/1"))[:3] == ["", "0", "00"]
        status = client.read_status(client.endpoints[0])
        assert status.revision == 201 and status.db_size == len(data) - 32

    def test_an_etcd_that_dies_in_the_middle(self, cluster: Cluster) -> None:
        for number in range(400):
            cluster.members[0].put(f"/registry/x/{number}", "v" * 100_000)
        stream = etcd_snapshot.stream_snapshot(cluster.client())
        next(stream)
        cluster.stop()
        with pytest.raises(ClusterError) as caught:
            for _ in stream:
                pass
        assert caught.value.code == "snapshot-cut-off"


@pytest.fixture
def keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if not shutil.which("gpg"):
        pytest.skip("needs gpg")
    home = Path(tempfile.mkdtemp(prefix="kb-gpg-", dir="/tmp"))  # a socket's path may have 107 characters
    monkeypatch.setenv("GNUPGHOME", str(home))
    argv = [
        "gpg",
        "--batch",
        "--quiet",
        "--passphrase",
        "",
        "--quick-generate-key",
        "ops@example.org",
        "rsa2048",
        "encr",
    ]
    subprocess.run(argv, check=True, capture_output=True)
    yield home
    subprocess.run(["gpgconf", "--kill", "all"], check=False)
    shutil.rmtree(home, ignore_errors=True)  # the agent removes its sockets by itself


def encrypted(*gpg: str) -> bytes:
    return b"".join(encryption.encrypt(HOST, Recipients(gpg=gpg), chunks=(WHOLE,)))


def code_of(path: Path) -> str:
    with pytest.raises(KbError) as caught, opening.open_backup(HOST, str(path)):
        pass
    return caught.value.code


class TestGpg:
    def test_what_was_encrypted_is_opened_again(self, keyring: Path, tmp_path: Path) -> None:
        encryption.check_recipients(HOST, Recipients(gpg=("ops@example.org",)))
        path = tmp_path / "b.gpg"
        path.write_bytes(encrypted("ops@example.org"))
        assert b"manifest.json" not in path.read_bytes()
        with opening.open_backup(HOST, str(path)) as backup:
            assert backup.about.node == "cp1"

    def test_nobody_of_that_name(self, keyring: Path) -> None:
        with pytest.raises(UsageError) as caught:
            encryption.check_recipients(HOST, Recipients(gpg=("nobody@example.org",)))
        assert caught.value.code == "recipient-refused"

    def test_a_wrong_key_and_a_damaged_file(
        self, keyring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = encrypted("ops@example.org")
        path = tmp_path / "b.gpg"
        path.write_bytes(data[: len(data) // 2])
        assert code_of(path) in ("backup-damaged", "backup-truncated")
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        path.write_bytes(bytes(flipped))
        assert code_of(path) == "backup-damaged"
        path.write_bytes(data)
        other = keyring / "other"
        other.mkdir(mode=0o700)
        monkeypatch.setenv("GNUPGHOME", str(other))
        assert code_of(path) == "backup-key-wrong"
        subprocess.run(["gpgconf", "--kill", "all"], check=False)


class TestOpening:
    def test_a_pipe_is_read_whole_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reading, writing = os.pipe()
        os.write(writing, WHOLE)
        os.close(writing)
        with opening.open_backup(HOST, f"/dev/fd/{reading}") as backup:
            assert backup.read("files/etc/kubernetes/admin.conf") == b"kind: Config\n"
        os.close(reading)

    def test_an_encrypted_one_without_a_key(self, tmp_path: Path) -> None:
        path = tmp_path / "b.age"
        path.write_bytes(b"age-encryption.org/v1\n" + bytes(600))
        with pytest.raises(HostError) as caught, opening.open_backup(HOST, str(path)):
            pass
        assert caught.value.code == "backup-encrypted"

    def test_a_plain_one(self, tmp_path: Path) -> None:
        path = tmp_path / "b.tar"
        path.write_bytes(WHOLE)
        with opening.open_backup(HOST, str(path)) as backup:
            assert backup.entries == archive.Backup(io.BytesIO(WHOLE), what="it").entries


class TestAge:
    @pytest.fixture
    def keys(self, tmp_path: Path) -> tuple[Path, str, Path]:
        """A key's file, what it opens, and another key's file."""
        if not shutil.which("age"):
            pytest.skip("needs age")
        mine, other = tmp_path / "key.txt", tmp_path / "other.txt"
        for path in (mine, other):
            subprocess.run(["age-keygen", "-o", str(path)], check=True, capture_output=True)
        return mine, re.findall(r"public key: (\S+)", mine.read_text())[0], other

    def code(self, path: Path, key: Path) -> str:
        with pytest.raises(KbError) as caught, opening.open_backup(HOST, str(path), identity=str(key)):
            pass
        return caught.value.code

    def test_to_a_key_or_to_a_file_of_keys(self, keys: tuple[Path, str, Path], tmp_path: Path) -> None:
        mine, public, _ = keys
        listed = tmp_path / "recipients"
        listed.write_text(public + "\n")
        path = tmp_path / "b.age"
        for recipient in (public, str(listed)):
            encryption.check_recipients(HOST, Recipients(age=(recipient,)))
            path.write_bytes(b"".join(encryption.encrypt(HOST, Recipients(age=(recipient,)), chunks=(WHOLE,))))
            with opening.open_backup(HOST, str(path), identity=str(mine)) as backup:
                assert backup.about.node == "cp1"
        assert code_of(path) == "backup-encrypted"

    def test_what_it_refuses(self, keys: tuple[Path, str, Path], tmp_path: Path) -> None:
        mine, public, other = keys
        with pytest.raises(UsageError) as caught:
            encryption.check_recipients(HOST, Recipients(age=("age1nobody",)))
        assert caught.value.code == "recipient-refused"
        data = b"".join(encryption.encrypt(HOST, Recipients(age=(public,)), chunks=(WHOLE * 20,)))
        path = tmp_path / "b.age"
        path.write_bytes(data)
        assert self.code(path, other) == "backup-key-wrong"
        assert self.code(path, tmp_path / "nothing") == "backup-key-wrong"
        path.write_bytes(data[: len(data) // 2])
        assert self.code(path, mine) == "backup-damaged"
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        path.write_bytes(bytes(flipped))
        assert self.code(path, mine) == "backup-damaged"
