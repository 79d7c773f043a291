from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.config.types import Arg, ExternalEtcd, LocalEtcd, NodeConfig
from kubeup.engine.run import Run
from kubeup.errors import HostError, UsageError
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.host import CommandResult, Host
from kubeup.machine.http import HttpResponse
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths
from kubeup.phases import certs, control_plane, kubelet_start
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_host import KUBELET_STARTS, FakeHost
from tests.plans import do, is_done
from tests.unit.cluster.discovery_case import make_ca
from tests.unit.golden import golden_config, golden_text

KUBELET_DIR = "/var/lib/kubelet"
CONFIG, FLAGS, INSTANCE = (
    f"{KUBELET_DIR}/{name}" for name in ("config.yaml", "kubeadm-flags.env", "instance-config.yaml")
)
UNIT, DROP_IN = "/etc/systemd/system/kubelet.service", "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf"
PEM = f"{KUBELET_DIR}/pki/kubelet-client-current.pem"
KUBELET_CONF = "/etc/kubernetes/kubelet.conf"
CA_DIRS = {"/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"}


class SystemdHost(FakeHost):
    """A machine with systemd, whose kubelet runs once it was restarted."""

    def run(self, argv: Any, **rest: Any) -> CommandResult:
        result = super().run(argv, **rest)
        if tuple(argv) == ("systemctl", "restart", "kubelet") and result.ok:
            self.answers["systemctl is-active kubelet"] = "active\n"
        if tuple(argv) == ("systemctl", "enable", "--no-reload", "kubelet") and result.ok:
            self.answers["systemctl is-enabled kubelet"] = "enabled\n"
        return result


def systemd_host(**fields: Any) -> SystemdHost:
    host = SystemdHost(
        host_name="cp1", programs={"systemctl", "kubelet"}, dirs={"/run/systemd/system"}, accepts=KUBELET_STARTS
    )
    host.answers["systemctl is-active kubelet"] = CommandResult(("systemctl",), 3, "inactive\n")
    for name, value in fields.items():
        getattr(host, name).update(value)
    return host


def context(host: Host, config: Optional[NodeConfig] = None, *, minor: int = 35) -> Run:
    config = config or golden_config(minor)
    return Run(
        host=host, paths=Paths(), config=config, release=RELEASES[minor], report=Report(io.StringIO(), verbosity=2)
    )


def log_of(ctx: Run) -> str:
    assert isinstance(ctx.report.stream, io.StringIO)
    return ctx.report.stream.getvalue()


# ---- manifests


@pytest.mark.parametrize("component", control_plane.PLANS)
def test_manifest_phase_writes_what_kubeadm_writes_once(component: str) -> None:
    plan = control_plane.PLANS[component]
    host = FakeHost(dirs=set(CA_DIRS))
    ctx = context(host)
    assert not is_done(plan, ctx)
    do(plan, ctx)
    path = f"/etc/kubernetes/manifests/{component}.yaml"
    assert host.files[path].decode() == golden_text(35, f"manifests/{component}.yaml")
    assert (host.modes[path], host.modes["/etc/kubernetes/manifests"]) == (0o600, 0o700)
    assert is_done(plan, ctx)
    host.changes.clear()
    do(plan, ctx)
    assert host.changes == []


@pytest.mark.parametrize("component", control_plane.PLANS)
def test_a_manifest_that_was_edited_or_opened_is_not_current(component: str) -> None:
    plan = control_plane.PLANS[component]
    host = FakeHost()
    ctx = context(host)
    do(plan, ctx)
    path = f"/etc/kubernetes/manifests/{component}.yaml"
    host.modes[path] = 0o644
    assert not is_done(plan, ctx)
    host.modes[path] = 0o600
    assert is_done(plan, ctx)
    host.files[path] += b"# a comment is no other pod\n"
    assert is_done(plan, ctx)
    host.files[path] += b"mine: true\n"
    assert not is_done(plan, ctx)


def test_a_new_ca_folder_on_the_host_makes_the_manifest_stale() -> None:
    host = FakeHost()
    ctx = context(host)
    do(control_plane.plan_apiserver, ctx)
    host.dirs.add("/etc/pki/ca-trust")
    assert not is_done(control_plane.plan_apiserver, ctx)


