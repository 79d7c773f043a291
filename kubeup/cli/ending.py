"""How a command ends: signal handling and error output."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from kubeup.cli.output import drop_output, show_anything
from kubeup.cli.parser import words_first
from kubeup.errors import Interrupted, KbError
from kubeup.lazy_modules import lazily
from kubeup.report import Report

with lazily:
    import traceback

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def catch_signals() -> None:
    """Install the signal handlers. The first signal makes the phase finish in order, a second one interrupts whatever
    it is waiting for, a third one ends the process."""
    came: list[int] = []

    def stop(number: int, _frame: object) -> NoReturn:
        came.append(number)
        if len(came) > 2:
            os._exit(128 + number)
        raise Interrupted(number)

    show_anything(sys.stdout, sys.stderr)
    try:
        for number in SIGNALS:
            # an ignored SIGHUP (nohup) stays ignored
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, stop)
    except ValueError:
        pass  # not the main thread: the embedding program handles signals


def tell_error(error: KbError, report: Report, *, argv: Sequence[str], debug: bool) -> int:
    if debug:
        with contextlib.suppress(OSError):  # its reader is gone: the exit status still says that the command failed
            traceback.print_exc(file=report.stream)
    form = _asked_form(argv)
    value = {"error": {**error.as_dict(), "remedy": report.spell(error.remedy)}}
    try:
        if form == "json":
            sys.stdout.write(json.dumps(value, indent=2) + "\n")
        elif form == "yaml":
            from kubeup.yaml_files import dump_yaml

            sys.stdout.write(dump_yaml(value))
        sys.stdout.flush()
    except OSError:
        drop_output()  # the error itself is reported below, and by the exit status
    # kubeadm's callers look for `error execution phase`
    head = f"error execution phase {error.phase}: " if error.phase else ""
    report.line(f"error: {head}{error.what}")
    for line in error.details:
        report.line(f"  {report.spell(line)}")
    report.line(f"  cause:  {error.cause}")
    report.line(f"  remedy: {report.spell(error.remedy)}")
    if error.changed:
        can_undo = words_first(argv)[:1] in (["init"], ["join"]) and not error.changed.startswith("nothing")
        undo = report.spell("; undo: kb reset") if can_undo else ""
        report.line(f"  so far: {error.changed}; after the remedy, continue with the same command{undo}")
    report.line(f"  code:   {error.code}")
    return error.status


def _asked_form(argv: Sequence[str]) -> str:
    """json or yaml if -o asks for it, even if the command line cannot be parsed."""
    text = " ".join(argv)
    found = re.search(r"(?:^| )(?:-o|--output)[ =]?(json|yaml)(?: |$)", text)
    return found.group(1) if found else ""
