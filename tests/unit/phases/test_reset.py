"""reset stops and removes what kb set up, and nothing of a cluster that somebody else made on the node."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from kubeup.cluster.etcd import EtcdRefused
from kubeup.engine.run import ResetRun
from kubeup.engine.state import PhaseState, State, load_state
from kubeup.errors import ClusterError, HostError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from kubeup.node import machine_before
from kubeup.paths import Paths
from kubeup.phases import kernel, kubelet_start, node_leftovers, reset
from kubeup.report import Report
from tests.fake_host import FakeHost
from tests.plans import do, is_done
from tests.unit.cluster.test_etcd import EtcdHost

SOCKET = "unix:///var/run/containerd/containerd.sock"
MANIFEST = "/etc/kubernetes/manifests/etcd.yaml"


def make_context(phases: dict[str, PhaseState]) -> ResetRun:
    """A node with a running kubelet and one pod, and a state that says what kb did there."""
    host = FakeHost(programs={"systemctl", "crictl"}, dirs={"/run/systemd/system"}, mounts=["/var/lib/kubelet/pods/x"])
    host.files[MANIFEST] = b"kind: Pod\n"
    host.files["/var/run/containerd/containerd.sock"] = b""
    pods = ["a1"]

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        if "rmp" in argv:
            pods.clear()
        return CommandResult(argv, 0, "\n".join(pods) if "pods" in argv else "")

    host.answers = {"systemctl": "", "crictl": crictl}
    host.accepts = {"systemctl stop kubelet", "umount /var/lib/kubelet/pods/x"}
    State(host, Paths(), node="cp1", phases=phases).save()
    host.changes.clear()
    return ResetRun(host=host, paths=Paths(), report=Report(io.StringIO()), cri_socket=SOCKET)


def run_until_files(ctx: ResetRun) -> list[str]:
    do(kubelet_start.plan_stopped_kubelet, ctx)
    do(kubelet_start.plan_no_pods, ctx)
    do(kubelet_start.plan_no_mounts, ctx)
    assert isinstance(ctx.host, FakeHost)
    return ctx.host.changes


@pytest.mark.parametrize(
    "phases",
    [
        {"init/preflight": PhaseState("failed")},
        {"init/install/sysctls": PhaseState("done", created=["/etc/sysctl.d/90-kb.conf"])},
    ],
)
def test_the_cluster_of_somebody_else_runs_on(phases: dict[str, PhaseState]) -> None:
    """kb init was refused on a node that kubeadm made: reset must not stop that node's kubelet and pods."""
    assert run_until_files(make_context(phases)) == []


@pytest.mark.parametrize("made", [MANIFEST, "/var/lib/kubelet/config.yaml"])
def test_kb_s_own_kubelet_is_stopped_with_its_pods_and_mounts(made: str) -> None:
    changes = run_until_files(make_context({"init/kubelet-start": PhaseState("running", created=[made])}))
    assert changes[0] == "run systemctl stop kubelet"
    assert any("crictl" in change and "a1" in change for change in changes)
    assert changes[-1] == "run umount /var/lib/kubelet/pods/x"


def test_a_refused_run_has_changed_no_file() -> None:
    for phase, has_changed in (
        (PhaseState("failed"), False),
        (PhaseState("done", created=["/a"]), True),
        (PhaseState("done", backups=[{"path": "/a", "copy": "/var/lib/kb/backups/x/0-a"}]), True),
    ):
        ctx = make_context({"init/preflight": phase})
        assert load_state(ctx.host, ctx.paths).has_changed_files() is has_changed


