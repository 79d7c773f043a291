"""kubeup/backup/node_content.py: what a new machine would need is in it, what is large or the system's is not, and that is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kubeup.backup import node_content
from kubeup.backup.archive import Content
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths

PATHS = Paths()
MANIFEST = """\
apiVersion: v1
kind: Pod
metadata: {name: kube-apiserver, namespace: kube-system}
spec:
  containers:
  - name: kube-apiserver
    image: registry.k8s.io/kube-apiserver:v1.35.6
    command:
    - kube-apiserver
    - --etcd-certfile=/etc/kubernetes/pki/apiserver-etcd-client.crt
    - --encryption-provider-config=/enc/config.yaml
    - --audit-policy-file=/etc/audit/policy.yaml
    - --audit-log-path=/audit-log/audit.log
    - --oidc-ca-file=/etc/ssl/certs/oidc.pem
    volumeMounts:
    - {name: enc, mountPath: /enc}
    - {name: audit, mountPath: /etc/audit/policy.yaml}
    - {name: log, mountPath: /audit-log}
    - {name: certs, mountPath: /etc/ssl/certs}
    - {name: pki, mountPath: /etc/kubernetes/pki}
    - {name: wide, mountPath: /wide}
    - {name: none, mountPath: /none}
  volumes:
  - {name: enc, hostPath: {path: /opt/cluster/encryption}}
  - {name: audit, hostPath: {path: /opt/cluster/audit.yaml, type: File}}
  - {name: log, hostPath: {path: /opt/logs}}
  - {name: certs, hostPath: {path: /etc/ssl/certs}}
  - {name: pki, hostPath: {path: /etc/kubernetes/pki}}
  - {name: wide, hostPath: {path: /var/lib}}
  - {name: none, emptyDir: {}}
