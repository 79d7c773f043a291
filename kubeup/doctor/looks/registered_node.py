"""The check of the node as its cluster sees it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from kubeup.cluster import api as kubeapi
from kubeup.cluster import health, node_state, probes, signing_request, system_rights
from kubeup.config import choose
from kubeup.diagnosis import kubelet_trouble, signs
from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.diagnosis.log_lines import clean_log_line
from kubeup.doctor.looks import kubelet_files
from kubeup.doctor.node_files import (
    Patient,
    list_servers,
    open_api,
    read_cert_node_name,
    read_installed_kubelet,
    read_kubelet_flags,
)
from kubeup.errors import KbError
from kubeup.machine import services
from kubeup.machine.http import Unreachable
from kubeup.shapes import Shape, fit_what_does


def look_at_node(patient: Patient) -> Findings:
    """The node as its cluster sees it, queried with the kubelet's own identity: a healthy kubelet does not mean a Ready
    node."""
    name = read_cert_node_name(patient.host, patient.paths)
    if not patient.is_member or not name:
        return
    host, paths = patient.host, patient.paths
    refusing = list(_ask_servers(patient, name))
    yield from refusing
    try:
        api = open_api(patient, paths.kubernetes / "kubelet.conf")
        node = api.get(kubeapi.path_of("Node", name))
        requests = api.list(
            kubeapi.path_of("CertificateSigningRequest"), field=f"spec.signerName={signing_request.SERVING_SIGNER}"
        )
    except KbError as error:
        if not (refusing and isinstance(error, kubeapi.ApiRefused)):
            yield _describe_silence(patient, name, error=error)
        return
    if node is None:
        text = f"the cluster has no node {name}: it was deleted, and a kubelet registers only when it starts"
        remedy = f"{signs.say_restart(host, 'kubelet')}; if it was removed for good: kb reset --force"
        yield Finding("node", ERROR, text, remedy)
        return
    status, why = probes.node_condition(node)
    if status != "True":
        text = f"node {name} is NotReady: {why or 'it says nothing'}"
        yield Finding("node", ERROR, text, services.say_log(host, "kubelet"))
    else:
        for trouble in node_state.find_troubles(node):
            yield Finding("node", ERROR, str(trouble), trouble.remedy)
        yield from _judge_heartbeat(patient, api, name=name)
    cordon = node_state.find_cordon(node)
    if cordon:
        yield Finding("node", WARNING, str(cordon), cordon.remedy)
    yield from _judge_identity(patient, name, node=node)
    yield from _judge_serving_requests(name, requests)


def _judge_heartbeat(patient: Patient, api: kubeapi.Api, *, name: str) -> Findings:
    """Whether the kubelet reports to the cluster: a node stays Ready for 40 s after that has ended. It does so every 10 s by default."""
    with contextlib.suppress(KbError):
        found = api.get(kubeapi.path_of("Lease", name, namespace="kube-node-lease"))
        age_s = health.find_lease_age(api, found) if found else None
        lasts_s = fit_what_does(found or {}, {"spec!": {"leaseDurationSeconds!": int}})["spec"]["leaseDurationSeconds"]
        if age_s is not None and age_s > max(_SILENT_S, lasts_s / 2):
            lines = kubelet_trouble.read_present_log(patient.host, since_s=age_s)
            said = next((line for line in reversed(lines) if _LEASE.search(line)), "")
            why = clean_log_line(said) if said else "the kubelet's log does not say why"
            text = f"the kubelet has not renewed its Lease for {age_s:.0f} s, and after 40 s its node becomes NotReady: {why}"
            yield Finding(
                "node",
                ERROR,
                text,
                "on a control plane: kb doctor; the kubelet's log: " + services.say_log(patient.host, "kubelet"),
            )


_SILENT_S = 20
_LEASE = re.compile(r'"Failed to (?:update lease|ensure lease exists|prepare lease)')
"""Source: component-helpers, apimachinery/lease/controller.go"""


def _describe_silence(patient: Patient, name: str, *, error: KbError) -> Finding:
    """Why the cluster does not answer this node's kubelet. An authority that did not even sign this node's own certificate is another cluster's."""
    what = f"the cluster does not say how node {name} is"
    path = patient.paths.kubernetes / "kubelet.conf"
    if isinstance(error, Unreachable) and error.reason == "tls" and kubelet_files.trusts_another_cluster(patient):
        text = f"{what}: {path} trusts another authority (certificate-authority-data) than the one that signed this node's certificate: {error.cause}"
        remedy = f"put the cluster's there (on a control plane: base64 -w0 {patient.paths.pki / 'ca.crt'}); then: {signs.say_restart(patient.host, 'kubelet')}"
        return Finding("node", ERROR, text, remedy)
    return Finding("node", ERROR, f"{what}: {error}", error.remedy)


