"""kubeup/cluster/health.py: every part is asked itself, and what is wrong with it is named with a remedy."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

from kubeup.cluster import etcd, health
from kubeup.cluster.api import Api, Identity
from kubeup.cluster.objects import CONTROL_PLANE_TAINT
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from tests.fake_host import FakeHost

SERVER = "https://10.0.0.11:6443"
NODES, SLICE = "/api/v1/nodes", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
NODE_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
NAMESPACE = "/api/v1/namespaces/kube-system"


@dataclass
class Cluster(FakeHost):
    """url -> (status, value), GET and POST alike. What is not there is silent. moves: the leases that their leaders renew."""

    answers_of: dict[str, tuple[int, Any]] = field(default_factory=dict)
    moves: set[str] = field(default_factory=lambda: set(health.LEADERS))
    untrusted: set[str] = field(default_factory=set)
    renews: set[str] = field(default_factory=lambda: {"cp1", "cp2"})
    """The nodes whose kubelets renew their leases."""
    date: str = ""
    """What the server says the time is."""
    asked: list[str] = field(default_factory=list)

    def http_get(self, url: str, **_: Any) -> HttpResponse:
        return self._answer(url)

    def http_ask(self, url: str, body: bytes, **_: Any) -> HttpResponse:
        return self._answer(url)

    def _answer(self, url: str) -> HttpResponse:
        self.asked.append(url)
        if url in self.untrusted:
            raise Unreachable(url, "tls", text="certificate is not valid for this address")
        if url not in self.answers_of:
            raise Unreachable(url, "refused", text="connection refused")
        status, value = self.answers_of[url]
        headers = {"date": self.date} if self.date else {}
        return HttpResponse(status, value if isinstance(value, bytes) else json.dumps(value).encode(), headers)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        for name in self.moves:
            lease(self, name, renewed=f"at {self.ticks}")
        node_leases(self, dict.fromkeys(self.renews, f"at {self.ticks // 10}"))


def lease(cluster: Cluster, name: str, *, renewed: str = "at first", holder: str = "cp2_5f1c") -> None:
    value = {"metadata": {"name": name}, "spec": {"holderIdentity": holder, "renewTime": renewed}}
    cluster.answers_of[f"{SERVER}{LEASES}/{name}"] = (200, value)


def node_leases(cluster: Cluster, renewed: dict[str, str], *, duration: int = 40) -> None:
    """Leases of the nodes, of which the others stay as they are."""
    _, value = cluster.answers_of.get(f"{SERVER}{NODE_LEASES}", (200, {"items": []}))
    rows = {row["metadata"]["name"]: row for row in value["items"]}
    for name, stamp in renewed.items():
        spec = {"holderIdentity": name, "leaseDurationSeconds": duration, "renewTime": stamp}
        rows[name] = {"metadata": {"name": name}, "spec": spec}
    cluster.answers_of[f"{SERVER}{NODE_LEASES}"] = (200, {"kind": "LeaseList", "items": list(rows.values())})


def node(
    name: str, *, ready: str = "True", message: str = "", address: str = "", kubelet: str = "v1.35.6"
) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready, "message": message}]
    addresses = [
        {"type": "InternalIP", "address": address or f"10.0.0.{name[-1]}1"},
        {"type": "Hostname", "address": name},
    ]
    status = {"conditions": conditions, "addresses": addresses, "nodeInfo": {"kubeletVersion": kubelet}}
    return {"kind": "Node", "metadata": {"name": name}, "status": status}


def make_cluster(*nodes: dict[str, Any]) -> Cluster:
    """Two control planes that are well, and `nodes` in their place where there are some."""
    cluster = Cluster()
    found = list(nodes) or [node("cp1"), node("cp2")]
    slices = {
        "metadata": {"name": "kubernetes"},
        "ports": [{"name": "https", "port": 6443}],
        "endpoints": [{"addresses": ["10.0.0.11", "10.0.0.12"]}],
    }
    cluster.answers_of |= {
        f"{SERVER}{NODES}": (200, {"kind": "NodeList", "items": found}),
        f"{SERVER}{SLICE}": (200, slices),
        f"{SERVER}/version": (200, {"gitVersion": "v1.35.6"}),
        f"{SERVER}/readyz": (200, b"ok"),
        "https://10.0.0.12:6443/readyz": (200, b"ok"),
        f"{SERVER}{NAMESPACE}": (200, {"kind": "Namespace"}),
        f"https://10.0.0.12:6443{NAMESPACE}": (200, {"kind": "Namespace"}),
        "https://10.0.0.12:6443/version": (200, {"gitVersion": "v1.35.5"}),
        f"{SERVER}/api/v1/namespaces/default/pods?dryRun=All": (
            201,
            {"kind": "Pod", "metadata": {"name": health.TRIAL}},
        ),
    }
    for name in health.LEADERS:
        lease(cluster, name)
    node_leases(cluster, {one["metadata"]["name"]: "at first" for one in found})
    return cluster


def api_of(cluster: Cluster) -> Api:
    return Api(cluster, Identity(SERVER, Tls()), retry_s=0)


def troubles(parts: list[health.Part]) -> list[tuple[str, str]]:
    assert all(part.trouble is None or part.trouble.remedy for part in parts)
    return [
        (part.name, f"{part.trouble}" if part.trouble else f"unproven: {part.unproven}")
        for part in parts
        if not part.is_well
    ]


def test_a_cluster_that_is_well() -> None:
    parts = health.gate(api_of(make_cluster()))
    assert [(part.kind, part.name) for part in parts] == [
        ("node", "cp1"), ("node", "cp2"), ("api-server", "10.0.0.11:6443"), ("api-server", "10.0.0.12:6443"), ("admission", "pods"),
        ("leader", "kube-controller-manager"), ("leader", "kube-scheduler"),
    ]  # fmt: skip
    assert troubles(parts) == [] and health.find_blockers(parts) == []
    assert [(part.version, part.addresses) for part in parts[:4]] == [
        ("v1.35.6", ("10.0.0.11",)), ("v1.35.6", ("10.0.0.21",)), ("v1.35.6", ()), ("v1.35.5", ()),
    ]  # fmt: skip


def test_what_blocks_the_next_node_is_trouble_and_not_what_is_unproven() -> None:
    cluster = make_cluster(node("cp1"), node("w3", ready="False"))
    cluster.answers_of[f"{SERVER}{LEASES}/kube-scheduler"] = (404, {"kind": "Status", "reason": "NotFound"})
    client = etcd.Etcd(cluster, ["https://10.0.0.11:2379"], tls=Tls())
    cluster.moves = {"kube-controller-manager"}
    parts = health.gate(api_of(cluster), client)
    assert [(part.kind, part.name) for part in health.find_blockers(parts)] == [("node", "w3"), ("etcd", "etcd")]
    assert [part.name for part in parts if part.unproven] == ["kube-scheduler"]
    members = [member(1), member(2, learner=True)]
    cluster.answers_of["https://10.0.0.11:2379/v3/cluster/member/list"] = (200, {"members": members})
    status = {"raftAppliedIndex": "7", "version": "3.6.6"}
    cluster.answers_of["https://10.0.0.11:2379/v3/maintenance/status"] = (200, status)
    found = [part for part in health.gate(api_of(cluster), client) if part.kind == "etcd"]
    assert [(part.name, part.version, part.is_well) for part in found] == [("cp1", "3.6.6", True), ("cp2", "", False)]


# ---- leases of nodes


def probe_leases(cluster: Cluster) -> list[tuple[str, str]]:
    api = api_of(cluster)
    return troubles(health.probe_node_leases(api, health.probe_nodes(api)))


def test_a_node_that_is_called_ready_and_is_silent() -> None:
    cluster = make_cluster(node("cp1"), node("w3"), node("w4", ready="Unknown"))
    told = "the kubelet of node w3 is silent: it has not renewed its Lease for 13 s; the node is still called Ready"
    found = probe_leases(cluster)
    assert found[0] == ("w3", told) and found[1][0] == "w4" and "not Ready" in found[1][1]
    assert len([url for url in cluster.asked if "kube-node-lease" in url]) >= 10


def test_leases_that_move_are_not_waited_for_and_those_of_nodes_in_trouble_do_not_count() -> None:
    cluster = make_cluster(node("cp1"), node("w4", ready="Unknown"))
    api = api_of(cluster)
    before = {"cp1": ("long ago", 40.0), "w4": ("at first", 40.0)}
    parts = health.probe_node_leases(api, health.probe_nodes(api), before=before)
    assert [part.is_well for part in parts] == [True, False] and cluster.ticks == 0


def test_the_gate_does_not_wait_for_kubelets_that_have_renewed_since_an_earlier_look() -> None:
    cluster = make_cluster()
    began, earlier = cluster.ticks, dict.fromkeys(("cp1", "cp2"), ("before that", 40.0))
    assert [part for part in health.gate(api_of(cluster), renewed=earlier) if part.trouble] == []
    assert cluster.ticks - began < 5


def test_the_gate_waits_for_no_leader_that_has_renewed_since_an_earlier_look() -> None:
    cluster = make_cluster()
    began = cluster.ticks
    parts = health.gate(
        api_of(cluster),
        renewed=dict.fromkeys(("cp1", "cp2"), ("before that", 40.0)),
        led=dict.fromkeys(health.LEADERS, ("cp2_5f1c", "before that")),
    )
    assert [part for part in parts if part.trouble] == [] and cluster.ticks == began
    assert {part.node for part in parts if part.kind == "leader"} == {"cp2"}


@pytest.mark.parametrize(
    ("age_s", "ahead_s", "manager", "waits"),
    [
        (4, 0, "kubelet", False),
        (4, 3600, "kubelet", False),
        (14, 0, "kubelet", True),
        (14, 3600, "kubelet", True),
        (-5, 0, "kubelet", True),
        (4, 0, "kubectl-label", True),
    ],
)
def test_before_any_change_a_lease_that_was_renewed_a_moment_ago_is_not_waited_for(
    age_s: int, ahead_s: int, manager: str, waits: bool
) -> None:
    """Whatever this machine's own clock says. A lease that moves later counts too; that of another writer proves nothing of a kubelet."""
    cluster = make_cluster()
    server_time = cluster.now() + datetime.timedelta(seconds=ahead_s)
    cluster.date = f"{server_time:%a, %d %b %Y %H:%M:%S} GMT"
    owners = [{"manager": manager, "time": f"{server_time - datetime.timedelta(seconds=age_s):%Y-%m-%dT%H:%M:%SZ}"}]
    for row in cluster.answers_of[f"{SERVER}{NODE_LEASES}"][1]["items"]:
        row["metadata"]["managedFields"] = owners
    cluster.moves = set()
    led, began = dict.fromkeys(health.LEADERS, ("cp2_5f1c", "before that")), cluster.ticks
    parts = health.gate(api_of(cluster), led=led, counts_recent=True)
    assert [part for part in parts if part.trouble] == []
    assert (cluster.ticks > began) is waits
    assert waits or len([url for url in cluster.asked if "kube-node-lease" in url]) == 1
    began = cluster.ticks
    health.gate(api_of(cluster), led=led)
    assert cluster.ticks > began, "after a change it has to move"


