"""Reset undoes everything that kb did on a node, without knowing any phase (docs/adr/0015-undo.md): files by the journal, and everything
else by a plan in the phase's module."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

import kb
from kubeup.airgap import distro_packages
from kubeup.engine.run import ResetRun
from kubeup.engine.state import PhaseState, State
from kubeup.engine.step import plan_skips
from kubeup.machine.host import CommandResult
from kubeup.node import runtime
from kubeup.paths import Paths
from kubeup.phases import install_programs, kubelet_start, reset
from kubeup.report import Report
from tests.fake_host import FakeHost
from tests.plans import do, is_done

PACKAGE = Path(kb.__file__).parent / "kubeup"
SERVICES = {"run", "enable", "start_own_unit", "stop_own_unit", "forget_removed_units"}
NOTHING_STAYS, A_REBOOT = "nothing stays", "a reboot"
TAKEN_BACK = {
    "cleanup-node/stop-kubelet": (
        "phases/kubelet_start.py:enable_kubelet",
        "phases/kubelet_start.py:restart_kubelet",
    ),
    "cleanup-node/remove-pod-network": (
        "network/forwarding.py:_ensure_in_iptables",
        "network/forwarding.py:_ensure_in_nft",
        "network/masquerade.py:_ensure_iptables",
        "network/masquerade.py:_ensure_nft",
        "network/node_routes.py:_run_all",
        "network/pod_view.py:OwnNamespace",
        "network/pod_view.py:_run_plugin",
        "network/step_aside.py:raise_bridge",
    ),
    "cleanup-node/remove-service-route": ("phases/kernel.py:ServiceRoute",),
    "cleanup-node/release-packages": (  # the packages themselves stay
        "airgap/distro_packages.py:_run",
        "airgap/distro_packages.py:install",
        "airgap/distro_packages.py:hold",
    ),
    "cleanup-node/release-images": ("node/kept_images.py:keep",),
    "cleanup-node/stop-services": (
        "engine/items.py:Unit",
        "phases/install_programs.py:_ensure_runtime_runs",
        "phases/own_timer.py:plan_no_timer",
        "phases/tried_swap.py:start_unit",
    ),
    "cleanup-node/remove-runtime-data": ("node/image_pulls.py:pull_image",),  # a runtime of others keeps its images
    "cleanup-node/remove-etcd-data": ("node/etcd_data.py:_copy",),
    "cleanup-node/take-back-files": ("node/runtime_fix.py:_restart",),
    "cleanup-node/restore-settings": ("engine/items.py:Sysctl",),
    A_REBOOT: ("engine/items.py:KernelModule",),
    NOTHING_STAYS: (
        "phases/upgrade_runtime.py:_start",
        "phases/upgrade_runtime.py:_stop",
        "phases/static_pods_swap.py:_run_users",
        "airgap/distro_packages.py:release",
        "network/forwarding.py:_remove_jumps",
        "network/forwarding.py:remove_forwarding",
        "network/load_balancer.py:reload",
        "network/load_balancer.py:remove_node_files",
        "network/masquerade.py:remove_masquerade",
        "network/pod_network.py:remove_node_network",
        "network/pod_view.py:remove_namespace",
        "network/step_aside.py:end_ports",
        "network/step_aside.py:retire_bridge",
        "node/containers.py:_remove_through_crictl",
        "node/containers.py:_remove_through_ctr",
        "node/kept_images.py:release",
        "phases/install_programs.py:plan_no_runtime_data",
        "phases/join_control_plane.py:_restart_etcd_container",
        "phases/kernel.py:_remove_service_route",
        "network/flannel_traces.py:remove",
        "network/service_rules.py:_check",
        "network/service_rules.py:remove_all",
        "node/control_groups.py:remove",
        "node/machine_before.py:remove_folders",
        "node/machine_before.py:restore_settings",
        "phases/kubelet_start.py:_unmount",
        "phases/kubelet_start.py:plan_stopped_kubelet",
        "phases/kubelet_start.py:stop_kubelet",
        "phases/reset.py:_restart_runtime",
        "phases/reset.py:take_back_files",
        "phases/recovered_certs.py:restart_node",
        "phases/node_reboot.py:_end_server",
        "phases/node_reboot.py:foretell_reboot",
        "phases/node_reboot.py:reboot",
        "phases/node_reboot.py:wake",
        "phases/readdress.py:_move_pods",
        "phases/readdress.py:move",
        "phases/reconfigure_proxy.py:ProxiedServices",
        "phases/restart_pods.py:Restart",
        "phases/restore.py:move_aside",
        "phases/serve_mirror.py:follow_authority",
        "phases/serve_mirror.py:renew_certificate",
        "phases/mirror_move.py:plan_no_mirror",
        "phases/tried_swap.py:remove_unit",
        "phases/upgrade_kubelet.py:start_and_watch",
        "node/containers.py:nudge",
    ),
}
"""The step of reset, or the reboot, that undoes what a function changes by running a program; NOTHING_STAYS: it only removes, or restarts,
what was there, or is the user's own command. All other changes are files, which are in the journal."""


