"""The check of the node as its cluster sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Optional

from kubeup.cluster import api as kubeapi
from kubeup.cluster import signing_request
from kubeup.diagnosis import signs
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.doctor.node_files import Patient, read_called_name, read_cert_node_name, read_kubelet_flags
from kubeup.errors import KbError
from kubeup.machine import services
from kubeup.machine.host import Host


def look_at_node(patient: Patient) -> Findings:
    """The node as its cluster sees it, queried with the kubelet's own identity: a healthy kubelet does not mean a Ready
    node."""
    host, paths = patient.host, patient.paths
    name = read_cert_node_name(host, paths)
    if not patient.is_member or not name:
        return
    called = read_called_name(host, read_kubelet_flags(host, paths))
    if called != name:
        yield Finding(
            "node",
            ERROR,
            f"this machine is called {called} now, and its node is {name}: the kubelet cannot register, since its certificate "
            f"is system:node:{name}'s",
            f"hostnamectl set-hostname {name} (or add --hostname-override={name} to KUBELET_KUBEADM_ARGS in "
            f"{paths.kubelet_flags_env}), then: {signs.say_restart(host, 'kubelet')}",
        )
    try:
        api = kubeapi.Api(host, kubeapi.read_identity(host, paths.kubernetes / "kubelet.conf"), retry_s=0)
        node = api.get(kubeapi.path_of("Node", name))
        requests = api.list(
            kubeapi.path_of("CertificateSigningRequest"), field=f"spec.signerName={signing_request.SERVING_SIGNER}"
        )
    except KbError as error:
        yield Finding("node", ERROR, f"the cluster does not say how node {name} is: {error}", error.remedy)
        return
    yield from _judge_node(host, name, node=node)
    yield from _judge_serving_requests(name, requests)


def _judge_node(host: Host, name: str, *, node: Optional[Mapping[str, Any]]) -> Findings:
    if node is None:
        text = f"the cluster has no node {name}: it was deleted, and a kubelet registers only when it starts"
        remedy = f"{signs.say_restart(host, 'kubelet')}; if it was removed for good: kb reset --force"
        yield Finding("node", ERROR, text, remedy)
        return
    conditions = {str(item.get("type")): item for item in (node.get("status") or {}).get("conditions") or ()}
    ready = conditions.get("Ready") or {}
    if ready.get("status") != "True":
        why = ready.get("message") or ready.get("reason") or "it has reported nothing yet"
        yield Finding("node", ERROR, f"node {name} is NotReady: {why}", services.say_log(host, "kubelet"))


def _judge_serving_requests(name: str, requests: Iterable[Mapping[str, Any]]) -> Findings:
    found = signing_request.explain_serving_request(name, requests)
    if found:
        yield Finding("node", WARNING, *found)