def test_a_node_without_a_lease_and_one_that_renews_rarely_are_not_proven() -> None:
    cluster = make_cluster(node("cp1"), node("w3"))
    cluster.answers_of[f"{SERVER}{NODE_LEASES}"] = (200, {"items": []})
    node_leases(cluster, {"cp1": "at first"}, duration=400)
    cluster.renews = set()
    told = [text for _, text in probe_leases(cluster)]
    assert told == [
        "unproven: the kubelet of cp1 renews its Lease only every 100 s", "unproven: node w3 has no Lease in kube-node-lease"
    ]  # fmt: skip


def test_many_leases_are_not_listed_every_second() -> None:
    cluster = make_cluster(*(node(f"w{n}", address=f"10.1.0.{n}") for n in range(150)))
    cluster.renews = {f"w{n}" for n in range(150)}
    assert probe_leases(cluster) == []
    assert len([url for url in cluster.asked if "kube-node-lease" in url]) <= 3


# ---- nodes


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (node("w3", ready="False", message="container runtime is down"), "node w3 is not Ready: container runtime is down"),
        (node("w3", ready="Unknown"), "node w3 is not Ready: its kubelet says nothing"),
        (node("w3", kubelet="v1.36.0"), "node w3 has kubelet v1.36.0: an API server of v1.35.6 supports kubelets of 1.32 to 1.35"),
        (node("w3", kubelet="v1.31.9"), "node w3 has kubelet v1.31.9: an API server of v1.35.6 supports kubelets of 1.32 to 1.35"),
        (node("w3", kubelet="v1.32.0"), ""),
        (node("w3", kubelet="odd"), ""),
        ({"metadata": {"name": "w3"}}, "node w3 is not Ready: the kubelet has not reported yet"),
    ],
)  # fmt: skip
def test_nodes(bad: dict[str, Any], told: str) -> None:
    found = troubles(health.probe_nodes(api_of(make_cluster(node("cp1"), bad))))
    assert found == ([("w3", told)] if told else [])


