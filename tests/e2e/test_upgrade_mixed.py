"""kb and real kubeadm upgrade one cluster between them: each goes on where the other stopped, also in the middle of a node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import pytest

from .lab.config import lab_config
from .lab.control_planes import (
    ENDPOINT,
    IGNORE,
    KEY,
    check_members,
    join_control_plane,
    lead_endpoint,
    print_join,
    start_cluster,
    wait_well,
)
from .lab.node import Node, wait_until
from .lab.settings import find_release
from .lab.static_pods import COMPONENTS, MANIFESTS, fill_store, read_stored
from .test_static_pods import told
from .test_upgrade import APPLY, NODE, check_version, offer
from .test_upgrade_under_the_name_kubeadm import RESTS
from .world.podnet import connect_nodes

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
NEXT = "1.36"


def make_by_kubeadm(make_node: MakeNode, version: str, names: Sequence[str]) -> list[Node]:
    """Control planes of one cluster, each made by real kubeadm."""
    nodes = [make_node(name, version=version, kubeadm=True, containerd="2.1") for name in names]
    first = nodes[0]
    lead_endpoint(first)
    first.write(
        "/root/init.yaml",
        lab_config(version, address=first.address, init={"certificateKey": KEY}, endpoint=ENDPOINT),
    )
    first.run(f"kubeadm init --config init.yaml --upload-certs {IGNORE}", timeout=600)
    for node in nodes[1:]:
        words = print_join(first, f"--certificate-key {KEY}", program="kubeadm")
        node.run(f"kubeadm {words} {IGNORE}", timeout=600)
    connect_nodes(nodes)
    for node in nodes:
        first.wait_node_ready(node.name)
    fill_store(first)
    return nodes


def kubeadm_upgrades(node: Node, words: str) -> None:
    """Real kubeadm of the next version, and then the operator's part: kubelet and kubectl, and a restart."""
    folder = node.offer_release(NEXT)
    told(node.run(f"{folder}/kubeadm upgrade {words} {RESTS}", timeout=900))
    for name in ("kubelet", "kubectl"):
        node.run(f"p=$(command -v {name}); cp {folder}/{name} $p.new && mv $p.new $p")
    former = list_static(node)
    node.run("systemctl restart kubelet")
    # a kubelet of another minor starts all static pods again
    wait_until(
        lambda: not former & list_static(node) and len(list_static(node)) == len(former),
        what="new static pods",
        timeout_s=120,
    )


def list_static(node: Node) -> set[str]:
    """The running containers of the static pods."""
    return set(node.run(f"crictl ps -q --name '^({'|'.join(COMPONENTS)})$'").stdout.split())


def wait_for_kubelet(server: Node, node: Node) -> str:
    """Until the cluster has the node as Ready with the next version, which it returns."""
    version = find_release(NEXT).version

    def is_there() -> bool:
        return bool(server.get(f"node {node.name}")["status"]["nodeInfo"]["kubeletVersion"] == version)

    wait_until(is_there, what=f"kubelet {version} of {node.name}", timeout_s=120)
    server.wait_node_ready(node.name)
    return version


def expect_all(nodes: Sequence[Node], stored: set[str]) -> None:
    """Every node at the next version, with the addons; nothing lost; and neither tool finds anything left to do."""
    first, version = nodes[0], find_release(NEXT).version
    for node in nodes:
        check_version(node, version)
    images = first.kubectl("-n kube-system get deploy,ds -o jsonpath={..image}")
    assert f"kube-proxy:{version}" in images and f"coredns:{find_release(NEXT).facts.coredns}" in images, images
    config = first.get("configmap kubeadm-config -n kube-system")["data"]["ClusterConfiguration"]
    assert f"kubernetesVersion: {version}" in config
    assert stored <= read_stored(first)
    check_members(first, [node.name for node in nodes])
    for node in nodes:
        again = told(node.run(f"{NODE} --yes", timeout=300))
        assert "run with these manifests already" in again


def test_kubeadm_on_the_first_kb_on_the_second(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    nodes = make_by_kubeadm(make_node, k8s_version, ["c1", "c2"])
    c1, c2 = nodes
    stored = read_stored(c1)
    kubeadm_upgrades(c1, f"apply {find_release(NEXT).version} -y")
    wait_for_kubelet(c1, c1)
    for node in nodes:
        node.scp(kb_pyz, "/root/kb.pyz")
    offer(c2, NEXT)
    told(c2.run(f"{NODE} --yes", timeout=900))
    expect_all(nodes, stored)


def test_kb_on_the_first_kubeadm_on_the_second(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    nodes = start_cluster(make_node, kb_pyz, k8s_version, names=["c1", "c2"])
    c1, c2 = nodes
    join_control_plane(c2, c1)
    c1.wait_node_ready("c2")
    fill_store(c1)
    stored, version = read_stored(c1), offer(c1, NEXT)
    told(c1.run(f"{APPLY} {version} --yes", timeout=900))
    kubeadm_upgrades(c2, "node")
    wait_for_kubelet(c1, c2)
    told(c1.run(f"{APPLY} {version} --yes", timeout=600))  # real kubeadm leaves addons that were edited to others
    expect_all(nodes, stored)


def make_one(make_node: MakeNode, kb_pyz: Path, version: str) -> Node:
    """A control plane of real kubeadm's, with all of the next release but its kubelet."""
    (node,) = make_by_kubeadm(make_node, version, ["c1"])
    node.kubectl("taint node --all node-role.kubernetes.io/control-plane-")  # kubeadm has a Job run
    node.scp(kb_pyz, "/root/kb.pyz")
    node.offer_release(NEXT)
    return node


def test_kb_goes_on_where_kubeadm_was_killed(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Once etcd is new, and once the API server is."""
    node = make_one(make_node, kb_pyz, k8s_version)
    version, stored = find_release(NEXT).version, read_stored(node)
    node.save_disk()
    lead_endpoint(node)
    wait_well(node)
    for component in ("etcd", "kube-apiserver"):
        tag = find_release(NEXT).facts.etcd[-1] if component == "etcd" else version
        until = f"until grep -q 'image: .*:{tag}' {MANIFESTS}/{component}.yaml; do sleep 0.05; done"
        kubeadm = f"/opt/kubernetes/{version}/kubeadm upgrade apply {version} -y {RESTS}"
        node.run(f"{kubeadm} >killed.log 2>&1 & p=$!; {until}; kill -9 $p; true", timeout=600)
        print(f"real kubeadm was killed when the new {component} was in place", flush=True)
        offer(node, NEXT)
        told(node.run(f"{APPLY} {version} --yes", timeout=900))
        expect_all([node], stored)
        node.restore_disk()
        lead_endpoint(node)
        wait_well(node)


def test_kubeadm_goes_on_where_kb_ended(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kb has swapped the static pods, and neither the cluster's configuration nor the kubelet is new."""
    node = make_one(make_node, kb_pyz, k8s_version)
    version, stored = find_release(NEXT).version, read_stored(node)
    told(node.run(f"{APPLY} {version} --yes --skip-phases upload-config,kubelet-config,addon", timeout=900))
    kubeadm_upgrades(node, f"apply {version} -y")
    wait_for_kubelet(node, node)
    expect_all([node], stored)
