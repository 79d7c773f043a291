"""A change that is being tried, from --try to its end: confirmed, taken back by the unit that waits, or cut off in between."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubeup.commands import reconfigure_try
from kubeup.errors import HostError
from kubeup.machine import own_copy
from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths
from kubeup.phases import tried_swap
from kubeup.swap import store, try_record
from tests.fake_control_plane import (
    FORMER,
    MANIFESTS,
    WANTED,
    ControlPlane,
    Gone,
    expect_settled,
    manifest,
    manifests_of,
)
from tests.fuzz.node import Ended, call
from tests.unit.commands import test_reconfigure_config as case
from tests.unit.commands.test_static_pods import files, machine, not_well
from tests.unit.swap.swap_case import Stage, set_stage

UNIT = "/etc/systemd/system/kb-try.service"
RECORD = "/var/lib/kb/try/try.json"
BOOT = "/proc/sys/kernel/random/boot_id"
ONE = ("kube-scheduler",)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(own_copy, "find_root_python", lambda: "/usr/bin/python3")
    return set_stage(monkeypatch)


class Cluster:
    """ConfigMap kubeadm-config, and the Events of the node, in front of the control plane's own answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.marks: dict[str, str] = {}
        self.events: list[tuple[str, str]] = []
        ask, send = ControlPlane.http_get, ControlPlane.http_send

        def http_get(host: ControlPlane, url: str, **more: Any) -> HttpResponse:
            if url.endswith("/configmaps/kubeadm-config") and host.serves("kube-apiserver"):
                return answer({"kind": "ConfigMap", "metadata": {"annotations": self.marks}})
            return ask(host, url, **more)

        def http_send(host: ControlPlane, method: str, url: str, *, body: bytes = b"", **more: Any) -> HttpResponse:
            if not any(word in url for word in ("/configmaps/kubeadm-config?", "/events")):
                return send(host, method, url, body=body, **more)
            if not host.serves("kube-apiserver"):
                raise Unreachable(url, "refused", text="connection refused")
            found = json.loads(body)
            if "/events" in url:
                self.events.append((found["type"], found["reason"]))
                return answer(found)
            for name, value in found["metadata"]["annotations"].items():
                if value is None:
                    self.marks.pop(name, None)
                else:
                    self.marks[name] = value
            host.changes.append(f"{method} {url}")
            host._changed(host.changes[-1])
            return answer({"kind": "ConfigMap", "metadata": {"annotations": self.marks}})

        monkeypatch.setattr(ControlPlane, "http_get", http_get)
        monkeypatch.setattr(ControlPlane, "http_send", http_send)


def answer(value: object) -> HttpResponse:
    return HttpResponse(200, json.dumps(value).encode(), {"content-type": "application/json"})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


@pytest.fixture
def host(stage: Stage, cluster: Cluster) -> ControlPlane:
    made = machine()
    made.files[BOOT] = b"first\n"
    verbs = ("enable --no-reload", "restart", "disable", "disable --now")
    made.accepts = {*made.accepts, "systemctl daemon-reload", *(f"systemctl {verb} kb-try.service" for verb in verbs)}
    return made


def kb(host: ControlPlane, *words: str) -> Ended:
    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    ended = call(list(words), make, limit_s=120)
    assert not ended.bug, ended.bug
    return ended


def done(host: ControlPlane, *words: str) -> Ended:
    ended = kb(host, *words)
    assert ended.status == 0, ended.err
    return ended


def refused(host: ControlPlane, *words: str, code: str) -> Ended:
    before, events = dict(host.files), list(host.events)
    ended = kb(host, *words)
    assert ended.status != 0 and f"code:   {code}\n" in ended.err, ended.err
    for text in (before, host.files):
        for path in ("/var/lib/kb/kb.lock", "/var/lib/kb/state.json"):
            text.pop(path, None)
    assert host.files == before and host.events == events
    return ended


def begin(host: ControlPlane, *names: str, lasts: str = "5m") -> Ended:
    return done(host, "reconfigure", "static-pods", *files(*(names or ONE)), "--try", lasts, "--yes")


def after(*names: str) -> dict[str, str]:
    return {**FORMER, **{name: WANTED[name] for name in names}}


def record(host: ControlPlane) -> Any:
    return json.loads(host.files[RECORD])


def is_over(host: ControlPlane, status: str) -> bool:
    return record(host)["status"] == status and UNIT not in host.files


