"""kubeup/cluster/eviction.py: nothing is evicted past a budget, and an admin's cordon stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

from kubeup.cluster import eviction
from kubeup.cluster.api import Api, ApiRefused, Identity, Object
from kubeup.errors import ClusterError
from kubeup.machine.http import HttpResponse, Tls, Unreachable
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

    def http_get(self, url: str, **_: Any) -> HttpResponse:
        if "/pods?" in url:
            assert url.endswith(f"fieldSelector=spec.nodeName%3D{NODE}"), "a kubelet may list nothing else"
            for name in [name for name, at in self.going.items() if self.ticks >= at]:
                self.pods.pop(name, None)
            return HttpResponse(200, json.dumps({"kind": "PodList", "items": list(self.pods.values())}).encode())
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


def evict(host: DrainedNode, **more: Any) -> tuple[str, ...]:
    return tuple(pod.name for pod in eviction.evict_all(api_of(host), NODE, tell=lambda text: None, **more))


def test_pods_of_daemon_sets_static_and_finished_ones_stay() -> None:
    done = make_pod("done")
    done["status"]["phase"] = "Succeeded"
    host = make_node(make_pod("web"), make_pod("proxy", owner="DaemonSet"), make_pod("etcd", owner="static"), done)
    found = eviction.look(api_of(host), NODE)
    assert [pod.name for pod in found.moves] == ["web"]
    assert [pod.name for pod in found.stays] == ["proxy", "etcd"]
    assert evict(host) == ("web",)
    assert host.evicted == ["web"] and set(host.pods) == {"proxy", "etcd", "done"}


def test_what_it_would_meet_is_told_by_name_and_nothing_is_changed() -> None:
    host = make_node(
        make_pod("lonely", owner=""),
        make_pod("cache", volumes=[{"name": "tmp", "emptyDir": {}}]),
        make_pod("slow", terminationGracePeriodSeconds=600),
        make_pod("web"),
        answer=lambda name, at: refuse() if name == "web" else None,
    )
    told = eviction.look(api_of(host), NODE).describe()
    assert told == [
        "pods without a controller, which are not made anew elsewhere: app/lonely",
        "pods that lose what is in their emptyDir volumes: app/cache",
        "pods that may take long to stop: app/slow (600 s)",
        f"app/web may not be evicted now: {BUDGET}",
    ]
    assert host.tried and not host.evicted and not host.changes


def test_a_budget_that_gives_way_is_waited_for() -> None:
    host = make_node(
        make_pod("web"), make_pod("other"), answer=lambda name, at: refuse() if name == "web" and at < 40 else None
    )
    assert set(evict(host)) == {"web", "other"}
    assert host.evicted[0] == "other" and host.ticks > 40


def test_a_budget_that_never_gives_way_is_named() -> None:
    host = make_node(make_pod("web"), make_pod("other"), answer=lambda name, at: refuse() if name == "web" else None)
    with pytest.raises(ClusterError) as caught:
        evict(host, refused_s=20)
    assert caught.value.code == "pods-not-evicted"
    assert BUDGET in caught.value.cause and "app/web" in caught.value.what
    assert host.ticks < 25


def test_two_budgets_for_one_pod_are_a_refusal_too() -> None:
    words = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
    answer = HttpResponse(500, json.dumps({"kind": "Status", "message": words}).encode())
    host = make_node(make_pod("web"), answer=lambda name, at: answer)
    with pytest.raises(ClusterError) as caught:
        evict(host, refused_s=5)
    assert "more than one PodDisruptionBudget" in caught.value.cause


def test_a_server_that_is_away_for_a_moment_is_asked_again() -> None:
    def answer(name: str, at: float) -> Optional[HttpResponse]:
        if at < 5:
            raise Unreachable("https://10.0.0.11:6443", "refused", text="refused")
        return HttpResponse(503, b"{}") if at < 9 else None

    host = make_node(make_pod("web"), answer=answer)
    assert evict(host) == ("web",)
    assert not host.pods


def test_a_pod_that_does_not_stop_is_named_after_its_grace_period() -> None:
    host = make_node(make_pod("web", terminationGracePeriodSeconds=90), stops_s=9999)
    with pytest.raises(ClusterError) as caught:
        evict(host)
    assert caught.value.code == "pods-not-gone" and "app/web" in caught.value.cause
    assert 150 <= host.ticks < 155


def test_another_pod_of_the_same_name_is_asked_for_by_its_own_uid() -> None:
    host = make_node(make_pod("db-0", owner="StatefulSet"))

    def answer(name: str, at: float) -> Optional[HttpResponse]:
        if host.pods[name]["metadata"]["uid"] == "another":
            return None
        host.pods[name]["metadata"]["uid"] = "another"
        return HttpResponse(409, b'{"kind": "Status", "reason": "Conflict"}')

    host.answer = answer
    assert evict(host) == ("db-0", "db-0")
    assert host.evicted == ["db-0"] and not host.pods


def test_a_refused_right_ends_it() -> None:
    host = make_node(make_pod("web"), answer=lambda name, at: HttpResponse(403, b'{"reason": "Forbidden"}'))
    with pytest.raises(ApiRefused):
        evict(host)


# ---- cordon


def test_cordon_and_uncordon_leave_the_node_as_it_was() -> None:
    host = make_node()
    path = f"/api/v1/nodes/{NODE}"
    assert eviction.cordon(api_of(host), NODE)
    assert host.cluster.objects[path]["spec"]["unschedulable"] is True
    assert eviction.is_cordoned(api_of(host), NODE) == (True, True)
    assert eviction.cordon(api_of(host), NODE), "a run that was cut off goes on"
    assert eviction.uncordon(api_of(host), NODE)
    assert host.cluster.objects[path]["spec"] == {}
    assert "annotations" not in host.cluster.objects[path]["metadata"]
    assert not eviction.uncordon(api_of(host), NODE)


def test_the_cordon_of_the_admin_stays() -> None:
    host = make_node()
    host.cluster.objects[f"/api/v1/nodes/{NODE}"]["spec"]["unschedulable"] = True
    assert not eviction.cordon(api_of(host), NODE)
    assert not eviction.uncordon(api_of(host), NODE)
    assert eviction.is_cordoned(api_of(host), NODE) == (True, False)


def test_a_node_that_the_cluster_does_not_know() -> None:
    host = make_node()
    host.cluster.objects.clear()
    with pytest.raises(ClusterError) as caught:
        eviction.cordon(api_of(host), NODE)
    assert caught.value.code == "node-not-registered"
