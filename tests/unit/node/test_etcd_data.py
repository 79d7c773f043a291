"""kubeup/node/etcd_data.py: the copy of a stopped member's data comes back whole, wherever kb is killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.machine.local_host import LocalHost
from kubeup.node import etcd_data
from tests.fake_host import FakeHost

OLD = {"member/wal/0-0.wal": b"the log", "member/snap/db": b"the data" * 100, "notes": b"of the admin's"}
BROKEN = {"member/wal/0-0.wal": b"torn", "member/wal/0-1.wal": b"more", "extra/x": b"of the new version"}


class Killed(BaseException):
    pass


class MortalHost(LocalHost):
    """This machine, on which kb is killed before its change number `dies_at`, or in the middle of it if that is a program."""

    CHANGES = ("run", "move_file", "make_dir", "remove_tree", "remove")

    def __init__(self, dies_at: int = -1, *, mounted: tuple[Path, ...] = ()) -> None:
        super().__init__()
        self.dies_at, self.count, self.mounted = dies_at, 0, mounted
        self.commands: list[tuple[str, ...]] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in MortalHost.CHANGES:
            return found

        def change(*args: Any, **named: Any) -> Any:
            if self.count == self.dies_at:
                if name == "run" and args[0][0] == "cp":  # it had copied some of it
                    super(MortalHost, self).run([*args[0][:3], *args[0][-2:]])
                raise Killed
            self.count += 1
            if name == "run":
                self.commands.append(tuple(map(str, args[0])))
            return found(*args, **named)

        return change

    def mounts_below(self, path: Path) -> list[Path]:
        return [place for place in self.mounted if path in place.parents]


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o700)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "etcd"
    folder.mkdir(mode=0o700)
    fill(folder, OLD)
    os.utime(folder / "member/snap/db", (1_000_000_000, 1_000_000_000))
    return folder


def break_it(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if ".kb-" not in str(path.relative_to(folder)) and path.name != "lost+found":
            path.rmdir() if path.is_dir() else path.unlink()
    fill(folder, BROKEN)


# ---- the copy and the way back


def test_the_copy_lies_beside_the_data_is_private_and_comes_back_as_it_was(data: Path) -> None:
    host = MortalHost()
    place = etcd_data.copy_data(host, data)
    assert place == data.parent / "etcd.kb-former" and files_in(place) == OLD and place.stat().st_mode & 0o777 == 0o700
    assert ("sync", "-f", f"{place}.part") in host.commands, "it is on disk before it has its name"
    before = data.stat()
    break_it(data)
    etcd_data.restore_data(host, data)
    assert files_in(data) == OLD and not (data / "etcd.kb-former").exists(), "not nested"
    found = (data / "member/snap/db").stat()
    assert (found.st_mtime, found.st_mode & 0o777) == (1_000_000_000, 0o600) and data.stat().st_ino == before.st_ino
    assert etcd_data.has_copy(host, data) and files_in(place) == OLD, "it can be restored again"
    assert etcd_data.find_copies(host, data) == [place]
    assert etcd_data.remove_copy(host, data) and not etcd_data.remove_copy(host, data)
    assert sorted(path.name for path in data.parent.iterdir()) == ["etcd"]


def test_a_link_and_a_mount_keep_being_what_they_are(data: Path) -> None:
    link = data.parent / "link"
    link.symlink_to(data)
    (data / "lost+found").mkdir()
    host = MortalHost(mounted=(data,))
    place = etcd_data.copy_data(host, link)
    assert place == data / ".kb-former", "on the file system of the disk that is mounted there"
    break_it(data)
    etcd_data.restore_data(host, link)
    assert link.is_symlink() and (data / "lost+found").is_dir()
    assert {name: text for name, text in files_in(data).items() if not name.startswith(".kb-")} == OLD
    assert etcd_data.remove_copy(host, link) and files_in(data) == OLD


def test_a_folder_that_is_gone_is_made_again(data: Path) -> None:
    host = MortalHost()
    etcd_data.copy_data(host, data)
    break_it(data)
    host.remove_tree(data)
    etcd_data.restore_data(host, data)
    assert files_in(data) == OLD and data.stat().st_mode & 0o777 == 0o700


def count_changes(act: Callable[[LocalHost], object]) -> int:
    host = MortalHost()
    act(host)
    return host.count


def test_killed_anywhere_the_copy_is_whole_or_not_there(data: Path) -> None:
    def again(host: LocalHost) -> None:
        if not etcd_data.has_copy(host, data):
            etcd_data.copy_data(host, data)

    total = count_changes(again)
    assert total >= 5
    for step in range(total):
        etcd_data.remove_copy(LocalHost(), data)
        with pytest.raises(Killed):
            again(MortalHost(step))
        assert files_in(data) == OLD
        place = etcd_data.place_of_copy(LocalHost(), data)
        assert not place.exists() or files_in(place) == OLD
        again(MortalHost())
        assert files_in(place) == OLD and not place.with_name(f"{place.name}.part").exists()


@pytest.mark.parametrize("is_mounted", [False, True])
def test_killed_anywhere_the_restore_is_completed_by_the_next(data: Path, is_mounted: bool) -> None:
    mounted = (data,) if is_mounted else ()
    etcd_data.copy_data(MortalHost(mounted=mounted), data)

    def restore(host: LocalHost) -> None:
        etcd_data.restore_data(host, data)

    break_it(data)
    probe = MortalHost(mounted=mounted)
    restore(probe)
    assert probe.count >= 9
    for step in range(probe.count):
        break_it(data)
        with pytest.raises(Killed):
            restore(MortalHost(step, mounted=mounted))
        if (data / "member").exists():
            member = {name: text for name, text in files_in(data).items() if name.startswith("member/")}
            assert all(member[name] == text for name, text in OLD.items() if name in member) or (
                member == {name: text for name, text in BROKEN.items() if name in member}
            ), "never a mixture"
            wholes = [{n: text for n, text in one.items() if n.startswith("member/")} for one in (OLD, BROKEN)]
            assert member in wholes or etcd_data.is_half_replaced(LocalHost(), data)
        else:
            assert etcd_data.is_half_replaced(LocalHost(), data), "etcd would begin a new cluster"
        restore(MortalHost(mounted=mounted))
        assert {name: text for name, text in files_in(data).items() if not name.startswith(".kb-former")} == OLD


# ---- refusals


def test_too_little_room_is_told_before_anything_stops() -> None:
    host = FakeHost(files={"/var/lib/etcd/member/snap/db": b"x" * (1 << 20)}, free=60 << 20)
    with pytest.raises(HostError) as caught:
        etcd_data.check_room(host, Path("/var/lib/etcd"))
    assert (
        caught.value.code == "etcd-copy-no-room" and "65 MiB" in caught.value.cause and "60 MiB" in caught.value.cause
    )
    assert host.changes == []
    host.free = 66 << 20
    etcd_data.check_room(host, Path("/var/lib/etcd"))


def test_data_that_lies_elsewhere_is_no_whole_copy(data: Path) -> None:
    for named in ({"wal_dir": Path("/var/log/etcd")},):
        with pytest.raises(HostError, match="as a whole") as caught:
            etcd_data.check_room(LocalHost(), data, **named)
        assert caught.value.code == "etcd-data-spread" and "/var/log/etcd" in caught.value.cause
    etcd_data.check_room(LocalHost(), data, wal_dir=data / "member/wal")
    with pytest.raises(HostError, match="as a whole"):
        etcd_data.check_room(MortalHost(mounted=(data / "member/wal",)), data)
    (data / "member").rename(data.parent / "elsewhere")
    (data / "member").symlink_to(data.parent / "elsewhere")
    with pytest.raises(HostError, match="as a whole"):
        etcd_data.check_room(LocalHost(), data)


def test_a_copy_is_not_written_over_and_nothing_is_not_copied(data: Path) -> None:
    host = MortalHost()
    etcd_data.copy_data(host, data)
    break_it(data)
    with pytest.raises(HostError) as caught:
        etcd_data.copy_data(host, data)
    assert caught.value.code == "etcd-copy-exists"
    etcd_data.remove_copy(host, data)
    etcd_data.empty_data(host, data)
    assert list(data.iterdir()) == []
    with pytest.raises(HostError) as caught:
        etcd_data.copy_data(host, data)
    assert caught.value.code == "etcd-data-missing"
    with pytest.raises(HostError) as caught:
        etcd_data.restore_data(host, data)
    assert caught.value.code == "etcd-copy-missing"


def test_a_copy_that_fails_leaves_nothing_behind(data: Path) -> None:
    class FullHost(MortalHost):
        def __getattribute__(self, name: str) -> Any:
            if name == "run":
                return lambda argv, **_: CommandResult(tuple(map(str, argv)), 1, stderr="cp: No space left on device")
            return super().__getattribute__(name)

    with pytest.raises(HostError) as caught:
        etcd_data.copy_data(FullHost(), data)
    assert caught.value.code == "etcd-copy-failed" and "No space left" in caught.value.cause
    assert sorted(path.name for path in data.parent.iterdir()) == ["etcd"]


def test_a_cp_that_cannot_share_blocks_copies_all_the_same(data: Path) -> None:
    class PlainHost(MortalHost):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name != "run":
                return found
            refused = CommandResult(("cp",), 1, stderr="cp: unrecognized option: reflink=auto")
            return lambda argv, **named: refused if "--reflink=auto" in argv else found(argv, **named)

    assert files_in(etcd_data.copy_data(PlainHost(), data)) == OLD


@pytest.mark.parametrize(
    ("files", "is_refused"),
    [
        ({}, True),
        ({"member/snap/db": b""}, True),
        ({"member/wal/0.tmp": b""}, True),
        ({"lost+found/x": b""}, True),
        ({"member/wal/0000000000000000-0000000000000000.wal": b""}, False),
    ],
)
def test_etcd_is_not_started_on_an_empty_folder(files: dict[str, bytes], is_refused: bool) -> None:
    host = FakeHost(files={f"/var/lib/etcd/{name}": data for name, data in files.items()})
    if not is_refused:
        etcd_data.refuse_empty(host, Path("/var/lib/etcd"), others=["cp2"])
        return
    with pytest.raises(HostError) as caught:
        etcd_data.refuse_empty(host, Path("/var/lib/etcd"), others=["cp2", "cp3"])
    assert caught.value.code == "etcd-data-missing" and "cp2, cp3 have the data" in caught.value.remedy
    with pytest.raises(HostError, match="holds no data") as caught:
        etcd_data.refuse_empty(host, Path("/var/lib/etcd"), others=[])
    assert "snapshot" in caught.value.remedy


def test_a_log_that_lies_elsewhere_is_looked_for_there() -> None:
    host = FakeHost(files={"/wal/0.wal": b"", "/var/lib/etcd/member/snap/db": b""})
    etcd_data.refuse_empty(host, Path("/var/lib/etcd"), others=["cp2"], wal_dir=Path("/wal"))


# ---- the manifest


def pod(*command: str) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "etcd", "command": list(command)}]}}


ALONE = ("etcd", "--data-dir=/d", "--initial-cluster=cp2=https://b:2380", "--name=cp2")
ALL = ("etcd", "--data-dir=/x", "--initial-cluster=cp1=https://a:2380,cp2=https://b:2380", "--initial-cluster-state=existing", "--name=cp2")  # fmt: skip


@pytest.mark.parametrize(
    ("new", "old", "wanted"),
    [
        (ALONE, ALL, ("etcd", "--data-dir=/d", *ALL[2:])),
        (ALONE, ("etcd", "--initial-cluster", "a=b,c=d", "--initial-cluster-state", "existing"),
         ("etcd", "--data-dir=/d", "--initial-cluster=a=b,c=d", "--initial-cluster-state=existing", "--name=cp2")),
        (ALL, ALONE, ALL),  # it knows more
        (ALONE, ALONE, ALONE),
        (ALONE, ("kine", *ALL[1:]), ALONE),  # another program
        (ALONE, (), ALONE),
    ],
)  # fmt: skip
def test_a_manifest_rendered_anew_keeps_all_members(
    new: tuple[str, ...], old: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    before = pod(*new)
    assert etcd_data.keep_initial_cluster(before, pod(*old)) == pod(*wanted) and before == pod(*new)


@pytest.mark.parametrize("odd", [{}, {"spec": None}, {"spec": {"containers": []}}, {"spec": {"containers": [None]}}])
def test_what_is_no_pod_changes_nothing(odd: dict[str, Any]) -> None:
    assert etcd_data.keep_initial_cluster(pod(*ALONE), odd) == pod(*ALONE)
    assert etcd_data.keep_initial_cluster(odd, pod(*ALL)) == odd
