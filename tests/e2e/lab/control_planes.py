"""What tests of several control planes share: an endpoint that leads to all of them, joins, and what etcd says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from .config import PATIENT_KUBELET, lab_config, list_ignored_checks
from .node import Node, wait_until
from .shell import Result

MakeNode = Callable[..., Node]
KB = "python3 kb.pyz"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
KEY = "ab" * 32
"""A certificate key: 64 hex digits."""
ENDPOINT_IP = "10.77.0.200"
ENDPOINT = f"{ENDPOINT_IP}:6443"
"""A virtual address, as an administrator's own load balancer has one: `lead_endpoint` says which node has it."""


def lead_endpoint(node: Node, others: Sequence[Node] = ()) -> None:
    """Give the endpoint's address to this node, as keepalived would, and take it from the others that run."""
    running = [other for other in others if other.running and other is not node]
    for other in running:
        other.exec(f"ip address del {ENDPOINT_IP}/32 dev eth0", check=False)
    node.exec(f"ip address add {ENDPOINT_IP}/32 dev eth0", check=False)
    for other in running:
        other.exec("ip neighbour flush dev eth0")  # what an unasked ARP reply does


def start_cluster(
    make_node: MakeNode, kb_pyz: Path, version: str, *, names: Sequence[str], **config: Any
) -> list[Node]:
    """Nodes by these names; the first one is made the first control plane. The certificates are uploaded."""
    nodes = [make_node(name, version=version) for name in names]
    for node in nodes:
        node.scp(kb_pyz, "/root/kb.pyz")
    first = nodes[0]
    lead_endpoint(first)
    config.setdefault("endpoint", ENDPOINT)
    config.setdefault("kubelet", PATIENT_KUBELET)
    text = lab_config(
        first.release.minor, address=first.address, init={"certificateKey": KEY},
        kb=config.pop("kb", {"podNetwork": {"plugin": "bridge"}}), **config,
    )  # fmt: skip
    first.write("/root/init.yaml", text)
    first.run(f"{KB} init --config init.yaml --upload-certs --soak 0 {IGNORE}", timeout=900)
    return nodes


def print_join(server: Node, words: str = "", program: str = KB) -> str:
    """The words of a join command, without the program: `join HOST:PORT --token ...`."""
    shown = server.run(f"{program} token create --print-join-command {words}").stdout.strip()
    found = re.fullmatch(
        r"(?:kubeadm|python3 kb.pyz) (join \S+ --token \S+ --discovery-token-ca-cert-hash \S+.*)", shown
    )
    assert found, shown
    return found[1].strip()


def join_control_plane(node: Node, server: Node, words: str = "", *, check: bool = True) -> Result:
    line = print_join(server, f"--certificate-key {KEY}")
    return node.run(f"{KB} {line} {IGNORE} --soak 0 {words}", check=check, timeout=900)


def join_worker(node: Node, server: Node, words: str = "") -> Result:
    return node.run(f"{KB} {print_join(server)} {IGNORE} {words}", timeout=900)


def read_members(node: Node) -> list[dict[str, Any]]:
    """`kb etcd members`, asked on this control plane."""
    found: list[dict[str, Any]] = json.loads(node.run(f"{KB} etcd members -o json").stdout)
    return sorted(found, key=lambda member: str(member["name"]))


def check_members(node: Node, names: Sequence[str]) -> None:
    """etcd has these members, each with a vote, and each serves."""
    found = read_members(node)
    assert [(m["name"], m["isLearner"], m["state"]) for m in found] == [(n, False, "serves") for n in sorted(names)], (
        found
    )


def code_of(result: Result) -> str:
    found = re.search(r"^  code:   (\S+)$", result.stderr, re.MULTILINE)
    assert found, result.output
    return found[1]


def wait_nodes_ready(server: Node, names: Sequence[str], timeout_s: float = 240) -> None:
    for name in names:
        server.wait_node_ready(name, timeout_s=timeout_s)


def kubectl(node: Node, words: str, server: Optional[str] = None, *, check: bool = True) -> Result:
    """kubectl as the node's admin, against the endpoint or another server."""
    where = f"--server https://{server}" if server else ""
    return node.run(
        f"kubectl --kubeconfig /etc/kubernetes/admin.conf --request-timeout 5s {where} {words}", check=check
    )


def wait_kubectl(node: Node, words: str, *, timeout_s: float) -> None:
    """Until the command succeeds."""
    wait_until(lambda: kubectl(node, words, check=False).code == 0, what=f"kubectl {words}", timeout_s=timeout_s)


def is_lost(server: Node, name: str) -> bool:
    """Whether the cluster has heard nothing of the node for so long that it says so."""
    rows = server.get(f"node {name}")["status"]["conditions"]
    return bool({row["type"]: row["status"] for row in rows}["Ready"] == "Unknown")


def wait_well(node: Node) -> None:
    """After a boot, until kubelet, controller-manager and scheduler have renewed their leases: what is stored says Ready from before."""
    since = node.run("date -u +%Y-%m-%dT%H:%M:%S").stdout.strip()
    names = {"kube-controller-manager": "kube-system", "kube-scheduler": "kube-system", node.name: "kube-node-lease"}

    def are_renewed() -> bool:
        found = [node.get(f"lease {name} -n {namespace}") for name, namespace in names.items()]
        return all(one["spec"]["renewTime"] > since for one in found)

    wait_until(are_renewed, what=f"the leases of {node.name} to be renewed", timeout_s=180)
    node.wait_node_ready()
