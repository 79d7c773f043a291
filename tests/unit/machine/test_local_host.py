"""LocalHost on a real folder and the programs of this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from kubeup.errors import HostError
from kubeup.machine.host import shown_argv
from kubeup.machine.http import Unreachable
from kubeup.machine.local_host import LocalHost, _execute
from kubeup.secret import Secret


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    return LocalHost(tmp_path)


def test_below_a_root_nothing_is_run_but_told(host: LocalHost) -> None:
    assert host.run(["systemctl", "restart", "kubelet"]).deferred
    assert host.query(["true"]).missing
    host.http_send("PATCH", "https://10.0.0.1/x")
    assert host.deferred == ["systemctl restart kubelet", "PATCH https://10.0.0.1/x"]
    with pytest.raises(Unreachable):
        host.http_get("http://127.0.0.1:1/")


def test_a_secret_is_shown_as_stars_and_passed_in_full() -> None:
    argv = ("echo", Secret("hunter2"))
    assert shown_argv(argv) == ("echo", "***")
    done = _execute(argv, 10, env=None, stdin="")
    assert done.stdout == "hunter2\n"
    assert "hunter2" not in " ".join(done.argv)


@pytest.mark.parametrize("word", ["a\0b", "a\ud800b"])
def test_a_word_that_no_program_can_be_given(word: str) -> None:
    """Out of a damaged state, or an answer of a server."""
    for ask in (LocalHost().query, LocalHost().run):
        assert ask(["echo", word]).code == 126 and ask(["cat"], env={"X": word}).code == 126


def test_a_missing_program_and_a_slow_one() -> None:
    assert _execute(["no-such-program-here"], 5, env=None, stdin="").missing
    assert _execute(["sleep", "5"], 0.1, env=None, stdin="").code == 124


@pytest.mark.parametrize("interrupt", [False, True], ids=["too slow", "interrupted"])
def test_what_a_shell_has_started_ends_with_it(tmp_path: Path, interrupt: bool) -> None:
    """A user's command for his load balancer that hangs, and that kb gave up on, must not go on later."""
    late = tmp_path / "late"

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, stop)
    try:
        if interrupt:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                _execute(["sh", "-c", f"sleep 1; touch {late}"], 60, env=None, stdin="")
        else:
            assert _execute(["sh", "-c", f"(sleep 1; touch {late}); true"], 0.3, env=None, stdin="").code == 124
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    time.sleep(1.5)
    assert not late.exists()


def test_a_second_lock_says_who_holds_the_first(host: LocalHost) -> None:
    with host.lock(Path("/var/lib/kb/lock"), "kb init"):
        with pytest.raises(HostError) as caught, host.lock(Path("/var/lib/kb/lock"), "kb status"):
            pass
        assert caught.value.code == "locked"
        assert f"kb init (pid {os.getpid()}" in caught.value.cause
    with host.lock(Path("/var/lib/kb/lock"), "kb init"):
        pass


@pytest.mark.parametrize("root", ["/", "//", "///", "/tmp/..", "/proc/self/root"])
def test_this_machine_by_any_name(root: str) -> None:
    assert LocalHost(Path(root)).is_live


def test_a_folder_is_not_this_machine(tmp_path: Path) -> None:
    assert not LocalHost(tmp_path).is_live
