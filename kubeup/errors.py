"""The errors of kb: each says what broke, why, and the one thing to do next.

Owns the exit statuses. `docs/errors.md` is generated from the raise sites (see tests/unit/test_errors.py), so every
code is listed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Optional

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def shown(text: str) -> str:
    """Untrusted text (from a bundle, a registry, a server, a file name) made safe for one line of a terminal:
    characters that would move the cursor, change colours or start a new line are escaped."""
    return text.translate({**_CONTROLS, 9: "\\t", 10: "\\n"}).encode(errors="backslashreplace").decode()


class Interrupted(KeyboardInterrupt):
    """A signal asks kb to stop: the running phase is recorded, then kb exits with 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.phase: Optional[str] = None
        """The phase in which it arrived; filled in by the Runner."""


class KbError(Exception):
    """A failure that the user can act on: a Trouble, raised as an exception.

    what    the object and its current value: "kube-apiserver exited 3 times (code 1)"
    cause   why: 'unknown flag: --foo, which comes from apiServer.extraArgs'
    remedy  one thing to do: 'remove it, then: kb init'
    code    a stable kebab-case name, listed in docs/errors.md
    details more lines (all problems of a config file, the last log lines of a container)
    """

    status = 70

    def __init__(self, what: str, *, cause: str, remedy: str, code: str, details: Iterable[str] = ()) -> None:
        for name, value in (("what", what), ("cause", cause), ("remedy", remedy), ("code", code)):
            if not value:
                raise ValueError(f"a KbError needs its {name}: what={what!r} cause={cause!r}")
        what, cause, remedy = (text.translate(_CONTROLS) for text in (what, cause, remedy))
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.remedy = remedy
        self.code = code
        self.details = tuple(text.translate(_CONTROLS) for text in details)
        self.phase: Optional[str] = None
        """The phase in which it happened; filled in by the Runner."""
        self.changed: Optional[str] = None
        """What had been changed by then, in words; filled in by the Runner."""

    def __str__(self) -> str:
        return f"{self.what}: {self.cause}"

    def as_dict(self) -> dict[str, object]:
        """The error for -o json and state.json. Never contains a secret: raise sites do not put secrets into its
        texts."""
        return {
            "code": self.code,
            "what": self.what,
            "cause": self.cause,
            "remedy": self.remedy,
            "details": list(self.details),
            "phase": self.phase,
            "changed": self.changed,
        }


class UsageError(KbError):
    """Wrong flags or a wrong config document: nothing was read from the machine or changed."""

    status = 2


class PreflightError(KbError):
    """The node does not meet the requirements: nothing was changed."""

    status = 3


class HostError(KbError):
    """The machine failed: a file, a program, the runtime."""

    status = 4


class ClusterError(KbError):
    """The cluster refused a request, or did not come up."""

    status = 5
