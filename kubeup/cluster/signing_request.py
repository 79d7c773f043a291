"""TLS bootstrap: the state of the kubelet's certificate signing requests, what holds them up, and a request as the kubelet itself makes it.

The controller manager signs. Mirrors what cmd/kubeadm/app/cmd/phases/join/kubelet.go waits for.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from kubeup.cluster import api as kubeapi
from kubeup.cluster.api import path_of
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host

with lazily:
    from kubeup.node import certificates


@frozen
class SigningRequest:
    """The newest request for this node's client certificate. state: not-sent | pending | denied | failed | approved
    (but not signed) | signed."""

    state: str
    name: str = ""
    message: str = ""


def read_signing_request(api: kubeapi.Api, node_name: str, *, since: str = "") -> SigningRequest:
    """The state of this node's request. Requests from before `since` (RFC 3339) belong to another machine."""
    found = [
        request
        for request in api.list(path_of("CertificateSigningRequest"), field=f"spec.signerName={CLIENT_SIGNER}")
        if _is_request_of(request, node_name) and str(request["metadata"].get("creationTimestamp", "")) >= since
    ]
    if not found:
        return SigningRequest("not-sent")
    newest = max(found, key=lambda request: str(request["metadata"].get("creationTimestamp", "")))
    return judge_signing_request(newest)


CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client-kubelet"
_USAGES = ("digital signature", "client auth")
"""Those of a client certificate whose key is none of RSA, without which nothing approves it: kubeletClientUsagesNoRSA of
pkg/controller/certificates/approver/sarapprove.go."""


def send_request(api: kubeapi.Api, pem: str, *, name: str) -> None:
    """Ask for a client certificate, as the kubelet of this node. Raises ApiRefused, Unreachable."""
    spec = {
        "request": base64.b64encode(pem.encode()).decode(),
        "signerName": CLIENT_SIGNER,
        "usages": list(_USAGES),
    }
    meta = {"name": name}
    kind = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest"}
    api.create({**kind, "metadata": meta, "spec": spec})


def read_signed(api: kubeapi.Api, name: str) -> tuple[SigningRequest, str]:
    """The state of a request, and the certificate (PEM) once it is signed. Raises ApiRefused, Unreachable."""
    found = api.get(path_of("CertificateSigningRequest", name))
    if found is None:
        return SigningRequest("not-sent", name), ""
    signed = str((found.get("status") or {}).get("certificate") or "")
    return judge_signing_request(found), base64.b64decode(signed).decode() if signed else ""


SERVING_SIGNER = "kubernetes.io/kubelet-serving"


def explain_serving_request(name: str, requests: Iterable[Mapping[str, Any]]) -> Optional[tuple[str, str]]:
    """(what, remedy) if the kubelet of a node waits for the approval of its serving certificate, else None. With serverTLSBootstrap,
    nothing approves it automatically, and without the certificate, logs, exec and metrics fail with "tls: internal error"."""
    own = [item for item in requests if (item.get("spec") or {}).get("username") == f"system:node:{name}"]
    pending = [item for item in own if judge_signing_request(item).state == "pending"]
    if not pending or len(pending) != len(own):
        return None
    request = str(pending[-1]["metadata"]["name"])
    return (
        f"the kubelet of {name} has no serving certificate: its request {request} is Pending (serverTLSBootstrap; kubectl logs and "
        'exec end with "tls: internal error")',
        f"compare its names with this node's, then, on a control plane: kubectl certificate approve {request}",
    )


def judge_signing_request(request: Mapping[str, Any]) -> SigningRequest:
    name, status = str(request["metadata"]["name"]), request.get("status") or {}
    conditions = {str(entry.get("type")): str(entry.get("message", "")) for entry in status.get("conditions") or ()}
    for kind, state in (("Denied", "denied"), ("Failed", "failed")):
        if kind in conditions:
            return SigningRequest(state, name, conditions[kind])
    if status.get("certificate"):
        return SigningRequest("signed", name)
    return SigningRequest("approved" if "Approved" in conditions else "pending", name)


def _is_request_of(request: Mapping[str, Any], node_name: str) -> bool:
    try:
        pem = base64.b64decode(str(request["spec"]["request"]), validate=True).decode()
        return certificates.common_name_of_request(pem) == f"system:node:{node_name}"
    except (KeyError, TypeError, binascii.Error, ValueError):
        return False


def explain_signing_request(host: Host, request: SigningRequest, *, node_name: str, waited_s: float) -> ClusterError:
    """The error for a bootstrap that failed, or timed out, in this state."""
    name, waited = request.name, f"after {waited_s:.0f} s"
    return {
        "not-sent": ClusterError(
            f"the kubelet has not asked for its certificate {waited}",
            cause=f"the cluster has no certificate signing request of system:node:{node_name}",
            remedy=f"see what the kubelet says: {services.say_log(host, 'kubelet')}",
            code="csr-not-sent",
        ),
        "pending": ClusterError(
            f"the certificate signing request {name} is pending {waited}",
            cause="nobody approves it: the controller-manager is down, or ClusterRoleBinding "
            "kubeadm:node-autoapprove-bootstrap is missing",
            remedy=f"on a control plane: kubectl certificate approve {name}; then run the command again",
            code="csr-pending",
        ),
        "denied": ClusterError(
            f"the certificate signing request {name} was denied",
            cause=request.message or "whoever denied it gave no reason",
            remedy=f"on a control plane: kubectl delete csr {name}; then run the command again",
            code="csr-denied",
        ),
        "failed": ClusterError(
            f"the certificate signing request {name} failed",
            cause=request.message or "the signer gave no reason",
            remedy=f"on a control plane: kubectl describe csr {name}",
            code="csr-failed",
        ),
        "approved": ClusterError(
            f"the certificate signing request {name} is approved but not signed {waited}",
            cause="the signer is off: the controller-manager is down, lacks --cluster-signing-cert-file and -key-file, or "
            "runs without the controller csrsigning",
            remedy="on a control plane: kubectl -n kube-system logs -l component=kube-controller-manager --tail 50",
            code="csr-not-signed",
        ),
        "signed": ClusterError(
            f"the kubelet has no kubelet.conf {waited}",
            cause=f"the certificate signing request {name} is signed, but the kubelet has not taken the certificate",
            remedy=f"see what the kubelet says: {services.say_log(host, 'kubelet')}",
            code="kubelet-conf-missing",
        ),
    }[request.state]


def explain_lacking_right(refusal: kubeapi.ApiRefused, waited_s: float) -> ClusterError:
    """The error if the bootstrap identity may not even read requests. The same role grants the right to create and to read them, so
    the kubelet was refused too."""
    return ClusterError(
        f"the kubelet has not asked for its certificate after {waited_s:.0f} s",
        cause=f"the join token has no right to ask for one ({refusal.cause}): ClusterRoleBinding kubeadm:kubelet-bootstrap "
        "is missing, or does not name the token's group",
        remedy="on a control plane: kb init phase bootstrap-token; then run the command again",
        code="csr-not-sent",
    )
