"""The phase pod-network: kb's own pod network, or the manifest of another one.

The files and rules are in kubeup/network/pod_network.py. kubeadm has no such phase: it leaves the pod network to the admin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from kubeup.engine.cluster_items import AppliedManifest, Manifest, Object
from kubeup.engine.items import File, Gone, Unit
from kubeup.engine.plan import Ground, Group, Item, Later, Part, Plan, Yielded
from kubeup.engine.run import ResetRun, Run
from kubeup.errors import ClusterError
from kubeup.lazy_modules import lazily
from kubeup.machine import own_copy
from kubeup.machine.waiting import wait_for
from kubeup.phases.kb_program import plan_program
from kubeup.phases.load_balancer import render_kb_config
from kubeup.phases.wait_node import wait_for_node

with lazily:
    from kubeup.cluster import api
    from kubeup.cluster import objects as clusterobjects
    from kubeup.network import node_routes, pod_network, route_keeper
    from kubeup.node import crictl, runtime

if TYPE_CHECKING:
    from kubeup.config.types import PodNetwork

POLL_S = 0.2
POD_CIDR_TIMEOUT_S = 120
"""A restarted controller-manager takes up to half a minute to become leader again."""
CRD_TIMEOUT_S = 60


def plan_pod_network(run: Run) -> Plan:
    """init: the cluster's objects for the pod network, then this node's part.

    A manifest is not compared again after it was applied: from then on its own operator, or the admin, manages that network.
    """
    network = run.config.kb.pod_network
    objects: list[Part] = [Object(found) for found in _network_objects(run, network)]
    if network.plugin == "bridge":
        objects += _plan_bridge(run, network, refuses_others=True)
    elif network.plugin == "manifest":
        inputs = {"manifest": network.manifest, "images": _image_server(run, network)}
        objects.append(AppliedManifest(f"manifest {network.manifest}", inputs, lambda _: _apply_manifest(run, network)))
    return Plan(*objects)


def plan_node_network(run: Run) -> Plan:
    """join: this node's part, as the cluster's kb-config says. In a cluster that kubeadm made there is none.

    Another network's CNI file is accepted here. If another network was applied to the cluster since init, its DaemonSet may
    write that file on a new node before kb does, and kb's keeper then steps aside at once. preflight looks for files that
    were there before the join.
    """
    network = clusterobjects.read_pod_network(run.api)
    return Plan(*_plan_bridge(run, network, refuses_others=False)) if network.plugin == "bridge" else Plan()


def _network_objects(run: Run, network: PodNetwork) -> list[Manifest]:
    objects: list[Manifest] = [
        render_kb_config(run),
        *clusterobjects.load_objects("rbac/pod-network.yaml"),
    ]
    if network.plugin == "bridge":
        objects += clusterobjects.load_objects("rbac/node-routes.yaml")
    return objects


def _plan_bridge(run: Run, network: PodNetwork, *, refuses_others: bool) -> list[Part]:
    """The bridge's addresses are known once the controller-manager has assigned the node's podCIDRs."""
    if pod_network.is_kept(run.host, run.paths):
        other = pod_network.find_foreign_cni_config(run.host, run.paths)
        if other:
            why = f"{run.paths.cni_conf / other} was added: kb's keeper steps aside for that network"
            return [Yielded("pod network", why)]

    def wait(_: Ground) -> Manifest:
        if refuses_others:
            pod_network.check_foreign_cni_config(run.host, run.paths)
        status = runtime.probe_runtime(run.host, run.config.node.cri_socket)
        pod_network.check_cni_plugins(run.host, status.cni_bin_dirs, runtime=status.label)
        if own_copy.find_running_pyz() is None:
            run.report.note(f"kb runs from a checkout: the unit {pod_network.UNIT} runs it from there too, so keep it")
        return wait_for_pod_cidrs(run)

    return [
        Later(
            "podCIDR",
            read=lambda _: _read_node(run),
            wait=wait,
            then=lambda node: _plan_node(run, node, network=network),
        )
    ]


def _read_node(run: Run) -> Optional[Manifest]:
    """This machine's Node object; None if it has no podCIDRs yet."""
    node: Optional[Manifest] = run.api.get(api.path_of("Node", run.config.node.name))
    return node if node and (node.get("spec") or {}).get("podCIDRs") else None


