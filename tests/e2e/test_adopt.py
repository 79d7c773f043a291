"""Nodes that kubeadm made are adopted, and looked after: kb looks, writes its state and records and nothing else, and goes on
with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Callable

import pytest

from .lab import compare
from .lab.config import lab_config, list_ignored_checks
from .lab.node import Node, wait_until
from .test_beside_kubeadm import read_living
from .world.podnet import connect_nodes

MakeNode = Callable[..., Node]
KB = "python3 kb.pyz"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
TOKEN = r"[a-z0-9]{6}\.[a-z0-9]{16}"
HASH = r"sha256:[0-9a-f]{64}"


def kubeadm_s_own(left: dict[str, str]) -> list[str]:
    """Of the phases that were not adopted those that kubeadm has too; kb's own are there for kb to do."""
    return [name for name in left if name.partition("/")[0] not in ("install", "load-balancer", "pod-network")]


def test_adopt(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """A control plane and a worker that kubeadm made: kb looks, writes its state and records and nothing else, and goes on
    with them."""
    cp1, w1 = (make_node(name, version=k8s_version, kubeadm=True) for name in ("cp1", "w1"))
    cp1.write("/root/init.yaml", lab_config(k8s_version, address=cp1.address))
    cp1.run(f"kubeadm init --config init.yaml {IGNORE}", timeout=600)
    w1.run(f"{cp1.run('kubeadm token create --print-join-command').stdout.strip()} {IGNORE}", timeout=300)
    connect_nodes([cp1, w1])
    cp1.wait_node_ready("cp1")
    cp1.wait_node_ready("w1")
    cp1.wait_pods_ready("kube-system")
    for node, workflow, role in ((cp1, "init", "control plane"), (w1, "join", "worker")):
        node.scp(kb_pyz, "/root/kb.pyz")
        before = read_living(node)
        assert "would be adopted" in node.run(f"{KB} adopt --dry-run").stdout and not node.exists("/var/lib/kb")
        told = json.loads(node.run(f"{KB} adopt -o json").stdout)
        assert (told["node"], told["role"]) == (node.name, role)
        assert kubeadm_s_own(told["left"]) == [], told
        assert read_living(node) == before
        written = sorted(node.run("ls /var/lib/kb").stdout.split())
        assert written == [f"adopted-{workflow}.yaml", "lock", "records", "state.json"]
        status = node.run(f"{KB} status").stdout
        assert status.startswith(f"node {node.name} of cluster kubernetes\n")
        assert re.search(rf"^{workflow}/kubelet-start +adopted ", status, re.MULTILINE)

        # kb goes on: it adds what is its own, and no container, and nothing that kubeadm made, is touched
        done = node.run(f"{KB} {workflow} {IGNORE}", timeout=300)
        assert "this node was adopted" in done.stderr
        after = [line for line in read_living(node).splitlines() if "90-kb.conf" not in line]
        assert after == before.splitlines()
        assert node.run(f"{KB} {workflow} {IGNORE}", timeout=300).stderr.count("nothing to do") == 1
        examined = node.run(f"{KB} doctor", check=False)
        assert "\n0 errors, " in examined.stdout and examined.code == 0, examined.output
        again = node.run(f"{KB} adopt", check=False)
        assert again.code == 4 and "nothing-to-adopt" in again.stderr  # kb has worked on it by now
    wrong = w1.run(f"{KB} init {IGNORE}", check=False)
    assert "code:   node-is-worker" in wrong.stderr
    shown = cp1.run(f"{KB} init {IGNORE}").stdout
    assert re.search(rf"^{KB} join {cp1.address}:6443 --token {TOKEN} ", shown, re.MULTILINE), shown
    check_tools_of_kubeadm_s_cluster(cp1)

    # reset takes back what kb did, which is next to nothing
    cp1.run(f"{KB} reset --force")
    assert [line for line in read_living(cp1).splitlines() if "kb" in line and "kubelet" not in line] == []
    cp1.wait_node_ready("cp1")
    refused = cp1.run(f"{KB} reset --force", check=False)
    assert "kubeadm reset" in refused.stderr and refused.code == 4


def check_tools_of_kubeadm_s_cluster(node: Node) -> None:
    """kb's own tools on a node that kubeadm made."""
    shown = node.run(f"{KB} token create --print-join-command").stdout
    found = re.fullmatch(rf"{KB} join \S+ --token ({TOKEN}) --discovery-token-ca-cert-hash {HASH} \n", shown)
    assert found and found[1] in node.run("kubeadm token list").stdout
    node.run(f"{KB} token delete {found[1]}")
    assert found[1] not in node.run("kubeadm token list").stdout
    key = node.run(f"{KB} certs certificate-key").stdout.strip()
    node.run(f"{KB} token create --print-join-command --certificate-key {key}")
    assert "ca.key" in node.get("secret -n kube-system kubeadm-certs")["data"]


@pytest.mark.k8s_versions("1.35")
def test_adopt_what_differs(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Patches that kb does not know of are told as a difference, and with --patches there is none; a machine that is no
    node, and a cluster that does not answer, are told apart."""
    cp1 = make_node("cp1", version=k8s_version, kubeadm=True)
    cp1.scp(kb_pyz, "/root/kb.pyz")
    nothing = cp1.run(f"{KB} adopt", check=False)
    assert "code:   nothing-to-adopt" in nothing.stderr and not cp1.exists("/var/lib/kb")

    cp1.write("/root/patches/kube-scheduler.json", json.dumps({"metadata": {"annotations": {"a": "b"}}}))
    init = {
        "patches": {"directory": "/root/patches"},
        "nodeRegistration": {"kubeletExtraArgs": [{"name": "v", "value": "3"}], "taints": []},
    }
    cp1.write("/root/init.yaml", lab_config(k8s_version, address=cp1.address, init=init))
    cp1.run(f"kubeadm init --config init.yaml {IGNORE}", timeout=600)
    connect_nodes([cp1])
    cp1.wait_node_ready()
    compare.wait_settled(cp1)
    without = json.loads(cp1.run(f"{KB} adopt -o json").stdout)
    assert kubeadm_s_own(without["left"]) == ["control-plane/scheduler"], without
    with_patches = json.loads(cp1.run(f"{KB} adopt -o json --patches patches").stdout)
    assert kubeadm_s_own(with_patches["left"]) == [], with_patches
    before = read_living(cp1)
    cp1.run(f"{KB} init {IGNORE}", timeout=300)
    assert [line for line in read_living(cp1).splitlines() if "90-kb.conf" not in line] == before.splitlines()

    cp1.run(f"{KB} reset --force && mv /etc/kubernetes/manifests/kube-apiserver.yaml /root/")
    wait_until(lambda: not cp1.run("crictl ps -q --name kube-apiserver 2>/dev/null").stdout.strip(),
               what="the API server to end", timeout_s=60)  # fmt: skip
    cp1.run("cp /root/kube-apiserver.yaml /etc/kubernetes/manifests/kube-apiserver.yaml.off")
    silent = cp1.run(f"{KB} adopt", check=False, timeout=120)
    assert silent.code in (4, 5) and not cp1.exists("/var/lib/kb/state.json"), silent.output
