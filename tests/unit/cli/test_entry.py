"""kubeup/cli/entry.py: what a command's exit status says, whoever reads its output."""

from __future__ import annotations

import io
import os
import sys

import pytest

from kubeup.cli import entry
from kubeup.cli.program import Command, Invocation
from kubeup.commands import launcher
from kubeup.errors import HostError


def fail(call: Invocation) -> int:
    raise HostError("it failed", cause="a test", remedy="look again", code="failed")


def ask(call: Invocation) -> int:
    return 7 if launcher.ask("Go on? [y/N] ") == "" else 0


@pytest.mark.parametrize(
    ("run", "words", "status"),
    [(fail, [], 4), (fail, ["--debug"], 4), (ask, [], 7)],
    ids=("plain", "debug", "question"),
)
def test_a_closed_stderr_makes_no_success_of_a_failure(
    monkeypatch: pytest.MonkeyPatch, run: object, words: list[str], status: int
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stderr", os.fdopen(writer, "w", buffering=1))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    command = Command("fail", "Fail", run)  # type: ignore[arg-type]
    assert entry.main([command], ["fail", *words]) == status


def say_and_fail(call: Invocation) -> int:
    call.print("what it found")
    return 3


def test_a_result_that_nobody_reads_leaves_the_status_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    monkeypatch.setattr(entry, "drop_output", lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), writer))
    assert entry.main([Command("find", "Find", say_and_fail)], ["find"]) == 3


def test_a_result_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Results hold what others wrote: a pod's condition, a line of a log, a name."""

    def say(call: Invocation) -> int:
        call.print("warning  the kernel says: \x1b[2J\rok")
        return 0

    assert entry.main([Command("say", "Say", say)], ["say"]) == 0
    assert capsys.readouterr().out == "warning  the kernel says: \\x1b[2J\\rok\n"
