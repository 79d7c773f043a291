"""kubeup/phases/static_pods_swap.py: what is refused before anything stops, what is asked and told, and what a dry run shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup import day_two
from kubeup.cluster import etcd_join, health
from kubeup.cluster.health import Part
from kubeup.engine.records import PROGRAMS, load_records, record_programs
from kubeup.engine.run import Run
from kubeup.engine.runner import Runner
from kubeup.engine.state import load_state
from kubeup.errors import ClusterError, HostError, KbError, UsageError
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from kubeup.phases import static_pods_swap
from kubeup.phases.static_pods_swap import SwapRun, check_cluster, check_swap
from kubeup.swap import order, store
from kubeup.trouble import Trouble
from tests.fake_control_plane import (
    COMPONENTS,
    DATA,
    FORMER,
    MANIFESTS,
    SERVER,
    WANTED,
    ControlPlane,
    Gone,
    expect_settled,
    make_control_plane,
    manifest,
    manifests_of,
)
from tests.unit.swap.swap_case import PATHS, Stage, make_swap_run, said, set_stage, trial, undo_run

PAUSE = "registry.k8s.io/pause:3.10.1"
ALL = {name: WANTED[name] for name in COMPONENTS}
ENOUGH = static_pods_swap.ROOM + (sum(order.BALLAST_MIB.values()) << 20)
TWO = {"cp2": True}
THREE = {"cp2": True, "cp3": True}
OTHERS = {"10.0.0.12:6443": True}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return set_stage(monkeypatch)


def wanted(*names: str) -> dict[str, str]:
    return {name: WANTED[name] for name in names}


def refused(host: ControlPlane, texts: Optional[Mapping[str, str]] = None, **fields: Any) -> KbError:
    """The check refuses these manifests, and has changed nothing."""
    before = dict(host.files)
    with pytest.raises(KbError) as caught:
        check_swap(make_swap_run(host, ALL if texts is None else texts, **fields))
    assert host.changes == []
    assert host.files == before
    return caught.value


def checked(host: ControlPlane, texts: Mapping[str, str], **fields: Any) -> SwapRun:
    run = make_swap_run(host, texts, **fields)
    check_swap(run)
    assert host.changes == []
    return run


# ---- refused before anything stops


def test_without_a_kubelet_nothing_could_be_swapped(stage: Stage) -> None:
    error = refused(make_control_plane(kubelet_runs=False))
    assert error.code == "kubelet-not-running"
    assert "systemctl start kubelet" in error.remedy


def test_every_trouble_that_the_trials_find_is_told(stage: Stage) -> None:
    stage.trials["etcd"] = [trial("flags", Trouble("etcd has no flag --v5", "it is unknown", "remove it"))]
    stage.trials["kube-scheduler"] = [
        trial("flags"),
        trial("mounts", Trouble("/etc/x is missing", "kube-scheduler mounts it", "create it")),
    ]
    error = refused(make_control_plane())
    assert isinstance(error, HostError) and error.code == "static-pod-refused"
    assert (error.what, error.remedy) == ("etcd has no flag --v5", "remove it")
    assert "nothing was stopped" in error.cause
    assert any("/etc/x is missing" in line for line in error.details)


PROBED = "    livenessProbe:\n      httpGet: {host: 10.0.0.11, path: /livez, port: 6443, scheme: HTTPS}\n"


def test_an_api_server_that_the_kubelet_would_restart_for_its_probes(stage: Stage) -> None:
    """It happens only minutes after the swap has ended well."""
    closed = manifest("kube-apiserver", "--anonymous-auth=false") + PROBED
    error = refused(make_control_plane(), {"kube-apiserver": closed})
    assert error.code == "static-pod-refused" and "the kubelet restarts it every few minutes" in error.cause
    assert "leave anonymous-auth out" in error.remedy
    checked(make_control_plane(), {"kube-apiserver": closed.replace("httpGet:", "exec:")})
    host = make_control_plane()
    host.files[f"{MANIFESTS}/kube-apiserver.yaml"] = closed.encode()
    host.sleep(60)
    host.changes.clear()
    checked(host, {"kube-apiserver": closed.replace("--anonymous-auth", "--v=4\n    - --anonymous-auth")})


@pytest.mark.parametrize(
    ("name", "flags", "probe", "heard"),
    [
        ("kube-apiserver", (), "10.0.0.11:6443", ""),
        ("kube-apiserver", ("--bind-address=0.0.0.0",), "10.0.0.11:6443", ""),
        ("kube-apiserver", ("--bind-address=::",), "10.0.0.11:6443", ""),
        ("kube-apiserver", ("--bind-address=10.0.0.11",), "10.0.0.11:6443", ""),
        ("kube-apiserver", ("--bind-address=127.0.0.1",), "10.0.0.11:6443", "127.0.0.1:6443"),
        ("kube-apiserver", ("--bind-address=::1",), "10.0.0.11:6443", "[::1]:6443"),
        ("kube-apiserver", ("--bind-address=0.0.0.0", "--secure-port=7443"), "10.0.0.11:6443", "0.0.0.0:7443"),
        ("kube-apiserver", ("--bind-address=127.0.0.1",), "api.example.org:6443", ""),
        ("kube-scheduler", ("--bind-address=10.0.0.11",), "127.0.0.1:10259", "10.0.0.11:10259"),
        ("kube-scheduler", ("--secure-port=many",), "127.0.0.1:10259", ""),
        ("etcd", ("--listen-metrics-urls=http://10.0.0.11:2381",), "127.0.0.1:2381", "10.0.0.11:2381"),
        ("etcd", ("--listen-metrics-urls=http://10.0.0.11:2381,http://localhost:2381",), "127.0.0.1:2381", ""),
        ("etcd", ("--listen-metrics-urls=http://10.0.0.11",), "127.0.0.1:2381", ""),
    ],
)
def test_a_pod_that_listens_where_the_kubelet_does_not_ask(
    stage: Stage, name: str, flags: tuple[str, ...], probe: str, heard: str
) -> None:
    """An API server on 127.0.0.1 alone was away until it was taken back; of a controller, nobody found it."""
    host, _, port = probe.rpartition(":")
    probed = PROBED.replace("10.0.0.11", host).replace("6443", port)
    texts = {name: manifest(name, "--v=4", *flags) + probed}
    if not heard:
        checked(make_control_plane(), texts)
        return
    error = refused(make_control_plane(), texts)
    assert error.code == "static-pod-refused" and f"it would listen on {heard}" in error.cause
    assert f"the kubelet's probes ask {probe}" in error.cause
    was = make_control_plane()
    was.files[f"{MANIFESTS}/{name}.yaml"] = (manifest(name, *flags) + probed).encode()
    was.sleep(60)
    was.changes.clear()
    checked(was, texts)


def test_an_etcd_that_its_own_api_server_would_not_find(stage: Stage) -> None:
    host = make_control_plane(members=THREE, others=OTHERS)
    error = refused(host, {"etcd": manifest("etcd", "--listen-client-urls=https://10.0.0.11:2379")})
    assert error.cause.startswith("it would listen on 10.0.0.11:2379, and the API server asks 127.0.0.1:2379")
    checked(host, {"etcd": manifest("etcd", "--listen-client-urls=https://0.0.0.0:2379")})
    checked(host, {"etcd": manifest("etcd", "--listen-client-urls=https://10.0.0.11:2379,https://127.0.0.1:2379")})


BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
LEASE_BINDINGS = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-node-lease/rolebindings"
ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"


@pytest.mark.parametrize(
    ("before", "after", "subject", "is_told"),
    [
        ("Node,RBAC", "RBAC", "", True),
        ("Node,RBAC", "AlwaysDeny,RBAC", "", True),
        ("Node,RBAC", "RBAC", "system:nodes", False),
        ("Node,RBAC", "RBAC", "system:node:cp1", False),
        ("Node,RBAC", "RBAC,Node", "", False),
        ("Node,RBAC", "RBAC,Webhook", "", False),
        ("RBAC", "RBAC,AlwaysDeny", "", False),
    ],
)
def test_an_api_server_that_lets_no_kubelet_work(
    stage: Stage, before: str, after: str, subject: str, is_told: bool
) -> None:
    host = make_control_plane()
    flag, name = "--authorization-mode=", "kube-apiserver"
    host.files[f"{MANIFESTS}/{name}.yaml"] = manifest(name, flag + before).encode()
    host.sleep(60)
    host.changes.clear()
    bound = [
        {"roleRef": {"name": "renewal"}, "subjects": [{"name": "system:nodes"}]},  # as kubeadm binds it everywhere
        {"roleRef": {"name": "work"}, "subjects": [{"name": subject}]},
    ]
    rules = {
        "renewal": ("certificates.k8s.io", "certificatesigningrequests/selfnodeclient"),
        "work": ("coordination.k8s.io", "leases"),
    }
    answers: dict[str, Any] = {BINDINGS: {"items": bound}, LEASE_BINDINGS: {"items": []}}
    answers.update(
        {f"{ROLES}/{one}": {"rules": [{"apiGroups": [rule[0]], "resources": [rule[1]]}]} for one, rule in rules.items()}
    )
    for path, told in answers.items():
        host.urls[f"https://{SERVER}{path}"] = HttpResponse(200, json.dumps(told).encode())
    texts = {name: manifest(name, flag + after)}
    if not is_told:
        checked(host, texts)
        return
    error = refused(host, texts)
    assert error.code == "static-pod-refused" and "no role that is bound to system:nodes" in error.cause
    assert f"--authorization-mode=Node,{after}" in error.remedy


@pytest.mark.parametrize(
    ("before", "after", "mib", "is_told"),
    [
        ("", "--quota-backend-bytes=1048576", 1, True),
        ("", "--quota-backend-bytes=2097152", 1, False),
        ("--quota-backend-bytes=8589934592", "", 2048, True),
        ("--quota-backend-bytes=8589934592", "--quota-backend-bytes=0", 2047, False),
        ("--quota-backend-bytes=8589934592", "--quota-backend-bytes=-1", 9000, False),
        ("--quota-backend-bytes=1048576", "--quota-backend-bytes=1048576", 1, False),
        ("", "--quota-backend-bytes=many", 1, False),
    ],
)
def test_an_etcd_whose_data_would_be_too_large_for_it(
    stage: Stage, before: str, after: str, mib: int, is_told: bool
) -> None:
    """It starts, answers, and refuses every write: nothing could be stored or changed any more."""
    host = make_control_plane()
    stat, found = host.stat, host.stat(Path(DATA))
    assert found is not None
    data = dataclasses.replace(found, size=mib << 20)
    host.stat = lambda path: data if str(path) == DATA else stat(path)  # type: ignore[method-assign]
    if before:
        host.files[f"{MANIFESTS}/etcd.yaml"] = manifest("etcd", before).encode()
        host.sleep(60)
        host.changes.clear()
    texts = {"etcd": manifest("etcd", "--max-txn-ops=300", *([after] if after else []))}
    if not is_told:
        checked(host, texts)
        return
    error = refused(host, texts)
    assert error.code == "static-pod-refused" and f"its data have {mib} MiB" in error.cause
    assert "kb etcd defrag" in error.remedy


def test_only_manifests_that_change_are_tried(stage: Stage) -> None:
    checked(make_control_plane(), {**FORMER, **wanted("etcd")})
    assert stage.tried == ["etcd"]


def test_what_was_tried_and_what_could_not_be_is_told(stage: Stage) -> None:
    stage.trials["etcd"] = [trial("flags"), trial("mounts"), trial("help", not_tried="there is no systemd")]
    run = checked(make_control_plane(), wanted("etcd"))
    assert "etcd: tried without starting it: flags, mounts" in said(run)
    assert "etcd: help could not be tried: there is no systemd" in said(run)
    stage.trials["etcd"] = []
    assert "etcd: tried without starting it: nothing" in said(checked(make_control_plane(), wanted("etcd")))


@pytest.mark.parametrize("free", [0, ENOUGH - 1])
def test_a_full_disk(stage: Stage, free: int) -> None:
    error = refused(make_control_plane(free=free), wanted("kube-scheduler"))
    assert error.code == "disk-full"
    assert "nothing was stopped" in error.cause
    checked(make_control_plane(free=ENOUGH), wanted("kube-scheduler"))


def test_an_image_that_cannot_be_pulled(stage: Stage) -> None:
    host = make_control_plane()
    texts = {"kube-scheduler": manifest("kube-scheduler", image="registry.example.org/kube-scheduler:v9")}
    pulls: list[str] = []
    real = host.run

    def run(argv: Any, **more: Any) -> Any:
        if "pull" in argv:
            pulls.append(str(argv[-1]))
            return type(real(["touch", "-c", "-r"]))(tuple(argv), 1, stderr="not found: manifest unknown")
        return real(argv, **more)

    host.run = run  # type: ignore[method-assign]
    with pytest.raises(KbError) as caught:
        check_swap(make_swap_run(host, texts))
    assert caught.value.code == "image-pull-failed"
    assert set(pulls) == {"registry.example.org/kube-scheduler:v9"}
    assert manifests_of(host) == {f"{name}.yaml": FORMER[name] for name in COMPONENTS}
    assert not host.events


def test_etcd_would_lose_its_quorum(stage: Stage) -> None:
    host = make_control_plane(members={"cp2": True, "cp3": False}, others=OTHERS)
    error = refused(host, wanted("etcd"), agree=lambda question: pytest.fail("asked about what is refused"))
    assert isinstance(error, ClusterError) and error.code == "etcd-stop-unsafe"
    checked(make_control_plane(members={"cp2": True, "cp3": False}, others=OTHERS), wanted("kube-apiserver"))


@pytest.mark.parametrize("name", ["refuse_empty", "check_room"])
def test_the_data_of_etcd_are_looked_at(stage: Stage, name: str) -> None:
    error = HostError("no", cause="no", remedy="no", code="disk-full")
    stage.copies.fails_with[name] = error
    assert refused(make_control_plane(), wanted("etcd")) is error
    checked(make_control_plane(), wanted("kube-scheduler"))


def test_room_for_a_copy_is_needed_for_a_single_member_only(stage: Stage) -> None:
    checked(make_control_plane(members=THREE, others=OTHERS), wanted("etcd"))
    assert stage.copies.calls == ["refuse_empty"]


def test_a_copy_that_an_earlier_change_left_is_refused_for_a_single_member(stage: Stage) -> None:
    copy = {"/var/lib/etcd.kb-former/member/snap/db": b"of long ago"}
    host = make_control_plane()
    host.files.update(copy)
    assert refused(host, wanted("etcd")).code == "etcd-copy-exists"
    checked(host, wanted("kube-apiserver"))
    host = make_control_plane(members=THREE, others=OTHERS)
    host.files.update(copy)
    checked(host, wanted("etcd"))


def test_a_manifest_of_a_component_that_does_not_run_here(stage: Stage) -> None:
    """With an external etcd there is no pod to swap: that is no success."""
    host = make_control_plane()
    del host.files[f"{MANIFESTS}/etcd.yaml"]
    host.changes.clear()
    error = refused(host, wanted("etcd"))
    assert "etcd" in error.what


# ---- consent


def asked(host: ControlPlane, texts: Mapping[str, str]) -> list[str]:
    questions: list[str] = []
    checked(host, texts, agree=questions.append)
    return questions


@pytest.mark.parametrize(
    ("members", "others", "names", "question"),
    [
        ({}, {}, ("etcd",), "it is etcd's only voting member"),
        (TWO, OTHERS, ("etcd",), "etcd has 2 voting members, and needs 2 that serve"),
        (THREE, OTHERS, ("etcd",), ""),
        ({}, {}, ("kube-apiserver",), "no other API server serves"),
        (TWO, {"10.0.0.12:6443": False}, ("kube-apiserver",), "no other API server serves"),
        (TWO, OTHERS, ("kube-apiserver",), ""),
        ({}, {}, ("kube-controller-manager", "kube-scheduler"), ""),
    ],
)
def test_consent_to_a_gap(
    stage: Stage, members: dict[str, bool], others: dict[str, bool], names: tuple[str, ...], question: str
) -> None:
    questions = asked(make_control_plane(members=members, others=others), wanted(*names))
    assert len(questions) == bool(question)
    assert question in "".join(questions)


def test_a_refusal_of_the_user_stops_nothing(stage: Stage) -> None:
    def refuse(question: str) -> None:
        raise UsageError(question, cause="no", remedy="no", code="not-confirmed")

    assert refused(make_control_plane(), wanted("etcd"), agree=refuse).code == "not-confirmed"


def test_it_is_asked_last(stage: Stage) -> None:
    """Nobody is asked about what is refused afterwards."""
    stage.trials["etcd"] = [trial("flags", Trouble("etcd has no flag --v5", "it is unknown", "remove it"))]
    refused(make_control_plane(), wanted("etcd"), agree=lambda question: pytest.fail(question))


# ---- what is told


def test_what_changes(stage: Stage) -> None:
    run = checked(make_control_plane(), wanted("kube-scheduler"))
    assert "change: kube-scheduler: spec.containers[kube-scheduler].command --v: (not set) -> 4\n" in said(run)
    assert "not written by kb" not in said(run)


def recorded(host: ControlPlane, name: str, text: str) -> None:
    """kb has written this manifest once."""
    path = f"{MANIFESTS}/{name}.yaml"
    kept = load_records(host, PATHS.records)
    kept.put(f"init/{name}", {path: {"content": text, "mode": "0600"}})
    kept.save()
    host.changes.clear()


@pytest.mark.parametrize(
    ("flags", "fate"),
    [(("--v=4", "--by-hand=1"), "the new manifest keeps that"), (("--v=4",), "the new manifest has what kb wrote")],
)
def test_what_others_wrote_is_told_from_what_kb_wrote(stage: Stage, flags: tuple[str, ...], fate: str) -> None:
    host, name = make_control_plane(), "kube-scheduler"
    recorded(host, name, FORMER[name])
    by_hand = manifest(name, "--by-hand=1")
    host.files[f"{MANIFESTS}/{name}.yaml"] = by_hand.encode()
    run = checked(host, {name: manifest(name, *flags)})
    lines = [line for line in said(run).splitlines() if "not written by kb" in line and "--by-hand" in line]
    assert lines and fate in lines[0]


def test_a_manifest_as_kb_wrote_it_has_no_others_changes(stage: Stage) -> None:
    host = make_control_plane()
    recorded(host, "kube-scheduler", FORMER["kube-scheduler"])
    assert "not written by kb" not in said(checked(host, wanted("kube-scheduler")))


def test_static_pods_of_others_are_named_and_left_alone(stage: Stage) -> None:
    host = make_control_plane()
    vip = "apiVersion: v1\nkind: Pod\nmetadata: {name: kube-vip}\nspec: {containers: [{name: kube-vip, image: x, command: [x]}]}\n"
    host.files[f"{MANIFESTS}/kube-vip.yaml"] = vip.encode()
    host.files[f"{MANIFESTS}/kb-load-balancer.yaml"] = vip.replace("kube-vip", "kb-load-balancer").encode()
    host.sleep(5)
    run = checked(host, wanted("kube-scheduler"))
    assert "static pods of others, left alone: kube-vip.yaml\n" in said(run)
    one = host.running("kube-vip")[0].id
    static_pods_swap.swap_pods(make_swap_run(host, ALL))
    assert host.files[f"{MANIFESTS}/kube-vip.yaml"] == vip.encode()
    assert host.running("kube-vip")[0].id == one
    assert "of others" not in said(checked(make_control_plane(), wanted("kube-scheduler")))


def test_manifests_that_are_there_already_are_nothing_to_do(stage: Stage) -> None:
    host = make_control_plane()
    texts = {name: f"# mine\n{text}" for name, text in FORMER.items()}
    checked(host, texts)
    assert stage.tried == []
    run = make_swap_run(host, texts)
    static_pods_swap.swap_pods(run)
    assert "run with these manifests already" in said(run)
    assert host.changes == [] and host.events == []


def test_a_swap_that_was_cut_off_is_announced_and_not_tried_again(stage: Stage) -> None:
    host = make_control_plane(dies_after=12)
    with pytest.raises(Gone):
        static_pods_swap.swap_pods(make_swap_run(host, ALL))
    host.revive()
    host.changes.clear()
    assert f"a swap of {', '.join(COMPONENTS)} was cut off: continuing it" in said(checked(host, ALL))
    undo = undo_run(host)
    check_swap(undo)
    assert "was cut off: taking it back" in said(undo)
    assert stage.tried == []


# ---- the swap as a phase


def test_an_api_server_is_restarted_with_its_etcd_and_only_then(stage: Stage) -> None:
    host = make_control_plane()
    assert static_pods_swap.plan_swap(make_swap_run(host, wanted("etcd"))).names == COMPONENTS[:2]
    assert static_pods_swap.plan_swap(make_swap_run(host, wanted("etcd"))).changed == ("etcd",)
    assert static_pods_swap.plan_swap(make_swap_run(host, wanted("kube-scheduler"))).names == ("kube-scheduler",)
    assert static_pods_swap.plan_swap(make_swap_run(host, FORMER)).pods == ()


def test_the_record_says_what_the_manifests_are_now(stage: Stage) -> None:
    host = make_control_plane()
    recorded(host, "kube-scheduler", FORMER["kube-scheduler"])
    static_pods_swap.swap_pods(make_swap_run(host, wanted("kube-scheduler")))
    items = load_records(host, PATHS.records).steps["init/kube-scheduler"]
    assert items[f"{MANIFESTS}/kube-scheduler.yaml"]["content"] == WANTED["kube-scheduler"]


def run_story(run: Run) -> Runner:
    worker = Runner("reconfigure-static-pods", day_two.RECONFIGURE_STATIC_PODS, state=load_state(run.host, PATHS))
    worker.run(run)
    return worker


def test_the_story_with_its_journal(stage: Stage) -> None:
    host = make_control_plane()
    worker = run_story(make_swap_run(host, ALL))
    expect_settled(host, ALL, status="done")
    made = [path for entry in worker.state.phases.values() for path in entry.created]
    assert not [path for path in made if ".kb-" in path], (
        "what was beside the live ones only for a while is no file of kb's"
    )


def test_a_failure_names_its_phase_and_has_the_former_manifests_back(stage: Stage) -> None:
    host = make_control_plane(mood=lambda name, text: "exits" if text == WANTED["kube-apiserver"] else "")
    with pytest.raises(KbError) as caught:
        run_story(make_swap_run(host, ALL))
    assert caught.value.phase == "swap"
    expect_settled(host, FORMER, status="taken back")


def test_a_dry_run_changes_nothing_and_shows_the_difference(stage: Stage) -> None:
    host = make_control_plane()
    before = dict(host.files)
    run = make_swap_run(host, wanted("etcd", "kube-scheduler"))
    planned = DryRunHost(host)
    run_story(dataclasses.replace(run, host=planned))
    assert (host.changes, host.events, host.files) == ([], [], before)
    shown = {step.what.partition(" ")[0]: step.diff for step in planned.plan if step.what.startswith(MANIFESTS)}
    assert list(shown) == [f"{MANIFESTS}/etcd.yaml", f"{MANIFESTS}/kube-scheduler.yaml"]
    assert all("+    - --v=4" in diff for diff in shown.values())


# ---- the gate


def part(name: str, *, trouble: bool = False, unproven: str = "") -> Part:
    return Part("node", name, Trouble(f"{name} is not well", "it is ill", "cure it") if trouble else None, unproven)


def test_a_cluster_that_is_well_lets_the_next_follow(stage: Stage) -> None:
    stage.parts = [part("cp1"), part("cp2", unproven="nobody knows")]
    run = make_swap_run(make_control_plane(), ALL)
    check_cluster(run)
    assert "not proven: nobody knows" in said(run)


@pytest.mark.parametrize(("age_s", "counts"), [(8.0, True), (60.0, False)])
def test_the_gate_counts_leases_that_were_read_a_moment_ago(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, age_s: float, counts: bool
) -> None:
    host = make_control_plane()
    run, asked = make_swap_run(host, ALL), list[dict[str, Any]]()

    def gate(api: object, client: object, **more: Any) -> list[Part]:
        asked.append(more)
        return []

    monkeypatch.setattr(health, "gate", gate)
    run.found.renewals, run.found.led = {"cp1": ("t", 40.0)}, {"kube-scheduler": ("cp1_x", "t")}
    run.found.looked_at = host.monotonic()
    host.sleep(age_s)
    check_cluster(run)
    seen = {"renewed": {"cp1": ("t", 40.0)}, "led": {"kube-scheduler": ("cp1_x", "t")}}
    assert asked == [{**(seen if counts else {"renewed": None, "led": None}), "counts_recent": False}]
    assert run.found.renewals is None and run.found.led is None, "the next look is one of its own"


def test_a_cluster_gets_a_minute_to_be_well(stage: Stage) -> None:
    host = make_control_plane()
    stage.parts = [part("cp2", trouble=True)]
    began, sleep = host.ticks, host.sleep

    def heal(seconds: float) -> None:
        sleep(seconds)
        if host.ticks - began > 30:
            stage.parts = []

    host.sleep = heal  # type: ignore[method-assign]
    check_cluster(make_swap_run(host, ALL))
    assert 30 < host.ticks - began < 35


def test_a_cluster_on_a_busy_machine_gets_more_time_to_become_well(stage: Stage) -> None:
    """A scheduler that could not renew its lease for minutes starts again only after minutes."""
    host = make_control_plane()
    host.files["/proc/loadavg"] = b"90.0 9 9 1/1 1"
    stage.parts = [dataclasses.replace(part("kube-scheduler", trouble=True), kind="leader")]
    sleep = host.sleep

    def heal(seconds: float) -> None:
        sleep(seconds)
        if host.ticks > 150:
            stage.parts = []

    host.sleep = heal  # type: ignore[method-assign]
    check_cluster(make_swap_run(host, ALL))
    assert host.ticks > 150


@pytest.mark.parametrize(("kind", "longest_s"), [("leader", 65), ("node", 15)])
def test_a_lease_that_was_just_lost_gets_a_minute_before_the_upgrade_too(
    stage: Stage, kind: str, longest_s: float
) -> None:
    """It lapses after 15 seconds, and who held it has to start again: that somebody restarted etcd a moment ago is no trouble."""
    host = make_control_plane()
    scheduler = dataclasses.replace(part("kube-scheduler", trouble=True), kind=kind)
    stage.parts = stage.parts_before = [scheduler, Part("api-server", "cp1")]
    began = host.ticks
    parts = static_pods_swap.read_health(make_swap_run(host, ALL), patience_s=10.0, is_before=True)
    assert [one.name for one in health.find_blockers(parts)] == ["kube-scheduler"]
    assert longest_s - 5 <= host.ticks - began <= longest_s


@pytest.mark.parametrize(("name", "longest_s"), [("w3", 65), ("cp1", 245)])
def test_what_keeps_this_machine_busy_gives_the_kubelet_of_another_no_more_time(
    stage: Stage, name: str, longest_s: float
) -> None:
    host = make_control_plane()
    host.files["/proc/loadavg"] = b"90.0 9 9 1/1 1"
    stage.parts = [part(name, trouble=True)]
    began = host.ticks
    with pytest.raises(ClusterError):
        check_cluster(make_swap_run(host, ALL))
    assert longest_s - 5 <= host.ticks - began <= longest_s


def test_a_cluster_that_does_not_become_well_is_told_with_all_its_troubles(stage: Stage) -> None:
    host = make_control_plane()
    stage.parts = [part("cp2", trouble=True), part("cp3", trouble=True)]
    with pytest.raises(ClusterError) as caught:
        check_cluster(make_swap_run(host, ALL))
    assert (caught.value.code, caught.value.what) == ("cluster-not-well", "cp2 is not well")
    assert any("cp3 is not well" in line for line in caught.value.details)
    assert manifests_of(host) == {f"{name}.yaml": FORMER[name] for name in COMPONENTS}


def test_store_and_phase_name_the_same_components() -> None:
    assert store.COMPONENTS == COMPONENTS
    assert Path(MANIFESTS) == PATHS.manifests


@pytest.mark.parametrize("members", [{}, THREE])
@pytest.mark.parametrize("flag", ["--data-dir=/var/lib/etcd2", "--wal-dir=/var/lib/wal"])
def test_etcd_never_starts_elsewhere_than_where_its_data_are(stage: Stage, members: dict[str, bool], flag: str) -> None:
    """On an empty folder it would begin a cluster without any objects, and kubelets would end all pods."""
    host = make_control_plane(members=members, others=OTHERS)
    error = refused(host, {"etcd": manifest("etcd", flag)})
    assert error.code == "etcd-data-moved"
    assert "nothing was stopped" in error.cause


def test_the_mount_of_the_data_stays_too(stage: Stage) -> None:
    def mounted(path: str, *flags: str) -> str:
        return (
            manifest("etcd", *flags)
            + "    volumeMounts:\n    - {name: data, mountPath: /var/lib/etcd}\n  volumes:\n"
            + f"  - name: data\n    hostPath: {{path: {path}}}\n"
        )

    host = make_control_plane()
    host.files[f"{MANIFESTS}/etcd.yaml"] = mounted("/var/lib/etcd").encode()
    host.sleep(30)
    error = refused(host, {"etcd": mounted("/data/etcd")})
    assert error.code == "etcd-data-moved"
    assert "they are at /var/lib/etcd, and it has them at /data/etcd" in error.cause
    checked(host, {"etcd": mounted("/var/lib/etcd", "--v=4")})


def test_the_other_members_are_known_when_this_one_is_gone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest of the first control plane names its own member alone."""

    def mood(name: str, text: str) -> str:
        return "exits" if name == "etcd" else ""

    asked: list[tuple[str, ...]] = []

    def remove_and_add(client: Any, **more: Any) -> Any:
        asked.append(tuple(client.endpoints))
        raise ClusterError("no", cause="no", remedy="no", code="etcd-no-quorum")

    monkeypatch.setattr(etcd_join, "remove_and_add_learner", remove_and_add)
    host = make_control_plane(members=THREE, others=OTHERS)
    host.mood = mood
    with pytest.raises(ClusterError):
        static_pods_swap.swap_pods(make_swap_run(host, wanted("etcd")))
    assert asked == [("https://10.0.0.12:2379", "https://10.0.0.13:2379")]


