"""The manifests of this node's static pods: rendered with what is special about the machine, and patched.

The rules are in static_pods.py and patches.py. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from kubeup.config.types import NodeConfig
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.releases import find_release

with lazily:
    from kubeup.node import patches, pki, static_pods


def render_own(
    host: Host, paths: Paths, *, config: NodeConfig, component: str, members: Sequence[tuple[str, str]] = ()
) -> static_pods.Pod:
    """A component's pod for the version in `config`, with patches applied. members: the (name, peer URL) pairs of etcd's initial
    cluster."""
    node = static_pods.NodeFacts(
        host_ca_dirs=static_pods.probe_host_ca_dirs(host),
        has_external_ca=component == "kube-controller-manager" and pki.is_external_ca(host, paths),
        etcd_members=members,
    )
    release = find_release(config.cluster.kubernetes_version)
    pod = static_pods.render_pod(component, config, release=release, node=node)
    return patches.read_patches(host, config.patches_directory).apply(component, pod)
