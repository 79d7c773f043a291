"""`kb join --control-plane` on real nodes: a cluster grows to three, loses one, is restarted whole, is killed while it
grows; and every way in which a further control plane cannot join is named."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from .lab import killer
from .lab.config import lab_config
from .lab.control_planes import (
    ENDPOINT,
    IGNORE,
    KB,
    KEY,
    MakeNode,
    check_members,
    code_of,
    join_control_plane,
    join_worker,
    kubectl,
    lead_endpoint,
    print_join,
    read_members,
    start_cluster,
    wait_kubectl,
    wait_nodes_ready,
)
from .lab.node import Node, wait_until
from .world.podnet import connect_nodes
from .world.web import check_cluster_serves

ROUNDS = int(os.environ.get("KB_E2E_ROUNDS", "2"))
"""How often what may race is repeated."""
LEASE = "lease -n kube-system kb-control-plane-join"


def read_files(node: Node) -> list[str]:
    """What a second run must leave alone, times included."""
    listing = "cd / && find etc usr/local var/lib/kubelet/*.* -type f -printf '%p %T@ %m\\n' | sort"
    return node.run(listing).stdout.splitlines()


def wait_scaled(server: Node, replicas: int) -> None:
    def is_scaled() -> bool:
        return bool(server.get("deployment scaled")["status"].get("readyReplicas") == replicas)

    wait_until(is_scaled, what="the Deployment to be scaled", timeout_s=240)


def wait_members(node: Node) -> None:
    wait_until(lambda: all(m["state"] == "serves" for m in read_members(node)), what="etcd", timeout_s=120)


def test_three_control_planes_and_two_workers(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """From scp and one line each; any one machine may stop; with two stopped kb says what is lost; all restart at once."""
    names = ["cp1", "cp2", "cp3", "w1", "w2"]
    nodes = start_cluster(make_node, kb_pyz, k8s_version, names=names)
    cp1, cp2, cp3, w1, w2 = nodes
    done = join_control_plane(cp2, cp1)
    assert "a new control plane instance was created" in done.stdout
    join_control_plane(cp3, cp2)  # by what the second one prints
    for worker in (w1, w2):
        join_worker(worker, cp1)
    wait_nodes_ready(cp1, names)
    check_members(cp3, ["cp1", "cp2", "cp3"])
    check_cluster_serves(cp2, server="w1", client="w2")
    cp1.kubectl("delete pod web client --wait=true", timeout=120)
    for node in (cp2, cp3):
        found = cp1.get(f"node {node.name}")
        assert [t["key"] for t in found["spec"]["taints"]] == ["node-role.kubernetes.io/control-plane"]
        assert "node-role.kubernetes.io/control-plane" in found["metadata"]["labels"]
        assert f"server: https://{node.address}:6443" in node.read("/etc/kubernetes/kubelet.conf")
        assert not node.exists("/etc/kubernetes/super-admin.conf")
        for key in ("ca", "sa", "front-proxy-ca", "etcd/ca"):
            assert node.run(f"stat -c %a /etc/kubernetes/pki/{key}.key").stdout.strip() == "600"
        assert cp1.read("/etc/kubernetes/pki/sa.pub") == node.read("/etc/kubernetes/pki/sa.pub")

    # again: nothing
    files = read_files(cp2)
    again = join_control_plane(cp2, cp1)
    assert "nothing to do" in again.stderr, again.output
    assert read_files(cp2) == files
    refused = cp2.run(f"{KB} {print_join(cp1)} {IGNORE}", check=False)
    assert code_of(refused) == "node-is-control-plane"
    refused = w1.run(f"{KB} {print_join(cp1, f'--certificate-key {KEY}')} {IGNORE}", check=False)
    assert code_of(refused) == "node-is-worker"

    # any one machine stops: the endpoint moves, and the cluster goes on
    cp1.kubectl("create deployment scaled --image=registry.k8s.io/e2e-test/web:1 --replicas=1")
    for gone in (cp1, cp2):
        rest = next(node for node in (cp2, cp3, cp1) if node is not gone)
        gone.kill()
        lead_endpoint(rest, nodes)
        wait_kubectl(rest, "get nodes", timeout_s=30)
        replicas = 2 if gone is cp1 else 3
        wait_kubectl(rest, f"scale deployment scaled --replicas={replicas}", timeout_s=60)
        rest.wait_pods_ready("default", "app=scaled", timeout_s=240)
        wait_scaled(rest, replicas)
        listed = rest.run(f"{KB} etcd members").stdout
        assert "2 of 3 voting members serve; 2 are needed" in listed
        gone.start()
        rest.wait_node_ready(gone.name)
        wait_members(rest)

    # two of three: what is lost, and what to do
    cp1.kill()
    cp2.kill()
    lead_endpoint(cp3, nodes)
    wait_until(lambda: "0 of 3 voting members serve; 2 are needed" in cp3.run(f"{KB} etcd members").stdout,
               what="the last member to notice", timeout_s=60)  # fmt: skip
    told = cp3.run(f"{KB} doctor", check=False).output
    assert "quorum" in told and "cp1" in told and "cp2" in told, told
    refused = cp3.run(f"{KB} etcd remove cp1", check=False)
    assert code_of(refused) == "etcd-removal-unsafe", refused.output

    # all machines at once
    for node in (cp3, w1, w2):
        node.kill()
    for node in nodes:
        node.start()
    lead_endpoint(cp1, nodes)
    wait_kubectl(cp1, "get nodes", timeout_s=240)
    wait_nodes_ready(cp1, names)
    check_members(cp1, ["cp1", "cp2", "cp3"])
    check_cluster_serves(cp1, server="w2", client="w1")

    # and one leaves
    left = cp3.run(f"{KB} reset --force", timeout=300)
    assert "was taken out of etcd's list: 2 members are left" in left.stderr
    check_members(cp1, ["cp1", "cp2"])
    assert cp3.run("find /var/lib/etcd /etc/kubernetes -mindepth 1", check=False).stdout == ""


@pytest.mark.k8s_versions("1.35")
def test_a_reset_never_takes_the_quorum(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """A control plane leaves right after it has joined, when etcd takes no change yet; and none leaves that is needed."""
    cp1, cp2, cp3 = start_cluster(make_node, kb_pyz, k8s_version, names=["cp1", "cp2", "cp3"])
    join_control_plane(cp2, cp1)
    left = cp2.run(f"{KB} reset --force", timeout=300)
    assert "was taken out of etcd's list: 1 member is left" in left.stderr, left.output
    check_members(cp1, ["cp1"])
    wait_kubectl(cp1, "delete node cp2", timeout_s=30)

    join_control_plane(cp2, cp1)
    join_control_plane(cp3, cp1)
    cp3.kill()
    refused = cp2.run(f"{KB} reset --force", timeout=300, check=False)
    assert code_of(refused) == "etcd-would-stop", refused.output
    assert "kb.pyz etcd remove" in refused.stderr and "--skip-phases remove-etcd-member" in refused.stderr
    wait_kubectl(cp1, "get nodes", timeout_s=30)
    assert cp2.run("systemctl is-active kubelet").ok, "nothing was changed"
    cp1.run(f"{KB} etcd remove cp3", timeout=60)
    left = cp2.run(f"{KB} reset --force", timeout=300)
    assert "1 member is left" in left.stderr, left.output
    check_members(cp1, ["cp1"])
    wait_kubectl(cp1, "get nodes", timeout_s=30)

    # the last one goes with its cluster
    cp1.run(f"{KB} reset --force", timeout=300)


@pytest.mark.k8s_versions("1.35")
def test_two_that_join_at_one_moment(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """They queue, and say so; no failure, no stale member, in every round."""
    cp1, cp2, cp3 = start_cluster(make_node, kb_pyz, k8s_version, names=["cp1", "cp2", "cp3"])
    queued = 0
    for number in range(ROUNDS):
        line = f"{KB} {print_join(cp1, f'--certificate-key {KEY}')} {IGNORE} --soak 0"
        running = [node.popen(line) for node in (cp2, cp3)]
        ends = [process.communicate(timeout=600)[0] for process in running]
        assert [process.returncode for process in running] == [0, 0], f"round {number}:\n" + "\n".join(ends)
        queued += any("is joining: waiting until it has finished" in text for text in ends)
        check_members(cp1, ["cp1", "cp2", "cp3"])
        assert kubectl(cp1, f"get {LEASE}", check=False).code != 0
        for node in (cp2, cp3):
            node.run(f"{KB} reset --force", timeout=300)
            cp1.kubectl(f"delete node {node.name}")
        check_members(cp1, ["cp1"])
    print(f"{ROUNDS} rounds, {queued} with a queue")


@pytest.mark.k8s_versions("1.35")
def test_killed_while_it_joins(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """SIGKILL at every phase and within etcd's, then the same command: the member list is right, no key is lost."""
    cp1, cp2 = start_cluster(make_node, kb_pyz, k8s_version, names=["cp1", "cp2"])
    cp2.scp(killer.PROGRAM, "/root/killer.py")
    argv = shlex.split(f"{KB} {print_join(cp1, f'--certificate-key {KEY}')} {IGNORE} --soak 0")
    moments = [(phase, 0.0) for phase in range(1, 14)] + [(7, delay) for delay in (0.3, 0.8, 1.5, 2.5, 4.0)]
    keys: dict[str, str] = {}
    for phase, delay_s in moments:
        wish = {"argv": argv, "phase": phase, "delay_s": delay_s, "signal": 9}
        seen: dict[str, Any] = json.loads(cp2.run(["python3", "killer.py", json.dumps(wish)], timeout=600).stdout)
        for path, digest in seen["keys"].items():
            assert digest != "HALF", f"{path} is half written after a kill in phase {phase} (+{delay_s} s)"
            assert keys.setdefault(path, digest) == digest, f"{path} was made anew after a kill in phase {phase}"
        assert len(read_members(cp1)) <= 2
    done = cp2.run(argv, timeout=600)
    assert "etcd-join" in done.stderr
    check_members(cp1, ["cp1", "cp2"])
    cp1.wait_node_ready("cp2")
    assert kubectl(cp1, f"get {LEASE}", check=False).code != 0
    again = cp2.run(argv, timeout=600)
    assert "nothing to do" in again.stderr

    # killed with etcd's member announced, and then given up: reset on the node, and nothing stale stays
    cp2.run(f"{KB} reset --force", timeout=300)
    check_members(cp1, ["cp1"])


