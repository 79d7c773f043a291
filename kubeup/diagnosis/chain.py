"""The chain from the kubelet to a healthy component: code that waits asks here for the first broken link."""

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
from kubeup.node.crictl import unit_of


def find_runtime_trouble(host: Host, cri_socket: str) -> Optional[BrokenLink]:
    """Whether the container runtime accepts requests."""
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
    """Whether the runtime is stopped and nothing is about to start it: a restart also removes its socket for a
    moment."""
    return status.problem in ("no-socket", "refused") and services.is_stopped(host, unit_of(status.socket))


def find_broken_link(
    host: Host,
    cri_socket: str,
    *,
    components: tuple[str, ...] = (),
    unhealthy: Optional[Mapping[str, str]] = None,
) -> Optional[BrokenLink]:
    """The first broken link on the way to running components; None if everything visible is fine.

    components: in dependency order (etcd before the API server). unhealthy: what the probes of some of them report; a
    running component is examined only if it is listed here.
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
