"""A whole cluster on real nodes, three control planes and two workers: upgraded once with every node drained, once with none, while clients
read and write through the load balancers of nodes, on a host and in pods."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.node import Node, wait_until
from .lab.settings import find_release
from .lab.static_pods import SLOW, Calls, Client, PodClient, fill_store, read_stored
from .test_join_load_balancer import join, wait_servers
from .test_static_pods import GAP_S, make_three, told
from .test_upgrade import APPLY, NODE, check_calls, check_version, is_dropped, offer
from .test_upgrade_kubelet import is_open, kubelet_of
from .world import web

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
NEXT = "1.36"
ADMIN, INSIDE = "/root/admin.conf", "/root/inside.conf"
"""The admin's kubeconfig through the node's load balancer, and the same through the Service `kubernetes`, for pods of the pod network."""
APP = "app=moved"
FEW = 5
"""How many connections to the Service `kubernetes` may be refused, or closed before they are answered, while a node is upgraded."""
NOT_SERVED = ("ConnectionRefusedError", "RemoteDisconnected")
"""What a connection meets that kube-proxy leads to an API server which stops: its port is closed, or it ends while the request comes."""


def make_cluster(make_node: MakeNode, kb_pyz: Path, version: str) -> list[Node]:
    """Three control planes and two workers, each with the admin's kubeconfig."""
    nodes = make_three(make_node, kb_pyz, version)
    servers = [node.address for node in nodes]
    for name in ("w1", "w2"):
        worker = make_node(name, version=version)
        join(worker, nodes[0], kb_pyz)
        wait_servers(worker, servers, timeout_s=120)
        nodes[0].wait_node_ready(name)
        nodes.append(worker)
    text = nodes[0].read("/etc/kubernetes/admin.conf")
    for node in nodes:
        node.write(ADMIN, text, mode=0o600)
        node.write(INSIDE, text.replace("https://kb-api.cluster.local:7443", "https://10.96.0.1:443"), mode=0o600)
    return nodes


def deploy(server: Node) -> None:
    """Two pods on the workers, of which a budget lets one go at a time."""
    web.wait_service_account(server)
    labels = dict([APP.split("=")])
    spec: dict[str, Any] = {**web.render_pod("web")["spec"], "tolerations": []}
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "moved"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }  # fmt: skip
    budget = {
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "one-of-them"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": labels}},
    }  # fmt: skip
    web.apply(server, deployment, budget)
    server.wait_pods_ready("default", APP)


def list_pods(server: Node) -> dict[str, str]:
    """UID -> node of the deployment's pods that are not about to end."""
    pods = server.get(f"pods -l {APP}")["items"]
    return {
        pod["metadata"]["uid"]: pod["spec"]["nodeName"] for pod in pods if "deletionTimestamp" not in pod["metadata"]
    }


def list_clients(nodes: Sequence[Node], node: Node, *, drained: bool) -> Iterator[Client]:
    """On the node that is upgraded; in pods there too, or where a drain does not end them."""
    yield Client(node, "keep", ADMIN)
    yield Client(node, "new", ADMIN)
    place = next(one for one in reversed(nodes) if one is not node) if drained else node
    server = next(one for one in nodes if one is not node)
    yield PodClient(place, "keep", ADMIN, server)
    yield PodClient(place, "new", INSIDE, server, is_on_host=False)


@pytest.mark.parametrize("drained", [True, False], ids=["drained", "not-drained"])
def test_nobody_notices(make_node: MakeNode, kb_pyz: Path, k8s_version: str, drained: bool) -> None:
    nodes = make_cluster(make_node, kb_pyz, k8s_version)
    first, version = nodes[0], find_release(NEXT).version
    deploy(first)
    fill_store(first)
    stored, began = read_stored(first), time.monotonic()
    seen: list[tuple[Client, Calls]] = []
    for node in nodes:  # kube-proxy follows the last control plane on every node
        node.offer_release(NEXT)
    for index, node in enumerate(nodes):
        seen += upgrade_under_clients(nodes, node, command=NODE if index else f"{APPLY} {version}", drained=drained)
    print(f"all of it, with the clients' starts and ends: {time.monotonic() - began:.0f} s", flush=True)
    for node in nodes[:3]:
        check_version(node, version)
    check_calls([calls for client, calls in seen if client.kubeconfig == ADMIN])
    check_through_service([calls for client, calls in seen if client.kubeconfig == INSIDE])
    assert stored <= read_stored(first)
    first.wait_pods_ready("default", APP)
    images = first.kubectl("-n kube-system get deploy,ds -o jsonpath={..image}")
    assert f"kube-proxy:{version}" in images


def check_through_service(seen: Sequence[Calls]) -> None:
    """That a node whose kube-proxy has not heard yet that an API server stops, or is being replaced itself, refuses a connection for a moment at most."""
    for calls in seen:
        others = [row for row in calls.failed if not is_dropped(row) and not row[3].startswith(NOT_SERVED)]
        assert others == [] and len(calls.failed) <= FEW, calls.failed[:10]
        assert calls.longest_gap_s <= GAP_S * SLOW + 7.0 * any(map(is_dropped, calls.failed)), calls


def upgrade_under_clients(
    nodes: Sequence[Node], node: Node, *, command: str, drained: bool
) -> list[tuple[Client, Calls]]:
    server = next(one for one in nodes if one is not node)
    version = offer(node, NEXT)
    pods = list_pods(server)
    here = {uid for uid, name in pods.items() if name == node.name}
    clients = list(list_clients(nodes, node, drained=drained))
    for client in clients:
        client.start()
    time.sleep(2)
    began = time.monotonic()
    told(node.run(f"{command} --yes {'' if drained else '--no-drain'}", timeout=900))
    took_s = time.monotonic() - began
    time.sleep(3)
    seen = [client.stop() for client in clients]
    for client, calls in zip(clients, seen):
        print(
            f"{node.name}: {took_s:.1f} s, {client.unit} on {client.node.name}: {calls}",
            *calls.failed[:20],
            sep="\n",
            flush=True,
        )
    assert kubelet_of(server, node.name) == version and is_open(server, node.name)
    wait_until(lambda: len(list_pods(server)) == 2, what="two pods", timeout_s=60)
    left = here & set(list_pods(server))
    assert left == (set() if drained else here), (node.name, pods)
    return list(zip(clients, seen))
