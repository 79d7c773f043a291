"""kb's pod network between nodes that no switch connects: packets from pod to pod through VXLAN, across a router."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from .lab.lab import Lab
from .lab.node import Node, wait_until
from .test_join import IGNORE, KB, init, join, make_token
from .test_pod_network import ROUTES, wait_for, wait_gone
from .world.web import apply, render_pod, render_service, wait_service_account

MakeNode = Callable[..., Node]
LINES = 4000
# 240 kB beside the page, and a log that names who asked.
SERVER = (
    f"i=0; while [ $i -lt {LINES} ]; do echo 0123456789012345678901234567890123456789012345678901234567_; i=$((i+1)); done"
    " >/www/big; exec httpd -f -v -p 80 -h /www"
)
# What the kernel shows of frames that stay on one bridge is left out.
COUNTERS = """\
table ip e2e_router {
    counter tunnel {}
    counter bare {}
    chain watch {
        type filter hook forward priority 0;
        iifname "br0" oifname "br0" accept
        udp dport 4789 counter name tunnel
        ip saddr 10.244.0.0/16 counter name bare
        ip daddr 10.244.0.0/16 counter name bare
    }
}
"""


def read_counter(lab: Lab, name: str) -> int:
    """Bytes that the router between the two networks has seen (of packets as large as the kernel likes them)."""
    found = json.loads(lab.exec(f"nft -j list counter ip e2e_router {name}").stdout)["nftables"]
    return int(next(entry["counter"]["bytes"] for entry in found if "counter" in entry))


def fetch(server: Node, client: str, url: str) -> str:
    return server.kubectl(f"exec {client} -- wget -q -O - {url}", timeout=20)


def address_of(server: Node, pod: str) -> str:
    return str(server.get(f"pod {pod}")["status"].get("podIP", "none-yet.invalid"))


def run_pods(server: Node, names: Sequence[str]) -> None:
    """On each node a pod that serves, behind a Service of its own."""
    wait_service_account(server)
    for name in names:
        pod = render_pod(f"web-{name}", node=name, command=["/bin/sh", "-c", SERVER])
        apply(server, pod, render_service(f"web-{name}"))
    for name in names:
        server.wait_pods_ready("default", f"app=web-{name}")


def check_all_ways(server: Node, names: Sequence[str]) -> None:
    """Each pod gets every other's page: by its address, whole where it is long, by its Service, and by its name."""
    for client in names:
        for target in names:

            def answers(client: str = client, target: str = target) -> bool:
                # asked for anew each time: after a power loss the address is another one, as soon as the kubelet says so
                url = f"http://{address_of(server, f'web-{target}')}/big"
                return fetch(server, f"web-{client}", url).count("_") == LINES

            wait_until(answers, what=f"an answer of {target} to {client}", timeout_s=60, every_s=1)
            name = f"http://web-{target}.default.svc.cluster.local/"
            wait_until(lambda: "kb e2e web" in fetch(server, f"web-{client}", name),  # noqa: B023
                       what=f"the Service of {target} from {client}", timeout_s=60, every_s=1)  # fmt: skip


def test_pods_reach_each_other_across_a_router(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str) -> None:
    names = ["cp1", "near", "far"]
    cp1, near, far = (make_node(name, version=k8s_version, far=name == "far") for name in names)
    assert far.address.startswith("10.78.0.")
    init(cp1, kb_pyz)
    for node in (near, far):
        node.scp(kb_pyz, "/root/kb.pyz")
        join(node, cp1, *make_token(cp1))
    for name in names:
        cp1.wait_node_ready(name)
    lab.exec(["nft", "-f", "-"], stdin=COUNTERS)
    run_pods(cp1, names)
    check_all_ways(cp1, names)

    # between the networks through the tunnel alone, on one network by a plain route
    assert read_counter(lab, "tunnel") > 4 * 240_000 and read_counter(lab, "bare") == 0
    cidr = {name: cp1.get(f"node {name}")["spec"]["podCIDR"] for name in names}
    assert re.search(rf"{cidr['near']} via {near.address} dev eth0", cp1.run(ROUTES).stdout)
    assert re.search(rf"{cidr['far']} via \S+ dev cbr-vxlan", cp1.run(ROUTES).stdout)
    for other in ("cp1", "near"):
        assert re.search(rf"{cidr[other]} via \S+ dev cbr-vxlan", far.run(ROUTES).stdout)
    for node in (cp1, near, far):
        sent = json.loads(node.run("ip -json -statistics link show cbr-vxlan").stdout)[0]["stats64"]
        assert sent["tx"]["bytes"] > 200_000 and sent["rx"]["bytes"] > 200_000, (node.name, sent)
        mtu = json.loads(
            cp1.kubectl(f"exec web-{node.name} -- ip link show eth0 | sed 's/.* mtu \\([0-9]*\\).*/\\1/;q'")
        )
        assert mtu == 1450
    # who asks is seen by its own address, not by its node's
    log = cp1.kubectl("logs web-far")
    assert address_of(cp1, "web-near") in log and address_of(cp1, "web-cp1") in log, log
    assert near.address not in log
    for node in (cp1, near, far):
        looked = node.run(f"{KB} doctor", check=False)
        assert looked.code == 0, looked.output

    # a firewall between the networks that knows nothing of the tunnel
    lab.exec("nft insert rule ip e2e_router watch udp dport 4789 drop")
    looked = near.run(f"{KB} doctor", check=False)
    assert looked.code != 0 and f"the node {far.address} answers, and through the tunnel it does not" in looked.output
    assert f"let UDP port 4789 pass between {near.address} and {far.address}" in looked.output
    lab.exec(["nft", "-f", "-"], stdin="flush table ip e2e_router\ndelete table ip e2e_router\n" + COUNTERS)
    assert near.run(f"{KB} doctor", check=False).code == 0

    # the far one loses its power
    far.kill()
    far.start()
    cp1.wait_node_ready("far")
    check_all_ways(cp1, ["near", "far"])
    assert read_counter(lab, "bare") == 0

    # and it goes: what led to it is withdrawn
    far.run(f"{KB} reset --force", timeout=300)
    assert far.run("ip link show cbr-vxlan", check=False).code != 0
    cp1.kubectl("delete node far")
    for node in (cp1, near):
        wait_gone(node, ROUTES, "cbr-vxlan")
        wait_gone(node, "ip link show dev cbr-vxlan 2>/dev/null")
    # it comes back under its name
    far.run(f"{KB} join {cp1.address}:6443 --token {make_token(cp1)[0]} --discovery-token-unsafe-skip-ca-verification {IGNORE}",
            timeout=300)  # fmt: skip
    cp1.wait_node_ready("far")
    wait_for(cp1, ROUTES, "cbr-vxlan")
