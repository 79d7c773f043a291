"""kubeup/backup/rehearsal.py: what has to be there before anything is started."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest

from kubeup.backup import archive, etcdutl, rehearsal
from kubeup.backup.archive import About, Backup, content_of
from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.node import image_program
from kubeup.node.image_program import MountedImage
from tests.unit.backup.test_archive import ABOUT
from tests.unit.commands.test_launcher import Machine

ETCD, API = "registry.k8s.io/etcd:3.6.6-0", "registry.k8s.io/kube-apiserver:v1.35.6"
OF_BACKUP = dataclasses.replace(ABOUT, images=(API, ETCD))


def code_of(about: About, have: set[str], own: tuple[str, ...] = ()) -> tuple[str, str]:
    with pytest.raises(HostError) as caught:
        rehearsal.choose_images(about, have=have, own=own)
    return caught.value.code, caught.value.remedy


def test_the_images_of_the_backup_come_first() -> None:
    newer = ("registry.k8s.io/kube-apiserver:v1.36.3", "registry.k8s.io/etcd:3.6.8-0")
    found = rehearsal.choose_images(OF_BACKUP, have={ETCD, API, *newer}, own=newer)
    assert (found.etcd, found.apiserver, found.not_of_backup) == (ETCD, API, ())


def test_else_this_node_s_own_if_they_are_not_older() -> None:
    newer = ("registry.k8s.io/kube-apiserver:v1.36.3", "registry.k8s.io/etcd:3.6.8-0")
    found = rehearsal.choose_images(OF_BACKUP, have=set(newer), own=newer)
    assert (found.etcd, found.apiserver) == (newer[1], newer[0]) and len(found.not_of_backup) == 2
    older = ("registry.k8s.io/kube-apiserver:v1.34.9", ETCD)
    code, remedy = code_of(OF_BACKUP, set(older), older)
    assert code == "backup-newer-kubernetes" and "kube-apiserver:v1.35.6" in remedy


def test_an_image_may_be_named_by_its_digest_alone() -> None:
    pinned = "registry.k8s.io/etcd@sha256:" + "0" * 64
    assert rehearsal.choose_images(OF_BACKUP, have={pinned, API}, own=(pinned,)).etcd == pinned


def test_an_image_that_is_not_here_is_not_pulled() -> None:
    code, remedy = code_of(OF_BACKUP, {ETCD})
    assert (code, remedy) == ("rehearsal-impossible", f"pull it: crictl pull {API}")


class Scarce(Machine):
    """A machine of 4 GiB, but for what a test takes away."""

    memory, room = 4 << 20, 100 << 30

    def read_text(self, path: Path) -> str:
        return f"MemAvailable: {self.memory} kB\n" if str(path) == "/proc/meminfo" else super().read_text(path)

    def free_bytes(self, path: Path) -> int:
        return self.room


def rehearse(host: Machine, *contents: archive.Content, about: About = OF_BACKUP) -> Any:
    backup = Backup(io.BytesIO(b"".join(archive.render_archive(about, contents))), what="b.tar")
    return rehearsal.rehearse(host, backup, socket="unix:///run/x.sock", own_images=(), tell=lambda text: None)


SNAPSHOT = content_of(archive.SNAPSHOT, b"x" * 544)


@pytest.mark.parametrize(
    ("change", "code"), [({"memory": 300 << 10}, "memory-short"), ({"room": 10 << 20}, "disk-full")]
)
def test_memory_and_room_are_looked_at_first(tmp_path: Path, change: dict[str, int], code: str) -> None:
    host = Scarce(tmp_path)
    for name, value in change.items():
        setattr(host, name, value)
    with pytest.raises(HostError) as caught:
        rehearse(host, SNAPSHOT)
    assert caught.value.code == code


def test_a_backup_without_data_is_not_booted(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        rehearse(Scarce(tmp_path))
    assert caught.value.code == "backup-without-data"


def test_without_etcdutl_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither etcd's image nor this machine has it: said before a file of the backup is written anywhere."""
    host = Scarce(tmp_path)
    images = lambda local, socket, *, image: contextlib.nullcontext(MountedImage(image))  # noqa: E731
    monkeypatch.setattr(image_program, "mount_image", images)
    monkeypatch.setattr(etcdutl, "is_in_image", lambda host, mounted, place: False)
    monkeypatch.setattr(rehearsal, "list_images", lambda local, socket: {ETCD, API})
    monkeypatch.setattr(host, "which", lambda program: None)
    with pytest.raises(HostError) as caught:
        rehearse(host, SNAPSHOT)
    assert caught.value.code == "no-etcdutl" and "/usr/local/bin" in caught.value.remedy
    assert not host.exists(Path("/var/lib/kb/kb-rehearsal"))


def test_what_a_killed_one_left_is_removed_first(tmp_path: Path) -> None:
    host = Scarce(tmp_path)
    host.write_file(Path("/var/lib/kb/kb-rehearsal/etcd/member/snap/db"), "x")
    host.answers["crictl"] = lambda argv: CommandResult(argv, 1, stderr="no runtime")
    with pytest.raises(HostError):
        rehearse(host, SNAPSHOT)
    assert not host.exists(Path("/var/lib/kb/kb-rehearsal"))
    assert host.exists(Path("/var/lib/kb"))


@pytest.mark.parametrize(
    "line",
    [
        'E1130 07:53:29.318833    2451 run.go:72] "command failed" err="write /kb-certs/apiserver.crt: no space left on device"',
        '{"level":"fatal","msg":"failed to save","error":"write /data/member/wal/1.wal: no space left on device"}',
    ],
)
def test_a_disk_that_fills_in_the_middle_is_not_blamed_on_the_backup(tmp_path: Path, line: str) -> None:
    host = Scarce(tmp_path)
    host.answers["journalctl"] = lambda argv: CommandResult(argv, 0, f"Started\n{line}\n")
    place = Path("/var/lib/kb/kb-rehearsal")
    error = rehearsal._failed(host, rehearsal.APISERVER, cause="it ended", since="", folder=place)
    assert error.code == "disk-full" and "df -h /var/lib/kb" in error.remedy and "no space left" in error.cause
    assert etcdutl.find_full_disk("panic: wal: corrupt", place) is None
