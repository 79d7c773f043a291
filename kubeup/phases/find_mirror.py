"""The URL of the cluster's mirror, and how a node verifies it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeup.addresses import join_host_port
from kubeup.config.types import NodeConfig
from kubeup.engine.run import Run
from kubeup.lazy_modules import lazily
from kubeup.trust import Anchors

with lazily:
    from kubeup.airgap import containerd_hosts

if TYPE_CHECKING:
    from kubeup.airgap.containerd_hosts import Mirror

MIRROR_PORT = 5000


def mirror_url(config: NodeConfig) -> str:
    """The configured URL of the mirror, or else that of the mirror on this control plane node."""
    if config.kb.mirror.endpoint:
        return config.kb.mirror.endpoint.rstrip("/")
    address = config.local_api_endpoint.advertise_address
    return f"https://{join_host_port(address, MIRROR_PORT)}"


def mirror_of(ctx: Run) -> Mirror:
    """The mirror, verified once per run. Raises HostError: mirror-not-trusted, mirror-unreachable."""
    if ctx.found.mirror is None:
        config = ctx.config
        path = ctx.paths.pki / "ca.crt"  # a mirror of kb's own has a certificate of this authority
        own = ctx.host.read_text(path) if config.is_control_plane and ctx.host.exists(path) else ""
        found_ca = config.join.ca_pem if config.join else own
        ca = Anchors.given(found_ca) if found_ca else None
        ctx.found.mirror = containerd_hosts.find_mirror(
            ctx.host, mirror_url(config), ca_hash=config.kb.mirror.ca_hash, cluster_ca=ca
        )
    return ctx.found.mirror
