"""The phase mark-control-plane, and the CRI socket annotation of this machine's Node object.

Mirrors cmd/kubeadm/app/cmd/phases/init/markcontrolplane.go and cmd/kubeadm/app/phases/patchnode.
"""

from __future__ import annotations

from functools import partial
from typing import Optional

from kubeup.engine.cluster_items import Manifest, PatchedFields
from kubeup.engine.plan import Plan
from kubeup.engine.run import Run
from kubeup.lazy_modules import lazily
from kubeup.phases.wait_node import node_path, wait_for_node
from kubeup.yaml_files import covers

with lazily:
    from kubeup.cluster import objects
    from kubeup.node import kubelet


def plan_marks(run: Run) -> Plan:
    """The labels and taints of a control plane."""
    wanted = run.config.node.taints
    taints = (objects.CONTROL_PLANE_TAINT,) if wanted is None else wanted
    spec = {"labels": objects.CONTROL_PLANE_LABELS, "taints": [objects.render_taint(taint) for taint in taints]}
    title = f"marks of Node {run.config.node.name}"
    plan = partial(objects.plan_node_marks, taints=taints)
    return Plan(PatchedFields(title, node_path(run), spec, plan, wait=lambda: wait_for_node(run)))


def plan_joined_marks(run: Run) -> Plan:
    """The marks of a further control plane, and the CRI socket annotation."""
    return plan_marks(run) + plan_socket(run)


def plan_socket(run: Run) -> Plan:
    """On older minors, the annotation from which kubeadm reads the node's CRI socket."""
    if kubelet.has_instance_config(run.config.cluster, run.release):
        return Plan()
    patch = {"metadata": {"annotations": {objects.CRI_SOCKET_ANNOTATION: run.config.node.cri_socket}}}

    def plan(node: Manifest) -> Optional[Manifest]:
        return None if covers(node, patch) else patch

    title = f"CRI socket of Node {run.config.node.name}"
    return Plan(PatchedFields(title, node_path(run), patch, plan, wait=lambda: wait_for_node(run)))
