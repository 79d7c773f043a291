"""The seam to the machine, on a folder and on loopback."""

from __future__ import annotations

import contextlib
import errno
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeup.errors import HostError
from kubeup.machine.host import LocalHost, Unreachable, _execute, shown_argv
from kubeup.secret import Secret


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


def test_below_a_root_nothing_is_run_but_told(host: LocalHost) -> None:
    assert host.run(["systemctl", "restart", "kubelet"]).deferred
    assert host.query(["true"]).missing
    host.http_send("PATCH", "https://10.0.0.1/x")
    assert host.deferred == ["systemctl restart kubelet", "PATCH https://10.0.0.1/x"]
    with pytest.raises(Unreachable):
        host.http_get("http://127.0.0.1:1/")


def test_remove_takes_a_file_and_an_empty_folder_but_no_tree(host: LocalHost) -> None:
    host.write_file(Path("/d/x"), "")
    with pytest.raises(HostError):
        host.remove(Path("/d"))
    assert host.remove(Path("/d/x")) and host.remove(Path("/d"))
    assert not host.remove(Path("/d"))


def test_a_secret_is_shown_as_stars_and_passed_in_full() -> None:
    argv = ("echo", Secret("hunter2"))
    assert shown_argv(argv) == ("echo", "***")
    done = _execute(argv, 10, None, "")
    assert done.stdout == "hunter2\n"
    assert "hunter2" not in " ".join(done.argv)


@pytest.mark.parametrize("word", ["a\0b", "a\ud800b"])
def test_a_word_that_no_program_can_be_given(word: str) -> None:
    """Out of a damaged state, or an answer of a server."""
    for ask in (LocalHost().query, LocalHost().run):
        assert ask(["echo", word]).code == 126 and ask(["cat"], env={"X": word}).code == 126


def test_a_missing_program_and_a_slow_one() -> None:
    assert _execute(["no-such-program-here"], 5, None, "").missing
    assert _execute(["sleep", "5"], 0.1, None, "").code == 124


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connections: set[tuple[str, int]]

    def do_GET(self) -> None:
        self.server.seen.add(self.client_address)  # type: ignore[attr-defined]
        body = self.path.encode()
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    made.seen = set()  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


class TestHttp:
    def test_any_status_is_an_answer(self, server: http.server.ThreadingHTTPServer) -> None:
        url = f"http://127.0.0.1:{server.server_port}"
        live = LocalHost()
        assert live.http_get(url + "/a?b=c").body == b"/a?b=c"
        assert live.http_get(url + "/none").status == 404

    def test_a_connection_is_used_again(self, server: http.server.ThreadingHTTPServer) -> None:
        live = LocalHost()
        for _ in range(3):
            live.http_get(f"http://127.0.0.1:{server.server_port}/")
        assert len(server.seen) == 1  # type: ignore[attr-defined]

    def test_nothing_listens(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(Unreachable) as caught:
            LocalHost().http_get(f"http://127.0.0.1:{port}/")
        assert caught.value.reason == "refused"

    def test_the_holder_of_a_port_is_named(self, server: http.server.ThreadingHTTPServer) -> None:
        holder = LocalHost().port_holder(server.server_port)
        assert holder is not None and f"(pid {os.getpid()})" in holder


def test_a_second_lock_says_who_holds_the_first(host: LocalHost) -> None:
    with host.lock(Path("/var/lib/kb/lock"), "kb init"):
        with pytest.raises(HostError) as caught, host.lock(Path("/var/lib/kb/lock"), "kb status"):
            pass
        assert caught.value.code == "locked"
        assert f"kb init (pid {os.getpid()}" in caught.value.cause
    with host.lock(Path("/var/lib/kb/lock"), "kb init"):
        pass


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


@pytest.mark.parametrize("root", ["/", "//", "///", "/tmp/..", "/proc/self/root"])
def test_this_machine_by_any_name(root: str) -> None:
    assert LocalHost(Path(root)).is_live


def test_a_folder_is_not_this_machine(tmp_path: Path) -> None:
    assert not LocalHost(tmp_path).is_live
