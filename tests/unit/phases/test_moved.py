"""Which phases say what should be there, and which still act. What is moved to a plan does not go back."""

from __future__ import annotations

from typing import Any

import pytest

import kb
from kubeup import day_two
from kubeup.engine.step import Phase

_DEFAULT: Any = Phase.__dataclass_fields__["act"].default
ACTS = {
    "init": {
        "install/bundle",
        "install/packages",
        "preflight",
        "wait-control-plane",
        "upload-certs",
        "wait-control-plane/controllers",
        "verify",
        "show-join-command",
    },
    "join": {
        "install/packages",
        "preflight",
        "check-etcd",
        "etcd-join",
        "kubelet-wait-bootstrap",
        "wait-control-plane",
        "verify",
    },
    "reconfigure endpoint": {
        "preflight",
        "verify",
    },
    "reconfigure static-pods": {
        "preflight",
        "swap",
        "gate",
    },
    "certs add-san": {
        "preflight",
        "verify",
    },
    "reset": {
        "remove-etcd-member",
        "cleanup-node/take-back-files",
    },
}
"""The phases without a plan, by workflow: this list only becomes shorter. A new phase that is no act has a plan."""
WORKFLOWS = {
    "init": kb.INIT,
    "join": kb.JOIN,
    "reconfigure endpoint": day_two.find_story("reconfigure-endpoint", init=kb.INIT),
    "reconfigure static-pods": day_two.RECONFIGURE_STATIC_PODS,
    "certs add-san": day_two.CERTS_ADD_SAN,
    "reset": kb.RESET,
}


@pytest.mark.parametrize("workflow", ACTS)
def test_what_acts_is_named_here(workflow: str) -> None:
    acting = {phase.name for phase in WORKFLOWS[workflow] if phase.plan is None}
    assert acting - ACTS[workflow] == set(), "say what should be there, in a plan"
    assert ACTS[workflow] - acting == set(), "it has a plan now: strike it out here"


def test_a_plan_is_said_once() -> None:
    """Nothing beside it repeats what it says."""
    for phase in (phase for phases in WORKFLOWS.values() for phase in phases if phase.plan):
        assert (phase.act, phase.probe, phase.spec, phase.foretell) == (_DEFAULT, None, None, None), phase.name
