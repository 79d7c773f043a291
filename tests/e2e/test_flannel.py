"""flannel, the real one, applied to a cluster that runs with kb's own pod network: kb goes out of its way."""

from __future__ import annotations

import functools
import ipaddress
import json
import re
from pathlib import Path
from typing import Any, Callable

import pytest

from . import flannel
from .lab import Lab
from .node import Node, wait_until
from .test_doctor import examine
from .test_join import init, join, make_token, phases
from .test_options import init_again_is_a_no_op
from .test_podnetwork import KB_CONFLIST, ROUND_S, ROUTES, serving, wait_gone
from .web import PAGE, apply, check_cluster_serves, render_pod, render_service

MakeNode = Callable[..., Node]
WEB2 = "http://web2.default.svc.cluster.local/"
SLEEP = ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 1; done"]
FETCHES = 20


@pytest.mark.k8s_versions("1.35", "1.36")
def test_flannel_takes_over(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> None:
    why = flannel.explain_why_not()
    if why:
        pytest.skip(why)
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version)
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    token, pin = make_token(cp1)
    join(w1, cp1, token, pin)
    check_cluster_serves(cp1, server="w1", client="cp1")
    wait_dns(cp1)
    for node in (cp1, w1):
        assert not errors_of(node)
        assert "cbr0" in bridges(node) and "cni0" not in bridges(node)

    flannel.load_image(cp1, w1)
    flannel.apply_flannel(cp1)
    for node in (cp1, w1):
        assert node.exists(flannel.CONFLIST) and node.exists(KB_CONFLIST)
        kb_is_out_of_the_way(node)

    # nobody restarted CoreDNS, and it is in the new network, for pods that came after it
    apply(cp1, render_pod("web2", node="w1"), render_service("web2"), render_pod("client2", command=SLEEP, node="cp1"))
    cp1.wait_pods_ready("default", "app=client2")
    cp1.wait_pods_ready("default", "app=web2", timeout_s=60)
    wait_dns(cp1)
    assert fetch(cp1, WEB2) == PAGE
    check_pods_hang_on_cni0(cp1, cp1, "client2")
    check_pods_hang_on_cni0(cp1, w1, "web2")
    check_packets_take_vxlan(cp1, w1)
    check_way_out(cp1, lab, tmp_path)

    # pods of before are left alone, named, and free to go
    for node, pod in ((cp1, "client"), (w1, "web")):
        # CoreDNS' old pods may hang on it too for a moment
        assert re.search(r"\d pods? of before on cbr0, cut off", node.journal("kb-routes"))
        assert not errors_of(node)
        (note,) = wait_until(
            functools.partial(named_alone, node, pod), what=f"doctor to name {pod} alone", timeout_s=60, every_s=2
        )
        assert note["level"] == "warning"
        cp1.kubectl(note["remedy"].partition(" ")[2])
    for node in (cp1, w1):
        wait_until(lambda: "cbr0" not in bridges(node), what="cbr0 to go", timeout_s=60, every_s=2)  # noqa: B023
        assert not node.exists("/run/kb/pod-addresses")
        assert "pod-network" not in examine(node) and not errors_of(node)
    check_cluster_serves(cp1, server="cp1", client="w1")
    assert fetch(cp1, WEB2) == PAGE

    # kb again: nothing to do, and flannel stays as it is
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
        cp1.wait_pods_ready(flannel.NAME)
        cp1.wait_pods_ready("default")
        wait_dns(cp1)
        assert fetch(cp1, WEB2) == PAGE
        kb_is_out_of_the_way(node)
        assert "cbr0" not in bridges(node)
    check_packets_take_vxlan(cp1, w1)
    for node in (cp1, w1):
        assert "pod-network" not in examine(node) and not errors_of(node)
    init_again_is_a_no_op(cp1)


def named_alone(node: Node, pod: str) -> list[dict[str, str]]:
    """doctor's note on the network, once it names that pod and no other."""
    found = examine(node).get("pod-network") or []
    return [note for note in found if note["remedy"] == f"kubectl -n default delete pod {pod}"]


def start_anew(node: Node) -> Node:
    node.kill()
    return node.start()


def errors_of(node: Node) -> list[dict[str, str]]:
    return [note for notes in examine(node).values() for note in notes if note["level"] == "error"]


def wait_dns(node: Node) -> None:
    node.kubectl("rollout status -n kube-system deployment/coredns --timeout=150s", timeout=180)


def fetch(cp1: Node, url: str) -> str:
    return str(wait_until(lambda: cp1.kubectl(f"exec client2 -- wget -q -O - {url}").strip(),
                          what=f"{url} in a pod of flannel's", timeout_s=90, every_s=1))  # fmt: skip


def bridges(node: Node) -> list[str]:
    return [str(link["ifname"]) for link in json.loads(node.run("ip -json link show type bridge").stdout) if link]


def kb_is_out_of_the_way(node: Node) -> None:
    """Its unit says so; its routes, its link and its rule are gone, and flannel's routes are there."""
    wait_gone(node, ROUTES)
    wait_gone(node, "nft list tables", "kb_pods")
    assert not node.run("ip link show dev cbr-vxlan", check=False).ok
    wait_until(lambda: f"stepped aside: the runtime takes {flannel.CONFLIST}" in node.journal("kb-routes"),
               what="a word of the route keeper's", timeout_s=ROUND_S)  # fmt: skip
    assert "dev flannel.1 onlink" in node.run("ip -4 route show").stdout


def check_pods_hang_on_cni0(cp1: Node, node: Node, pod: str) -> None:
    """The pod's address is of the node's podCIDR, as under kb, and cni0 is the only way there."""
    cidr = ipaddress.ip_network(cp1.get(f"node {node.name}")["spec"]["podCIDR"])
    address = ipaddress.ip_address(cp1.get(f"pod {pod}")["status"]["podIP"])
    assert address in cidr
    ways: list[Any] = json.loads(node.run(f"ip -json -4 route show {cidr}").stdout)
    assert [way["dev"] for way in ways] == ["cni0"]
    assert "dev cni0 lladdr" in node.run(f"ping -c1 -W2 {address} >/dev/null; ip neighbour show {address}").stdout


def packets(node: Node) -> tuple[int, int]:
    """What flannel.1 received and sent."""
    (link,) = json.loads(node.run("ip -json -statistics link show dev flannel.1").stdout)
    return link["stats64"]["rx"]["packets"], link["stats64"]["tx"]["packets"]


def check_packets_take_vxlan(cp1: Node, w1: Node) -> None:
    """Every question and every answer between pods of the two nodes is a packet of flannel's tunnel at both ends."""
    address = cp1.get("pod web2")["status"]["podIP"]
    before = packets(cp1), packets(w1)
    for _ in range(FETCHES):
        assert cp1.kubectl(f"exec client2 -- wget -q -O - http://{address}/").strip() == PAGE
    after = packets(cp1), packets(w1)
    for old, new in zip(before, after):
        assert new[0] - old[0] >= 2 * FETCHES and new[1] - old[1] >= 2 * FETCHES, (before, after)


def check_way_out(cp1: Node, lab: Lab, folder: Path) -> None:
    """What leaves the cluster carries the node's address, by flannel's rule alone."""
    (folder / "page").write_text("outside")
    with serving(lab, folder) as log:
        assert fetch(cp1, f"http://{lab.gateway}:8000/page") == "outside"
        asked = [line.split()[0] for line in log.read_text().splitlines() if "/page" in line]
    assert set(asked) == {cp1.address}