def expect_former(host: ControlPlane) -> None:
    """The former pods run, whether a swap had begun or not."""
    if "/var/lib/kb/swap/swap.json" in host.files:
        expect_settled(host, FORMER, status="taken back")
    assert manifests_of(host) == {f"{name}.yaml": text for name, text in FORMER.items()}


def reboot(host: ControlPlane, *, off_s: float = 60.0) -> None:
    host.files[BOOT] = b"another\n"
    host.clock += datetime.timedelta(seconds=off_s)


# ---- confirmed, or not


def test_it_goes_back_by_itself_at_its_end(host: ControlPlane, cluster: Cluster) -> None:
    told = begin(host)
    assert "goes back by itself at" in told.err and "kb reconfigure confirm" in told.err
    assert host.modes[RECORD] == 0o600
    assert cluster.marks == {"kb/tried-change": f"cp1 {record(host)['ends']}"}
    assert "reconfigure wait" in host.files[UNIT].decode() and "run systemctl restart kb-try.service" in host.changes
    expect_settled(host, after(*ONE), status="done")
    began = host.monotonic()
    told = done(host, "reconfigure", "wait")
    assert 270 < host.monotonic() - began < 400
    expect_settled(host, FORMER, status="taken back")
    assert is_over(host, "back") and "went back" in told.err
    assert cluster.marks == {} and cluster.events == [("Normal", "ChangeTakenBack")]
    assert "run systemctl disable kb-try.service" in host.changes
    assert "run systemctl disable --now kb-try.service" not in host.changes, "it would end itself in the middle"


def test_a_confirmed_change_stays(host: ControlPlane) -> None:
    begin(host)
    assert "stays" in done(host, "reconfigure", "confirm").err
    assert is_over(host, "confirmed")
    done(host, "reconfigure", "wait")
    host.sleep(600)
    expect_settled(host, after(*ONE), status="done")
    ended = refused(host, "reconfigure", "confirm", code="nothing-tried")
    assert "the last one was confirmed" in ended.err
    done(host, "reconfigure", "static-pods", "--undo")
    expect_settled(host, FORMER, status="taken back")


def test_all_of_a_control_plane_goes_back_at_once(host: ControlPlane) -> None:
    names = tuple(FORMER)
    begin(host, *names)
    expect_settled(host, after(*names), status="done")
    done(host, "reconfigure", "back", "--yes")
    expect_settled(host, FORMER, status="taken back")
    assert is_over(host, "back")
    assert "gone back from the last one already" in refused(host, "reconfigure", "back", code="nothing-tried").err
    refused(host, "reconfigure", "static-pods", "--undo", code="nothing-to-undo")


def test_a_way_back_where_only_the_gate_failed_is_continued_by_the_same_command(
    host: ControlPlane, stage: Stage
) -> None:
    begin(host)
    stage.parts = not_well()
    failed = kb(host, "reconfigure", "back", "--yes")
    assert "code:   cluster-not-well\n" in failed.err and is_over(host, "back")
    events = list(host.events)
    assert "code:   cluster-not-well\n" in kb(host, "reconfigure", "back", "--yes").err
    stage.parts = []
    assert "has gone back" in done(host, "reconfigure", "back", "--yes").err
    assert host.events == events
    refused(host, "reconfigure", "back", code="nothing-tried")


def test_confirming_comes_too_late(host: ControlPlane) -> None:
    begin(host)
    done(host, "reconfigure", "wait")
    refused(host, "reconfigure", "confirm", code="nothing-tried")


def test_without_a_try_nothing_goes_back(host: ControlPlane) -> None:
    done(host, "reconfigure", "static-pods", *files(*ONE))
    assert RECORD not in host.files and UNIT not in host.files
    for verb in ("confirm", "back"):
        refused(host, "reconfigure", verb, code="nothing-tried")


def test_a_change_that_does_not_work_is_not_tried(host: ControlPlane) -> None:
    host.mood = lambda name, text: "exits" if text == WANTED["kube-scheduler"] else ""
    assert kb(host, "reconfigure", "static-pods", *files(*ONE), "--try", "5m").status == 5
    expect_settled(host, FORMER, status="taken back")
    assert is_over(host, "back")


def test_the_same_again_is_nothing_to_try(host: ControlPlane) -> None:
    done(host, "reconfigure", "static-pods", *files(*ONE))
    begin(host)
    assert RECORD not in host.files and UNIT not in host.files