@pytest.mark.parametrize(
    ("bad", "servers", "removal"),
    [
        ("cp1", ["cp1"], ""),
        ("cp1", ["cp1", "cp2"], "; if it is gone for good, on another control plane: kb node remove cp1"),
        ("w3", ["cp1"], "; if it is gone for good, on a control plane: kb node remove w3"),
    ],
)
def test_the_only_control_plane_is_not_to_be_removed(bad: str, servers: list[str], removal: str) -> None:
    nodes = [node(name, ready="Unknown" if name == bad else "True") for name in dict.fromkeys((*servers, bad))]
    for one in nodes:
        one["metadata"]["labels"] = {CONTROL_PLANE_TAINT.key: ""} if one["metadata"]["name"] in servers else {}
    found = next(part.trouble for part in health.probe_nodes(api_of(make_cluster(*nodes))) if part.trouble)
    assert found.remedy == f"on that machine: kb doctor{removal}"


def test_two_nodes_of_one_address_are_both_in_trouble() -> None:
    found = troubles(
        health.probe_nodes(api_of(make_cluster(node("w3", address="10.0.0.9"), node("w4", address="10.0.0.9"))))
    )
    text = "nodes w3, w4 have the same address: each of them reports 10.0.0.9 as its InternalIP"
    assert found == [("w3", text), ("w4", text)]


