"""`kubeadm upgrade` of the real kubeadm and of kb under its name, side by side on real nodes: the same lines, statuses, files and
objects; and what people changed in the addons outlives kb's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .lab.config import lab_config
from .lab.node import Node
from .lab.shell import Result
from .test_adopt import IGNORE
from .world.podnet import connect_nodes

MakeNode = Callable[..., Node]
NEXT = {"1.34": "1.35", "1.35": "1.36"}
SCRIPTED = re.compile(
    r"(\[upgrade(/[a-z-]+)?\]|\[addons\]|\[bootstrap-token\]|\[upload-config\]|\[kubelet\]|\[kubelet-start\]|\[dryrun\]) .*"
)
KUBECTL = "kubectl --kubeconfig /etc/kubernetes/admin.conf"
SYSTEM = f"{KUBECTL} -n kube-system"
RESTS = "--ignore-preflight-errors=SystemVerification,CreateJob,ContainerRuntimeVersion"


def scripted(text: str) -> list[str]:
    """The lines that scripts go by, without what differs between two runs of one tool."""
    lines = [line for line in text.splitlines() if SCRIPTED.fullmatch(line)]
    for pattern, name in (
        (r"\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d", "TIME"),
        (r"(kubeadm-upgraded-manifests|kubeadm-kubelet-env)\d+", r"\1N"),
    ):
        lines = [re.sub(pattern, name, line) for line in lines]
    return lines


def both(nodes: list[Node], line: str, *, code: int = 0, has_lines: bool = True) -> list[Result]:
    results = [node.run(line, check=False, timeout=900) for node in nodes]
    real, ours = results
    told = f"{line}\n--- kubeadm ({real.code}):\n{real.output}\n--- kb ({ours.code}):\n{ours.output}"
    print(told)
    assert real.code == ours.code == code, told
    if has_lines:
        texts = [one.stdout.replace(node.name, "NAME") for one, node in zip(results, nodes)]
        assert scripted(texts[0]) == scripted(texts[1]), told
    return results


def make_pair(make_node: MakeNode, kb_pyz: Path, version: str) -> tuple[list[Node], str]:
    """Two clusters of one node, made by kubeadm; the second one's next kubeadm is kb."""
    nodes = [make_node(name, version=version, kubeadm=True, containerd="2.1") for name in ("real", "ours")]
    ours = nodes[1]
    target = ""
    for node in nodes:
        node.write("/root/init.yaml", lab_config(version, address=node.address))
        node.run(f"kubeadm init --config init.yaml {IGNORE}", timeout=600)
        connect_nodes([node])
        node.wait_node_ready()
        node.run(f"{KUBECTL} taint node --all node-role.kubernetes.io/control-plane-")
        folder = node.offer_release(NEXT[version])
        target = Path(folder).name
        node.run(f"ln -sf {folder}/kubeadm $(command -v kubeadm)")
    ours.scp(kb_pyz, "/root/kb.pyz")
    ours.run(
        f"chmod +x kb.pyz; k=$(command -v kubeadm); ln -sf /root/kb.pyz /usr/local/bin/kubeadm-{target}; "
        f"ln -sf /usr/local/bin/kubeadm-{target} $k"
    )
    return nodes, target


def edit_addons(node: Node) -> None:
    node.run(
        f"{SYSTEM} set resources deploy/coredns --limits=memory=300Mi; {SYSTEM} annotate deploy coredns ours=yes; "
        f"{SYSTEM} patch ds kube-proxy -p "
        """'{"spec":{"template":{"spec":{"containers":[{"name":"kube-proxy","resources":{"requests":{"cpu":"7m"}}}]}}}}'"""
    )
    text = node.run(f"{SYSTEM} get cm coredns -o json").stdout
    found = json.loads(text)
    found["data"]["Corefile"] = found["data"]["Corefile"].replace("ttl 30", "ttl 5 # ours")
    node.write("/root/corefile.json", json.dumps(found))
    node.run(f"{KUBECTL} replace --validate=false -f corefile.json")


def look(node: Node) -> dict[str, Any]:
    """What an upgrade changes, without what differs between two runs of one tool."""
    files = node.run(
        "cat /var/lib/kubelet/config.yaml /var/lib/kubelet/kubeadm-flags.env; cd /etc/kubernetes; "
        "sha256sum manifests/kube-controller-manager.yaml manifests/kube-scheduler.yaml; "
        "find . -not -path './pki*' -printf '%p %m\\n' | sort"
    ).stdout
    files = re.sub(r"\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d", "TIME", files).replace(node.name, "NAME")
    objects = {
        name: json.loads(node.run(f"{SYSTEM} get {name} -o json").stdout)
        for name in (
            "cm/kubeadm-config",
            "cm/kubelet-config",
            "cm/kube-proxy",
            "cm/coredns",
            "ds/kube-proxy",
            "deploy/coredns",
        )
    }
    return {
        "files": [line for line in files.splitlines() if "kubeadm-backup-etcd" not in line],
        "data": {name: found.get("data") for name, found in objects.items() if name != "cm/kube-proxy"},
        "images": [
            objects[name]["spec"]["template"]["spec"]["containers"][0]["image"]
            for name in ("ds/kube-proxy", "deploy/coredns")
        ],
        "deployment": objects["deploy/coredns"],
        "daemonset": objects["ds/kube-proxy"],
    }


@pytest.mark.k8s_versions("1.34", "1.35")
def test_an_upgrade_is_kubeadm_s(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    nodes, target = make_pair(make_node, kb_pyz, k8s_version)
    ours = nodes[1]
    for node in nodes:
        edit_addons(node)
    for result in both(nodes, "kubeadm version -o short"):
        assert result.stdout == f"{target}\n"
    both(nodes, "kubeadm upgrade nothing", code=1)
    both(nodes, "kubeadm upgrade apply", code=1)
    both(nodes, "kubeadm upgrade apply --no-such-flag", code=1)
    both(nodes, f"kubeadm upgrade apply v1.99.0 -y {RESTS}", code=1, has_lines=False)
    both(nodes, f"kubeadm upgrade plan {target} {RESTS}", has_lines=False)
    both(nodes, f"kubeadm upgrade diff {target}", has_lines=False)
    both(nodes, f"echo n | kubeadm upgrade apply {target} {RESTS}", code=1, has_lines=False)
    assert not ours.exists("/var/lib/kb")
    both(nodes, f"time kubeadm upgrade apply {target} -y {RESTS}")
    looks = [look(node) for node in nodes]
    for name in ("files", "data", "images"):
        assert looks[0][name] == looks[1][name], name
    (limits,) = [
        one["deployment"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for one in looks[1:]
    ]
    assert limits == {"memory": "300Mi"}
    assert looks[1]["daemonset"]["spec"]["template"]["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "7m"}
    }
    assert looks[1]["deployment"]["metadata"]["annotations"]["ours"] == "yes"
    assert "ttl 5 # ours" in looks[1]["data"]["cm/coredns"]["Corefile"]
    for result in both(nodes, "kubeadm version -o short"):
        assert result.stdout == f"{target}\n"
    assert not ours.exists("/var/lib/kb")
    both(nodes, f"kubeadm upgrade node {RESTS}", has_lines=False)
