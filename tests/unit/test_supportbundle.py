"""No secret leaves with a support bundle: planted ones are gone, in every file, and what is public stays."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile

import pytest

from kubeup import doctor, supportbundle
from kubeup.host import CommandResult
from kubeup.paths import Paths
from tests.fake_host import FakeHost
from tests.fake_node import finished_node

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEplantedKEYplanted\nplantedKEYsecondline\n-----END RSA PRIVATE KEY-----\n"
KEY_BASE64 = base64.b64encode(KEY.encode()).decode()
JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJzdWIiOiJwbGFudGVkIn0.c2lnbmF0dXJl"

PLANTED = [
    ("a private key", KEY, "plantedKEY"),
    ("half a private key", KEY.partition("second")[0], "plantedKEY"),
    ("a key in a kubeconfig", f"    client-key-data: {KEY_BASE64}\n", KEY_BASE64),
    ("a key somewhere in base64", f"blob {KEY_BASE64} end", KEY_BASE64),
    ("a bootstrap token", "kubeadm join 10.0.0.1:6443 --token abcdef.0123456789abcdef --x", "0123456789abcdef"),
    ("a service account's token", f"token is {JWT}\n", JWT),
    ("a bearer", "Authorization: Bearer planted-bearer-1234\n", "planted-bearer-1234"),
    ("basic credentials", '{"Authorization": "Basic cGxhbnRlZDpwdw=="}', "cGxhbnRlZDpwdw=="),
    ("a header in curl's words", "curl -H 'Authorization: planted-opaque-1'", "planted-opaque-1"),
    ("a password in a proxy's address", "HTTPS_PROXY=http://joe:plantedpw@proxy:3128\n", "plantedpw"),
    ("a password in YAML", "  password: plantedpw\n", "plantedpw"),
    ("a quoted password", '  registryPassword: "planted pw"\n', "planted pw"),
    ("a password in TOML", 'password = "plantedpw"\n', "plantedpw"),
    ("a password in JSON", '{"user": "joe", "password": "plantedpw", "x": 1}', "plantedpw"),
    ("docker's auth", '{"auths": {"r": {"auth": "cGxhbnRlZDpwdw=="}}}', "cGxhbnRlZDpwdw=="),
    ("containerd's auth", '  auth = "cGxhbnRlZDpwdw=="\n', "cGxhbnRlZDpwdw=="),
    ("an identity token", "identitytoken = 'planted-id'\n", "planted-id"),
    ("encryption at rest", "    - name: key1\n      secret: cGxhbnRlZHBsYW50ZWQ=\n", "cGxhbnRlZHBsYW50ZWQ="),
    ("a certificate key", "certificateKey: 0a1b2c3d4e5f60718293a4b5c6d7e8f9\n", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"),
    ("a flag", "kubeadm join --certificate-key 0a1b2c3d4e5f6071 --v=2", "0a1b2c3d4e5f6071"),
    ("a flag with =", "prog --db-password=plantedpw --other", "plantedpw"),
    ("a variable of a container", "- name: DB_PASSWORD\n  value: plantedpw\n", "plantedpw"),
    ("a variable in JSON", '{"name": "API_TOKEN", "value": "plantedtoken"}', "plantedtoken"),
    ("a block of text", "  password: |\n    planted\n    second\n  user: joe\n", "second"),
    ("escaped JSON", r"{\"password\":\"plantedpw\",\"a\":1}", "plantedpw"),
    ("a quote in a password", r'password: "one\"plantedpw"', "plantedpw"),
    ("an open quote", 'password: "plantedpw\n', "plantedpw"),
    ("a password with commas", "password: a,plantedpw,c\n", "plantedpw"),
    ("a variable in a unit", 'Environment="AWS_SECRET_ACCESS_KEY=plantedsecret"\n', "plantedsecret"),
]


@pytest.mark.parametrize(("text", "secret"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_a_planted_secret_is_gone(text: str, secret: str) -> None:
    redacted = supportbundle.redact(text)
    assert secret not in redacted
    assert supportbundle.MARK in redacted


PUBLIC = [
    "token abcdef is unknown",
    "caCertHashes: [sha256:d1a7e5a760b130f2ef1c621a60154528971fc0af77d3c15c1171247dd3d75785]",
    "-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n",
    "--service-account-signing-key-file=/etc/kubernetes/pki/sa.key",
    "--tls-private-key-file=/etc/kubernetes/pki/apiserver.key",
    "--enable-bootstrap-token-auth=true",
    "secretName: registry-login",
    "automountServiceAccountToken: false",
    "image: registry.k8s.io/kube-apiserver:v1.35.6",
    "E1123 1 x.go:1] connection refused",
    "authorization:\n  mode: Webhook\n",
]


@pytest.mark.parametrize("text", PUBLIC)
def test_what_is_public_stays(text: str) -> None:
    assert supportbundle.redact(text) == text


def test_redacting_twice_is_redacting_once() -> None:
    for _, text, _ in PLANTED:
        once = supportbundle.redact(text)
        assert supportbundle.redact(once) == once


def make_patient() -> doctor.Patient:
    """A control plane with a secret in every place that is collected."""
    host = finished_node()
    host.programs.update({"crictl", "kubectl"})
    host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = (
        b"spec:\n  containers:\n  - image: registry.k8s.io/kube-apiserver:v1.35.6\n    command: [kube-apiserver, --secure-port=6443]\n"
        b"    env:\n    - name: HTTPS_PROXY\n      value: http://joe:plantedpw@proxy:3128\n"
    )
    host.files["/var/lib/kb/state.json"] = b'{"outputs": {"token": "abcdef.0123456789abcdef"}}'
    host.answers["journalctl -u kubelet"] = f"Bearer planted-bearer-1234\n{KEY}"
    host.answers["systemctl"] = 'Environment="DB_PASSWORD=plantedpw"\n'
    host.answers["kubectl"] = f"data:\n  token: {JWT}\n"
    host.answers["crictl"] = lambda argv: CommandResult(argv, 0, json.dumps({"auth": "cGxhbnRlZDpwdw=="}))
    return doctor.read_patient(host, Paths())


def test_nothing_that_is_collected_holds_a_secret() -> None:
    patient = make_patient()
    assert isinstance(patient.host, FakeHost)
    keys = [data for name, data in patient.host.files.items() if name.endswith(".key")]
    files = supportbundle.collect(patient)
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
    supportbundle.collect(patient)
    assert [change for change in patient.host.changes if change != "run modprobe configs"] == []


def test_a_bundle_is_one_private_archive() -> None:
    data = supportbundle.pack({"a/b.txt": "hello\n", "c.txt": "x"}, prefix="kb-support-cp1")
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as archive:
        assert archive.getnames() == ["kb-support-cp1/a/b.txt", "kb-support-cp1/c.txt"]
        assert all(entry.mode == 0o600 for entry in archive)
        member = archive.extractfile("kb-support-cp1/a/b.txt")
        assert member is not None and member.read() == b"hello\n"