def test_every_api_server_is_asked_by_its_own_address() -> None:
    cluster = make_cluster()
    cluster.answers_of["https://10.0.0.12:6443/readyz"] = (
        500,
        b"[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed",
    )
    told = "API server 10.0.0.12:6443 is not ready: etcd failed: reason withheld"
    assert troubles(health.probe_api_servers(api_of(cluster))) == [("10.0.0.12:6443", told)]
    cluster.answers_of["https://10.0.0.12:6443/readyz"] = (503, b"")
    assert "/readyz answers HTTP 503" in troubles(health.probe_api_servers(api_of(cluster)))[0][1]
    del cluster.answers_of["https://10.0.0.12:6443/readyz"]
    assert "10.0.0.12:6443 does not answer: " in troubles(health.probe_api_servers(api_of(cluster)))[0][1]


@pytest.mark.parametrize(
    ("answer", "trouble", "unproven"),
    [
        ((504, b"etcdserver: request timed out"), "10.0.0.12:6443 cannot read from etcd: etcdserver: request timed out", ""),
        ((500, b""), "10.0.0.12:6443 cannot read from etcd: it answers HTTP 500", ""),
        (None, "10.0.0.12:6443 cannot read from etcd: ", ""),
        ((403, b"no"), "", "this identity may not read Namespace kube-system at 10.0.0.12:6443"),
    ],
)  # fmt: skip
def test_every_api_server_reads_by_a_quorum(answer: Optional[tuple[int, bytes]], trouble: str, unproven: str) -> None:
    cluster, url = make_cluster(), f"https://10.0.0.12:6443{NAMESPACE}"
    del cluster.answers_of[url]
    if answer:
        cluster.answers_of[url] = answer
    well, part = health.probe_api_servers(api_of(cluster))
    assert well.is_well and trouble in str(part.trouble or "") and bool(part.trouble) == bool(trouble)
    assert part.unproven == unproven and f"https://10.0.0.11:6443{NAMESPACE}" in cluster.asked


