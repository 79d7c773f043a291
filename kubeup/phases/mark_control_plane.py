"""The phase mark-control-plane: labels and taints. Mirrors cmd/kubeadm/app/cmd/phases/init/markcontrolplane.go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.lazy_modules import lazy_import
from kubeup.phases.wait_node import node_path, wait_for_node

if TYPE_CHECKING:
    from kubeup.cluster import objects
else:
    objects = lazy_import("kubeup.cluster.objects")


def mark_control_plane(ctx: Run) -> Outputs:
    wait_for_node(ctx)
    objects.mark_control_plane(ctx.api, ctx.config.node.name, _taints(ctx))
    return None


def control_plane_is_marked(ctx: Run) -> bool:
    node = ctx.api.get(node_path(ctx))
    return node is not None and objects.plan_node_marks(node, _taints(ctx)) is None


def _taints(ctx: Run) -> Any:
    wanted = ctx.config.node.taints
    return (objects.CONTROL_PLANE_TAINT,) if wanted is None else wanted


MARKS = Act(do=mark_control_plane, probe=control_plane_is_marked, live="cluster", reads=("node.taints", "node.name"))