def test_etcd_data_folder_is_private_and_part_of_being_done() -> None:
    host = FakeHost()
    ctx = context(host, golden_config(local_etcd=LocalEtcd(data_dir="/srv/etcd")))
    do(control_plane.plan_etcd, ctx)
    assert host.modes["/srv/etcd"] == 0o700
    host.dirs.remove("/srv/etcd")
    assert not is_done(control_plane.plan_etcd, ctx)


def test_external_etcd_leaves_nothing_to_do() -> None:
    host = FakeHost()
    ctx = context(host, golden_config(local_etcd=None, external_etcd=ExternalEtcd(("https://e:2379",))))
    assert is_done(control_plane.plan_etcd, ctx)
    do(control_plane.plan_etcd, ctx)
    assert host.changes == []


def test_a_joining_member_is_written_with_all_members() -> None:
    host = FakeHost()
    rows = (("cp0", "https://10.77.0.10:2380"), ("cp1", "u"))
    ctx = context(host)
    do(lambda run: control_plane.plan_etcd_member(run, rows), ctx)
    text = host.files["/etc/kubernetes/manifests/etcd.yaml"].decode()
    assert "--initial-cluster=cp0=https://10.77.0.10:2380,cp1=u\n" in text
    # what it was told when it was started first stays, and is no difference
    assert is_done(control_plane.plan_etcd, ctx)
    do(control_plane.plan_etcd, ctx)
    assert load_yaml(host.files["/etc/kubernetes/manifests/etcd.yaml"].decode()) == load_yaml(text)


def test_an_external_ca_is_found_on_the_node() -> None:
    host = FakeHost()
    ctx = context(host, golden_config(encryption_algorithm="ECDSA-P256"))
    do(certs.plan_ca, ctx)
    do(control_plane.plan_controller_manager, ctx)
    path = "/etc/kubernetes/manifests/kube-controller-manager.yaml"
    assert b"--cluster-signing-key-file=/etc/kubernetes/pki/ca.key\n" in host.files[path]
    del host.files["/etc/kubernetes/pki/ca.key"]
    assert not is_done(control_plane.plan_controller_manager, ctx)
    do(control_plane.plan_controller_manager, ctx)
    assert b"--cluster-signing-key-file=\n" in host.files[path]


def test_patches_are_in_the_manifest_in_the_probe_and_in_the_log() -> None:
    host = FakeHost(files={"/p/kube-scheduler.yaml": b"metadata: {annotations: {a: b}}", "/p/notes.txt": b""})
    ctx = context(host, replace(golden_config(), patches_directory="/p"))
    do(control_plane.plan_scheduler, ctx)
    written = load_yaml(host.files["/etc/kubernetes/manifests/kube-scheduler.yaml"].decode())
    assert written["metadata"]["annotations"] == {"a": "b"}
    assert is_done(control_plane.plan_scheduler, ctx)
    assert "applied the strategic patch /p/kube-scheduler.yaml to kube-scheduler" in log_of(ctx)
    do(control_plane.plan_controller_manager, ctx)
    assert ctx.report.warnings == ["/p/notes.txt is not a patch: its name does not end in .yaml or .json"]
    host.files["/p/kube-scheduler.yaml"] = b"metadata: {annotations: {a: c}}"
    assert not is_done(control_plane.plan_scheduler, ctx)


# ---- kubelet-start


def test_kubelet_start_writes_all_and_starts_in_order() -> None:
    host = systemd_host()
    ctx = context(host)
    assert not is_done(kubelet_start.plan_kubelet, ctx)
    do(kubelet_start.plan_kubelet, ctx)
    assert host.changes == [
        "mkdir /etc/kubernetes/manifests",
        f"mkdir {KUBELET_DIR}",
        f"write {FLAGS}",
        f"write {INSTANCE}",
        f"write {CONFIG}",
        f"write {UNIT}",
        f"write {DROP_IN}",
        "run systemctl daemon-reload",
        "run systemctl restart kubelet",
        "run systemctl enable --no-reload kubelet",
    ]
    for name in ("config.yaml", "kubeadm-flags.env", "instance-config.yaml"):
        assert host.files[f"{KUBELET_DIR}/{name}"].decode() == golden_text(35, f"kubelet/{name}")
        assert host.modes[f"{KUBELET_DIR}/{name}"] == 0o644
    assert host.modes[KUBELET_DIR] == 0o700
    assert host.modes["/etc/kubernetes/manifests"] == 0o700, (
        "a kubelet that starts without it misses the first manifests"
    )
    assert b"ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS" in host.files[DROP_IN]


