"""The one polling loop: it waits until a condition holds or a timeout ends.

It reports progress meanwhile, and does not know what it waits for. Retrying a request after a pause is something else, since each
try does something. Such code has pauses of its own (tests/unit/test_one_wait_loop.py lists it).
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
    """Call `look` until it returns "", which means that the condition holds, or `timeout_s` ends. Otherwise `look` returns what is
    missing, in words. Returns what is missing in the end, and the seconds elapsed.

    is_over: called in every round with what is missing and the seconds elapsed. It may report progress, look for causes, raise
    KbError, or return True if waiting longer is useless.
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
    """Like `watch`, for a condition that is required. Returns the seconds elapsed.

    failure: makes the error to raise when `timeout_s` ends, from what is missing and the seconds elapsed. meanwhile: called in every
    round with the same arguments; it may look for causes and raise KbError.
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
    """The progress of a wait: "node Ready: 3 s of 30 s; the kubelet has not reported yet"."""
    return f"{goal}: {elapsed:.0f} s of {timeout_s:.0f} s; {missing}"


def becomes_so(
    host: Host,
    is_so: Callable[[], bool],
    *,
    timeout_s: float,
    poll_s: float = POLL_S,
) -> bool:
    """Whether `is_so` returns True within `timeout_s`."""
    missing, _ = watch(host, lambda: "" if is_so() else "it", timeout_s=timeout_s, poll_s=poll_s)
    return not missing
