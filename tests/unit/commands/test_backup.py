"""kb backup, from the command line to the file."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional

import pytest

import kb
from kubeup.backup import archive
from kubeup.doctor import node_files
from kubeup.errors import Interrupted
from kubeup.machine.filters import ProgramFailed
from kubeup.machine.host import Argv, shown_argv
from kubeup.paths import Paths
from tests.unit.backup.etcd_case import DATABASE, SNAPSHOT, EtcdAnswers, messages
from tests.unit.commands.test_launcher import INIT, Machine

FILE = Path("/root/b.tar")


class Node(EtcdAnswers, Machine):  # type: ignore[misc]
    """A control plane below a folder, whose etcd gives a snapshot."""

    lacks: tuple[str, ...] = ()
    filtered: Optional[Callable[[tuple[str, ...], bytes], bytes]] = None
    free = 100 << 30

    def which(self, program: str) -> Optional[Path]:
        return None if program in self.lacks else Path("/usr/bin") / program

    def give_way(self) -> None:
        """The tests after this one are not to be slower."""

    def sleep(self, seconds: float) -> None:
        pass

    def filter(self, argv: Argv, chunks: Iterable[bytes]) -> Iterator[bytes]:
        shown = shown_argv(argv)
        data = b"".join(chunks)
        if "bad" in shown:
            raise ProgramFailed(shown[0], status=1, said="unknown recipient")
        yield f"age-encryption.org/v1 {' '.join(shown)}\n".encode() + data

    def free_bytes(self, path: Path) -> int:
        return self.free


@pytest.fixture
def node(tmp_path: Path, capsys: Any) -> Node:
    host = Node(tmp_path)
    assert kb.main(list(INIT), make_host=lambda root: host) == 0
    host.make_dir(FILE.parent)
    host.write_file(Path("/etc/machine-id"), "0123456789abcdef0123456789abcdef\n")
    capsys.readouterr()
    return host


def run(host: Node, *words: str) -> int:
    return kb.main(["backup", *words], make_host=lambda root: host)


def made(host: Node, *words: str) -> archive.Backup:
    assert run(host, "-o", str(FILE), *words) == 0
    return archive.Backup(io.BytesIO(host.read_bytes(FILE)), what="it")


def refused(host: Node, capsys: Any, *words: str, code: str) -> str:
    """The command is refused, and leaves nothing behind."""
    before = sorted(host.files())
    assert run(host, *words) != 0
    told = str(capsys.readouterr().err)
    assert f"code:   {code}\n" in told, told
    assert sorted(host.files()) == before
    return told


def test_everything_is_in_it(node: Node, capsys: Any) -> None:
    backup = made(node)
    about = backup.about
    assert backup.read(archive.SNAPSHOT) == SNAPSHOT
    assert (about.node, about.kubernetes, about.etcd, about.etcd_kind) == ("cp1", "v1.35.6", "3.6.6", "local")
    assert (about.revision, about.objects, about.address) == (812, 301, "10.0.0.11")
    assert about.machine_id == "0123456789abcdef0123456789abcdef"
    assert [(one.id, one.name) for one in about.members] == [("8e9e05c52164694d", "cp1")]
    assert any("kube-apiserver" in image for image in about.images)
    names = {entry.name for entry in backup.entries}
    for path in ("pki/ca.key", "pki/etcd/ca.key", "pki/sa.key", "admin.conf", "manifests/etcd.yaml"):
        assert f"files/etc/kubernetes/{path}" in names
    assert "files/var/lib/kb/state.json" in names
    assert b"ClusterConfiguration" in backup.read("objects/kubeadm-config.yaml")
    ca = node.read_bytes(Paths().pki / "ca.key")
    assert backup.read("files/etc/kubernetes/pki/ca.key") == ca
    assert f"{FILE}: " in capsys.readouterr().out


def test_it_is_private_and_nothing_else_is_left(node: Node) -> None:
    before = set(node.files())
    made(node)
    assert set(node.files()) - before == {FILE}
    found = node.stat(FILE)
    assert found is not None and found.mode == 0o600


def test_a_report_for_programs(node: Node, capsys: Any) -> None:
    made(node, "--output", "json")
    told = json.loads(capsys.readouterr().out)
    assert told["about"]["revision"] == 812 and told["file"] == str(FILE)
    assert told["size"] == len(node.read_bytes(FILE))
    assert {"name": "etcd/snapshot.db", "size": len(SNAPSHOT), "mode": "0600"} in told["entries"]


def test_a_dry_run_says_what_would_be_in_it_and_writes_nothing(node: Node, capsys: Any) -> None:
    before = sorted(node.files())
    assert run(node, "--dry-run") == run(node, "--dry-run", "-o", str(FILE)) == 0
    shown = capsys.readouterr().out
    assert f"etcd/snapshot.db  {len(DATABASE)} bytes, 301 objects at revision 812\n" in shown
    assert "files/etc/kubernetes/pki/ca.key  " in shown
    assert run(node, "--dry-run", "--output", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["isDryRun"] and told["snapshotSize"] == len(DATABASE)
    assert sorted(node.files()) == before


def test_into_a_stream(node: Node, tmp_path: Path, capsys: Any) -> None:
    before = sorted(node.files())
    with (tmp_path.parent / "stream").open("w+b") as stream:
        assert run(node, "-o", f"/dev/fd/{stream.fileno()}") == 0
        stream.seek(0)
        assert archive.Backup(stream, what="it").about.node == "cp1"
    assert "301 objects" in capsys.readouterr().out
    assert sorted(node.files()) == before


def test_standard_output_carries_one_thing(node: Node, capsys: Any) -> None:
    assert run(node, "-o", "-", "--output", "json") == 2
    assert '"code": "usage"' in "".join(capsys.readouterr())


def test_no_file_is_named(node: Node, capsys: Any) -> None:
    refused(node, capsys, code="missing-flag")


# ---- faults


def test_a_reader_that_ends_early_is_a_failure(node: Node, capsys: Any) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        refused(node, capsys, "-o", f"/dev/fd/{writer}", code="output-cut-off")
    finally:
        os.close(writer)


@pytest.mark.parametrize("after", [0, 50_000])
def test_etcd_that_dies_in_the_middle_leaves_the_former_backup(node: Node, capsys: Any, after: int) -> None:
    made(node)
    former = node.read_bytes(FILE)
    node.breaks_after = after
    refused(node, capsys, "-o", str(FILE), code="snapshot-cut-off")
    assert node.read_bytes(FILE) == former


def test_a_damaged_snapshot(node: Node, capsys: Any) -> None:
    node.stream = messages(b"\1" + SNAPSHOT[1:])
    refused(node, capsys, "-o", str(FILE), code="snapshot-damaged")


def test_etcd_does_not_answer(node: Node, capsys: Any) -> None:
    node.answering = ()
    told = refused(node, capsys, "-o", str(FILE), code="no-snapshot")
    assert "kb doctor" in told


def test_a_disk_without_room_is_noticed_before(node: Node, capsys: Any) -> None:
    node.free = 1 << 20
    told = refused(node, capsys, "-o", str(FILE), code="disk-full")
    assert "the file system has 1 MiB free" in told


@pytest.mark.parametrize("after", [1, 3, 30, 60])
def test_a_disk_that_fills_up_meanwhile(node: Node, capsys: Any, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    made(node)
    former, count, real = node.read_bytes(FILE), 0, os.write

    def write(descriptor: int, data: bytes) -> int:
        nonlocal count
        count += 1
        if count > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        refused(node, capsys, "-o", str(FILE), code="disk-full")
    assert count > after and node.read_bytes(FILE) == former


def test_a_folder_that_is_not_there(node: Node, capsys: Any) -> None:
    refused(node, capsys, "-o", "/nowhere/b.tar", code="output-folder-missing")


def test_an_interrupt_leaves_nothing_and_the_former_backup(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    made(node)
    former, before = node.read_bytes(FILE), sorted(node.files())

    def stop(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGINT)

    for name in ("fsync", "rename"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, stop)
            assert run(node, "-o", str(FILE)) == 130
        assert node.read_bytes(FILE) == former and sorted(node.files()) == before


def test_what_a_killed_one_left_is_removed(node: Node) -> None:
    half = FILE.with_name(f".{FILE.name}.kb-999999999-7f00")
    other = FILE.with_name(".c.tar.kb-999999999-7f00")
    for path in (half, other):
        node.write_file(path, "half")
    made(node)
    assert not node.exists(half) and node.exists(other)


def test_a_worker_is_refused(node: Node, capsys: Any) -> None:
    for name in node_files.COMPONENTS:
        node.remove(Paths().manifest(name))
    node.remove(Paths().pki / "apiserver.crt")
    told = refused(node, capsys, "-o", str(FILE), code="not-a-control-plane")
    assert "a worker holds nothing of the cluster" in told


def test_an_api_server_that_is_away_is_no_obstacle(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.cluster.is_up = False
    backup = made(node)
    assert not backup.has("objects/kubeadm-config.yaml") and backup.has(archive.SNAPSHOT)
    assert any("the API server does not answer" in text for text in backup.about.missing)


def external(node: Node) -> None:
    """The API server calls an etcd elsewhere."""
    manifest = Paths().manifest("kube-apiserver")
    text = node.read_text(manifest).replace("https://127.0.0.1:2379", "https://10.0.0.50:2379")
    node.write_file(manifest, text)
    node.remove(Paths().manifest("etcd"))


def test_an_external_etcd_gives_its_snapshot_too(node: Node) -> None:
    external(node)
    node.answering = ("https://10.0.0.50:2379",)
    backup = made(node)
    assert backup.about.etcd_kind == "external" and backup.read(archive.SNAPSHOT) == SNAPSHOT


def test_an_external_etcd_that_is_away_is_no_reason_for_a_backup_without_data(node: Node, capsys: Any) -> None:
    external(node)
    node.answering = ()
    refused(node, capsys, "-o", str(FILE), code="no-snapshot")
    node.answering = ("https://10.0.0.50:2379",)
    node.stream = b'{"error": {"message": "etcdserver: no leader"}}\n'
    refused(node, capsys, "-o", str(FILE), code="no-snapshot")


def test_an_external_etcd_that_gives_none_is_said(node: Node, capsys: Any) -> None:
    external(node)
    node.answering = ("https://10.0.0.50:2379",)
    node.stream = b'{"error": {"message": "etcdserver: permission denied"}}\n'
    backup = made(node)
    assert not backup.has(archive.SNAPSHOT)
    assert "the external etcd gives no snapshot" in backup.about.missing[0]
    assert "without etcd's data" in capsys.readouterr().out


# ---- encryption


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (("--age", "age1abc"), "age --encrypt -r age1abc"),
        (("--age", "age1abc", "--age", "/root/keys"), "age --encrypt -r age1abc -R /root/keys"),
        (
            ("--gpg", "ops@example.org"),
            "gpg --batch --no-tty --trust-model always --compress-algo none --encrypt --recipient ops@example.org",
        ),
    ],
)
def test_it_is_encrypted_by_the_field_s_tools(node: Node, words: tuple[str, ...], argv: str) -> None:
    assert run(node, "-o", str(FILE), *words) == 0
    data = node.read_bytes(FILE)
    head = f"age-encryption.org/v1 {argv}\n".encode()
    assert data.startswith(head)
    assert archive.Backup(io.BytesIO(data[len(head) :]), what="it").about.node == "cp1"


@pytest.mark.parametrize("words", [(), ("--age", "age1abc")])
def test_what_is_encrypted_is_never_plain_where_it_goes(
    node: Node, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """The folder of a backup may be another machine's."""
    folders: list[Path] = []
    open_scratch = node.open_scratch

    def note(folder: Path) -> BinaryIO:
        folders.append(folder)
        return open_scratch(folder)

    monkeypatch.setattr(node, "open_scratch", note)
    assert run(node, "-o", str(FILE), *words) == 0
    assert folders == [Paths().state_dir if words else FILE.parent]


