"""flannel, Calico and Cilium, the real ones, applied to a cluster that runs with kb's own pod network: kb goes out of its way."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.config import lab_config
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .test_doctor import examine
from .test_init_options import init_again_is_a_no_op
from .test_join import IGNORE, KB, init, join, make_token, phases
from .test_pod_network import KB_CONFLIST, ROUND_S, ROUTES, serving, wait_gone
from .world.other_networks import CALICO, CILIUM, FLANNEL, NETWORKS, OtherNetwork
from .world.web import PAGE, apply, check_cluster_serves, render_pod, render_service

MakeNode = Callable[..., Node]
WEB2 = "http://web2.default.svc.cluster.local/"
SLEEP = ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 1; done"]
FETCHES = 20
RENAMED = f"{KB_CONFLIST}.cilium_bak"


@pytest.mark.k8s_versions("1.35", "1.36")
@pytest.mark.parametrize("network", NETWORKS, ids=[network.name for network in NETWORKS])
def test_another_network_takes_over(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, network: OtherNetwork, tmp_path: Path
) -> None:
    why = network.explain_why_not()
    if why:
        pytest.skip(why)
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version, far=True)
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    token, pin = make_token(cp1)
    join(w1, cp1, token, pin)
    check_cluster_serves(cp1, server="w1", client="cp1")
    wait_dns(cp1)
    for node in (cp1, w1):
        assert not errors_of(node)
        assert "cbr0" in bridges(node) and "cni0" not in bridges(node)
        wait_until(functools.partial(has_link, node, "cbr-vxlan"), what="kb's own tunnel", timeout_s=ROUND_S)

    network.prepare(cp1, w1)
    network.apply(cp1)
    for node in (cp1, w1):
        assert node.exists(network.conflist)
        assert node.exists(KB_CONFLIST) if network is not CILIUM else node.exists(RENAMED)
        kb_is_out_of_the_way(network, node)
    if network is CALICO:  # which looks for a node's address by itself
        for node in (cp1, w1):
            found = cp1.get(f"node {node.name}")["metadata"]["annotations"]["projectcalico.org/IPv4Address"]
            assert found == f"{node.address}/24"

    # nobody restarted CoreDNS, and it is in the new network, for pods that came after it
    apply(cp1, render_pod("web2", node="w1"), render_service("web2"), render_pod("client2", command=SLEEP, node="cp1"))
    cp1.wait_pods_ready("default", "app=client2")
    cp1.wait_pods_ready("default", "app=web2", timeout_s=60)
    wait_dns(cp1)
    assert fetch(cp1, WEB2) == PAGE
    check_pod_hangs_on(network, cp1, cp1, "client2")
    check_pod_hangs_on(network, cp1, w1, "web2")
    check_packets_take_tunnel(network, cp1, w1)
    check_way_out(cp1, lab, tmp_path)

    # pods of before are left alone, named, and free to go
    for node, pod in ((cp1, "client"), (w1, "web")):
        # CoreDNS' old pods may hang on it too for a moment
        assert re.search(r"\d pods? still on cbr0, cut off", node.journal("kb-routes"))
        assert not errors_of(node)
        note = wait_until(functools.partial(named, node, pod), what=f"doctor to name {pod}", timeout_s=60, every_s=2)
        assert note["level"] == "warning"
        for command in note["remedy"].split("; "):
            cp1.kubectl(command.partition(" ")[2])
    for node in (cp1, w1):
        wait_until(lambda: "cbr0" not in bridges(node), what="cbr0 to go", timeout_s=60, every_s=2)  # noqa: B023
        assert not node.exists("/run/kb/pod-addresses")
        assert "pod-network" not in examine(node) and not errors_of(node)
    check_cluster_serves(cp1, server="cp1", client="w1")
    assert fetch(cp1, WEB2) == PAGE

    # kb again: nothing to do, and the other network stays as it is
    init_again_is_a_no_op(cp1)
    again = join(w1, cp1, token, pin)
    assert set(phases(again).values()) == {"unchanged"}, again.output
    for node in (cp1, w1):
        assert "cbr0" not in bridges(node)

    # and so it is after a power loss, and after a reboot in order (which httpd, deaf to SIGTERM, would hold up)
    cp1.kubectl("delete pod web client --wait=true", timeout=120)
    for node, restart in ((w1, start_anew), (cp1, Node.reboot)):
        restart(node)
        wait_until(lambda: cp1.kubectl("get nodes"), what="the API server", timeout_s=120, every_s=1)
        cp1.wait_node_ready(node.name)
        network.wait_ready(cp1)
        cp1.wait_pods_ready("default")
        wait_dns(cp1)
        assert fetch(cp1, WEB2) == PAGE
        kb_is_out_of_the_way(network, node)
        assert "cbr0" not in bridges(node)
    check_packets_take_tunnel(network, cp1, w1)
    for node in (cp1, w1):
        assert "pod-network" not in examine(node) and not errors_of(node)
    init_again_is_a_no_op(cp1)

    check_a_node_comes_and_goes(network, cp1, make_node("w2", version=k8s_version), kb_pyz)


@pytest.mark.k8s_versions("1.35")
@pytest.mark.parametrize("network", [CALICO, CILIUM], ids=lambda network: network.name)
def test_another_network_from_the_start(
    make_node: MakeNode, kb_pyz: Path, k8s_version: str, network: OtherNetwork
) -> None:
    """podNetwork: {plugin: manifest}: kb applies what the other's users apply, CRDs and all, and waits for it."""
    why = network.explain_why_not()
    if why:
        pytest.skip(why)
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version)
    network.prepare(cp1, w1)
    for node in (cp1, w1):
        node.scp(kb_pyz, "/root/kb.pyz")
    network_wish = {"plugin": "manifest", "manifest": network.copy_manifest(cp1)}
    cp1.write("/root/init.yaml", lab_config(k8s_version, address=cp1.address, kb={"podNetwork": network_wish}))
    cp1.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)
    cp1.wait_node_ready()
    join(w1, cp1, *make_token(cp1))
    cp1.wait_node_ready("w1")
    network.wait_ready(cp1)
    check_cluster_serves(cp1, server="w1", client="cp1")
    check_pod_hangs_on(network, cp1, cp1, "client")
    for node in (cp1, w1):
        assert "cbr0" not in bridges(node) and not node.exists(KB_CONFLIST) and not errors_of(node)
    init_again_is_a_no_op(cp1)


