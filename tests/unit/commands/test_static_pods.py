"""kubeup/commands/static_pods.py: which manifests are to run, from the command line to its exit status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from kubeup.cluster.health import Part
from kubeup.machine.local_host import LocalHost
from kubeup.trouble import Trouble
from tests.fake_control_plane import (
    COMPONENTS,
    FORMER,
    MANIFESTS,
    WANTED,
    ControlPlane,
    Gone,
    expect_settled,
    make_control_plane,
    manifest,
    manifests_of,
)
from tests.fuzz.node import Ended, call
from tests.unit.swap.swap_case import Stage, set_stage

SWAP_FILE = "/var/lib/kb/swap/swap.json"


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return set_stage(monkeypatch)


def machine(**fields: Any) -> ControlPlane:
    """A control plane with the wanted manifests below /root."""
    host = make_control_plane(**fields)
    host.files.update({f"/root/{name}.yaml": text.encode() for name, text in WANTED.items()})
    return host


def kb(host: ControlPlane, *words: str) -> Ended:
    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    ended = call(["reconfigure", "static-pods", *words], make, limit_s=120)
    assert not ended.bug, ended.bug
    return ended


def not_well() -> list[Part]:
    """What the health gate finds of a cluster whose scheduler has just gone away."""
    return [Part("leader", "kube-scheduler", Trouble("no kube-scheduler leads", "it ended", "read its log"))]


def files(*names: str) -> list[str]:
    return [f"/root/{name}.yaml" for name in names]


def refused(host: ControlPlane, *words: str, code: str) -> Ended:
    """The command line is refused, and the machine is as before but for kb's lock and state."""
    before = {path: data for path, data in host.files.items() if not path.startswith("/var/lib/kb/")}
    record, made = host.files.get(SWAP_FILE), len(host.events)
    ended = kb(host, *words)
    assert ended.status != 0
    assert f"code:   {code}\n" in ended.err, ended.err
    assert {path: data for path, data in host.files.items() if not path.startswith("/var/lib/kb/")} == before
    assert host.files.get(SWAP_FILE) == record
    assert len(host.events) == made
    return ended


def swapped(host: ControlPlane, *words: str) -> Ended:
    ended = kb(host, *words)
    assert ended.status == 0, ended.err
    return ended


def cut_off(host: ControlPlane, *words: str, at: str = f"move {MANIFESTS}/.etcd.yaml.kb-former") -> None:
    """The command is killed after this change."""

    def kill(change: str) -> None:
        if change == at:
            host.dies_after = len(host.changes)

    host.at_change = kill
    with pytest.raises(Gone):
        kb(host, *words)
    host.at_change = lambda change: None
    host.revive()


def after(*names: str) -> Mapping[str, str]:
    return {**FORMER, **{name: WANTED[name] for name in names}}


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: etcd}\n", "it is a Deployment, not a Pod of v1"),
        ("apiVersion: v1\nmetadata: {name: etcd}\n", "it is a document without a kind"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: kube-vip}\n", "its name is 'kube-vip', not one of etcd, "),
        ("apiVersion: v1\nkind: Pod\nmetadata: etcd\n", "its name is ''"),
        ("apiVersion: v1\nkind: Pod\n", "its name is ''"),
    ],
)
def test_a_file_that_is_no_static_pod(stage: Stage, text: str, cause: str) -> None:
    host = machine()
    host.files["/root/x.yaml"] = text.encode()
    ended = refused(host, "/root/x.yaml", "--yes", code="not-a-static-pod")
    assert cause in ended.err
    refused(host, *files("kube-scheduler"), "/root/x.yaml", "--yes", code="not-a-static-pod")


@pytest.mark.parametrize("text", ["[]", "kind: [", "", "\x00"])
def test_a_file_that_is_no_yaml_document_of_a_pod(stage: Stage, text: str) -> None:
    host = machine()
    host.files["/root/x.yaml"] = text.encode()
    assert kb(host, "/root/x.yaml", "--yes").status != 0
    assert manifests_of(host) == {f"{name}.yaml": FORMER[name] for name in COMPONENTS}
    assert not host.events


def test_a_file_that_is_not_there(stage: Stage) -> None:
    refused(machine(), "/root/nothing.yaml", "--yes", code="file-unreadable")


def test_a_file_in_the_kubelet_s_folder(stage: Stage) -> None:
    host = machine()
    ended = refused(host, f"{MANIFESTS}/etcd.yaml", code="not-a-static-pod")
    assert "where the kubelet runs it at once" in ended.err


def test_no_file(stage: Stage) -> None:
    refused(machine(), code="no-manifest-given")
    host = machine()
    swapped(host, *files("kube-scheduler"))
    refused(host, code="no-manifest-given")