def test_an_api_server_whose_certificate_does_not_name_its_address_is_not_proven() -> None:
    cluster = make_cluster()
    cluster.untrusted.add("https://10.0.0.12:6443/readyz")
    (part,) = [part for part in health.probe_api_servers(api_of(cluster)) if not part.is_well]
    assert part.trouble is None and "does not present a certificate for that address" in part.unproven


def test_an_api_server_whose_certificate_has_ended_is_in_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = make_cluster()
    url = "https://10.0.0.12:6443/readyz"
    get = cluster.http_get

    def ended(asked: str, **options: Any) -> HttpResponse:
        if asked == url:
            raise Unreachable(url, "tls", text="certificate verify failed: certificate has expired")
        return get(asked, **options)

    monkeypatch.setattr(cluster, "http_get", ended)
    (part,) = [part for part in health.probe_api_servers(api_of(cluster)) if not part.is_well]
    assert "presents a certificate that its clients do not accept" in str(part.trouble) and "has expired" in str(
        part.trouble
    )


def test_a_server_that_does_not_answer_at_all_is_raised() -> None:
    with pytest.raises(Unreachable):
        health.gate(api_of(Cluster()))


def test_a_leader_that_stopped_and_one_that_nobody_elects() -> None:
    cluster = make_cluster()
    cluster.moves = {"kube-scheduler"}
    told = "no kube-controller-manager leads: cp2 has not renewed its lease in the last 6 s"
    assert troubles(health.probe_leaders(api_of(cluster))) == [("kube-controller-manager", told)]
    del cluster.answers_of[f"{SERVER}{LEASES}/kube-controller-manager"]
    cluster.answers_of[f"{SERVER}{LEASES}/kube-controller-manager"] = (404, {"kind": "Status", "reason": "NotFound"})
    (found,) = [part for part in health.probe_leaders(api_of(cluster)) if not part.is_well]
    assert found.trouble is None and "leader election may be turned off" in found.unproven


def test_a_lease_without_a_holder_leads_nothing() -> None:
    cluster = make_cluster()
    cluster.moves = {"kube-scheduler"}
    lease(cluster, "kube-controller-manager", holder="")
    assert "its lease has no holder" in troubles(health.probe_leaders(api_of(cluster)))[0][1]


def test_leaders_that_renewed_meanwhile_are_not_waited_for() -> None:
    cluster = make_cluster()
    before = dict.fromkeys(health.LEADERS, ("cp1_x", "long ago"))
    assert troubles(health.probe_leaders(api_of(cluster), before)) == [] and cluster.ticks == Cluster().ticks


@pytest.mark.parametrize(
    ("status", "message", "trouble", "unproven"),
    [
        (500, 'Internal error occurred: failed calling webhook "pods.x.io": dial tcp 10.1.1.1:443: connect: refused', "no pod can be created: Internal", ""),
        (504, "context deadline exceeded", "no pod can be created: context deadline", ""),
        (400, 'admission webhook "w.x.io" does not support dry run', "", "a webhook with side effects"),
        (403, 'User "x" cannot create resource "pods" in API group ""', "", "this identity may not create pods"),
        (403, 'pods "kb-admission-trial" is forbidden: violates PodSecurity "restricted:latest"', "", ""),
        (403, 'admission webhook "policy.x.io" denied the request: no', "", ""),
        (409, "exists", "", ""),
    ],
)  # fmt: skip
def test_admission(status: int, message: str, trouble: str, unproven: str) -> None:
    cluster = make_cluster()
    answer = {"kind": "Status", "reason": "x", "message": message}
    cluster.answers_of[f"{SERVER}/api/v1/namespaces/default/pods?dryRun=All"] = (status, answer)
    (part,) = health.probe_admission(api_of(cluster))
    assert str(part.trouble or "").startswith(trouble) and bool(part.trouble) == bool(trouble)
    assert part.unproven.startswith(unproven) and bool(part.unproven) == bool(unproven)


