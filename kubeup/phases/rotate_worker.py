"""What a worker does in a rotation of the cluster's authority: its kubelet follows, and it acknowledges.

A worker has no rights but its kubelet's, so it begins nothing and ends nothing: it reads the stage and both certificates in ConfigMap
kube-system/kb-rotation, which its API server vouches for, and writes an annotation of its own Node. See docs/adr/0027-rotation.md.
"""

from __future__ import annotations

from typing import Optional

from kubeup.cluster import rotation
from kubeup.cluster.api import ApiRefused
from kubeup.cluster.rotation import Rotation
from kubeup.engine.run import Outputs, Results, Run
from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.node.rotated_pairs import TRUST, USE
from kubeup.phases import rotated_copies, rotated_kubelet
from kubeup.phases.wait_node import node_path

with lazily:
    from kubeup.node import certificates


@frozen_by_name
class WorkerRun(Run):
    """command: goes on with the rotation; title: of what is rotated, in words."""

    command: str
    title: str

    def take(self, stage: str) -> Outputs:
        """This node's part in a stage, if that is the present one. Raises KbError."""
        one = _read(self)
        if one is None or len(one.certs) != 2:
            if stage == TRUST:
                self.report.note(f"no rotation of {self.title} is under way, and a worker begins none")
            return None
        return _take_part(self, one) if one.stage == stage else None


def _take_part(ctx: WorkerRun, one: Rotation) -> Outputs:
    node = ctx.api.get(node_path(ctx))
    if node is None or rotation.read_mark(node) != one.mark:
        ask = lambda subject, key: rotated_kubelet.ask(ctx, subject, key=key)  # noqa: E731
        former, following = one.certs
        rotated_kubelet.follow(ctx, rotated_kubelet.Turn(one.stage, former, following, ask, ctx.command))
        rotation.acknowledge(ctx.api, one, node=ctx.config.node.name)
    if one.stage == USE:
        told, coming = (certificates.parse_certs(text)[0] for text in one.certs)
        rotated_copies.tell_copies(ctx, former=told, following=coming)
    ctx.report.note(f"this node has done stage {one.stage!r}")
    return Results(remaining=[f"on a control plane, once every node has done this stage: {ctx.command} --continue"])


def _read(ctx: WorkerRun) -> Optional[Rotation]:
    """None too where no kubelet may read it: that right comes and goes with a rotation."""
    try:
        return rotation.read(ctx.api)
    except ApiRefused as error:
        if error.http_status != 403:
            raise
        return None
