"""What kb offers and what it was asked to do: Command, Program (kb by the name it was called), Invocation."""

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
from kubeup.report import Report, escape_controls

if TYPE_CHECKING:
    from kubeup.engine.runner import RunResult
    from kubeup.machine.local_host import LocalHost


@frozen
class Command:
    """One command: its words ("config images list"), its one-line reason, the function that runs it, the flags it
    takes."""

    name: str
    does: str
    run: Callable[[Invocation], int]
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    """Names of positional arguments; `name...` takes any number."""
    story: Callable[[], tuple[Phase, ...]] = tuple
    """What it does, if that is a workflow. It is asked for when it is needed: a story brings the modules of all its steps."""
    workflow: str = ""
    task: str = ""
    """The user's task that the command is for; help groups commands by it."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self.story()


def make_local_host(root: Path) -> LocalHost:
    """This machine, or the folder `root` on it."""
    from kubeup.machine.local_host import LocalHost

    return LocalHost(root)


@frozen
class Program:
    """The name under which kb was called, and what depends on it: kb itself, or kubeadm (kubeup/kubeadm/program.py)."""

    name: str = "kb"
    called_as: str = "kb"
    """How the user runs it again (own_name.find_call)."""
    file: str = ""
    """The file by which it was called: `/usr/local/bin/kubeadm`; "" if another program did."""
    title: str = "kb: Kubernetes from one file"
    make_report: Callable[..., Report] = Report
    """Called with verbosity and quiet."""
    end_with_error: Optional[Callable[[KbError, Report], int]] = None
    """Reports an error and returns the exit status; None: kb's own way."""
    show_result: Optional[Callable[[Invocation, RunResult, Host], None]] = None
    """Prints the result of a workflow; None: kb's own way."""
    wishes: Mapping[str, Any] = field(default_factory=dict)
    """Flags that init and join get in addition to the given ones."""
    spelling: Optional[Spelling] = None
    """How commands are spelled; None: all of them with called_as."""
    make_host: Callable[[Path], LocalHost] = make_local_host
    """Returns the machine that a command works on, for the folder of --root (`/` without one)."""
    keeps_state: bool = True
    """Whether results are written to state.json, so that a second run continues and reset can undo them."""

    @property
    def does_more(self) -> bool:
        """Whether a command may do more than kubeadm's command of the same name."""
        return not self.wishes.get("only-kubeadm")

    def open_report(self, commands: Sequence[Command], command: str = "", **wishes: Any) -> Report:
        """The report for the user; it spells commands the way they are called here."""
        report = self.make_report(**wishes)
        spelling = self.spelling or Spelling(self.called_as, tuple(item.name for item in commands))
        report.spell = functools.partial(spelling.spell, command=command.removesuffix(" phase") if command else "")
        return report


@dataclass
class Invocation:
    """A command as it was called: the given flags, and where results go."""

    command: Command
    commands: tuple[Command, ...]
    flags: dict[str, Any]
    """Flag name -> value, for the given flags."""
    words: list[str]
    report: Report
    out: TextIO = field(default_factory=lambda: sys.stdout)
    program: Program = field(default_factory=Program)

    @property
    def output(self) -> str:
        return str(self.flags.get("output", "text"))

    def print(self, text: str) -> None:
        """Print a result to stdout."""
        shown = escape_controls(text)
        with to_output():
            self.out.write(shown if shown.endswith("\n") else shown + "\n")

    def tell(self, text: str) -> None:
        """Print a result in kb's own words; commands are spelled the way they are called here."""
        self.print(self.report.spell(text))

    def print_document(self, text: str) -> None:
        """Print a result that is a file for other programs, in UTF-8 whatever the terminal's encoding."""
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
        """Print a result as -o json or yaml."""
        if self.output == "yaml":
            from kubeup.yaml_files import dump_yaml

            self.print_document(dump_yaml(value))
        else:
            self.print(json.dumps(value, indent=2, sort_keys=True))


def is_kubeadm(program: str, argv: Sequence[str]) -> bool:
    """Whether kb was called as kubeadm. `program` is the name it was called by, usually a link's."""
    return Path(program).name == "kubeadm" or "--as-kubeadm" in argv