def test_without_crictl_nothing_is_stopped(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    host = make_control_plane()
    monkeypatch.setattr(host, "which", lambda program: None if program == "crictl" else Path("/usr/bin") / program)
    error = refused(host, wanted("kube-scheduler"))
    assert error.code == "no-cri-client"


@pytest.mark.parametrize("does_restart", [False, True])
def test_a_sandbox_image_that_is_gone_is_fetched_before_anything_stops(stage: Stage, does_restart: bool) -> None:
    """A kubelet short of disk space deletes it while it runs: for some runtimes no pod seems to use it. Without it no new pod starts, and
    no former one comes back."""
    host = make_control_plane()
    pulls: list[str] = []
    real_run, real_query = host.run, host.query

    def run_program(argv: Any, **more: Any) -> Any:
        if "pull" in argv:
            pulls.append(str(argv[-1]))
            return CommandResult(tuple(argv), 1, stderr="not found: manifest unknown")
        return real_run(argv, **more)

    def query(argv: Any, **more: Any) -> Any:
        if argv[0] == "crictl" and argv[-1] == "info":
            status = {"conditions": [{"type": "RuntimeReady", "status": True}]}
            return CommandResult(tuple(argv), 0, json.dumps({"status": status, "config": {"sandboxImage": PAUSE}}))
        return real_query(argv, **more)

    host.run, host.query = run_program, query  # type: ignore[method-assign]
    run = make_swap_run(host, {"kube-scheduler": WANTED["kube-scheduler"]})
    with pytest.raises(KbError) as caught:
        static_pods_swap.restart(run) if does_restart else static_pods_swap.check_swap(run)
    assert caught.value.code == "image-pull-failed" and PAUSE in caught.value.what
    assert set(pulls) == {PAUSE}
    assert manifests_of(host) == {f"{name}.yaml": FORMER[name] for name in COMPONENTS} and not host.events


def test_an_image_that_is_still_to_be_pulled_is_no_trouble(stage: Stage) -> None:
    """A dry run pulls nothing; otherwise the image was pulled before the trials."""
    host = make_control_plane()
    missing = Trouble("registry.test/kube-scheduler:v9 is not on this node", "it is missing", "pull it")
    stage.trials["kube-scheduler"] = [trial("image", missing)]
    run = make_swap_run(host, wanted("kube-scheduler"))
    static_pods_swap.check_swap(run)
    assert "kube-scheduler: image could not be tried: it is pulled first" in said(run)


@pytest.mark.parametrize(
    ("kubelet", "percent"),
    [
        ({}, 15),
        ({"evictionHard": {"nodefs.available": "0%", "imagefs.available": "0%"}}, 15),
        ({"evictionHard": {"imagefs.available": "20%"}}, 20),
        ({"evictionHard": {"nodefs.available": "1Gi"}, "imageGCHighThresholdPercent": 100}, 0),
    ],
)
def test_the_room_that_the_kubelet_wants(stage: Stage, kubelet: dict[str, Any], percent: int) -> None:
    """Below it the kubelet deletes the images of pods that are stopped at that moment."""
    host = make_control_plane()
    host.answers["df"] = lambda argv: CommandResult(argv, 0, "1B-blocks\n100000000000\n")
    run = make_swap_run(host, {})
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, kubelet=kubelet))
    ballast = sum(order.BALLAST_MIB.values()) << 20
    wanted_room = max(static_pods_swap.ROOM, 1000000000 * percent) + ballast
    assert static_pods_swap._find_wanted_room(run, Path("/var/lib/kubelet")) == wanted_room


def test_programs_are_not_recorded_by_their_content(stage: Stage) -> None:
    """They have a record of their own, which a rollback renews itself."""
    host = make_control_plane()
    path = Path("/usr/bin/kubelet")
    host.files[str(path)] = b"program"
    record_programs(host, PATHS.records, paths=[path])
    before = load_records(host, PATHS.records).of(PROGRAMS)
    static_pods_swap.record_files(make_swap_run(host, {}), [path])
    assert before and load_records(host, PATHS.records).of(PROGRAMS) == before
