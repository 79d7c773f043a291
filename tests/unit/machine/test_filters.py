"""kubeup/machine/filters.py: a stream through a program, and what happens if either end breaks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeup.machine import filters
from kubeup.machine.filters import ProgramFailed
from kubeup.machine.local_host import LocalHost

REPO = Path(__file__).parents[3]
HOST = LocalHost()
BIG = [bytes([n]) * 300_000 for n in range(8)]
"""More than fits into a pipe."""


def test_a_stream_passes_whole() -> None:
    assert b"".join(HOST.filter(["cat"], BIG)) == b"".join(BIG)


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(ProgramFailed, match="no such key") as caught:
        list(HOST.filter(["sh", "-c", "cat >/dev/null; echo bad >&2; echo no such key >&2; exit 3"], BIG))
    assert (caught.value.exit_status, caught.value.said) == (3, "bad\nno such key\n")
    assert caught.value.details == ("bad", "no such key")


def test_the_reason_is_in_the_last_of_what_it_says() -> None:
    chatty = "cat >/dev/null; seq -f 'part %g of many' 2000 >&2; echo access denied >&2; exit 1"
    with pytest.raises(ProgramFailed, match="access denied"):
        list(HOST.filter(["sh", "-c", chatty], BIG))


def test_one_that_closes_its_output_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_END_S", 0.2)
    with pytest.raises(ProgramFailed, match="did not end"):
        list(HOST.filter(["sh", "-c", "cat >/dev/null; exec >&-; exec sleep 30"], BIG))


def test_one_that_ends_before_it_has_read_everything() -> None:
    with pytest.raises(ProgramFailed):
        list(HOST.filter(["sh", "-c", "exit 1"], BIG))
    with pytest.raises(ProgramFailed, match="before it had read everything"):
        list(HOST.filter(["head", "-c", "3"], BIG))


def test_one_that_is_not_there() -> None:
    with pytest.raises(ProgramFailed) as caught:
        list(HOST.filter(["no-such-program-here"], BIG))
    assert caught.value.exit_status == 127


def test_an_error_of_the_source_ends_the_program_before_it_takes_a_part_for_all() -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError("etcd is gone")

    came: list[bytes] = []
    with pytest.raises(OSError, match="etcd is gone"):
        came.extend(HOST.filter(["sh", "-c", "cat >/dev/null; echo complete"], broken()))
    assert came == []


def test_a_reader_that_goes_away_ends_the_program() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 100_000

    stream = HOST.filter(["cat"], endless())
    assert next(stream)
    stream.close()  # type: ignore[attr-defined]


def test_a_killed_kb_takes_its_program_with_it(tmp_path: Path) -> None:
    """Else it would take the part that it has for everything."""
    kept = tmp_path / "kept"
    code = (
        "import os, signal, time\n"
        "from kubeup.machine.local_host import LocalHost\n"
        "def pieces():\n"
        "    yield b'half'\n"
        "    time.sleep(0.5)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "    time.sleep(9)\n"
        f"list(LocalHost().filter(['sh', '-c', 'cat >/dev/null; sleep 0.2; echo all >{kept}'], pieces()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, timeout=30)
    assert done.returncode == -signal.SIGKILL
    time.sleep(0.6)
    assert not kept.exists()