def test_kubelet_start_again_changes_nothing() -> None:
    host = systemd_host()
    ctx = context(host)
    do(kubelet_start.plan_kubelet, ctx)
    host.changes.clear()
    assert is_done(kubelet_start.plan_kubelet, ctx)
    do(kubelet_start.plan_kubelet, ctx)
    assert host.changes == []


def test_a_changed_file_stops_writes_and_restarts() -> None:
    host = systemd_host()
    do(kubelet_start.plan_kubelet, context(host))
    host.changes.clear()
    changed = context(host, replace(golden_config(), kubelet={"maxPods": 250}))
    assert not is_done(kubelet_start.plan_kubelet, changed)
    do(kubelet_start.plan_kubelet, changed)
    assert host.changes == [
        "run systemctl stop kubelet",
        f"write {CONFIG}",
        "run systemctl daemon-reload",
        "run systemctl restart kubelet",
    ]


def test_a_certificate_of_another_cluster_is_put_aside_by_init_too() -> None:
    host = systemd_host(files={"/etc/kubernetes/pki/ca.crt": make_ca().encode(), PEM: make_ca("another").encode()})
    ctx = context(host)
    do(kubelet_start.plan_kubelet, ctx)
    assert PEM not in host.files and "is not from this cluster" in log_of(ctx)
    assert is_done(kubelet_start.plan_kubelet, ctx)
    host.files[PEM] = make_ca("another").encode()
    assert not is_done(kubelet_start.plan_kubelet, ctx)
    do(kubelet_start.plan_kubelet, ctx)
    assert PEM not in host.files
    host.files[PEM] = host.files["/etc/kubernetes/pki/ca.crt"]
    do(kubelet_start.plan_kubelet, ctx)
    assert PEM in host.files


def test_a_stopped_kubelet_is_started_though_its_files_are_right() -> None:
    host = systemd_host()
    ctx = context(host)
    do(kubelet_start.plan_kubelet, ctx)
    host.answers["systemctl is-active kubelet"] = CommandResult(("systemctl",), 3, "failed\n")
    host.changes.clear()
    assert not is_done(kubelet_start.plan_kubelet, ctx)
    do(kubelet_start.plan_kubelet, ctx)
    assert "run systemctl restart kubelet" in host.changes
    assert not [change for change in host.changes if change.startswith("write")]


def test_a_package_keeps_its_unit_and_its_drop_in() -> None:
    package = {
        "/usr/lib/systemd/system/kubelet.service": b"[Service]\nExecStart=/usr/bin/kubelet\n",
        "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": b"EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env",
    }
    host = systemd_host(files=package)
    do(kubelet_start.plan_kubelet, context(host))
    assert UNIT not in host.files
    assert DROP_IN not in host.files
    assert host.changes[-1] == "run systemctl enable --no-reload kubelet"


def test_a_unit_of_kb_is_kept_up_to_date() -> None:
    host = systemd_host()
    ctx = context(host)
    do(kubelet_start.plan_kubelet, ctx)
    host.files[UNIT] = b"an older kb's"
    assert is_done(kubelet_start.plan_kubelet, ctx), "a unit of others is not looked at"
    ctx = replace(ctx, owned_paths=frozenset({UNIT, DROP_IN}))
    assert not is_done(kubelet_start.plan_kubelet, ctx)
    do(kubelet_start.plan_kubelet, ctx)
    assert b"ExecStart=/usr/bin/kubelet\n" in host.files[UNIT]


