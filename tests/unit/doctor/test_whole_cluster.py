"""kubeup/doctor/looks/whole_cluster.py: what is wrong elsewhere is told on a control plane, and weighs as much as it matters here."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kubeup.cluster import health, reach
from kubeup.cluster.api import Api
from kubeup.config.types import Join
from kubeup.diagnosis.checks.facts import Finding
from kubeup.doctor.looks import every_node, table, whole_cluster
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.http import HttpResponse
from kubeup.trouble import Trouble
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import SERVER, make_host, make_patient

OTHER = "https://10.77.0.12:6443"


def answer(host: FakeHost, path: str, value: object, status: int = 200) -> None:
    host.urls[f"{SERVER}{path}"] = HttpResponse(status, json.dumps(value).encode())


def cluster_host() -> FakeHost:
    """cp1, on which doctor runs, and w1 are not Ready; nobody leads; a webhook is away."""
    host = make_host()
    conditions = [{"type": "Ready", "status": "False", "message": "no runtime"}]
    nodes = [{"metadata": {"name": name}, "status": {"conditions": conditions}} for name in ("cp1", "w1")]
    answer(host, "/api/v1/nodes", {"kind": "NodeList", "items": nodes})
    answer(host, "/version", {"gitVersion": "v1.35.6"})
    slices = {
        "metadata": {"name": "kubernetes"},
        "ports": [{"name": "https", "port": 6443}],
        "endpoints": [{"addresses": ["10.0.0.99"]}],
    }
    answer(host, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes", slices)
    for name, holder in zip(health.LEADERS, ("cp1", "cp2")):
        lease = {
            "metadata": {"name": name},
            "spec": {"holderIdentity": f"{holder}_x", "renewTime": "2026-01-01T00:00:00Z"},
        }
        answer(host, f"/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}", lease)
    answer(host, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", {"items": []})
    answer(host, "/apis/apiregistration.k8s.io/v1/apiservices", {"items": []})
    answer(host, "/api/v1/namespaces", {"items": []})
    answer(host, "/api/v1/namespaces/kube-system/pods?labelSelector=tier%3Dcontrol-plane", {"items": []})
    refusal = {"kind": "Status", "message": "admission webhook w does not support dry run", "reason": "BadRequest"}
    answer(host, "/api/v1/namespaces/default/pods?dryRun=All", refusal, 400)
    return host


def test_what_is_wrong_elsewhere_is_told() -> None:
    found = list(whole_cluster.look_at_cluster(make_patient(cluster_host())))
    assert [(note.level, note.text.partition(":")[0]) for note in found] == [
        ("warning", "node w1 is not Ready"),  # cp1 itself has a look of its own
        ("warning", "API server 10.0.0.99"),
        ("ok", "not proven"),
        ("warning", "no kube-controller-manager leads"),  # cp1 held the lease: its own looks say why
        ("error", "no kube-scheduler leads"),
    ]


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (503, "dial tcp 10.0.0.22:10250: connect: connection refused", "nothing listens at port 10250: it has stopped"),
        (
            503,
            "dial tcp 10.0.0.22:10250: connect: no route to host",
            "its machine does not answer at port 10250 either",
        ),
        (200, "", "it answers at its port 10250, so it does not reach the API"),
        (500, "odd", "node w1 is not Ready: Kubelet stopped posting node status."),
    ],
)
def test_a_kubelet_that_does_not_report_is_asked_at_its_port(status: int, text: str, told: str) -> None:
    host = cluster_host()
    gone = [{"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status."}]
    nodes = [{"metadata": {"name": "w1"}, "status": {"conditions": gone}}]
    answer(host, "/api/v1/nodes", {"kind": "NodeList", "items": nodes})
    answer(host, "/api/v1/nodes/w1/proxy/healthz", {"kind": "Status", "message": text}, status)
    first = next(iter(whole_cluster.look_at_cluster(make_patient(host))))
    assert first.text.startswith("node w1 is not Ready: Kubelet stopped posting node status") and told in first.text


def test_a_worker_is_left_in_peace_and_a_silent_api_server_proves_nothing() -> None:
    patient = make_patient(cluster_host())
    worker = dataclasses.replace(patient, config=dataclasses.replace(patient.config, join=Join()))
    assert list(whole_cluster.look_at_cluster(worker)) == []
    silent = make_host()
    silent.urls.clear()
    for host in (silent, DryRunHost(silent, waits=True)):  # the second as doctor has it
        asking = dataclasses.replace(patient, host=host)
        (note,) = whole_cluster.look_at_cluster(asking)
        assert note.level == "error" and note.text.startswith("the cluster cannot be judged: no answer from https://")
        for look in (whole_cluster.look_at_rights, whole_cluster.look_at_flags):
            (told,) = look(asking)
            assert told.level == "ok" and told.text.startswith("not proven: no answer from https://"), look
    down = table.Look("node", "", lambda _: iter([Finding("node", "error", "no answer", "see")]))
    asked = table.Look("cluster", "", whole_cluster.look_at_cluster)
    assert [one.level for one in table.examine(make_patient(silent), (down, asked))] == ["error", "follows"]
    assert [one.level for one in table.examine(make_patient(silent), (asked,))] == ["error"]


def test_an_identity_that_may_not_see_the_cluster_proves_nothing() -> None:
    host = cluster_host()
    refusal = {"kind": "Status", "message": 'User "x" cannot list resource "nodes"', "reason": "Forbidden"}
    answer(host, "/api/v1/nodes", refusal, 403)
    (note,) = whole_cluster.look_at_cluster(make_patient(host))
    assert note.level == "ok" and note.text.startswith("not proven: ")


def test_for_the_cluster_this_node_is_one_as_any_other() -> None:
    found = list(whole_cluster.look_at_whole_cluster(make_patient(cluster_host())))
    assert [(note.level, note.text.partition(":")[0]) for note in found] == [
        ("error", "node cp1 is not Ready"),
        ("error", "node w1 is not Ready"),
        ("error", "API server 10.0.0.99"),
        ("ok", "not proven"),
        ("error", "no kube-controller-manager leads"),
        ("error", "no kube-scheduler leads"),
    ]


@pytest.mark.parametrize(("kind", "level"), [("aggregated", "warning"), (reach.HOLDS_NAMESPACES, "error")])
def test_an_aggregated_api_weighs_the_same_everywhere(monkeypatch: pytest.MonkeyPatch, kind: str, level: str) -> None:
    trouble = Trouble("the aggregated API v1 does not answer", "x", "y")
    monkeypatch.setattr(reach, "probe_aggregated", lambda api: [health.Part(kind, "v1", trouble)])
    patient = make_patient(cluster_host())
    looks = (whole_cluster.look_at_cluster, whole_cluster.look_at_whole_cluster)
    found = [note.level for look in looks for note in look(patient) if "aggregated" in note.text]
    assert found == [level, level]


def test_nodes_that_are_ready_and_take_no_pods() -> None:
    host = cluster_host()
    ready, pressed = {"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True", "message": "full"}
    nodes = [
        {"metadata": {"name": "cp1"}, "spec": {"unschedulable": True}, "status": {"conditions": [ready, pressed]}},
        {"metadata": {"name": "w1"}, "spec": {}, "status": {"conditions": [pressed]}},
    ]
    answer(host, "/api/v1/nodes", {"kind": "NodeList", "items": nodes})
    found = [(note.level, note.text) for note in every_node.look_at_every_node(make_patient(host))]
    assert found == [
        ("error", "node cp1 has DiskPressure, so its kubelet evicts pods and starts no new ones: full"),
        ("warning", "node cp1 is cordoned: no new pod is scheduled on it"),
    ]


def test_the_way_to_this_node_is_asked_of_every_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall of this machine that lets nobody in: its own API server reaches the kubelet, and the others do not."""
    host, asked = make_host(), list[tuple[str, list[str]]]()
    host.answers["iptables -S INPUT"] = "-P INPUT DROP\n-A INPUT -i lo -j ACCEPT\n"
    parts = [
        *(health.Part("node", name, node=name) for name in ("cp1", "w1")),
        *(health.Part("api-server", server.partition("://")[2]) for server in (SERVER, OTHER)),
    ]
    seen: dict[str, object] = {}
    monkeypatch.setattr(health, "gate", lambda api, **more: seen.update(more) or parts)

    def probe(api: Api, names: list[str]) -> list[health.Part]:
        asked.append((api.server, names))
        trouble = (
            Trouble(f"API server {api.server} does not reach", "silence", "let it pass")
            if api.server == OTHER
            else None
        )
        return [health.Part("kubelet", name, trouble, node=name) for name in names]

    monkeypatch.setattr(reach, "probe_kubelets", probe)
    monkeypatch.setattr(reach, "probe_aggregated", lambda api: [])
    monkeypatch.setattr(reach, "probe_namespaces", lambda api: [])
    (note,) = whole_cluster.look_at_cluster(make_patient(host))
    assert sorted(asked) == [(SERVER, ["cp1", "w1"]), (OTHER, ["cp1"])]
    assert note.level == "warning"
    assert (
        note.text
        == f"API server {OTHER} does not reach: silence; of this machine, the chain INPUT of iptables has the policy DROP"
    )
    assert seen["unwatched"] == ["cp1"]  # its silence is another look's
