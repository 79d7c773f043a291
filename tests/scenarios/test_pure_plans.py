"""A plan is a pure look: making one changes nothing, on the node or in the cluster, whatever has been done there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable
from unittest import mock

import pytest

import kb
from kubeup.engine.plan import Plan
from kubeup.engine.step import Phase
from tests.fake_cluster import ClusterHost
from tests.fake_join import Machine, Site

from .scenario import run_control_plane_join, run_init, run_join, run_kb, run_reconfigure

CHANGES = (
    "write_file", "write_stream", "make_dir", "symlink", "remove", "remove_tree", "move_file", "copy_attributes", "put_back",
    "append", "rename", "run", "http_send", "http_upload", "sleep",
)  # fmt: skip
WORKFLOWS = {
    "init": kb.INIT,
    "join": kb.JOIN,
    "reconfigure endpoint": next(one.phases for one in kb.COMMANDS if one.name == "reconfigure endpoint"),
}


@pytest.fixture
def planned() -> Iterator[set[Phase]]:
    """The phases whose plans were made, each under the eyes of a host that refuses every change meanwhile."""
    seen: set[Phase] = set()

    def watch(phase: Phase, make: Callable[[Any], Plan]) -> Callable[[Any], Plan]:
        def plan(run: Any) -> Plan:
            kind = ClusterHost if type(run.host) is ClusterHost else Machine
            verbs = [name for name in CHANGES if hasattr(kind, name)]
            refuse = mock.Mock(side_effect=AssertionError(f"the plan of {phase.name} changes something"))
            with mock.patch.multiple(kind, **dict.fromkeys(verbs, refuse)):
                made = make(run)
                for item in made.resolve(run).items():
                    item.wanted()
            seen.add(phase)
            return made

        return plan

    phases = [phase for phases in WORKFLOWS.values() for phase in phases if phase.plan]
    makers = [(phase, phase.plan) for phase in phases if phase.plan]
    for phase, make in makers:
        object.__setattr__(phase, "plan", watch(phase, make))
    yield seen
    for phase, make in makers:
        object.__setattr__(phase, "plan", make)


def all_of(workflow: str) -> set[Phase]:
    """What only some configurations ask for is looked at where its phase is tested."""
    return {phase for phase in WORKFLOWS[workflow] if phase.plan and not phase.when}


def test_init(tmp_path: Path, planned: set[Phase]) -> None:
    host = ClusterHost(tmp_path)
    run_init(host)
    run_init(host)
    assert planned == all_of("init")


def test_join(founded: Site, tmp_path: Path, planned: set[Phase]) -> None:
    site = founded.clone(tmp_path, "w1", "cp2")
    worker, second = site.machine("w1"), site.machine("cp2")
    for ended in (
        run_join(worker),
        run_kb(worker, "join"),
        run_control_plane_join(second),
        run_kb(second, "join", "--control-plane", "--soak=1s"),
    ):
        assert ended.status == 0, ended.err
    assert planned == all_of("join")


def test_reconfigure(founded: Site, tmp_path: Path, planned: set[Phase]) -> None:
    site = founded.clone(tmp_path)
    site.names["k8s.example.org"] = "10.0.0.11"
    first = site.machine("cp1")
    for words in (("k8s.example.org:6443",), (), ("--undo",)):
        ended = run_reconfigure(first, *words)
        assert ended.status == 0, ended.err
    assert planned == all_of("reconfigure endpoint")
