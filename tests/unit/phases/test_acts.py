"""What of a phase changes a node or a cluster beside the items of plans: the acts, which docs/adr/0013-acts.md lists, and what items
call. Everything else only looks and says what should be there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import kb
from kubeup import day_two
from kubeup.engine.story import Story
from kubeup.kubeadm import program

PHASES = Path(kb.__file__).parent / "kubeup/phases"
ADR = Path(kb.__file__).parent / "docs/adr/0013-acts.md"
A_NODE = (kb.INIT, kb.JOIN, kb.RESET, program.RESET)
DAY_TWO = tuple(
    day_two.find_story(name, init=kb.INIT)
    for name in (*day_two.STORIES, "restore", "reconfigure-endpoint", "mirror-move")
)
MOST_ACTS_OF_A_NODE = 14
MOST_ACTS_OF_DAY_TWO = 17

HOST_VERBS = {
    "write_file", "write_stream", "make_dir", "symlink", "remove", "remove_tree", "move_file", "copy_attributes", "put_back", "append",
    "rename", "run", "http_send", "http_upload", "make_private_dir", "write_output",
}  # fmt: skip
VERBS = {
    "host": HOST_VERBS,
    "machine": HOST_VERBS,
    "api": {"create", "apply", "replace", "create_or_replace", "patch", "delete"},
    "client": {
        "create",
        "create_or_replace",
        "apply",
        "replace",
        "patch",
        "delete",
        "remove",
        "promote",
        "add_learner",
    },
    "services": {"run", "enable", "start_own_unit", "stop_own_unit", "forget_removed_units"},
    "objects": {"apply_objects", "apply_component_config", "apply_cluster_info", "patch_fields", "restart_pods"},
    "clusterobjects": {"apply_objects", "apply_component_config", "apply_cluster_info", "patch_fields", "restart_pods"},
}
"""What changes something, by the name of what it is called on."""

CHANGING = {
    # acts
    "install_programs.py:_configure_crictl": "install/packages",
    "install_programs.py:_ensure_runtime_runs": "install/packages",
    "install_programs.py:_fetch_and_place": "install/packages",
    "install_programs.py:_plan_files_of": "install/packages, foretold",
    "local_bundle.py:_copy_checked": "install/bundle",
    "local_bundle.py:foretell_bundle": "install/bundle, foretold",
    "local_bundle.py:lay_down_bundle": "install/bundle",
    "join_control_plane.py:_clear_former_data": "etcd-join",
    "join_control_plane.py:_restart_etcd_container": "etcd-join",
    "join_control_plane.py:_take_back": "etcd-join",
    "join_worker.py:wait_for_bootstrap": "kubelet-wait-bootstrap",
    "rotation.py:restart_workloads": "use",
    "rotated_kubelet.py:_take_serving": "use",
    "static_pods_swap.py:_run_users": "swap",
    "static_pods_swap.py:foretell_swap": "swap, foretold",
    "restore.py:_bring_mirror_back": "move-aside",
    "restore.py:_lay": "files",
    "restore.py:_move_data_aside": "move-aside",
    "restore.py:_put_data_in": "files",
    "restore.py:make_data": "snapshot",
    "restore.py:move_aside": "move-aside",
    "upload_certs.py:_remove_other_proxies": "upload-certs",
    "upload_certs.py:store_shared_files": "upload-certs",
    "wait_dns.py:free_waiting_pods": "verify",
    "reset.py:_restart_runtime": "cleanup-node/take-back-files",
    "reset.py:_strike_out": "remove-etcd-member",
    "reset.py:leave_etcd": "remove-etcd-member",
    "reset.py:take_back_files": "cleanup-node/take-back-files",
    # what an item or the guard of a group calls
    "join_control_plane.py:_download_certs": "Issued: the files that control planes share",
    "join_control_plane.py:_write_kubelet_identity": "Issued: kubelet.conf",
    "install_programs.py:plan_no_runtime_data": "Gone: the runtime's data",
    "kernel.py:_remove_service_route": "Gone: the route to Services",
    "kubelet_start.py:_unmount": "Gone: what the kubelet mounted",
    "kubelet_start.py:enable_kubelet": "Kubelet, the guard",
    "kubelet_start.py:name_rotated_cert": "Issued: kubelet.conf",
    "kubelet_start.py:plan_no_kubelet_data": "Gone: what the kubelet wrote",
    "kubelet_start.py:plan_stopped_kubelet": "Gone: the running kubelet",
    "kubelet_start.py:restart_kubelet": "Kubelet, the guard",
    "kubelet_start.py:stop_kubelet": "Kubelet, the guard",
    "node_network.py:_apply_manifest": "AppliedManifest",
    "reset.py:plan_no_etcd_data": "Gone: etcd's data",
    "own_timer.py:plan_no_timer": "Gone: a timer of kb's own",
    "renewed_kubelet_cert.py:make_again": "the command certs renew: kubelet.crt",
    "recovered_certs.py:begin": "the command certs recover: what is noted first",
    "recovered_certs.py:end": "the command certs recover: what is noted first",
    "recovered_certs.py:recover": "the command certs recover: a bootstrap-kubelet.conf",
    "recovered_certs.py:restart_node": "the command certs recover: the kubelet",
    "recovered_certs.py:take_serving_pair": "the command certs recover: kubelet.crt",
    "recovered_kubelet.py:recover": "the command certs recover: a bootstrap-kubelet.conf",
    "node_reboot.py:_end_server": "reboot",
    "node_reboot.py:foretell_reboot": "reboot, foretold",
    "node_reboot.py:give_all_back": "drain, ready",
    "node_reboot.py:give_up": "the command node uncordon: the record of a reboot",
    "node_reboot.py:reboot": "reboot",
    "node_reboot.py:wake": "preflight, reboot",
    "node_remove.py:remove_member": "remove-etcd-member",
    "readdress.py:_keep": "files",
    "readdress.py:_move_pods": "files",
    "readdress.py:foretell": "files, foretold",
    "readdress.py:move": "files",
    "reconfigure_addons.py:_wait_or_go_back": "Proof: the former configuration of an addon",
    "reconfigure_kubelet.py:_go_back": "kubelet-config",
    "reconfigure_kubelet.py:_start_with": "kubelet-config",
    "reconfigure_kubelet.py:change_kubelet": "kubelet-config",
    "reconfigure_kubelet.py:foretell_kubelet": "kubelet-config, foretold",
    "tried_swap.py:start_unit": "swap, reboot",
    "tried_swap.py:remove_unit": "swap",
    "upgrade_runtime.py:_carry_over": "the command upgrade runtime: a trial of the configuration",
    "upgrade_runtime.py:_start": "the command upgrade runtime: containerd, then the kubelet",
    "upgrade_runtime.py:_stop": "the command upgrade runtime: the kubelet, then containerd",
    "upgrade_runtime.py:prepare": "the command upgrade runtime: what is left of downloads",
    "upgrade_kubelet.py:lay": "kubelet-config",
    "upgrade_kubelet.py:foretell_kubelet": "kubelet-config, foretold",
    "upgrade_kubelet.py:start_and_watch": "kubelet-config",
    "upgrade_kubelet.py:take_back": "kubelet-config",
    "upgrade_programs.py:_fetch_files": "programs",
    "upgrade_programs.py:stage_programs": "programs",
    "serve_mirror.py:_issue_certificate": "Issued: the mirror's certificate",
    "serve_mirror.py:follow_authority": "files",
    "serve_mirror.py:renew_certificate": "the command certs renew: the mirror's certificate",
    "mirror_move.py:_fetch": "install/bundle",
    "mirror_move.py:take_bundles": "install/bundle",
    "mirror_move.py:foretell_bundles": "install/bundle, foretold",
    "mirror_move.py:plan_no_mirror": "Gone: the mirror of a node",
}
"""Function -> the act that it is a part of, or the item that calls it. This list only becomes shorter."""


def acting(stories: Iterable[Story] = (*A_NODE, *DAY_TWO)) -> set[str]:
    return {phase.name for phases in stories for phase in phases if phase.plan is None}


def find_changing(source: str) -> Iterator[str]:
    """The outermost functions in which something is changed. Classes are items and guards of groups: changing is their part."""
    for top in ast.parse(source).body:
        if isinstance(top, ast.FunctionDef) and any(_changes(node) for node in ast.walk(top)):
            yield top.name


def _changes(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    owner = node.func.value
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return node.func.attr in VERBS.get(name, ())


def test_the_acts_are_few_and_each_has_its_reason() -> None:
    tables = [
        re.findall(r"^\| `([^`]+)` \| .+ \|$", part, re.MULTILINE) for part in ADR.read_text().split("|---|---|")[1:]
    ]
    expected = acting(A_NODE), acting(DAY_TWO) - acting(A_NODE)
    assert [sorted(rows) for rows in tables] == [sorted(names) for names in expected], (
        "say in docs/adr/0013-acts.md why it is no plan"
    )
    assert len(expected[0]) <= MOST_ACTS_OF_A_NODE
    assert len(expected[1]) <= MOST_ACTS_OF_DAY_TWO


def test_whatever_changes_something_is_an_act_or_a_part_of_an_item() -> None:
    found = {f"{path.name}:{name}" for path in sorted(PHASES.glob("*.py")) for name in find_changing(path.read_text())}
    assert found - set(CHANGING) == set(), "say what should be there, in a plan"
    assert set(CHANGING) - found == set(), "it changes nothing now: strike it out here"
    assert {what for what in CHANGING.values() if ":" not in what and what.partition(",")[0] not in acting()} == {
        "Kubelet, the guard", "AppliedManifest",
    }  # fmt: skip


def test_a_change_is_found_however_it_is_reached() -> None:
    source = (
        "def a(run):\n    def b(ground):\n        ground.host.remove(1)\n    return Plan(b)\n"
        "def c(ctx):\n    ctx.api.patch(1)\ndef d(ctx):\n    ctx.host.read_text(1)\nclass E:\n    def f(self, run):\n        run.host.run([])\n"
    )
    assert list(find_changing(source)) == ["a", "c"]


def test_no_phase_asks_in_which_mode_it_runs() -> None:
    """A dry run is the host's matter, a foretold act the Runner's (docs/adr/0002)."""
    asking = [
        f"{path.name}:{node.lineno}"
        for path in sorted(PHASES.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "mode" and getattr(node.value, "attr", "") == "host"
    ]
    assert asking == []
