"""The route keeper: `kb routes`, which runs on every node of a cluster with the bridge pod network.

In each round it ensures this node's routes to the pods of other nodes (route_plan.py, node_routes.py), and the rule that masquerades
pod traffic leaving the cluster (masquerade.py). It steps aside for another CNI. kubeadm has no counterpart.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Optional

from kubeup.cluster import dns_spread
from kubeup.cluster.api import Api, path_of, read_identity
from kubeup.errors import HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.host import Host
from kubeup.network import step_aside
from kubeup.network.keeper import POLL_S, RETRY_S, Keeper, Round, run
from kubeup.network.masquerade import ensure_masquerade
from kubeup.network.node_routes import CNI_FILE, ensure_network, find_first_cni_config, query, read_unrouted, withdraw
from kubeup.network.route_plan import VXLAN, parse_interfaces, parse_peers, plan_network, plan_service_routes
from kubeup.paths import Paths
from kubeup.shapes import fit

NODES_PER_POLL_S = 10
"""In large clusters the keeper polls less often, because a list of a thousand nodes takes megabytes."""


@frozen
class RouteSettings:
    """The keeper's settings, which the phase pod-network writes to /var/lib/kb/pod-network.json."""

    node_name: str
    pod_cidrs: tuple[str, ...]
    """networking.podSubnet: pod traffic to these is not masqueraded."""
    backend: str = "auto"
    """auto | route | vxlan"""
    service_cidrs: tuple[str, ...] = ()
    """networking.serviceSubnet: a node needs some route to these."""


# ---- settings


def settings_path(paths: Paths) -> Path:
    return paths.state_dir / "pod-network.json"


def render_settings(settings: RouteSettings) -> str:
    stored = {
        "node": settings.node_name,
        "podCIDRs": list(settings.pod_cidrs),
        "serviceCIDRs": list(settings.service_cidrs),
        "backend": settings.backend,
    }
    return json.dumps(stored, indent=2) + "\n"


def read_settings(host: Host, paths: Paths) -> RouteSettings:
    """Read the settings. Raises HostError (pod-network-settings) if the file is missing or incomplete."""
    path = settings_path(paths)
    try:
        text = host.read_text(path) if host.exists(path) else "{}"
        shape = {"node": str, "podCIDRs": [_check_network], "serviceCIDRs": [_check_network], "backend": str}
        stored = fit(parse_json(text, "it"), shape, what="it")
        services = tuple(stored.get("serviceCIDRs", ()))  # an older kb wrote none
        return RouteSettings(stored["node"], tuple(stored["podCIDRs"]), stored.get("backend", "auto"), services)
    except (ValueError, KeyError) as error:
        raise HostError(
            f"no settings for the route keeper in {path}",
            cause="the file is written by the phase pod-network of kb init and kb join, and is missing or damaged",
            remedy="write it: kb init phase pod-network, or on a worker: kb join phase pod-network",
            code="pod-network-settings",
        ) from error


def _check_network(text: str) -> None:
    ipaddress.ip_network(text, strict=False)


# ---- the loop


def keep_round(host: Host, api: Callable[[], Api], *, settings: RouteSettings, paths: Paths) -> Round:
    """Run one round: compare the node with the cluster, and fix the node.

    Raises KbError if the cluster does not answer; then nothing is changed.
    """
    first = find_first_cni_config(host, paths)
    if first != CNI_FILE:
        withdraw(host)
        return _step_aside(host, first, paths=paths)
    # resourceVersion=0: the API server answers from its cache, without a read from etcd
    listed = api().get(f"{path_of('Node')}?resourceVersion=0") or {}
    nodes = parse_peers(listed.get("items") or [])
    me = next((node for node in nodes if node.name == settings.node_name), None)
    wait_s = max(POLL_S, len(nodes) / NODES_PER_POLL_S)
    if me is None or not me.pod_cidrs:
        what = "is not registered" if me is None else "has no podCIDR yet"
        return Round(f"node {settings.node_name} {what}: nothing was changed", POLL_S)
    links = query(host, "ip", "-json", "address", "show")
    interfaces = parse_interfaces(links)
    wanted = plan_network(nodes, me, interfaces=interfaces, backend=settings.backend)
    services = plan_service_routes(read_unrouted(host, settings.service_cidrs), me, interfaces=interfaces)
    every_cidr = [*settings.pod_cidrs, *(cidr for node in nodes for cidr in node.pod_cidrs)]
    with_services = replace(wanted, routes=wanted.routes | services)
    failures = [
        *wanted.problems,
        *(step_aside.raise_bridge(host) if step_aside.is_down(links) else ()),
        *ensure_network(host, with_services),
        *ensure_masquerade(host, me.pod_cidrs, cluster=every_cidr),
    ]
    if failures:
        return Round("; ".join(failures), RETRY_S)
    tunnelled = sum(route.device == VXLAN for route in wanted.routes)
    text = f"{len(wanted.routes) - tunnelled} routes and {tunnelled} VXLAN ways to {len(nodes) - 1} nodes"
    if services:
        text += f"; a route to Services ({', '.join(sorted(route.pod_cidr for route in services))}), which had none"
    return Round(text, wait_s)


def _step_aside(host: Host, first: str, *, paths: Paths) -> Round:
    """Do what is left to do if another network is used. Without cbr0 nothing is left, and the cluster is not asked."""
    taken = f"the runtime takes {paths.cni_conf / first}" if first else "no CNI configuration is there"
    text = f"stepped aside: {taken}, not {CNI_FILE}"
    bridge = step_aside.read_bridge(host) if first else None
    if bridge is None:
        return Round(text)
    try:
        # before the bridge is removed, because it shows that pods may still be in kb's network
        moved = dns_spread.follow_network(host, first, paths=paths)
    except KbError as error:
        return Round(f"{text}; CoreDNS was not restarted yet: {error}", RETRY_S)
    left = step_aside.retire_bridge(host, bridge)
    return Round("; ".join(filter(None, (text, moved, left))), RETRY_S)


def keep_routes(host: Host, *, log: Callable[[str], None], once: bool = False, paths: Optional[Paths] = None) -> None:
    """Run `kb routes`."""
    places = paths or Paths()

    def round_of_routes() -> Round:
        settings = read_settings(host, places)
        return keep_round(
            host, lambda: connect(host, places.kubeconfig("kubelet.conf")), settings=settings, paths=places
        )

    keeper = Keeper("kb routes", round_of_routes, stays="the routes stay as they are")
    run(keeper, host, paths=places, log=log, once=once)


def connect(host: Host, kubeconfig: Path) -> Api:
    return Api(host, read_identity(host, kubeconfig), retry_s=2)