def _ask_servers(patient: Patient, name: str) -> Findings:
    """Whether each API server takes this node's kubelet for what it is: authorities and authorizers are each one's own, and a load balancer leads to each in
    turn."""
    try:
        api = open_api(patient, patient.paths.kubernetes / "kubelet.conf")
    except KbError:
        return  # the check of the kubelet's files reports why
    servers = list_servers(patient)
    for server in servers or (api.server,):
        own = api.with_server(server)
        try:
            may = system_rights.may_update_status(own, name)
            status = own.probe_health(kubeapi.path_of("Node", name), timeout_s=5).status if servers else 0
        except Unreachable:
            continue  # the check of the load balancer or of the cluster reports why
        if may is False:
            trouble = system_rights.deny_nodes(server)
            yield Finding("node", ERROR, str(trouble), trouble.remedy)
        elif status == 401 and server != api.server:
            place = server.partition("://")[2]
            text = f"API server {place} does not accept the certificate of this node's kubelet, and others do: its --client-ca-file is not the cluster's"
            yield Finding("node", ERROR, text, "on that machine: kb doctor")


def _judge_node_ip(patient: Patient, own: set[str]) -> Findings:
    """The address that the kubelet is told to report. It goes on without one that the machine does not have, and the node keeps its former."""
    flags = read_kubelet_flags(patient.host, patient.paths)
    lost = [one for one in flags.get("node-ip", "").split(",") if one and own and one not in own]
    if lost and not all(one in ("0.0.0.0", "::") for one in lost):
        text = f"the kubelet is told to have the address {', '.join(lost)} (--node-ip), and this machine has {', '.join(sorted(own))}"
        remedy = f"correct it in {patient.paths.kubelet_flags_env}; then: {signs.say_restart(patient.host, 'kubelet')}"
        yield Finding("node", ERROR, text, remedy)


def _judge_identity(patient: Patient, name: str, *, node: Mapping[str, Any]) -> Findings:
    """Whether it is this machine that the cluster knows as this node, at an address that it has, with the kubelet that is installed."""
    host, status = patient.host, fit_what_does(node, _STATUS)["status"]
    own_id, told_id = facts.read_or_empty(host, "/etc/machine-id").strip(), status["nodeInfo"]["machineID"]
    if own_id and told_id and own_id != told_id:
        text = (
            f"node {name} is reported by a machine with the id {told_id}, and this one's is {own_id} (/etc/machine-id)"
        )
        remedy = f"{signs.say_restart(host, 'kubelet')}; if it comes again, another machine has this one's certificates (a cloned disk): there, kb reset --force"
        yield Finding("node", WARNING, text, remedy)
    own = {str(address) for one in choose.read_interfaces(host) or () for address in one.addresses}
    yield from _judge_node_ip(patient, own)
    told = [one["address"] for one in status["addresses"] if one["type"] == "InternalIP"]
    lost = [address for address in told if own and address not in own]
    if lost:
        again = f"kb readdress {lost[0]} NEW" if patient.is_control_plane else signs.say_restart(host, "kubelet")
        text = f"the cluster reaches node {name} at {' and '.join(lost)}, which this machine does not have"
        yield Finding(
            "node", WARNING, text, f"{again} (kubectl logs and exec lead there, and so do the pod network's routes)"
        )
    yield from _judge_version(patient, name, running=status["nodeInfo"]["kubeletVersion"])


_STATUS: Shape = {
    "status!": {
        "nodeInfo!": {"machineID!": str, "kubeletVersion!": str},
        "addresses!": [{"type!": str, "address!": str}],
    }
}


def _judge_version(patient: Patient, name: str, *, running: str) -> Findings:
    told = read_installed_kubelet(patient.host)
    if told and running and told != running:
        text = f"the kubelet of node {name} runs as {running}, and the program on this machine is {told}"
        yield Finding("node", WARNING, text, signs.say_restart(patient.host, "kubelet"))


def _judge_serving_requests(name: str, requests: Iterable[Mapping[str, Any]]) -> Findings:
    found = signing_request.explain_serving_request(name, requests)
    if found:
        yield Finding("node", WARNING, *found)
