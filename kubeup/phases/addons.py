"""The phases addon/coredns, addon/kube-proxy and pod-network.

The objects and rules are in kubeup/cluster/addons.py and kubeup/network/pod_network.py. Mirrors cmd/kubeadm/app/cmd/phases/init/
addons.go; the pod network is kb's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kubeup.engine.run import Outputs, Run
from kubeup.errors import ClusterError
from kubeup.lazy_modules import lazy_import
from kubeup.phases.cluster import SYSTEM, wait_for_node
from kubeup.phases.load_balancer import render_kb_config

if TYPE_CHECKING:
    from kubeup.cluster import addons, api
    from kubeup.cluster import objects as clusterobjects
    from kubeup.config.types import PodNetwork
    from kubeup.network import pod_network
    from kubeup.node import crictl, patches, runtime
else:
    addons = lazy_import("kubeup.cluster.addons")
    clusterobjects = lazy_import("kubeup.cluster.objects")
    api = lazy_import("kubeup.cluster.api")
    patches = lazy_import("kubeup.node.patches")
    pod_network = lazy_import("kubeup.network.pod_network")
    runtime = lazy_import("kubeup.node.runtime")
    crictl = lazy_import("kubeup.node.crictl")

Object = dict[str, Any]
POLL_S = 0.5
POD_CIDR_TIMEOUT_S = 120
"""A controller-manager that was restarted takes up to half a minute to become leader again."""
CRD_TIMEOUT_S = 60


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
        ctx.api.list(api.path_of("Deployment", "", SYSTEM), label=addons.DNS_LABEL),
        ctx.api.get(api.path_of("ConfigMap", "coredns", SYSTEM)),
        ctx.api.get(api.path_of("Service", "kube-dns", SYSTEM)),
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
        clusterobjects.restart_pods(ctx.api, api.path_of("DaemonSet", "kube-proxy", SYSTEM), ctx.host.now())
    return None


def kube_proxy_is_applied(ctx: Run) -> bool:
    if ctx.config.cluster.proxy.disabled:
        return True
    return clusterobjects.has_objects(ctx.api, addons.render_kube_proxy(ctx.config, ctx.release))


# ---- pod-network


def set_up_pod_network(ctx: Run) -> Outputs:
    """init: what the cluster holds of the pod network, then this node's part."""
    network = ctx.config.kb.pod_network
    clusterobjects.apply_objects(ctx.api, _network_objects(ctx, network))
    if network.plugin == "bridge":
        pod_network.check_foreign_cni_config(ctx.host, ctx.paths)
        _set_up_bridge(ctx, network)
    elif network.plugin == "manifest":
        _apply_manifest(ctx, _manifest(ctx, network))
    return None


def pod_network_is_set_up(ctx: Run) -> bool:
    """An applied manifest is not looked at again: its network is run on by its own operator, or by people."""
    network = ctx.config.kb.pod_network
    if not clusterobjects.has_objects(ctx.api, _network_objects(ctx, network)):
        return False
    return network.plugin != "bridge" or _bridge_is_set_up(ctx, network)


def set_up_node_network(ctx: Run) -> Outputs:
    """join: this node's part, as the cluster says; in a cluster that kubeadm made there is none.

    Another network's file is no obstacle here: where one was applied to the cluster since, its DaemonSet may be quicker
    on a new node than kb, whose keeper then steps aside at once. preflight looks for what was there before.
    """
    network = clusterobjects.read_pod_network(ctx.api)
    if network.plugin == "bridge":
        _set_up_bridge(ctx, network)
    return None


def node_network_is_set_up(ctx: Run) -> bool:
    network = clusterobjects.read_pod_network(ctx.api)
    return network.plugin != "bridge" or _bridge_is_set_up(ctx, network)


def _network_objects(ctx: Run, network: PodNetwork) -> list[Object]:
    objects: list[Object] = [
        render_kb_config(ctx),
        *clusterobjects.load_objects("rbac/pod-network.yaml"),
    ]
    if network.plugin == "bridge":
        objects += clusterobjects.load_objects("rbac/node-routes.yaml")
    return objects