def test_the_same_command_goes_on_where_only_the_gate_failed(host: ControlPlane, stage: Stage) -> None:
    stage.parts = not_well()
    words = ("reconfigure", "static-pods", *files(*ONE), "--try", "5m")
    failed = kb(host, *words)
    assert "code:   cluster-not-well\n" in failed.err and "continue with the same command" in failed.err
    tried = record(host)
    assert tried["status"] == "waiting"
    assert "code:   cluster-not-well\n" in kb(host, *words).err  # it is looked at again, not the trial refused
    stage.parts, events = [], list(host.events)
    told = done(host, *words)
    assert record(host) == tried and host.events == events, "the time goes on, and nothing was swapped"
    assert f"goes back by itself at {tried['ends']}" in told.err and "kb reconfigure confirm" in told.err
    done(host, "reconfigure", "confirm")


def test_what_somebody_changed_meanwhile_goes_back_too_and_is_kept(host: ControlPlane) -> None:
    begin(host)
    text = manifest("kube-scheduler", "--v=9")
    host.files[f"{MANIFESTS}/kube-scheduler.yaml"] = text.encode()
    host.sleep(30)
    assert "was changed during the trial" in done(host, "reconfigure", "wait").err
    expect_settled(host, FORMER, status="taken back")
    assert host.files["/var/lib/kb/try/kube-scheduler.yaml"] == text.encode()


# ---- meanwhile


@pytest.mark.parametrize(
    "words",
    [
        ("reconfigure", "static-pods", "/root/kube-scheduler.yaml"),
        ("reconfigure", "static-pods", "/root/etcd.yaml", "--try", "1m"),
        ("reconfigure", "static-pods", "--undo"),
        ("upgrade", "apply", "v1.36.0"),
        ("upgrade", "node"),
        ("certs", "renew", "all"),
        ("certs", "add-san", "a.example"),
        ("reconfigure", "endpoint", "a.example:6443"),
    ],
)
def test_other_changes_wait_for_its_end(host: ControlPlane, words: tuple[str, ...]) -> None:
    begin(host)
    ended = refused(host, *words, code="try-pending")
    assert "kb reconfigure confirm" in ended.err and "kb reconfigure back" in ended.err


def test_status_and_doctor_tell(host: ControlPlane) -> None:
    from kubeup.doctor import node_files
    from kubeup.doctor.looks import swapping

    patient: Any = type("Patient", (), {"host": host, "paths": Paths()})()
    assert list(swapping.look_at_try(patient)) == []
    begin(host)
    assert "a change of kube-scheduler is being tried" in done(host, "status").out
    found = [(one.level, one.text) for one in swapping.look_at_try(patient)]
    assert found[0][0] == "warning" and "goes back at" in found[0][1]
    assert found[1] == ("error", "kb-try.service, which goes back at the end, does not run")
    one = try_record.load(host, Paths())
    assert one is not None and node_files
    try_record.save(host, Paths(), one=try_record.note_failure(host, one, why="it broke"))
    assert "going back failed once (it broke)" in next(iter(swapping.look_at_try(patient))).text


# ---- refused before anything stops


@pytest.mark.parametrize(
    ("name", "flag", "told"),
    [
        ("kube-apiserver", "--encryption-provider-config=/etc/kubernetes/enc.yaml", "how objects are encrypted"),
        ("kube-apiserver", "--service-account-issuer=https://a.example", "which tokens"),
        ("kube-apiserver", "--storage-media-type=application/json", "how objects are stored"),
        ("etcd", "--initial-cluster=a=https://10.0.0.11:2380", "who is a member"),
        ("kube-controller-manager", "--cluster-cidr=10.9.0.0/16", "addresses that nodes have"),
    ],
)
def test_what_going_back_would_not_undo(host: ControlPlane, name: str, flag: str, told: str) -> None:
    host.files[f"/root/{name}.yaml"] = manifest(name, flag).encode()
    ended = refused(host, "reconfigure", "static-pods", f"/root/{name}.yaml", "--try", "5m", "--yes", code="try-unsafe")
    assert flag.partition("=")[0] in ended.err and told in ended.err


@pytest.mark.parametrize("name", ["etcd", "kube-apiserver"])
def test_another_minor_is_not_tried(host: ControlPlane, name: str) -> None:
    host.files[f"/root/{name}.yaml"] = manifest(name, image=f"registry.k8s.io/{name}:v1.36.0").encode()
    refused(host, "reconfigure", "static-pods", f"/root/{name}.yaml", "--try", "5m", "--yes", code="try-unsafe")
    pod = store.Pod(name, manifest(name), manifest(name, image=f"registry.k8s.io/{name}:v1.35.9"))
    assert not tried_swap.find_lasting(pod)