def test_undo_takes_no_file(stage: Stage) -> None:
    host = machine()
    swapped(host, *files("kube-scheduler"))
    refused(host, "--undo", *files("kube-scheduler"), code="usage")


def test_undo_of_nothing(stage: Stage) -> None:
    refused(machine(), "--undo", code="nothing-to-undo")


def test_a_node_that_is_no_control_plane(stage: Stage) -> None:
    host = machine()
    for name in COMPONENTS:
        del host.files[f"{MANIFESTS}/{name}.yaml"]
    host.sleep(10)
    host.events.clear()
    refused(host, *files("etcd"), "--yes", code="not-a-control-plane")


def test_who_is_not_root(stage: Stage) -> None:
    refused(machine(root_user=False), *files("etcd"), code="not-root")


def test_a_damaged_record(stage: Stage) -> None:
    host = machine()
    host.files[SWAP_FILE] = b"{"
    for words in (files("etcd"), ["--undo"], []):
        refused(host, *words, code="swap-unreadable")


def test_no_answer_is_no_consent(stage: Stage) -> None:
    ended = refused(machine(), *files("etcd"), code="not-confirmed")
    assert "it is etcd's only voting member" in ended.err
    assert f"kb reconfigure static-pods {files('etcd')[0]} --yes" in ended.err


# ---- from one command to the next


def test_a_swap_from_the_command_line(stage: Stage) -> None:
    host = machine()
    swapped(host, *files(*COMPONENTS), "--yes")
    expect_settled(host, WANTED, status="done")


def test_the_same_again_is_nothing_to_do(stage: Stage) -> None:
    host = machine()
    swapped(host, *files("kube-scheduler"))
    one, events = host.running("kube-scheduler")[0].id, len(host.events)
    ended = swapped(host, *files("kube-scheduler"))
    assert "run with these manifests already" in ended.err
    assert host.running("kube-scheduler")[0].id == one and len(host.events) == events


def test_a_failure_has_its_own_exit_status(stage: Stage) -> None:
    host = machine(mood=lambda name, text: "exits" if text == WANTED["kube-scheduler"] else "")
    ended = kb(host, *files("kube-scheduler"))
    assert ended.status == 5
    assert "code:   static-pod-not-working" in ended.err
    expect_settled(host, FORMER, status="taken back")
    refused(host, "--undo", code="nothing-to-undo")


def test_a_way_back_that_was_killed_at_its_very_end_needs_only_the_gate(stage: Stage) -> None:
    """The record says that the former pods are back; the state of the phase does not say so yet."""
    host = machine(mood=lambda name, text: "exits" if text == WANTED["kube-scheduler"] else "")

    def kill(change: str) -> None:
        if change == f"write {SWAP_FILE}" and json.loads(host.files[SWAP_FILE])["status"] == "taken back":
            host.dies_after = len(host.changes)

    host.at_change = kill
    with pytest.raises(Gone):
        kb(host, *files("kube-scheduler"))
    host.at_change = lambda change: None
    host.revive()
    events = list(host.events)
    assert "only the check of the cluster is left" in swapped(host, "--undo").err and host.events == events
    expect_settled(host, FORMER, status="taken back")
    refused(host, "--undo", code="nothing-to-undo")


def test_undo_of_a_swap_that_is_done(stage: Stage) -> None:
    host = machine()
    swapped(host, *files(*COMPONENTS), "--yes")
    swapped(host, "--undo", "--yes")
    expect_settled(host, FORMER, status="taken back")


def test_an_undo_where_only_the_gate_failed_is_continued_by_the_same_command(stage: Stage) -> None:
    host = machine()
    swapped(host, *files("kube-scheduler"))
    stage.parts = not_well()
    failed = kb(host, "--undo")
    assert "code:   cluster-not-well\n" in failed.err and "continue with the same command" in failed.err
    events = list(host.events)
    assert "code:   cluster-not-well\n" in kb(host, "--undo").err
    stage.parts = []
    assert kb(host, "--undo").status == 0 and host.events == events
    refused(host, "--undo", code="nothing-to-undo")


def test_a_second_undo_does_not_bring_the_new_ones_again(stage: Stage) -> None:
    host = machine()
    swapped(host, *files("kube-scheduler"))
    swapped(host, "--undo")
    refused(host, "--undo", code="nothing-to-undo")


def test_the_same_files_continue_a_swap_that_was_cut_off(stage: Stage) -> None:
    host = machine()
    cut_off(host, *files(*COMPONENTS), "--yes")
    swapped(host, *files(*COMPONENTS), "--yes")
    expect_settled(host, WANTED, status="done")


def test_the_same_files_continue_it_though_one_of_them_changes_nothing(stage: Stage) -> None:
    host = machine()
    host.files["/root/kube-apiserver.yaml"] = FORMER["kube-apiserver"].encode()
    cut_off(host, *files("etcd", "kube-apiserver"), "--yes")
    swapped(host, *files("etcd", "kube-apiserver"), "--yes")
    expect_settled(host, after("etcd"), status="done")


