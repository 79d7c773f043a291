"""kb's three streams and its environment: closed, full, without a reader, of any encoding and any values. The work is done, or a
line says what is lost; no traceback either way."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fuzz import ODD_TEXTS, cases
from tests.make_docs import REPO

COMMANDS = (
    # what is shown, and the status where everything can be shown
    (("version",), 0), (("version", "-o", "json"), 0), (("--help",), 0), (("init", "--help"), 0), (("init", "--list"), 0), (("token", "generate"), 0),
    (("config", "print", "init-defaults"), 0), (("completion", "bash"), 0), (("config", "images", "list", "--kubernetes-version=v1.35.6"), 0), (("config",), 2),
    (("init", "phase", "nonsense"), 2), (("init", "phase", "nonsense", "-o", "json"), 2), (("init", "phase", "nonsense", "-oyaml"), 2), (("init", "--nonsense=é\udcff"), 2),
    (("config", "validate", "--config=/nowhere/é"), 2), (("token", "list", "--kubeconfig=/nowhere"), 4), (("--as-kubeadm", "version"), 0),
    (("--as-kubeadm", "config", "validate", "--config=/nowhere"), 1), (("--as-kubeadm", "nonsense"), 1),
)  # fmt: skip
STREAMS = (
    "",
    ">&-",
    "2>&-",
    "<&-",
    ">&- 2>&-",
    "<&- >&- 2>&-",
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>/dev/full",
    "</dev/full",
)
ENVIRONMENTS: tuple[Mapping[str, str], ...] = (
    {}, {"HOME": ""}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "utf-16"},
    {"COLUMNS": "0"}, {"COLUMNS": "x", "TERM": ""}, {"TERM": "dumb", "COLUMNS": "99999999999"}, {"TMPDIR": "/nowhere"}, {"TMPDIR": "/dev/null"}, {"KUBECONFIG": ":::"},
    {"KUBECONFIG": "/proc/self/mem"}, {"HTTPS_PROXY": "http://[", "NO_PROXY": ",,é,\udcff", "HTTP_PROXY": "x"}, {"PATH": ""}, {"PYTHONWARNINGS": "error"},
)  # fmt: skip
ODD_NAMES = (
    "HOME",
    "LANG",
    "LC_ALL",
    "TERM",
    "COLUMNS",
    "TMPDIR",
    "KUBECONFIG",
    "HTTP_PROXY",
    "NO_PROXY",
    "no_proxy",
    "DOCKER_CONFIG",
    "NO_COLOR",
    "SUDO_USER",
)


def run(words: tuple[str, ...], streams: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    line = f'exec "$0" "$@" {streams}'
    env = {name: value for name, value in {**os.environ, **environment}.items() if value or name != "HOME"}
    return subprocess.run(["/bin/sh", "-c", line, sys.executable, "kb.py", *words], cwd=REPO, env=env, capture_output=True, timeout=60)  # fmt: skip


def judge(done: subprocess.CompletedProcess[bytes], status: int, streams: str, told: object) -> None:
    said = done.stdout + done.stderr
    assert b"Traceback" not in said and b"has a bug" not in said and b"Exception ignored" not in said, (
        told,
        said[-1500:],
    )
    allowed = {status, 1} if ">/dev/full" in streams.replace("2>/dev/full", "") else {status}
    assert done.returncode in allowed, (told, done.returncode, said[-1500:])


@pytest.mark.parametrize("streams", STREAMS)
def test_any_streams(streams: str) -> None:
    for number in (0, 2, 11, 16):
        words, status = COMMANDS[number]
        judge(run(words, streams, {}), status, streams, words)


def test_any_environment() -> None:
    for chance in cases("environment", 40):
        words, status = chance.choice(COMMANDS)
        streams = chance.choice(STREAMS) if chance.random() < 0.5 else ""
        environment = dict(chance.choice(ENVIRONMENTS))
        if chance.random() < 0.4:
            odd = [text for text in ODD_TEXTS if "\0" not in text]
            environment.update({name: chance.choice(odd) for name in chance.sample(ODD_NAMES, 3)})
        environment = {name: value.encode(errors="surrogateescape").decode(errors="surrogateescape") for name, value in environment.items() if _fits(value)}  # fmt: skip
        judge(run(words, streams, environment), status, streams, (words, streams, environment))


def _fits(value: str) -> bool:
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def test_a_reader_that_goes(tmp_path: Path) -> None:
    for words, _ in random.Random("readers").sample(COMMANDS, 4):
        line = f'{{ "$0" "$@" 2>{tmp_path}/said; echo $? >{tmp_path}/status; }} | head -c 0'
        subprocess.run(["/bin/sh", "-c", line, sys.executable, "kb.py", *words], cwd=REPO, timeout=60, check=True)
        said = (tmp_path / "said").read_text(errors="replace")
        assert "Traceback" not in said and "Exception ignored" not in said and "has a bug" not in said, (words, said)
        assert int((tmp_path / "status").read_text()) in (0, 1, 2, 4), words