def check_a_node_comes_and_goes(network: OtherNetwork, cp1: Node, w2: Node, kb_pyz: Path) -> None:
    """A node that joins later gets the other network; one that was reset is told what lies about before it joins again."""
    network.prepare(w2)
    w2.scp(kb_pyz, "/root/kb.pyz")
    token, pin = make_token(cp1)
    join(w2, cp1, token, pin)
    network.wait_ready(cp1)
    kb_is_out_of_the_way(network, w2)
    wait_until(lambda: "cbr0" not in bridges(w2), what="no cbr0 on w2", timeout_s=60, every_s=2)
    apply(cp1, render_pod("web3", node="w2"), render_service("web3"))
    cp1.wait_pods_ready("default", "app=web3", timeout_s=60)
    check_pod_hangs_on(network, cp1, w2, "web3")
    assert fetch(cp1, "http://web3.default.svc.cluster.local/") == PAGE
    assert not errors_of(w2)
    again = join(w2, cp1, token, pin)
    assert set(phases(again).values()) == {"unchanged"}, again.output

    done = w2.run("python3 kb.pyz reset --force", timeout=300)
    assert not w2.exists(KB_CONFLIST) and not w2.exists(RENAMED)
    assert network.conflist in done.output, done.output
    cp1.kubectl("delete node w2")
    refused = join(w2, cp1, token, pin, check=False)
    assert refused.code == 3 and "CNIConfig" in refused.output and network.conflist in refused.output, refused.output
    (remedy,) = set(re.findall(r"move it away \((mv [^)]+)\)", refused.output))
    w2.run(remedy)
    join(w2, cp1, token, pin)
    network.wait_ready(cp1)
    kb_is_out_of_the_way(network, w2)


