"""The phases upload-config/*: the cluster learns its own configuration and that of its kubelets.

Mirrors cmd/kubeadm/app/cmd/phases/init/uploadconfig.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.lazy_modules import lazy_import
from kubeup.phases.wait_node import node_path, wait_for_node
from kubeup.yaml_files import covers

if TYPE_CHECKING:
    from kubeup.cluster import api, objects
    from kubeup.config import render
    from kubeup.node import kubelet
else:
    objects = lazy_import("kubeup.cluster.objects")
    render = lazy_import("kubeup.config.render")
    kubelet = lazy_import("kubeup.node.kubelet")


def upload_kubeadm_config(ctx: Run) -> Outputs:
    objects.apply_objects(ctx.api, _kubeadm_config(ctx))
    return None


def kubeadm_config_is_uploaded(ctx: Run) -> bool:
    return objects.has_objects(ctx.api, _kubeadm_config(ctx))


def _kubeadm_config(ctx: Run) -> list[api.Object]:
    stored = render.render_cluster_configuration(ctx.config.cluster, ctx.release)
    return [objects.render_kubeadm_config(stored), *objects.load_objects("rbac/kubeadm-config.yaml")]


def upload_kubelet_config(ctx: Run) -> Outputs:
    """The configuration that joining nodes start from, and on older minors this node's CRI socket."""
    config_map, *rbac = _kubelet_config(ctx)
    objects.apply_component_config(ctx.api, config_map)
    objects.apply_objects(ctx.api, rbac)
    if not kubelet.has_instance_config(ctx.config.cluster, ctx.release):
        wait_for_node(ctx)
        ctx.api.patch(node_path(ctx), {"metadata": {"annotations": _socket_annotation(ctx)}})
    return None


def kubelet_config_is_uploaded(ctx: Run) -> bool:
    if not objects.has_objects(ctx.api, _kubelet_config(ctx)):
        return False
    if kubelet.has_instance_config(ctx.config.cluster, ctx.release):
        return True
    node = ctx.api.get(node_path(ctx))
    return covers(node, {"metadata": {"annotations": _socket_annotation(ctx)}})


def _kubelet_config(ctx: Run) -> list[api.Object]:
    # without this node's resolvConf: each node that joins looks for its own
    document = kubelet.render_kubelet_config(ctx.config, ctx.release).document
    data = {"kubelet": kubelet.dump_kubelet_config(document)}
    generated = "" if ctx.config.kubelet else kubelet.component_config_hash(data)
    config_map = objects.render_component_config("kubelet-config", data, generated)
    return [config_map, *objects.load_objects("rbac/kubelet-config.yaml")]


def _socket_annotation(ctx: Run) -> dict[str, str]:
    return {objects.CRI_SOCKET_ANNOTATION: ctx.config.node.cri_socket}


KUBEADM_CONFIG = Act(do=upload_kubeadm_config, probe=kubeadm_config_is_uploaded, reads=("cluster",))
KUBELET_CONFIG = Act(
    do=upload_kubelet_config,
    probe=kubelet_config_is_uploaded,
    reads=("kubelet", "cluster.networking", "cluster.feature_gates", "node.cri_socket"),
)
