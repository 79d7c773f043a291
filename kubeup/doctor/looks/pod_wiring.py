"""What connects the pods of a node: the plugins of the runtime's CNI configuration, the addresses that they give out, kb's own routes."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from kubeup.cluster import api as kubeapi
from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.doctor.node_files import Patient
from kubeup.errors import KbError
from kubeup.json_text import as_table
from kubeup.machine.host import Host
from kubeup.network import node_routes, pod_network, pod_view, route_keeper, route_plan, step_aside
from kubeup.node import crictl, runtime
from kubeup.shapes import fit_what_does

NAME = "pod-network"
_RANGE = {"subnet!": str, "gateway!": str}
_RANGES = {"ranges!": [[_RANGE]], "dataDir!": str, "type!": str, **_RANGE}
_CONFIG = {"name!": str, "type!": str, "ipam!": _RANGES, "plugins!": [{"type!": str, "ipam!": _RANGES}]}
_HOST_LOCAL = "/var/lib/cni/networks"
"""Where the plugin host-local keeps the addresses that it has given out, unless dataDir says otherwise. Source: containernetworking/plugins,
plugins/ipam/host-local/backend/disk/backend.go"""
_FULL = 0.98


def read_config(patient: Patient) -> tuple[str, dict[str, Any]]:
    """The name of the CNI configuration that the runtime uses, and what it says; ("", {}) if there is none."""
    name = node_routes.find_first_cni_config(patient.host, patient.paths)
    text = facts.read_or_empty(patient.host, str(patient.paths.cni_conf / name)) if name else ""
    found = fit_what_does(as_table(text), _CONFIG)
    plugins = found["plugins"] or [{"type": found["type"], "ipam": found["ipam"]}]
    return (name, {**found, "plugins": plugins}) if text else ("", {})


def find_lost_plugins(patient: Patient) -> Findings:
    """The plugins that the first configuration names, and the runtime does not have: what an uninstalled network leaves behind. Or a configuration that
    names none, since it was cut off or edited badly."""
    name, config = read_config(patient)
    if config and not any(plugin["type"] for plugin in config["plugins"]):
        path = patient.paths.cni_conf / name
        again = (
            f"kb {'init' if patient.is_control_plane else 'join'} phase pod-network"
            if name == node_routes.CNI_FILE
            else "what installed that network"
        )
        text = f"no pod can be started: the runtime takes {path}, which is no CNI configuration that names a plugin"
        yield Finding(NAME, ERROR, text, f"put it back, or have it written again: mv {path} /root/; {again}")
        return
    if not config:
        return
    host = patient.host
    status = runtime.probe_runtime(host, patient.config.node.cri_socket)
    astray = _find_astray_folder(patient, status)
    if astray is not None:
        yield astray
        return
    folders = dict.fromkeys((*status.cni_bin_dirs, *(() if status.cni_bin_dirs else pod_view.PLUGIN_DIRS)))
    wanted = dict.fromkeys(plugin["type"] for plugin in config["plugins"] if plugin["type"])
    lost = [one for one in wanted if not any(host.exists(Path(folder) / one) for folder in folders)]
    if (
        not lost
        or not status.is_ready
        or (name == node_routes.CNI_FILE and patient.config.kb.pod_network.plugin == "bridge")
    ):
        return  # kb's own plugins are a check of preflight's
    path = patient.paths.cni_conf / name
    text = f"no pod can be started: the runtime takes {path}, and its plugin {', '.join(lost)} is not in {', '.join(folders)}"
    remedy = f"if that network was removed from the cluster: rm {path}; else see why its pod on this node does not put the plugin there"
    yield Finding(NAME, ERROR, text, remedy)


def _find_astray_folder(patient: Patient, status: runtime.RuntimeStatus) -> Optional[Finding]:
    """A runtime that takes CNI configurations from a folder without any, beside the one that has this node's."""
    own, folder = patient.paths.cni_conf, Path(status.cni_conf_dir or patient.paths.cni_conf)
    if not status.is_ready or folder == own or node_routes.list_cni_configs(patient.host, folder):
        return None
    text = f"no pod can be started: {status.label} takes its CNI configuration from {folder}, where there is none: this node's is in {own}"
    remedy = (
        f'correct it in the configuration of {status.label} (containerd: conf_dir = "{own}"), then: {status.restart}'
    )
    return Finding(NAME, ERROR, text, remedy)


