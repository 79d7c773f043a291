"""`kb doctor` on clusters that are well: one that kb made, one that kubeadm made and kb adopted, two with a firewall that lets through what a
cluster needs and nothing else, and one for each pod network of others whose programs are there. Twenty runs on each node, and none has a finding, or takes longer than five seconds."""

from __future__ import annotations

import functools
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import pytest

from .lab.config import lab_config, list_ignored_checks
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import read_releases
from .test_doctor_reports import ALWAYS_TOLD
from .test_join_load_balancer import init, join
from .world.other_networks import NETWORKS, OtherNetwork
from .world.podnet import connect_nodes

MINORS = ("1.35", "1.36")
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
RUNS, RUNS_OF_OTHERS = 20, 5
LIMIT_S, LIMIT_WITH_PODS_S = 5.0, 20.0

# What an administrator writes who has read which ports a cluster needs: what comes in and what is forwarded is dropped, but for these.
NFTABLES = """\
table inet own {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    ct state invalid drop
    iif lo accept
    meta l4proto { icmp, ipv6-icmp } accept
    tcp dport 22 accept
    ip saddr 10.77.0.0/24 tcp dport { 2379-2380, 6443, 7443, 10250 } accept
    ip saddr 10.77.0.0/24 udp dport 4789 accept
    ip saddr 10.244.0.0/16 accept
    tcp dport 30000-32767 accept
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ip saddr 10.244.0.0/16 accept
    ip daddr 10.244.0.0/16 accept
  }
}
"""
# The same by iptables, and what goes out is dropped too, but for these.
IPTABLES = """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -s 10.77.0.0/24 -p tcp -m multiport --dports 2379,2380,6443,7443,10250 -j ACCEPT
-A INPUT -s 10.77.0.0/24 -p udp -m udp --dport 4789 -j ACCEPT
-A INPUT -s 10.244.0.0/16 -j ACCEPT
-A INPUT -p tcp -m tcp --dport 30000:32767 -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -s 10.244.0.0/16 -j ACCEPT
-A FORWARD -d 10.244.0.0/16 -j ACCEPT
-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -p icmp -j ACCEPT
-A OUTPUT -d 10.77.0.0/24 -p tcp -j ACCEPT
-A OUTPUT -d 10.77.0.0/24 -p udp -j ACCEPT
-A OUTPUT -d 10.244.0.0/16 -j ACCEPT
-A OUTPUT -d 10.96.0.0/12 -j ACCEPT
COMMIT
"""


@dataclass(frozen=True)
class Well:
    """What is looked at: a control plane and a worker."""

    cp1: Node
    w1: Node


def make_by_kb(lab: Lab, kb_pyz: Path, minor: str, *, firewall: str = "true") -> Well:
    """firewall: a shell line that is run on each node before it has met kb."""
    cp1, w1 = (lab.add_node(name, version=minor) for name in ("cp1", "w1"))
    for node in (cp1, w1):
        node.write("/root/rules.nft", NFTABLES)
        node.write("/root/rules.v4", IPTABLES)
        node.run(firewall)
    init(cp1, kb_pyz, podNetwork={"plugin": "bridge"})
    join(w1, cp1, kb_pyz)
    return Well(cp1, w1)


def make_by_kubeadm(lab: Lab, kb_pyz: Path, minor: str) -> Well:
    """Adopted, and nothing else: kb has done nothing to it."""
    cp1, w1 = (lab.add_node(name, version=minor, kubeadm=True) for name in ("cp1", "w1"))
    cp1.write("/root/init.yaml", lab_config(minor, address=cp1.address))
    cp1.run(f"kubeadm init --config init.yaml {IGNORE}", timeout=600)
    w1.run(f"{cp1.run('kubeadm token create --print-join-command').stdout.strip()} {IGNORE}", timeout=300)
    connect_nodes([cp1, w1])
    for node in (cp1, w1):
        node.scp(kb_pyz, "/root/kb.pyz")
        cp1.wait_node_ready(node.name)
        node.run("python3 kb.pyz adopt")
    cp1.wait_pods_ready("kube-system")
    return Well(cp1, w1)


