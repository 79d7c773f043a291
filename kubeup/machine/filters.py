"""Passes a stream through a program: what goes in is its standard input, what comes out its standard output.

For content that is too large for memory, and secrets that must not be on any disk in between. Only LocalHost uses it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Optional, cast

from kubeup.errors import HostError
from kubeup.machine.files import CHUNK

_MAX_TEXT = 4096
_PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h"""
_END_S = 60.0
"""How long a program may take to end once it has closed its output."""


class ProgramFailed(HostError):
    """A program of a stream ended with an error, or could not be started. code: its exit status; said: what it wrote to stderr."""

    def __init__(self, program: str, *, status: int, said: str) -> None:
        lines = said.strip().splitlines()
        super().__init__(
            f"{program} failed (exit status {status})",
            cause=lines[-1] if lines else "it said nothing",
            remedy=f"run it by hand to see more: {program} --help",
            code="program-failed",
            details=lines[-8:],
        )
        self.exit_status = status
        self.said = said


def filter_through(argv: Sequence[str], chunks: Iterable[bytes], *, env: Mapping[str, str]) -> Iterator[bytes]:
    """What the program writes, in pieces, while `chunks` is written to it by a thread of its own.

    An error of `chunks` ends the program, before it could take what it has for everything, and is raised here. Raises ProgramFailed.
    """
    errors = os.memfd_create("kb-stderr", os.MFD_CLOEXEC)
    try:
        try:
            running = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env,
                preexec_fn=_end_with_kb(),
            )  # fmt: skip
        except OSError as error:
            raise ProgramFailed(argv[0], status=127, said=str(error.strerror)) from error
        feeder = _Feeder(running, chunks)
        feeder.start()
        output = cast("IO[bytes]", running.stdout)
        try:
            while piece := os.read(output.fileno(), CHUNK):
                yield piece
            status = _wait(running, argv[0])
        finally:
            running.kill()
            running.wait()
            output.close()
            feeder.join()
        if feeder.error is not None:
            raise feeder.error
        if feeder.has_too_much and not status:
            raise ProgramFailed(argv[0], status=0, said="it ended before it had read everything")
        if status:
            raise ProgramFailed(argv[0], status=status, said=_read_end(errors))
    finally:
        os.close(errors)


def _wait(running: subprocess.Popen[bytes], program: str) -> int:
    """Its exit status. Raises ProgramFailed if it does not end."""
    try:
        return running.wait(_END_S)
    except subprocess.TimeoutExpired as error:
        raise ProgramFailed(
            program, status=124, said=f"it closed its output and did not end in {_END_S:.0f} s"
        ) from error


def _read_end(errors: int) -> str:
    """The last of what a program wrote: its reason to fail."""
    begin = max(0, os.fstat(errors).st_size - _MAX_TEXT)
    return os.pread(errors, _MAX_TEXT, begin).decode(errors="replace")


def _end_with_kb() -> Callable[[], None]:
    """For a program that is about to start: it ends if kb is killed. It would take the end of its input for the end of the stream, and
    keep half a backup under the name of a whole one."""
    prctl = ctypes.CDLL(None).prctl  # looked up here: the child may only call it

    def end_with_kb() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return end_with_kb


class _Feeder(threading.Thread):
    def __init__(self, running: subprocess.Popen[bytes], chunks: Iterable[bytes]) -> None:
        super().__init__(daemon=True)
        self._running, self._chunks = running, chunks
        self.error: Optional[BaseException] = None
        self.has_too_much = False
        """The program ended, or closed its input, before it had everything. What it wrote is of a part, whatever its exit status says."""

    def run(self) -> None:
        given = cast("IO[bytes]", self._running.stdin)
        try:
            for piece in self._chunks:
                given.write(piece)
            given.close()
        except BrokenPipeError:
            self.has_too_much = True
        except BaseException as error:
            self.error = error
            self._running.kill()
        finally:
            try:
                given.close()
            except OSError:
                pass