@pytest.mark.parametrize("needed", [True, False])
def test_a_member_that_etcd_does_not_let_go(needed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cluster would die of it, reset stops before anything is changed; else it says so and goes on."""
    ctx = make_context({"init/etcd/local": PhaseState("done", created=[MANIFEST])})
    refused = EtcdRefused("cluster member remove", "https://10.0.0.12:2379", message="etcdserver: unhealthy cluster")

    def leave(ctx: ResetRun, manifest: object) -> None:
        raise refused

    monkeypatch.setattr(reset, "leave_etcd", leave)
    monkeypatch.setattr(reset, "_others_need_it", lambda ctx, manifest: needed)
    if not needed:
        reset.remove_etcd_member(ctx)
        assert "may still be in the list" in ctx.report.warnings[0]
        return
    with pytest.raises(ClusterError) as caught:
        reset.remove_etcd_member(ctx)
    assert caught.value.code == "etcd-would-stop" and "unhealthy cluster" in caught.value.cause
    assert "--skip-phases remove-etcd-member" in caught.value.remedy
    assert isinstance(ctx.host, FakeHost) and ctx.host.changes == []


def test_who_is_asked_whether_the_others_need_it() -> None:
    """Of two members that serve, each is needed; where no answer comes there is nothing to lose."""
    manifest = Path(MANIFEST)
    args = ["--advertise-client-urls=https://10.0.0.12:2379", "--initial-cluster=cp1=https://10.0.0.11:2380"]
    pod = {"spec": {"containers": [{"command": ["etcd", *args]}]}}
    members = [
        {"ID": str(number), "name": f"cp{number}", "peerURLs": [f"https://10.0.0.1{number}:2380"],
         "clientURLs": [f"https://10.0.0.1{number}:2379"]}
        for number in (1, 2)
    ]  # fmt: skip
    host = EtcdHost(members={url: {"cluster/member/list": (200, {"members": members})} for url in
                             ("https://10.0.0.11:2379", "https://10.0.0.12:2379")})  # fmt: skip
    host.files[MANIFEST] = json.dumps(pod).encode()
    for name in ("ca.crt", "healthcheck-client.crt", "healthcheck-client.key"):
        host.files[f"/etc/kubernetes/pki/etcd/{name}"] = b"x"
    ctx = replace(make_context({}), host=host)
    assert reset._others_need_it(ctx, manifest)
    del host.members["https://10.0.0.11:2379"]
    assert not reset._others_need_it(ctx, manifest), "one of two: it does not serve now"
    host.members.clear()
    assert not reset._others_need_it(ctx, manifest)


@pytest.mark.parametrize(
    "text",
    ["", "[" * 1000, "a: [1", "- a", "kind: Pod\n", "spec: {containers: 1}", "spec: {volumes: [x], containers: [{command: x}]}",
     "spec: {volumes: [{name: etcd-data}]}", "a: &a {b: *a}"],
)  # fmt: skip
def test_a_damaged_manifest_of_etcd_does_not_keep_the_node(text: str) -> None:
    ctx = make_context({"init/etcd/local": PhaseState("done", created=[MANIFEST])})
    assert isinstance(ctx.host, FakeHost)
    ctx.host.files[MANIFEST] = text.encode()
    reset.remove_etcd_member(ctx)
    assert MANIFEST in ctx.report.warnings[0] and "may still be in the list" in ctx.report.warnings[0]
    assert reset.find_etcd_data(ctx, reset.read_etcd_pod(ctx)) == Path("/var/lib/etcd")


def made_kubelet() -> dict[str, PhaseState]:
    return {"init/kubelet-start": PhaseState("done", created=["/var/lib/kubelet/config.yaml"])}


def test_a_runtime_that_does_not_run_is_told_at_once_with_a_way_on() -> None:
    ctx = make_context(made_kubelet())
    assert isinstance(ctx.host, FakeHost)
    del ctx.host.files["/var/run/containerd/containerd.sock"]
    with pytest.raises(HostError) as caught:
        do(kubelet_start.plan_no_pods, ctx)
    assert caught.value.code == "runtime-not-ready" and "--skip-phases cleanup-node/remove-pods" in caught.value.remedy
    assert ctx.host.ticks < 5, "nothing was waited for"


def test_the_kubelet_s_own_root_is_emptied_too() -> None:
    ctx = make_context(made_kubelet())
    assert isinstance(ctx.host, FakeHost)
    ctx.host.files["/var/lib/kubelet/kubeadm-flags.env"] = b'KUBELET_KUBEADM_ARGS="--root-dir=/data/kubelet"\n'
    ctx.host.files["/data/kubelet/pods/x/etc-hosts"] = b""
    ctx.host.files["/data/kubelet/admins-own"] = b""
    ctx.host.mounts.append("/data/kubelet/pods/x/volumes/token")
    mounts = ("/var/lib/kubelet/pods/x", "/data/kubelet/pods/x/volumes/token")
    ctx.host.accepts = {*(f"umount {mount}" for mount in mounts)}
    do(kubelet_start.plan_no_mounts, ctx)
    assert "run umount /data/kubelet/pods/x/volumes/token" in ctx.host.changes
    ctx.host.mounts.clear()
    do(kubelet_start.plan_no_kubelet_data, ctx)
    assert not [name for name in ctx.host.files if name.startswith("/data/kubelet/pods")]
    assert "/data/kubelet/admins-own" in ctx.host.files


def test_every_unit_that_kb_made_is_stopped_and_no_other() -> None:
    """By the journal: what a step starts is taken back without reset knowing the step."""
    folder = Paths().systemd
    names = ("kb-mirror.service", "kb-of-tomorrow.service", "mine.service")
    made = [str(folder / name) for name in names[:2]] + [
        str(folder / "gone.service"),
        str(folder / "kb-mirror.service.d"),
    ]
    ctx = make_context({"init/install/mirror": PhaseState("done", created=made)})
    assert isinstance(ctx.host, FakeHost)
    for name in names:
        ctx.host.files[str(folder / name)] = b"[Unit]\n"
    ctx.host.accepts = {f"systemctl disable --now {name}" for name in names[:2]}
    do(reset.plan_no_services, ctx)
    assert ctx.host.changes == [f"run systemctl disable --now {name}" for name in names[:2]]


# ---- what programs leave


def test_rules_and_traces_go_only_with_a_kubelet_of_kb_s() -> None:
    for phases, is_of_kb in ((made_kubelet(), True), ({"init/preflight": PhaseState("failed")}, False)):
        ctx = make_context(phases)
        assert isinstance(ctx.host, FakeHost)
        ctx.host.answers["nft list tables"] = "table ip kube-proxy\n"
        ctx.host.files["/sys/fs/cgroup/cpu/kubepods/cgroup.procs"] = b""
        ctx.host.accepts = {"nft delete table ip kube-proxy", "rmdir /sys/fs/cgroup/cpu/kubepods"}
        do(node_leftovers.plan_no_service_rules, ctx)
        do(node_leftovers.plan_no_traces, ctx)
        assert bool(ctx.host.changes) is is_of_kb


def remember(settings: dict[str, str]) -> dict[str, PhaseState]:
    found = json.dumps({"settings": settings, "absent": ["/var/lib/cni"], "bridges": [], "links": [], "logs": {}})
    entry = PhaseState("done", compensations=[{"kind": machine_before.KIND, "found": found}])
    return {"init/install/sysctls": entry, **made_kubelet()}


def test_settings_and_folders_go_back_to_what_the_state_says() -> None:
    ctx = make_context(remember({"kernel.panic": "0"}))
    assert isinstance(ctx.host, FakeHost)
    ctx.host.files["/proc/sys/kernel/panic"] = b"10\n"
    ctx.host.dirs.add("/var/lib/cni")
    ctx.host.accepts = {"sysctl -w kernel.panic=0"}
    assert not is_done(kernel.plan_former_settings, ctx) and not is_done(node_leftovers.plan_no_traces, ctx)
    do(kernel.plan_former_settings, ctx)
    do(node_leftovers.plan_no_traces, ctx)
    assert ctx.host.changes == ["run sysctl -w kernel.panic=0", "remove /var/lib/cni"]


def test_without_a_record_settings_stay_and_reset_says_so() -> None:
    ctx = make_context(made_kubelet())
    (note,) = kernel.plan_former_settings(ctx).notes
    assert "it is not known what they were before kb" in note
    adopted = make_context({})
    State(adopted.host, adopted.paths, adopted=["/var/lib/kubelet/config.yaml"]).save()
    assert kernel.plan_former_settings(adopted).notes == ()


# ---- another network's pods


def test_pods_that_another_networks_programs_do_not_let_go_end_without_them() -> None:
    """Those programs may be gone, or wait for a daemon that ended as a pod of this node."""
    ctx = make_context(made_kubelet())
    host = ctx.host
    assert isinstance(host, FakeHost)
    ending, pods = "/etc/cni/net.d/-kb-ending.conflist", ["a1"]
    host.files["/etc/cni/net.d/10-flannel.conflist"] = b"{}"
    host.files["/etc/cni/net.d/99-kb-bridge.conflist"] = b"kb's"

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        if "pods" in argv:
            return CommandResult(argv, 0, "\n".join(pods))
        if host.files.get(ending) != b"kb's":
            return CommandResult(argv, 1, stderr='failed to find plugin "flannel" in path [/opt/cni/bin]')
        if "rmp" in argv:
            pods.clear()
        return CommandResult(argv, 0)

    host.answers["crictl"] = crictl
    do(kubelet_start.plan_no_pods, ctx)
    assert pods == [] and ending not in host.files, "it goes again"
    assert host.files["/etc/cni/net.d/10-flannel.conflist"] == b"{}"
    del host.files["/etc/cni/net.d/10-flannel.conflist"]
    pods.append("a2")
    with pytest.raises(HostError) as caught:
        do(kubelet_start.plan_no_pods, ctx)
    assert caught.value.code == "pods-not-removed" and ending not in host.files, (
        "with kb's own network it is no other's fault"
    )


# ---- the last control plane


@pytest.mark.parametrize(
    ("others", "answers", "is_last"),
    [((), True, True), (("2",), True, False), ((), False, True), (("2",), False, False)],
)
def test_the_last_control_plane_is_known_even_if_etcd_is_silent(
    others: tuple[str, ...], answers: bool, is_last: bool
) -> None:
    api_server = "/etc/kubernetes/manifests/kube-apiserver.yaml"
    numbers = ("1", *others)
    members = [
        {"ID": number, "name": f"cp{number}", "peerURLs": [f"https://10.0.0.1{number}:2380"],
         "clientURLs": [f"https://10.0.0.1{number}:2379"]}
        for number in numbers
    ]  # fmt: skip
    initial = ",".join(f"cp{number}=https://10.0.0.1{number}:2380" for number in numbers)
    args = ["--advertise-client-urls=https://10.0.0.11:2379", f"--initial-cluster={initial}"]
    url = "https://10.0.0.11:2379"
    host = EtcdHost(members={url: {"cluster/member/list": (200, {"members": members})}} if answers else {})
    host.files[MANIFEST] = json.dumps({"spec": {"containers": [{"command": ["etcd", *args]}]}}).encode()
    for name in ("ca.crt", "healthcheck-client.crt", "healthcheck-client.key"):
        host.files[f"/etc/kubernetes/pki/etcd/{name}"] = b"x"
    ctx = replace(make_context({}), host=host)
    assert not reset.is_last_control_plane(ctx, "cp1"), "kb made no API server here"
    State(host, Paths(), node="cp1", phases={"init/a": PhaseState("done", created=[api_server, MANIFEST])}).save()
    assert reset.is_last_control_plane(ctx, "cp1") is is_last


def test_a_control_plane_that_was_taken_out_of_the_cluster_is_not_its_last_one() -> None:
    """Its etcd has ended, and its manifest names the first member alone, which is itself."""
    host = EtcdHost(members={})
    command = ["etcd", "--advertise-client-urls=https://10.0.0.11:2379", "--initial-cluster=cp1=https://10.0.0.11:2380"]
    host.files[MANIFEST] = json.dumps({"spec": {"containers": [{"command": command}]}}).encode()
    for name in ("ca.crt", "healthcheck-client.crt", "healthcheck-client.key"):
        host.files[f"/etc/kubernetes/pki/etcd/{name}"] = b"x"
    ctx = replace(make_context({}), host=host)
    made = ["/etc/kubernetes/manifests/kube-apiserver.yaml", MANIFEST]
    State(host, Paths(), node="cp1", phases={"init/a": PhaseState("done", created=made)}).save()
    assert reset.is_last_control_plane(ctx, "cp1")
    host.files["/etc/kubernetes/admin.conf"] = ADMIN_CONF
    for names, is_last in ((("cp2", "cp3"), False), (("cp1",), True), ((), True)):
        items = [{"metadata": {"name": name}} for name in names]
        url = "https://kb-api.cluster.local:7443/api/v1/nodes?labelSelector=node-role.kubernetes.io%2Fcontrol-plane"
        host.urls[url] = HttpResponse(200, json.dumps({"items": items}).encode())
        assert reset.is_last_control_plane(ctx, "cp1") is is_last
    # its own load balancer does not run yet, and names the others
    host.urls.clear()
    host.files["/etc/kubernetes/kb-load-balancer/haproxy.cfg"] = b"  server cp2 10.0.0.12:6443 check\n"
    assert reset.is_last_control_plane(ctx, "cp1")
    items = [{"metadata": {"name": "cp2"}}]
    host.urls[f"https://10.0.0.12:6443{url.partition(':7443')[2]}"] = HttpResponse(
        200, json.dumps({"items": items}).encode()
    )
    assert not reset.is_last_control_plane(ctx, "cp1")


ADMIN_CONF = b"""
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://kb-api.cluster.local:7443"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""
