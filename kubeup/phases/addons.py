"""The phases addon/coredns and addon/kube-proxy.

The objects and rules are in kubeup/cluster/addons.py. Mirrors cmd/kubeadm/app/cmd/phases/init/addons.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.lazy_modules import lazy_import

if TYPE_CHECKING:
    from kubeup.cluster import addons, api
    from kubeup.cluster import objects as clusterobjects
    from kubeup.node import crictl, patches, runtime
else:
    addons = lazy_import("kubeup.cluster.addons")
    clusterobjects = lazy_import("kubeup.cluster.objects")
    api = lazy_import("kubeup.cluster.api")
    patches = lazy_import("kubeup.node.patches")
    runtime = lazy_import("kubeup.node.runtime")
    crictl = lazy_import("kubeup.node.crictl")

Object = dict[str, Any]


# ---- addon/coredns


def apply_coredns(ctx: Run) -> Outputs:
    if ctx.config.cluster.dns.disabled:
        ctx.report.note("dns.disabled is set: no CoreDNS")
        return None
    running = _running_dns(ctx)
    if running.corefile and not addons.is_default_corefile(running.corefile, ctx.config.cluster):
        ctx.report.note("the Corefile in ConfigMap kube-system/coredns was edited: it is kept")
    clusterobjects.apply_objects(ctx.api, _coredns(ctx, running))
    return None


def coredns_is_applied(ctx: Run) -> bool:
    return ctx.config.cluster.dns.disabled or clusterobjects.has_objects(ctx.api, _coredns(ctx, _running_dns(ctx)))


def _running_dns(ctx: Run) -> addons.RunningDns:
    return addons.parse_running_dns(
        ctx.api.list(api.path_of("Deployment", "", clusterobjects.SYSTEM), label=addons.DNS_LABEL),
        ctx.api.get(api.path_of("ConfigMap", "coredns", clusterobjects.SYSTEM)),
        ctx.api.get(api.path_of("Service", "kube-dns", clusterobjects.SYSTEM)),
    )


def _coredns(ctx: Run, running: addons.RunningDns) -> list[Object]:
    patch = patches.read_patches(ctx.host, ctx.config.patches_directory)
    objects: list[Object] = addons.render_coredns(ctx.config, ctx.release, running=running, patch=patch)
    return objects


# ---- addon/kube-proxy


def apply_kube_proxy(ctx: Run) -> Outputs:
    if ctx.config.cluster.proxy.disabled:
        ctx.report.note("proxy.disabled is set: no kube-proxy")
        return None
    config_map, *rest = addons.render_kube_proxy(ctx.config, ctx.release)
    before = ctx.api.get(ctx.api.object_path(config_map))
    clusterobjects.apply_component_config(ctx.api, config_map)
    clusterobjects.apply_objects(ctx.api, rest)
    if before and before.get("data") != config_map["data"]:
        # kube-proxy reads its configuration once: what runs goes on with the old one
        ctx.report.note("kube-proxy's configuration changed: its pods are restarted, one node after the other")
        clusterobjects.restart_pods(
            ctx.api, api.path_of("DaemonSet", "kube-proxy", clusterobjects.SYSTEM), ctx.host.now()
        )
    return None


def kube_proxy_is_applied(ctx: Run) -> bool:
    if ctx.config.cluster.proxy.disabled:
        return True
    return clusterobjects.has_objects(ctx.api, addons.render_kube_proxy(ctx.config, ctx.release))


COREDNS = Act(
    do=apply_coredns,
    probe=coredns_is_applied,
    reads=(
        "cluster.dns",
        "cluster.networking",
        "cluster.image_repository",
        "cluster.kubernetes_version",
        "patches_directory",
    ),
)
KUBE_PROXY = Act(
    do=apply_kube_proxy,
    probe=kube_proxy_is_applied,
    reads=(
        "cluster.proxy",
        "kube_proxy",
        "cluster.networking",
        "cluster.image_repository",
        "cluster.kubernetes_version",
        "cluster.control_plane_endpoint",
        "local_api_endpoint",
        "proxy_env",
    ),
)
