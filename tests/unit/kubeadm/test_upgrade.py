"""`kubeadm upgrade` in kb: kubeadm's lines, refusals and folders around kb's own swap."""

from __future__ import annotations

import dataclasses
import io
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kubeup.engine.run import Results
from kubeup.errors import HostError, PreflightError, UsageError
from kubeup.kubeadm import upgrade, upgrade_phases
from kubeup.kubeadm.lines import KubeadmReport
from kubeup.kubeadm.upgrade_phases import KubeadmUpgrade
from kubeup.node import image_pulls
from kubeup.paths import Paths
from kubeup.phases import addons, static_pods_swap
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.swap import store
from tests.fake_control_plane import FORMER, ControlPlane, Gone, as_files, make_control_plane, manifests_of
from tests.plans import do
from tests.unit.phases.cluster_case import fake, made, make_context
from tests.unit.swap.swap_case import make_swap_run, set_stage

PATHS = Paths()
NEW = {name: text.replace("v1.35.6", "v1.36.3") for name, text in FORMER.items()}
STAMP = "2026-11-30-03-09-00"
KUBELET = Path("/var/lib/kubelet")
TMP = Path("/etc/kubernetes/tmp")


def make_run(
    tmp_path: Path, *, minor: int = 36, kubeadm: str = "v1.36.3", version: str = "v1.36.3", **more: Any
) -> tuple[KubeadmUpgrade, io.StringIO]:
    ctx = make_context(tmp_path, minor=minor - 1)
    do(addons.plan_coredns, ctx)
    out = io.StringIO()
    config = replace(ctx.config, cluster=replace(ctx.config.cluster, kubernetes_version=version))
    given = {one.name: getattr(ctx, one.name) for one in fields(ctx)}  # type: ignore[arg-type]
    given.update(config=config, release=RELEASES[minor], report=KubeadmReport(io.StringIO(), out=out))
    given.update(texts=(), agree=lambda text: None, former=f"v1.{minor - 1}.6", is_first=True)
    given.update(kubeadm_version=kubeadm, cluster_version=f"v1.{minor - 1}.6", stamp=STAMP, asks=False)
    return KubeadmUpgrade(**{**given, **more}), out


# ---- preflight


def check(run: KubeadmUpgrade, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = image_pulls.ImagesResult((), ())
    monkeypatch.setattr(image_pulls, "ensure_images", lambda *args, **more: pulled)
    monkeypatch.setattr(static_pods_swap, "check_swap", lambda ctx: None)
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        run.host.write_file(run.paths.manifest(name), "kind: Pod\n")
    upgrade_phases.check_apply(run)


def test_the_checks_say_what_kubeadm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = make_run(tmp_path)
    check(run, monkeypatch)
    assert out.getvalue().splitlines()[:6] == [
        "[upgrade/preflight] Running preflight checks",
        "[upgrade] Running cluster health checks",
        '[upgrade/preflight] You have chosen to upgrade the cluster version to "v1.36.3"',
        "[upgrade/versions] Cluster version: v1.35.6",
        "[upgrade/versions] kubeadm version: v1.36.3",
        "[upgrade/preflight] Pulling images required for setting up a Kubernetes cluster",
    ]


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"cluster_version": "v1.34.9"}, "fatal errors.* is too high; kubeadm can upgrade only 1 minor version"),
        ({"kubeadm": "v1.35.6"}, "fatal errors.*higher than the kubeadm minor release"),
        ({"kubeadm": "v1.36.1"}, "these errors.*Upgrade kubeadm first"),
    ],
)
def test_kubeadm_s_rules_of_versions_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wishes: dict[str, Any], told: str
) -> None:
    run, _ = make_run(tmp_path, **wishes)
    with pytest.raises(UsageError) as caught:
        check(run, monkeypatch)
    assert re.search(told, str(caught.value), re.DOTALL)


def test_force_goes_past_what_can_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = make_run(tmp_path, kubeadm="v1.36.1", force=True)
    check(run, monkeypatch)
    assert "Found 1 potential version compatibility errors but skipping since the --force flag is set" in out.getvalue()