def _set_up_bridge(ctx: Run, network: PodNetwork) -> None:
    status = runtime.probe_runtime(ctx.host, ctx.config.node.cri_socket)
    pod_network.check_cni_plugins(ctx.host, status.cni_bin_dirs, status.label)
    node = wait_for_pod_cidrs(ctx)
    pyz = pod_network.find_running_pyz()
    if pyz is None:
        ctx.report.note(f"kb runs from a checkout: the unit {pod_network.UNIT} runs it from there too, so keep it")
    changed = pod_network.ensure_installed_kb(ctx.host, ctx.paths, pyz)
    files = _bridge_files(ctx, node, network)
    changed = pod_network.write_node_files(ctx.host, ctx.paths, files) or changed
    pod_network.ensure_keeper_runs(ctx.host, is_changed=changed)


def _bridge_is_set_up(ctx: Run, network: PodNetwork) -> bool:
    if pod_network.is_kept(ctx.host, ctx.paths) and pod_network.find_foreign_cni_config(ctx.host, ctx.paths):
        return True  # another network was installed on top since, and kb's keeper steps aside for it
    node = ctx.api.get(api.path_of("Node", ctx.config.node.name))
    if not node or not (node.get("spec") or {}).get("podCIDRs"):
        return False
    return pod_network.has_node_files(ctx.host, ctx.paths, _bridge_files(ctx, node, network))


def _bridge_files(ctx: Run, node: Object, network: PodNetwork) -> pod_network.NodeFiles:
    command = pod_network.plan_command(ctx.host, pod_network.find_running_pyz(), ctx.paths)
    return pod_network.plan_node_files(ctx.host, node, ctx.config, network=network, command=command)


def wait_for_pod_cidrs(ctx: Run) -> Object:
    """The Node object of this machine, as soon as it has its podCIDRs.

    Raises UsageError (no-pod-subnet) or ClusterError (node-not-registered, no-pod-cidr).
    """
    node = wait_for_node(ctx)
    name, started = ctx.config.node.name, ctx.host.monotonic()
    while not (node.get("spec") or {}).get("podCIDRs"):
        pod_network.check_pod_cidr_source(ctx.config.cluster)
        elapsed = ctx.host.monotonic() - started
        if elapsed >= POD_CIDR_TIMEOUT_S:
            raise pod_network.missing_pod_cidr(ctx.api, name, elapsed)
        ctx.report.waiting(f"node {name}: {elapsed:.0f} s of {POD_CIDR_TIMEOUT_S} s; it has no podCIDR yet")
        ctx.host.sleep(POLL_S)
        node = ctx.api.get(api.path_of("Node", name)) or {}
    return node


def _manifest(ctx: Run, network: PodNetwork) -> list[Object]:
    found = pod_network.read_manifest(ctx.host, network.manifest)
    # containerd itself is pointed to the mirror (install/registries), so names stay unless they shall change; another
    # runtime is not
    is_containerd = "containerd" in crictl.socket_path(ctx.config.node.cri_socket).name
    server = network.image_repository or ("" if is_containerd else ctx.config.kb.mirror.endpoint)
    objects: list[Object] = pod_network.sort_objects(pod_network.rewrite_images(found, server))
    return objects


def _apply_manifest(ctx: Run, objects: list[Object]) -> None:
    """Each object in order; a kind that the manifest itself defines is waited for."""
    pending = [found for found in objects if found["kind"] == "CustomResourceDefinition"]
    first = [found for found in objects if found["kind"] in ("Namespace", "CustomResourceDefinition")]
    clusterobjects.apply_objects(ctx.api, first)
    for crd in pending:
        _wait_for_crd(ctx, crd)
    clusterobjects.apply_objects(ctx.api, [found for found in objects if found not in first])


def _wait_for_crd(ctx: Run, crd: Object) -> None:
    name, started = crd["metadata"]["name"], ctx.host.monotonic()
    while not pod_network.is_established(ctx.api.get(pod_network.crd_path(crd))):
        elapsed = ctx.host.monotonic() - started
        if elapsed >= CRD_TIMEOUT_S:
            raise ClusterError(
                f"CustomResourceDefinition {name} is not established after {elapsed:.0f} s",
                cause="the API server has not accepted its names or schema",
                remedy=f"see its conditions: kubectl get crd {name} -o yaml",
                code="crd-not-established",
            )
        ctx.report.waiting(f"CustomResourceDefinition {name}: {elapsed:.0f} s of {CRD_TIMEOUT_S} s")
        ctx.host.sleep(POLL_S)
