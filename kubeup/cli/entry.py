"""The entry point: parse, run, and turn every outcome into an exit status."""

from __future__ import annotations

import contextlib
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from kubeup.cli.ending import SIGNALS, catch_signals, tell_error
from kubeup.cli.output import OutputLost, drop_output, open_streams, to_output
from kubeup.cli.parser import HelpShown, parse_command_line
from kubeup.cli.program import Command, Program
from kubeup.errors import Interrupted, KbError
from kubeup.lazy_modules import lazily

with lazily:
    import traceback


def main(commands: Sequence[Command], argv: Sequence[str], *, program: Optional[Program] = None) -> int:
    """Parse and run; return the exit status: 0, the status of a KbError, 128 + a signal, 70 for a bug."""
    open_streams()
    status = 0
    try:
        status = _run(commands, argv, program=program)
        with to_output():
            sys.stdout.flush()  # report lost output here, not during Python's shutdown
        return status
    except Interrupted as stop:  # another signal while the first was being reported
        return 128 + stop.number
    except BrokenPipeError:
        drop_output()
        return status  # 0 if the reader went while the command was at work: it has seen enough
    except OutputLost as error:
        drop_output()
        with contextlib.suppress(OSError):
            sys.stderr.write(f"kb: the output cannot be written: {error}\n")
            sys.stderr.flush()
        return 1


def _run(commands: Sequence[Command], argv: Sequence[str], *, program: Optional[Program]) -> int:
    program = program or Program()
    debug = "--debug" in argv
    report = program.open_report(commands)
    catch_signals()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # warnings that libraries address to programmers are no use to operators
    try:
        invocation = parse_command_line(commands, argv, program=program)
        report = invocation.report
        return invocation.command.run(invocation)
    except HelpShown as shown:
        return shown.status
    except KbError as error:
        if program.end_with_error and not debug:
            return program.end_with_error(error, report)
        return tell_error(error, report, argv=argv, debug=debug)
    except Interrupted as stop:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # kb is already exiting
        phase = (
            f" in phase {stop.phase}: what was done is recorded; continue with the same command" if stop.phase else ""
        )
        report.line(f"\ninterrupted by {stop}{phase}")
        return 128 + stop.number
    except (BrokenPipeError, OutputLost):
        raise
    except Exception as error:
        if debug:
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        report.line(f"kb has a bug: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
        report.line("  please report it with the output of the same command and --debug")
        return 70
