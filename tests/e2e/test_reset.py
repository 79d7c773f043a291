"""`kb reset` on real nodes takes back what the journal names, and nothing else: of a whole node, of a half-made one, of one
whose kubelet a package enabled."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from .lab.node import Node
from .test_continue import init, put, reset, strike
from .world.web import check_cluster_serves

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]

EVERYTHING = r"""cd / && find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /var/log -o -path /var/tmp \
  -o -path /var/lib/containerd -o -path /var/lib/systemd -o -path /root \) -prune -o -printf '%p %y %m %u:%g %l\n' | sort
find /var/lib/kubelet /var/lib/etcd -xdev -printf '%p %y %m %u:%g %l\n' | sort -u
find /etc /usr/local -xdev -type f -exec sha256sum {} +"""
LEFT_BY_OTHERS = {
    "/usr/lib/modules": "kube-proxy's manifest has the kubelet make this folder",
    "/usr/libexec/kubernetes": "the controller-manager's manifest has the kubelet make this folder",
    "/usr/libexec/kubernetes/kubelet-plugins": "",
    "/usr/libexec/kubernetes/kubelet-plugins/volume": "",
    "/usr/libexec/kubernetes/kubelet-plugins/volume/exec": "",
    "/var/lib/cni": "containerd's CNI library notes its results here",
    "/var/lib/cni/results": "",
}


def list_everything(node: Node) -> set[str]:
    return set(node.run(EVERYTHING, timeout=300).stdout.splitlines())


def assert_as_before(node: Node, before: set[str]) -> None:
    after = list_everything(node)
    assert sorted(before - after) == []
    more = sorted(line for line in after - before if line.split()[0] not in LEFT_BY_OTHERS)
    assert more == []


def test_reset_leaves_nothing_and_loses_nothing(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    bare = list_everything(node)
    refused = node.run("python3 kb.pyz reset --force", check=False)
    assert list_everything(node) == bare
    assert refused.code == 4 and "code:   nothing-to-reset" in refused.output
    node.run("mkdir -p /etc/sysctl.d && echo '# mine' >/etc/sysctl.d/90-kb.conf && chmod 640 /etc/sysctl.d/90-kb.conf")
    before = list_everything(node)
    init(node)
    node.wait_node_ready()
    node.run(
        "mkdir -p /root/data /var/lib/kubelet/some/dir && echo precious >/root/data/file"
        " && mount --bind /root/data /var/lib/kubelet/some/dir"
    )
    done = reset(node)
    assert node.read("/root/data/file") == "precious\n"
    assert node.read("/var/lib/kubelet/some/dir/file") == "precious\n", done.output
    node.run("umount /var/lib/kubelet/some/dir && rmdir /var/lib/kubelet/some/dir /var/lib/kubelet/some")
    assert_as_before(node, before)
    assert node.run("pgrep -l 'kube|etcd'", check=False).stdout == ""
    init(node)
    node.wait_node_ready()
    check_cluster_serves(node)


def test_reset_of_a_prepared_node_gives_the_unit_back(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """A kubelet that its package enabled stays enabled; etcd's own folder goes, what lies beside it stays."""
    node = make_node("cp1", version=k8s_version, prepared=True)
    put(node, kb_pyz, cluster={"etcd": {"local": {"dataDir": "/var/lib/etcd/blue"}}})
    node.run("mkdir -p /var/lib/etcd/green && echo mine >/var/lib/etcd/green/db && echo own >/var/lib/kubelet/own.yaml")
    before = list_everything(node)
    init(node)
    reset(node)
    assert_as_before(node, before)


@pytest.mark.parametrize("phase", [1, 2, 13, 20, 22])
def test_reset_of_a_half_made_node(make_node: MakeNode, kb_pyz: Path, k8s_version: str, phase: int) -> None:
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    before = list_everything(node)
    strike(node, phase=phase, delay_s=0.05)
    node.run("python3 kb.pyz reset --force", timeout=300)
    assert_as_before(node, before)
    if phase == 22:
        init(node)
        node.wait_node_ready()