def named(node: Node, pod: str) -> dict[str, str]:
    """doctor's note on the network, once it names that pod, and no other but those that came with Calico itself, which
    may be quicker than its CNI file."""
    for note in examine(node).get("pod-network") or []:
        commands = set(note["remedy"].split("; "))
        others = commands - {f"kubectl -n default delete pod {pod}"}
        if len(others) < len(commands) and all("delete pod calico-kube-controllers-" in line for line in others):
            return note
    return {}


def start_anew(node: Node) -> Node:
    node.kill()
    return node.start()


def errors_of(node: Node) -> list[dict[str, str]]:
    return [note for notes in examine(node).values() for note in notes if note["level"] == "error"]


def wait_dns(node: Node) -> None:
    node.kubectl("rollout status -n kube-system deployment/coredns --timeout=150s", timeout=180)


def fetch(cp1: Node, url: str) -> str:
    return str(wait_until(lambda: cp1.kubectl(f"exec client2 -- wget -q -O - {url}").strip(),
                          what=f"{url} in a pod of the new network", timeout_s=90, every_s=1))  # fmt: skip


def bridges(node: Node) -> list[str]:
    return [str(link["ifname"]) for link in json.loads(node.run("ip -json link show type bridge").stdout) if link]


def has_link(node: Node, name: str) -> bool:
    return node.run(f"ip link show dev {name}", check=False).ok


def kb_is_out_of_the_way(network: OtherNetwork, node: Node) -> None:
    """Its unit says so; its routes, its link and its rule are gone, and the other's routes are there."""
    wait_gone(node, ROUTES)
    wait_gone(node, "nft list tables", "kb_pods")
    assert not has_link(node, "cbr-vxlan")
    wait_until(lambda: f"stepped aside: the runtime takes {network.conflist}" in node.journal("kb-routes"),
               what="a word of the route keeper's", timeout_s=ROUND_S)  # fmt: skip
    wait_until(lambda: re.search(network.way, node.run("ip -4 route show").stdout),
               what=f"the routes of {network.name}", timeout_s=60, every_s=1)  # fmt: skip


def check_pod_hangs_on(network: OtherNetwork, cp1: Node, node: Node, pod: str) -> None:
    """The node's only way to its pod is a link of the new network."""
    address = cp1.get(f"pod {pod}")["status"]["podIP"]
    ways: list[Any] = json.loads(node.run(f"ip -json -4 route get {address}").stdout)
    assert re.fullmatch(network.device, ways[0]["dev"]), ways
    if network is FLANNEL:
        assert "dev cni0 lladdr" in node.run(f"ping -c1 -W2 {address} >/dev/null; ip neighbour show {address}").stdout


def packets(node: Node, link: str) -> tuple[int, int]:
    """What a link received and sent."""
    (found,) = json.loads(node.run(f"ip -json -statistics link show dev {link}").stdout)
    return found["stats64"]["rx"]["packets"], found["stats64"]["tx"]["packets"]


def check_packets_take_tunnel(network: OtherNetwork, cp1: Node, w1: Node) -> None:
    """Every question and every answer between pods of the two nodes is a packet of the network's tunnel at both ends."""
    address = cp1.get("pod web2")["status"]["podIP"]
    before = packets(cp1, network.tunnel), packets(w1, network.tunnel)
    for _ in range(FETCHES):
        assert cp1.kubectl(f"exec client2 -- wget -q -O - http://{address}/").strip() == PAGE
    after = packets(cp1, network.tunnel), packets(w1, network.tunnel)
    for old, new in zip(before, after):
        assert new[0] - old[0] >= 2 * FETCHES and new[1] - old[1] >= 2 * FETCHES, (before, after)


def check_way_out(cp1: Node, lab: Lab, folder: Path) -> None:
    """What leaves the cluster carries the node's address, by the network's rule alone."""
    (folder / "page").write_text("outside")
    with serving(lab, folder) as log:
        assert fetch(cp1, f"http://{lab.gateway}:8000/page") == "outside"
        asked = [line.split()[0] for line in log.read_text().splitlines() if "/page" in line]
    assert set(asked) == {cp1.address}
