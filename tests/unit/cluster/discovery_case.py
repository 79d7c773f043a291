"""A cluster that is discovered: its API server's answers, one by one."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from kubeup.cluster import find_cluster, membership, tokens
from kubeup.cluster.objects import render_cluster_info
from kubeup.config.types import BootstrapTokenDiscovery, Discovery, Timeouts
from kubeup.machine.http import AnyTls, HttpResponse, Tls, Unreachable
from kubeup.node import ca_pins, certificates, private_keys
from kubeup.secret import Secret
from tests.fake_host import FakeHost

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
TOKEN = Secret("abcdef.0123456789abcdef")
ENDPOINT, SERVER = "10.0.0.11:6443", "https://cp.example:6443"
DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
TIMEOUTS = Timeouts(discovery_s=60, kubernetes_api_call_s=1)


def make_ca(name: str = "kubernetes") -> str:
    validity = certificates.plan_validity(NOW, 3600)
    return certificates.cert_to_pem(
        certificates.issue_ca_cert(name, private_keys.generate_key("ECDSA-P256"), validity=validity)
    )


CA = make_ca()
(PIN,) = ca_pins.ca_cert_hashes(CA)


@dataclass
class ClusterHost(FakeHost):
    """A machine with one API server in reach, at ENDPOINT and at SERVER."""

    data: dict[str, str] = field(default_factory=dict)
    """Of cluster-info."""
    proven_data: Optional[dict[str, str]] = None
    """The same over a connection with the CA, where it differs."""
    objects: dict[str, Any] = field(default_factory=dict)
    good_tokens: set[str] = field(default_factory=lambda: {TOKEN.reveal()})
    date: str = DATE
    trouble: Mapping[str, Union[Unreachable, HttpResponse]] = field(default_factory=dict)
    """By "unproven" (cluster-info without a CA), "proven" (with it), "server" (other paths)."""
    sent_tokens: list[bool] = field(default_factory=list)
    """For each request with a token: whether the connection was proven."""

    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = 4 << 20,
    ) -> HttpResponse:
        is_proven, token = isinstance(tls, Tls), (headers or {}).get("Authorization", "").partition(" ")[2]
        if token:
            self.sent_tokens.append(isinstance(tls, Tls) and tls.ca is not None)
        is_info = url.endswith("/cluster-info")
        kind = ("proven" if is_proven else "unproven") if is_info else "server"
        found = self.trouble.get(kind)
        if isinstance(found, Unreachable):
            raise found
        if found:
            return found
        if token and token not in self.good_tokens:
            return self.status(401, "Unauthorized")
        if is_info:
            held = self.proven_data if self.proven_data is not None and is_proven else self.data
            return self.answer({"kind": "ConfigMap", "data": held})
        path = url.partition("://")[2].partition("/")[2]
        if path == "version":
            return self.answer({"major": "1"})
        if path in self.objects:
            return self.answer(self.objects[path])
        return self.status(404, "NotFound")

    def answer(self, body: Any, status: int = 200) -> HttpResponse:
        return HttpResponse(status, json.dumps(body).encode(), {"date": self.date})

    def status(self, code: int, reason: str) -> HttpResponse:
        return self.answer({"kind": "Status", "reason": reason, "message": reason}, code)


def cluster_host(*signers: Secret, ca: str = CA, **fields: Any) -> ClusterHost:
    text = render_cluster_info(SERVER, ca)["data"]["kubeconfig"]
    data = {"kubeconfig": text, **{tokens.jws_key(t.reveal()[:6]): tokens.compute_jws(text, t) for t in signers}}
    return ClusterHost(data=data, **fields)


def wanted(pins: tuple[str, ...] = (PIN,), token: Secret = TOKEN, tls: str = "") -> Discovery:
    return Discovery(BootstrapTokenDiscovery(token, ENDPOINT, pins, not pins), tls_bootstrap_token=Secret(tls))


def discover(host: FakeHost, what: Optional[Discovery] = None, notes: Optional[list[str]] = None) -> membership.Access:
    told = [] if notes is None else notes
    return find_cluster.discover_cluster(
        host, what or wanted(), timeouts=TIMEOUTS, tell=lambda text: None, note=told.append
    )


def unreachable(reason: str, text: str) -> Unreachable:
    return Unreachable(f"https://{ENDPOINT}{find_cluster.CLUSTER_INFO}", reason, text=text)


# ---- what the cluster stores


def documents_host(**fields: Any) -> ClusterHost:
    prefix = "api/v1/namespaces/kube-system/configmaps/"
    maps = {
        "kubeadm-config": {"ClusterConfiguration": "kind: ClusterConfiguration"},
        "kubelet-config": {"kubelet": "kind: KubeletConfiguration"},
        "kb-config": {"podNetwork": "plugin: bridge\nbackend: route\n"},
    }
    objects = {prefix + name: {"kind": "ConfigMap", "data": data} for name, data in maps.items()}
    return cluster_host(TOKEN, objects=objects, **fields)
