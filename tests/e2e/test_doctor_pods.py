"""`kb doctor --probe-pods` on real nodes: pods that are well prove it and are gone again, and each way that is cut is walked back to its
first broken link."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import read_releases
from .test_join_load_balancer import init, join

MINORS = ("1.35", "1.36")
Pair = tuple[Node, Node]
LIMIT_S = 20
DOCTOR = "echo $$ >/run/doctor.pid; exec python3 kb.pyz doctor --probe-pods >/dev/null 2>&1"


@pytest.fixture(scope="module", params=MINORS)
def pair(request: pytest.FixtureRequest, lab: Lab, kb_pyz: Path) -> Iterator[Pair]:
    """A control plane and a worker."""
    minor: str = request.param
    if minor not in read_releases():
        pytest.skip(f"KB_E2E_BIN has no Kubernetes {minor}")
    cp1, w1 = lab.add_node("cp1", version=minor), lab.add_node("w1", version=minor)
    init(cp1, kb_pyz, podNetwork={"plugin": "bridge"})
    join(w1, cp1, kb_pyz, control_plane=False)
    wait_until(lambda: not prove(cp1), what="a cluster that is well", timeout_s=90, every_s=2)
    yield cp1, w1
    for node in (w1, cp1):
        lab.remove_node(node)


def prove(node: Node, *more: str, look: str = "pod-ways") -> list[dict[str, str]]:
    """What the proof found that is not well, in less than LIMIT_S, with no pod left."""
    started = time.monotonic()
    answer = node.run(
        ["timeout", "60", "python3", "kb.pyz", "doctor", "--probe-pods", "-o", "json", *more], check=False
    )
    took_s = time.monotonic() - started
    print(f"{node.name}: {took_s:.1f} s")
    notes = json.loads(answer.stdout)["notes"]
    found = [note for note in notes if note["look"] == look and (note["level"] != "ok" or "not proven" in note["text"])]
    others = [note for note in notes if note["level"] == "error" and note["look"] != look]
    assert not others, others
    is_busy = os.getloadavg()[0] > 2 * (os.cpu_count() or 1)  # the nodes of other labs share this machine
    assert took_s < LIMIT_S or is_busy
    return found


def read_sandboxes(node: Node) -> set[str]:
    return set(node.run("crictl pods -q").stdout.split())


def find_pods(cp1: Node) -> list[dict[str, Any]]:
    return list(cp1.get("pods -n kube-system -l app.kubernetes.io/name=kb-probe")["items"])


def test_pods_that_are_well_and_are_gone_again(pair: Pair) -> None:
    cp1, _ = pair
    sandboxes = read_sandboxes(cp1)
    assert prove(cp1) == []
    assert find_pods(cp1) == []
    # those of an earlier proof may go meanwhile: the kubelet removes them once a minute
    wait_until(lambda: read_sandboxes(cp1) <= sandboxes, what="the sandbox to go", timeout_s=150)
    told = cp1.run("python3 kb.pyz doctor --probe-pods").stdout
    assert "0 errors" in told and "nothing but pods of the proof was changed" in told
    assert "pod-ways" in cp1.run("python3 kb.pyz doctor --cluster --probe-pods").stdout
    told = cp1.run("python3 kb.pyz doctor").stdout
    assert "not proven: what a new pod gets and reaches, since none was made: kb doctor --probe-pods" in told


def test_a_worker_needs_a_kubeconfig(pair: Pair) -> None:
    cp1, w1 = pair
    (note,) = prove(w1)
    assert note["level"] == "ok" and "may not make pods" in note["text"] and "--kubeconfig" in note["text"]
    w1.write("/root/admin.conf", cp1.read("/etc/kubernetes/admin.conf"), mode=0o600)
    assert prove(w1, "--kubeconfig", "/root/admin.conf") == []
    assert find_pods(cp1) == []


BREAKS = {
    "a rule here": (
        0, "iptables -I FORWARD 1 -d 10.244.1.0/24 -j DROP", "iptables -D FORWARD -d 10.244.1.0/24 -j DROP",
        "pods of node w1", "this node drops it (iptables: -A FORWARD -d 10.244.1.0/24 -j DROP)", "iptables -D FORWARD",
    ),
    "a rule there": (
        1, "iptables -I FORWARD 1 -s 10.244.0.0/24 -j DROP", "iptables -D FORWARD -s 10.244.0.0/24 -j DROP",
        "pods of node w1", "what pods send there leaves this machine, and nothing comes back", "on that machine: kb doctor --probe-pods",
    ),
    "nftables here": (
        0, "nft add table inet x; nft 'add chain inet x f { type filter hook forward priority 10; }'; nft add rule inet x f ip daddr 10.244.1.0/24 drop",
        "nft delete table inet x", "pods of node w1", "what pods send there does not leave this machine", "nft list ruleset",
    ),
    "large packets": (
        1, "iptables -I FORWARD 1 -m length --length 1401:65535 -j DROP", "iptables -D FORWARD -m length --length 1401:65535 -j DROP",
        "bytes are lost between a pod on this node and pods of node w1, and those of 1400 pass", "carries less than the pods' interfaces", "smaller mtu",
    ),
    "DNS by TCP": (
        0, "iptables -I FORWARD 1 -p tcp --dport 53 -j DROP", "iptables -D FORWARD -p tcp --dport 53 -j DROP",
        "the cluster's DNS at 10.96.0.10:53 by TCP", "this node drops it (iptables: -A FORWARD -p tcp -m tcp --dport 53 -j DROP)", "iptables -D FORWARD",
    ),
    "the API": (
        0, "iptables -I INPUT 1 -s 10.244.0.0/24 -p tcp --dport 6443 -j DROP", "iptables -D INPUT -s 10.244.0.0/24 -p tcp --dport 6443 -j DROP",
        "the API's Service at 10.96.0.1:443", "this node drops it (iptables: -A INPUT -s 10.244.0.0/24", "iptables -D INPUT",
    ),
    "the way in": (
        0, "iptables -I OUTPUT 1 -d 10.244.0.0/24 -p icmp -j DROP; iptables -I OUTPUT 1 -d 10.244.0.0/24 -p tcp --dport 9 -j DROP",
        "iptables -D OUTPUT -d 10.244.0.0/24 -p icmp -j DROP; iptables -D OUTPUT -d 10.244.0.0/24 -p tcp --dport 9 -j DROP",
        "this node does not reach its own pod at 10.244.0.", "this node drops it (iptables: -A OUTPUT -d 10.244.0.0/24 -p icmp -j DROP)", "iptables -D OUTPUT",
    ),
    "a host port": (
        0, "iptables -t nat -I OUTPUT 1 -p tcp --dport 61500:61600 -j ACCEPT", "iptables -t nat -D OUTPUT -p tcp --dport 61500:61600 -j ACCEPT",
        "a hostPort does not lead to its pod", "to which it leads, does", "iptables -t nat -S OUTPUT",
    ),
    "a route": (
        0, "systemctl stop kb-routes; ip route del 10.244.1.0/24", "systemctl start kb-routes",
        "this node has no route to the pods of node w1", "kb-routes.service, which sets them", "systemctl restart kb-routes.service",
    ),
    "addresses": (
        0, "for i in $(seq 2 254); do f=/run/kb/pod-addresses/kb-bridge/10.244.0.$i; [ -e $f ] || { echo x >$f; echo $f >>/root/made; }; done",
        "rm -f $(cat /root/made) /root/made",
        "pods of this node are taken", " of them by pods that are gone: no pod gets one", "/run/kb/pod-addresses",
    ),
}  # fmt: skip
BY_THE_NETWORK = ("a route", "addresses")
"""What is seen without a pod: what a pod then meets comes of that."""


@pytest.mark.parametrize("what", BREAKS)
def test_the_first_broken_link_is_named(pair: Pair, what: str) -> None:
    place, harm, repair, says, cause, remedy = BREAKS[what]
    pair[place].run(harm)
    try:
        found = prove(pair[0], look="pod-network" if what in BY_THE_NETWORK else "pod-ways")
    finally:
        pair[place].run(repair)
    assert [note["level"] for note in found] == ["error"], found
    assert says in found[0]["text"] and cause in found[0]["text"], found
    assert remedy in found[0]["remedy"]
    wait_until(lambda: not prove(pair[0]), what="the proof to be whole again", timeout_s=60, every_s=1)


def test_a_denial_of_a_policy_is_no_fault(pair: Pair) -> None:
    """kb's network enforces none: a rule stands for what Calico would do."""
    cp1, _ = pair
    spec = {"podSelector": {}, "policyTypes": ["Egress"]}
    meta = {"name": "deny", "namespace": "kube-system"}
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}
    cp1.kubectl("create -f -", stdin=json.dumps(policy))
    rule = "FORWARD -d 10.244.1.0/24 -p icmp -j DROP"
    cp1.run(f"iptables -I {rule}")
    try:
        (note,) = prove(cp1)
        assert note["level"] == "ok" and "NetworkPolicy kube-system/deny may deny" in note["text"]
    finally:
        cp1.run(f"iptables -D {rule}")
        cp1.kubectl("-n kube-system delete networkpolicy deny")


