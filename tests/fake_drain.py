"""The API of one node whose pods are evicted, on a FakeHost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional

from kubeup.cluster import eviction
from kubeup.cluster.api import Api, Identity, Object
from kubeup.machine.http import HttpResponse, Tls
from tests.fake_cluster import FakeCluster
from tests.fake_host import FakeHost

NODE = "w1"
BUDGET = "The disruption budget web needs 2 healthy pods and has 2 currently"


def make_pod(name: str, *, owner: str = "ReplicaSet", **spec: Any) -> Object:
    """owner: the kind of its controller; "" for a bare pod, "static" for a mirror pod."""
    meta: dict[str, Any] = {"name": name, "namespace": "app", "uid": f"uid-{name}"}
    if owner == "static":
        meta["annotations"] = {eviction.MIRROR: "hash"}
        meta["ownerReferences"] = [{"kind": "Node", "name": NODE, "controller": True}]
    elif owner:
        meta["ownerReferences"] = [{"kind": owner, "name": "x", "controller": True}]
    return {"kind": "Pod", "metadata": meta, "spec": {"nodeName": NODE, **spec}, "status": {"phase": "Running"}}


def refuse(words: str = BUDGET) -> HttpResponse:
    causes = [{"reason": "DisruptionBudget", "message": words}] if words else []
    return HttpResponse(
        429,
        json.dumps({"kind": "Status", "reason": "TooManyRequests", "message": "no", "details": {"causes": causes}}).encode(),
    )  # fmt: skip


@dataclass
class DrainedNode(FakeHost):
    """The API of one node and its pods. Evicted pods go after `stops_s`. answer: what an eviction is answered, None if it is done."""

    pods: dict[str, Object] = field(default_factory=dict)
    cluster: FakeCluster = field(default_factory=FakeCluster)
    answer: Callable[[str, float], Optional[HttpResponse]] = field(default=lambda name, at: None)
    stops_s: float = 3.0
    evicted: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    going: dict[str, float] = field(default_factory=dict)
    others: Optional[list[Object]] = None
    """All nodes of the cluster; None: whoever asks may not see them, as a kubelet may not."""

    def http_get(self, url: str, **_: Any) -> HttpResponse:
        if "/pods?" in url:
            assert url.endswith(f"fieldSelector=spec.nodeName%3D{NODE}"), "a kubelet may list nothing else"
            for name in [name for name, at in self.going.items() if self.ticks >= at]:
                self.pods.pop(name, None)
            return HttpResponse(200, json.dumps({"kind": "PodList", "items": list(self.pods.values())}).encode())
        if url.endswith("/nodes") and self.others is not None:
            return HttpResponse(200, json.dumps({"kind": "NodeList", "items": self.others}).encode())
        if url.endswith("/nodes"):
            return HttpResponse(403, b'{"kind": "Status", "reason": "Forbidden", "message": "no"}')
        return self.cluster.answer("GET", url, b"", {})

    def _evict(self, url: str, body: bytes, seen: list[str]) -> HttpResponse:
        name = url.partition("?")[0].split("/")[-2]
        wanted = json.loads(body)["deleteOptions"]["preconditions"]["uid"]
        if name not in self.pods:
            return HttpResponse(404, b'{"kind": "Status", "reason": "NotFound"}')
        if self.pods[name]["metadata"]["uid"] != wanted:
            return HttpResponse(409, b'{"kind": "Status", "reason": "Conflict"}')
        found = self.answer(name, self.ticks)
        if found is None:
            seen.append(name)
        return found or HttpResponse(201, b'{"kind": "Status", "status": "Success"}')

    def http_ask(self, url: str, body: bytes, **_: Any) -> HttpResponse:
        assert url.endswith("?dryRun=All")
        return self._evict(url, body, self.tried)

    def http_send(self, method: str, url: str, *, body: bytes = b"", headers: Any = None, **_: Any) -> HttpResponse:
        if url.endswith("/eviction"):
            found = self._evict(url, body, self.evicted)
            if found.status == 201:
                self.going[self.evicted[-1]] = self.ticks + self.stops_s
            return found
        return self.cluster.answer(method, url, body, headers or {})


def make_node(*pods: Object, **more: Any) -> DrainedNode:
    cluster = FakeCluster()
    cluster.objects[f"/api/v1/nodes/{NODE}"] = {"kind": "Node", "metadata": {"name": NODE}, "spec": {}}
    return DrainedNode(pods={pod["metadata"]["name"]: pod for pod in pods}, cluster=cluster, **more)


def api_of(host: DrainedNode) -> Api:
    return Api(host, Identity("https://10.0.0.11:6443", Tls()))
