"""kubeup/doctor/looks/pod_ways.py: pods are made, asked from inside, judged, and removed whatever happens."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

from kubeup.cluster import probe_pods
from kubeup.diagnosis.checks.facts import Finding
from kubeup.doctor.looks import pod_ways, table
from kubeup.machine.host import CommandResult
from kubeup.machine.http import AnyTls, HttpResponse
from tests.fake_cluster import FakeCluster
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import make_host, make_patient
from tests.unit.network.test_pod_view import dns_answer

PODS = "/api/v1/namespaces/kube-system/pods"
CNI = "/etc/cni/net.d/10-other.conflist"


@dataclass
class ClusterFake(FakeHost):
    """The way to a cluster in which kubelets start every pod at once, unless `start` says otherwise."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    start: Callable[[dict[str, Any]], dict[str, Any]] = lambda pod: running(pod)
    refuses: Optional[HttpResponse] = None

    def http_get(self, url: str, *, headers: Optional[Mapping[str, str]] = None, **more: Any) -> HttpResponse:
        answer = self.cluster.answer("GET", url, b"", headers or {})
        if answer.status == 404 and "policies" in url:
            return HttpResponse(200, json.dumps({"items": self.urls.get("policies", [])}).encode())
        return answer

    def http_send(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
    ) -> HttpResponse:
        if method == "POST" and self.refuses is not None:
            return self.refuses
        answer = self.cluster.answer(method, url, body, headers or {})
        if method == "POST":
            pod = json.loads(answer.body)
            pod["status"] = self.start(pod)
            self.cluster.objects[f"{PODS}/{pod['metadata']['name']}"] = pod
        return answer


def running(pod: dict[str, Any]) -> dict[str, Any]:
    address = "10.244.0.9" if pod["spec"]["nodeName"] == "cp1" else "10.244.1.9"
    return {"phase": "Running", "podIPs": [{"ip": address}], "containerStatuses": [{"state": {"running": {}}}]}


def make_node(name: str, address: str, cidr: str, status: str = "True") -> dict[str, Any]:
    told = {
        "conditions": [{"type": "Ready", "status": status}],
        "addresses": [{"type": "InternalIP", "address": address}],
        "images": [{"names": ["registry.k8s.io/pause@sha256:1", "registry.k8s.io/pause:3.10.1"]}],
    }
    return {"kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": cidr}, "status": told}


