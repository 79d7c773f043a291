"""Waits until the kubelet has registered this machine's Node object."""

from __future__ import annotations

import datetime
from typing import Any

from kubeup.engine.run import Run
from kubeup.errors import ClusterError
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.waiting import wait_for
from kubeup.trouble import advise

with lazily:
    from kubeup.cluster import api, probes
    from kubeup.diagnosis import kubelet_trouble

NODE_POLL_S = 0.25
LOOK_EVERY_S = 4
"""A kubelet registers its node within two seconds. At this interval kb looks for why it has not."""


def node_path(ctx: Run) -> str:
    return api.path_of("Node", ctx.config.node.name)


def is_renewed(lease: api.Object, since: datetime.datetime) -> bool:
    """Whether a node's Lease was renewed after `since`."""
    text = str((lease.get("spec") or {}).get("renewTime") or "")
    try:
        return probes.parse_time(text) >= since.replace(microsecond=0)
    except ValueError:
        return False


def wait_for_node(ctx: Run) -> api.Object:
    """Wait until the kubelet has registered this machine's Node object; return it.

    Raises ClusterError (node-not-registered) with the kubelet's state.
    """
    name, looked, told = ctx.config.node.name, 0.0, ""
    node: Any = None

    def look() -> str:
        nonlocal node
        node = ctx.api.get(node_path(ctx))
        # the kubelet's first full report sets the label
        is_there = node and "kubernetes.io/hostname" in (node["metadata"].get("labels") or {})
        return "" if is_there else "the kubelet has not registered it yet"

    def meanwhile(_: str, elapsed: float) -> None:
        nonlocal looked, told
        if elapsed - looked > LOOK_EVERY_S:
            looked = elapsed
            link = kubelet_trouble.find_kubelet_trouble(ctx.host) or kubelet_trouble.find_registration_trouble(ctx.host)
            if link and link.what != told:
                told = link.what
                ctx.report.note(f"{advise(link)} (still waiting)")

    wait_for(
        ctx.host,
        look,
        goal=f"node {name}",
        timeout_s=ctx.config.timeouts.kubernetes_api_call_s,
        tell=ctx.report.waiting,
        failure=lambda _, elapsed: _not_registered(ctx, elapsed),
        meanwhile=meanwhile,
        poll_s=NODE_POLL_S,
    )
    found: api.Object = node
    return found


def _not_registered(ctx: Run, elapsed: float) -> ClusterError:
    name = ctx.config.node.name
    state = services.read_state(ctx.host, "kubelet")
    others = [str(node["metadata"]["name"]) for node in ctx.api.list(api.path_of("Node"))]
    known = f"; the cluster's nodes are: {', '.join(sorted(others))}" if others else "; the cluster has no node"
    link = kubelet_trouble.find_registration_trouble(ctx.host) if state == "active" else None
    if link:
        cause, remedy = f"{link}{known}", link.remedy
    elif state == "active":
        cause = f"the kubelet runs but has not registered a node with this name{known}"
        remedy = f"see what it says: {services.say_log(ctx.host, 'kubelet')}"
    else:
        cause = f"the kubelet's service is {state}, so it registers no node{known}"
        remedy = f"see why it does not run: {services.say_log(ctx.host, 'kubelet')}"
    return ClusterError(
        f"node {name} is not registered after {elapsed:.0f} s", cause=cause, remedy=remedy, code="node-not-registered"
    )
