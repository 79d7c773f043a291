"""kubeup/backup/restoring.py: what of a backup a machine gets, under another name and address too."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeup.addresses import replace_address
from kubeup.backup import restoring
from kubeup.backup.archive import About, Backup, Member, content_of, file_name, render_archive
from kubeup.backup.restoring import Place
from kubeup.errors import HostError
from kubeup.yaml_files import commands_of_pod, dump_yaml, flags_of, load_all_yaml, load_yaml
from tests.fake_control_plane import manifest

OLD, NEW = Place("cp1", "10.0.0.11"), Place("other", "10.0.0.110")
CLUSTER = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\ncontrolPlaneEndpoint: {endpoint}\nkubernetesVersion: v1.35.0\n"
FILES = {
    "/etc/kubernetes/pki/ca.crt": "ca", "/etc/kubernetes/pki/ca.key": "key", "/etc/kubernetes/pki/sa.key": "sa",
    "/etc/kubernetes/pki/etcd/ca.crt": "ca", "/etc/kubernetes/pki/etcd/ca.key": "key", "/etc/kubernetes/pki/etcd/peer.crt": "leaf",
    "/etc/kubernetes/pki/apiserver.crt": "leaf", "/etc/kubernetes/pki/front-proxy-ca.crt": "ca",
    "/etc/kubernetes/pki/front-proxy-ca.key": "key", "/etc/kubernetes/pki/audit/webhook.yaml": "extra",
    "/etc/kubernetes/admin.conf": "admin", "/etc/kubernetes/enc/config.yaml": "keys", "/etc/oidc/ca.pem": "oidc",
    "/var/lib/kubelet/config.yaml": "k", "/var/lib/kubelet/pki/kubelet-client-current.pem": "k", "/etc/containerd/config.toml": "c",
    "/var/lib/kb/state.json": "{}", "/etc/systemd/system/kubelet.service": "u", "/etc/cni/net.d/10-kb.conflist": "n",
}  # fmt: skip


def make_backup(
    *,
    endpoint: str = "",
    without: tuple[str, ...] = (),
    more_files: Optional[dict[str, str]] = None,
    stored: bool = True,
    snapshot: bool = True,
    **facts: Any,
) -> Backup:
    about = About(
        made="2026-11-29T23:14:07Z", kb="0.1.0", node="cp1", kubernetes="v1.35.6", etcd="3.6.6", address="10.0.0.11",
        members=(Member("1", "cp1", ("https://10.0.0.11:2380",)),), endpoint=endpoint,
    )  # fmt: skip
    about = About(**{**vars(about), **facts})
    files = {path: text for path, text in {**FILES, **(more_files or {})}.items() if path not in without}
    more = {
        "etcd": ("--name=cp1", "--initial-cluster=cp1=https://10.0.0.11:2380,cp2=https://10.0.0.12:2380", "--listen-peer-urls=https://10.0.0.11:2380"),
        "kube-apiserver": ("--encryption-provider-config=/etc/kubernetes/enc/config.yaml", "--oidc-ca-file=/etc/oidc/ca.pem", "--note=10.0.0.111,x10.0.0.11"),
    }  # fmt: skip
    for name in restoring.COMPONENTS:
        files[f"/etc/kubernetes/manifests/{name}.yaml"] = manifest(name, *more.get(name, ()))
    contents = [content_of(file_name(Path(path)), text.encode()) for path, text in files.items() if path not in without]
    if stored:
        config = {"data": {"ClusterConfiguration": CLUSTER.format(endpoint=endpoint or "''")}}
        kubelet = {
            "data": {"kubelet": "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 42\n"}
        }
        kb = {"data": {"podNetwork": "plugin: bridge\nbackend: auto\nmtu: 1400\n"}}
        for name, value in (("kubeadm-config", config), ("kubelet-config", kubelet), ("kb-config", kb)):
            contents.append(content_of(f"objects/{name}.yaml", dump_yaml(value).encode()))
    if snapshot:
        contents.append(content_of("etcd/snapshot.db", b"data"))
    return Backup(io.BytesIO(b"".join(render_archive(about, contents))), what="it")


def flags(backup: Backup, component: str, place: Place) -> dict[str, str]:
    command, *_ = commands_of_pod(load_yaml(restoring.move_manifest(backup, component, place=place)))
    return flags_of(command)


def test_a_pod_is_the_former_one_with_this_machine_s_addresses() -> None:
    backup = make_backup()
    found = flags(backup, "etcd", NEW)
    assert found["name"] == "other" and found["initial-cluster"] == "other=https://10.0.0.110:2380"
    assert found["initial-cluster-state"] == "existing" and found["listen-peer-urls"] == "https://10.0.0.110:2380"
    assert found["advertise-client-urls"] == "https://10.0.0.110:2379" and found["data-dir"] == "/var/lib/etcd"
    server = flags(backup, "kube-apiserver", NEW)
    assert server["advertise-address"] == "10.0.0.110" and server["oidc-ca-file"] == "/etc/oidc/ca.pem"
    assert server["note"] == "10.0.0.111,x10.0.0.11", "another address that only begins or ends alike"


def test_on_the_same_machine_a_pod_stays_but_for_lost_members() -> None:
    backup = make_backup()
    for name in restoring.COMPONENTS[1:]:
        assert load_yaml(restoring.move_manifest(backup, name, place=OLD)) == restoring.read_manifest(backup, name)
    assert flags(backup, "etcd", OLD)["initial-cluster"] == "cp1=https://10.0.0.11:2380"


@given(st.ip_addresses(), st.ip_addresses())
def test_an_address_is_replaced_wherever_it_stands(old: Any, new: Any) -> None:
    has = f"[{old}]" if old.version == 6 else str(old)
    wants = f"[{new}]" if new.version == 6 else str(new)
    text = replace_address(f"https://{has}:2379,{old}", str(old), new=str(new))
    if old.version == new.version:
        assert text == f"https://{wants}:2379,{new}"
    assert replace_address(f"{old}7", str(old), new=str(new)) == f"{old}7"


def test_the_files_of_another_machine_and_of_the_same() -> None:
    backup = make_backup()
    shared = {str(entry.path) for entry in restoring.select_files(backup, is_same=False)}
    assert shared == {
        "/etc/kubernetes/pki/ca.crt", "/etc/kubernetes/pki/ca.key", "/etc/kubernetes/pki/sa.key", "/etc/kubernetes/pki/etcd/ca.crt",
        "/etc/kubernetes/pki/etcd/ca.key", "/etc/kubernetes/pki/front-proxy-ca.crt", "/etc/kubernetes/pki/front-proxy-ca.key",
        "/etc/kubernetes/pki/audit/webhook.yaml", "/etc/kubernetes/enc/config.yaml", "/etc/oidc/ca.pem",
    }  # fmt: skip
    same = {str(entry.path) for entry in restoring.select_files(backup, is_same=True)}
    assert same - shared == {"/etc/kubernetes/pki/apiserver.crt", "/etc/kubernetes/pki/etcd/peer.crt"}
    external = make_backup(without=("/etc/kubernetes/pki/ca.key",))
    assert restoring.has_external_ca(external) and not restoring.has_external_ca(backup)
    same = {str(entry.path) for entry in restoring.select_files(external, is_same=True)}
    assert {"/etc/kubernetes/admin.conf", "/var/lib/kubelet/pki/kubelet-client-current.pem"} <= same


def test_a_backup_of_the_middle_of_a_rotation_has_what_its_controller_manager_signs_with() -> None:
    """Its manifest names that file, on another machine too."""
    path = "/etc/kubernetes/pki/ca-signing.crt"
    backup = make_backup(more_files={path: "cert"})
    assert path in {str(entry.path) for entry in restoring.select_files(backup, is_same=False)}


def test_static_pods_of_others_come_back_on_the_same_machine_alone() -> None:
    """A KMS plugin, without which no API server is ready; kube-vip, which names an interface of that machine."""
    others = {f"/etc/kubernetes/manifests/{name}.yaml": "pod" for name in ("kms-plugin", "kube-vip")}
    backup = make_backup(more_files={**others, "/etc/kubernetes/manifests/kb-load-balancer.yaml": "pod"})
    assert {str(entry.path) for entry in restoring.list_other_pods(backup)} == set(others)
    same = {str(entry.path) for entry in restoring.select_files(backup, is_same=True)}
    assert {path for path in same if "/manifests/" in path} == set(others)
    other = {str(entry.path) for entry in restoring.select_files(backup, is_same=False)}
    assert not [path for path in other if "/manifests/" in path]


def test_the_kms_plugins_that_a_restore_needs() -> None:
    kms = {"apiVersion": "v2", "name": "vault", "endpoint": "unix:///run/kms/vault.sock"}
    config = dump_yaml({"resources": [{"resources": ["secrets"], "providers": [{"kms": kms}, {"identity": {}}]}]})
    backup = make_backup(more_files={"/etc/kubernetes/enc/config.yaml": config})
    assert restoring.find_kms(backup) == ["unix:///run/kms/vault.sock"]
    assert restoring.find_kms(make_backup()) == []


def test_the_configuration_is_what_the_cluster_had_stored() -> None:
    documents = {
        one["kind"]: one
        for one in load_all_yaml(restoring.render_config(make_backup(endpoint="10.0.0.11:6443"), place=NEW))
    }
    cluster = documents["ClusterConfiguration"]
    assert cluster["kubernetesVersion"] == "v1.35.6" and cluster["controlPlaneEndpoint"] == "10.0.0.110:6443"
    assert documents["KubeletConfiguration"]["maxPods"] == 42
    assert documents["InitConfiguration"]["nodeRegistration"] == {"name": "other"}
    assert documents["InitConfiguration"]["localAPIEndpoint"] == {"advertiseAddress": "10.0.0.110", "bindPort": 6443}
    assert documents["KbConfiguration"]["podNetwork"] == {"plugin": "bridge", "backend": "auto", "mtu": 1400}


def test_without_stored_objects_the_pods_say_it() -> None:
    backup = make_backup(stored=False, endpoint="api.example.com:6443", etcd_data="/data/etcd")
    documents = {one["kind"]: one for one in load_all_yaml(restoring.render_config(backup, place=NEW))}
    cluster = documents["ClusterConfiguration"]
    assert cluster["controlPlaneEndpoint"] == "api.example.com:6443" and cluster["etcd"] == {
        "local": {"dataDir": "/data/etcd"}
    }
    assert documents["KbConfiguration"]["podNetwork"] == {"plugin": "none"}


@pytest.mark.parametrize(
    ("made", "code"),
    [
        ({"snapshot": False}, "backup-without-data"),
        ({"without": ("/etc/kubernetes/manifests/etcd.yaml",)}, "backup-without-manifests"),
        ({"etcd_kind": "external", "without": ("/etc/kubernetes/manifests/etcd.yaml",)}, "backup-external-etcd"),
        ({"etcd_kind": "external", "snapshot": False}, "backup-without-data"),
        ({"kubernetes": "v1.99.0"}, "release-unsupported"),
        ({"kubernetes": ""}, "release-unsupported"),
    ],
)
def test_what_cannot_be_restored(made: dict[str, Any], code: str) -> None:
    restoring.check_backup(make_backup(), what="it")
    with pytest.raises(HostError) as caught:
        restoring.check_backup(make_backup(**made), what="it")
    assert caught.value.code == code


def test_the_data_of_an_external_etcd_are_its_operator_s_to_restore() -> None:
    members = (Member("1", "own", (), ("https://10.0.0.5:2379", "https://10.0.0.6:2379")),)
    with pytest.raises(HostError) as caught:
        restoring.check_backup(make_backup(etcd_kind="external", members=members), what="/root/b.tar")
    assert "https://10.0.0.5:2379, https://10.0.0.6:2379" in caught.value.cause
    assert "tar -xf /root/b.tar etcd/snapshot.db" in caught.value.remedy and "--bump-revision" in caught.value.remedy


def test_another_minor_version_is_no_restore() -> None:
    about = make_backup().about
    restoring.check_version(about, "")
    restoring.check_version(about, "v1.35.2")
    for wanted, code in (("v1.34.9", "restore-older-version"), ("v1.36.0", "restore-newer-version")):
        with pytest.raises(HostError) as caught:
            restoring.check_version(about, wanted)
        assert caught.value.code == code
