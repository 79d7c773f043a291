"""The three standard streams: any encoding, closed streams, and lost output."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


class OutputLost(Exception):
    """Standard output accepts no more data, for example because the disk is full."""


@contextlib.contextmanager
def to_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputLost(str(error)) from error


def open_streams() -> None:
    """Open /dev/null for each standard stream that is closed, as Go programs do. Otherwise kb, and the programs that it
    runs, would take the next opened file for that stream."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) != number:
                continue  # an embedding program has replaced the stream
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115 (for the life of the process)


def show(text: str) -> None:
    with to_output():
        sys.stdout.write(text)


def drop_output() -> None:
    """Discard the rest of standard output without raising another error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def show_anything(*streams: TextIO) -> None:
    """Make a terminal of any encoding accept any text; characters that it cannot show are escaped."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
