"""kubeup/phases/mark_control_plane.py: taints follow the configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubeup.config.types import (
    Taint,
)
from kubeup.phases import (
    mark_control_plane,
)
from tests.plans import do
from tests.unit.phases.cluster_case import made, make_context, make_node


@pytest.mark.parametrize(
    ("taints", "wanted"),
    [
        (None, [("node-role.kubernetes.io/control-plane", "NoSchedule")]),
        ((), []),
        ((Taint("team", "NoExecute", "a"),), [("team", "NoExecute")]),
    ],
)
def test_taints_follow_the_configuration(tmp_path: Path, taints: Any, wanted: list[tuple[str, str]]) -> None:
    ctx = make_context(tmp_path, node=make_node())
    ctx = replace(ctx, config=replace(ctx.config, node=replace(ctx.config.node, taints=taints)))
    do(mark_control_plane.plan_marks, ctx)
    node = made(ctx, "Node")["cp1"]
    assert [(taint["key"], taint["effect"]) for taint in node["spec"].get("taints", [])] == wanted
    assert node["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] == ""
