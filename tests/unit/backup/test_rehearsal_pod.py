"""kubeup/backup/rehearsal_pod.py: the API server of a backup, without what calls out."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from kubeup.backup import archive, rehearsal_pod
from kubeup.backup.archive import Backup, Content, Entry, content_of
from kubeup.errors import HostError
from kubeup.secret import Secret
from tests.unit.backup.test_archive import ABOUT
from tests.unit.backup.test_node_content import ENCRYPTION, MANIFEST

TOKEN = Secret("t0k")
FLAGS = (
    "--advertise-address=10.0.0.11", "--secure-port=443", "--etcd-servers=https://127.0.0.1:2379", "--etcd-prefix=/prod",
    "--authorization-mode=Node,RBAC", "--authorization-config=/enc/a.yaml", "--authentication-config=/enc/b.yaml",
    "--audit-webhook-config-file=/enc/c", "--authentication-token-webhook-config-file=/enc/d", "--oidc-issuer-url=https://x",
    "--egress-selector-config-file=/enc/e", "--cloud-provider=external", "--admission-control-config-file=/enc/f",
    "--enable-admission-plugins=NodeRestriction,ImagePolicyWebhook", "--feature-gates=A=true", "--tls-cert-file=/etc/kubernetes/pki/apiserver.crt",
    "--service-account-key-file=/etc/kubernetes/pki/sa.pub", "--tracing-config-file=/enc/g", "--bind-address=0.0.0.0",
)  # fmt: skip
KEPT = {"--etcd-prefix=/prod", "--feature-gates=A=true", "--service-account-key-file=/etc/kubernetes/pki/sa.pub"}


def backup_of(*contents: Content, manifest: str = MANIFEST) -> Backup:
    files = (content_of(rehearsal_pod.MANIFEST, manifest.encode()), *contents)
    return Backup(io.BytesIO(b"".join(archive.render_archive(ABOUT, files))), what="b.tar")


def file(path: str, text: str = "x") -> Content:
    return content_of(archive.file_name(Path(path)), text.encode())


def link(path: str, target: str) -> Content:
    return Content(Entry(archive.file_name(Path(path)), mode=0o777, link=target))


def with_flags(*flags: str) -> str:
    lines = "".join(f"    - {flag}\n" for flag in flags)
    return re.sub(r"(    - kube-apiserver\n)(?:    - --.*\n)+", rf"\1{lines}", MANIFEST)


def test_what_calls_out_or_asks_others_is_taken_out() -> None:
    pod = rehearsal_pod.plan_pod(backup_of(manifest=with_flags(*FLAGS)), token=TOKEN)
    assert pod.argv[0] == "kube-apiserver"
    assert {word for word in pod.argv if word in FLAGS} == KEPT
    assert "--etcd-servers=http://127.0.0.1:2379" in pod.argv and "--authorization-mode=AlwaysAllow" in pod.argv
    names = [word.partition("=")[0] for word in pod.argv]
    assert len(names) == len(set(names))
    assert "t0k" not in " ".join(pod.argv)
    assert pod.files[Path("/kb-tokens.csv")] == b't0k,kb,kb,"system:masters"\n'


def test_who_signs_tokens_elsewhere_is_not_asked() -> None:
    flags = ("--service-account-signing-endpoint=/run/signer.sock", "--service-account-issuer=https://x")
    pod = rehearsal_pod.plan_pod(backup_of(manifest=with_flags(*flags)), token=TOKEN)
    assert {word for word in pod.argv if "service-account" in word} == {
        "--service-account-issuer=https://x",
        "--service-account-signing-key-file=/kb-sa.key",
        "--service-account-key-file=/kb-sa.key",
    }, "an API server without a key to sign with does not start"
    assert (Path("/kb-sa.key"), "/kb-sa.key") in pod.mounts
    assert b"PRIVATE KEY" in pod.files[Path("/kb-sa.key")]


def test_it_sees_what_its_manifest_mounts_as_far_as_the_backup_has_it() -> None:
    backup = backup_of(
        file("/opt/cluster/encryption/config.yaml", "keys"),
        file("/etc/kubernetes/pki/sa.pub"),
        file("/etc/kubernetes/admin.conf"),
    )
    pod = rehearsal_pod.plan_pod(backup, token=TOKEN)
    assert pod.mounts == (
        (Path("/opt/cluster/encryption"), "/enc"),
        (Path("/etc/kubernetes/pki"), "/etc/kubernetes/pki"),
        (Path("/kb-tokens.csv"), "/kb-tokens.csv"),
    )
    assert Path("/etc/kubernetes/admin.conf") not in pod.files
    assert pod.files[Path("/opt/cluster/encryption/config.yaml")] == b"keys"


def test_links_are_replaced_by_what_they_lead_to() -> None:
    backup = backup_of(
        link("/etc/kubernetes/pki", "/data/pki"),
        file("/data/pki/ca.crt", "ca"),
        link("/data/pki/sa.pub", "sa-2026.pub"),
        file("/data/pki/sa-2026.pub", "sa"),
        link("/data/pki/again", "/data/pki"),
    )
    files = rehearsal_pod.plan_pod(backup, token=TOKEN).files
    assert files[Path("/etc/kubernetes/pki/ca.crt")] == b"ca" and files[Path("/etc/kubernetes/pki/sa.pub")] == b"sa"


def test_a_kms_plugin_is_not_waited_for() -> None:
    pod = rehearsal_pod.plan_pod(backup_of(file("/opt/cluster/encryption/config.yaml", ENCRYPTION)), token=TOKEN)
    assert pod.kms == ("unix:///run/kms.sock",)
    assert not any("encryption-provider-config" in word for word in pod.argv)
    plain = ENCRYPTION.replace("  - kms: {apiVersion: v2, name: vault, endpoint: unix:///run/kms.sock}\n", "")
    pod = rehearsal_pod.plan_pod(backup_of(file("/opt/cluster/encryption/config.yaml", plain)), token=TOKEN)
    assert pod.kms == () and "--encryption-provider-config=/enc/config.yaml" in pod.argv


@pytest.mark.parametrize("manifest", ["", "[]", "a: [", "spec: {containers: []}", "spec: {containers: [{name: x}]}"])
def test_a_backup_without_an_api_server(manifest: str) -> None:
    with pytest.raises(HostError) as caught:
        rehearsal_pod.plan_pod(backup_of(manifest=manifest), token=TOKEN)
    assert caught.value.code == "rehearsal-failed"
