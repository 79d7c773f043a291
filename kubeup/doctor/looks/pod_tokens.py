"""The check of the tokens with which this node's pods speak to the API: a key of service accounts that was replaced shows in nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from kubeup.cluster import api as kubeapi
from kubeup.cluster import control_flags
from kubeup.diagnosis import signs
from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import ERROR, Finding, Findings
from kubeup.doctor.node_files import Patient, list_servers, open_api
from kubeup.errors import KbError
from kubeup.machine.http import Unreachable
from kubeup.secret import Secret

_PODS = Path("/var/lib/kubelet/pods")
_VOLUMES = "volumes/kubernetes.io~projected"
"""Source: pkg/volume/projected, pkg/volume/util/atomic_writer.go: each volume has its files behind the link ..data"""
_MOST_PODS, _TRIED = 50, 3


def look_at_pod_tokens(patient: Patient) -> Findings:
    """Whether the API server knows the tokens that the kubelet keeps for pods. The kubelet renews them in time; one that is refused is of
    another key, or of a cluster that was restored."""
    if not patient.is_member or not patient.host.exists(patient.paths.kubeconfig("kubelet.conf")):
        return
    identity = kubeapi.read_identity(patient.host, patient.paths.kubeconfig("kubelet.conf"))
    servers = list_servers(patient) or (identity.server,)
    tokens = list(_find_tokens(patient))
    refused = {server: _find_refused(patient, identity, server=server, tokens=tokens) for server in servers}
    names = ", ".join(dict.fromkeys(pod for pods in refused.values() for pod in pods))
    pki = patient.paths.pki
    strict = [server.partition("://")[2] for server, pods in refused.items() if pods]
    issuers = _read_issuers(patient) if strict else {}
    if len(set(issuers.values())) > 1:
        told = ", ".join(f"{issuer} on {node}" for node, issuer in issuers.items())
        text = f"API server {', '.join(strict)} refuses the service account tokens of pods ({names}): API servers have different issuers ({told})"
        remedy = f"give all the same --service-account-issuer, in {patient.paths.manifest('kube-apiserver')}; a former one may be named after it, by a second flag"
        yield Finding("pod-tokens", ERROR, text, remedy)
    elif strict and len(strict) < len(servers):
        text = (
            f"API server {', '.join(strict)} refuses the service account tokens of pods ({names}), which the others take: its key of service "
            f"accounts ({pki}/sa.key, sa.pub), or its --service-account-issuer, is not the cluster's"
        )
        remedy = f"put there what the other control planes have in {pki}/sa.key and sa.pub, then: {signs.say_restart(patient.host, 'kube-apiserver')}"
        yield Finding("pod-tokens", ERROR, text, remedy)
    elif strict:
        text = f"the API server refuses the service account tokens of this node's pods ({names}): it does not know the key that signed them ({pki}/sa.pub is another one)"
        remedy = (
            f"put the key back that signed them ({pki}/sa.key and sa.pub, the same on every control plane); if it is lost, "
            "have every pod get a new token: kubectl -n kube-system rollout restart daemonset,deployment, and in other namespaces"
        )
        yield Finding("pod-tokens", ERROR, text, remedy)


def _read_issuers(patient: Patient) -> dict[str, str]:
    """Node -> its API server's issuer; {} for an identity that may not read it."""
    with contextlib.suppress(KbError):
        return (
            control_flags.read_issuers(control_flags.read_planes(open_api(patient))) if patient.is_control_plane else {}
        )
    return {}


def _find_refused(
    patient: Patient, identity: kubeapi.Identity, *, server: str, tokens: Sequence[tuple[str, Path]]
) -> list[str]:
    """The pods whose tokens this API server refuses; none if it takes one of them, or does not answer."""
    refused = []
    for pod, path in tokens:
        token = Secret(facts.read_or_empty(patient.host, str(path)).strip())
        own = kubeapi.Identity(server, dataclasses.replace(identity.tls, cert_pem=None, key_pem=None), token)
        try:
            answer = kubeapi.Api(patient.host, own, retry_s=0).probe_health("/version", timeout_s=5)
        except Unreachable:
            return []  # another check reports why
        if answer.status != 401:
            return []
        refused.append(pod)
    return refused


def _find_tokens(patient: Patient) -> Iterator[tuple[str, Path]]:
    """(names of its containers, the token's file) of some pods."""
    host, found = patient.host, 0
    for pod in sorted(host.list_dir(_PODS))[:_MOST_PODS]:
        for volume in host.list_dir(_PODS / pod / _VOLUMES):
            path = _PODS / pod / _VOLUMES / volume / "token"
            if found < _TRIED and volume.startswith("kube-api-access") and host.exists(path):
                found += 1
                yield "+".join(sorted(host.list_dir(_PODS / pod / "containers"))) or pod, path
