"""What the commands of kb's timers share: their words, and what there is to do where no timer can run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from kubeup.errors import HostError, UsageError
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.machine import own_copy

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation

VERBS = ("on", "off", "status", "run")


def read_verb(call: Invocation) -> str:
    """One of VERBS. Raises UsageError (usage)."""
    verb = call.words[0] if len(call.words) == 1 else ""
    if verb in VERBS:
        return verb
    name = f"kb {call.command.name}"
    raise UsageError(
        " ".join((name, *call.words)),
        cause="it takes one word: on, off, status or run",
        remedy=f"see how it stands: {name} status",
        code="usage",
    )


def no_timers(line: str) -> HostError:
    """line: what cron is to run instead, as root's crontab has it."""
    return HostError(
        "no timer can run here",
        cause="systemd does not run this machine",
        remedy=f"have cron do it, by a line in root's crontab: {line}",
        code="no-systemd",
    )


def say_own_line(when: str, words: str) -> str:
    """The crontab's line that runs this kb. when: `17 3 * * *`; words: those of the command."""
    return f"{when} {sys.executable} {own_copy.find_running_pyz() or 'kb.py'} {words}"
