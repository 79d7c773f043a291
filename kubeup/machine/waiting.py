"""The one loop that waits: until something holds, or no longer.

Owns what is told meanwhile and when patience ends. Must not know what is waited for.
"""

from __future__ import annotations

from collections.abc import Callable

from kubeup.errors import KbError
from kubeup.machine.host import Host

POLL_S = 0.1


def wait_for(
    host: Host,
    look: Callable[[], str],
    *,
    goal: str,
    timeout_s: float,
    tell: Callable[[str], None],
    failure: Callable[[str, float], KbError],
    meanwhile: Callable[[str, float], str] = lambda missing, elapsed: "",
    poll_s: float = POLL_S,
) -> float:
    """Call `look` until it returns "" (it holds; else what is missing, in words). Returns the seconds that it took.

    failure: what is raised when `timeout_s` is over, of what is missing and the seconds; meanwhile: called in every round with the
    same, it may look for causes, raise KbError, and returns what is to be told besides.
    """
    started = host.monotonic()
    while True:
        missing = look()
        elapsed = host.monotonic() - started
        if not missing:
            return elapsed
        tell(f"{goal}: {elapsed:.0f} s of {timeout_s:.0f} s; {missing}{meanwhile(missing, elapsed)}")
        if elapsed > timeout_s:
            raise failure(missing, elapsed)
        host.sleep(poll_s)
