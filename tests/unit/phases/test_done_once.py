"""The phases that write to the cluster: done once they ran, and a second run changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

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

PHASES: list[tuple[str, Callable[[Run], Any], Callable[[Run], bool]]] = [
    ("upload-config/kubeadm", upload_config.upload_kubeadm_config, upload_config.kubeadm_config_is_uploaded),
    ("upload-config/kubelet", upload_config.upload_kubelet_config, upload_config.kubelet_config_is_uploaded),
    ("mark-control-plane", mark_control_plane.mark_control_plane, mark_control_plane.control_plane_is_marked),
    (
        "bootstrap-token",
        partial(do, bootstrap_tokens.plan_bootstrap_tokens),
        partial(is_done, bootstrap_tokens.plan_bootstrap_tokens),
    ),
    ("addon/coredns", addons.apply_coredns, addons.coredns_is_applied),
    ("addon/kube-proxy", addons.apply_kube_proxy, addons.kube_proxy_is_applied),
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
