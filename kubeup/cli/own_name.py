"""How kb was called, and how messages spell its commands for that caller.

Messages in the code say `kb VERB ...`. A Spelling rewrites them for output; it is the only place that knows the name
under which kb runs. It must not decide what is said.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import field
from typing import Optional

from kubeup.frozen_values import frozen

THIS_COMMAND = "kb COMMAND"
"""Placeholder in a text for the running command, used where the code does not know which one runs."""


@frozen
class Spelling:
    """How kb's commands are spelled for this caller."""

    called_as: str = "kb"
    known: tuple[str, ...] = ()
    """The names of kb's commands."""
    own: Optional[Mapping[str, Collection[str]]] = None
    """Command -> its options, for the commands that use called_as; None: all of kb's."""
    called_as_kb: str = "kb"
    """How the other commands are called."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """kb option -> its name here."""

    def spell(self, text: str, command: str = "") -> str:
        """Rewrite every kb command in the text the way it is called here. command: the running one."""
        if "kb " not in text:
            return text
        if command:
            text = text.replace(THIS_COMMAND, f"kb {command}")
        names = "|".join(sorted(map(re.escape, self.known), key=len, reverse=True))
        # the options directly after it, and (only as a lookahead) the rest of the clause
        return re.sub(
            rf"(?<![\w./-])kb ({names})(?![\w-])((?: --[a-z][a-z-]*)*)(?=((?:(?! kb )[^;,()])*))", self._spell_one, text
        )

    def _spell_one(self, found: re.Match[str]) -> str:
        name, flags, rest = found[1], found[2], found[3]
        flags_here = re.sub(r"--[a-z-]+", lambda flag: self.flags.get(flag[0], flag[0]), flags)
        if self.own is None:
            return f"{self.called_as} {name}{flags_here}"
        options = self.own.get(name)
        wanted = set(re.findall(r"--([a-z][a-z-]*)", flags_here + rest))
        if options is None or wanted - {*options, "help"}:
            return f"{self.called_as_kb} {name}{flags}"
        return f"{self.called_as} {name}{flags_here}"


def find_call(program: str, python: str) -> str:
    """How someone who ran `program` (sys.argv[0]) runs kb again: `kb` if it is on PATH, `./kb.pyz`, or
    `python3 kb.pyz`. "" stands for an embedding program, which calls main() itself."""
    if not program:
        return "kb"
    name = os.path.basename(program)
    if os.path.isabs(program) and _find_in_path(name) == program:
        return shlex.quote(name)
    if "/" in program and os.access(program, os.X_OK):
        return shlex.quote(program)
    short = os.path.basename(python)
    return f"{short if _find_in_path(short) == python else python} {shlex.quote(program)}"


def find_kb_behind(program: str, python: str) -> str:
    """How someone who called kb as kubeadm, through a link or with --as-kubeadm, runs it under its own name."""
    if os.path.basename(program) != "kubeadm":
        return find_call(program, python)
    target = os.path.realpath(program)
    return "kb" if os.path.basename(target) == "kubeadm" else find_call(target, python)


def _find_in_path(name: str) -> str:
    places = (os.path.join(folder, name) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder)
    return next((place for place in places if os.path.isfile(place) and os.access(place, os.X_OK)), "")
