"""Other pod networks, the real ones, as an operator applies them to a cluster that has kb's.

flannel's image is made of its programs (flannel.py). Calico and Cilium come whole: $KB_E2E_BIN/<name>/ holds manifest.yaml, as
released or as rendered by the chart, and an OCI archive (*.tar) of each image that it names. Must not: know kb.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from ..lab.node import wait_until
from . import flannel

if TYPE_CHECKING:
    from ..lab.node import Node

# What systemd mounts by itself, except in a container, which a test node is; it takes no mount unit for it.
BPF_UNIT = """\
[Unit]
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount -t bpf bpf /sys/fs/bpf

[Install]
WantedBy=sysinit.target
"""


@dataclass(frozen=True)
class OtherNetwork:
    """A pod network, and by what one sees on a node that it is at work."""

    name: str
    conflist: str
    namespace: str
    daemonset: str
    device: str
    """Matches the link to which a node's routes lead for a pod of its own."""
    way: str
    """Matches the route to the pods of a node beyond a router, in `ip -4 route show`."""
    tunnel: str
    """The link that carries packets to a node beyond a router."""

    def explain_why_not(self) -> Optional[str]:
        """One line that says what is missing, or None when all is there."""
        if (_folder(self.name) / "manifest.yaml").is_file() and _archives(self.name):
            return None
        return f"it needs {self.name} itself: manifest.yaml and its images (*.tar) in $KB_E2E_BIN/{self.name}"

    def prepare(self, *nodes: Node) -> None:
        """Put its images into the store of each node, as if they had been pulled, and what else an ordinary node has."""
        for node in nodes:
            for archive in _archives(self.name):
                target = node.disk_path(f"/var/tmp/{archive.name}")
                shutil.copyfile(archive, target)
                node.exec(f"ctr --namespace k8s.io images import /var/tmp/{archive.name}", timeout=300)
                target.unlink()

    def apply(self, node: Node) -> None:
        """`kubectl apply` it, and wait until every node's copy is ready."""
        node.kubectl(f"apply --server-side --validate=false -f {self.copy_manifest(node)}", timeout=120)
        self.wait_ready(node)

    def copy_manifest(self, node: Node) -> str:
        """Put its manifest on a node; returns where."""
        return node.scp(_folder(self.name) / "manifest.yaml", f"/root/{self.name}.yaml")

    def wait_ready(self, node: Node) -> None:
        """Its DaemonSet is ready on every node that the cluster has."""

        def all_ready() -> bool:
            status = node.get(f"daemonset -n {self.namespace} {self.daemonset}").get("status") or {}
            return len(node.get("nodes")["items"]) == status.get("numberReady") == status.get("updatedNumberScheduled")

        wait_until(all_ready, what=f"{self.name} on every node", timeout_s=180, every_s=2)


class Flannel(OtherNetwork):
    """Its objects are rendered here, and its image is made of its programs."""

    def explain_why_not(self) -> Optional[str]:
        return flannel.explain_why_not()

    def prepare(self, *nodes: Node) -> None:
        for node in nodes:
            flannel.load_image(node)

    def apply(self, node: Node) -> None:
        flannel.apply_flannel(node)


class Cilium(OtherNetwork):
    """It wants the kernel's file system for BPF."""

    def prepare(self, *nodes: Node) -> None:
        for node in nodes:
            node.write("/etc/systemd/system/e2e-bpf.service", BPF_UNIT)
            node.run("systemctl daemon-reload && systemctl enable --now e2e-bpf.service")
        super().prepare(*nodes)


def _folder(name: str) -> Path:
    return Path(os.environ.get("KB_E2E_BIN", "")) / name


def _archives(name: str) -> list[Path]:
    return sorted(_folder(name).glob("*.tar"))


FLANNEL = Flannel(
    "flannel",
    conflist=flannel.CONFLIST,
    namespace=flannel.NAME,
    daemonset="kube-flannel-ds",
    device="cni0",
    way=r"dev flannel\.1 onlink",
    tunnel="flannel.1",
)
CALICO = OtherNetwork(
    "calico",
    conflist="/etc/cni/net.d/10-calico.conflist",
    namespace="kube-system",
    daemonset="calico-node",
    device="cali.*",
    way=r"dev vxlan\.calico onlink",
    tunnel="vxlan.calico",
)
CILIUM = Cilium(
    "cilium",
    conflist="/etc/cni/net.d/05-cilium.conflist",
    namespace="kube-system",
    daemonset="cilium",
    device="cilium_host",
    way=r"via \S+ dev cilium_host proto kernel",
    tunnel="cilium_vxlan",
)
NETWORKS: tuple[OtherNetwork, ...] = (FLANNEL, CALICO, CILIUM)
