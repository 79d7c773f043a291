"""What the golden tests share: the files below tests/golden, and the configuration that they were made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from kubeup.config.types import ClusterConfiguration, LocalAPIEndpoint, Networking, NodeConfig, NodeRegistration
from kubeup.node.static_pods import NodeFacts
from kubeup.releases import RELEASES, Release

GOLDEN = Path(__file__).parent.parent / "golden"
REAL_VERSIONS = {34: "v1.34.9", 35: "v1.35.6", 36: "v1.36.3"}
"""The minors whose files real kubeadm made, and its version."""
VERSIONS = {**{minor: f"v1.{minor}.0" for minor in RELEASES}, **REAL_VERSIONS}
DEBIAN = NodeFacts(
    host_ca_dirs=("/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
)
KUBELET_DOCUMENT = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "failCgroupV1": False,
}


def golden_config(minor: int = 35, **changes: Any) -> NodeConfig:
    """The configuration of tests/golden/1.<minor>; `changes` are fields of ClusterConfiguration."""
    cluster = ClusterConfiguration(VERSIONS[minor], networking=Networking(pod_subnet="10.244.0.0/16"))
    return NodeConfig(
        cluster=replace(cluster, **changes),
        node=NodeRegistration("cp1"),
        local_api_endpoint=LocalAPIEndpoint("10.77.0.11"),
        kubelet=KUBELET_DOCUMENT,
    )


def release_of(minor: int) -> Release:
    return RELEASES[minor]


def golden_text(minor: int, name: str) -> str:
    return (GOLDEN / f"1.{minor}" / name).read_text()
