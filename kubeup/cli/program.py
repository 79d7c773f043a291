"""What kb offers and what was asked of it: a command, the program by the name under which it was called, a call."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, TextIO

from kubeup.cli.output import to_output
from kubeup.cli.own_name import Spelling
from kubeup.engine.step import Phase
from kubeup.errors import KbError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host, encode_text
from kubeup.report import Report

if TYPE_CHECKING:
    from kubeup.engine.runner import RunResult
    from kubeup.machine.local_host import LocalHost


@frozen
class Command:
    """One command: its words ("config images list"), its one-line reason, what runs it, the flags it takes."""

    name: str
    does: str
    run: Callable[[Invocation], int]
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    """Names of positional words; `name...` takes any number."""
    phases: tuple[Phase, ...] = ()
    workflow: str = ""
    task: str = ""
    """What somebody wants who needs it: help lists commands by it."""


def make_local_host(root: Path) -> LocalHost:
    """This machine, or the folder `root` of it."""
    from kubeup.machine.local_host import LocalHost

    return LocalHost(root)


@frozen
class Program:
    """The name under which kb was called, and what differs with it: kb itself, or kubeadm (kubeup/kubeadm/program.py)."""

    name: str = "kb"
    called_as: str = "kb"
    """How a person runs it again (own_name.find_call)."""
    title: str = "kb: Kubernetes from one file"
    make_report: Callable[..., Report] = Report
    """Called with verbosity and quiet."""
    end_with_error: Optional[Callable[[KbError, Report], int]] = None
    """Tells an error and gives the exit status; None: as kb does."""
    show_result: Optional[Callable[[Invocation, RunResult, Host], None]] = None
    """Tells the end of a workflow; None: as kb does."""
    wishes: Mapping[str, Any] = field(default_factory=dict)
    """Flags that init and join get on top of those that were given."""
    spelling: Optional[Spelling] = None
    """How commands are named; None: all of them by called_as."""
    make_host: Callable[[Path], LocalHost] = make_local_host
    """Gives the machine that a command works on, by the folder of --root (`/` without one)."""
    keeps_state: bool = True
    """Whether what is done is written into state.json, so that a second run goes on and reset takes it back."""

    @property
    def does_more(self) -> bool:
        """Whether a command may do more than kubeadm's of the same name."""
        return not self.wishes.get("only-kubeadm")

    def open_report(self, commands: Sequence[Command], command: str = "", **wishes: Any) -> Report:
        """What tells a person; it names commands as they are called here."""
        report = self.make_report(**wishes)
        spelling = self.spelling or Spelling(self.called_as, tuple(item.name for item in commands))
        report.spell = functools.partial(spelling.spell, command=command.removesuffix(" phase") if command else "")
        return report


@dataclass
class Invocation:
    """A command as it was called: the flags that were given, and where results go."""

    command: Command
    commands: tuple[Command, ...]
    flags: dict[str, Any]
    """Flag name -> value, for flags that were given."""
    words: list[str]
    report: Report
    out: TextIO = field(default_factory=lambda: sys.stdout)
    program: Program = field(default_factory=Program)

    @property
    def output(self) -> str:
        return str(self.flags.get("output", "text"))

    def print(self, text: str) -> None:
        """A result: stdout."""
        with to_output():
            self.out.write(text if text.endswith("\n") else text + "\n")

    def tell(self, text: str) -> None:
        """A result in kb's own words: it names commands as they are called here."""
        self.print(self.report.spell(text))

    def print_document(self, text: str) -> None:
        """A result that is a file for other programs: in UTF-8, whatever the terminal's encoding is."""
        raw = getattr(self.out, "buffer", None)
        if raw is None:
            self.print(text)
            return
        data = encode_text(text if text.endswith("\n") else text + "\n", "the output")
        with to_output():
            self.out.flush()
            raw.write(data)
            raw.flush()

    def print_value(self, value: Any) -> None:
        """A result as -o json or yaml."""
        if self.output == "yaml":
            from kubeup.yaml_files import dump_yaml

            self.print_document(dump_yaml(value))
        else:
            self.print(json.dumps(value, indent=2, sort_keys=True))


def is_kubeadm(program: str, argv: Sequence[str]) -> bool:
    """Whether kb was called as kubeadm: `program` is the name under which it was called, a link's as a rule."""
    return Path(program).name == "kubeadm" or "--as-kubeadm" in argv
