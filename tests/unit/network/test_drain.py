"""kubeup/network/drain.py: what is written to the cluster, and who counts as having answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

from kubeup.cluster import objects
from kubeup.cluster.api import Api, ApiRefused, Identity
from kubeup.machine.http import HttpResponse, Tls
from kubeup.network import drain, drain_marks
from kubeup.network.drain import Drained
from tests.fake_cluster import FakeCluster
from tests.fake_host import FakeHost

A, B = "10.0.0.11:6443", "10.0.0.12:6443"
MARKS = "/api/v1/namespaces/kube-system/configmaps/kb-drained-api-servers"


@dataclass
class Site(FakeHost):
    """A cluster, and the keepers of `follows`, which answer when time passes."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    follows: set[str] = field(default_factory=set)

    def http_get(self, url: str, **rest: Any) -> HttpResponse:
        return self.cluster.answer("GET", url, b"", rest.get("headers") or {})

    def http_send(self, method: str, url: str, *, body: bytes = b"", **rest: Any) -> HttpResponse:
        return self.cluster.answer(method, url, body, rest.get("headers") or {})

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        marks = drain_marks.parse_config_map(self.cluster.objects.get(MARKS))
        for name in self.follows:
            meta = self.cluster.objects[f"/api/v1/nodes/{name}"]["metadata"]
            meta["annotations"] = {drain_marks.ANNOTATION: drain_marks.render_annotation(marks)} if marks else {}

    @property
    def api(self) -> Api:
        return Api(self, Identity("https://x", Tls()), retry_s=0)

    @property
    def marks(self) -> Mapping[str, str]:
        return drain_marks.parse_config_map(self.cluster.objects.get(MARKS))


def site(*names: str, servers: tuple[str, ...] = ("10.0.0.11", "10.0.0.12"), ready: Optional[set[str]] = None) -> Site:
    host = Site(follows=set(names))
    for name in names:
        is_ready = "True" if ready is None or name in ready else "Unknown"
        host.cluster.objects[f"/api/v1/nodes/{name}"] = {
            "kind": "Node",
            "metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": is_ready}]},
        }
        host.cluster.objects[f"/api/v1/namespaces/kube-system/pods/kb-load-balancer-{name}"] = {
            "kind": "Pod",
            "metadata": {"name": f"kb-load-balancer-{name}", "labels": {"component": "kb-load-balancer"}},
            "spec": {"nodeName": name},
        }
    host.cluster.objects[objects.API_SERVERS] = {
        "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes"},
        "endpoints": [{"addresses": list(servers)}],
        "ports": [{"name": "https", "port": 6443}],
    }
    return host


def out(host: Site, server: str = A, *, timeout_s: float = 15) -> Drained:
    return drain.drain(host.api, server, tell=lambda _: None, timeout_s=timeout_s)


def back(host: Site, server: str = A) -> Drained:
    return drain.undrain(host.api, server, tell=lambda _: None, timeout_s=15)


def test_a_server_is_drained_on_every_node_and_put_back() -> None:
    host = site("cp1", "cp2", "w1")
    assert out(host) == Drained(("cp1", "cp2", "w1"), ()) and host.ticks < 1
    assert list(host.marks) == [A] == drain.find_drained(host.api)
    assert back(host) == Drained(("cp1", "cp2", "w1"), ()) and host.marks == {}
    assert drain.find_drained(host.api) == []
    written = [request for request in host.cluster.requests if not request.startswith("GET")]
    back(host)
    assert [request for request in host.cluster.requests if not request.startswith("GET")] == written
    host.sleep(2)
    assert out(host).silent == ()


def test_a_mark_is_renewed_and_those_of_other_servers_stay() -> None:
    host = site("cp1", servers=("10.0.0.11", "10.0.0.12", "10.0.0.13"))
    out(host)
    first = host.marks[A]
    host.sleep(60)
    assert out(host).answered == ("cp1",) and host.marks[A] > first
    out(host, B)
    back(host)
    assert list(host.marks) == [B]


def test_nodes_that_say_nothing_are_named_and_not_waited_for_longer() -> None:
    host, said = site("cp1", "w1", "w2"), list[str]()
    host.follows = {"cp1", "w2"}  # the keeper of w1 is of an older kb
    assert drain.drain(host.api, A, tell=said.append, timeout_s=5) == Drained(("cp1", "w2"), ("w1",))
    assert 5 <= host.ticks < 6
    assert said[-1].startswith(f"load balancers without {A}: 5 s of 5 s; no answer yet from w1")
    assert back(host).silent == ()


def test_who_has_not_forgotten_a_server_that_is_gone_for_good() -> None:
    host = site("cp1", "w1", "w2", "w3", ready={"cp1", "w1", "w2"})
    host.follows = set()
    assert drain.list_mindful(host.api, []) == []
    out(host, timeout_s=1)
    serial = host.marks[A]
    drain.strike(host.api, A)
    drain.strike(host.api, A)
    drain.strike(host.api, B)
    assert host.marks == {A: f"gone:{serial}"}, "its moment stays, and what is not marked is not struck"
    assert drain.age_of(host.marks[A], now=host.now()) == drain.age_of(serial, now=host.now())
    for name, said in (("cp1", "forgotten"), ("w1", serial)):
        meta = host.cluster.objects[f"/api/v1/nodes/{name}"]["metadata"]
        meta["annotations"] = {drain_marks.ANNOTATION: f"{A}={said}"}
    assert drain.list_mindful(host.api, [A]) == ["w1", "w2"], "w3 is not Ready"


def test_a_node_that_is_not_ready_is_not_waited_for() -> None:
    host = site("cp1", "w1", ready={"cp1"})
    host.follows = {"cp1"}
    assert out(host) == Drained(("cp1",), ("w1",)) and host.ticks < 1


def test_the_only_api_server_is_not_marked_and_a_cluster_without_balancers_is_left_alone() -> None:
    for host in (site("cp1", servers=("10.0.0.11",)), site()):
        assert out(host) == Drained((), ()) and MARKS not in host.cluster.objects
        assert all(request.startswith("GET") for request in host.cluster.requests)


def test_a_cluster_of_an_older_kb_gets_the_right_to_read_marks_first() -> None:
    host = site("cp1")
    out(host)
    changes = [request for request in host.cluster.requests if not request.startswith("GET")]
    role = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/kb:drained-api-servers"
    assert f"PATCH {role}" in changes and changes.index(f"PATCH {role}") < changes.index(f"PATCH {MARKS}")
    before = len(changes)
    host.sleep(1)
    out(host)
    assert len([request for request in host.cluster.requests if not request.startswith("GET")]) == before + 1


def test_what_the_cluster_refuses_is_not_swallowed() -> None:
    class Forbidding(Site):
        def http_send(self, method: str, url: str, *, body: bytes = b"", **rest: Any) -> HttpResponse:
            if "configmaps" in url:
                return HttpResponse(403, b'{"kind": "Status", "reason": "Forbidden"}')
            return super().http_send(method, url, body=body, **rest)

    host = Forbidding(cluster=site("cp1").cluster)
    with pytest.raises(ApiRefused):
        out(host)
