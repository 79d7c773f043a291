"""kubeup/cluster/dns_spread.py: when a replica of CoreDNS is brought to another node, and that there is never one less."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

from kubeup.cluster import api, dns_spread
from kubeup.cluster.dns_spread import ANNOTATION, PATIENCE_S
from kubeup.machine.http import AnyTls, HttpResponse, Tls
from kubeup.paths import Paths
from tests.fake_host import FakeHost

NOW = datetime.datetime(2026, 1, 1, 12, 0, tzinfo=datetime.timezone.utc)
SOON, LATE = NOW + datetime.timedelta(seconds=PATIENCE_S / 2), NOW + datetime.timedelta(seconds=PATIENCE_S + 1)


def deployment(replicas: int = 2, note: str = "") -> dict[str, Any]:
    annotations = {ANNOTATION: note} if note else {}
    return {
        "metadata": {"name": "coredns", "resourceVersion": "7", "annotations": annotations},
        "spec": {"replicas": replicas},
    }


def pod(node: str, *, ready: bool = True, going: bool = False) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    meta = {"name": "x", **({"deletionTimestamp": "2026"} if going else {})}
    return {"metadata": meta, "spec": {"nodeName": node}, "status": {"conditions": conditions}}


def node(name: str, *taints: tuple[str, str], ready: bool = True, **spec: Any) -> dict[str, Any]:
    found = {**spec, "taints": [{"key": key, "effect": effect} for key, effect in taints]}
    conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
    return {"metadata": {"name": name, "labels": {}}, "spec": found, "status": {"conditions": conditions}}


CP1 = node("cp1", ("node-role.kubernetes.io/control-plane", "NoSchedule"))
CROWDED = [pod("cp1"), pod("cp1")]


def moving() -> dict[str, Any]:
    first = dns_spread.plan_move(deployment(), CROWDED, nodes=[CP1, node("w1")], now=NOW)
    assert first is not None
    return deployment(first.replicas, first.note)


def test_two_on_one_node_become_three_first() -> None:
    move = dns_spread.plan_move(deployment(), CROWDED, nodes=[CP1, node("w1")], now=NOW)
    assert move is not None and move.replicas == 3 and "w1" in move.why
    assert dns_spread.is_moving(deployment(3, move.note)) == 2
    assert dns_spread.is_moving(deployment()) is None


def test_another_control_plane_will_do() -> None:
    cp2 = node("cp2", ("node-role.kubernetes.io/control-plane", "NoSchedule"))
    assert dns_spread.plan_move(deployment(), CROWDED, nodes=[CP1, cp2], now=NOW) is not None


@pytest.mark.parametrize(
    ("pods", "nodes", "replicas"),
    [
        ([pod("cp1"), pod("w1")], [CP1, node("w1")], 2),
        (CROWDED, [CP1], 2),
        (CROWDED, [CP1, node("w1", ready=False)], 2),
        (CROWDED, [CP1, node("w1", unschedulable=True)], 2),
        (CROWDED, [CP1, node("w1", ("gpu", "NoSchedule"))], 2),
        ([pod("cp1"), pod("cp1", ready=False)], [CP1, node("w1")], 2),
        ([*CROWDED, pod("cp1", going=True)], [CP1, node("w1")], 2),
        ([pod("cp1")], [CP1, node("w1")], 1),
        ([], [CP1, node("w1")], 0),
    ],
)
def test_nothing_is_moved_in_vain_or_while_dns_is_weak(
    pods: list[dict[str, Any]], nodes: list[dict[str, Any]], replicas: int
) -> None:
    assert dns_spread.plan_move(deployment(replicas), pods, nodes=nodes, now=NOW) is None


def test_one_goes_only_when_the_new_one_is_ready_elsewhere() -> None:
    nodes = [CP1, node("w1")]
    assert dns_spread.plan_move(moving(), [*CROWDED, pod("w1", ready=False)], nodes=nodes, now=SOON) is None
    assert (
        dns_spread.plan_move(moving(), [pod("cp1"), pod("cp1", ready=False), pod("w1")], nodes=nodes, now=SOON) is None
    )
    done = dns_spread.plan_move(moving(), [*CROWDED, pod("w1")], nodes=nodes, now=SOON)
    assert done is not None and (done.replicas, done.note) == (2, "")


def test_what_does_not_become_ready_is_given_up_until_nodes_join() -> None:
    nodes = [CP1, node("w1")]
    given_up = dns_spread.plan_move(moving(), [*CROWDED, pod("w1", ready=False)], nodes=nodes, now=LATE)
    assert given_up is not None and given_up.replicas == 2
    after = deployment(2, given_up.note)
    assert dns_spread.plan_move(after, CROWDED, nodes=nodes, now=LATE) is None
    assert dns_spread.plan_move(after, CROWDED, nodes=[*nodes, node("w2")], now=LATE) is not None


def test_who_sets_the_replicas_meanwhile_is_right() -> None:
    for replicas in (1, 2, 5):
        started = moving()
        started["spec"]["replicas"] = replicas
        move = dns_spread.plan_move(started, CROWDED, nodes=[CP1, node("w1")], now=SOON)
        assert move is not None and move.replicas == replicas
        # and is not asked again and again
        assert dns_spread.plan_move(deployment(2, move.note), CROWDED, nodes=[CP1, node("w1")], now=LATE) is None


def test_a_damaged_annotation_is_none() -> None:
    move = dns_spread.plan_move(deployment(2, "{nonsense"), CROWDED, nodes=[CP1, node("w1")], now=NOW)
    assert move is not None and move.replicas == 3


# ---- with a cluster


@dataclass
class DnsHost(FakeHost):
    objects: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sent: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200

    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = 4 << 20,
    ) -> HttpResponse:
        kind = url.partition("?")[0].rpartition("/")[2]
        return HttpResponse(200, json.dumps({"items": self.objects.get(kind, [])}).encode())

    def http_send(self, method: str, url: str, *, body: bytes = b"", **rest: Any) -> HttpResponse:
        self.sent.append(json.loads(body))
        return HttpResponse(self.status, b"{}")


def dns_host(**fields: Any) -> DnsHost:
    objects = {"deployments": [deployment()], "pods": CROWDED, "nodes": [CP1, node("w1")]}
    return DnsHost(objects=objects, **fields)


def spread(host: DnsHost) -> str:
    return dns_spread.spread_once(api.Api(host, api.Identity("https://a", Tls()), retry_s=0), NOW)


def test_the_patch_is_bound_to_what_was_looked_at() -> None:
    host = dns_host()
    assert "starting one more" in spread(host)
    (sent,) = host.sent
    assert sent["metadata"]["resourceVersion"] == "7" and sent["spec"] == {"replicas": 3}
    assert json.loads(sent["metadata"]["annotations"][ANNOTATION])["replicas"] == 2


def test_another_keeper_was_first() -> None:
    host = dns_host(status=409)
    assert spread(host) == ""


def test_the_end_takes_the_annotation_away() -> None:
    host = dns_host()
    host.objects = {"deployments": [moving()], "pods": [*CROWDED, pod("w1")], "nodes": [CP1, node("w1")]}
    spread(host)
    assert host.sent[0] == {
        "metadata": {"resourceVersion": "7", "annotations": {ANNOTATION: None}},
        "spec": {"replicas": 2},
    }


def test_a_worker_does_not_even_ask() -> None:
    host, said = dns_host(), list[str]()
    dns_spread.keep_spread(host, paths=Paths(), log=said.append)
    assert host.sent == [] and said == []


KUBECONFIG = b"""
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://a"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""
FLANNEL = "10-flannel.conflist"


def control_plane() -> DnsHost:
    host = dns_host()
    host.files["/etc/kubernetes/admin.conf"] = KUBECONFIG
    host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = b""
    return host


def template(annotations: dict[str, str]) -> dict[str, Any]:
    return {"spec": {"template": {"metadata": {"annotations": annotations}}}}


def test_coredns_follows_another_network_once() -> None:
    host = control_plane()
    assert "restarted" in dns_spread.follow_network(host, FLANNEL, paths=Paths())
    wanted = template({dns_spread.NETWORK_ANNOTATION: FLANNEL})
    assert host.sent == [wanted]
    host.objects["deployments"] = [{**deployment(), **wanted}]
    assert dns_spread.follow_network(host, FLANNEL, paths=Paths()) == ""
    assert len(host.sent) == 1
    assert "restarted" in dns_spread.follow_network(host, "05-cilium.conflist", paths=Paths())


def test_a_worker_restarts_no_coredns_and_a_cluster_without_one_has_none() -> None:
    host = dns_host()
    assert dns_spread.follow_network(host, FLANNEL, paths=Paths()) == ""
    host = control_plane()
    host.objects["deployments"] = []
    assert dns_spread.follow_network(host, FLANNEL, paths=Paths()) == ""
    assert host.sent == []