def test_kubelet_patches_are_in_the_file_but_the_socket_is_the_nodes() -> None:
    host = systemd_host(files={"/p/kubeletconfiguration.yaml": b"maxPods: 9\ncontainerRuntimeEndpoint: unix:///x"})
    ctx = context(host, replace(golden_config(), patches_directory="/p"))
    do(kubelet_start.plan_kubelet, ctx)
    written = load_yaml(host.files[CONFIG].decode())
    assert written["maxPods"] == 9
    assert written["containerRuntimeEndpoint"] == "unix:///var/run/containerd/containerd.sock"
    assert "maxPods" not in kubelet_start.shared_kubelet_config(ctx).document
    assert "applied the strategic patch /p/kubeletconfiguration.yaml to kubeletconfiguration" in log_of(ctx)


def test_a_patch_that_no_kubelet_could_read_is_refused_before_anything_is_written() -> None:
    host = systemd_host(files={"/p/kubeletconfiguration.yaml": b"kubeReserved: {cpu: 1}\nfeatureGates: {X: 'true'}\n"})
    with pytest.raises(UsageError) as caught:
        do(kubelet_start.plan_kubelet, context(host, replace(golden_config(), patches_directory="/p")))
    assert caught.value.code == "patch-failed"
    assert [line.split(";")[0] for line in caught.value.details] == [
        'featureGates.X: must be true or false, not the text "true"',
        "kubeReserved.cpu: must be a text, not the number 1",
    ]
    assert CONFIG not in host.files


def test_systemd_resolved_decides_on_resolv_conf() -> None:
    host = systemd_host(answers={"systemctl is-active systemd-resolved": "active\n"})
    do(kubelet_start.plan_kubelet, context(host))
    assert load_yaml(host.files[CONFIG].decode())["resolvConf"] == "/run/systemd/resolve/resolv.conf"


def test_conflicting_values_are_warned_of() -> None:
    ctx = context(systemd_host(), replace(golden_config(), kubelet={"clusterDomain": "mine"}))
    do(kubelet_start.plan_kubelet, ctx)
    assert len(ctx.report.warnings) == 1
    assert "clusterDomain" in ctx.report.warnings[0]


def test_a_kubelet_that_does_not_start_is_an_error_with_its_reason() -> None:
    host = systemd_host()
    host.answers["systemctl restart kubelet"] = CommandResult(
        ("systemctl",), 1, "", "Unit kubelet.service is masked.\n"
    )
    with pytest.raises(HostError) as raised:
        do(kubelet_start.plan_kubelet, context(host))
    error = raised.value
    assert (error.code, error.cause) == ("kubelet-not-started", "Unit kubelet.service is masked.")
    assert error.what == "systemctl restart kubelet ended with code 1"


def test_a_kubelet_that_cannot_be_enabled_is_a_warning() -> None:
    host = systemd_host()
    host.answers["systemctl enable --no-reload kubelet"] = CommandResult(
        ("systemctl", "enable", "--no-reload", "kubelet"), 1, "", "Read-only"
    )
    ctx = context(host)
    do(kubelet_start.plan_kubelet, ctx)
    assert ctx.report.warnings == [
        "the kubelet does not start at boot: systemctl enable --no-reload kubelet: Read-only"
    ]


def test_no_kubelet_on_the_node() -> None:
    host = systemd_host()
    host.programs.remove("kubelet")
    with pytest.raises(HostError) as raised:
        do(kubelet_start.plan_kubelet, context(host))
    assert raised.value.code == "kubelet-missing"
    assert host.changes == [], "nothing was stopped or written"


def test_openrc() -> None:
    host = FakeHost(host_name="cp1", programs={"openrc", "rc-service", "rc-update", "kubelet"})
    host.accepts = {"rc-service kubelet restart", "rc-update add kubelet default"}
    host.answers["rc-service kubelet status"] = CommandResult(("rc-service",), 3, " * status: stopped\n")
    ctx = context(host)
    do(kubelet_start.plan_kubelet, ctx)
    assert [change for change in host.changes if change.startswith("run")] == [
        "run rc-service kubelet restart",
        "run rc-update add kubelet default",
    ]
    assert UNIT not in host.files
    host.answers["rc-service kubelet status"] = " * status: started\n"
    assert is_done(kubelet_start.plan_kubelet, ctx)


