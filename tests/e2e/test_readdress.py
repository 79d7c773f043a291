"""`kb readdress` on real nodes: the address of the only control plane has changed, and that of one of three."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import pytest

from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, check_members, code_of, join_worker, read_members
from .lab.node import Node, wait_until
from .lab.static_pods import fill_store, read_stored
from .test_static_pods import make_three

pytestmark = pytest.mark.k8s_versions("1.35", "1.36")
MakeNode = Callable[..., Node]
NEW = "10.77.0.150"


def move_address(node: Node, new: str) -> str:
    """Give the node another address in place of its own, as its administrator does; returns the former one."""
    old = node.address
    route = node.exec("ip route show default").stdout.strip()
    node.exec(f"ip address del {old}/24 dev eth0 && ip address add {new}/24 dev eth0")
    if route:
        node.exec(f"ip route replace {route}", check=False)
    node.address = new
    return old


def renewed(node: Node, name: str) -> str:
    return str(node.get(f"lease {name} -n kube-node-lease")["spec"]["renewTime"])


def counted(node: Node) -> set[str]:
    """What the test made, by name and UID. kb itself moves CoreDNS' pods when a worker comes."""
    return {one for one in read_stored(node) if "counted-" in one}


def check_address(node: Node, name: str, address: str) -> None:
    found = node.get(f"node {name}")["status"]["addresses"]
    assert {one["address"] for one in found if one["type"] == "InternalIP"} == {address}


def test_the_only_control_plane(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node, worker = (make_node(name, version=k8s_version) for name in ("cp1", "w1"))
    for each in (node, worker):
        each.scp(kb_pyz, "/root/kb.pyz")
    kb = {"podNetwork": {"plugin": "bridge"}}
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, kb=kb))
    node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=900)
    join_worker(worker, node)
    fill_store(node)
    stored = counted(node)
    refused = node.run(f"{KB} readdress {node.address} {NEW}", check=False)
    assert code_of(refused) == "address-not-here", refused.output

    old = move_address(node, NEW)
    told = node.run(f"{KB} readdress {old} {NEW}", timeout=900)
    print(told.output, flush=True)
    assert f"on w1: kb readdress {old} {NEW}" in told.output.replace(KB, "kb")
    assert counted(node) == stored
    node.wait_node_ready()
    check_address(node, "cp1", NEW)
    (member,) = read_members(node)
    assert NEW in json.dumps(member) and old not in json.dumps(member)
    files = "/etc/kubernetes/*.conf /etc/kubernetes/manifests/*.yaml /var/lib/kubelet/*.yaml /var/lib/kubelet/*.env"
    left = node.run(f"grep -lF {old} {files}", check=False)
    assert left.stdout == "", left.stdout
    for name in ("kube-public/cluster-info", "kube-system/kube-proxy", "kube-system/kubeadm-config"):
        space, _, one = name.partition("/")
        assert old not in node.kubectl(f"-n {space} get configmap {one} -o yaml"), name
    wait_until(
        lambda: old not in node.kubectl("get endpointslice kubernetes -o yaml"),
        what="the former endpoint to go",
        timeout_s=60,
    )
    again = node.run(f"{KB} readdress {old} {NEW}", timeout=600)
    assert counted(node) == stored, again.output

    before = renewed(node, "w1")
    followed = worker.run(f"{KB} readdress {old} {NEW}", timeout=300)
    print(followed.output, flush=True)
    wait_until(lambda: renewed(node, "w1") != before, what="the worker to call the new address", timeout_s=120)
    node.wait_node_ready("w1")
    node.wait_pods_ready("kube-system", "k8s-app=kube-proxy")
    node.wait_pods_ready("kube-system", "k8s-app=kube-dns")
    other = make_node("w2", version=k8s_version)
    other.scp(kb_pyz, "/root/kb.pyz")
    join_worker(other, node)


def test_one_of_three(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    nodes = make_three(make_node, kb_pyz, k8s_version)
    node, other = nodes[2], nodes[0]
    fill_store(other, 50)
    stored = counted(other)
    old = move_address(node, NEW)
    told = node.run(f"{KB} readdress {old} {NEW}", timeout=900)
    print(told.output, flush=True)
    wait_until(
        lambda: all(one["state"] == "serves" for one in read_members(other)),
        what="three members that serve",
        timeout_s=120,
    )
    check_members(other, [each.name for each in nodes])
    found = next(one for one in read_members(other) if one["name"] == node.name)
    assert NEW in json.dumps(found) and old not in json.dumps(found)
    assert counted(node) == stored and counted(other) == stored
    check_address(other, node.name, NEW)
    for each in nodes[:2]:
        if f"on {each.name}: " in told.output:
            each.run(f"{KB} readdress {old} {NEW}", timeout=300)
    check_members(other, [each.name for each in nodes])
    for each in nodes:
        other.wait_node_ready(each.name)
