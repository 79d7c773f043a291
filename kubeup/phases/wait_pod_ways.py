"""Waits until a pod on this node reaches what all pods need: the cluster's DNS and API, and the endpoints of their Services."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from kubeup.engine.run import Run
from kubeup.errors import HostError, KbError
from kubeup.lazy_modules import lazily
from kubeup.phases.waits import Wait
from kubeup.trouble import Trouble

with lazily:
    from kubeup.cluster import objects
    from kubeup.diagnosis import container_trouble, signs
    from kubeup.network import node_routes, pod_view, pod_walks

POD_WAYS_TIMEOUT_S = 60
"""How long a pod may fail to reach what the node reaches. A new node's rules and routes follow within seconds."""


def wait_for_pod_ways(ctx: Run, ways: pod_view.Ways) -> None:
    """Wait until a pod on this node reaches what all pods need. What the node itself reaches proves nothing about its pods.

    Raises ClusterError (not-healthy) that names the broken link.
    """
    if not ways.services:
        return
    cut: Optional[Trouble] = None

    def find_cause() -> Optional[signs.BrokenLink]:
        return signs.BrokenLink(cut.what, cut.cause, cut.remedy, link="pod-way") if cut else None

    with pod_view.OwnNamespace(ctx.host, ctx.paths, socket=ctx.config.node.cri_socket) as own:
        find_place = own.path if node_routes.is_own_network(ctx.host, ctx.paths) else lambda: first_pod(ctx)

        def look() -> str:
            nonlocal cut
            try:
                place = find_place()
                cut = find_pod_cut(ctx, place, ways=ways) if place else None
            except HostError as error:
                cut = Trouble(error.what, error.cause, error.remedy)
            return cut.what if cut else ""

        Wait(ctx, POD_WAYS_TIMEOUT_S, "a pod's way to the cluster", find_cause=find_cause).until(look)


def find_pod_cut(ctx: Run, place: Path, *, ways: pod_view.Ways) -> Optional[Trouble]:
    """The first broken link from a pod's network namespace to what all pods need, as `kb doctor` finds it."""

    def find_lost_rules() -> Optional[Trouble]:
        return container_trouble.find_lost_rules(ctx.host, ctx.config.node.cri_socket)

    cut = pod_walks.find_cut(ctx.host, place, ways=ways, find_lost_rules=find_lost_rules)
    if cut is None:
        return None
    servers: tuple[str, ...] = ()
    with contextlib.suppress(KbError):  # what is known has to do
        servers = objects.read_api_servers(ctx.api)
    more = [way for server in servers for way in pod_view.server_ways(f"https://{server}") if way not in ways.behind]
    known = dataclasses.replace(ways, behind=(*ways.behind, *more))
    return pod_walks.find_cut(ctx.host, place, ways=known, find_lost_rules=find_lost_rules) if more else cut


def first_pod(ctx: Run) -> Optional[Path]:
    """The network namespace of an existing pod that can be judged by; None if there is none."""
    is_own = node_routes.is_own_network(ctx.host, ctx.paths)
    found = pod_view.find_namespaces(ctx.host, ctx.config.node.cri_socket, limit=1, is_own_network=is_own)
    return found[0] if found else None


def plan_ways(ctx: Run, dns_address: str, *, behind: Iterable[pod_view.Way] = ()) -> pod_view.Ways:
    """The Services of the cluster's DNS (unless its address is "") and API, and their known endpoints."""
    name = f"kubernetes.default.svc.{ctx.config.cluster.networking.dns_domain}"
    services = pod_view.service_ways(dns_address, ctx.config.cluster.service_address(1))
    return pod_view.Ways(name, services, (*behind, *pod_view.server_ways(ctx.api.server)))
