"""kb etcd defrag, compact, alarm, leader and recover on three real control planes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.control_planes import KB, check_members, code_of, join_control_plane, kubectl, start_cluster, wait_kubectl
from .lab.node import Node, wait_until

MakeNode = Callable[..., Node]
NAMES = ("cp1", "cp2", "cp3")
FEW = {"encryptionAlgorithm": "ECDSA-P256", "dns": {"disabled": True}, "proxy": {"disabled": True}}
RECOVER_S = 120.0


def told(node: Node, words: str, *, timeout: float = 120) -> Any:
    return json.loads(node.run(f"{KB} etcd {words} -o json", timeout=timeout).stdout)


@pytest.mark.k8s_versions("1.35")
def test_upkeep_and_the_last_of_three(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, cp2, cp3 = nodes = start_cluster(make_node, kb_pyz, k8s_version, names=NAMES, cluster=FEW)
    for node in nodes[1:]:
        join_control_plane(node, cp1)
    check_members(cp1, NAMES)

    # the leader moves, and comes back
    leader = told(cp1, "leader")["leader"]
    other = next(name for name in NAMES if name != leader)
    assert told(cp2, f"leader {other}")["leader"] == other == told(cp3, "leader")["leader"]

    # one member after the other, the leader last; the data stay
    kubectl(cp1, "create configmap kept --from-literal=a=1")
    rows = told(cp3, "defrag")
    assert sorted(row["name"] for row in rows) == list(NAMES) and rows[-1]["name"] == other
    assert told(cp1, "compact")["revision"] > 0 and told(cp1, "alarm") == []
    check_members(cp1, NAMES)

    # two machines lose their power: the fence first
    refused = cp1.run(f"{KB} etcd recover --lost cp2 --lost cp3 --yes", check=False, timeout=120)
    assert code_of(refused) == "etcd-has-quorum"
    cp2.kill()
    cp3.kill()
    wait_until(lambda: "0 of 3" in cp1.run(f"{KB} etcd members").stdout, what="etcd knows of no leader", timeout_s=60)
    refused = cp1.run(f"{KB} etcd recover --lost cp2 --yes", check=False, timeout=120)
    assert code_of(refused) == "etcd-lost-not-named" and "cp3" in refused.stderr
    cp3.start()
    refused = cp1.run(f"{KB} etcd recover --lost cp2 --lost cp3 --yes", check=False, timeout=120)
    assert code_of(refused) in ("etcd-member-reachable", "etcd-has-quorum")
    cp3.kill()

    # the last one goes on alone
    done = cp1.run(f"{KB} etcd recover --lost cp2 --lost cp3 --yes", timeout=300)
    print(done.output)
    check_members(cp1, ("cp1",))
    wait_kubectl(cp1, f"--server https://{cp1.address}:6443 get configmap kept", timeout_s=30)
    assert "--force-new-cluster" not in cp1.read("/etc/kubernetes/manifests/etcd.yaml")
    kubectl(cp1, "create configmap after --from-literal=a=1", server=f"{cp1.address}:6443")

    # a lost one joins again after its reset
    cp2.start()
    cp2.run(f"{KB} reset --force", timeout=300)
    kubectl(cp1, "delete node cp2 cp3", server=f"{cp1.address}:6443")
    join_control_plane(cp2, cp1)
    check_members(cp1, ("cp1", "cp2"))


@pytest.mark.k8s_versions("1.35")
def test_killed_and_taken_back(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Started again without the others, so that etcd answers nobody; kb is killed in the middle, goes on, and is taken back."""
    cp1, cp2, cp3 = nodes = start_cluster(make_node, kb_pyz, k8s_version, names=NAMES, cluster=FEW)
    for node in nodes[1:]:
        join_control_plane(node, cp1)
    kubectl(cp1, "create configmap kept --from-literal=a=1")
    cp2.kill()
    cp3.kill()
    cp1.reboot()
    words = f"{KB} etcd recover --lost cp2 --lost cp3 --yes"
    manifest = cp1.read("/etc/kubernetes/manifests/etcd.yaml")
    cp1.run(f"timeout -s KILL 12 {words}", check=False, timeout=60)
    refused = cp1.run(f"{KB} etcd defrag --yes", check=False)
    assert code_of(refused) == "recovery-cut-off"
    print(cp1.run(words, timeout=400).output)
    wait_kubectl(cp1, f"--server https://{cp1.address}:6443 get configmap kept", timeout_s=30)

    print(cp1.run(f"{KB} etcd recover --undo --yes", timeout=300).output)
    assert cp1.read("/etc/kubernetes/manifests/etcd.yaml") == manifest
    assert not cp1.exists("/var/lib/etcd.kb-before-recover")
    cp2.start()
    wait_until(
        lambda: "2 of 3" in cp1.run(f"{KB} etcd members", check=False).stdout, what="a quorum again", timeout_s=180
    )
    wait_kubectl(cp1, f"--server https://{cp1.address}:6443 get configmap kept", timeout_s=120)