@pytest.fixture
def host() -> FakeHost:
    """cp1 with a pod network of others', from whose pods everything answers."""
    host = make_host()
    host.programs.add("nsenter")
    host.files[CNI] = json.dumps({"plugins": [{"type": "x", "capabilities": {"portMappings": True}}]}).encode()
    host.answers["iptables"] = host.answers["nft"] = ""
    sandbox = {"info": {"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "/run/netns/a"}]}}}}

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        return CommandResult(argv, 0, "abc\n" if "pods" in argv else json.dumps(sandbox if "inspectp" in argv else {}))

    host.answers["crictl"] = crictl
    host.answers["nsenter"] = host.answers[sys.executable] = answer_but()
    host.urls["http://10.77.0.11:61500/"] = HttpResponse(200, b"kb-probe")
    return host


def answer_but(*silent: str) -> Callable[[tuple[str, ...]], CommandResult]:
    """silent: addresses that do not answer."""

    def answer(argv: tuple[str, ...]) -> CommandResult:
        told = []
        for kind, address, _, payload in json.loads(argv[-1]):
            words = {"udp": dns_answer(payload), "dns-tcp": dns_answer(payload)} if payload else {"echo": "1450 1450"}
            told.append("" if address in silent else words.get(kind, "open"))
        return CommandResult(argv, 0, json.dumps(told))

    return answer


@pytest.fixture
def fake() -> ClusterFake:
    fake = ClusterFake()
    nodes = [make_node("cp1", "10.77.0.11", "10.244.0.0/24"), make_node("w1", "10.77.0.12", "10.244.1.0/24")]
    fake.cluster.objects.update({f"/api/v1/nodes/{node['metadata']['name']}": node for node in nodes})
    service = {"kind": "Service", "metadata": {"name": "kubernetes"}, "spec": {"clusterIPs": ["10.96.0.1"]}}
    fake.cluster.objects["/api/v1/namespaces/default/services/kubernetes"] = service
    dns = {
        "metadata": {"name": "coredns-1", "labels": {"k8s-app": "kube-dns"}},
        "spec": {"nodeName": "cp1"},
        "status": {"podIP": "10.244.0.5", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    fake.cluster.objects[f"{PODS}/coredns-1"] = dns
    return fake


def prove(host: FakeHost, fake: ClusterFake) -> list[Finding]:
    """What is found; afterwards no pod of the probe is there."""
    found = pod_ways.prove_pod_ways(make_patient(host), fake)
    left = [name for name in fake.cluster.objects if "/pods/kb-probe" in name]
    assert left == []
    assert not host.changes
    return found


def test_pods_are_made_on_every_ready_node_and_are_gone(host: FakeHost, fake: ClusterFake) -> None:
    fake.cluster.objects["/api/v1/nodes/w2"] = make_node("w2", "10.77.0.13", "10.244.2.0/24", "False")
    (note,) = prove(host, fake)
    assert (note.level, note.text) == ("ok", "not proven: the way to pods of node w2: that node is not Ready")
    made = [request for request in fake.cluster.requests if request.startswith("POST ")]
    gone = [request for request in fake.cluster.requests if request.startswith("DELETE ")]
    assert len(made) == len(gone) == 2


def test_a_pod_may_do_nothing_and_ends_by_itself() -> None:
    pod = probe_pods.render_pod("kb-probe-1", 0, wish=probe_pods.Wish("w1", "pause:1", host_port=61500))
    spec = pod["spec"]
    assert spec["activeDeadlineSeconds"] == 60 and spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["ports"] == [{"containerPort": 8099, "hostPort": 61500, "protocol": "TCP"}]
    assert container["imagePullPolicy"] == "IfNotPresent"


def test_a_cluster_that_is_meant_to_have_no_dns(host: FakeHost, fake: ClusterFake) -> None:
    host.answers["nsenter"] = host.answers[sys.executable] = answer_but("10.96.0.10")
    del fake.cluster.objects[f"{PODS}/coredns-1"]
    path = "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"
    config = {"kind": "ConfigMap", "metadata": {"name": "kubeadm-config"}, "data": {"ClusterConfiguration": "dns: {}"}}
    fake.cluster.objects[path] = config
    assert [note.level for note in prove(host, fake) if "DNS" in note.text] == ["error"]
    fake.cluster.objects[path] = {**config, "data": {"ClusterConfiguration": "dns: {disabled: true}"}}
    assert prove(host, fake) == []


def test_a_dns_that_has_moved_is_no_fault_of_kube_proxy(host: FakeHost, fake: ClusterFake) -> None:
    host.answers["nsenter"] = host.answers[sys.executable] = answer_but("10.96.0.10")
    place = "/api/v1/namespaces/kube-system/services/kube-dns"
    fake.cluster.objects[place] = {
        "kind": "Service",
        "metadata": {"name": "kube-dns"},
        "spec": {"clusterIP": "10.96.0.10"},
    }
    (note,) = prove(host, fake)
    assert "kube-proxy's rules here do not lead there" in note.text
    fake.cluster.objects[place]["spec"]["clusterIP"] = "10.96.0.99"
    (note,) = prove(host, fake)
    assert note.level == "error" and "by UDP nor the cluster's DNS at 10.96.0.10:53 by TCP" in note.text
    assert "tells pods to ask 10.96.0.10, and the Service kube-dns is at 10.96.0.99" in note.text
    assert "kube-proxy" not in note.text + note.remedy


def test_a_way_that_is_cut_is_an_error(host: FakeHost, fake: ClusterFake) -> None:
    host.answers["nsenter"] = answer_but("10.244.1.9")
    (note,) = prove(host, fake)
    assert note.level == "error"
    assert note.text.startswith("a pod on this node does not reach pods of node w1: what pods send there")


def test_what_a_policy_may_deny_is_no_fault(host: FakeHost, fake: ClusterFake) -> None:
    host.answers["nsenter"] = answer_but("10.244.1.9")
    place = "/apis/networking.k8s.io/v1/namespaces/kube-system/networkpolicies"
    policy = {"metadata": {"name": "deny"}, "spec": {"podSelector": {}}}
    fake.cluster.objects[place] = {"kind": "List", "items": [policy]}
    (note,) = prove(host, fake)
    assert note.level == "ok" and note.text.endswith("which NetworkPolicy kube-system/deny may deny")
    policy["spec"] = {"podSelector": {"matchLabels": {"app": "web"}}}
    assert [note.level for note in prove(host, fake)] == ["error"], "it applies to other pods"


def test_a_host_port_that_leads_nowhere(host: FakeHost, fake: ClusterFake) -> None:
    del host.urls["http://10.77.0.11:61500/"]
    assert prove(host, fake) == [], "this node does not reach its pod at all: not this look's"
    host.urls["http://10.244.0.9:8099/"] = HttpResponse(200, b"kb-probe")
    (note,) = prove(host, fake)
    assert note.level == "error" and note.text.startswith(
        "a hostPort does not lead to its pod: http://10.77.0.11:61500/"
    )
    host.files[CNI] = b'{"plugins": [{"type": "x"}]}'
    (note,) = prove(host, fake)
    assert note.level == "ok" and "10-other.conflist does not say that it maps ports" in note.text


def test_a_pod_that_does_not_start(host: FakeHost, fake: ClusterFake) -> None:
    """With its cause out of the kubelet's log; one that is only slow is not proven."""
    fake.start = lambda pod: {
        "phase": "Pending",
        "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}],
    }
    found = prove(host, fake)
    assert [(note.level, note.text.partition(",")[0]) for note in found] == [
        ("ok", "not proven: a new pod on this node"),
        ("ok", "not proven: a new pod on node w1"),
    ]
    host.clock = fake.clock
    run = "kb-probe-abcdef"
    line = (
        f'E0101 00:00:00.000000 1 pod_workers.go:1] "Error syncing pod, skipping" err="failed to \\"CreatePodSandbox\\" for \\"{run}-0\\" with '
        'CreatePodSandboxError: \\"failed to allocate for range 0: no IP addresses available in range set: 10.244.0.1-10.244.0.254\\""'
        f' pod="kube-system/{run}-0" podUID="1"'
    )
    host.answers["journalctl"] = f"{line}\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_pods, "new_run", lambda: run)
        note = prove(host, fake)[0]
    assert note.level == "error" and "no address is left for a pod on this node (10.244.0.1-10.244.0.254)" in note.text
    assert "/run/kb/pod-addresses" in note.remedy


def test_a_kubelet_that_refuses_a_pod(host: FakeHost, fake: ClusterFake) -> None:
    fake.start = lambda pod: {
        "phase": "Failed",
        "reason": "OutOfpods",
        "message": "Node didn't have enough resource: pods",
    }
    found = prove(host, fake)
    assert [note.level for note in found] == ["error", "warning"], "another node's is a warning here"
    assert "OutOfpods: Node didn't have enough resource: pods" in found[0].text
    assert "kb doctor --probe-pods" in found[1].remedy


def test_an_address_that_is_not_of_this_node_s_range(host: FakeHost, fake: ClusterFake) -> None:
    del host.files[CNI]
    host.files["/etc/cni/net.d/99-kb-bridge.conflist"] = b'{"plugins": [{"capabilities": {"portMappings": true}}]}'
    host.answers["ip"] = "[]"
    assert prove(host, fake) == []
    node = make_node("cp1", "10.77.0.11", "10.244.7.0/24")
    fake.cluster.objects["/api/v1/nodes/cp1"] = node
    (note,) = prove(host, fake)
    assert (
        note.level == "error"
        and "has the address 10.244.0.9, and the cluster gave this node 10.244.7.0/24" in note.text
    )


def test_what_is_not_allowed_is_not_proven(host: FakeHost, fake: ClusterFake) -> None:
    status = {"kind": "Status", "reason": "Forbidden", "message": "violates PodSecurity"}
    fake.refuses = HttpResponse(403, json.dumps(status).encode())
    (note,) = prove(host, fake)
    assert note.level == "ok" and "violates PodSecurity" in note.text
    fake.cluster.objects["/api/v1/nodes/cp1"] = make_node("cp1", "10.77.0.11", "10.244.0.0/24", "False")
    (note,) = prove(host, fake)
    assert note.text == "not proven: what a new pod gets and reaches, since node cp1 is not Ready"


def test_pods_are_removed_when_it_is_interrupted(host: FakeHost, fake: ClusterFake) -> None:
    def interrupt(argv: tuple[str, ...]) -> CommandResult:
        raise KeyboardInterrupt

    host.answers["nsenter"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        prove(host, fake)
    assert not any("kb-probe" in name for name in fake.cluster.objects)


def leave(fake: ClusterFake, name: str, phase: str, made: str) -> None:
    meta = {"name": name, "labels": probe_pods.labels_of("kb-probe-old"), "creationTimestamp": made}
    fake.cluster.objects[f"{PODS}/{name}"] = {"kind": "Pod", "metadata": meta, "status": {"phase": phase}}


def test_what_a_killed_doctor_left_is_named_and_then_removed(host: FakeHost, fake: ClusterFake) -> None:
    """A pod that another doctor looks at right now stays."""
    leave(fake, "kb-probe-old-0", "Failed", "2026-01-01T00:00:00Z")
    leave(fake, "kb-probe-old-1", "Running", "2025-12-31T23:00:00Z")
    leave(fake, "kb-probe-now-0", "Running", "2026-01-01T00:00:00Z")
    pods = [item for name, item in fake.cluster.objects.items() if name.startswith(PODS)]
    url = f"https://10.77.0.11:6443{PODS}?labelSelector=app.kubernetes.io%2Fname%3Dkb-probe"
    host.urls[url] = HttpResponse(200, json.dumps({"items": pods[1:]}).encode())
    found = list(pod_ways.look_at_leftovers(make_patient(host)))
    assert [note.level for note in found] == ["ok", "warning", "warning"]
    assert "not proven" in found[0].text and "--probe-pods" in found[0].text
    assert "kb-probe-old-0" in found[1].text and "kb-probe-old-1" in found[2].remedy
    pod_ways.prove_pod_ways(make_patient(host), fake)
    assert [name.rpartition("/")[2] for name in fake.cluster.objects if "/kb-probe" in name] == ["kb-probe-now-0"]


def test_only_the_proof_is_given_a_machine_that_it_may_change() -> None:
    looks = table.with_pods(table.LOOKS, FakeHost())
    changed = [new.name for new, old in zip(looks, table.LOOKS) if new != old]
    assert changed == ["pod-ways"] and len(looks) == len(table.LOOKS)
    assert [look.name for look in table.with_pods(table.OF_THE_CLUSTER, FakeHost())][-1] == "pod-ways"
