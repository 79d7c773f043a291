"""kubeup/cluster/signing_request.py: how far the kubelet's request has got."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kubeup.cluster import api, signing_request
from kubeup.machine.http import Tls
from tests.fake_host import FakeHost
from tests.unit.cluster.discovery_case import SERVER

# ---- certificate signing requests


def kubelet_request(name: str, *conditions: str, node: str = "w1", created: str = "2026-01-01T00:00:00Z", cert: str = "") -> dict[str, Any]:  # fmt: skip
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
        ([kubelet_request("a", node="w2")], "not-sent", "csr-not-sent"),
        ([kubelet_request("a")], "pending", "csr-pending"),
        ([kubelet_request("a", "Approved")], "approved", "csr-not-signed"),
        ([kubelet_request("a", "Approved", "Failed")], "failed", "csr-failed"),
        ([kubelet_request("a", "Denied")], "denied", "csr-denied"),
        ([kubelet_request("a", "Approved", cert="eA==")], "signed", "kubelet-conf-missing"),
        (
            [kubelet_request("a", "Denied"), kubelet_request("b", created="2026-01-02T00:00:00Z")],
            "pending",
            "csr-pending",
        ),
    ],
)
def test_the_states_of_a_request(requests: list[dict[str, Any]], state: str, code: str) -> None:
    found = signing_request.read_signing_request(RequestsApi(*requests), "w1")
    assert found.state == state
    error = signing_request.explain_signing_request(FakeHost(), found, node_name="w1", waited_s=12)
    assert error.code == code
    if state in ("denied", "failed"):
        assert error.cause.endswith("by hand")
    if state != "not-sent":
        assert found.name in error.what + error.cause
