"""kubeup/doctor/looks/kubelet_files.py: the files from which a kubelet starts, each of them broken in turn."""

from __future__ import annotations

import base64
import json

import pytest

from kubeup.doctor.looks import kubelet_files
from kubeup.node import kubeconfig
from kubeup.paths import Paths
from tests.fake_host import FakeHost
from tests.fake_node import finished_node
from tests.unit.doctor.doctor_case import make_host, make_patient, notes, remedies

LOOK = "kubelet-files"
PEM = "/var/lib/kubelet/pki/kubelet-client-current.pem"
UNIT = "[Service]\nExecStart=/usr/bin/kubelet\n"
DROP_IN = 'Environment="KUBELET_KUBECONFIG_ARGS=--kubeconfig=/etc/kubernetes/kubelet.conf"\n'


def name_client_file(server: str, ca_pem: str) -> bytes:
    """A kubeconfig that names the kubelet's certificate, as the kubelet itself writes it."""
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(ca_pem.encode()).decode()}
    document = {
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": cluster}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "users": [{"name": "x", "user": {"client-certificate": PEM, "client-key": PEM}}],
    }  # fmt: skip
    return json.dumps(document).encode()


@pytest.fixture
def host() -> FakeHost:
    """A kubelet that renews its certificate: its kubeconfig names the file."""
    host, path = make_host(), Paths().kubeconfig("kubelet.conf")
    found = kubeconfig.parse_kubeconfig(host.read_text(path), source=str(path))
    host.files[PEM] = (found.client_cert_pem + found.client_key_pem.reveal()).encode()
    host.files[str(path)] = name_client_file(found.server, found.ca_pem)
    host.answers["systemctl cat kubelet.service"] = UNIT + DROP_IN
    return host


def test_files_that_fit_each_other(host: FakeHost) -> None:
    assert notes(host, LOOK) == []


def test_a_lost_configuration(host: FakeHost) -> None:
    del host.files["/var/lib/kubelet/config.yaml"]
    ((level, text),) = notes(host, LOOK)
    assert level == "error" and text.startswith("/var/lib/kubelet/config.yaml is not there")
    assert "configmap kubelet-config" in remedies(host, LOOK)[0]
    assert make_patient(host).is_member  # its kubeconfig says so


def test_a_lost_kubeconfig(host: FakeHost) -> None:
    del host.files["/etc/kubernetes/kubelet.conf"]
    ((level, text),) = notes(host, LOOK)
    assert level == "error" and text.startswith("/etc/kubernetes/kubelet.conf is not there")
    host.files["/etc/kubernetes/bootstrap-kubelet.conf"] = b"a bootstrap"
    assert notes(host, LOOK) == []  # it has yet to get its own


@pytest.mark.parametrize(("text", "lack"), [(b"", "holds no certificate"), (None, "is not there")])
def test_a_lost_certificate(host: FakeHost, text: bytes, lack: str) -> None:
    good = host.files.pop(PEM)
    if text is not None:
        host.files[PEM] = text
    dated = "/var/lib/kubelet/pki/kubelet-client-2026-01-01-00-00-00.pem"
    host.files[dated] = good
    host.files[dated.replace("-01-01-", "-11-11-")] = b""  # the one that was being written
    ((level, told),) = notes(host, LOOK)
    assert level == "error" and f"{PEM}, which /etc/kubernetes/kubelet.conf names, {lack}" in told
    assert f"ln -sf {dated} {PEM}" in remedies(host, LOOK)[0]


def test_an_authority_of_another_cluster(host: FakeHost) -> None:
    other = finished_node().read_text(Paths().pki / "front-proxy-ca.crt")
    host.files["/etc/kubernetes/pki/ca.crt"] = other.encode()
    ((level, text),) = notes(host, LOOK)
    assert level == "error" and text.startswith("/etc/kubernetes/pki/ca.crt is not the authority")
    assert not kubelet_files.trusts_another_cluster(make_patient(host))
    path = Paths().kubeconfig("kubelet.conf")
    found = kubeconfig.read_kubeconfig(host.read_text(path), host=host, path=path)
    host.files[str(path)] = name_client_file(found.server, other)
    assert kubelet_files.trusts_another_cluster(make_patient(host))


def test_a_unit_that_has_lost_its_drop_in(host: FakeHost) -> None:
    host.answers["systemctl cat kubelet.service"] = UNIT
    ((level, text),) = notes(host, LOOK)
    assert level == "error" and text.startswith("nothing gives the kubelet --kubeconfig")
    assert remedies(host, LOOK)[0].startswith("have it written again: kb init phase kubelet-start")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("staticPodPath: /etc/kubernetes/manifest\n", "looks for static pods in /etc/kubernetes/manifest"),
        ("", "looks for no static pods"),
    ],
)
def test_manifests_at_which_the_kubelet_does_not_look(host: FakeHost, line: str, says: str) -> None:
    text = host.files["/var/lib/kubelet/config.yaml"].decode()
    kept = "".join(row for row in text.splitlines(keepends=True) if not row.startswith("staticPodPath"))
    host.files["/var/lib/kubelet/config.yaml"] = (kept + line).encode()
    ((level, told),) = notes(host, LOOK)
    assert level == "error" and says in told and "does not run etcd.yaml, kube-apiserver.yaml" in told
    assert "put it back (staticPodPath: /etc/kubernetes/manifests)" in remedies(host, LOOK)[0]


def test_a_kubelet_whose_mounts_nobody_else_sees(host: FakeHost) -> None:
    host.links.update({"/proc/1/ns/mnt": "mnt:[1]", "/proc/42/ns/mnt": "mnt:[1]"})
    assert notes(host, LOOK) == []
    host.links["/proc/42/ns/mnt"] = "mnt:[2]"
    show = f"systemctl show kubelet -p {kubelet_files._OWN_MOUNTS}"
    host.answers[show] = "PrivateTmp=yes\nProtectSystem=no\nMountFlags=\n"
    ((level, told),) = notes(host, LOOK)
    assert level == "error" and told.endswith("so volumes of pods do not reach their containers (PrivateTmp=yes)")