def find_taken_addresses(patient: Patient) -> Findings:
    """Whether host-local has an address left. A pod whose sandbox was removed without its network, as by a crash of the runtime, never gives
    its address back."""
    name, config = read_config(patient)
    for plugin in config.get("plugins", ()):
        ipam = plugin["ipam"]
        ranges = [one for group in ipam["ranges"] for one in group] or [ipam]
        folder = Path(ipam["dataDir"] or _HOST_LOCAL) / config["name"]
        if ipam["type"] == "host-local" and patient.host.exists(folder):
            yield from _judge_addresses(
                patient, folder, cidrs={one["subnet"]: one["gateway"] for one in ranges}, config=name
            )


def _judge_addresses(patient: Patient, folder: Path, *, cidrs: dict[str, str], config: str) -> Findings:
    """cidrs: subnet -> its gateway, "" for the first address."""
    addresses = [one for one in map(facts.address_or_none, patient.host.list_dir(folder)) if one is not None]
    for cidr, gateway in cidrs.items():
        network = facts.network_or_none(cidr)
        if network is None:
            continue
        kept = {str(network[0]), gateway or str(network[1]), str(network[-1])}  # which no pod gets
        taken = [one for one in addresses if one in network and str(one) not in kept]
        room = network.num_addresses - 3
        if not taken or len(taken) < room * _FULL:
            continue
        gone = _find_leaked(patient, folder, addresses=[str(one) for one in taken])
        text = f"{len(taken)} of the {room} addresses that {config} has for pods of this node are taken ({folder})"
        if gone:
            text += f", {len(gone)} of them by pods that are gone: no pod gets one"
            some = " ".join(gone[:3])
            remedy = f"give back those of pods that are gone: cd {folder} && rm {some}{' ...' if len(gone) > 3 else ''} (each names its sandbox; crictl pods -q shows those that live)"
        else:
            remedy = "let fewer pods run here (maxPods in the KubeletConfiguration), or give nodes larger networks"
        yield Finding(NAME, ERROR if gone else WARNING, text, remedy)


def _find_leaked(patient: Patient, folder: Path, *, addresses: list[str]) -> list[str]:
    """The addresses whose sandbox the runtime does not know; [] if it does not say."""
    argv = crictl.crictl_argv(patient.config.node.cri_socket, "pods", "-q", "--no-trunc")
    answer = patient.host.query(argv, timeout_s=15)
    if not answer.ok:
        return []
    alive = set(answer.stdout.split())
    owners = {one: facts.read_or_empty(patient.host, str(folder / one)).split()[:1] for one in addresses}
    return [one for one, owner in owners.items() if not owner or owner[0] not in alive]


# ---- kb's own network


def find_odd_routes(patient: Patient) -> Findings:
    """What the cluster says of this node's pod network and of the other nodes', against what this machine does."""
    host, paths = patient.host, patient.paths
    with contextlib.suppress(KbError):  # the check of this node reports why the cluster does not answer
        api = kubeapi.Api(host, kubeapi.read_identity(host, paths.kubernetes / "kubelet.conf"), retry_s=0)
        nodes = route_plan.parse_peers(api.list(kubeapi.path_of("Node")))
        me = next((node for node in nodes if node.name == patient.config.node.name), None)
        if me is not None and me.pod_cidrs:
            other = _judge_cidrs(patient, me)
            yield from [other] if other else _judge_routes(patient, me, nodes=nodes)


def _judge_cidrs(patient: Patient, me: route_plan.Peer) -> Optional[Finding]:
    """A node that was deleted, and registered anew, gets another pod network; its pods, and those that follow, keep to the former one."""
    _, config = read_config(patient)
    own = [one["subnet"] for plugin in config.get("plugins", ()) for group in plugin["ipam"]["ranges"] for one in group]
    if not own or {ipaddress.ip_network(cidr) for cidr in own} == {ipaddress.ip_network(one) for one in me.pod_cidrs}:
        return None
    again = f"kb {'init' if patient.is_control_plane else 'join'} phase pod-network"
    text = (
        f"the cluster has given node {me.name} the pod network {', '.join(me.pod_cidrs)}, and its pods have addresses of {', '.join(own)}: "
        "no other node has a route to them (the node was deleted, and has registered anew)"
    )
    remedy = (
        f"{again}; then restart its pods: kb node drain {me.name} and kb node uncordon {me.name}, on a control plane"
    )
    return Finding(NAME, ERROR, text, remedy)


