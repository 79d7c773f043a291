"""A small workload that shows whether a cluster works: a web server behind a Service, and a pod that asks it by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Optional

from ..lab.images import WEB_IMAGE
from ..lab.node import wait_until

if TYPE_CHECKING:
    from ..lab.node import Node

PAGE = "kb e2e web"
# The control plane is often the only node.
TOLERATIONS = [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}]


def render_pod(name: str, *, command: Optional[list[str]] = None, node: Optional[str] = None) -> dict[str, Any]:
    """A pod of the web image: the server, or any of its programs; on one node, if wanted."""
    container: dict[str, Any] = {"name": "web", "image": WEB_IMAGE, "imagePullPolicy": "IfNotPresent"}
    if command:
        container["command"] = command
    else:
        container["readinessProbe"] = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}
    spec: dict[str, Any] = {
        "containers": [container],
        "tolerations": TOLERATIONS,
        "terminationGracePeriodSeconds": 0,
    }
    if node:
        spec["nodeName"] = node
    metadata = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def render_service(name: str) -> dict[str, Any]:
    """A Service in front of the pods with that label."""
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def apply(node: Node, *objects: dict[str, Any]) -> None:
    """`kubectl apply` these objects. They are the tests' own: nobody has to check them against the server's schemas."""
    node.kubectl(
        "apply --validate=false -f -", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    )


def wait_service_account(node: Node) -> None:
    """No pod can be made before the controller manager has made the default service account."""
    wait_until(lambda: node.get("serviceaccount default"), what="the default service account", timeout_s=60)


def check_cluster_serves(node: Node, *, server: Optional[str] = None, client: Optional[str] = None) -> None:
    """Fail unless a pod gets the web server's page through its Service, by its name; on these nodes, if given."""
    wait_service_account(node)
    sleep = ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 1; done"]
    apply(
        node,
        render_pod("web", node=server),
        render_service("web"),
        render_pod("client", command=sleep, node=client),
    )
    node.wait_pods_ready("default", "app=web")
    node.wait_pods_ready("default", "app=client")
    # Not -T: Debian's busybox crashes on it. The loop also waits for CoreDNS, whose first copy may have met no kube-proxy.
    fetch = "exec client -- wget -q -O - http://web.default.svc.cluster.local/"
    page = wait_until(lambda: node.kubectl(fetch), what="the page of Service web", timeout_s=90, every_s=1)
    assert page.strip() == PAGE