def test_what_is_not_well_is_one_of_kubeadm_s_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = make_run(tmp_path)
    found = made(run, "ConfigMap")["coredns"]["data"]
    found["Corefile"] = found["Corefile"].replace("loadbalance", "loadbalance\n    fanout . 1.1.1.1")
    with pytest.raises(PreflightError) as caught:
        check(run, monkeypatch)
    assert caught.value.details[0].startswith("[ERROR CoreDNSUnsupportedPlugins]: ")
    check(replace(run, ignored=("CoreDNSUnsupportedPlugins",)), monkeypatch)
    node = {
        "metadata": {"name": "cp1", "labels": {"node-role.kubernetes.io/control-plane": ""}},
        "status": {"conditions": [{"type": "Ready", "status": "False"}]},
    }
    fake(run).objects["/api/v1/nodes/cp1"] = node
    with pytest.raises(PreflightError) as caught:
        check(replace(run, ignored=("CoreDNSUnsupportedPlugins",)), monkeypatch)
    assert "[ERROR ControlPlaneNodesReady]: there are NotReady control-planes in the cluster: [cp1]" in str(
        caught.value.details
    )


@pytest.mark.parametrize(("answer", "goes_on"), [("y\n", True), ("YES\n", True), ("n\n", False), ("", False)])
def test_it_asks_unless_told_not_to(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    goes_on: bool,
) -> None:
    run, _ = make_run(tmp_path, asks=True)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    if goes_on:
        check(run, monkeypatch)
    else:
        with pytest.raises(UsageError, match="won't proceed"):
            check(run, monkeypatch)
    assert "[upgrade] Are you sure you want to proceed? [y/N]: " in capsys.readouterr().out


# ---- a swap that was killed


def cut_off(*, is_kubeadms: bool) -> ControlPlane:
    host = make_control_plane()
    if is_kubeadms:
        host.files[str(upgrade_phases.folder_mark(PATHS))] = b""
    host.dies_after = len(host.changes) + 16
    with pytest.raises(Gone):
        static_pods_swap.swap_pods(make_swap_run(host, NEW))
    host.revive()
    assert store.load_cut_off(host, PATHS)  # type: ignore[arg-type]
    return host


def continue_it(host: ControlPlane, *, version: str) -> None:
    command = SimpleNamespace(workflow="upgrade-apply", name="upgrade apply")
    call = SimpleNamespace(command=command, words=(version,), flags={}, report=Report(io.StringIO()))
    launch: Any = SimpleNamespace(local=host, target=host, call=call, is_dry=False)
    upgrade._continue_swap(launch, version=version)


def test_a_swap_that_was_killed_under_this_name_is_ended_by_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    set_stage(monkeypatch)
    host = cut_off(is_kubeadms=True)
    continue_it(host, version="v1.36.3")
    assert manifests_of(host) == as_files(NEW)