def test_the_configuration_of_a_webhook_that_cannot_be_called_is_named() -> None:
    cluster = make_cluster()
    answer = {"kind": "Status", "reason": "x", "message": 'failed calling webhook "pods.x.io": service "x" not found'}
    cluster.answers_of[f"{SERVER}/api/v1/namespaces/default/pods?dryRun=All"] = (500, answer)
    hooks = f"{SERVER}/apis/admissionregistration.k8s.io/v1"
    kept = {"metadata": {"name": "x-policy"}, "webhooks": [{"name": "pods.x.io"}]}
    cluster.answers_of[f"{hooks}/mutatingwebhookconfigurations"] = (200, {"items": [{"metadata": {"name": "y"}}]})
    cluster.answers_of[f"{hooks}/validatingwebhookconfigurations"] = (200, {"items": [kept]})
    (part,) = health.probe_admission(api_of(cluster))
    assert part.trouble and part.trouble.remedy.endswith("kubectl delete validatingwebhookconfiguration x-policy")


def test_admission_that_does_not_answer() -> None:
    cluster = make_cluster()
    del cluster.answers_of[f"{SERVER}/api/v1/namespaces/default/pods?dryRun=All"]
    (part,) = health.probe_admission(api_of(cluster))
    assert part.trouble and part.trouble.what == "no pod can be created"


def member(number: int, *, learner: bool = False, started: bool = True) -> dict[str, Any]:
    url = f"https://10.0.0.1{number}"
    found: dict[str, Any] = {"ID": str(number), "peerURLs": [f"{url}:2380"], "isLearner": learner}
    return {**found, "name": f"cp{number}", "clientURLs": [f"{url}:2379"]} if started else found


def probe_members(
    members: list[dict[str, Any]], statuses: dict[int, Optional[dict[str, Any]]]
) -> list[tuple[str, str]]:
    cluster = Cluster()
    cluster.answers_of["https://10.0.0.11:2379/v3/cluster/member/list"] = (200, {"members": members})
    for number, status in statuses.items():
        if status is not None:
            cluster.answers_of[f"https://10.0.0.1{number}:2379/v3/maintenance/status"] = (200, status)
    client = etcd.Etcd(cluster, ["https://10.0.0.11:2379"], tls=Tls())
    found = client.list_members(is_sure=False)
    return troubles(health.judge_members(found, etcd.read_statuses(client, found)))


def test_members_of_etcd() -> None:
    applied = {"raftAppliedIndex": "20000"}
    assert probe_members([member(1), member(2)], {1: applied, 2: {"raftAppliedIndex": "15000"}}) == []
    cases: list[tuple[dict[str, Any], Optional[dict[str, Any]], str]] = [
        (member(2), None, "does not serve: no answer: "),
        (member(2), {"errors": ["memberID:2 alarm:NOSPACE "], **applied}, "does not serve: memberID:2 alarm:NOSPACE"),
        (member(2), {"raftAppliedIndex": "14999"}, "is 5001 entries behind: "),
        (member(2, learner=True), applied, "is not a voting member yet: "),
        (member(2, learner=True), None, "is not a voting member yet: "),
        (member(2, learner=True, started=False), None, "is not a voting member yet: "),
        (member(2, started=False), None, "has never started: "),
    ]
    for second, status, told in cases:
        ((_, text),) = probe_members([member(1), second], {1: applied, 2: status})
        assert told in text, text