@pytest.mark.parametrize("signal", ["INT", "TERM"])
def test_pods_go_when_it_is_stopped(pair: Pair, signal: str) -> None:
    cp1, _ = pair
    with cp1.popen(DOCTOR) as process:
        wait_until(lambda: find_pods(cp1), what="the pods", timeout_s=30, every_s=0.2)
        cp1.run(f"kill -{signal} $(cat /run/doctor.pid)")
        process.wait(timeout=30)
    assert find_pods(cp1) == []


def test_what_a_killed_one_left_ends_is_named_and_swept(pair: Pair) -> None:
    cp1, _ = pair
    with cp1.popen(DOCTOR) as process:
        wait_until(lambda: find_pods(cp1), what="the pods", timeout_s=30, every_s=0.2)
        cp1.run("kill -KILL $(cat /run/doctor.pid)")
        process.wait(timeout=30)
    assert len(find_pods(cp1)) == 2

    def have_ended() -> bool:
        return all(pod["status"].get("phase") == "Failed" for pod in find_pods(cp1))

    wait_until(have_ended, what="the pods to end by themselves", timeout_s=120, every_s=3)
    notes = json.loads(cp1.run("python3 kb.pyz doctor -o json").stdout)["notes"]
    named = [note for note in notes if note["look"] == "pod-ways" and note["level"] == "warning"]
    assert len(named) == 2 and all("was left by a kb doctor that was killed" in note["text"] for note in named), notes
    assert prove(cp1) == []
    assert find_pods(cp1) == []