def test_without_a_service_manager_the_command_is_told() -> None:
    host = FakeHost(host_name="cp1", programs={"systemctl", "kubelet"})  # systemctl, but no systemd
    with pytest.raises(HostError) as raised:
        do(kubelet_start.plan_kubelet, context(host))
    assert raised.value.code == "no-init-system"
    assert "/usr/bin/kubelet --bootstrap-kubeconfig=" in raised.value.remedy
    assert CONFIG in host.files
    assert UNIT not in host.files


def test_without_a_service_manager_a_healthy_kubelet_is_enough() -> None:
    host = FakeHost(host_name="cp1", programs={"kubelet"})
    host.urls["http://127.0.0.1:10248/healthz"] = HttpResponse(200, b"ok")
    ctx = context(host)
    do(kubelet_start.plan_kubelet, ctx)
    assert "keeps its old files" in ctx.report.notes[0]


def test_a_folder_gets_all_files_and_no_command_runs(tmp_path: Path) -> None:
    host = LocalHost(tmp_path)
    ctx = context(host, golden_config())
    do(kubelet_start.plan_kubelet, ctx)
    assert b"KUBELET_KUBEADM_ARGS" in (tmp_path / "etc/systemd/system/kubelet.service.d/10-kubeadm.conf").read_bytes()
    assert (tmp_path / "etc/systemd/system/kubelet.service").exists()
    assert host.deferred == [
        "systemctl daemon-reload",
        "systemctl restart kubelet",
        "systemctl enable --no-reload kubelet",
    ]
    assert load_yaml((tmp_path / CONFIG[1:]).read_text())["clusterDNS"] == ["10.96.0.10"]
    ctx = replace(ctx, owned_paths=frozenset({UNIT, DROP_IN}))
    assert is_done(kubelet_start.plan_kubelet, ctx)


def test_a_folder_with_openrc_gets_no_unit(tmp_path: Path) -> None:
    for name in ("openrc", "rc-service", "rc-update"):
        program = tmp_path / "sbin" / name
        program.parent.mkdir(exist_ok=True)
        program.touch(mode=0o755)
    host = LocalHost(tmp_path)
    do(kubelet_start.plan_kubelet, context(host))
    assert host.deferred == ["rc-service kubelet restart", "rc-update add kubelet default"]
    assert not (tmp_path / "etc/systemd").exists()


def test_a_dry_run_without_a_service_manager_says_so() -> None:
    ctx = context(DryRunHost(FakeHost(host_name="cp1")))
    do(kubelet_start.plan_kubelet, ctx)
    assert "has to be started by other means" in ctx.report.notes[0]


def test_dry_run_plans_files_and_commands_and_changes_nothing() -> None:
    host = systemd_host()
    host.programs.remove("kubelet")
    plan = DryRunHost(host)
    do(kubelet_start.plan_kubelet, context(plan))
    assert host.changes == []
    assert [one.what for one in plan.plan if one.kind == "run"] == [
        "systemctl daemon-reload",
        "systemctl restart kubelet",
        "systemctl enable --no-reload kubelet",
    ]
    assert f"{CONFIG} (0644)" in [one.what for one in plan.plan]


def test_taints_and_node_ip_come_only_where_they_are_asked_for() -> None:
    config = golden_config()
    config = replace(config, node=replace(config.node, kubelet_extra_args=(Arg("node-ip", "10.77.0.11,fd00::11"),)))
    ctx = context(systemd_host(), config)
    files = kubelet_start.render_kubelet_files(ctx, kubelet_start.shared_kubelet_config(ctx))
    assert files[Path(FLAGS)] == 'KUBELET_KUBEADM_ARGS="--node-ip=10.77.0.11,fd00::11"\n'


# ---- kubelet-finalize


def kubelet_conf(**user: str) -> bytes:
    document = load_yaml(golden_text(35, "kubelet/kubelet.conf"))
    document["users"][0]["user"] = user
    return dump_yaml(document).encode()


