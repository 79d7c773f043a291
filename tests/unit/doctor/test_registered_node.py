"""kubeup/doctor/looks/registered_node.py: the node as its cluster sees it."""

from __future__ import annotations

import dataclasses
import datetime
import json
from typing import Any

import pytest

from kubeup import releases
from kubeup.diagnosis.checks.facts import Finding
from kubeup.doctor import node_files
from kubeup.doctor.looks import registered_node, table
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import SERVER, make_host, make_patient, notes

REQUESTS = f"{SERVER}/apis/certificates.k8s.io/v1/certificatesigningrequests?fieldSelector=spec.signerName%3Dkubernetes.io%2Fkubelet-serving"


def node_host(status: str = "True", message: str = "", *requests: dict[str, object], **more: Any) -> FakeHost:
    """more: other parts of the Node's status, and its spec."""
    host = make_host()
    conditions = [{"type": "Ready", "status": status, "message": message}, *more.pop("conditions", ())]
    spec = more.pop("spec", {})
    node = {"kind": "Node", "metadata": {"name": "cp1"}, "spec": spec, "status": {"conditions": conditions, **more}}
    host.urls[f"{SERVER}/api/v1/nodes/cp1"] = HttpResponse(200, json.dumps(node).encode())
    host.urls[REQUESTS] = HttpResponse(200, json.dumps({"kind": "List", "items": requests}).encode())
    return host


def serving_request(name: str, status: dict[str, object]) -> dict[str, object]:
    return {"metadata": {"name": name}, "spec": {"username": "system:node:cp1"}, "status": status}


def test_a_node_that_is_ready_needs_no_word() -> None:
    assert notes(node_host(), "node") == []


def test_a_machine_that_was_renamed_cannot_register() -> None:
    """Its control plane runs twice then, under two names: what comes of that is no other error."""
    host = node_host("Unknown", "Kubelet stopped posting node status.")
    host.files["/var/lib/kubelet/kubeadm-flags.env"] = b'KUBELET_KUBEADM_ARGS=""\n'
    host.host_name = "renamed-cp1"
    patient = make_patient(host)
    looks = {look.name: look for look in table.LOOKS}
    twice = Finding("chain/container", "error", "etcd exited 2 times: port 2380 is in use by etcd (pid 7)", "stop it")
    chain = dataclasses.replace(looks["chain"], look=lambda _: [twice])
    found = table.examine(patient, (looks["kubelet-files"], chain, looks["node"]))
    renamed, again, stopped = [note for note in found if note.level != "ok"]
    assert renamed.level == "error" and "called renamed-cp1 now, and its node is cp1" in renamed.text
    assert "hostnamectl set-hostname cp1" in renamed.remedy and "--hostname-override=cp1" in renamed.remedy
    assert again.level == stopped.level == "follows"
    assert stopped.text == "because of that: node cp1 is NotReady: Kubelet stopped posting node status."
    assert node_files.describe_patient(patient).startswith("node cp1, control plane")


def test_a_node_that_was_deleted_and_a_cluster_that_does_not_answer() -> None:
    host = node_host()
    host.urls[f"{SERVER}/api/v1/nodes/cp1"] = HttpResponse(404, b'{"kind": "Status", "reason": "NotFound"}')
    (note,) = registered_node.look_at_node(make_patient(host))
    assert "the cluster has no node cp1" in note.text and note.remedy.startswith(
        "systemctl restart kubelet; if it was removed for good: "
    )
    host.urls.clear()
    (note,) = registered_node.look_at_node(make_patient(host))
    assert note.level == "error" and "the cluster does not say how node cp1 is: no answer from" in note.text


def test_a_serving_certificate_that_nobody_approves() -> None:
    pending = serving_request("csr-1", {})
    (note,) = registered_node.look_at_node(make_patient(node_host("True", "", pending)))
    assert note.level == "warning" and "its request csr-1 is Pending" in note.text
    assert note.remedy.endswith("kubectl certificate approve csr-1")
    signed = serving_request("csr-0", {"conditions": [{"type": "Approved"}], "certificate": "eA=="})
    assert notes(node_host("True", "", signed, pending), "node") == []


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ({"type": "DiskPressure", "status": "True", "message": "kubelet has disk pressure"}, "has DiskPressure, so its kubelet evicts pods and starts no new ones: kubelet has disk pressure"),
        ({"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "no route"}, "without a network, so no pod is scheduled on it: NoRouteCreated: no route"),
        ({"type": "MemoryPressure", "status": "False"}, ""),
    ],
)  # fmt: skip
def test_conditions_that_keep_pods_away(condition: dict[str, str], says: str) -> None:
    found = notes(node_host(conditions=[condition]), "node")
    assert [level for level, _ in found] == (["error"] if says else [])
    assert all(says in text for _, text in found)
    stopped = notes(node_host("Unknown", "no heartbeat", conditions=[condition]), "node")
    assert stopped == [("error", "node cp1 is NotReady: no heartbeat")]  # what it reported before is of before