def make_with(network: OtherNetwork, lab: Lab, kb_pyz: Path, minor: str) -> Well:
    """By kb, without a pod network of its own."""
    why = network.explain_why_not()
    if why:
        pytest.skip(why)
    cp1, w1 = (lab.add_node(name, version=minor) for name in ("cp1", "w1"))
    init(cp1, kb_pyz, podNetwork={"plugin": "none"})
    join(w1, cp1, kb_pyz)
    network.prepare(cp1, w1)
    network.apply(cp1)
    for node in (cp1, w1):
        cp1.wait_node_ready(node.name)
    cp1.wait_pods_ready("kube-system")
    return Well(cp1, w1)


WAYS: dict[str, Callable[[Lab, Path, str], Well]] = {
    "kb": make_by_kb,
    "kubeadm": make_by_kubeadm,
    "nftables": functools.partial(make_by_kb, firewall="nft -f /root/rules.nft"),
    "iptables": functools.partial(make_by_kb, firewall="iptables-restore /root/rules.v4"),
    **{network.name: functools.partial(make_with, network) for network in NETWORKS},
}


@pytest.fixture(scope="module", params=[(minor, way) for minor in MINORS for way in WAYS], ids="-".join)
def well(request: pytest.FixtureRequest, lab: Lab, kb_pyz: Path) -> Iterator[Well]:
    minor, way = request.param
    if minor not in read_releases():
        pytest.skip(f"KB_E2E_BIN has no Kubernetes {minor}")
    made = WAYS[way](lab, kb_pyz, minor)
    for node in (made.cp1, made.w1):
        # what a start leaves for some seconds: probes that have not passed yet, leases that are young
        wait_until(functools.partial(is_well, node), what=f"doctor to find {node.name} well", timeout_s=120, every_s=2)
    yield made
    for node in (made.w1, made.cp1):
        lab.remove_node(node)


def is_well(node: Node) -> bool:
    found, _ = examine(node)
    print(node.name, found)
    return not found


def examine(node: Node, *flags: str) -> tuple[list[dict[str, str]], float]:
    """What one run finds, and how long it takes. Its exit status is 0 wherever it has found no error."""
    started = time.monotonic()
    answer = node.run(["timeout", "60", "python3", "kb.pyz", "doctor", "-o", "json", *flags], check=False)
    took_s = time.monotonic() - started
    notes = json.loads(answer.stdout)["notes"]
    found = [note for note in notes if note["level"] != "ok" and note["look"] not in ALWAYS_TOLD]
    assert answer.code == (3 if any(note["level"] == "error" for note in notes) else 0), answer.output
    return found, took_s


def check_runs(node: Node, *flags: str, runs: int, limit_s: float = LIMIT_S) -> None:
    seen = [examine(node, *flags) for _ in range(runs)]
    times = sorted(took_s for _, took_s in seen)
    load = os.getloadavg()[0]
    print(f"{node.name} {' '.join(flags)}: {runs} runs, {times[0]:.1f} to {times[-1]:.1f} s, load {load:.1f}")
    assert [found for found, _ in seen if found] == [], f"{node.name} {flags}"
    assert statistics.median(times) <= limit_s, (
        f"{node.name} {flags}: {times} with a load of {load:.1f} on {os.cpu_count()} processors"
    )


@pytest.mark.parametrize("name", ["cp1", "w1"])
def test_a_node_that_is_well(well: Well, name: str) -> None:
    node = well.cp1 if name == "cp1" else well.w1
    check_runs(node, runs=RUNS)


def test_a_cluster_that_is_well(well: Well) -> None:
    check_runs(well.cp1, "--cluster", runs=RUNS)


def test_what_its_pods_get(well: Well) -> None:
    check_runs(well.cp1, "--probe-pods", runs=RUNS_OF_OTHERS, limit_s=LIMIT_WITH_PODS_S)
    well.w1.write("/root/admin.conf", well.cp1.read("/etc/kubernetes/admin.conf"), mode=0o600)
    check_runs(
        well.w1, "--probe-pods", "--kubeconfig", "/root/admin.conf", runs=RUNS_OF_OTHERS, limit_s=LIMIT_WITH_PODS_S
    )
