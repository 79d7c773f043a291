"""kubeup/doctor/looks/registered_node.py: the node as its cluster sees it."""

from __future__ import annotations

import json

from kubeup.doctor import node_files
from kubeup.doctor.looks import registered_node
from kubeup.machine.http import HttpResponse
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import SERVER, make_host, make_patient, notes

REQUESTS = f"{SERVER}/apis/certificates.k8s.io/v1/certificatesigningrequests?fieldSelector=spec.signerName%3Dkubernetes.io%2Fkubelet-serving"


def node_host(status: str = "True", message: str = "", *requests: dict[str, object]) -> FakeHost:
    host = make_host()
    conditions = [{"type": "Ready", "status": status, "message": message}]
    node = {"kind": "Node", "metadata": {"name": "cp1"}, "status": {"conditions": conditions}}
    host.urls[f"{SERVER}/api/v1/nodes/cp1"] = HttpResponse(200, json.dumps(node).encode())
    host.urls[REQUESTS] = HttpResponse(200, json.dumps({"kind": "List", "items": requests}).encode())
    return host


def serving_request(name: str, status: dict[str, object]) -> dict[str, object]:
    return {"metadata": {"name": name}, "spec": {"username": "system:node:cp1"}, "status": status}


def test_a_node_that_is_ready_needs_no_word() -> None:
    assert notes(node_host(), "node") == []


def test_a_machine_that_was_renamed_cannot_register() -> None:
    host = node_host("Unknown", "Kubelet stopped posting node status.")
    host.files["/var/lib/kubelet/kubeadm-flags.env"] = b'KUBELET_KUBEADM_ARGS=""\n'
    host.host_name = "renamed-cp1"
    renamed, stopped = registered_node.look_at_node(make_patient(host))
    assert renamed.level == "error" and "called renamed-cp1 now, and its node is cp1" in renamed.text
    assert "hostnamectl set-hostname cp1" in renamed.remedy and "--hostname-override=cp1" in renamed.remedy
    assert stopped.text == "node cp1 is NotReady: Kubelet stopped posting node status."
    assert node_files.describe_patient(make_patient(host)).startswith("node cp1, control plane")


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
