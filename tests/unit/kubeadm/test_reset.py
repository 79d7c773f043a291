"""kubeadm's reset: it asks, leaves the etcd cluster, empties kubeadm's folders, and touches nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from kubeup.config.load_reset import load_reset_config
from kubeup.config.types import ResetConfiguration
from kubeup.errors import HostError, PreflightError, UsageError
from kubeup.kubeadm import reset as kubeadm_reset
from kubeup.kubeadm.lines import KubeadmReport
from kubeup.kubeadm.reset import KubeadmReset
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.host import CommandResult, Host
from kubeup.machine.http import HttpResponse
from kubeup.paths import Paths
from tests.fake_host import FakeHost
from tests.fake_node import finished_node

SOCKET = "unix:///var/run/containerd/containerd.sock"
ETCD = """\
kind: Pod
spec:
  containers:
  - command: [etcd, --advertise-client-urls=https://10.0.0.11:2379, --initial-advertise-peer-urls=https://10.0.0.11:2380]
  volumes:
  - {name: etcd-data, hostPath: {path: /data/etcd}}
"""
LIST = "https://10.0.0.11:2379/v3/cluster/member/list"
REMOVE = "POST https://10.0.0.12:2379/v3/cluster/member/remove"


def member(number: int) -> dict[str, Any]:
    address = f"https://10.0.0.{number}"
    return {
        "ID": f"{number}",
        "name": f"cp{number}",
        "peerURLs": [f"{address}:2380"],
        "clientURLs": [f"{address}:2379"],
    }


OWN, OTHER = member(11), member(12)


def make_host() -> FakeHost:
    host = finished_node()
    host.programs, host.dirs = {"systemctl", "crictl"}, {"/run/systemd/system"}
    host.answers = {"systemctl": "", "crictl": ""}
    host.accepts = {"systemctl stop kubelet"}
    host.files.update(
        {
            "/etc/kubernetes/manifests/etcd.yaml": ETCD.encode(),
            "/data/etcd/member/wal/0": b"x",
            "/var/lib/kubelet/config.yaml": b"a: b",
            "/etc/kubernetes/tmp/x": b"x",
            "/etc/cni/net.d/10.conflist": b"mine",
            "/var/run/containerd/containerd.sock": b"",
        }
    )
    return host


def make_context(host: Host, **wishes: Any) -> tuple[KubeadmReset, io.StringIO, io.StringIO]:
    said, told = io.StringIO(), io.StringIO()
    reset = ResetConfiguration(force=True, **wishes) if "force" not in wishes else ResetConfiguration(**wishes)
    report = KubeadmReport(told, out=said)
    return (
        KubeadmReset(host=host, paths=Paths(), report=report, cri_socket=SOCKET, wishes=reset),
        said,
        told,
    )


def with_members(host: FakeHost, *members: dict[str, Any]) -> None:
    host.urls[LIST] = HttpResponse(200, json.dumps({"members": members}).encode())
    host.urls[REMOVE] = HttpResponse(200, b"{}")
    for item in members:
        host.urls[f"{item['clientURLs'][0]}/v3/maintenance/status"] = HttpResponse(200, b"{}")


# ---- asking


@pytest.mark.parametrize("answer", ["", "n\n", "maybe\n"])
def test_without_a_yes_nothing_is_done(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    host = make_host()
    ctx, _, _ = make_context(host, force=False)
    with pytest.raises(UsageError, match="won't proceed"):
        kubeadm_reset.ask(ctx)
    assert host.changes == []


@pytest.mark.parametrize("answer", ["y\n", "YES\n"])
def test_a_yes_goes_on(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    ctx, said, _ = make_context(make_host(), force=False)
    kubeadm_reset.ask(ctx)
    assert said.getvalue() == "[preflight] Running pre-flight checks\n"


def test_only_root_may() -> None:
    host = make_host()
    host.root_user = False
    ctx, _, _ = make_context(host)
    with pytest.raises(PreflightError) as caught:
        kubeadm_reset.ask(ctx)
    assert "[ERROR IsPrivilegedUser]" in caught.value.details[0]


# ---- etcd


def test_one_of_several_members_is_taken_out_and_its_data_emptied() -> None:
    host = make_host()
    with_members(host, OWN, OTHER)
    ctx, said, _ = make_context(host)
    kubeadm_reset.remove_etcd_member(ctx)
    assert REMOVE in host.changes
    assert said.getvalue() == "[reset] Deleted contents of the etcd data directory: /data/etcd\n"
    assert not [name for name in host.files if name.startswith("/data/etcd/")]


@pytest.mark.parametrize("members", [(OWN,), (OTHER, member(13))])
def test_the_last_member_and_one_that_is_gone_are_not_asked_for(members: tuple[dict[str, Any], ...]) -> None:
    host = make_host()
    with_members(host, *members)
    kubeadm_reset.remove_etcd_member(make_context(host)[0])
    assert REMOVE not in host.changes and "/data/etcd/member/wal/0" not in host.files


def test_an_etcd_that_refuses_is_told_and_the_rest_is_done() -> None:
    host = make_host()
    host.urls[LIST] = HttpResponse(503, b'{"message": "no leader"}')
    ctx, _, told = make_context(host)
    kubeadm_reset.remove_etcd_member(ctx)
    assert "Failed to remove etcd member" in told.getvalue() and "no leader" in told.getvalue()
    assert "/data/etcd/member/wal/0" not in host.files


def test_without_etcd_there_is_nothing_to_leave() -> None:
    host = make_host()
    del host.files["/etc/kubernetes/manifests/etcd.yaml"]
    ctx, said, _ = make_context(host)
    kubeadm_reset.remove_etcd_member(ctx)
    assert "Assuming external etcd" in said.getvalue() and "/data/etcd/member/wal/0" in host.files


# ---- the node


def test_folders_are_emptied_and_stay_and_others_files_too() -> None:
    host = make_host()
    ctx, said, _ = make_context(host)
    kubeadm_reset.clean_up(ctx)
    assert host.changes[0] == "run systemctl stop kubelet"
    assert not [name for name in host.files if name.startswith(("/etc/kubernetes/pki/", "/var/lib/kubelet/"))]
    assert {"/etc/cni/net.d/10.conflist", "/etc/kubernetes/tmp/x"} <= set(host.files)
    assert not [name for name in host.files if name.endswith(".conf")]
    lines = said.getvalue().splitlines()
    assert lines[0] == "[reset] Stopping the kubelet service"
    folders = "[/etc/kubernetes/manifests /var/lib/kubelet /etc/kubernetes/pki]"
    assert f"[reset] Deleting contents of directories: {folders}" in lines


def test_the_temporary_folder_goes_on_wish() -> None:
    host = make_host()
    kubeadm_reset.clean_up(make_context(host, cleanup_tmp_dir=True)[0])
    assert "/etc/kubernetes/tmp/x" not in host.files


def test_a_mount_that_does_not_let_go_stops_it_before_anything_is_deleted() -> None:
    host = make_host()
    host.mounts = ["/var/lib/kubelet/pods/a"]
    host.answers["umount -l /var/lib/kubelet/pods/a"] = CommandResult(("umount",), 32, stderr="target is busy")
    ctx, _, _ = make_context(host, unmount_flags=("MNT_DETACH",))
    with pytest.raises(HostError) as caught:
        kubeadm_reset.clean_up(ctx)
    assert caught.value.code == "mount-in-the-way" and "target is busy" in caught.value.cause
    assert "run umount -l /var/lib/kubelet/pods/a" in host.changes
    assert "/etc/kubernetes/pki/ca.key" in host.files


def test_a_dry_run_changes_nothing() -> None:
    host = make_host()
    ctx, said, _ = make_context(DryRunHost(host), dry_run=True)
    kubeadm_reset.remove_etcd_member(ctx)
    kubeadm_reset.clean_up(ctx)
    assert host.changes == []
    assert {line.split("]")[0] for line in said.getvalue().splitlines()} == {"[dryrun"}


# ---- what is wished for


def test_flags_count_more_than_the_file() -> None:
    text = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ResetConfiguration\nforce: false\nunmountFlags: [MNT_FORCE]\n"
    text += "certificatesDir: /pki\nignorePreflightErrors: [Swap]\n"
    host = FakeHost(files={"reset.yaml": text.encode()})
    given = {"force": True, "ignore-preflight-errors": ["NumCPU"]}
    found = load_reset_config(host, config_file=Path("reset.yaml"), flags=given)
    assert (found.force, found.certificates_dir, found.unmount_flags) == (True, "/pki", ("MNT_FORCE",))
    assert found.ignore_preflight_errors == ("swap", "numcpu")
    with pytest.raises(UsageError) as caught:
        load_reset_config(host, config_file=Path("reset.yaml"), flags={"cert-dir": "/x"})
    assert caught.value.code == "mixed-flags"


def test_a_file_without_a_reset_is_refused() -> None:
    host = FakeHost(files={"x.yaml": b"apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n"})
    with pytest.raises(UsageError, match="configures no reset"):
        load_reset_config(host, config_file=Path("x.yaml"), flags={})


@pytest.mark.parametrize("socket", ["unix:/run/crio/crio.sock", "UNIX:///run/crio/crio.sock", "/run/crio/crio.sock"])
def test_every_form_of_a_socket_is_taken_from_flags_and_files(socket: str) -> None:
    text = f"apiVersion: kubeadm.k8s.io/v1beta4\nkind: ResetConfiguration\ncriSocket: {socket}\n"
    host = FakeHost(files={"reset.yaml": text.encode()})
    for found in (
        load_reset_config(host, config_file=None, flags={"cri-socket": socket}),
        load_reset_config(host, config_file=Path("reset.yaml"), flags={}),
    ):
        assert found.cri_socket == "unix:///run/crio/crio.sock"
