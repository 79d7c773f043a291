"""The phases upload-config/*: store the cluster's configuration and its kubelets' in the cluster.

Mirrors cmd/kubeadm/app/cmd/phases/init/uploadconfig.go.
"""

from __future__ import annotations

from kubeup.engine.cluster_items import ComponentConfig, Object
from kubeup.engine.plan import Plan
from kubeup.engine.run import Run
from kubeup.lazy_modules import lazily
from kubeup.phases.mark_control_plane import plan_socket

with lazily:
    from kubeup.cluster import objects
    from kubeup.config import render
    from kubeup.node import kubelet


def plan_kubeadm_config(run: Run) -> Plan:
    stored = render.render_cluster_configuration(run.config.cluster, run.release)
    rights = objects.load_objects("rbac/kubeadm-config.yaml")
    return Plan(Object(objects.render_kubeadm_config(stored)), *map(Object, rights))


def plan_kubelet_config(run: Run) -> Plan:
    """The kubelet configuration that joining nodes start from, and on older minors this node's CRI socket."""
    # without this node's resolvConf: each joining node finds its own
    document = kubelet.render_kubelet_config(run.config, run.release).document
    data = {"kubelet": kubelet.dump_kubelet_config(document)}
    generated = "" if run.config.kubelet else kubelet.component_config_hash(data)
    config_map = objects.render_component_config("kubelet-config", data, generated_hash=generated)
    rights = objects.load_objects("rbac/kubelet-config.yaml")
    return Plan(ComponentConfig(config_map), *map(Object, rights)) + plan_socket(run)
