"""A cluster of control planes and workers, seen from cp1 (10.0.0.11), that nodes leave: Nodes, pods, leases, members of etcd, volumes.

wN has the address 10.0.0.(20+N). A kubelet that lives answers on its port, renews its lease, and lets go of the pods that are evicted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from kubeup.machine.http import HttpResponse
from tests.fake_cluster import FakeCluster, Object
from tests.fake_control_plane import SERVER, Gone, make_control_plane
from tests.fake_drain import refuse
from tests.fake_etcd import EtcdPlane, Member

NODES, PODS, LEASES = "/api/v1/nodes", "/api/v1/namespaces/{}/pods", "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
VOLUMES = "/apis/storage.k8s.io/v1/volumeattachments"
ENDPOINT = "kb-api.cluster.local:7443"


def address_of(name: str) -> str:
    return f"10.0.0.{int(name[2:]) + 10 if name.startswith('cp') else int(name[1:]) + 20}"


@dataclass
class Departure(EtcdPlane):
    """dead: nodes whose machine is off. guarded: pods that a disruption budget keeps. dies_at: before which change kb is killed."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    dead: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)
    others_listed: list[str] = field(default_factory=list)
    detaches: bool = True
    kills_at: int = 0
    sent: list[str] = field(default_factory=list)
    """Every change that reached the cluster or etcd, in order."""

    # ---- what the test sets up

    def add_node(self, name: str, *pods: str, owner: str = "ReplicaSet") -> None:
        labels = {"node-role.kubernetes.io/control-plane": ""} if name.startswith("cp") else {}
        self.cluster.objects[f"{NODES}/{name}"] = {
            "kind": "Node",
            "metadata": {"name": name, "labels": labels, "resourceVersion": "1"},
            "spec": {},
            "status": {
                "addresses": [{"type": "InternalIP", "address": address_of(name)}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
        self.cluster.objects[f"{LEASES.format('kube-node-lease')}/{name}"] = {
            "kind": "Lease", "metadata": {"name": name}, "spec": {"renewTime": "0"},
        }  # fmt: skip
        self.cluster.objects[f"/apis/storage.k8s.io/v1/csinodes/{name}"] = {
            "kind": "CSINode",
            "metadata": {"name": name},
        }
        self.served[f"{address_of(name)}:10250"] = "a certificate"
        for pod in pods:
            self.add_pod(name, pod, owner=owner)

    def add_pod(self, node: str, pod: str, *, owner: str = "ReplicaSet") -> None:
        meta: dict[str, Any] = {"name": pod, "namespace": "app", "uid": f"uid-{pod}"}
        if owner:
            meta["ownerReferences"] = [{"kind": owner, "name": "x", "controller": True}]
        self.cluster.objects[f"{PODS.format('app')}/{pod}"] = {
            "kind": "Pod", "metadata": meta, "spec": {"nodeName": node}, "status": {"phase": "Running"},
        }  # fmt: skip

    def add_volume(self, node: str, name: str) -> None:
        spec = {"nodeName": node, "source": {"persistentVolumeName": name}}
        self.cluster.objects[f"{VOLUMES}/{name}"] = {
            "kind": "VolumeAttachment",
            "metadata": {"name": name},
            "spec": spec,
        }

    def add_config(self, endpoint: str, *, called: Optional[str] = None) -> None:
        """What the cluster stores of its endpoint. called: the server in cluster-info and kube-proxy, if that is another."""
        text = f"kind: ClusterConfiguration\ncontrolPlaneEndpoint: {endpoint}\n"
        conf = f"kind: Config\nclusters: [{{name: c, cluster: {{server: 'https://{called or endpoint}'}}}}]\n"
        self.cluster.objects.update(
            [
                _config_map("kube-system", "kubeadm-config", {"ClusterConfiguration": text}),
                _config_map("kube-public", "cluster-info", {"kubeconfig": conf}),
                _config_map("kube-system", "kube-proxy", {"kubeconfig.conf": conf}),
            ]
        )

    def cut_power(self, name: str, *, is_noticed: bool = True) -> None:
        self.dead.add(name)
        self.served.pop(f"{address_of(name)}:10250")
        for one in self.of_etcd.values():
            one.is_up = one.is_up and one.name != name
        if is_noticed:
            self.notice(name)

    def notice(self, name: str) -> None:
        """The cluster has lost the kubelet, and the API servers have taken the dead one off their list."""
        self.cluster.objects[f"{NODES}/{name}"]["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
        self.others.pop(f"{address_of(name)}:6443", None)

    # ---- what is looked at

    def list_names(self, kind: str) -> list[str]:
        return sorted(self.cluster.by_kind(kind))

    def member_names(self) -> list[str]:
        return [one.name for one in self.of_etcd.values()]

    # ---- the network

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        for path, one in self.cluster.objects.items():
            if path.startswith(LEASES.format("kube-node-lease")) and one["metadata"]["name"] not in self.dead:
                one["spec"]["renewTime"] = str(self.ticks)
        for name in [name for name in self.others if self._has_lost_etcd(name)]:
            del self.others[name]

    def _has_lost_etcd(self, server: str) -> bool:
        return int(server.partition(":")[0].rpartition(".")[2]) - 10 not in self.of_etcd

    def _api(self, url: str, path: str) -> HttpResponse:
        if "/leases/kb-static-pods" in path or "endpointslices" in path or path in ("livez", "readyz"):
            return super()._api(url, path)
        if path.startswith("api/v1/pods?fieldSelector=spec.nodeName%3D"):
            node = path.rpartition("%3D")[2]
            pods = [pod for pod in self.cluster.by_kind("Pod").values() if pod["spec"]["nodeName"] == node]
            return _json({"kind": "List", "items": pods})
        if "/leases?labelSelector=" in path:
            node = path.rpartition("%3D")[2]
            leases = list(self.cluster.by_kind("Lease").values())
            found = [one for one in leases if one["metadata"].get("labels", {}).get("kubernetes.io/hostname") == node]
            return _json({"kind": "List", "items": found})
        if path == VOLUMES[1:]:
            return _json({"kind": "List", "items": list(self.cluster.by_kind("VolumeAttachment").values())})
        return self.cluster.answer("GET", url, b"", {})

    def http_ask(self, url: str, body: bytes, **more: Any) -> HttpResponse:
        if "/eviction?" in url:
            return self._evict(url, is_trial=True)
        return super().http_ask(url, body, **more)

    def http_send(self, method: str, url: str, *, body: bytes = b"", headers: Any = None, **more: Any) -> HttpResponse:
        change = f"{method} {url.partition('://')[2].partition('/')[2].partition('?')[0]}"
        if self.kills_at and len(self.sent) + 1 >= self.kills_at:
            self.is_dead = True
            raise Gone(change)
        self.sent.append(change)
        if url.endswith("/eviction"):
            return self._evict(url, is_trial=False)
        if "/leases" in url and "kb-static-pods" in url + body.decode():
            return super().http_send(method, url, body=body, **more)
        if url.startswith(f"https://{SERVER}/"):
            return self._change(method, url, body, headers or {})
        if url.endswith("member/remove"):
            return self._remove_member(url, json.loads(body))
        return super().http_send(method, url, body=body, **more)

    def _change(self, method: str, url: str, body: bytes, headers: Any) -> HttpResponse:
        found = self.cluster.answer(method, url, body, headers)
        if self.detaches and "/nodes/" in url and "out-of-service" in body.decode():
            gone = [path for path, one in self.cluster.objects.items() if path.startswith(VOLUMES)]
            for path in gone:
                del self.cluster.objects[path]
        return found

    def _evict(self, url: str, *, is_trial: bool) -> HttpResponse:
        name = url.partition("?")[0].split("/")[-2]
        if name in self.guarded:
            return refuse()
        if not is_trial:
            self.cluster.objects.pop(f"{PODS.format('app')}/{name}", None)
        return HttpResponse(201, b'{"kind": "Status", "status": "Success"}')

    def _remove_member(self, url: str, body: Any) -> HttpResponse:
        index, _ = self._at(url)
        assert self.of_etcd[index].is_up
        gone = int(body["ID"])
        assert gone != index, "a member cannot confirm its own removal"
        assert gone != self.leads or not self.of_etcd[gone].is_up, "the leader was removed"
        rest = [one.is_up for number, one in self.of_etcd.items() if number != gone]
        assert 2 * sum(rest) > len(rest), "the quorum is lost"
        del self.of_etcd[gone]
        return _json({})


def make_departure(control_planes: int = 3, workers: Sequence[str] = ("w1",)) -> Departure:
    host = Departure()
    host.__dict__.update(make_control_plane().__dict__)
    names = [f"cp{number}" for number in range(1, control_planes + 1)]
    host.of_etcd = {number: Member(name) for number, name in enumerate(names, start=1)}
    host.others = {f"{address_of(name)}:6443": True for name in names[1:]}
    for name in (*names, *workers):
        host.add_node(name)
    host.add_config(ENDPOINT)
    return host


def _config_map(namespace: str, name: str, data: Any) -> tuple[str, Object]:
    path = f"/api/v1/namespaces/{namespace}/configmaps/{name}"
    return path, {"kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}


def _json(value: object) -> HttpResponse:
    return HttpResponse(200, json.dumps(value).encode(), {"content-type": "application/json"})