def test_a_file_that_lies_elsewhere_on_the_host_counts_too() -> None:
    texts = [
        manifest("kube-apiserver", "--encryption-provider-config=/enc/c.yaml").replace(
            "    image:", "    volumeMounts: [{name: e, mountPath: /enc}]\n    image:"
        )
        + f"  volumes: [{{name: e, hostPath: {{path: {place}}}}}]\n"
        for place in ("/etc/a", "/etc/b")
    ]
    assert "--encryption-provider-config" in tried_swap.find_lasting(store.Pod("kube-apiserver", *texts))[0]
    assert not tried_swap.find_lasting(store.Pod("kube-apiserver", texts[0], texts[0]))


def test_a_machine_without_systemd(host: ControlPlane) -> None:
    host.dirs.discard("/run/systemd/system")
    ended = refused(host, "reconfigure", "static-pods", *files(*ONE), "--try", "5m", code="no-systemd")
    assert "--undo" in ended.err


@pytest.mark.parametrize("words", [["--try", "1s"], ["--try", "48h"], ["--undo", "--try", "5m"]])
def test_a_time_that_cannot_be(host: ControlPlane, words: list[str]) -> None:
    given = [] if "--undo" in words else files(*ONE)
    if "--undo" in words:
        done(host, "reconfigure", "static-pods", *files(*ONE))
    refused(host, "reconfigure", "static-pods", *given, *words, code="usage")


