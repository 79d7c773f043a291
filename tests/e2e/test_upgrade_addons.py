"""The addons in `kb upgrade`, on real nodes: what people changed in them outlives it, and what kb cannot carry over stays as it is,
with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB
from .lab.node import Node
from .lab.settings import MINORS, find_release
from .lab.shell import Result
from .world.web import check_cluster_serves

MakeNode = Callable[..., Node]
NEXT = {"1.34": "1.35", "1.35": "1.36"}
KUBECTL = "kubectl --kubeconfig /etc/kubernetes/admin.conf"
SYSTEM = f"{KUBECTL} -n kube-system"


def make_cluster(make_node: MakeNode, kb_pyz: Path, version: str) -> Node:
    node = make_node("cp1", version=version)
    node.scp(kb_pyz, "/root/kb.pyz")
    kb = {"podNetwork": {"plugin": "bridge"}}
    node.write("/root/init.yaml", lab_config(version, address=node.address, kb=kb))
    node.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)
    return node


def upgrade(node: Node, minor: str) -> Result:
    done = node.run(f"{KB} upgrade apply {find_release(minor).version} --yes --no-drain", check=False, timeout=900)
    print(done.output, flush=True)
    return done


def edit_corefile(node: Node, old: str, new: str) -> None:
    found = json.loads(node.run(f"{SYSTEM} get cm coredns -o json").stdout)
    assert old in found["data"]["Corefile"]
    found["data"]["Corefile"] = found["data"]["Corefile"].replace(old, new)
    node.write("/root/corefile.json", json.dumps(found))
    node.run(f"{KUBECTL} replace --validate=false -f corefile.json")


def read(node: Node, name: str) -> Any:
    return json.loads(node.run(f"{SYSTEM} get {name} -o json").stdout)


def container(found: Any) -> Any:
    return found["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.k8s_versions("1.34", "1.35")
def test_what_people_changed_outlives_an_upgrade(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """First with a plugin that CoreDNS lacks: only CoreDNS stays. Then without it: CoreDNS follows."""
    node = make_cluster(make_node, kb_pyz, k8s_version)
    minor = NEXT[k8s_version]
    folder = node.offer_release(minor)
    for name in ("kubelet", "kubectl"):
        node.run(f"p=$(command -v {name}); cp {folder}/{name} $p.new && mv $p.new $p")
    edit_corefile(node, "ttl 30", "ttl 5 # ours")
    requests = '{"containers":[{"name":"kube-proxy","resources":{"requests":{"cpu":"7m"}}}]}'
    node.run(
        f"{SYSTEM} set resources deploy/coredns --limits=memory=300Mi; {SYSTEM} annotate deploy coredns ours=yes; "
        f"{SYSTEM} scale deploy coredns --replicas=3; "
        f"""{SYSTEM} patch ds kube-proxy -p '{{"spec":{{"template":{{"spec":{requests}}}}}}}'"""
    )
    node.run(f"{SYSTEM} rollout status deploy/coredns --timeout=120s")
    edit_corefile(node, "loadbalance", "loadbalance\n    fanout . 10.0.0.53")

    done = upgrade(node, minor)
    assert done.ok, done.output
    assert "the Corefile has the plugin fanout" in done.output
    version, former = find_release(minor).version, MINORS[k8s_version].coredns
    assert container(read(node, "ds/kube-proxy"))["image"].endswith(f":{version}")
    assert container(read(node, "deploy/coredns"))["image"].endswith(f":{former}")

    edit_corefile(node, "\n    fanout . 10.0.0.53", "")
    done = upgrade(node, minor)
    assert done.ok, done.output
    deployment, proxy = read(node, "deploy/coredns"), read(node, "ds/kube-proxy")
    assert container(deployment)["image"].endswith(f":{MINORS[minor].coredns}")
    assert container(deployment)["resources"]["limits"] == {"memory": "300Mi"}
    assert deployment["spec"]["replicas"] == 3 and deployment["metadata"]["annotations"]["ours"] == "yes"
    assert container(proxy)["resources"] == {"requests": {"cpu": "7m"}}
    assert "ttl 5 # ours" in read(node, "cm/coredns")["data"]["Corefile"]
    assert deployment["status"]["updatedReplicas"] == deployment["status"]["availableReplicas"] == 3
    check_cluster_serves(node)

    again = upgrade(node, minor)
    assert again.ok and "addon/coredns" in again.output, again.output