@pytest.mark.k8s_versions("1.35")
def test_errors_by_their_causes(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, cp2 = start_cluster(make_node, kb_pyz, k8s_version, names=["cp1", "cp2"])
    before = read_files(cp2)

    def fails(node: Node, words: str, code: str, *hints: str) -> str:
        result = node.run(f"{KB} {words} {IGNORE} --soak 0", check=False, timeout=600)
        assert result.code != 0 and code_of(result) == code, result.output
        for hint in hints:
            assert hint in result.stderr, result.output
        return result.stderr

    plain = print_join(cp1)
    with_key = print_join(cp1, f"--certificate-key {KEY}")
    fails(cp2, f"{plain} --control-plane", "shared-files-missing", "--certificate-key", "/etc/kubernetes/pki/sa.key")
    fails(cp2, with_key.replace(KEY, "cd" * 32), "certificate-key-wrong", "upload-certs")
    fails(cp2, with_key.replace(KEY, "abc"), "invalid-config")
    cp1.kubectl("delete secret -n kube-system kubeadm-certs")
    fails(cp2, with_key, "certs-secret-missing", "two hours", "kb.pyz token create --print-join-command")
    assert read_files(cp2) == before
    with_key = print_join(cp1, f"--certificate-key {KEY}")

    # an image that cannot be had: etcd never starts, and is not left behind
    cp2.run("crictl rmi $(crictl images -q registry.k8s.io/etcd) && crictl images", check=False)
    told = fails(cp2, f"{with_key} --ignore-preflight-errors=ImagePull", "not-healthy", "etcd",
                 "taken out of etcd's list again: the cluster is as it was (1 of 1 members serve)")  # fmt: skip
    assert re.search(r"image", told), told
    check_members(cp1, ["cp1"])
    cp2.load_images(k8s_version)
    cp2.run(f"{KB} {with_key} {IGNORE} --soak 0", timeout=600)
    check_members(cp1, ["cp1", "cp2"])


@pytest.mark.k8s_versions("1.35")
def test_a_machine_that_lost_its_disk_comes_again(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Of three members one loses all it had: others cannot join until it is removed or comes again; it may come again."""
    cp1, cp2, cp3, cp4 = start_cluster(make_node, kb_pyz, k8s_version, names=["cp1", "cp2", "cp3", "cp4"])
    for node in (cp2, cp3):
        join_control_plane(node, cp1)
    cp3.run("systemctl stop kubelet; crictl rmp -fa", timeout=120, check=False)
    cp3.run("rm -rf /var/lib/etcd/* /etc/kubernetes/* /var/lib/kb /var/lib/kubelet/pki /var/lib/kubelet/*.yaml")
    refused = join_control_plane(cp4, cp1, check=False)
    assert code_of(refused) == "etcd-member-down" and "kb.pyz etcd remove cp3" in refused.stderr, refused.output
    assert "2 of 3 members serve" in refused.stderr
    wait_until(lambda: "NotReady" in cp1.kubectl("get node cp3 --no-headers"), what="cp3 to be missed", timeout_s=120)
    again = join_control_plane(cp3, cp1)
    assert "etcd still listed this node's former member cp3" in again.stderr, again.output
    check_members(cp1, ["cp1", "cp2", "cp3"])
    # and the one that could not, can
    join_control_plane(cp4, cp1)
    check_members(cp1, ["cp1", "cp2", "cp3", "cp4"])
    # lost for ever: removed by hand
    cp4.kill()
    removed = cp1.run(f"{KB} etcd remove cp4")
    assert "3 members are left" in removed.stdout
    check_members(cp2, ["cp1", "cp2", "cp3"])


@pytest.mark.k8s_versions("1.35")
def test_without_an_endpoint(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, cp2 = start_cluster(make_node, kb_pyz, k8s_version, names=["cp1", "cp2"], endpoint=None)
    refused = join_control_plane(cp2, cp1, check=False)
    assert code_of(refused) == "no-control-plane-endpoint" and "kb.pyz reconfigure endpoint" in refused.stderr


def test_the_files_alone_are_enough(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Certificates that were copied by hand, no key; a document instead of flags; phase by phase."""
    cp1, cp2 = start_cluster(make_node, kb_pyz, k8s_version, names=["cp1", "cp2"])
    shared = "ca.crt ca.key sa.key sa.pub front-proxy-ca.crt front-proxy-ca.key etcd/ca.crt etcd/ca.key"
    cp2.run("mkdir -p /etc/kubernetes/pki/etcd")
    for name in shared.split():
        path = f"/etc/kubernetes/pki/{name}"
        cp2.write(path, cp1.read(path))
        cp2.run(f"chmod 600 {path}")
    words = print_join(cp1).split()
    document = {
        "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "JoinConfiguration",
        "discovery": {"bootstrapToken": {"token": words[3], "apiServerEndpoint": words[1], "caCertHashes": [words[5]]}},
        "controlPlane": {"localAPIEndpoint": {"advertiseAddress": cp2.address}},
    }  # fmt: skip
    cp2.write("/root/join.yaml", json.dumps(document))
    for phase in ("preflight", "control-plane-prepare all", "kubelet-start", "etcd-join"):
        cp2.run(f"{KB} join phase {phase} --config join.yaml {IGNORE}", timeout=600)
    cp2.run(f"{KB} join --config join.yaml {IGNORE}", timeout=600)
    check_members(cp1, ["cp1", "cp2"])
    cp1.wait_node_ready("cp2")


# ---- with kubeadm


def test_kb_s_control_plane_in_kubeadm_s_cluster(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kubeadm made the first; kb brings the second, and kubeadm the third by the line that kb prints on the second."""
    cp1, cp2, cp3 = (make_node(name, version=k8s_version, kubeadm=True) for name in ("cp1", "cp2", "cp3"))
    nodes = [cp1, cp2, cp3]
    lead_endpoint(cp1)
    config = lab_config(k8s_version, address=cp1.address, endpoint=ENDPOINT, init={"certificateKey": KEY})
    cp1.write("/root/init.yaml", config)
    cp1.run(f"kubeadm init --config init.yaml --upload-certs {IGNORE}", timeout=900)
    for node in nodes:
        node.scp(kb_pyz, "/root/kb.pyz")
    line = print_join(cp1, f"--certificate-key {KEY}", program="kubeadm")
    cp2.run(f"{KB} {line} {IGNORE} --soak 0", timeout=900)
    check_members(cp2, ["cp1", "cp2"])
    line = print_join(cp2, "--control-plane")
    cp3.run(f"kubeadm {line} {IGNORE}", timeout=900)
    check_members(cp1, ["cp1", "cp2", "cp3"])
    connect_nodes(nodes)
    wait_nodes_ready(cp1, ["cp1", "cp2", "cp3"])
    for node in nodes:
        node.run("kubeadm certs check-expiration", timeout=120)
    # each tool takes back what it brought, and etcd's list is right
    cp3.run("kubeadm reset --force", timeout=300)
    check_members(cp1, ["cp1", "cp2"])
    cp2.run(f"{KB} reset --force", timeout=300)
    check_members(cp1, ["cp1"])


def test_kubeadm_s_control_plane_in_kb_s_cluster(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, _ = start_cluster(
        make_node, kb_pyz, k8s_version, names=["cp1", "spare"], kb={"podNetwork": {"plugin": "none"}}
    )
    cp2 = make_node("cp2", version=k8s_version, kubeadm=True)
    cp2.scp(kb_pyz, "/root/kb.pyz")
    cp2.run(f"kubeadm {print_join(cp1, f'--certificate-key {KEY}')} {IGNORE}", timeout=900)
    check_members(cp1, ["cp1", "cp2"])
    check_members(cp2, ["cp1", "cp2"])
    connect_nodes([cp1, cp2])
    wait_nodes_ready(cp1, ["cp1", "cp2"])
    # the files that the two tools leave on a joining control plane are of the same names and modes
    cp3 = make_node("cp3", version=k8s_version)
    cp3.scp(kb_pyz, "/root/kb.pyz")
    join_control_plane(cp3, cp2)
    listing = "cd /etc/kubernetes && find . -type f -printf '%P %m\\n' | sort"
    by_kubeadm, by_kb = (node.run(listing).stdout.splitlines() for node in (cp2, cp3))
    # kubeadm downloads sa.pub with the mode of a certificate, as kb does
    assert by_kb == by_kubeadm