"""
ENCRYPTION = """\
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - kms: {apiVersion: v2, name: vault, endpoint: unix:///run/kms.sock}
  - aescbc: {keys: [{name: k, secret: c2VjcmV0}]}
"""
FILES = {
    "/etc/kubernetes/admin.conf": "admin",
    "/etc/kubernetes/manifests/kube-apiserver.yaml": MANIFEST,
    "/etc/kubernetes/manifests/.kube-scheduler.yaml.kb-former": "spec: {}",
    "/etc/kubernetes/manifests/notes.yaml": "a: [",
    "/etc/kubernetes/patches/etcd.yaml": "patch",
    "/etc/kubernetes/tmp/kubeadm-backup-etcd/db": "x" * 1000,
    "/etc/kubernetes/pki/ca.crt": "ca",
    "/etc/kubernetes/pki/ca.key": "key",
    "/etc/kubernetes/pki/front-proxy-ca.crt": "ca",
    "/etc/kubernetes/pki/.ca.key.kb-812-7f": "half a key",
    "/var/lib/kubelet/config.yaml": "tlsCertFile: /opt/kubelet/serving.crt\nauthentication: {x509: {clientCAFile: /opt/kubelet/ca.crt}}\n",
    "/var/lib/kubelet/kubeadm-flags.env": 'KUBELET_KUBEADM_ARGS="--image-credential-provider-config=/opt/kubelet/provider.yaml --v=2"\n',
    "/var/lib/kubelet/pki/kubelet-client-2026.pem": "pair",
    "/var/lib/kubelet/pods/uid/volumes/token": "not it",
    "/opt/kubelet/serving.crt": "s",
    "/opt/kubelet/ca.crt": "c",
    "/opt/kubelet/provider.yaml": "p",
    "/opt/kubelet/other": "no",
    "/opt/cluster/encryption/config.yaml": ENCRYPTION,
    "/opt/cluster/audit.yaml": "policy",
    "/opt/logs/audit.log": "log",
    "/opt/logs/README": "kept",
    "/etc/ssl/certs/oidc.pem": "oidc",
    "/etc/ssl/certs/other.pem": "the system's",
    "/etc/systemd/system/kb-routes.service": "unit",
    "/etc/systemd/system/other.service": "no",
    "/var/lib/kb/state.json": "{}",
    "/var/lib/kb/lock": "kb init",
    "/var/lib/kb/mirror/blobs/x": "image",
    "/var/lib/kb/kb-rehearsal/files/etc/kubernetes/pki/ca.key": "another",
    "/var/lib/etcd/member/snap/db": "data",
}


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    found = LocalHost(tmp_path)
    for name, text in FILES.items():
        found.write_file(Path(name), text, mode=0o600)
    found.symlink(Path("/var/lib/kubelet/pki/kubelet-client-current.pem"), "kubelet-client-2026.pem")
    return found


def gather(host: LocalHost) -> dict[str, Content]:
    return {
        f"/{content.entry.path.relative_to('/')}": content
        for content in node_content.gather_files(host, PATHS).contents
    }


def test_what_goes_in(host: LocalHost) -> None:
    assert sorted(gather(host)) == [
        "/etc/kubernetes/admin.conf",
        "/etc/kubernetes/manifests/.kube-scheduler.yaml.kb-former",
        "/etc/kubernetes/manifests/kube-apiserver.yaml",
        "/etc/kubernetes/manifests/notes.yaml",
        "/etc/kubernetes/patches/etcd.yaml",
        "/etc/kubernetes/pki/ca.crt",
        "/etc/kubernetes/pki/ca.key",
        "/etc/kubernetes/pki/front-proxy-ca.crt",
        "/etc/ssl/certs/oidc.pem",
        "/etc/systemd/system/kb-routes.service",
        "/opt/cluster/audit.yaml",
        "/opt/cluster/encryption/config.yaml",
        "/opt/kubelet/ca.crt",
        "/opt/kubelet/provider.yaml",
        "/opt/kubelet/serving.crt",
        "/opt/logs/README",
        "/var/lib/kb/state.json",
        "/var/lib/kubelet/config.yaml",
        "/var/lib/kubelet/kubeadm-flags.env",
        "/var/lib/kubelet/pki/kubelet-client-2026.pem",
        "/var/lib/kubelet/pki/kubelet-client-current.pem",
    ]


def test_modes_owners_and_links_are_kept(host: LocalHost, tmp_path: Path) -> None:
    (tmp_path / "etc/kubernetes/pki/ca.key").chmod(0o640)
    found = gather(host)
    key = found["/etc/kubernetes/pki/ca.key"].entry
    assert (key.mode, key.uid, key.size) == (0o640, os.geteuid(), 3)
    link = found["/var/lib/kubelet/pki/kubelet-client-current.pem"].entry
    assert (link.link, link.size) == ("kubelet-client-2026.pem", 0)


def test_what_a_link_leads_to_goes_in_too(host: LocalHost, tmp_path: Path) -> None:
    host.write_file(Path("/data/pki/ca.crt"), "elsewhere")
    host.remove_tree(Path("/etc/kubernetes/pki"))
    host.symlink(Path("/etc/kubernetes/pki"), "/data/pki")
    found = gather(host)
    assert found["/etc/kubernetes/pki"].entry.link == "/data/pki"
    assert "/data/pki/ca.crt" in found and "/etc/kubernetes/pki/ca.crt" not in found


def test_what_a_link_leads_to_in_the_system_stays_there(host: LocalHost) -> None:
    host.symlink(Path("/etc/kubernetes/system"), "/etc/ssl/certs")
    assert "/etc/ssl/certs/other.pem" not in gather(host)


def test_links_in_a_circle_end(host: LocalHost) -> None:
    host.symlink(Path("/etc/kubernetes/again"), "/etc/kubernetes")
    assert gather(host)["/etc/kubernetes/again"].entry.link == "/etc/kubernetes"


def test_certificates_elsewhere(host: LocalHost) -> None:
    host.write_file(Path("/srv/pki/ca.crt"), "ca")
    found = node_content.gather_files(host, Paths(pki=Path("/srv/pki")))
    assert Path("/srv/pki/ca.crt") in {content.entry.path for content in found.contents}
    assert "/srv/pki/ca.key: it is not on this node, since the CA is external" in found.missing


def test_what_is_missing_is_said(host: LocalHost) -> None:
    assert node_content.gather_files(host, PATHS).missing == [
        "/etc/kubernetes/pki/front-proxy-ca.key: it is not on this node, since the CA is external",
        "the key with which unix:///run/kms.sock encrypts Secrets: only that KMS plugin has it",
    ]


def test_what_is_too_large_is_said(host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_content, "MAX_FILE", 1 << 20)
    host.write_file(Path("/etc/kubernetes/huge"), b"x" * (2 << 20))
    found = node_content.gather_files(host, PATHS)
    assert found.missing[0] == "/etc/kubernetes/huge: it has 2 MiB"
    monkeypatch.setattr(node_content, "MAX_FILES", 3)
    found = node_content.gather_files(host, PATHS)
    assert len(found.contents) == 3 and any("too many" in text for text in found.missing)


def test_sockets_and_names_that_are_no_text_are_left_out(host: LocalHost, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "etc/kubernetes/pipe")
    (tmp_path / os.fsdecode(b"etc/kubernetes/\xff")).write_bytes(b"x")
    found = node_content.gather_files(host, PATHS)
    assert Path("/etc/kubernetes/pipe") not in {content.entry.path for content in found.contents}
    assert "its name is not UTF-8" in found.missing[0]


@pytest.mark.parametrize(
    "pod",
    [
        "spec: {}",
        "spec: {volumes: {}, containers: [1, {command: [a]}]}",
        "spec: {volumes: [{name: x, hostPath: 1}, {hostPath: {path: relative}}]}",
        "[]",
        "spec: {containers: [{volumeMounts: [{name: x}], command: [etcd, --data-dir=/x]}]}",
    ],
)
def test_a_manifest_of_any_form_breaks_nothing(host: LocalHost, pod: str) -> None:
    host.write_file(Path("/etc/kubernetes/manifests/odd.yaml"), pod)
    assert "/etc/kubernetes/admin.conf" in gather(host)
