"""Several network cards, no default route, Vagrant's NAT: which address is taken, that the choice is said with its
reason, and that the API server, etcd, the kubelet and the kubeconfigs agree on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.config import lab_config
from .lab.node import Node, wait_until
from .test_init_options import BRIDGE, command_line, init, init_again_is_a_no_op, last_flag, openssl, put
from .world.web import check_cluster_serves

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
PRIVATE = "192.168.56.11"
NAT = "10.0.2.15"


def add_card(node: Node, name: str, address: str) -> None:
    """A further network card with an address of its own; its cable leads to nowhere."""
    node.run(
        f"ip link add {name} type veth peer name far-{name} && ip address add {address}/24 dev {name} nodad"
        f" && ip link set {name} up && ip link set far-{name} up"
    )


def config_of(node: Node, address: str = "") -> str:
    """Documents for init that leave the choice of the address to kb, unless one is given."""
    endpoint: dict[str, Any] = {"advertiseAddress": address} if address else {"bindPort": 6443}
    return lab_config(node.release.minor, address=address, init={"localAPIEndpoint": endpoint}, kb=BRIDGE)


def check_all_agree(node: Node, address: str) -> None:
    """Every program and file that names this node's address names the same one."""
    assert last_flag(command_line(node, "kube-apiserver"), "advertise-address") == address
    etcd = command_line(node, "etcd")
    for flag in ("listen-client-urls", "advertise-client-urls", "initial-advertise-peer-urls", "listen-peer-urls"):
        assert f"https://{address}:" in str(last_flag(etcd, flag)), flag
    found = node.get(f"node {node.name}")["status"]["addresses"]
    assert [entry["address"] for entry in found if entry["type"] == "InternalIP"] == [address]
    assert f"https://{address}:6443" in node.read("/etc/kubernetes/kubelet.conf")
    for certificate in ("apiserver.crt", "etcd/server.crt", "etcd/peer.crt"):
        assert f"IP Address:{address}" in openssl(node, f"/etc/kubernetes/pki/{certificate}"), certificate
    assert node.get("endpoints kubernetes")["subsets"][0]["addresses"] == [{"ip": address}]


def test_the_card_of_the_default_route_is_taken_and_the_others_are_listed(node: Node, kb_pyz: Path) -> None:
    add_card(node, "eth1", PRIVATE)
    put(node, kb_pyz, config_of(node))
    said = init(node).stderr
    assert (
        f"advertise address {node.address}: eth0 holds the default route; this machine also has {PRIVATE} (eth1)"
        in said
    )
    assert f"the kubelet registers with {node.address} (--node-ip)" in said
    node.wait_node_ready()
    check_all_agree(node, node.address)
    check_cluster_serves(node)
    init_again_is_a_no_op(node)


def test_the_address_that_is_given_wins_everywhere(node: Node, kb_pyz: Path) -> None:
    add_card(node, "eth1", PRIVATE)
    put(node, kb_pyz, config_of(node, PRIVATE))
    said = init(node).stderr
    assert f"the kubelet registers with {PRIVATE} (--node-ip)" in said
    node.wait_node_ready()
    check_all_agree(node, PRIVATE)
    check_cluster_serves(node)


def test_vagrant_s_nat_address_is_passed_over(node: Node, kb_pyz: Path) -> None:
    """The first card of every VirtualBox machine has this one address, and the default route."""
    add_card(node, "eth1", NAT)
    node.run("ip route del default && ip route add default via 10.0.2.2 dev eth1 onlink")
    put(node, kb_pyz, config_of(node))
    said = init(node).stderr
    assert f"advertise address {node.address} (eth0): {NAT} (eth1, the default route) is the NAT address" in said
    node.wait_node_ready()
    check_all_agree(node, node.address)


def test_no_default_route(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """With one address there is nothing to choose; with two, kb asks instead of guessing. Nothing is written before."""
    node = make_node("cp1", version=k8s_version, default_route=False)
    add_card(node, "eth1", PRIVATE)
    put(node, kb_pyz, config_of(node))
    refused = init(node, check=False)
    assert refused.code == 2, refused.output
    assert re.search(rf"no default route .*{re.escape(node.address)} \(eth0\), {PRIVATE} \(eth1\)", refused.stderr)
    assert "--apiserver-advertise-address" in refused.stderr
    assert not node.exists("/etc/kubernetes/pki") and not node.exists("/var/lib/kb/state.json")
    node.run("ip link del eth1")
    said = init(node).stderr
    assert f"advertise address {node.address}: no default route, eth0 holds the only address" in said
    node.wait_node_ready()
    check_all_agree(node, node.address)
    check_cluster_serves(node)
    # without a route to Services the node's own programs would reach none: kb keeps one, also after a reboot
    wanted = "10.96.0.0/12 dev eth0 proto 199"
    assert wanted in node.run("ip route").stdout
    node.kill()
    node.start()
    node.wait_node_ready()
    wait_until(lambda: wanted in node.run("ip route").stdout, what="the route to Services", timeout_s=30)
    running = "crictl ps -q --label io.kubernetes.pod.namespace=kube-system 2>/dev/null | wc -l"
    wait_until(lambda: int(node.run(running).stdout) == 7, what="all containers to come back", timeout_s=120)
    init_again_is_a_no_op(node)
    node.run(f"ip route add default via {node.lab.gateway}")
    wait_until(lambda: wanted not in node.run("ip route").stdout, what="it to go for the default route", timeout_s=30)


def test_two_cards_with_one_address_are_refused(node: Node, kb_pyz: Path) -> None:
    add_card(node, "eth1", node.address)
    put(node, kb_pyz, config_of(node))
    refused = init(node, check=False)
    assert refused.code == 2, refused.output
    assert f"eth0 and eth1 both hold {node.address}" in refused.stderr
    assert not node.exists("/etc/kubernetes/pki")
