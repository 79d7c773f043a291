"""kubeup/cluster/discovery.py: trust in both directions, and every error by its cause."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional, Union

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kubeup.cluster import api, discovery, tokens
from kubeup.cluster.objects import render_cluster_info
from kubeup.config.types import BootstrapTokenDiscovery, Discovery, Timeouts
from kubeup.errors import KbError
from kubeup.machine.http import AnyTls, HttpResponse, Tls, Unreachable
from kubeup.node import certificates, private_keys
from kubeup.node.kubeconfig import render_kubeconfig
from kubeup.secret import Secret
from kubeup.trust import Anchors
from tests.fake_host import FakeHost

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
TOKEN = Secret("abcdef.0123456789abcdef")
ENDPOINT, SERVER = "10.0.0.11:6443", "https://cp.example:6443"
DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
TIMEOUTS = Timeouts(discovery_s=60, kubernetes_api_call_s=1)


def make_ca(name: str = "kubernetes") -> str:
    validity = certificates.plan_validity(NOW, 3600)
    return certificates.cert_to_pem(certificates.issue_ca_cert(name, private_keys.generate_key("ECDSA-P256"), validity))


CA = make_ca()
(PIN,) = certificates.ca_cert_hashes(CA)


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


def discover(host: FakeHost, what: Optional[Discovery] = None, notes: Optional[list[str]] = None) -> discovery.Access:
    told = [] if notes is None else notes
    return discovery.discover_cluster(host, what or wanted(), TIMEOUTS, tell=lambda text: None, note=told.append)


def fails(host: FakeHost, what: Optional[Discovery] = None) -> KbError:
    with pytest.raises(KbError) as caught:
        discover(host, what)
    assert TOKEN.reveal() not in str(caught.value.as_dict())
    return caught.value


def unreachable(reason: str, text: str) -> Unreachable:
    return Unreachable(f"https://{ENDPOINT}{discovery.CLUSTER_INFO}", reason, text)


# ---- by token


def test_the_server_and_the_ca_are_the_cluster_s_word() -> None:
    host = cluster_host(TOKEN)
    access = discover(host)
    assert (access.server, access.ca_pem.strip(), access.token) == (SERVER, CA.strip(), TOKEN)
    assert host.sent_tokens == [] and access.has_signed
    text = access.render_bootstrap_kubeconfig("prod").reveal()
    assert "current-context: tls-bootstrap-token-user@kubernetes" in text
    assert f"token: {TOKEN.reveal()}" in text and "name: prod" in text


def test_a_token_of_its_own_for_the_bootstrap() -> None:
    access = discover(cluster_host(TOKEN), wanted(tls="bbbbbb.0123456789abcdef"))
    assert access.token == Secret("bbbbbb.0123456789abcdef")


def test_any_pin_of_any_certificate_will_do_in_any_case() -> None:
    both = make_ca("old") + CA
    assert discover(cluster_host(TOKEN, ca=both), wanted(("sha256:" + "0" * 64, PIN.upper().replace("SHA", "sha"))))


def test_another_ca_is_told_with_both_pins() -> None:
    other = "sha256:" + "0" * 64
    error = fails(cluster_host(TOKEN), wanted((other,)))
    assert error.code == "ca-hash-mismatch" and PIN in error.cause and other in error.cause


def test_without_pins_the_signature_alone_counts_and_no_token_is_sent() -> None:
    host = cluster_host(Secret("bbbbbb.0123456789abcdef"))
    assert fails(host, wanted(())).code == "token-unknown"
    assert host.sent_tokens == []


def test_an_unknown_token_is_told_from_a_signer_that_is_down() -> None:
    unknown = cluster_host(good_tokens=set())
    assert fails(unknown).code == "token-unknown"
    unsigned = cluster_host()
    error = fails(unsigned)
    assert error.code == "cluster-info-unsigned" and "kube-controller-manager" in error.remedy
    assert unsigned.ticks >= TIMEOUTS.discovery_s - 2 * discovery.RETRY_S
    assert unknown.ticks < discovery.SETTLE_S
    assert set(unknown.sent_tokens + unsigned.sent_tokens) == {True}


def test_a_signature_that_comes_late_is_waited_for() -> None:
    host, notes = cluster_host(), []  # type: ClusterHost, list[str]
    signed = cluster_host(TOKEN).data
    rest = host.sleep

    def sleep(seconds: float) -> None:
        rest(seconds)
        if host.ticks > 10:
            host.data = signed

    host.sleep = sleep  # type: ignore[method-assign]
    assert discover(host, notes=notes).server == SERVER
    assert len(notes) == 1 and "kb goes on trying" in notes[0]


def test_a_wrong_secret() -> None:
    error = fails(cluster_host(Secret("abcdef.ffffffffffffffff")))
    assert error.code == "token-secret-wrong" and "abcdef" in error.what


def test_cluster_info_that_changes_between_two_looks_is_not_believed() -> None:
    assert fails(cluster_host(TOKEN, proven_data={"kubeconfig": "x"})).code == "cluster-info-changed"


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (unreachable("refused", "refused"), "endpoint-refused"),
        (unreachable("timeout", "timed out"), "endpoint-unreachable"),
        (unreachable("other", "No route to host"), "endpoint-unreachable"),
        (unreachable("dns", "Name or service not known"), "endpoint-unknown-name"),
        (unreachable("tls", "wrong version number"), "not-an-api-server"),
        (HttpResponse(404, b"404 page not found"), "not-an-api-server"),
        (HttpResponse(200, b"<html>"), "not-an-api-server"),
        (HttpResponse(503, b'{"kind": "Status", "message": "starting"}'), "api-server-not-ready"),
        (HttpResponse(404, b'{"kind": "Status"}'), "cluster-info-missing"),
        (HttpResponse(401, b'{"kind": "Status"}'), "cluster-info-forbidden"),
        (HttpResponse(200, b'{"kind": "ConfigMap"}'), "cluster-info-invalid"),
    ],
)
def test_an_endpoint_that_is_none(trouble: Union[Unreachable, HttpResponse], code: str) -> None:
    assert fails(cluster_host(TOKEN, trouble={"unproven": trouble})).code == code


@pytest.mark.parametrize(
    ("text", "date", "code", "hint"),
    [
        ("certificate is not yet valid", "Thu, 01 Jan 2026 03:05:00 GMT", "clock-skew", "3 h 5 min behind"),
        ("certificate has expired", "Wed, 31 Dec 2025 23:50:00 GMT", "clock-skew", "10 min ahead of"),
        ("certificate has expired", DATE, "server-not-trusted", "cannot prove"),
        (
            "IP address mismatch, certificate is not valid for '10.0.0.11'",
            DATE,
            "endpoint-not-in-certificate",
            ENDPOINT,
        ),
        ("unable to get local issuer certificate", DATE, "server-not-trusted", ENDPOINT),
    ],
)
def test_a_connection_that_does_not_prove_the_cluster(text: str, date: str, code: str, hint: str) -> None:
    error = fails(cluster_host(TOKEN, date=date, trouble={"proven": unreachable("tls", text)}))
    assert error.code == code and hint in error.what


def test_the_clock_is_measured() -> None:
    assert discover(cluster_host(TOKEN, date="Thu, 01 Jan 2026 03:05:00 GMT")).skew_s == 3 * 3600 + 300
    assert discover(cluster_host(TOKEN, date="")).skew_s == 0
    assert discovery.describe_skew(59.0) == "59 s behind the API server's"
    assert "date -u -s '2026-01-01 03:05:00'" in discovery.skew_remedy(11100, NOW)


# ---- by file


def file_host(token: str = "", *, ca: str = CA, server: str = SERVER, **fields: Any) -> ClusterHost:
    text = render_kubeconfig(server=server, ca_pem=ca, user="jane", token=Secret(token or "none"))
    if not token:
        text = text.replace("token: none", "extensions: []")
    host = cluster_host(TOKEN, **fields)
    host.files["/root/found.conf"] = text.encode()
    return host


def test_a_file_brings_its_own_credentials_or_a_token_beside_it() -> None:
    host = file_host("bearer", good_tokens={"bearer"})
    access = discover(host, Discovery(file="/root/found.conf"))
    assert (access.server, access.token, access.user) == (SERVER, Secret("bearer"), "jane")
    access = discover(file_host(), Discovery(file="/root/found.conf", tls_bootstrap_token=TOKEN))
    assert (access.token, access.user) == (TOKEN, discovery.TOKEN_USER)


def test_a_file_without_credentials_is_refused() -> None:
    assert fails(file_host(), Discovery(file="/root/found.conf")).code == "discovery-no-credentials"


def test_a_file_whose_server_is_another_is_said_and_taken() -> None:
    host = file_host(server="https://10.0.0.11:6443")
    access = discover(host, Discovery(file="/root/found.conf", tls_bootstrap_token=TOKEN))
    assert access.server == "https://10.0.0.11:6443" and SERVER in access.notes[0]


def test_who_may_not_see_cluster_info_needs_it_not() -> None:
    host = file_host("bearer", good_tokens=set())
    assert discover(host, Discovery(file="/root/found.conf")).ca_pem.strip() == CA.strip()


def test_a_missing_file_is_named() -> None:
    assert "/root/none.conf" in fails(cluster_host(), Discovery(file="/root/none.conf")).what


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


def read(host: ClusterHost, has_signed: bool = True) -> discovery.ClusterDocuments:
    return discovery.read_documents(
        host, discovery.Access(SERVER, Anchors.given(CA), TOKEN, has_signed=has_signed), TIMEOUTS
    )


def read_fails(host: ClusterHost, has_signed: bool = True) -> KbError:
    with pytest.raises(KbError) as caught:
        read(host, has_signed)
    return caught.value


def test_the_documents_of_the_cluster() -> None:
    found = read(documents_host())
    assert found.cluster_text == "kind: ClusterConfiguration"
    assert found.kubelet_text == "kind: KubeletConfiguration"
    assert (found.pod_network.plugin, found.pod_network.backend) == ("bridge", "route")


def test_why_the_documents_cannot_be_had() -> None:
    expired = read_fails(documents_host(good_tokens=set()))
    assert expired.code == "token-expired" and "abcdef" in expired.what
    assert read_fails(documents_host(good_tokens=set()), has_signed=False).code == "token-unknown"
    assert read_fails(cluster_host(TOKEN)).code == "not-kubeadms-cluster"
    away = read_fails(documents_host(trouble={"server": unreachable("timeout", "timed out")}))
    assert away.code == "server-unreachable" and SERVER in away.what
    forbidden = HttpResponse(403, b'{"kind": "Status", "reason": "Forbidden", "message": "no"}')
    assert read_fails(documents_host(trouble={"server": forbidden})).code == "join-rights-missing"


# ---- a member


def member_host() -> FakeHost:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()
    text = render_kubeconfig(
        server=SERVER, ca_pem=CA, user="default-auth", client_cert_pem=CA, client_key_pem=Secret(pem)
    )
    return FakeHost(files={"/etc/kubernetes/kubelet.conf": text.encode()})


def test_a_member_is_known_by_its_kubelet_conf() -> None:
    path = Path("/etc/kubernetes/kubelet.conf")
    access = discovery.find_member_access(member_host(), path)
    assert access and access.is_member and access.server == SERVER
    assert discovery.find_member_access(FakeHost(), path) is None
    assert discovery.find_member_access(FakeHost(files={str(path): b"nonsense"}), path) is None
    discovery.check_same_cluster(access, wanted())
    with pytest.raises(KbError) as caught:
        discovery.check_same_cluster(access, wanted(("sha256:" + "0" * 64,)))
    assert caught.value.code == "already-joined" and PIN in caught.value.cause


# ---- certificate signing requests


def signing_request(name: str, *conditions: str, node: str = "w1", created: str = "2026-01-01T00:00:00Z", cert: str = "") -> dict[str, Any]:  # fmt: skip
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{node}"),
        ]
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    pem = request.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    )
    status: dict[str, Any] = {"conditions": [{"type": kind, "message": f"{kind} by hand"} for kind in conditions]}
    if cert:
        status["certificate"] = cert
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"request": base64.b64encode(pem).decode()},
        "status": status,
    }


class RequestsApi(api.Api):
    def __init__(self, *requests: dict[str, Any]) -> None:
        super().__init__(FakeHost(), api.Identity(SERVER, Tls()))
        self.requests = requests

    def list(self, path: str, *, label: str = "", field: str = "") -> list[dict[str, Any]]:
        assert path == "/apis/certificates.k8s.io/v1/certificatesigningrequests"
        return list(self.requests)


@pytest.mark.parametrize(
    ("requests", "state", "code"),
    [
        ([], "not-sent", "csr-not-sent"),
        ([signing_request("a", node="w2")], "not-sent", "csr-not-sent"),
        ([signing_request("a")], "pending", "csr-pending"),
        ([signing_request("a", "Approved")], "approved", "csr-not-signed"),
        ([signing_request("a", "Approved", "Failed")], "failed", "csr-failed"),
        ([signing_request("a", "Denied")], "denied", "csr-denied"),
        ([signing_request("a", "Approved", cert="eA==")], "signed", "kubelet-conf-missing"),
        (
            [signing_request("a", "Denied"), signing_request("b", created="2026-01-02T00:00:00Z")],
            "pending",
            "csr-pending",
        ),
    ],
)
def test_the_states_of_a_request(requests: list[dict[str, Any]], state: str, code: str) -> None:
    found = discovery.read_signing_request(RequestsApi(*requests), "w1")
    assert found.state == state
    error = discovery.explain_signing_request(FakeHost(), found, "w1", 12)
    assert error.code == code
    if state in ("denied", "failed"):
        assert error.cause.endswith("by hand")
    if state != "not-sent":
        assert found.name in error.what + error.cause


# ---- the name


def node_object(address: str, ready: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "w1", "creationTimestamp": "2025-12-29T00:00:00Z"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


def test_a_name_that_is_taken() -> None:
    with pytest.raises(KbError) as caught:
        discovery.check_node_name(node_object("10.0.0.9", "True"), ["10.0.0.12"], NOW)
    assert caught.value.code == "node-name-taken"
    assert "10.0.0.9" in caught.value.cause and "3 d old" in caught.value.cause


def test_names_that_may_be_taken_over() -> None:
    assert discovery.check_node_name(None, [], NOW) == ""
    assert "not Ready" in discovery.check_node_name(node_object("10.0.0.9", "Unknown"), ["10.0.0.12"], NOW)
    assert "from before" in discovery.check_node_name(node_object("10.0.0.12", "True"), ["10.0.0.12"], NOW)


@pytest.mark.parametrize(("created", "age"), [("2025-12-31T23:59:20Z", "40 s"), ("2025-12-31T19:00:00Z", "5 h"), ("", "?")])  # fmt: skip
def test_ages(created: str, age: str) -> None:
    assert discovery.describe_age(created, NOW) == age


# ---- a cluster whose name for its API servers leads nowhere yet


def balanced_host(**fields: Any) -> ClusterHost:
    """Only ENDPOINT is in reach; the nodes have load balancers of their own."""
    host = NearHost(**{name: getattr(documents_host(), name) for name in ("data", "objects")}, **fields)
    host.objects["api/v1/namespaces/kube-system/configmaps/kb-config"]["data"]["loadBalancer"] = (
        "mode: local\nimage: m/haproxy:1\nhealthPort: 10281\n"
    )
    host.objects["apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"] = {
        "endpoints": [{"addresses": ["10.0.0.12"]}],
        "ports": [{"name": "https", "port": 6443}],
    }
    return host


class NearHost(ClusterHost):
    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = 4 << 20,
    ) -> HttpResponse:
        if url.startswith(SERVER):
            raise Unreachable(url, "dns", "unknown name")
        return super().http_get(url, tls=tls, headers=headers, timeout_s=timeout_s)


def access_of(host: ClusterHost) -> discovery.Access:
    return discovery.Access(SERVER, Anchors.given(CA), TOKEN, has_signed=True, asked=f"https://{ENDPOINT}")


def test_kb_goes_on_with_the_server_that_answered_discovery() -> None:
    host = balanced_host()
    found = discovery.read_documents(host, access_of(host), TIMEOUTS)
    assert found.reached_server == f"https://{ENDPOINT}"
    assert found.load_balancer.is_local and found.load_balancer.image == "m/haproxy:1"
    assert found.api_servers == (ENDPOINT, "10.0.0.12:6443")
    assert all(host.sent_tokens)


def test_a_name_in_the_way_of_joining_is_no_backend() -> None:
    host = balanced_host()
    found = discovery.read_documents(host, replace(access_of(host), asked=f"https://{ENDPOINT}"), TIMEOUTS)
    assert all(not server[0].isalpha() for server in found.api_servers)
    assert not discovery._is_address("cp1.example:6443") and discovery._is_address("[fd00::1]:6443")


def test_without_such_load_balancers_the_cluster_s_own_address_must_do() -> None:
    host = balanced_host()
    del host.objects["api/v1/namespaces/kube-system/configmaps/kb-config"]["data"]["loadBalancer"]
    with pytest.raises(KbError) as caught:
        discovery.read_documents(host, access_of(host), TIMEOUTS)
    assert caught.value.code == "server-unreachable" and SERVER in caught.value.what


def test_an_expired_token_is_told_all_the_same() -> None:
    host = balanced_host(good_tokens=set())
    with pytest.raises(KbError) as caught:
        discovery.read_documents(host, access_of(host), TIMEOUTS)
    assert caught.value.code == "token-expired"


def test_a_member_whose_load_balancer_does_not_run_yet_is_heard_by_the_server_on_the_command_line() -> None:
    host = balanced_host()
    member = discovery.Access(SERVER, Anchors.given(CA), is_member=True)
    found = discovery.find_way_of_member(host, member, wanted())
    assert found.asked == f"https://{ENDPOINT}" and found.is_member
    assert discovery.find_way_of_member(cluster_host(), member, wanted()) == member