def test_no_files_continue_it_too(stage: Stage) -> None:
    host = machine()
    cut_off(host, *files(*COMPONENTS), "--yes")
    swapped(host)
    expect_settled(host, WANTED, status="done")


def test_undo_takes_it_back(stage: Stage) -> None:
    host = machine()
    cut_off(host, *files(*COMPONENTS), "--yes")
    swapped(host, "--undo")
    expect_settled(host, FORMER, status="taken back")


def test_a_way_back_that_fails_does_not_say_that_nothing_was_changed(stage: Stage) -> None:
    host = machine()
    cut_off(host, *files(*COMPONENTS), "--yes")
    host.mood = lambda name, text: "unhealthy" if name == "kube-apiserver" else ""
    ended = kb(host, "--undo", "--yes")
    assert ended.status != 0 and "nothing was changed" not in ended.err and "so far: 4 files" in ended.err, ended.err
    host.mood = lambda name, text: ""
    for one in host.running("kube-apiserver"):
        one.mood = ""
    swapped(host, "--undo", "--yes")
    expect_settled(host, FORMER, status="taken back")


def test_other_manifests_have_to_wait(stage: Stage) -> None:
    host = machine()
    cut_off(host, *files("etcd"), "--yes")
    for words in (files("kube-scheduler"), files("etcd", "kube-scheduler")):
        ended = refused(host, *words, "--yes", code="swap-unfinished")
        assert "kb reconfigure static-pods --undo" in ended.err
    host.files["/root/etcd.yaml"] = FORMER["etcd"].encode()
    refused(host, *files("etcd"), "--yes", code="swap-unfinished")


def test_a_swap_that_was_cut_off_before_its_record_leaves_nothing_behind(stage: Stage) -> None:
    host = machine()
    cut_off(host, *files(*COMPONENTS), "--yes", at=f"write {MANIFESTS}/.kube-scheduler.yaml.kb-next")
    kb(host, "--undo")
    assert manifests_of(host) == {f"{name}.yaml": FORMER[name] for name in COMPONENTS}


@pytest.mark.parametrize("words", [["--undo"], []])
def test_it_is_still_a_control_plane_while_its_api_server_is_out(stage: Stage, words: list[str]) -> None:
    host = machine()
    cut_off(host, *files("etcd"), "--yes")
    assert f"{MANIFESTS}/kube-apiserver.yaml" not in host.files
    swapped(host, *words)


# ---- a dry run, and the list


def test_a_dry_run_prints_the_difference_and_changes_nothing(stage: Stage) -> None:
    host = machine()
    before = dict(host.files)
    ended = swapped(host, *files("etcd", "kube-scheduler"), "--dry-run")
    assert (host.files, host.changes, host.events) == (before, [], [])
    for name in ("etcd", "kube-scheduler"):
        assert f"would write: {MANIFESTS}/{name}.yaml" in ended.out
    assert ended.out.count("+    - --v=4") == 2
    assert "2 changes planned; nothing was changed" in ended.out
    assert "it is etcd's only voting member" in ended.err


@pytest.mark.parametrize("words", [[], ["--undo"]])
def test_a_dry_run_of_a_swap_that_was_cut_off(stage: Stage, words: list[str]) -> None:
    host = machine()
    cut_off(host, *files(*COMPONENTS), "--yes")
    before, made = dict(host.files), len(host.changes)
    swapped(host, *words, "--dry-run")
    assert host.files == before and len(host.changes) == made


def test_the_list_of_phases(stage: Stage) -> None:
    host = machine()
    ended = swapped(host, "--list")
    assert [line.split()[0] for line in ended.out.splitlines() if line.strip()][-3:] == ["preflight", "swap", "gate"]
    assert host.changes == []


def test_the_result_as_json(stage: Stage) -> None:
    host = machine()
    ended = swapped(host, *files("kube-scheduler"), "-o", "json")
    phases = {phase["name"]: phase for phase in json.loads(ended.out)["phases"]}
    assert phases["swap"]["changedFiles"] == [f"{MANIFESTS}/kube-scheduler.yaml"]


def test_undo_takes_back_nothing_that_came_after_the_swap(stage: Stage) -> None:
    """An upgrade has replaced the manifest since."""
    host = machine()
    swapped(host, *files("kube-scheduler"))
    host.files[f"{MANIFESTS}/kube-scheduler.yaml"] = manifest("kube-scheduler", image="kube-scheduler:v2").encode()
    host.sleep(30)
    ended = refused(host, "--undo", code="undo-outdated")
    assert "kube-scheduler.yaml is not the manifest that the last swap put in" in ended.err
