"""kb mirror add, list, remove and gc, as they are called: what they print, refuse and leave."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeup.airgap.mirror_needs import Needs
from kubeup.commands import mirror_upkeep
from kubeup.errors import ClusterError
from kubeup.machine.local_host import LocalHost
from kubeup.phases.local_bundle import MIRROR_FOLDER
from tests.fuzz.node import Ended, call
from tests.mirror_bundles import KUBE_34, KUBE_35, PAUSE, add_bundle

GIB = 1 << 30


class Machine(LocalHost):
    """A machine below a folder. free: bytes on its disk."""

    free = 100 * GIB

    def is_root_user(self) -> bool:
        return True

    def free_bytes(self, path: Path) -> int:
        return self.free


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    folder = tmp_path / MIRROR_FOLDER.relative_to("/")
    add_bundle(
        folder,
        "kb-34.tar",
        version="v1.34.9",
        images={PAUSE: [b"p"], KUBE_34: [b"base", b"34" * GIB_ISH]},
        program=b"34",
    )
    add_bundle(folder, "kb-35.tar", version="v1.35.6", images={PAUSE: [b"p"], KUBE_35: [b"base", b"35"]}, program=b"35")
    needs = Needs({"v1.35.6": ["node cp1"]}, {KUBE_35: ["node cp1"], PAUSE: ["node cp1"]})
    monkeypatch.setattr(mirror_upkeep, "_read_needs", lambda launch: needs)
    return Machine(tmp_path)


GIB_ISH = 1 << 20


def kb(machine: Machine, *words: str) -> Ended:
    ended = call(["mirror", *words], lambda: machine, machine.root)
    assert not ended.bug, ended.bug
    return ended


def refused(machine: Machine, *words: str, code: str) -> Ended:
    before = files_of(machine)
    ended = kb(machine, *words)
    assert ended.status != 0 and f"code:   {code}\n" in ended.err, ended.err
    assert files_of(machine) == before, "nothing was changed"
    return ended


def files_of(machine: Machine) -> dict[str, int]:
    folder = machine.root / MIRROR_FOLDER.relative_to("/")
    return {one.name: one.stat().st_size for one in sorted(folder.iterdir()) if one.name != ".lock"}


def test_the_list_says_what_is_there_who_needs_it_and_what_could_go(machine: Machine) -> None:
    lines = kb(machine, "list").out.splitlines()
    assert lines[0].split() == ["BUNDLE", "KUBERNETES", "IMAGES", "SIZE", "NEEDED", "BY"]
    assert lines[1].split()[:3] == ["kb-34.tar", "v1.34.9", "2"] and lines[1].endswith("nobody")
    assert lines[2].endswith("node cp1")
    row = next(line for line in lines if line.startswith(PAUSE))
    assert "kb-34.tar, kb-35.tar" in row and row.endswith("node cp1")
    assert "no node needs v1.34: kb mirror remove v1.34 frees 2 MiB" in lines
    assert lines[-1] == "102400 MiB are free on its disk"


def test_the_list_for_programs(machine: Machine) -> None:
    told: Any = json.loads(kb(machine, "list", "-o", "json").out)
    assert [(one["name"], one["kubernetesVersion"], one["images"], one["hasPrograms"], one["neededBy"]) for one in told["bundles"]] == [
        ("kb-34.tar", "v1.34.9", 2, True, ""), ("kb-35.tar", "v1.35.6", 2, True, "node cp1"),
    ]  # fmt: skip
    assert told["notNeeded"] == ["v1.34"] and told["unnamedBytes"] == 0 and told["freeBytes"] == 100 * GIB
    assert {one["name"] for one in told["images"]} == {PAUSE, KUBE_34, KUBE_35}


def test_a_cluster_that_does_not_answer_hides_nothing_but_lets_nothing_go(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(launch: object) -> Needs:
        raise ClusterError("no API server answers", cause="it is off", remedy="start it", code="server-unreachable")

    monkeypatch.setattr(mirror_upkeep, "_read_needs", ask)
    ended = kb(machine, "list")
    assert ended.status == 0 and "who needs what is not known: no API server answers" in ended.out
    assert "neededBy" not in kb(machine, "list", "-o", "json").out
    refused(machine, "remove", "v1.34", code="server-unreachable")
    assert kb(machine, "remove", "v1.34", "--force").status == 0
    assert list(files_of(machine)) == ["kb-35.tar"]
    assert kb(machine, "gc").status == 0, "what nothing names, nobody needs"


def test_a_minor_that_no_node_runs_goes_and_again_is_no_error(machine: Machine) -> None:
    assert kb(machine, "remove", "v1.34", "--dry-run").out.endswith("nothing was changed\n")
    assert len(files_of(machine)) == 2
    assert kb(machine, "remove", "v1.34").out == f"removed: kb-34.tar\nremoved: {KUBE_34}\n2 MiB freed\n"
    assert list(files_of(machine)) == ["kb-35.tar"]
    ended = kb(machine, "remove", "v1.34")
    assert ended.status == 0 and "the mirror has no v1.34" in ended.err and "nothing to do" in ended.out


def test_what_a_node_needs_is_refused_with_who_that_is(machine: Machine) -> None:
    ended = refused(machine, "remove", "v1.35", code="mirror-needed")
    assert "the programs of v1.35.6: node cp1; nothing was removed" in ended.err
    refused(machine, "remove", PAUSE, code="mirror-needed")
    refused(machine, "remove", "v1.34", "v1.35", "--force", code="mirror-last-bundle")
    assert kb(machine, "remove", KUBE_34).status == 0


@pytest.mark.parametrize("words", [("remove",), ("remove", "pause"), ("add",), ("add", "a", "b")])
def test_how_they_are_called(machine: Machine, words: tuple[str, ...]) -> None:
    refused(machine, *words, code="usage")


def test_another_name_of_the_same_image_has_to_be_named_too(machine: Machine) -> None:
    folder, same = machine.root / MIRROR_FOLDER.relative_to("/"), "example.org/api:same"
    add_bundle(folder, "more.tar", version="", images={same: [b"base", b"34" * GIB_ISH], "example.org/b:1": [b"b"]})
    ended = refused(machine, "remove", KUBE_34, code="mirror-same-image")
    assert f"kb mirror remove {KUBE_34} {same}" in ended.err
    assert kb(machine, "remove", KUBE_34, same).status == 0
    assert kb(machine, "remove", "v1.34").status == 0


def test_gc_takes_what_a_killed_kb_left(machine: Machine) -> None:
    folder = machine.root / MIRROR_FOLDER.relative_to("/")
    (folder / ".kb-36.tar.new").write_bytes(bytes(3 << 20))
    assert kb(machine, "gc", "--dry-run").out == "3 MiB would be freed\nnothing was changed\n"
    told: Any = json.loads(kb(machine, "gc", "-o", "json").out)
    assert told == {"dryRun": False, "removedBundles": [], "removedImages": [], "freedBytes": 3 << 20}
    assert list(files_of(machine)) == ["kb-34.tar", "kb-35.tar"]
    assert "nothing to do" in kb(machine, "gc").out


@contextlib.contextmanager
def another_kb(machine: Machine) -> Iterator[None]:
    with machine.lock(MIRROR_FOLDER / ".lock", "kb mirror sync"):
        yield


def test_no_two_work_on_its_files(machine: Machine, tmp_path: Path) -> None:
    made = add_bundle(tmp_path / "given", "kb-36.tar", version="v1.36.0", images={PAUSE: [b"p"]})
    with another_kb(machine):
        for words in (("remove", "v1.34"), ("gc",), ("add", f"/given/{made.name}")):
            assert "kb mirror sync" in refused(machine, *words, code="locked").err
        assert kb(machine, "list").status == 0


def test_a_disk_that_is_too_full_for_another_bundle_says_what_could_go(machine: Machine, tmp_path: Path) -> None:
    add_bundle(tmp_path / "given", "kb-36.tar", version="v1.36.0", images={PAUSE: [b"p"]})
    machine.free = 100
    ended = refused(machine, "add", "/given/kb-36.tar", code="disk-full")
    assert "remove what no node needs: kb mirror remove v1.34 (2 MiB); or make space there" in ended.err
    machine.free = GIB
    assert kb(machine, "add", "/given/kb-36.tar").status == 0
    assert list(files_of(machine)) == ["kb-34.tar", "kb-35.tar", "kb-36.tar"]


def test_a_node_without_a_mirror(tmp_path: Path) -> None:
    for words in (("list",), ("gc",), ("remove", "v1.34")):
        ended = call(["mirror", *words], lambda: Machine(tmp_path), tmp_path)
        assert ended.status != 0 and "code:   no-mirror-here\n" in ended.err
