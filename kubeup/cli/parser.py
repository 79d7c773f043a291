"""The parsers, built from three tables: the commands (kubeup/commands/table.py), the stories of kb.py, and the flags
(kubeup/config/flag_table.py).

Flags have kubeadm's names and forms (`--flag value`, `--flag=value`, `--bool=true`, lists with commas or repeated).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn, Optional

from kubeup.cli.output import show
from kubeup.cli.program import Command, Invocation, Program
from kubeup.config.flag_table import BY_NAME, EVERYWHERE, Flag
from kubeup.engine.step import Phase
from kubeup.errors import UsageError
from kubeup.lazy_modules import lazily

with lazily:
    import difflib


class HelpShown(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageErrors and suggests the nearest name."""

    known_flags: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        remedy = f"see: {self.prog} --help"
        for word in message.split():
            if word.startswith("--"):
                near = difflib.get_close_matches(word.partition("=")[0], self.known_flags, 1)
                if near:
                    remedy = f"did you mean {near[0]}? All flags: {self.prog} --help"
        raise UsageError(
            f"{self.prog}: {message}", cause="the command line cannot be parsed", remedy=remedy, code="usage"
        )

    def exit(self, status: int = 0, message: Optional[str] = None) -> NoReturn:
        if message:
            with contextlib.suppress(OSError):
                sys.stderr.write(message)
        raise HelpShown(status)


def parse_command_line(
    commands: Sequence[Command], argv: Sequence[str], *, program: Optional[Program] = None
) -> Invocation:
    """The command and its flags. Raises UsageError (usage, unknown-command)."""
    program = program or Program()
    words = list(argv)
    if words[:1] == ["--version"]:
        words[0] = "version"
    words = words_first(words)
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        show(render_help(commands, program))
        raise HelpShown(0 if words else 2)
    command, rest = _find_command(commands, words, program=program)
    parser = _make_parser(command, program)
    given = vars(parser.parse_args(_plain_booleans(rest, command)))
    flags = {name: _value_of(BY_NAME[name], given[key]) for name, key in _dests(command) if key in given}
    positional = [str(word) for name in command.arguments for word in _as_list(given.get(name.rstrip(".")))]
    verbosity = int(flags.pop("v", 0) or 0)
    flags.pop("debug", None)
    is_quiet = flags.get("output") in ("json", "yaml") and not verbosity
    report = program.open_report(commands, command.name, verbosity=verbosity, quiet=is_quiet)
    return Invocation(command, tuple(commands), flags, positional, report, program=program)


def words_first(argv: Sequence[str]) -> list[str]:
    """Move the words before the flags, since Go allows flags anywhere: `--kubeconfig X token create`. Converts Go's
    forms to argparse's: `--pod_network_cidr`, `-o=json`. A flag and its value become one word, whatever the value
    begins with."""
    words: list[str] = []
    flags: list[str] = []
    rest = list(argv)
    while rest:
        item = rest.pop(0)
        if item == "--":  # only words follow
            words += rest
            break
        if not item.startswith("-") or item == "-":
            words.append(item)
            continue
        name, equals, value = item.partition("=")
        is_short = not item.startswith("--")
        long = _long_name(name) if is_short else name.replace("_", "-")
        if rest and not equals and _takes_next(long, rest[0]):
            equals, value = "=", rest.pop(0)
        # two options, of different commands, may share a letter; both take a value
        stays = is_short and value and long in ("--output", "--output-file")
        flags.append(name + value if stays else long + equals + value)
    return words + flags


def _long_name(flag: str) -> str:
    """`-f` -> `--force`; any other word is returned unchanged."""
    return next((f"--{item.name}" for item in BY_NAME.values() if item.short and f"-{item.short}" == flag), flag)


def _takes_next(flag: str, following: str) -> bool:
    """Whether the next word is the value of `flag`."""
    if flag == "--v":
        return bool(_GO_INT.fullmatch(following))
    return flag[2:] in BY_NAME and BY_NAME[flag[2:]].takes != "flag"


_GO_INT = re.compile(r"[+-]?(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO]?[0-7_]+|0|[1-9][0-9_]*)")


def _parse_int(text: str) -> int:
    """Parse an integer as Go's flags do, including 0x1f, 0b11, 017 and 1_000."""
    if not _GO_INT.fullmatch(text):
        raise ValueError(text)
    plain = text.replace("_", "")
    return int(re.sub(r"^([+-]?)0(?=[0-7])", r"\g<1>0o", plain), 0)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _dests(command: Command) -> list[tuple[str, str]]:
    return [(name, name.replace("-", "_")) for name in _names_of(command)]


def _names_of(command: Command) -> tuple[str, ...]:
    return (*command.options, *(flag.name for flag in EVERYWHERE))


def _value_of(flag: Flag, value: Any) -> Any:
    if value == [] and (flag.choices or flag.takes == "int"):
        raise UsageError(
            f"--{flag.name}=--",
            cause=f"it is one of: {', '.join(flag.choices)}" if flag.choices else "it is a number",
            remedy="correct it, or leave it out",
            code="usage",
        )
    if value == []:  # argparse took the value for its own marker
        return "--"
    if flag.takes == "texts":
        return ["--" if text == [] else str(text) for text in value]
    if flag.takes == "list":
        texts = ["--" if text == [] else str(text) for text in value]
        return [item.strip() for text in texts for item in text.split(",") if item.strip()]
    return value


