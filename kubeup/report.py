"""What the user sees while kb works: progress on stderr, results on stdout.

One line per phase; on a terminal also a live line with what kb is waiting for. No colour if NO_COLOR is set or the
stream is not a terminal. Knows nothing about phases except their names.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from typing import Optional, TextIO

_BOLD, _DIM, _RED, _YELLOW, _GREEN, _RESET = "\033[1m", "\033[2m", "\033[31m", "\033[33m", "\033[32m", "\033[0m"


_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for line breaks and tabs, those that turn the direction of what follows, and halves of characters."""


def escape_controls(text: str) -> str:
    """A text as a terminal may have it: what other programs, machines and users of the cluster wrote is shown in messages, and could
    move the cursor, hide a line or answer for the user. Such a character is written as in Python: `\\x1b`. All others stay, also those
    that join letters or emoji: what is printed may be a file that is read again."""
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Report:
    """Progress lines. verbosity: 0 phases and notes, 1 (-v) also every change, 2 also commands and requests."""

    def __init__(self, stream: Optional[TextIO] = None, *, verbosity: int = 0, quiet: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.verbosity = verbosity
        self.quiet = quiet
        self.is_terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.has_colour = self.is_terminal and not os.environ.get("NO_COLOR")
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.spell: Callable[[str], str] = str
        """Rewrites the kb commands in a text the way they are called here (kubeup/cli/own_name.py)."""
        self._live = False
        self._last_waiting = ""
        self._started = time.monotonic()

    # ---- what phases call

    def note(self, text: str) -> None:
        """Report a decision or a finding that the user should know, in one sentence."""
        self.notes.append(text)
        self._line(f"  {escape_controls(self.spell(text))}")

    def warn(self, text: str) -> None:
        """Report something that works but deserves attention; never something that will fail."""
        self.warnings.append(text)
        self._line(f"  {self._paint(_YELLOW, 'warning:')} {escape_controls(self.spell(text))}")

    def warn_once(self, text: str) -> None:
        """Report a warning once, even if several phases find it."""
        if text not in self.warnings:
            self.warn(text)

    def detail(self, text: str, level: int = 1) -> None:
        """Print a line with -v (level 1) or -v 2."""
        if self.verbosity >= level:
            self._line(f"    {self._paint(_DIM, escape_controls(text))}")

    def waiting(self, text: str) -> None:
        """Show what kb is waiting for ("apiserver: 12 s of 240 s; etcd up"). May be called any number of times: on a
        terminal it updates one live line; elsewhere a changed text is printed once, with -v."""
        if self.quiet:
            return
        text = escape_controls(text)
        if self.is_terminal:
            width = os.get_terminal_size(self.stream.fileno()).columns if self._has_fileno() else 80
            self._write(f"\r\033[K    {self._paint(_DIM, text[: max(20, width - 6)])}")
            self._live = True
        elif self.verbosity and text != self._last_waiting:
            self._line(f"    {text}")
        self._last_waiting = text

    # ---- what the Runner calls

    def phase(self, index: int, total: int, *, name: str, does: str, outcome: str) -> None:
        """`[ 3/22] certs/apiserver  Issue the API server's serving certificate  0.1s`"""
        width = len(str(total))
        colour = _RED if outcome == "failed" else _DIM if outcome in ("unchanged", "skipped") else _GREEN
        shown = escape_controls(does)
        self._line(f"[{index:>{width}}/{total}] {self._paint(_BOLD, name)}  {shown}  {self._paint(colour, outcome)}")

    def line(self, text: str) -> None:
        """Print a plain progress line."""
        self._line(escape_controls(text))

    def _line(self, text: str) -> None:
        if self.quiet:
            return
        self._write(("\r\033[K" if self._live else "") + text + "\n")
        self._live = False

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            self.quiet = True  # the reader is gone (a lost ssh connection, a full disk), but the work continues

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self.has_colour else text

    def _has_fileno(self) -> bool:
        try:
            self.stream.fileno()
            os.get_terminal_size(self.stream.fileno())
        except (OSError, ValueError, AttributeError):
            return False
        return True
