"""The one loop that waits: until something holds, or no longer.

Owns what is told meanwhile and when patience ends. Must not know what is waited for. What asks a server again after a pause is no
wait of this kind, since each try does something: who does so keeps its own pauses (tests/unit/test_one_wait_loop.py lists them).
"""

from __future__ import annotations

from collections.abc import Callable

from kubeup.errors import KbError
from kubeup.machine.host import Host

POLL_S = 0.1


def watch(
    host: Host,
    look: Callable[[], str],
    *,
    timeout_s: float,
    is_over: Callable[[str, float], bool] = lambda missing, elapsed: False,
    poll_s: float = POLL_S,
) -> tuple[str, float]:
    """Call `look` until it returns "" (it holds; else what is missing, in words), or `timeout_s` is over. Returns what is missing in
    the end, and the seconds that it took.

    is_over: called in every round with the same; it may tell, look for causes, raise KbError, or say that waiting is in vain.
    """
    started = host.monotonic()
    while True:
        missing = look()
        elapsed = host.monotonic() - started
        if not missing or is_over(missing, elapsed) or elapsed > timeout_s:
            return missing, elapsed
        host.sleep(poll_s)


def wait_for(
    host: Host,
    look: Callable[[], str],
    *,
    goal: str,
    timeout_s: float,
    tell: Callable[[str], None],
    failure: Callable[[str, float], KbError],
    meanwhile: Callable[[str, float], None] = lambda missing, elapsed: None,
    poll_s: float = POLL_S,
) -> float:
    """As `watch`, for what nothing goes on without. Returns the seconds that it took.

    failure: what is raised when `timeout_s` is over, of what is missing and the seconds; meanwhile: called in every round with the
    same, it may look for causes, and raise KbError.
    """

    def tell_it(missing: str, elapsed: float) -> bool:
        meanwhile(missing, elapsed)
        tell(say_round(goal, missing, elapsed=elapsed, timeout_s=timeout_s))
        return False

    missing, elapsed = watch(host, look, timeout_s=timeout_s, is_over=tell_it, poll_s=poll_s)
    if missing:
        raise failure(missing, elapsed)
    return elapsed


def say_round(goal: str, missing: str, *, elapsed: float, timeout_s: float) -> str:
    """ "node Ready: 3 s of 30 s; the kubelet has not reported yet" """
    return f"{goal}: {elapsed:.0f} s of {timeout_s:.0f} s; {missing}"


def becomes_so(
    host: Host,
    is_so: Callable[[], bool],
    *,
    timeout_s: float,
    poll_s: float = POLL_S,
) -> bool:
    """Whether `is_so` says so within `timeout_s`."""
    missing, _ = watch(host, lambda: "" if is_so() else "it", timeout_s=timeout_s, poll_s=poll_s)
    return not missing
