"""No secret leaves with a support bundle: planted ones are gone, in every file, and what is public stays."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile

from kubeup.doctor import node_files, support_bundle
from kubeup.machine.host import CommandResult
from kubeup.paths import Paths
from tests.fake_host import FakeHost
from tests.fake_node import finished_node

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEplantedKEYplanted\nplantedKEYsecondline\n-----END RSA PRIVATE KEY-----\n"
KEY_BASE64 = base64.b64encode(KEY.encode()).decode()
JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJzdWIiOiJwbGFudGVkIn0.c2lnbmF0dXJl"


def make_patient() -> node_files.Patient:
    """A control plane with a secret in every place that is collected."""
    host = finished_node()
    host.programs.update({"crictl", "kubectl"})
    host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = (
        b"spec:\n  containers:\n  - image: registry.k8s.io/kube-apiserver:v1.35.6\n    command: [kube-apiserver, --secure-port=6443]\n"
        b"    env:\n    - name: HTTPS_PROXY\n      value: http://joe:plantedpw@proxy:3128\n"
    )
    host.files["/var/lib/kb/state.json"] = b'{"outputs": {"token": "abcdef.0123456789abcdef"}}'
    host.accepts = {"modprobe configs"}
    host.answers["journalctl -u kubelet"] = f"Bearer planted-bearer-1234\n{KEY}"
    host.answers["systemctl"] = 'Environment="DB_PASSWORD=plantedpw"\n'
    host.answers["kubectl"] = f"data:\n  token: {JWT}\n"
    host.answers["crictl"] = lambda argv: CommandResult(argv, 0, json.dumps({"auth": "cGxhbnRlZDpwdw=="}))
    return node_files.read_patient(host, Paths())


def test_nothing_that_is_collected_holds_a_secret() -> None:
    patient = make_patient()
    assert isinstance(patient.host, FakeHost)
    keys = [data for name, data in patient.host.files.items() if name.endswith(".key")]
    files = support_bundle.collect(patient)
    everything = "\n".join(files.values())
    for secret in (
        "plantedKEY",
        "planted-bearer",
        "plantedpw",
        JWT,
        "0123456789abcdef",
        "cGxhbnRlZDpwdw==",
        "PRIVATE KEY-----\nM",
    ):
        assert secret not in everything, secret
    assert len(keys) > 5
    for key in keys:
        assert key.decode().splitlines()[1] not in everything
        assert base64.b64encode(key).decode() not in everything
    assert "kube-apiserver:v1.35.6" in files["files/etc/kubernetes/manifests/kube-apiserver.yaml"]
    assert files["files/etc/kubernetes/pki/ca.key"].startswith("(/etc/kubernetes/pki/ca.key is a private key")
    assert "BEGIN CERTIFICATE" in files["files/etc/kubernetes/pki/ca.crt"]
    assert json.loads(files["doctor.json"])


def test_collecting_changes_nothing() -> None:
    patient = make_patient()
    assert isinstance(patient.host, FakeHost)
    patient.host.changes.clear()
    support_bundle.collect(patient)
    assert [change for change in patient.host.changes if change != "run modprobe configs"] == []


def test_a_bundle_is_one_private_archive() -> None:
    data = support_bundle.pack({"a/b.txt": "hello\n", "c.txt": "x"}, prefix="kb-support-cp1")
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as archive:
        assert archive.getnames() == ["kb-support-cp1/a/b.txt", "kb-support-cp1/c.txt"]
        assert all(entry.mode == 0o600 for entry in archive)
        member = archive.extractfile("kb-support-cp1/a/b.txt")
        assert member is not None and member.read() == b"hello\n"
