"""The phases that write to the cluster: done once they ran, and a second run changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kubeup.engine.plan import Plan
from kubeup.engine.run import Run
from kubeup.phases import (
    addons,
    bootstrap_tokens,
    mark_control_plane,
    upload_config,
)
from kubeup.releases import RELEASES
from tests.plans import do, is_done
from tests.unit.phases.cluster_case import changes, make_context, make_node

Step = tuple[str, Callable[[Run], Any], Callable[[Run], bool]]


def planned(name: str, plan: Callable[[Run], Plan]) -> Step:
    return name, partial(do, plan), partial(is_done, plan)


PHASES: list[Step] = [
    planned("upload-config/kubeadm", upload_config.plan_kubeadm_config),
    planned("upload-config/kubelet", upload_config.plan_kubelet_config),
    planned("mark-control-plane", mark_control_plane.plan_marks),
    planned("bootstrap-token", bootstrap_tokens.plan_bootstrap_tokens),
    planned("addon/coredns", addons.plan_coredns),
    planned("addon/kube-proxy", addons.plan_kube_proxy),
]


@pytest.mark.parametrize("minor", sorted(RELEASES))
@pytest.mark.parametrize(("name", "run", "done"), PHASES, ids=[name for name, _, _ in PHASES])
def test_a_phase_is_done_once_it_ran_and_a_second_run_changes_nothing(
    tmp_path: Path, minor: int, name: str, run: Callable[[Run], Any], done: Callable[[Run], bool]
) -> None:
    ctx = make_context(tmp_path, minor=minor, node=make_node())
    assert done(ctx) is False
    before = changes(ctx)
    run(ctx)
    after = changes(ctx)
    assert after > before
    assert done(ctx) is True
    run(ctx)
    assert changes(ctx) == after
