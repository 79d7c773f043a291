"""Every command that a text of kb names is one of kb's, with options that it has; and no part of kb but the commands
themselves says which of them is to be run again."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import kb
from kubeup.config.flag_table import BY_NAME
from kubeup.engine.step import select_phases
from kubeup.errors import UsageError

REPO = Path(kb.__file__).resolve().parent
COMMANDS = {command.name: command for command in kb.COMMANDS}
PROSE = frozenset({
    "as", "began", "cannot", "corrects", "created", "deploys", "did", "does", "from", "goes", "had", "has", "inspects", "installed", "is",
    "itself", "keeps", "knows", "left", "looks", "made", "makes", "mends", "needs", "nor", "prints", "reads", "runs", "see", "takes",
    "that", "tries",
    "under", "waits", "was", "whose", "with", "worked", "would", "wrote", "yet",
})  # fmt: skip
"""What stands after `kb` where it is the subject of a sentence."""
NAMES = ("mirror", "pods")
"""Of what kb makes: the page of its mirror, a comment in the packet filter."""
NAMES_ITS_COMMAND = ("kubeup/commands/", "kubeup/cli/", "kubeup/kubeadm/", "kubeup/config/flag_table.py", "kb.py")
"""Who knows which command was called."""
NOT_TO_BE_RUN_AGAIN = {
    "The default bootstrap token made by 'kb init'.": "the description of an object in the cluster",
    "kb join needs to know where the cluster is": "what the error is about",
    "make it one: kb init, or kb join": "a machine without a node, of which nobody has said what it shall be",
    "run kb init first, or give --kubeconfig the file of a cluster admin": "a machine without a cluster",
    "the line that kb init printed": "on another node",
    "kb init printed it": "on another node",
    "of kb init and kb join, and is missing or damaged": "says who writes a file",
    "run kb init or kb join again, as when this node was set up": "doctor's, of a node that either of them made",
    "kb join --discovery-file /root/discovery.conf": "a join in another way",
}
"""Texts outside of the commands that name one of them all the same."""


@dataclass(frozen=True)
class Text:
    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text!r}"


def find_texts() -> Iterator[Text]:
    """Every text of the source but docstrings; {} stands for what is filled in."""
    for path in [REPO / "kb.py", *sorted((REPO / "kubeup").rglob("*.py"))]:
        yield from texts_of(path.read_text(), str(path.relative_to(REPO)))


def texts_of(source: str, name: str) -> Iterator[Text]:
    tree = ast.parse(source)
    left_out: set[int] = set()
    for node in ast.walk(tree):
        for item in getattr(node, "body", None) or [] if not isinstance(node, (ast.Lambda, ast.IfExp)) else []:
            if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant):
                left_out.add(id(item.value))
        if isinstance(node, ast.JoinedStr):
            left_out.update(id(part) for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield Text(name, node.lineno, "".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield Text(name, node.lineno, node.value)


def find_mentions(text: str) -> Iterator[str]:
    """What stands after `kb`, to the end of the clause: `init phase certs ca --config FILE`."""
    for found in re.finditer(r"(?<![\w./-])kb (?=[a-z])([^;:,()\"'`&|\n]*)", text):
        words = found[1].split()
        yield " ".join(words)


def judge(mention: str) -> str:
    """What is wrong with it; "" for a sentence about kb, or a command that there is."""
    words = mention.split()
    if words[0] in PROSE or mention in NAMES:
        return ""
    name = next((known for n in range(len(words), 0, -1) if (known := " ".join(words[:n])) in COMMANDS), "")
    if not name:
        return f"kb has no command {mention!r}"
    command = COMMANDS[name]
    flags = [word.partition("=")[0][2:] for word in words if re.match(r"--[a-z]", word)]
    lacks = [flag for flag in flags if flag not in command.options and flag != "help"]
    if lacks:
        return f"kb {name} has no option --{lacks[0]}"
    rest = words[len(name.split()) :]
    if name.endswith(" phase") and rest and rest[0] not in PROSE and re.fullmatch(r"[a-z][a-z/-]*", rest[0]):
        child = [rest[1]] if len(rest) > 1 and re.fullmatch(r"[a-z-]+", rest[1]) else []
        return judge_phase(name, rest[0], *child)
    return ""


def judge_phase(name: str, *words: str) -> str:
    for wanted in ("/".join(words), words[0]):  # a word of the sentence may follow the phase's name
        try:
            select_phases(COMMANDS[name].phases, wanted)
            return ""
        except UsageError:
            continue
    return f"kb {name} has no phase {' '.join(words)!r}"


def test_every_command_that_a_text_names_is_there() -> None:
    wrong = [
        f"{text.path}:{text.line}: {trouble}"
        for text in find_texts()
        for mention in find_mentions(text.text)
        if (trouble := judge(mention))
    ]
    assert wrong == []


def test_only_commands_say_which_of_them_is_to_be_run_again() -> None:
    wrong = []
    for text in find_texts():
        if text.path.startswith(NAMES_ITS_COMMAND) or any(known in text.text for known in NOT_TO_BE_RUN_AGAIN):
            continue
        for mention in find_mentions(text.text):
            words = mention.split()
            if words[0] in ("init", "join") and words[1:2] != ["phase"]:
                wrong.append(str(text))
    assert wrong == []


def test_the_texts_that_may_name_a_command_are_still_there() -> None:
    everything = "\n".join(text.text for text in find_texts())
    assert [known for known in NOT_TO_BE_RUN_AGAIN if known not in everything] == []


@pytest.mark.parametrize(
    ("source", "trouble"),
    [
        ('"install it (kb install, or your package)"', "kb has no command 'install'"),
        ('f"then: kb init --no-such {1}"', "kb init has no option --no-such"),
        ('f"make it: kb init phase certz {1}; or not"', "kb init phase has no phase 'certz'"),
        ('"kb etcd list shows them"', "kb has no command 'etcd list shows them'"),
        ('"kb goes on; then: kb init phase certs ca --config FILE"', ""),
        ('"docs"', ""),
    ],
)
def test_the_judge_sees_what_is_wrong(source: str, trouble: str) -> None:
    (text,) = texts_of(f"x = {source}", "x.py")
    assert "".join(judge(mention) for mention in find_mentions(text.text)) == trouble


def test_options_that_are_named_are_spelled_as_the_parser_has_them() -> None:
    assert all(name in BY_NAME for command in kb.COMMANDS for name in command.options)
