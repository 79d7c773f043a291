"""The chain from the kubelet to a healthy component: whoever waits asks here for the first link that is broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

from kubeup.diagnosis.container_trouble import find_container_trouble
from kubeup.diagnosis.kubelet_trouble import find_healthz_trouble, find_kubelet_trouble
from kubeup.diagnosis.signs import THEN, BrokenLink
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.node import containers as node_containers
from kubeup.node import runtime


def find_runtime_trouble(host: Host, cri_socket: str) -> Optional[BrokenLink]:
    """Does the container runtime take work?"""
    status = runtime.probe_runtime(host, cri_socket)
    if status.is_ready or status.problem == "no-client":
        return None
    return BrokenLink(
        f"{status.label} does not serve this node",
        status.cause,
        f"{status.remedy}; {THEN}",
        is_final=status.problem in ("cri-disabled", "cri-failed") or _is_stopped(host, status),
        link="runtime",
    )


def _is_stopped(host: Host, status: runtime.RuntimeStatus) -> bool:
    """Nobody is about to start the runtime: a restart takes its socket away for a moment too."""
    unit = "crio" if "crio" in status.socket else "containerd"
    return status.problem in ("no-socket", "refused") and services.is_stopped(host, unit)


def find_broken_link(
    host: Host,
    cri_socket: str,
    *,
    components: tuple[str, ...] = (),
    unhealthy: Optional[Mapping[str, str]] = None,
) -> Optional[BrokenLink]:
    """The first broken link on the way to running components; None where all that can be seen is well.

    components: in the order in which one needs the other (etcd before the API server). unhealthy: what the probes of
    some of them see; a component that runs is looked at only then.
    """
    found = find_kubelet_trouble(host) or find_runtime_trouble(host, cri_socket) or find_healthz_trouble(host)
    if found or not components:
        return found
    containers = node_containers.list_containers(host, cri_socket)
    troubles = []
    for component in components:
        seen = (unhealthy or {}).get(component, "")
        trouble = find_container_trouble(host, cri_socket, component=component, containers=containers, unhealthy=seen)
        if trouble and trouble.is_final:
            return trouble
        if trouble:
            troubles.append(trouble)
    return troubles[0] if troubles else None
