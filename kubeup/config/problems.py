"""Collects all problems of a configuration, so that the user sees them at once.

A place is `Kind:path` (`ClusterConfiguration:networking.serviceSubnet`); `origins` maps each place to where it was
given: a line of a file, or a flag. Does not decide what is right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kubeup.errors import UsageError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily

with lazily:
    import difflib

ALLOW_UNKNOWN = "allow-unknown-fields"
"""The flag that makes kb, under its own name, accept what kubeadm only warns about."""
_SHOWN_MAX = 100
"""Problems beyond this number are counted, not shown."""


@frozen
class Problem:
    """One problem. file is a path, or a flag (`--service-cidr`) with line 0, or "" for a default.

    Not a Trouble: its cause is the place where it was given, which also determines the order."""

    file: str
    line: int
    path: str
    message: str
    remedy: str
    is_unknown: bool = False
    """An unknown or duplicate field, or an unknown document; everything that kb knows is right."""

    @property
    def text(self) -> str:
        """`init.yaml:12: networking.serviceSubnet: ...; ...`"""
        where = f"{self.file}:{self.line}" if self.line else self.file
        what = f"{self.message}; {self.remedy}"
        return ": ".join(part for part in (where, self.path, what) if part)


class Problems:
    """Problems, warnings, and where each field was given."""

    def __init__(self, *, is_lenient: bool = False, is_kubeadm: bool = False) -> None:
        self.is_lenient = is_lenient
        """As kubeadm reads at run time: unknown and duplicate fields, and documents of another group, are warnings
        (cmd/kubeadm/app/util/config/strict, documentMapToInitConfiguration). Its config validate and migrate are
        strict."""
        self.is_kubeadm = is_kubeadm
        """Under kubeadm's name: what kubeadm does not check is no error."""
        self.is_strict = is_kubeadm and not is_lenient
        """Unknown fields of component configurations are errors, as in kubeadm's config validate and migrate."""
        self.items: list[Problem] = []
        self.warnings: list[str] = []
        self.origins: dict[str, tuple[str, int]] = {}
        self._places: set[str] = set()

    @classmethod
    def for_flags(cls, flags: Mapping[str, Any]) -> Problems:
        """Problems as strict as the command: lenient at run time under kubeadm's name, and under kb's own if told to
        be."""
        is_kubeadm = bool(flags.get("only-kubeadm"))
        return cls(is_lenient=is_kubeadm or bool(flags.get(ALLOW_UNKNOWN)), is_kubeadm=is_kubeadm)

    def __bool__(self) -> bool:
        return bool(self.items)

    def add(self, problem: Problem) -> None:
        self.items.append(problem)

    def mark(self, place: str) -> None:
        """A problem was reported for this place: do not report what follows from it."""
        self._places.add(place)

    def fail(self, kind: str, path: str, *, message: str, remedy: str) -> None:
        """Report a wrong field, once per place: a field whose type is wrong is not reported again."""
        place = f"{kind}:{path}"
        if any(outer in self._places for outer in _outward(place)):
            return
        self._places.add(place)
        file, line = self.origin(kind, path)
        self.add(Problem(file, line, "" if file.startswith("--") else path, message, remedy))

    def warn(self, kind: str, path: str, *, message: str) -> None:
        file, line = self.origin(kind, path)
        where = f"{file}:{line}" if line else file
        self.warnings.append(
            ": ".join(part for part in (where, "" if file.startswith("--") else path, message) if part)
        )

    def origin(self, kind: str, path: str) -> tuple[str, int]:
        """(file, line) of the field, or of the nearest field around it; ("", 0) for a default."""
        for place in _outward(f"{kind}:{path}"):
            if place in self.origins:
                return self.origins[place]
        return "", 0

    def move_origin(self, kind: str, old: str, *, new: str) -> None:
        """Record that what was given at `old` is now at `new`, after a conversion."""
        if f"{kind}:{old}" in self.origins:
            self.origins[f"{kind}:{new}"] = self.origins.pop(f"{kind}:{old}")

    def is_given(self, kind: str, path: str) -> bool:
        """Whether a file or a flag sets exactly this field."""
        return f"{kind}:{path}" in self.origins

    def raise_if_any(self) -> None:
        """Raise UsageError (invalid-config) with every problem in `details`, in the order of the file."""
        if not self.items:
            return
        # one flag may set several fields
        ordered = sorted(dict.fromkeys(self.items), key=lambda problem: (problem.file, problem.line))
        details = [problem.text for problem in ordered[:_SHOWN_MAX]]
        if len(ordered) > _SHOWN_MAX:
            details.append(f"... and {len(ordered) - _SHOWN_MAX} more")
        count = "a problem" if len(ordered) == 1 else f"{len(ordered)} problems"
        remedy = f"correct {'it' if len(ordered) == 1 else 'them all'}, then run the command again"
        if all(problem.is_unknown for problem in ordered) and not self.is_kubeadm:
            remedy += f"; or continue as kubeadm does, ignoring unknown fields: --{ALLOW_UNKNOWN}"
        raise UsageError(
            f"the configuration has {count}",
            cause=details[0] if len(ordered) == 1 else f"the first: {details[0]}",
            remedy=remedy,
            code="invalid-config",
            details=details,
        )


def _outward(place: str) -> list[str]:
    """The place itself, then its parents: `K:a.b[1].c`, `K:a.b[1]`, `K:a.b`, `K:a`, `K:`."""
    found = [place]
    while not place.endswith(":"):
        shorter = re.sub(r"(\.[^.\[\]:]*|\[\d+\]|(?<=:)[^.\[\]:]*)$", "", place)
        place = shorter if shorter != place else place[: place.index(":") + 1]
        found.append(place)
    return found


def suggest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known one, or the list of them."""
    names = list(known)
    by_case = {candidate.lower(): candidate for candidate in names}
    close = [by_case[name.lower()]] if name.lower() in by_case else difflib.get_close_matches(name[:80], names, 1, 0.6)
    if close:
        return f'did you mean "{close[0]}"?'
    shown = ", ".join(sorted(names)[:12])
    return f"known here: {shown}{', ...' if len(names) > 12 else ''}"


def shorten(text: str, limit: int = 60) -> str:
    """A user's text for a message: on one line, and limited in length."""
    plain = "".join(char if char.isprintable() else "?" for char in text[: limit + 1])
    return plain if len(plain) <= limit else plain[:limit] + "..."
