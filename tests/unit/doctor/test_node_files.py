"""kubeup/doctor/node_files.py: the node is read from its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup import releases
from kubeup.doctor import node_files
from kubeup.paths import Paths
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import APISERVER, make_host, make_patient, notes


def test_the_node_is_read_from_its_files() -> None:
    patient = make_patient(make_host())
    config = patient.config
    assert config.cluster.kubernetes_version == "v1.35.6"
    assert config.cluster.networking.pod_subnet == "10.244.0.0/16"
    assert config.cluster.networking.dns_domain == "example.org"
    assert config.cluster.local_etcd is not None
    assert config.cluster.local_etcd.data_dir == "/data/etcd"
    assert (config.node.name, config.node.cri_socket) == ("cp1", "unix:///run/x/containerd.sock")
    assert config.local_api_endpoint.advertise_address == "10.77.0.11"
    assert patient.components == ("etcd", "kube-apiserver", "kube-controller-manager")
    assert node_files.describe_patient(patient) == "node cp1, control plane, Kubernetes v1.35.6"


def test_a_machine_without_a_kubelet_belongs_to_no_cluster() -> None:
    patient = make_patient(FakeHost())
    assert not patient.is_member
    assert not patient.is_control_plane and not patient.config.is_control_plane
    assert node_files.describe_patient(patient).startswith("node node1: no kubelet was configured here")


def test_a_workers_configuration_is_a_workers() -> None:
    """Whoever works with it needs no word beside it that this is no control plane."""
    host = make_host()
    for name in list(host.files):
        if name.startswith("/etc/kubernetes/manifests/"):
            del host.files[name]
    assert make_patient(host).is_control_plane  # whose manifests were taken away: it has a server's certificate
    del host.files["/etc/kubernetes/pki/apiserver.crt"]
    patient = make_patient(host)
    assert not patient.is_control_plane and not patient.config.is_control_plane
    assert patient.config.joined.server == "https://10.77.0.11:6443" and "BEGIN CERT" in patient.config.joined.ca_pem


@pytest.mark.parametrize(
    "image",
    [
        "registry.k8s.io/kube-apiserver:v1.34.9",
        '"registry.k8s.io/kube-apiserver:v1.34.9"',
        "localhost:5000/kube-apiserver:v1.34.9@sha256:0123",
        "registry.k8s.io/api:v1.34.9",
    ],
)
def test_the_version_is_that_of_the_api_servers_own_image(image: str) -> None:
    """Whatever quotes it, pins it, or runs beside it."""
    host = make_host()
    sidecar = "  - name: audit\n    image: example.org/audit:v9.1.0\n"
    pod = f"kind: Pod\nspec:\n  containers:\n{sidecar}  - name: kube-apiserver\n    image: {image}\n    command: [kube-apiserver]\n"
    host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = pod.encode()
    found = node_files.read_server_version(host, Paths())
    assert found is not None and found.text == "v1.34.9"
    assert make_patient(host).config.cluster.kubernetes_version == "v1.34.9"


def test_a_build_in_the_tag_is_the_versions() -> None:
    found = releases.version_of_image("example.org/kube-apiserver:v1.35.6_vendor.1")
    assert found is not None and found.text == "v1.35.6+vendor.1"


def moved_host() -> FakeHost:
    """A control plane whose certificates lie where kubespray has them, and whose API server listens on 8443."""
    host = make_host()
    for name in [name for name in host.files if name.startswith("/etc/kubernetes/pki/")]:
        host.files[name.replace("/etc/kubernetes/pki/", "/etc/kubernetes/ssl/")] = host.files.pop(name)
    flags = (
        "    - --tls-cert-file=/etc/kubernetes/ssl/apiserver.crt\n    - --client-ca-file=/etc/kubernetes/ssl/ca.crt\n"
    )
    manifest = APISERVER.replace("--secure-port=6443", "--secure-port=8443") + flags
    host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = manifest.encode()
    return host


def test_certificates_elsewhere_are_found_by_the_static_pod() -> None:
    host = moved_host()
    found = node_files.find_paths(host, Paths())
    assert found.pki == Path("/etc/kubernetes/ssl") and found.etcd_data == Path("/data/etcd")
    assert node_files.find_own_server(host, Paths()) == "https://10.77.0.11:8443"
    assert [note for note in notes(host, "certificates") if note[0] == "error"] == []
    assert (
        node_files.find_paths(FakeHost(), Paths()) == Paths() and node_files.find_own_server(FakeHost(), Paths()) == ""
    )