@pytest.mark.parametrize(("prefix", "expected"), [("/k8s", "/k8s"), ("k8s/", "/k8s"), ("/a//b/", "/a/b")])
def test_the_prefix_of_the_objects_is_as_the_api_server_takes_it(node: Node, prefix: str, expected: str) -> None:
    manifest = Paths().manifest("kube-apiserver")
    text = node.read_text(manifest)
    node.write_file(manifest, text.replace("- --etcd-servers", f"- --etcd-prefix={prefix}\n    - --etcd-servers"))
    assert made(node).about.etcd_prefix == expected


@pytest.mark.parametrize("program", ["age", "gpg"])
def test_a_program_that_is_not_there(node: Node, capsys: Any, program: str) -> None:
    node.lacks = (program,)
    told = refused(node, capsys, "-o", str(FILE), f"--{program}", "x", code="encryption-missing")
    assert f"there is no {program} on this machine" in told


def test_a_recipient_that_the_program_refuses(node: Node, capsys: Any) -> None:
    told = refused(node, capsys, "-o", str(FILE), "--age", "bad", code="recipient-refused")
    assert "unknown recipient" in told


def test_encryption_twice(node: Node, capsys: Any) -> None:
    refused(node, capsys, "-o", str(FILE), "--age", "age1abc", "--gpg", "x", code="usage")
