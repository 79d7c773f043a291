"""kb etcd defrag, compact, alarm, leader and recover on three real control planes."""

from __future__ import annotations

import json
import shutil
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


@pytest.mark.k8s_versions("1.35", "1.36")
def test_upkeep_and_the_last_of_three(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, cp2, cp3 = nodes = start_cluster(make_node, kb_pyz, k8s_version, names=NAMES, cluster=FEW)
    for node in nodes[1:]:
        join_control_plane(node, cp1)
    check_members(cp1, NAMES)

    check_astray(cp1, cp2)
    check_one_admin(cp1)

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
    check_known(cp1, cp3)
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


def check_astray(asked: Node, member: Node) -> None:
    """A member that advertises an address that means whoever asks: it is told from the one that answers there, and found at its own."""
    manifest = "/etc/kubernetes/manifests/etcd.yaml"
    former = member.read(manifest)
    own = f"--advertise-client-urls=https://{member.address}:2379"
    assert own in former
    member.write(manifest, former.replace(own, "--advertise-client-urls=https://127.0.0.1:2379"), mode=0o600)
    wait_until(
        lambda: (
            [row["clientURLs"] for row in told(asked, "members") if row["name"] == member.name]
            == [["https://127.0.0.1:2379"]]
        ),
        what="another client URL",
        timeout_s=90,
    )
    wait_until(lambda: serve_all(asked), what="three that serve", timeout_s=60)
    assert sorted(row["name"] for row in told(asked, "defrag")) == list(NAMES)
    member.write(manifest, former, mode=0o600)
    wait_until(lambda: "127.0.0.1" not in asked.run(f"{KB} etcd members -o json").stdout, what="its own", timeout_s=90)
    wait_until(lambda: serve_all(asked), what="three that serve", timeout_s=60)


def serve_all(node: Node) -> bool:
    return [row["state"] for row in told(node, "members")] == ["serves"] * len(NAMES)


LEASE = {
    "apiVersion": "coordination.k8s.io/v1",
    "kind": "Lease",
    "metadata": {"name": "kb-static-pods", "namespace": "kube-system"},
    "spec": {
        "holderIdentity": "cp2",
        "leaseDurationSeconds": 600,
        "renewTime": "2026-01-01T00:00:00.000000Z",
        "acquireTime": "2026-01-01T00:00:00.000000Z",
    },
}


def check_one_admin(node: Node) -> None:
    """While another control plane works on etcd, nothing is changed from here; afterwards nothing of the Lease is left."""
    node.kubectl("create --validate=false -f -", stdin=json.dumps(LEASE))
    for words in ("defrag", "compact", "leader cp3", "remove cp3 --force"):
        refused = node.run(f"{KB} etcd {words}", check=False, timeout=120)
        assert code_of(refused) == "swap-elsewhere" and "delete lease kb-static-pods" in refused.stderr, refused.stderr
    node.kubectl("-n kube-system delete lease kb-static-pods")
    refused = node.run(f"{KB} etcd remove cp3", check=False, timeout=120)
    assert code_of(refused) == "etcd-member-serves", refused.stderr
    assert "kb-static-pods" not in node.kubectl("-n kube-system get leases")


def check_known(node: Node, lost: Node) -> None:
    """The data of another one, by a number and by a copy of its folder: whoever has more entries is the one to recover on."""
    words = f"{KB} etcd recover --lost cp2 --lost cp3 --dry-run"
    refused = node.run(f"{words} --known cp2=999999999", check=False, timeout=120)
    assert code_of(refused) == "etcd-newer-elsewhere" and "recover on cp2 instead" in refused.stderr, refused.stderr
    shutil.copytree(lost.disk_path("/var/lib/etcd/member"), node.disk_path("/root/of-cp3/member"))
    seen = node.run(f"{words} --known cp3=/root/of-cp3", check=False, timeout=120)
    assert "cp3 has the data up to entry" in seen.stderr and "(/root/of-cp3)" in seen.stderr, seen.stderr
    assert seen.ok or code_of(seen) == "etcd-newer-elsewhere", seen.stderr
    other = node.run(f"{words} --known cp2=/root", check=False, timeout=120)
    assert code_of(other) == "file-unreadable", other.stderr


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