def test_rotation_points_kubelet_conf_to_the_pem_and_restarts() -> None:
    fresh = kubelet_conf(**{"client-certificate-data": "Yw==", "client-key-data": "aw=="})
    host = systemd_host(files={KUBELET_CONF: fresh, PEM: b"pem"})
    host.modes[KUBELET_CONF] = 0o600
    host.answers["systemctl show kubelet --property"] = "LoadState=loaded\nNeedDaemonReload=no\n"
    ctx = context(host)
    assert not is_done(kubelet_start.plan_client_cert_rotation, ctx)
    do(kubelet_start.plan_client_cert_rotation, ctx)
    assert host.files[KUBELET_CONF].decode() == golden_text(35, "kubelet/kubelet.conf")
    assert host.changes == [f"write {KUBELET_CONF}", "run systemctl restart kubelet"]
    assert is_done(kubelet_start.plan_client_cert_rotation, ctx)
    host.changes.clear()
    do(kubelet_start.plan_client_cert_rotation, ctx)
    assert host.changes == []


def test_a_kubelet_conf_that_shows_the_pem_keeps_its_own_form() -> None:
    text = b"# mine\n" + golden_text(35, "kubelet/kubelet.conf").encode()
    host = systemd_host(files={KUBELET_CONF: text, PEM: b"pem"})
    host.modes[KUBELET_CONF] = 0o600
    ctx = context(host)
    assert is_done(kubelet_start.plan_client_cert_rotation, ctx)
    do(kubelet_start.plan_client_cert_rotation, ctx)
    assert host.changes == []


def test_without_a_pem_nothing_is_done() -> None:
    host = systemd_host(files={KUBELET_CONF: kubelet_conf(token="t")})
    ctx = context(host)
    assert is_done(kubelet_start.plan_client_cert_rotation, ctx)
    do(kubelet_start.plan_client_cert_rotation, ctx)
    assert host.changes == []
    assert PEM in log_of(ctx)


@pytest.mark.parametrize("text", [b"kind: Config\n", b"[", b"a: b\ncontexts: 3\n"])
def test_a_damaged_kubelet_conf_is_named(text: bytes) -> None:
    host = systemd_host(files={KUBELET_CONF: text, PEM: b"pem"})
    with pytest.raises(HostError) as raised:
        do(kubelet_start.plan_client_cert_rotation, context(host))
    assert raised.value.code == "kubelet-conf-damaged"
    assert KUBELET_CONF in raised.value.what


def test_a_bad_patches_folder_stops_before_anything_is_done() -> None:
    host = systemd_host()
    with pytest.raises(UsageError):
        do(kubelet_start.plan_kubelet, context(host, replace(golden_config(), patches_directory="/missing")))
    assert host.changes == []


@pytest.mark.parametrize(
    ("shown", "reloads"),
    [
        ("LoadState=loaded\nNeedDaemonReload=no\n", False),
        (
            "LoadState=loaded\nNeedDaemonReload=yes\nDropInPaths=/run/systemd/system/kubelet.service.d/10-kubeadm.conf\n",
            True,
        ),
        ("LoadState=not-found\nNeedDaemonReload=no\n", True),
        ("", True),
        # what systemd says of a drop-in in a folder that it has not heard of
        ("LoadState=loaded\nNeedDaemonReload=no\nDropInPaths=\n", True),
        ("LoadState=loaded\nNeedDaemonReload=no\nDropInPaths=/usr/lib/systemd/system/kubelet.service.d/0.conf\n", True),
    ],
)
def test_systemd_reads_its_units_again_where_they_differ_from_the_disk(shown: str, reloads: bool) -> None:
    drop_in = "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf"
    host = systemd_host(files={drop_in: b"[Service]\n"})
    if not reloads:
        shown += f"DropInPaths=/run/systemd/system/kubelet.service.d/1.conf {drop_in}\n"
    host.answers["systemctl show kubelet --property"] = shown
    kubelet_start.restart_kubelet(context(host))
    wanted = ["run systemctl daemon-reload"] * reloads + ["run systemctl restart kubelet"]
    assert [change for change in host.changes if change.startswith("run")] == wanted
