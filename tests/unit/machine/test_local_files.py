"""LocalFiles on a real folder."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeup.errors import HostError
from kubeup.machine.local_host import LocalHost


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    return LocalHost(tmp_path)


class TestWriteFile:
    def test_makes_parents_content_and_mode(self, host: LocalHost, tmp_path: Path) -> None:
        assert host.write_file(Path("/etc/a/b.key"), "secret", mode=0o600)
        place = tmp_path / "etc/a/b.key"
        assert place.read_text() == "secret"
        assert place.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "etc/a").stat().st_mode & 0o777 == 0o755

    def test_same_content_and_mode_is_no_change(self, host: LocalHost, tmp_path: Path) -> None:
        host.write_file(Path("/x"), "one")
        inode = (tmp_path / "x").stat().st_ino
        assert not host.write_file(Path("/x"), "one")
        assert (tmp_path / "x").stat().st_ino == inode

    def test_other_mode_is_a_change(self, host: LocalHost, tmp_path: Path) -> None:
        host.write_file(Path("/x"), "one", mode=0o644)
        assert host.write_file(Path("/x"), "one", mode=0o600)
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600

    def test_no_temporary_file_stays(self, host: LocalHost, tmp_path: Path) -> None:
        host.write_file(Path("/d/x"), "one")
        assert os.listdir(tmp_path / "d") == ["x"]

    def test_private_from_the_first_byte(
        self, host: LocalHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []
        real = os.write

        def spy(descriptor: int, data: memoryview) -> int:
            seen.append(os.fstat(descriptor).st_mode & 0o777)
            return real(descriptor, data)

        monkeypatch.setattr(os, "write", spy)
        host.write_file(Path("/k"), "x" * 10, mode=0o600)
        assert seen == [0o600]

    def test_a_full_disk_keeps_the_old_content(
        self, host: LocalHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host.write_file(Path("/x"), "old")

        def full(descriptor: int, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(HostError) as caught:
            host.write_file(Path("/x"), "new content")
        assert caught.value.code == "disk-full"
        assert (tmp_path / "x").read_text() == "old"
        assert os.listdir(tmp_path) == ["x"]

    def test_a_kill_between_write_and_rename_leaves_the_old_file(
        self, host: LocalHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host.write_file(Path("/x"), "old")
        pid = os.fork()
        if pid == 0:
            os.rename = lambda *_, **__: os._exit(9)  # type: ignore[assignment]
            host.write_file(Path("/x"), "new and longer")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        assert (tmp_path / "x").read_text() == "old"


def test_remove_takes_a_file_and_an_empty_folder_but_no_tree(host: LocalHost) -> None:
    host.write_file(Path("/d/x"), "")
    with pytest.raises(HostError):
        host.remove(Path("/d"))
    assert host.remove(Path("/d/x")) and host.remove(Path("/d"))
    assert not host.remove(Path("/d"))


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_looked_at_is_not_missing(tmp_path: Path) -> None:
    host = LocalHost(tmp_path)
    host.write_file(Path("/var/lib/kb/state.json"), "{}", mode=0o600)
    (tmp_path / "var/lib/kb").chmod(0o700)
    for path in (tmp_path, *list(tmp_path.parents)[:2]):
        path.chmod(0o711)
    with as_ordinary_user(), pytest.raises(HostError) as caught:
        host.exists(Path("/var/lib/kb/state.json"))
    assert caught.value.cause == "Permission denied" and caught.value.remedy == "run the command as root: sudo"
    assert not host.exists(Path("/var/lib/kb/state.json/x")) and not host.exists(Path("/nothing"))


class TestOpenScratch:
    def test_it_is_written_and_read_again_and_has_no_name(self, host: LocalHost, tmp_path: Path) -> None:
        with host.open_scratch(Path("/")) as file:
            file.write(b"ab" * 100_000)
            assert os.listdir(tmp_path) == []
            assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
            file.seek(0)
            assert file.read() == b"ab" * 100_000
        assert os.listdir(tmp_path) == []

    def test_where_the_file_system_has_no_such_files(
        self, host: LocalHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.open

        def refuse(path: str, flags: int, *rest: int, **more: int) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not supported")
            return real(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", refuse)
        with host.open_scratch(Path("/")) as file:
            file.write(b"ab")
            assert os.listdir(tmp_path) == []

    def test_a_full_disk_has_a_name(self, host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(descriptor: int, data: object) -> int:
            raise OSError(errno.ENOSPC, "no space")

        host.make_dir(Path("/small"))
        with host.open_scratch(Path("/small")) as file:
            monkeypatch.setattr(os, "write", fail)
            with pytest.raises(HostError) as caught:
                file.write(b"x")
        assert caught.value.code == "disk-full" and "df -h /small)" in caught.value.remedy

    def test_a_folder_that_is_not_there(self, host: LocalHost) -> None:
        with pytest.raises(HostError) as caught:
            host.open_scratch(Path("/nowhere/at/all"))
        assert caught.value.code == "file-unwritable"