def test_taints_that_nobody_removes_by_himself() -> None:
    taints = [
        {"key": "node.cloudprovider.kubernetes.io/uninitialized", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"},
        {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
    ]
    cloud, service, cordon = registered_node.look_at_node(
        make_patient(node_host(spec={"unschedulable": True, "taints": taints}))
    )
    assert cloud.level == "error" and cloud.remedy.endswith(
        "kubectl taint nodes cp1 node.cloudprovider.kubernetes.io/uninitialized-"
    )
    assert service.level == "error" and service.remedy == "kubectl taint nodes cp1 node.kubernetes.io/out-of-service-"
    assert (cordon.level, cordon.remedy) == ("warning", "kb node uncordon cp1")


def test_a_node_that_is_another_machine_s_or_elsewhere() -> None:
    host = node_host(
        nodeInfo={"machineID": "b" * 32, "kubeletVersion": "v1.35.5"},
        addresses=[{"type": "InternalIP", "address": "10.77.0.99"}, {"type": "Hostname", "address": "cp1"}],
    )
    host.answers["kubelet --version"] = "Kubernetes v1.35.6\n"
    host.files["/etc/machine-id"] = b"a" * 32 + b"\n"
    host.answers["ip -json addr"] = json.dumps(
        [{"ifname": "eth0", "flags": ["UP"], "addr_info": [{"family": "inet", "local": "10.77.0.11", "prefixlen": 24}]}]
    )
    other, address, version = registered_node.look_at_node(make_patient(host))
    assert "a machine with the id " + "b" * 32 in other.text and "cloned disk" in other.remedy
    assert address.text == "the cluster reaches node cp1 at 10.77.0.99, which this machine does not have"
    assert address.remedy.startswith("kb readdress 10.77.0.99 NEW")
    assert version.text == "the kubelet of node cp1 runs as v1.35.5, and the program on this machine is v1.35.6"
    assert {note.level for note in (other, address, version)} == {"warning"}


@pytest.mark.parametrize(("seconds", "is_told"), [(12, False), (25, True)])
def test_a_kubelet_that_reports_no_more(seconds: int, is_told: bool) -> None:
    host = node_host()
    written = host.clock - datetime.timedelta(seconds=seconds)
    fields = [{"manager": "kubelet", "time": f"{written:%Y-%m-%dT%H:%M:%SZ}"}]
    lease = {"metadata": {"name": "cp1", "managedFields": fields}, "spec": {"leaseDurationSeconds": 40}}
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/cp1"
    host.urls[f"{SERVER}{path}"] = HttpResponse(200, json.dumps(lease).encode())
    host.urls[f"{SERVER}/version"] = HttpResponse(200, b"{}", {"date": f"{host.clock:%a, %d %b %Y %H:%M:%S} GMT"})
    host.answers["journalctl"] = (
        'E0101 00:00:00.1 42 controller.go:251] "Failed to update lease" err="etcdserver: mvcc: database space exceeded"\n'
        'I0101 00:00:01.1 42 kubelet.go:1] "well"\n'
    )
    found = notes(host, "node")
    assert bool(found) == is_told
    if found:
        assert found[0][0] == "error" and "renewed its Lease for 25 s" in found[0][1]
        assert "mvcc: database space exceeded" in found[0][1]


def test_a_label_that_was_taken_from_the_node() -> None:
    host = node_host()
    node = json.loads(host.urls[f"{SERVER}/api/v1/nodes/cp1"].body)
    node["metadata"]["labels"] = {"kubernetes.io/os": "linux"}
    host.urls[f"{SERVER}/api/v1/nodes/cp1"] = HttpResponse(200, json.dumps(node).encode())
    (note,) = registered_node.look_at_node(make_patient(host))
    assert note.text.startswith("node cp1 has lost the label kubernetes.io/hostname")
    assert note.remedy == "kubectl label node cp1 kubernetes.io/hostname=cp1"


def test_the_version_of_a_kubelet_that_is_gone_is_what_it_told_the_cluster() -> None:
    host = node_host(nodeInfo={"kubeletVersion": "v1.34.2"})
    del host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"]
    host.answers["kubelet --version"] = CommandResult(("kubelet",), 127, missing=True)
    assert make_patient(host).config.cluster.kubernetes_version == "v1.34.2"
    host.urls.clear()
    assert make_patient(host).config.cluster.kubernetes_version == releases.NEWEST_PROVEN
