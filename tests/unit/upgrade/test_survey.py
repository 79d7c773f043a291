"""kubeup/upgrade/survey.py: each API server is asked itself, and everything else is read from the cluster's objects."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from kubeup.cluster import etcd
from kubeup.cluster.api import Api, Identity
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from kubeup.upgrade import survey
from kubeup.upgrade.survey import NodeSeen, Seen
from tests.fake_host import FakeHost

SERVER = "https://10.0.0.11:6443"
SYSTEM = f"{SERVER}/api/v1/namespaces/kube-system"
APPS = f"{SERVER}/apis/apps/v1/namespaces/kube-system"
CONTROL_PLANES = f"{SYSTEM}/pods?labelSelector=tier%3Dcontrol-plane"


@dataclass
class Cluster(FakeHost):
    """url -> what it answers: a value, or (status, value). What is not there is silent."""

    answers_of: dict[str, Any] = field(default_factory=dict)

    def http_get(self, url: str, **_: Any) -> HttpResponse:
        if url not in self.answers_of:
            raise Unreachable(url, "refused", text="connection refused")
        found = self.answers_of[url]
        status, value = found if isinstance(found, tuple) else (200, found)
        return HttpResponse(status, value if isinstance(value, bytes) else json.dumps(value).encode())


def api_of(cluster: Cluster) -> Api:
    return Api(cluster, Identity(SERVER, Tls()), retry_s=0)


def node(
    name: str, number: int, *, kubelet: str = "v1.35.6", labels: Any = (), cordoned: bool = False
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {"unschedulable": cordoned},
        "status": {
            "addresses": [{"type": "InternalIP", "address": f"10.0.0.{number}"}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {
                "kubeletVersion": kubelet,
                "containerRuntimeVersion": "containerd://1.6.20~ds1",
                "osImage": "Debian GNU/Linux 12",
            },
        },
    }


def pod(component: str, name: str, *, image: str) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{component}-{name}", "labels": {"component": component, "tier": "control-plane"}},
        "spec": {"nodeName": name, "containers": [{"name": component, "image": image}]},
    }


def workload(name: str, image: str) -> dict[str, Any]:
    spec = {"template": {"metadata": {"name": name}, "spec": {"containers": [{"name": name, "image": image}]}}}
    return {"metadata": {"name": name}, "spec": spec}


STORED = "kubernetesVersion: v1.35.6\netcd:\n  local:\n    imageTag: 3.6.6-0\n"


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster()
    found.answers_of = {
        f"{SERVER}/api/v1/nodes": {
            "kind": "NodeList",
            "items": [node("cp1", 11), node("cp2", 12), node("w1", 21, cordoned=True)],
        },
        CONTROL_PLANES: {
            "kind": "PodList",
            "items": [
                pod("kube-scheduler", "cp1", image="registry.k8s.io/kube-scheduler:v1.35.6"),
                pod("kube-controller-manager", "cp1", image="reg:5000/kube-controller-manager:v1.35.6@sha256:ab"),
                pod("kube-apiserver", "cp1", image="registry.k8s.io/kube-apiserver:v1.35.6"),
            ],
        },
        f"{SERVER}/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes": {
            "metadata": {"name": "kubernetes"},
            "ports": [{"name": "https", "port": 6443}],
            "endpoints": [{"addresses": ["10.0.0.11", "10.0.0.12"]}],
        },
        f"{SERVER}/version": {"gitVersion": "v1.35.6"},
        f"{SYSTEM}/configmaps/kubeadm-config": {
            "metadata": {"name": "kubeadm-config"},
            "data": {"ClusterConfiguration": STORED},
        },
        f"{APPS}/daemonsets/kube-proxy": workload("kube-proxy", "registry.k8s.io/kube-proxy:v1.35.6"),
        f"{APPS}/deployments/coredns": workload("coredns", "registry.k8s.io/coredns/coredns:v1.13.1"),
    }
    return found


def test_everything_is_seen_where_it_runs(cluster: Cluster) -> None:
    found = survey.read_versions(api_of(cluster), members=None)
    silent = "API server 10.0.0.12:6443 does not answer: nothing listens there (connection refused)"
    assert set(found.seen) == {
        Seen("kube-apiserver", "v1.35.6", "cp1", "10.0.0.11:6443"),
        Seen("kube-apiserver", "", "cp2", "10.0.0.12:6443", silent),
        Seen("kube-scheduler", "v1.35.6", "cp1", "registry.k8s.io/kube-scheduler:v1.35.6"),
        Seen("kube-controller-manager", "v1.35.6", "cp1", "reg:5000/kube-controller-manager:v1.35.6@sha256:ab"),
        *(Seen("kubelet", "v1.35.6", name, "Debian GNU/Linux 12") for name in ("cp1", "cp2", "w1")),
        *(Seen("container-runtime", "1.6.20~ds1", name, "containerd") for name in ("cp1", "cp2", "w1")),
        Seen("kube-proxy", "v1.35.6", place="registry.k8s.io/kube-proxy:v1.35.6"),
        Seen("coredns", "v1.13.1", place="registry.k8s.io/coredns/coredns:v1.13.1"),
    }
    assert (found.stored, found.etcd_tag) == ("v1.35.6", "3.6.6-0")
    assert found.nodes == (
        NodeSeen("cp1", is_control_plane=True, is_ready=True),
        NodeSeen("cp2", is_control_plane=True, is_ready=True),
        NodeSeen("w1", is_control_plane=False, is_ready=True, is_cordoned=True),
    )


def test_what_an_admin_may_not_list_leaves_the_server_that_was_asked(cluster: Cluster) -> None:
    del cluster.answers_of[f"{SERVER}/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"]
    cluster.answers_of[f"{SERVER}/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"] = (
        403,
        {"kind": "Status", "message": "no"},
    )
    found = survey.read_versions(api_of(cluster), members=None)
    assert [one.place for one in found.of("kube-apiserver")] == ["10.0.0.11:6443"]


def test_members_of_etcd(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    members = (
        etcd.Member("1", "cp1", ("https://10.0.0.11:2380",), ("https://10.0.0.11:2379",), False),
        etcd.Member("2", "cp2", ("https://10.0.0.12:2380",), ("https://10.0.0.12:2379",), False),
    )
    statuses = {"1": etcd.Status("", version="3.6.6"), "2": etcd.Status("no answer: refused")}
    client = etcd.Etcd(cluster, ["https://10.0.0.11:2379"], tls=Tls())
    monkeypatch.setattr(etcd.Etcd, "list_members", lambda *_, **__: members)
    monkeypatch.setattr(etcd.Etcd, "read_status", lambda _, url: statuses["1" if "0.11" in url else "2"])
    found = survey.read_versions(api_of(cluster), members=client)
    assert found.of("etcd") == (
        Seen("etcd", "3.6.6", "cp1", "https://10.0.0.11:2379"),
        Seen("etcd", "", "cp2", "https://10.0.0.12:2379", "no answer: refused"),
    )


def test_a_configuration_that_is_none(cluster: Cluster) -> None:
    for text in ("[", "- a", "etcd: []"):
        cluster.answers_of[f"{SYSTEM}/configmaps/kubeadm-config"]["data"]["ClusterConfiguration"] = text
        found = survey.read_versions(api_of(cluster), members=None)
        assert (found.stored, found.etcd_tag) == ("", "")


@pytest.mark.parametrize(
    ("image", "tag"),
    [
        ("registry.k8s.io/kube-proxy:v1.35.6", "v1.35.6"),
        ("reg:5000/kube-proxy", ""),
        ("reg:5000/kube-proxy:v1.35.6_build@sha256:ab", "v1.35.6+build"),
        ("", ""),
    ],
)
def test_tag_of(image: str, tag: str) -> None:
    assert survey.tag_of(image) == tag