def find_running(source: str) -> Iterator[str]:
    """The outermost functions and classes in which a program is run, or a service is started or stopped."""
    for top in ast.parse(source).body:
        if isinstance(top, (ast.FunctionDef, ast.ClassDef)) and any(_runs(node) for node in ast.walk(top)):
            yield top.name


def _runs(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    owner = node.func.value
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return (name in ("host", "_host") and node.func.attr == "run") or (
        name == "services" and node.func.attr in SERVICES
    )


def test_whatever_a_program_changes_names_how_it_is_taken_back() -> None:
    folders = ("airgap", "engine", "network", "node", "phases")
    paths = [path for folder in folders for path in sorted((PACKAGE / folder).glob("*.py"))]
    found = {f"{path.relative_to(PACKAGE)}:{name}" for path in paths for name in find_running(path.read_text())}
    told = [name for names in TAKEN_BACK.values() for name in names]
    assert found - set(told) == set(), "say by which step of reset it is taken back"
    assert set(told) - found == set(), "it runs nothing now: strike it out here"
    assert len(told) == len(set(told))
    assert set(TAKEN_BACK) - {phase.name for phase in kb.RESET} == {A_REBOOT, NOTHING_STAYS}


def test_a_program_that_is_run_is_found_however_it_is_reached() -> None:
    source = "def a(run):\n    run.host.run([])\nclass B:\n    def c(self, run):\n        services.run(run.host, 'stop', unit='x')\ndef d(runner):\n    runner.run()\n"
    assert list(find_running(source)) == ["a", "B"]


def test_reset_and_the_undo_know_no_phase() -> None:
    for name in ("phases/reset.py", "engine/undo.py"):
        for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            modules += [f"{node.module}.{one.name}" for one in node.names] if isinstance(node, ast.ImportFrom) else []
            assert not [module for module in modules if module.startswith("kubeup.phases")], name


def test_what_others_would_miss_goes_first_and_the_files_last() -> None:
    """Each step needs what the steps after it take away; the names are public."""
    names = [phase.name for phase in kb.RESET]
    wanted = ("remove-etcd-member", *(f"cleanup-node/{name}" for name in (
        "stop-kubelet", "remove-pods", "unmount", "remove-service-rules", "remove-pod-network", "remove-load-balancer", "stop-services", "take-back-files",
    )))  # fmt: skip
    assert [name for name in names if name in wanted] == list(wanted)
    assert (names[0], names[-1]) == (wanted[0], wanted[-1])


# ---- what is no file


def make_run(*created: str, host: FakeHost) -> ResetRun:
    State(host, Paths(), phases={"init/a": PhaseState("done", created=list(created))}).save()
    host.changes.clear()
    return ResetRun(host=host, paths=Paths(), report=Report(io.StringIO()), cri_socket="unix:///x")


def test_packages_that_kb_held_are_released_and_others_are_not() -> None:
    host = FakeHost(programs={"apt-mark"}, accepts={"apt-mark unhold kubelet kubectl"})
    do(install_programs.plan_released_packages, make_run(host=host))
    assert host.changes == []
    do(install_programs.plan_released_packages, make_run(str(distro_packages.APT_LIST), host=host))
    assert host.changes == ["run apt-mark unhold kubelet kubectl"]


def test_a_containerd_of_kb_s_is_emptied_and_no_other() -> None:
    mount = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/a1/rootfs"
    host = FakeHost(mounts=[mount], accepts={f"umount {mount}"})
    for name in ("/var/lib/containerd/x", "/run/containerd/y"):
        host.files[name] = b""
    do(install_programs.plan_no_runtime_data, make_run(host=host))
    assert host.changes == []
    run = make_run(str(runtime.CONTAINERD_UNIT), host=host)
    assert not is_done(install_programs.plan_no_runtime_data, run)
    do(install_programs.plan_no_runtime_data, run)
    assert host.changes == ["remove /var/lib/containerd", f"run umount {mount}", "remove /run/containerd"]
    assert is_done(install_programs.plan_no_runtime_data, run)


def test_the_folder_for_plugins_of_a_containerd_of_kb_s_goes_unless_others_use_it() -> None:
    """containerd 2 makes it, below /run, and leaves it when it ends."""
    for others in ((), ("/run/nri/other.sock",)):
        host = FakeHost()
        host.dirs.add("/run/nri")
        host.files.update(dict.fromkeys(("/run/nri/nri.sock", *others), b""))
        do(install_programs.plan_no_runtime_data, make_run(str(runtime.CONTAINERD_UNIT), host=host))
        assert ("/run/nri" in host.dirs, host.changes) == (bool(others), [] if others else ["remove /run/nri"])
    host = FakeHost()
    host.dirs.add("/run/nri")
    do(install_programs.plan_no_runtime_data, make_run(host=host))
    assert host.changes == [], "of a containerd that kb did not install"


def test_etcd_s_data_goes_with_what_is_left_of_copies_of_it() -> None:
    host = FakeHost(
        files={
            f"/var/lib/etcd{name}": b"" for name in ("/member/x", ".kb-former/member/x", ".kb-former.part/y", "/own")
        }
    )
    run = make_run(str(Paths().manifest("etcd")), host=host)
    do(reset.plan_no_etcd_data, run)
    left = [name for name in host.files if name.startswith("/var/lib/etcd")]
    assert left == ["/var/lib/etcd/own"] and is_done(reset.plan_no_etcd_data, run)
    host.dirs.add("/var/lib/etcd.kb-former")
    assert not is_done(reset.plan_no_etcd_data, run)


@pytest.mark.parametrize("link", kubelet_start.Kubelet().places)
@pytest.mark.parametrize("is_made", [True, False])
def test_the_kubelet_starts_at_boot_no_more_if_kb_had_it_do_so(link: Path, is_made: bool) -> None:
    """Whoever runs the services: what enabling it made is in the journal, if kb did it."""
    is_openrc = "runlevels" in link.parts
    stop = "rc-service kubelet stop" if is_openrc else "systemctl stop kubelet"
    host = FakeHost(
        files={str(link): b""},
        programs={"openrc", "rc-service", "rc-update"} if is_openrc else {"systemctl"},
        dirs=set() if is_openrc else {"/run/systemd/system"},
        accepts={stop},
    )
    do(kubelet_start.plan_stopped_kubelet, make_run(str(Paths.kubelet_config), *([str(link)] * is_made), host=host))
    assert host.changes == [f"run {stop}", *([f"remove {link}"] * is_made)]


@pytest.mark.parametrize(
    ("skipped", "also"),
    [
        ("cleanup-node/take-back-files", {"cleanup-node/remove-etcd-data", "cleanup-node/remove-kubelet-data"}),
        ("cleanup-node/stop-services", {"cleanup-node/remove-runtime-data"}),
        (
            "cleanup-node/remove-pods",
            {"cleanup-node/remove-flannel", "cleanup-node/remove-service-rules", "cleanup-node/remove-traces"},
        ),
    ],
)
def test_who_keeps_the_files_keeps_the_data_and_who_keeps_a_service_running_what_it_works_on(
    skipped: str, also: set[str]
) -> None:
    assert plan_skips(kb.RESET, [skipped]) == {skipped, *also}


@pytest.mark.parametrize(
    ("created", "state_of_it", "shims", "is_looked_at"),
    [
        ([str(runtime.CONTAINERD_UNIT)], "inactive", 1, False),
        ([str(runtime.CONTAINERD_UNIT)], "inactive", 0, True),  # its containers outlived it
        ([str(runtime.CONTAINERD_UNIT)], "active", 1, True),
        ([], "inactive", 1, True),  # somebody else's, and stopped: nobody knows what runs
    ],
)
def test_a_reset_that_was_cut_off_after_it_stopped_its_containerd_goes_on(
    created: list[str], state_of_it: str, shims: int, is_looked_at: bool
) -> None:
    host = FakeHost(
        files={str(runtime.CONTAINERD_UNIT): b""},
        programs={"systemctl"},
        dirs={"/run/systemd/system"},
        answers={
            "systemctl is-active containerd": f"{state_of_it}\n",
            "pgrep -f containerd-shim": CommandResult(("pgrep",), shims),
        },
    )
    plan = kubelet_start.plan_no_pods(make_run(str(Paths.kubelet_config), *created, host=host))
    assert bool(plan.parts) is is_looked_at
