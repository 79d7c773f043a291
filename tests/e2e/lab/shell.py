"""Running programs: one function, one result, one error that shows what the program said."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional, Union

from .settings import LabError

Command = Union[str, Sequence[str]]


@dataclass(frozen=True)
class Result:
    """How a program ended and what it wrote."""

    command: str
    code: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Whether the exit status was 0."""
        return self.code == 0

    @property
    def output(self) -> str:
        """Both streams, for messages."""
        return "\n".join(part for part in (self.stdout.rstrip(), self.stderr.rstrip()) if part)


class CommandFailed(LabError):
    """A program ended with a status other than 0, or did not end in time."""

    def __init__(self, result: Result, why: str) -> None:
        self.result = result
        super().__init__(f"{why}: {result.command}\n{_shorten(result.output)}")


def _shorten(text: str, limit: int = 8000) -> str:
    """The start and the end of a long text: causes stand in either place."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 4]}\n[... {len(text) - limit} characters left out ...]\n{text[-limit * 3 // 4 :]}"


def as_shell(command: Command) -> str:
    """A command as one line for a shell: a string is a shell line already, a list is quoted."""
    return command if isinstance(command, str) else shlex.join(command)


def sh(
    argv: Sequence[str],
    *,
    check: bool = True,
    timeout_s: float = 120,
    stdin: Optional[Union[str, bytes]] = None,
    env: Optional[Mapping[str, str]] = None,
    shown: Optional[str] = None,
) -> Result:
    """Run a program of this machine to its end. `shown` is the command to name in messages, if not argv itself."""
    __tracebackhide__ = True  # pytest: the caller is of interest
    data = stdin.encode() if isinstance(stdin, str) else stdin
    name = shown or shlex.join(argv)
    # A session of its own, so that the interrupt key stops the test and not the program half way.
    with subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if env is None else dict(env),
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(data, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            result = Result(name, -1, out.decode(errors="replace"), err.decode(errors="replace"))
            raise CommandFailed(result, f"no end after {timeout_s:g} s") from None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    result = Result(name, process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
    if check and not result.ok:
        raise CommandFailed(result, f"exit status {result.code}")
    return result