def test_a_unit_that_does_not_start(host: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise HostError("no", cause="x", remedy="y", code="unit-not-started")

    monkeypatch.setattr("kubeup.machine.services.start_own_unit", fail)
    assert kb(host, "reconfigure", "static-pods", *files(*ONE), "--try", "5m").status == 4
    assert is_over(host, "back") and not host.events
    expect_former(host)


# ---- killed, rebooted, another clock


def cut_off(host: ControlPlane, act: Callable[[], object], *, at: str) -> None:
    def kill(change: str) -> None:
        if change == at:
            host.dies_after = len(host.changes)

    host.at_change = kill
    with pytest.raises(Gone):
        act()
    host.at_change = lambda change: None
    host.revive()


MOMENTS = (
    f"write {RECORD}",
    f"write {UNIT}",
    "run systemctl restart kb-try.service",
    f"write {MANIFESTS}/.kube-scheduler.yaml.kb-next",
    f"move {MANIFESTS}/.kube-apiserver.yaml.kb-former",
    f"move {MANIFESTS}/.etcd.yaml.kb-former",
    f"move {MANIFESTS}/etcd.yaml",
    f"move {MANIFESTS}/kube-scheduler.yaml",
)


@pytest.mark.parametrize("at", MOMENTS)
def test_killed_on_the_way_there_it_goes_back(host: ControlPlane, at: str) -> None:
    names = tuple(FORMER)
    cut_off(host, lambda: begin(host, *names), at=at)
    began = host.monotonic()
    done(host, "reconfigure", "wait")
    assert host.monotonic() - began < 250, "there is nothing to try"
    expect_former(host)
    assert is_over(host, "back")
    assert not [path for path in host.files if ".kb-" in path]


def test_killed_on_the_way_there_the_same_command_goes_on(host: ControlPlane) -> None:
    cut_off(host, lambda: begin(host, *FORMER), at=f"move {MANIFESTS}/.etcd.yaml.kb-former")
    done(host, "reconfigure", "static-pods")
    expect_settled(host, after(*FORMER), status="done")
    assert record(host)["status"] == "waiting" and UNIT in host.files
    done(host, "reconfigure", "confirm")


def test_killed_on_the_way_there_undo_ends_it(host: ControlPlane) -> None:
    cut_off(host, lambda: begin(host, *FORMER), at=f"move {MANIFESTS}/.etcd.yaml.kb-former")
    refused(host, "reconfigure", "confirm", code="try-unfinished")
    done(host, "reconfigure", "static-pods", "--undo")
    expect_settled(host, FORMER, status="taken back")
    assert is_over(host, "back")


@pytest.mark.parametrize("verb", ["wait", "back"])
@pytest.mark.parametrize("at", MOMENTS[4:])
def test_killed_on_the_way_back_it_goes_on(host: ControlPlane, at: str, verb: str) -> None:
    begin(host, *FORMER)
    cut_off(host, lambda: kb(host, "reconfigure", "wait"), at=at)
    words = ("reconfigure", verb) if verb == "wait" else ("reconfigure", verb, "--yes")
    done(host, *words)
    expect_settled(host, FORMER, status="taken back")
    assert is_over(host, "back")


def test_what_is_left_is_waited_for_after_a_reboot(host: ControlPlane) -> None:
    begin(host)
    host.sleep(100)
    reboot(host, off_s=60)
    began = host.monotonic()
    done(host, "reconfigure", "wait")
    assert 130 < host.monotonic() - began < 200
    expect_settled(host, FORMER, status="taken back")


def test_a_machine_that_was_off_at_the_end_goes_back_at_boot(host: ControlPlane) -> None:
    begin(host)
    reboot(host, off_s=86400)
    began = host.monotonic()
    done(host, "reconfigure", "wait")
    assert host.monotonic() - began < 100
    expect_settled(host, FORMER, status="taken back")


@pytest.mark.parametrize("hours", [-9, 9])
def test_a_clock_that_jumps_changes_nothing_within_a_boot(host: ControlPlane, hours: int) -> None:
    begin(host)
    host.clock += datetime.timedelta(hours=hours)
    began = host.monotonic()
    done(host, "reconfigure", "wait")
    assert 290 < host.monotonic() - began < 400


def test_a_clock_that_went_back_over_a_reboot_makes_it_no_longer(host: ControlPlane) -> None:
    begin(host)
    reboot(host, off_s=-86400 * 365)
    began = host.monotonic()
    done(host, "reconfigure", "wait")
    assert 290 < host.monotonic() - began < 400


def test_the_end_comes_while_another_kb_works(host: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swap of the trial itself holds the lock, and the end is counted from when it has succeeded."""
    begin(host)
    free_at = host.monotonic() + 900
    real = ControlPlane.lock

    def lock(self: ControlPlane, path: Path, holder: str) -> Any:
        if self.monotonic() < free_at:
            raise HostError("this node is being worked on", cause="kb holds it", remedy="wait", code="locked")
        return real(self, path, holder)

    monkeypatch.setattr(ControlPlane, "lock", lock)
    done(host, "reconfigure", "wait")
    assert host.monotonic() >= free_at
    expect_settled(host, FORMER, status="taken back")


def test_a_way_back_that_fails_is_told_and_tried_again(host: ControlPlane, cluster: Cluster) -> None:
    begin(host)
    host.mood = lambda name, text: "exits" if text == FORMER["kube-scheduler"] else ""
    ended = kb(host, "reconfigure", "wait")
    assert ended.status == 5 and "tried again at" in ended.err
    assert record(host)["failures"] == 1 and record(host)["status"] == "waiting" and UNIT in host.files
    began = host.monotonic()
    assert kb(host, "reconfigure", "wait").status == 5 and host.monotonic() - began > 29
    assert cluster.events == [("Warning", "ChangeNotTakenBack")] * 2
    expect_settled(host, after(*ONE), status="done")
    host.mood = lambda name, text: ""
    done(host, "reconfigure", "wait")
    expect_settled(host, FORMER, status="taken back")
    assert is_over(host, "back")


def test_a_way_back_that_failed_may_still_be_given_up(host: ControlPlane) -> None:
    begin(host)
    host.mood = lambda name, text: "exits" if text == FORMER["kube-scheduler"] else ""
    kb(host, "reconfigure", "wait")
    done(host, "reconfigure", "confirm")
    expect_settled(host, after(*ONE), status="done")


def test_the_pauses_grow() -> None:
    host = machine()
    one = try_record.Try((store.Pod("etcd", "a: 1\n", "a: 2\n"),), 300.0)
    pauses = []
    for _ in range(7):
        one = try_record.note_failure(host, one, why="x")
        pauses.append(round(one.until_s - host.monotonic()))
    assert pauses == [30, 60, 120, 240, 480, 600, 600]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 2}'])
def test_a_damaged_record(host: ControlPlane, text: str) -> None:
    host.files[RECORD] = text.encode()
    for words in (("confirm",), ("back",), ("wait",), ("static-pods", *files(*ONE))):
        refused(host, "reconfigure", *words, code="try-unreadable")


def test_the_unit_alone_has_nothing_to_wait_for(host: ControlPlane) -> None:
    host.files[UNIT] = b"[Unit]\n"
    done(host, "reconfigure", "wait")
    assert UNIT not in host.files


def test_how_often_the_unit_looks() -> None:
    assert reconfigure_try.LOOK_S <= 5


# ---- kb reconfigure


SET = ("reconfigure", "scheduler", "--set", "kube-api-qps=47", "--yes")


config_stage = case.stage  # its fixture, by another name


@pytest.fixture
def node(config_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> case.Node:
    monkeypatch.setattr(own_copy, "find_root_python", lambda: "/usr/bin/python3")
    made = case.make_node()
    made.files[BOOT] = b"first\n"
    verbs = ("enable --no-reload", "restart", "disable", "disable --now")
    made.accepts = {*made.accepts, "systemctl daemon-reload", *(f"systemctl {verb} kb-try.service" for verb in verbs)}
    return made


def flags_of(host: case.Node) -> list[str]:
    return [word for word in case.words_of(host, "kube-scheduler") if "qps" in word]


def test_a_reconfiguration_is_stored_when_it_is_confirmed(node: case.Node) -> None:
    before = case.stored(node)
    told = done(node, *SET, "--try", "5m")
    assert flags_of(node) == ["--kube-api-qps=47"] and "kb reconfigure confirm" in told.err
    assert case.stored(node) == before and case.FORMER not in node.cluster.objects
    told = done(node, "reconfigure", "confirm")
    assert "kb reconfigure node" in told.out + told.err
    assert {"name": "kube-api-qps", "value": "47"} in case.stored(node)["scheduler"]["extraArgs"]
    assert case.stored(node, case.FORMER) == before
    assert flags_of(node) == ["--kube-api-qps=47"] and UNIT not in node.files


def test_what_another_node_stores_during_a_trial_stays_when_it_is_confirmed(node: case.Node) -> None:
    """`kb certs add-san` there, or kubectl edit."""
    done(node, *SET, "--try", "5m")
    document = case.stored(node)
    args = [{"name": "kube-api-burst", "value": "90"}]
    case.store(node, {**document, "apiServer": {"certSANs": ["api.example.com"]}, "scheduler": {"extraArgs": args}})
    done(node, "reconfigure", "confirm")
    assert case.stored(node)["apiServer"]["certSANs"] == ["api.example.com"]
    assert case.stored(node)["scheduler"]["extraArgs"] == [*args, {"name": "kube-api-qps", "value": "47"}]


def test_a_reconfiguration_that_is_not_confirmed_was_never_stored(node: case.Node) -> None:
    before = case.stored(node)
    done(node, *SET, "--try", "5m")
    done(node, "reconfigure", "wait")
    assert flags_of(node) == [] and case.stored(node) == before
    done(node, *SET)
    assert flags_of(node) == ["--kube-api-qps=47"] and case.stored(node) != before


def test_a_reconfiguration_where_only_the_gate_failed_goes_on(node: case.Node, config_stage: Stage) -> None:
    before = case.stored(node)
    config_stage.parts = not_well()
    assert "code:   cluster-not-well\n" in kb(node, *SET, "--try", "5m").err
    config_stage.parts = []
    for words in (("scheduler", "--set", "kube-api-qps=48"), ("controller-manager", "--set", "v=4")):
        refused(node, "reconfigure", *words, "--try", "5m", "--yes", code="try-pending")
    refused(node, *SET, code="try-pending")
    assert "goes back by itself" in done(node, *SET, "--try", "5m").err
    assert case.stored(node) == before and flags_of(node) == ["--kube-api-qps=47"]
    done(node, "reconfigure", "confirm")
    assert case.stored(node) != before


def test_a_reconfiguration_that_was_cut_off_goes_on_as_a_trial(node: case.Node) -> None:
    before = case.stored(node)
    cut_off(node, lambda: kb(node, *SET, "--try", "5m"), at=f"move {MANIFESTS}/kube-scheduler.yaml")
    done(node, *SET, "--try", "5m")
    assert record(node)["status"] == "waiting" and case.stored(node) == before
    done(node, "reconfigure", "confirm")
    assert case.stored(node) != before


@pytest.mark.parametrize(
    "words", [("kubelet", "--set", "maxPods=99"), ("kube-proxy", "--set", "metricsBindAddress=x:1")]
)
def test_what_is_no_static_pod_is_not_tried(node: case.Node, words: tuple[str, ...]) -> None:
    case.keep(
        node, case.KUBELETS.replace("kubelet-config", "kube-proxy"), {"config.conf": "kind: KubeProxyConfiguration\n"}
    )
    ended = kb(node, "reconfigure", *words, "--try", "5m", "--yes")
    assert ended.status != 0 and UNIT not in node.files and RECORD not in node.files, ended.err