def _find_command(commands: Sequence[Command], words: list[str], *, program: Program) -> tuple[Command, list[str]]:
    """Find the command that matches the most leading words."""
    for length in range(min(3, len(words)), 0, -1):
        name = " ".join(words[:length])
        for command in commands:
            if command.name == name:
                return command, words[length:]
    names = [command.name for command in commands]
    plain = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    parent, group = "", list[str]()
    for length in range(len(plain), 0, -1):
        parent = " ".join(plain[:length])
        group = [name for name in names if name.startswith(f"{parent} ")]
        if group:
            break
    wants_help = {"-h", "--help"} & set(words)
    if group and (wants_help or parent == " ".join(plain)):
        show(render_help([command for command in commands if command.name in group], program))
        raise HelpShown(0 if wants_help else 2)
    asked = " ".join(plain[:3])
    near = difflib.get_close_matches(asked, group or names, 1, cutoff=0.4)
    raise UsageError(
        f"{program.name} has no command {asked!r}",
        cause=f"{parent} has: {', '.join(name[len(parent) + 1 :] for name in group)}" if group else "no such word",
        remedy=f"did you mean: {program.called_as} {near[0]}?"
        if near
        else f"see all commands: {program.called_as} --help",
        code="unknown-command",
    )


def _make_parser(command: Command, program: Program) -> _Parser:
    parser = _Parser(
        prog=f"{program.called_as} {command.name}",
        description=command.does + ".",
        epilog=_phase_epilog(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help="Show this help")
    parser.known_flags = tuple(f"--{name}" for name in _names_of(command))
    for name in command.arguments:
        if name.endswith("..."):
            parser.add_argument(name.rstrip("."), nargs="*", metavar=name.rstrip(".").upper())
        else:
            parser.add_argument(name, metavar=name.upper())
    taken: set[str] = set()
    for name in _names_of(command):
        _add_flag(parser, BY_NAME[name], taken=taken)
        taken.add(BY_NAME[name].short)
    return parser


def _add_flag(parser: argparse.ArgumentParser, flag: Flag, *, taken: Collection[str]) -> None:
    """taken: the letters of the flags before it; of two with the same letter, the first one has it."""
    flags = [f"-{flag.short}"] if flag.short and flag.short not in taken else []
    flags.append(f"--{flag.name}")
    text = argparse.SUPPRESS if flag.is_hidden else flag.help.replace("%", "%%")
    if flag.takes == "flag":
        parser.add_argument(*flags, action="store_true", help=text)
        return
    metavar = flag.metavar or ("{" + ",".join(flag.choices) + "}" if flag.choices else flag.name.upper())
    kwargs: dict[str, Any] = {"help": text, "metavar": metavar}
    if flag.takes in ("list", "texts"):
        kwargs["action"] = "append"
    if flag.takes == "int":
        kwargs["type"] = _parse_int
    if flag.choices:
        kwargs["choices"] = flag.choices
    parser.add_argument(*flags, **kwargs)


def _plain_booleans(words: Sequence[str], command: Command) -> list[str]:
    """Convert `--dry-run=true`, which Go's flags accept and argparse's do not."""
    switches = {name for name in _names_of(command) if BY_NAME[name].takes == "flag"} | {"help"}
    plain: list[str] = []
    for word in words:
        if word == "--v":
            plain.append("--v=1")
            continue
        name, has_value, value = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        if has_value and name in switches:
            plain = [other for other in plain if other != f"--{name}"]  # the last one wins
            if value.lower() in ("true", "1", "t"):
                plain.append(f"--{name}")
            elif value.lower() not in ("false", "0", "f"):
                raise UsageError(
                    f"--{name}={value}",
                    cause="it is a switch: true or false",
                    remedy=f"give --{name} or --{name}=false",
                    code="usage",
                )
        else:
            plain.append(word)
    return plain


# ---- help


def render_help(commands: Sequence[Command], program: Optional[Program] = None) -> str:
    """The commands with their one-line reasons, grouped by task if they have one."""
    program = program or Program()
    name = program.called_as
    width = max(len(command.name) for command in commands)
    rows = "\n\n".join(
        "\n".join([f"{task or 'commands'}:", *(f"  {command.name:<{width}}  {command.does}" for command in group)])
        for task, group in itertools.groupby(commands, key=lambda command: command.task)
    )
    return (
        f"{program.title}\n\n"
        f"usage: {name} COMMAND [flags]\n\n"
        f"{rows}\n\n"
        f"Flags of a command: {name} COMMAND --help. What init does, step by step: {name} init --help.\n"
    )


def render_phases(phases: Sequence[Phase]) -> str:
    """The phases with their one-line reasons, one per line."""
    width = max(len(phase.name) for phase in phases)
    notes = {"": "", "control-plane": " (with --control-plane)"}
    return "\n".join(f"{phase.name:<{width}}  {phase.does}{notes[phase.on]}" for phase in phases if not phase.hidden)


def _phase_epilog(command: Command) -> str:
    if not command.workflow:
        return ""
    rows = "\n".join("  " + row for row in render_phases(command.phases).splitlines())
    return f"phases, in order:\n{rows}\n\nexit status: 0 done; 2 usage; 3 preflight; 4 this machine; 5 the cluster; 70 a bug"
