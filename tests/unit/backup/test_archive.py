"""kubeup/backup/archive.py: what was written is read again, and no damaged archive is taken for a whole one."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kubeup.backup import archive
from kubeup.backup.archive import About, Backup, Content, Entry, Member, content_of
from kubeup.errors import HostError
from kubeup.machine.local_host import LocalHost

ABOUT = About(
    made="2026-11-29T23:14:07Z",
    kb="0.1.0",
    node="cp1",
    kubernetes="v1.35.6",
    etcd="3.6.6",
    revision=812,
    objects=301,
    members=(Member("8e9e05c52164694d", "cp1", ("https://10.0.0.11:2380",), ("https://10.0.0.11:2379",)),),
    images=("registry.k8s.io/etcd:3.6.6-0",),
    missing=("the key of the cluster's CA: it is external",),
)
SNAPSHOT = bytes(range(256)) * 9
LONG = "files/var/lib/kb/records/" + "a" * 150
CONTENTS = (
    Content(
        Entry(archive.SNAPSHOT, len(SNAPSHOT), hashlib.sha256(SNAPSHOT).hexdigest()), (SNAPSHOT[:1000], SNAPSHOT[1000:])
    ),
    content_of("files/etc/kubernetes/admin.conf", b"kind: Config\n"),
    content_of("files/etc/kubernetes/empty", b"", mode=0o644, owner=(0, 3_000_000)),
    content_of(LONG, b"x" * 512),
    content_of("files/etc/kubernetes/Ünicode", b"x"),
    Content(Entry("files/var/lib/kubelet/pki/current.pem", mode=0o777, link="2026.pem")),
)


def written(about: About = ABOUT, contents: tuple[Content, ...] = CONTENTS) -> bytes:
    return b"".join(archive.render_archive(about, contents))


WHOLE = written()


def read(data: bytes) -> Backup:
    return Backup(io.BytesIO(data), what="b.tar")


def code_of(data: bytes) -> str:
    with pytest.raises(HostError) as caught:
        read(data)
    assert "b.tar" in caught.value.what
    return caught.value.code


def with_manifest(**changed: Any) -> bytes:
    """An archive with another manifest, whose hash is right."""
    manifest = json.loads(WHOLE[512 : 512 + int(WHOLE[124:135], 8)])
    data = json.dumps({**manifest, **changed}, indent=1, sort_keys=True).encode() + b"\n"
    head = b"".join(archive._render_member(content_of(archive.MANIFEST, data), made=archive._seconds(ABOUT.made)))
    return head + WHOLE[WHOLE.index(archive.SNAPSHOT.encode(), len(head) // 2) :]


def test_what_was_written_is_read_again() -> None:
    backup = read(WHOLE)
    assert backup.about == ABOUT
    assert backup.entries == tuple(content.entry for content in CONTENTS)
    for content in CONTENTS:
        assert backup.read(content.entry.name) == b"".join(content.chunks)
    assert backup.entries[1].path == Path("/etc/kubernetes/admin.conf")
    assert backup.has(archive.SNAPSHOT) and not backup.has("objects/kubeadm-config.yaml")


def test_its_size_is_known_before() -> None:
    assert archive.size_of(ABOUT, [content.entry for content in CONTENTS]) == len(WHOLE)


def test_the_same_content_gives_the_same_bytes() -> None:
    assert written() == WHOLE


def test_a_program_that_reads_tar_files_reads_it_by_hand(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        names = tar.getnames()
        manifest = tar.extractfile(archive.MANIFEST).read()  # type: ignore[union-attr]
        end = tar.extractfile(names[-1]).read().decode()  # type: ignore[union-attr]
        assert tar.getmember("files/var/lib/kubelet/pki/current.pem").linkname == "2026.pem"
    assert names[:2] == [archive.MANIFEST, archive.SNAPSHOT] and LONG in names
    assert end == f"{hashlib.sha256(manifest).hexdigest()}  manifest.json\n"
    told = json.loads(manifest)
    assert told["format"] == archive.FORMAT
    row = next(row for row in told["entries"] if row["name"] == archive.SNAPSHOT)
    assert (row["size"], row["sha256"]) == (len(SNAPSHOT), hashlib.sha256(SNAPSHOT).hexdigest())


@pytest.mark.parametrize("bit", [0, 7])
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    refused = set()
    for place in range(0, len(WHOLE), 1 if bit else 7):
        data = bytearray(WHOLE)
        data[place] ^= 1 << bit
        refused.add(code_of(bytes(data)))
    assert refused <= {"backup-damaged", "not-a-backup", "backup-truncated", "backup-too-new"}


def test_every_truncated_archive_is_noticed() -> None:
    assert {code_of(WHOLE[:end]) for end in range(0, len(WHOLE), 5)} == {"backup-truncated"}
    assert code_of(WHOLE[:-1]) == "backup-truncated"


def test_what_follows_the_end_is_noticed() -> None:
    assert code_of(WHOLE + b"\0") == "backup-damaged"


def test_a_newer_format_is_refused_by_its_number() -> None:
    with pytest.raises(HostError, match="its format is version 2, and this kb knows 1") as caught:
        read(with_manifest(format=2, entries="other"))
    assert caught.value.code == "backup-too-new"


def test_another_file_is_no_backup() -> None:
    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("index.json"))
    assert code_of(other.getvalue()) == code_of(b"x" * 2000) == code_of(b"\x1f\x8b" + bytes(600)) == "not-a-backup"


@pytest.mark.parametrize(
    ("begin", "by"),
    [
        (b"age-encryption.org/v1\n-> X25519 abc", "age"),
        (b"-----BEGIN AGE ENCRYPTED FILE-----\n", "age"),
        (b"-----BEGIN PGP MESSAGE-----\n", "gpg"),
        (b"\x84\x5e\x03", "gpg"),
        (b"\x85\x02\x0c\x03", "gpg"),
        (b"\xc1\xc0\x4c", "gpg"),
    ],
)
def test_an_encrypted_one_says_so(begin: bytes, by: str) -> None:
    with pytest.raises(HostError, match=f"encrypted with {by}") as caught:
        read(begin + bytes(600))
    assert caught.value.code == "backup-encrypted"


@pytest.mark.parametrize("name", ["/etc/passwd", "files/../etc/passwd", "files//x", "a\0b", archive.MANIFEST, ""])
def test_a_name_that_leads_elsewhere_is_neither_written_nor_read(name: str) -> None:
    with pytest.raises(ValueError, match=r"name|twice"):
        written(contents=(content_of(name, b"x"),))
    row = {"name": name, "size": 1, "sha256": "x", "mode": 384, "uid": 0, "gid": 0, "link": ""}
    assert code_of(with_manifest(entries=[row])) == "backup-damaged"


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        written(contents=(content_of("objects/x", b"1"), content_of("objects/x", b"2")))


def test_a_file_that_changes_while_it_is_written_gives_no_archive() -> None:
    with pytest.raises(ValueError, match="changed while it was written"):
        written(contents=(Content(content_of("objects/x", b"12").entry, (b"1",)),))


def test_a_field_that_this_kb_does_not_know_is_left_out() -> None:
    about = json.loads(archive._render_manifest(ABOUT, ()))["about"]
    data = with_manifest(about={**about, "colour": "red"}, entries=[])
    manifest_size = int(data[124:135], 8)
    end = 512 + manifest_size + -manifest_size % 512
    tail = content_of(archive._END, archive._render_end(data[512 : 512 + manifest_size]))
    whole = data[:end] + b"".join(archive._render_member(tail, made=archive._seconds(ABOUT.made))) + bytes(1024)
    assert read(whole).about == ABOUT


def test_a_file_is_opened_and_a_later_change_noticed(tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    path.write_bytes(WHOLE)
    with archive.open_archive(LocalHost(), path) as backup:
        assert backup.about == ABOUT
        data = bytearray(WHOLE)
        data[WHOLE.index(b"kind: Config")] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(HostError) as caught:
            backup.read("files/etc/kubernetes/admin.conf")
    assert caught.value.code == "backup-damaged"
