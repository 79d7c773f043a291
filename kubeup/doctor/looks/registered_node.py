"""The check of the node as its cluster sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kubeup.cluster import api as kubeapi
from kubeup.cluster import signing_request
from kubeup.config import choose
from kubeup.diagnosis import signs
from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.doctor.node_files import Patient, read_called_name, read_cert_node_name, read_kubelet_flags
from kubeup.errors import KbError
from kubeup.machine import services
from kubeup.shapes import Shape, fit_what_does


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
    if node is None:
        text = f"the cluster has no node {name}: it was deleted, and a kubelet registers only when it starts"
        remedy = f"{signs.say_restart(host, 'kubelet')}; if it was removed for good: kb reset --force"
        yield Finding("node", ERROR, text, remedy)
        return
    yield from _judge_conditions(patient, name, node=node)
    yield from _judge_taints(name, node)
    yield from _judge_identity(patient, name, node=node)
    yield from _judge_serving_requests(name, requests)


_PRESSURES = {
    "MemoryPressure": "see what takes it: kubectl top pods -A, or ps aux --sort=-rss | head",
    "DiskPressure": "make space: df -h, crictl rmi --prune",
    "PIDPressure": "see what runs so many: ps -eLo comm= | sort | uniq -c | sort -n | tail",
}


def _judge_conditions(patient: Patient, name: str, *, node: Mapping[str, Any]) -> Findings:
    conditions = {str(item.get("type")): item for item in (node.get("status") or {}).get("conditions") or ()}
    ready = conditions.get("Ready") or {}
    if ready.get("status") != "True":
        why = ready.get("message") or ready.get("reason") or "it has reported nothing yet"
        yield Finding("node", ERROR, f"node {name} is NotReady: {why}", services.say_log(patient.host, "kubelet"))
        return  # what else it has reported is of before
    for kind, remedy in _PRESSURES.items():
        found = conditions.get(kind) or {}
        if found.get("status") == "True":
            text = f"node {name} has {kind}, so its kubelet evicts pods and starts no new ones: {found.get('message')}"
            yield Finding("node", ERROR, text, remedy)
    network = conditions.get("NetworkUnavailable") or {}
    if network.get("status") == "True":
        text = f"node {name} is marked as without a network ({network.get('reason')}: {network.get('message')}): no pod is scheduled on it"
        remedy = "see the log of what sets that up: kubectl -n kube-system get pods -o wide (the pod network, or the cloud's controller-manager)"
        yield Finding("node", ERROR, text, remedy)


_UNINITIALIZED = "node.cloudprovider.kubernetes.io/uninitialized"
_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"


def _judge_taints(name: str, node: Mapping[str, Any]) -> Findings:
    """Taints that nobody removes by himself. Those that follow from a condition go with it."""
    spec = fit_what_does(node, {"spec!": {"unschedulable!": bool, "taints!": [{"key!": str}]}})["spec"]
    keys = {taint["key"] for taint in spec["taints"]}
    if _UNINITIALIZED in keys:
        text = f"node {name} waits for a cloud's controller-manager ({_UNINITIALIZED}): no pod is scheduled on it"
        remedy = "install the cloud's controller-manager; without a cloud, remove --cloud-provider=external from the kubelet's flags, and: "
        yield Finding("node", ERROR, text, f"{remedy}kubectl taint nodes {name} {_UNINITIALIZED}-")
    if _OUT_OF_SERVICE in keys:
        text = f"node {name} is called out of service ({_OUT_OF_SERVICE}), although it is here: its pods are deleted by force"
        yield Finding("node", ERROR, text, f"kubectl taint nodes {name} {_OUT_OF_SERVICE}-")
    if spec["unschedulable"]:
        yield Finding(
            "node", WARNING, f"node {name} is cordoned: no new pod is scheduled on it", f"kb node uncordon {name}"
        )


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
    told = patient.host.query(["kubelet", "--version"], timeout_s=15).stdout.replace("Kubernetes", "").strip()
    if told and running and told != running:
        text = f"the kubelet of node {name} runs as {running}, and the program on this machine is {told}"
        yield Finding("node", WARNING, text, signs.say_restart(patient.host, "kubelet"))


def _judge_serving_requests(name: str, requests: Iterable[Mapping[str, Any]]) -> Findings:
    found = signing_request.explain_serving_request(name, requests)
    if found:
        yield Finding("node", WARNING, *found)
