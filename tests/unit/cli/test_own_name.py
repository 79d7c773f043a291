"""Commands are named to whoever called kb as he called it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import kb
from kubeup.cli import ending
from kubeup.cli.own_name import Spelling, find_call, find_kb_behind
from kubeup.errors import HostError
from kubeup.kubeadm import program as as_kubeadm
from kubeup.report import Report

NAMES = tuple(command.name for command in kb.COMMANDS)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of PATH with kb, kubeadm (a link to it) and python3."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("kb", "python3"):
        (folder / name).write_text("")
        (folder / name).chmod(0o755)
    (folder / "kubeadm").symlink_to("kb")
    monkeypatch.setenv("PATH", f"{tmp_path}/none:{folder}")
    return folder


def test_how_kb_is_run_again(bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    python = str(bin_folder / "python3")
    Path("kb.pyz").write_text("")
    assert find_call("kb.pyz", python) == "python3 kb.pyz"
    assert find_call("./kb.pyz", python) == "python3 ./kb.pyz"
    assert find_call("kb.pyz", "/opt/python/bin/python3") == "/opt/python/bin/python3 kb.pyz"
    os.chmod("kb.pyz", 0o755)
    assert find_call("./kb.pyz", python) == "./kb.pyz"
    assert find_call(str(tmp_path / "kb.pyz"), python) == str(tmp_path / "kb.pyz")
    assert find_call(str(bin_folder / "kb"), python) == "kb"
    assert find_call("a file/kb.pyz", python) == "python3 'a file/kb.pyz'"
    assert find_call("", python) == "kb"


def test_kb_behind_the_name_kubeadm(bin_folder: Path, tmp_path: Path) -> None:
    python = str(bin_folder / "python3")
    assert find_kb_behind(str(bin_folder / "kubeadm"), python) == "kb"
    other = tmp_path / "kubeadm"
    other.symlink_to(tmp_path / "kb.pyz")
    assert find_kb_behind(str(other), python) == f"python3 {tmp_path}/kb.pyz"
    assert find_kb_behind("kb.pyz", python) == "python3 kb.pyz"  # --as-kubeadm
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/kubeadm").write_text("")
    assert find_kb_behind(str(tmp_path / "copy/kubeadm"), python) == "kb"


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("undo: kb reset", "undo: ./kb.pyz reset"),
        ("kb init phase certs ca; or kb join", "./kb.pyz init phase certs ca; or ./kb.pyz join"),
        ("kb reset --force && kb init", "./kb.pyz reset --force && ./kb.pyz init"),
        ("all names: kb COMMAND --list", "all names: ./kb.pyz join --list"),
        ("kb goes on; kb makes one; /opt/kb init; kb.pyz init; kb-init", None),
        ("kb inits; kb etcd is no command, kb init-x neither", None),
    ],
)
def test_commands_are_called_as_kb_was(text: str, spelled: str) -> None:
    assert Spelling("./kb.pyz", NAMES).spell(text, "join") == (spelled or text)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("kb init phase certs ca", "kubeadm init phase certs ca"),
        ("kb init --list shows them", "kubeadm init --help shows them"),
        ("all: kb COMMAND --list", "all: kubeadm join --help"),
        ("leave it: kb reset", "leave it: kubeadm reset"),
        (
            "on a control plane: kb token create --print-join-command",
            "on a control plane: kubeadm token create --print-join-command",
        ),
        ("kb init phase upload-certs --upload-certs", "kubeadm init phase upload-certs --upload-certs"),
        # what kubeadm lacks stays kb's
        ("see which: kb doctor", "see which: /opt/kb doctor"),
        ("kb etcd members; kb certs renew all", "/opt/kb etcd members; kubeadm certs renew all"),
        ("see it first: kb init --root DIR", "see it first: /opt/kb init --root DIR"),
        ("kb reset --skip-phases x; kb goes on", "kubeadm reset --skip-phases x; kb goes on"),
    ],
)
def test_under_the_name_kubeadm(text: str, spelled: str) -> None:
    spelling = as_kubeadm.make_spelling(kb.COMMANDS, as_kubeadm.kubeadm_commands(kb.COMMANDS), called_as_kb="/opt/kb")
    assert spelling.spell(text, "join") == spelled


def test_what_is_to_be_undone_is_undone_by_the_same_program(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.spell = Spelling("./kb.pyz", NAMES).spell
    for word, changed, undo in (
        ("init", "3 files were changed", "; undo: ./kb.pyz reset"),
        ("join", "nothing was changed", ""),
        ("reset", "3 files were changed", ""),
    ):
        error = HostError("w", cause="c", remedy="r", code="x")
        error.changed = changed
        ending.tell_error(error, report, argv=[word], debug=False)
        assert (
            f"  so far: {changed}; after the remedy, continue with the same command{undo}\n" in capsys.readouterr().err
        )


def test_an_error_names_commands_as_kb_was_called(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kb.pyz", "join", "phase", "no-such"])
    python = os.path.basename(sys.executable)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert kb.main() == 2
    assert f"all names: {python} kb.pyz join --list" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["kb.pyz", "--as-kubeadm", "join", "phase", "no-such", "x"])
    assert kb.main() == 1
    assert "all names: kubeadm join --help" in capsys.readouterr().err
