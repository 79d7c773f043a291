"""The connections that --air-gapped allows."""

from __future__ import annotations

from kubeup.addresses import host_of
from kubeup.config.types import NodeConfig
from kubeup.lazy_modules import lazily
from kubeup.machine.fence import Fence

with lazily:
    from kubeup.airgap import containerd_hosts


def plan_fence(config: NodeConfig) -> Fence:
    """Allow the cluster, the mirror, and this machine."""
    names = {config.node.name, config.local_api_endpoint.advertise_address}
    cluster = config.cluster
    if cluster.control_plane_endpoint:
        names.add(host_of(cluster.control_plane_endpoint))
    if config.kb.mirror.endpoint:
        names.add(containerd_hosts.Mirror(config.kb.mirror.endpoint).host)
    if cluster.external_etcd:
        names.update(containerd_hosts.Mirror(url).host for url in cluster.external_etcd.endpoints)
    if config.join and config.join.server:
        names.add(containerd_hosts.Mirror(config.join.server).host)
    return Fence(frozenset(names), (*cluster.service_cidrs(), *cluster.pod_cidrs()))