def _judge_routes(patient: Patient, me: route_plan.Peer, *, nodes: list[route_plan.Peer]) -> Iterator[Finding]:
    host = patient.host
    interfaces = node_routes.read_interfaces(host)
    backend = route_keeper.read_settings(host, patient.paths).backend
    wanted = route_plan.plan_network(nodes, me, interfaces=interfaces, backend=backend)
    yield from _judge_mtu(host, me, interfaces=interfaces)
    there = node_routes.read_network(host).routes
    missing = sorted(route.pod_cidr for route in wanted.routes - there)
    lost = {cidr: node.name for node in nodes for cidr in node.pod_cidrs if cidr in missing}
    state = host.query(["systemctl", "is-active", pod_network.UNIT]).stdout.strip()
    if lost:
        named = " and ".join(f"node {name} ({cidr})" for cidr, name in lost.items())
        text = f"this node has no route to the pods of {named}" + (
            f", and {pod_network.UNIT}, which sets them, is {state}" if state != "active" else ""
        )
        log = f"journalctl -u {pod_network.UNIT} -n 20"
        yield Finding(NAME, ERROR, text, f"systemctl restart {pod_network.UNIT} (what it says: {log})")
    elif state not in ("active", ""):
        text = f"{pod_network.UNIT} is {state}: routes to nodes that come or go, and the rules for pods, are not kept"
        yield Finding(NAME, WARNING, text, f"systemctl restart {pod_network.UNIT}")
    yield from _judge_diverted(host, wanted.routes & there, me, nodes=nodes)


def _judge_mtu(host: Host, me: route_plan.Peer, *, interfaces: Sequence[route_plan.Interface]) -> Iterator[Finding]:
    """An interface of this machine's that takes smaller packets than those of its pods. What is larger is lost where nobody may fragment it."""
    underlay = route_plan.find_underlay(me, interfaces)
    links = step_aside.parse_ip_output(host.query(["ip", "-json", "link", "show", "dev", step_aside.BRIDGE]).stdout)
    mtu = next((int(link["mtu"]) for link in links if isinstance(link.get("mtu"), int)), 0)
    if underlay is not None and mtu > underlay.mtu:
        text = f"pods on this node send packets of {mtu} bytes ({step_aside.BRIDGE}), and {underlay.name} takes {underlay.mtu}: larger ones are lost"
        remedy = f"set it back: ip link set {underlay.name} mtu {mtu}; if the network carries no more, give pods a smaller mtu (/etc/cni/net.d/{node_routes.CNI_FILE})"
        yield Finding(NAME, ERROR, text, remedy)


def _judge_diverted(  # noqa: PLR0917
    host: Host, routes: frozenset[route_plan.Route], me: route_plan.Peer, *, nodes: list[route_plan.Peer]
) -> Iterator[Finding]:
    """Routes of somebody else's that take packets for pods or nodes: a VPN client, or a bridge of containers, with the same addresses."""
    pods = {cidr: f"the pods of node {node.name} ({cidr})" for node in nodes for cidr in node.pod_cidrs}
    machines = {address: f"node {node.name} ({address})" for node in nodes for address in node.addresses}
    bridge = step_aside.read_bridge(host)
    kept = me.pod_cidrs if bridge is not None and bridge.ports else ()
    own = {route_plan.Route(cidr, "", step_aside.BRIDGE) for cidr in kept}
    direct = {route_plan.Route(route.gateway, "", route.device) for route in routes if route.gateway in machines}
    taken: dict[str, list[tuple[str, str]]] = {}
    for route, way in node_routes.read_diverted(host, sorted({*routes, *own, *direct}, key=str)):
        name = pods.get(route.pod_cidr) or machines.get(route.pod_cidr) or route.pod_cidr
        taken.setdefault(way.device, []).append((name, str(way)))
    for device, found in taken.items():
        names, ways = (dict.fromkeys(column) for column in zip(*found))
        goes = f"leave by {device}" if device else "are dropped"
        text = f"packets to {' and '.join(names)} {goes}: other routes than the pod network's take them ({', '.join(ways)})"
        remedy = (
            "have what sets them (a VPN client, another container engine) leave these addresses alone; until then: "
            + "; ".join(f"ip route del {way}" for way in ways)
        )
        yield Finding(NAME, ERROR, text, remedy)