@pytest.mark.parametrize(("is_kubeadms", "version"), [(False, "v1.36.3"), (True, "v1.37.0")])
def test_another_command_s_swap_is_left_to_it(is_kubeadms: bool, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_stage(monkeypatch)
    host = cut_off(is_kubeadms=is_kubeadms)
    with pytest.raises(HostError) as caught:
        continue_it(host, version=version)
    assert caught.value.code == "swap-cut-off"


# ---- the kubelet's files


def test_the_kubelet_s_configuration_is_kept_in_kubeadm_s_folder(tmp_path: Path) -> None:
    run, out = make_run(tmp_path)
    run.host.write_file(KUBELET / "config.yaml", "old: true\n")
    run.host.write_file(
        KUBELET / "kubeadm-flags.env",
        'KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix:///run/x.sock --node-ip=10.0.0.11"\n',
    )
    upgrade_phases.write_kubelet_config(run)
    kept = TMP / f"kubeadm-kubelet-config-{STAMP}" / "config.yaml"
    assert run.host.read_text(kept) == "old: true\n"
    modes = [run.host.stat(path).mode & 0o777 for path in (TMP, kept.parent)]  # type: ignore[union-attr]
    assert modes == [0o700, 0o700]
    assert run.host.stat(kept).mode & 0o777 == 0o644, "as the file itself"  # type: ignore[union-attr]
    assert "clusterDNS" in run.host.read_text(KUBELET / "config.yaml")
    assert run.host.read_text(KUBELET / "kubeadm-flags.env") == 'KUBELET_KUBEADM_ARGS="--node-ip=10.0.0.11"\n'
    assert "containerRuntimeEndpoint" in run.host.read_text(KUBELET / "instance-config.yaml")
    told = out.getvalue().splitlines()
    assert told[0] == f"[upgrade] Backing up kubelet config file to {kept}"
    assert told[-2:] == [
        '[kubelet-start] Writing kubelet configuration to file "/var/lib/kubelet/config.yaml"',
        "[upgrade/kubelet-config] The kubelet configuration for this node was successfully upgraded!",
    ]


@pytest.mark.parametrize(("minor", "stays"), [(34, True), (35, False), (36, False)])
def test_a_flag_that_the_new_kubelet_lacks_goes(tmp_path: Path, minor: int, stays: bool) -> None:
    run, out = make_run(tmp_path, minor=minor, version=f"v1.{minor}.0")
    path = KUBELET / "kubeadm-flags.env"
    text = 'KUBELET_KUBEADM_ARGS="--pod-infra-container-image=pause:3.10 --node-ip=10.0.0.11"\n'
    run.host.write_file(path, text)
    upgrade_phases.remove_unwanted_flags(run)
    assert (run.host.read_text(path) == text) is stays
    if not stays:
        assert run.host.read_text(path) == 'KUBELET_KUBEADM_ARGS="--node-ip=10.0.0.11"\n'
        kept = re.search(r"\[upgrade\] Backing up kubelet env file to (\S+)", out.getvalue())
        assert kept and run.host.read_text(Path(kept[1])) == text
    told = out.getvalue()
    upgrade_phases.remove_unwanted_flags(run)
    assert out.getvalue() == told


# ---- the rest


def test_a_worker_is_told_what_is_left_out(tmp_path: Path) -> None:
    run, out = make_run(tmp_path)
    run = replace(run, config=replace(run.config, join=_worker()))
    assert not run.config.is_control_plane
    upgrade_phases.check_node(run)
    upgrade_phases.swap_control_plane(run)
    for phase in upgrade_phases.NODE:
        if phase.name.startswith("addon/") or phase.name == "kubeconfig":
            assert phase.plan is not None and not list(phase.plan(run).items())
            phase.after(run, Results(), 0.0)
    assert out.getvalue().splitlines() == [
        "[upgrade/preflight] Running pre-flight checks",
        "[upgrade/preflight] Skipping prepull. Not a control plane node.",
        "[upgrade/control-plane] Skipping phase. Not a control plane node.",
        "[upgrade/kubeconfig] Skipping phase. Not a control plane node.",
        "[upgrade/addon] Skipping the addon/coredns phase. Not a control plane node.",
        "[upgrade/addon] Skipping the addon/kube-proxy phase. Not a control plane node.",
    ]


def _worker() -> Any:
    from kubeup.config.types import Join

    return Join("https://10.0.0.11:6443", "CA")


def test_the_phases_are_kubeadm_s_in_kubeadm_s_order() -> None:
    assert [phase.name for phase in upgrade_phases.APPLY] == [
        "preflight", "control-plane", "upload-config/kubeadm", "upload-config/kubelet", "kubeconfig", "kubelet-config",
        "bootstrap-token", "addon/coredns", "addon/kube-proxy", "post-upgrade",
    ]  # fmt: skip
    assert [phase.name for phase in upgrade_phases.NODE] == [
        "preflight", "control-plane", "kubeconfig", "kubelet-config", "addon/coredns", "addon/kube-proxy", "post-upgrade",
    ]  # fmt: skip
    hidden = {phase.name for phase in (*upgrade_phases.APPLY, *upgrade_phases.NODE) if phase.hidden}
    assert hidden == {"kubeconfig"} and dataclasses.is_dataclass(KubeadmUpgrade)
