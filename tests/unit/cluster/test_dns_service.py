"""kubeup/cluster/dns_service.py: the first broken link behind a DNS that does not answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kubeup.cluster import dns_service
from kubeup.cluster.api import Api, Identity
from kubeup.machine.http import HttpResponse, Tls
from tests.fake_host import FakeHost

SERVER = "https://10.0.0.11:6443"
SYSTEM = f"{SERVER}/api/v1/namespaces/kube-system"
LABELS = {"k8s-app": "kube-dns"}


def make_pod(status: str, message: str = "") -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": status, "message": message}]
    meta = {"name": "coredns-1", "namespace": "kube-system", "labels": LABELS}
    return {"metadata": meta, "spec": {"nodeName": "w1"}, "status": {"conditions": conditions}}


def explain(*, reads_pods: bool = True, replicas: int = 2, **more: Any) -> str:
    """more: service: its spec, None for none; pods."""
    host = FakeHost()
    spec = more.get("service", {"clusterIPs": ["10.96.0.10"], "selector": LABELS})
    service = HttpResponse(200, json.dumps({"metadata": {"name": "kube-dns"}, "spec": spec}).encode())
    host.urls[f"{SYSTEM}/services/kube-dns"] = service if spec else HttpResponse(404, b'{"reason": "NotFound"}')
    host.urls[f"{SYSTEM}/pods"] = HttpResponse(200, json.dumps({"items": more.get("pods", [])}).encode())
    template = {"metadata": {"labels": LABELS}}
    deployment = {"metadata": {"name": "coredns"}, "spec": {"replicas": replicas, "template": template}}
    url = f"{SERVER}/apis/apps/v1/namespaces/kube-system/deployments"
    host.urls[url] = HttpResponse(200, json.dumps({"items": [deployment]}).encode())
    events = {"items": [{"reason": "FailedMount", "message": text} for text in more.get("failures", ())]}
    field = "involvedObject.name%3Dcoredns-1%2Ctype%3DWarning"
    host.urls[f"{SYSTEM}/events?fieldSelector={field}"] = HttpResponse(200, json.dumps(events).encode())
    api = Api(host, Identity(SERVER, Tls()), retry_s=0)
    found = dns_service.explain_silence(api, ["10.96.0.10"], reads_pods=reads_pods)
    return f"{found}. {found.remedy}" if found else ""


def test_a_dns_that_is_well_has_nothing_to_explain() -> None:
    assert explain(pods=[make_pod("True")]) == explain(reads_pods=False) == ""


def test_a_service_that_is_gone_or_elsewhere() -> None:
    assert explain(service=None, reads_pods=False).startswith(
        "there is no Service kube-dns in kube-system: it was deleted"
    )
    told = explain(service={"clusterIPs": ["10.96.0.99"], "selector": LABELS}, reads_pods=False)
    assert told.startswith("the kubelet tells pods to ask 10.96.0.10, and the Service kube-dns is at 10.96.0.99")
    assert "clusterDNS: [10.96.0.99]" in told


def test_a_service_that_leads_to_no_pod() -> None:
    assert "Deployment coredns is scaled to 0. kubectl -n kube-system scale deployment coredns --replicas=2" in explain(
        replicas=0
    )
    assert "Deployment coredns has none of its 2 pods" in explain()
    told = explain(service={"clusterIP": "10.96.0.10", "selector": {"k8s-app": "coredns"}}, pods=[make_pod("True")])
    assert told.startswith(
        "Service kube-dns leads to no pod: its selector is k8s-app=coredns: the pods of Deployment coredns have other labels"
    )


def test_pods_that_are_not_ready() -> None:
    told = explain(pods=[make_pod("False", "containers with unready status: [coredns]")])
    assert told.startswith(
        "none of the pods behind Service kube-dns is Ready: coredns-1 on node w1: containers with unready"
    )
    lost = 'MountVolume.SetUp failed for volume "config-volume" : configmap "coredns" not found'
    told = explain(pods=[make_pod("False", "containers with unready status: [coredns]")], failures=[lost])
    assert told == (
        f"none of the pods behind Service kube-dns is started: coredns-1 on node w1: {lost}. kb init phase addon coredns, on a control plane"
    )
    stuck = make_pod("False")
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}}, "name": "coredns"}
    stuck["status"]["containerStatuses"] = [waiting]
    assert "does not run (ImagePullBackOff): Back-off" in explain(pods=[stuck])


@pytest.mark.parametrize(
    ("stored", "address", "is_so"),
    [
        ("dns: {disabled: true}", "10.96.0.1", True),
        ("dns: {disabled: true}", "10.96.0.10", False),  # somebody's own
        ("dns: {}", "10.96.0.1", False),
        ("dns: [", "10.96.0.1", False),
    ],
)
def test_a_cluster_that_is_meant_to_have_none(stored: str, address: str, is_so: bool) -> None:
    host = FakeHost()
    services = [{"metadata": {"name": "one"}, "spec": {"clusterIPs": [address]}}]
    config = {"metadata": {"name": "kubeadm-config"}, "data": {"ClusterConfiguration": stored}}
    host.urls[f"{SERVER}/api/v1/services"] = HttpResponse(200, json.dumps({"items": services}).encode())
    host.urls[f"{SYSTEM}/configmaps/kubeadm-config"] = HttpResponse(200, json.dumps(config).encode())
    api = Api(host, Identity(SERVER, Tls()), retry_s=0)
    assert dns_service.is_left_out(api, ["10.96.0.10"]) is is_so


def find_odd(address: str, *, told: str = "10.96.0.10", disabled: bool = False) -> str:
    """address: of Service kube-dns, "" for none. told: clusterDNS in kubelet-config."""
    host = FakeHost()
    rows = [{"metadata": {"name": "kube-dns"}, "spec": {"clusterIPs": [address]}}] * bool(address)
    answers: dict[str, Any] = {f"{SERVER}/api/v1/services": {"items": rows}}
    configs = (
        ("kubelet-config", "kubelet", f"clusterDNS: [{told}]\n"),
        ("kubeadm-config", "ClusterConfiguration", f"dns: {{disabled: {str(disabled).lower()}}}\n"),
    )
    for name, key, text in configs:
        answers[f"{SYSTEM}/configmaps/{name}"] = {"metadata": {"name": name}, "data": {key: text}}
    for row in rows:
        answers[f"{SYSTEM}/services/kube-dns"] = row
    host.urls.update({url: HttpResponse(200, json.dumps(answer).encode()) for url, answer in answers.items()})
    host.urls.setdefault(f"{SYSTEM}/services/kube-dns", HttpResponse(404, b'{"reason": "NotFound"}'))
    api = Api(host, Identity(SERVER, Tls()), retry_s=0)
    found = dns_service.find_odd_address(api, dns_service.read_told(api)[0])
    return f"{found}. {found.remedy}" if found else ""


def test_an_address_that_is_no_service_s() -> None:
    assert find_odd("10.96.0.10") == find_odd("10.96.0.10", told="") == find_odd("", disabled=True) == ""
    assert find_odd("10.96.0.10", told="169.254.20.10") == "", "a cache on each node"
    told = find_odd("10.96.0.99")
    assert "ConfigMap kube-system/kubelet-config to ask 10.96.0.10, and the Service kube-dns is at 10.96.0.99" in told
    assert find_odd("").startswith("there is no Service kube-dns in kube-system: it was deleted")


@pytest.mark.parametrize(
    ("udp", "says"),
    [
        ({"port": 53, "protocol": "UDP", "targetPort": 53}, ""),
        ({"port": 53, "protocol": "UDP", "targetPort": "dns"}, ""),
        ({"port": 53, "protocol": "UDP"}, ""),  # the same as port
        ({"port": 53, "protocol": "UDP", "targetPort": 5353}, "Service kube-dns leads to port 5353 of CoreDNS' pods"),
        ({"port": 5353, "protocol": "UDP", "targetPort": 53}, "Service kube-dns has no port 53 for UDP"),
    ],
)
def test_a_service_with_other_ports(udp: dict[str, Any], says: str) -> None:
    ports = [udp, {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53}]
    told = explain(service={"clusterIPs": ["10.96.0.10"], "selector": LABELS, "ports": ports}, pods=[make_pod("True")])
    assert told.startswith(says) and bool(told) == bool(says)
