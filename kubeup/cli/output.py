"""The three standard streams: whatever their encoding, whether they are open, and what becomes of output that is lost."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


class OutputLost(Exception):
    """Standard output takes no more: a full disk."""


@contextlib.contextmanager
def to_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputLost(str(error)) from error


def open_streams() -> None:
    """Whatever of the three was closed leads to /dev/null, as in Go's programs: else the next file that is opened would be
    taken for it, by kb and by the programs that it runs."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) != number:
                continue  # an embedding program has them elsewhere
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115 (for as long as the process)


def show(text: str) -> None:
    with to_output():
        sys.stdout.write(text)


def drop_output() -> None:
    """Let what is still on its way to standard output end without a further error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def show_anything(*streams: TextIO) -> None:
    """Have a terminal of any encoding take any text: what it cannot show is escaped."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
