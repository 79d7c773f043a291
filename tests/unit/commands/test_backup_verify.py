"""kb backup verify, from the command line: what it says of a backup that was booted."""

from __future__ import annotations

import json
from typing import Any

import pytest

import kb
from kubeup.backup import rehearsal
from kubeup.backup.rehearsal_objects import Counted
from tests.unit.commands.test_backup import FILE, Node, made, node

__all__ = ["node"]


def verify(host: Node, monkeypatch: pytest.MonkeyPatch, counted: Counted, *words: str) -> int:
    made(host)
    rehearsed = rehearsal.Rehearsed(rehearsal.Images("etcd:3.6.6-0", "kube-apiserver:v1.35.6"), counted)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_, **__: rehearsed)
    return kb.main(["backup", "verify", str(FILE), *words], make_host=lambda root: host)


def test_a_backup_of_which_everything_can_be_read(node: Node, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert verify(node, monkeypatch, Counted({"secrets": 2}, 2, "read"), "-o", "json") == 0
    told = json.loads(capsys.readouterr().out.partition("\n")[2].partition("\n")[2])
    assert (told["objects"], told["secret"], told["ca"], told["notProven"]) == (2, "read", "same", {})


@pytest.mark.parametrize(
    "counted",
    [
        Counted({"pods": 2}, 4, "unreadable: no matching key", {"secrets": "no matching key"}),
        Counted({"pods": 2, "secrets": 2}, 4, "unreadable: no matching key"),
        Counted({"pods": 2}, 4, "read", {"configmaps": "no matching key"}),
    ],
)
def test_a_key_that_is_missing_is_a_failure(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: Any, counted: Counted
) -> None:
    assert verify(node, monkeypatch, counted) != 0
    told = capsys.readouterr().err
    assert "code:   backup-unreadable\n" in told and "no matching key" in told


def test_data_without_an_object_are_a_failure(node: Node, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert verify(node, monkeypatch, Counted({}, 0, "none")) != 0
    assert "etcd holds no key" in capsys.readouterr().err


def test_what_takes_a_kms_plugin_is_said_and_no_failure(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    counted = Counted({"pods": 2}, 4, "not proven: unix:///k encrypts", {}, {"secrets": "encrypted data"})
    assert verify(node, monkeypatch, counted) == 0
    assert "not proven: secrets, which takes a program" in capsys.readouterr().out


def test_what_was_not_counted_is_said_and_no_failure(node: Node, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    counted = Counted({"pods": 2}, 6, "none", uncounted={"gadgets.example.com": "0 of 4"})
    assert verify(node, monkeypatch, counted) == 0
    assert (
        "not counted: gadgets.example.com, of which the API server lists 0 of 4 that etcd holds"
        in capsys.readouterr().out
    )