def _plan_node(run: Run, node: Manifest, *, network: PodNetwork) -> list[Part]:
    """The settings, the unit and, last, the CNI file, which makes the node Ready; then the running keeper."""
    pyz = own_copy.find_running_pyz()
    command = own_copy.plan_command(run.host, pyz, paths=run.paths)
    files = pod_network.plan_node_files(run.host, node, config=run.config, network=network, command=command)
    items: list[Item] = [
        *plan_program(run, pyz),
        File(route_keeper.settings_path(run.paths), files.settings),
        File(run.paths.systemd / pod_network.UNIT, files.unit),
        File(run.paths.cni_conf / node_routes.CNI_FILE, files.conflist),
    ]
    return [Group(tuple(items), guard=Unit(pod_network.UNIT))]


def wait_for_pod_cidrs(run: Run) -> Manifest:
    """Wait until this machine's Node object has its podCIDRs; return it.

    Raises UsageError (no-pod-subnet) or ClusterError (node-not-registered, no-pod-cidr).
    """
    node = wait_for_node(run)
    name = run.config.node.name

    def look() -> str:
        nonlocal node
        if (node.get("spec") or {}).get("podCIDRs"):
            return ""
        pod_network.check_pod_cidr_source(run.config.cluster)
        node = run.api.get(api.path_of("Node", name)) or {}
        return "" if (node.get("spec") or {}).get("podCIDRs") else "it has no podCIDR yet"

    wait_for(
        run.host,
        look,
        goal=f"node {name}",
        timeout_s=POD_CIDR_TIMEOUT_S,
        tell=run.report.waiting,
        failure=lambda _, elapsed: pod_network.missing_pod_cidr(run.api, name, waited_s=elapsed),
        poll_s=POLL_S,
    )
    return node


def plan_no_pod_network(run: ResetRun) -> Plan:
    """Reset: remove the route keeper, its routes, links and rules, and the bridge. Which of the kernel's routes are kb's is known only
    when they are withdrawn."""
    take_away = lambda ground: pod_network.remove_node_network(ground.host, run.paths, socket=run.cri_socket)  # noqa: E731
    return Plan(Gone("kb's pod network", lambda _: ["its unit, files, routes and links"], take_away))


# ---- an applied manifest


def _image_server(run: Run, network: PodNetwork) -> str:
    """The registry to put into the manifest's image names; "" leaves them as they are.

    containerd is configured to use the mirror (install/registries), so its names need no change. Other runtimes are not.
    """
    is_containerd = "containerd" in crictl.socket_path(run.config.node.cri_socket).name
    return network.image_repository or ("" if is_containerd else run.config.kb.mirror.endpoint)


def _apply_manifest(run: Run, network: PodNetwork) -> None:
    """Apply the objects in order, and wait for the CustomResourceDefinitions before what uses them.

    Raises ClusterError (crd-not-established).
    """
    found = pod_network.read_manifest(run.host, network.manifest)
    objects = pod_network.sort_objects(pod_network.rewrite_images(found, _image_server(run, network)))
    pending = [found for found in objects if found["kind"] == "CustomResourceDefinition"]
    first = [found for found in objects if found["kind"] in ("Namespace", "CustomResourceDefinition")]
    clusterobjects.apply_objects(run.api, first)
    for crd in pending:
        _wait_for_crd(run, crd)
    clusterobjects.apply_objects(run.api, [found for found in objects if found not in first])


def _wait_for_crd(run: Run, crd: Manifest) -> None:
    name = crd["metadata"]["name"]

    def look() -> str:
        is_there = pod_network.is_established(run.api.get(pod_network.crd_path(crd)))
        return "" if is_there else "it is not established yet"

    wait_for(
        run.host,
        look,
        goal=f"CustomResourceDefinition {name}",
        timeout_s=CRD_TIMEOUT_S,
        tell=run.report.waiting,
        failure=lambda _, elapsed: ClusterError(
            f"CustomResourceDefinition {name} is not established after {elapsed:.0f} s",
            cause="the API server has not accepted its names or schema",
            remedy=f"see its conditions: kubectl get crd {name} -o yaml",
            code="crd-not-established",
        ),
    )
