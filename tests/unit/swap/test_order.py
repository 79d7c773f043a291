"""kubeup/swap/order.py: what stops when, and that every failure ends with the former pods."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from kubeup.cluster import etcd_join, health
from kubeup.cluster.api import Api
from kubeup.errors import ClusterError, HostError, Interrupted, KbError
from kubeup.machine.host import Argv, CommandResult
from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.node import containers
from kubeup.phases import static_pods_swap
from kubeup.swap import patience, proof
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
    status_of,
)
from tests.unit.swap.swap_case import Stage, make_swap_run, said, undo_run

ALL = {name: WANTED[name] for name in COMPONENTS}
CONTROLLERS = COMPONENTS[2:]


def wanted(*names: str) -> dict[str, str]:
    return {name: WANTED[name] for name in names}


def swap(host: ControlPlane, *names: str, **fields: Any) -> static_pods_swap.SwapRun:
    run = make_swap_run(host, wanted(*names), **fields)
    static_pods_swap.swap_pods(run)
    return run


def fails(host: ControlPlane, *names: str, **fields: Any) -> KbError:
    with pytest.raises(KbError) as caught:
        swap(host, *names, **fields)
    return caught.value


def new_is(mood: str, name: str) -> Callable[[str, str], str]:
    """The containers of the wanted manifest of one component are in this mood."""
    return lambda one, text: mood if (one, text) == (name, WANTED[name]) else ""


def moves(host: ControlPlane) -> list[str]:
    """What was done to the manifests, in order."""
    return [event for event in host.events if event.partition(" ")[0] in ("lay", "out", "in", "write")]


# ---- the order


@pytest.mark.parametrize(
    "names", [(name,) for name in COMPONENTS] + [COMPONENTS, CONTROLLERS, COMPONENTS[:2], COMPONENTS[1:]]
)
def test_afterwards_the_wanted_pods_run(stage: Stage, names: Sequence[str]) -> None:
    host = make_control_plane()
    former = {name: host.running(name)[0].id for name in COMPONENTS}
    swap(host, *names)
    expect_settled(host, {**FORMER, **wanted(*names)}, status="done")
    swapped = {name for name in COMPONENTS if host.running(name)[0].id != former[name]}
    assert swapped == {*names, *(("kube-apiserver",) if "etcd" in names else ())}


def test_etcd_stops_only_while_the_api_server_is_out(stage: Stage) -> None:
    host = make_control_plane()
    swap(host, "etcd")
    order = [event for event in host.events if event.partition(" ")[0] in ("out", "in", "end", "start")]
    assert order == [
        "out kube-apiserver",
        "end kube-apiserver",
        "out etcd",
        "end etcd",
        "in etcd",
        "start etcd",
        "in kube-apiserver",
        "start kube-apiserver",
    ]


def test_the_controllers_are_swapped_side_by_side_after_the_servers(stage: Stage) -> None:
    host = make_control_plane()
    swap(host, *COMPONENTS)
    assert moves(host)[8:] == [f"{what} {name}" for what in ("out", "in") for name in CONTROLLERS]
    assert host.events.index("start kube-apiserver") < host.events.index("out kube-controller-manager")
    ends = [host.events.index(f"end {name}") for name in CONTROLLERS]
    starts = [host.events.index(f"start {name}") for name in CONTROLLERS]
    assert max(ends) < min(starts)


def test_the_manifests_only_move_during_the_swap(stage: Stage) -> None:
    """A rename needs no space on the disk."""
    host = make_control_plane()
    swap(host, *COMPONENTS)
    assert moves(host)[:4] == [f"lay {name}" for name in COMPONENTS]
    assert {move.partition(" ")[0] for move in moves(host)[4:]} == {"out", "in"}


def test_rights_of_the_manifest_stay(stage: Stage) -> None:
    host = make_control_plane()
    host.modes["/etc/kubernetes/manifests/kube-scheduler.yaml"] = 0o640
    swap(host, "kube-scheduler")
    assert host.modes["/etc/kubernetes/manifests/kube-scheduler.yaml"] == 0o640


def test_the_api_server_leaves_the_balancers_before_it_stops_and_is_back_before_the_controllers_stop(
    stage: Stage,
) -> None:
    host = make_control_plane(others={"10.0.0.12:6443": True})
    told: list[str] = []
    host.at_change = lambda change: told.append(change.partition(" ")[2])
    host.answers["sh"] = lambda argv: told.append(argv[-1]) or CommandResult(argv, 0)  # type: ignore[func-returns-value]
    swap(host, *COMPONENTS, before_stop="spare it", after_start="take it")
    before, after = told.index("spare it"), told.index("take it")
    place = {name: told.index(f"/etc/kubernetes/manifests/.{name}.yaml.kb-former") for name in COMPONENTS}
    assert before < place["kube-apiserver"] < place["etcd"]
    assert told.index("/etc/kubernetes/manifests/kube-apiserver.yaml") < after < place["kube-controller-manager"]


def test_who_leads_is_read_when_no_leader_of_before_runs_any_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have renewed its lease just before it was stopped, which would count as a sign of life later."""
    host, seen = make_control_plane(), list[str]()

    def read(api: object) -> dict[str, tuple[str, str]]:
        seen[:] = host.events
        return {"kube-scheduler": ("cp1_x", "now")}

    monkeypatch.setattr(health, "read_leader_renewals", read)
    run = swap(host, "kube-scheduler")
    assert seen.index("end kube-scheduler") < seen.index("start kube-scheduler")
    assert run.found.led == {"kube-scheduler": ("cp1_x", "now")}


OTHER = "10.0.0.12:6443"


@pytest.mark.parametrize(
    ("others", "refuses", "asked"),
    [
        ({OTHER: True}, (), [OTHER]),
        ({OTHER: True}, (OTHER,), [OTHER, SERVER]),
        ({OTHER: False}, (), [SERVER]),
        ({}, (), [SERVER]),
    ],
)
def test_the_kubelets_leases_are_read_of_another_api_server_while_this_one_is_away(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, others: dict[str, bool], refuses: Sequence[str], asked: Sequence[str]
) -> None:
    """Any earlier, a kubelet that calls this one alone could have renewed its lease with the former one; any later, the gate waits longer."""
    host, seen = make_control_plane(others=others), list[tuple[str, list[str]]]()

    def read(api: Api) -> dict[str, tuple[str, float]]:
        server = api.server.partition("//")[2]
        assert api.timeout_s == (2 if server == OTHER else 10), (
            "this API server is away for as long as the other one is silent"
        )
        seen.append((server, [one for one in host.events if one.endswith(" kube-apiserver")]))
        if server in refuses:
            raise Unreachable(api.server, "timeout", text="it is silent")
        return {"cp1": (f"as {server} has it", 40.0)}

    monkeypatch.setattr(health, "read_node_renewals", read)
    run = swap(host, "kube-apiserver")
    out = ["lay kube-apiserver", "out kube-apiserver", "drop kube-apiserver", "end kube-apiserver"]
    back = [*out, "in kube-apiserver", "start kube-apiserver"]
    assert seen == [(server, out if server == OTHER else back) for server in asked]
    assert run.found.renewals == {"cp1": (f"as {asked[-1]} has it", 40.0)}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_alone_needs_no_balancer_to_spare_anything(stage: Stage, name: str) -> None:
    host = make_control_plane(others={"10.0.0.12:6443": True})
    swap(host, name, before_stop="spare it", after_start="take it")
    assert not [change for change in host.changes if "spare it" in change or "take it" in change]


def test_kb_s_own_balancers_spare_an_api_server_that_is_not_the_only_one(stage: Stage) -> None:
    stage.balancers.silent = ("w1",)
    host = with_balancers(make_control_plane(others={"10.0.0.12:6443": True}))
    run = swap(host, "kube-apiserver")
    assert stage.balancers.calls == [f"drain {SERVER}", f"undrain {SERVER}"]
    assert "node w1 has not confirmed" in said(run)


def test_nobody_spares_the_only_api_server(stage: Stage) -> None:
    host = with_balancers(make_control_plane())
    swap(host, "kube-apiserver")
    assert stage.balancers.calls == [f"drain {SERVER}", f"undrain {SERVER}"], (
        "a mark that an earlier run left goes in any case"
    )


def with_balancers(host: ControlPlane) -> ControlPlane:
    data = {"metadata": {"name": "kb-config"}, "data": {"loadBalancer": json.dumps({"mode": "local"})}}
    url = f"https://{SERVER}/api/v1/namespaces/kube-system/configmaps/kb-config"
    host.urls[url] = HttpResponse(200, json.dumps(data).encode())
    return host


def test_the_leadership_of_etcd_moves_once_its_api_server_is_out_and_before_its_member_stops(stage: Stage) -> None:
    """A write of this API server would fail while the leadership leaves its etcd."""
    host = make_control_plane(members={"cp2": True, "cp3": True}, others={"10.0.0.12:6443": True})
    run = swap(host, "etcd")
    moved = next(number for number, change in enumerate(host.changes) if "transfer-leadership" in change)
    out, stopped = (
        host.changes.index(f"move /etc/kubernetes/manifests/.{name}.yaml.kb-former")
        for name in ("kube-apiserver", "etcd")
    )
    assert out < moved < stopped and host.leader != "1"
    assert "etcd's leadership moved to cp2" in said(run)


def test_a_leadership_that_stays_does_not_hinder_the_swap(stage: Stage) -> None:
    host = make_control_plane(members={"cp2": True, "cp3": True}, others={"10.0.0.12:6443": True})
    host.http_send = lambda *_, **__: HttpResponse(500, b'{"message": "timed out"}')  # type: ignore[method-assign]
    run = swap(host, "etcd")
    assert "etcd's leadership stays" in said(run)
    expect_settled(host, {**FORMER, **wanted("etcd")}, status="done")


def test_only_a_single_member_is_copied(stage: Stage) -> None:
    swap(make_control_plane(members={"cp2": True, "cp3": True}), "etcd")
    assert stage.copies.calls == ["refuse_empty"]
    stage.copies.calls.clear()
    swap(make_control_plane(), "etcd")
    assert stage.copies.calls[:2] == ["refuse_empty", "copy"] and set(stage.copies.calls[2:]) == {"remove"}
    stage.copies.calls.clear()
    swap(make_control_plane(), *COMPONENTS[1:])
    assert stage.copies.calls == []


def test_the_gap_of_the_api_server_is_told(stage: Stage) -> None:
    assert "this node's API server was away for " in said(swap(make_control_plane(), "kube-apiserver"))
    assert "was away" not in said(swap(make_control_plane(), "kube-scheduler"))


# ---- controllers that end while the API is away


def tired(*, name: str = "kube-scheduler", **fields: Any) -> ControlPlane:
    """A controller that has ended so often without an API server that the kubelet delays its next start for minutes."""
    host = make_control_plane(back_off_s=160.0, **fields)

    def end(change: str) -> None:
        if change == "move /etc/kubernetes/manifests/.etcd.yaml.kb-former":
            for one in host.running(name):
                host._end(one)

    host.at_change = end
    return host


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_that_waits_for_its_next_start_is_started_at_once(stage: Stage, name: str) -> None:
    host = tired(name=name)
    began = host.ticks
    run = swap(host, "etcd")
    assert host.serves(name) and host.ticks - began < 45
    assert f"the kubelet delays the next start of {name}" in said(run)
    expect_settled(host, {**FORMER, **wanted("etcd")}, status="done")


def test_a_scheduler_that_still_waits_for_what_it_asked_before_is_started_anew(stage: Stage) -> None:
    """It runs and says that it is alive: what it asked of an API server that was away it asks again only after half a minute."""
    host = make_control_plane(unready=frozenset({"kube-scheduler"}))
    probe = "    readinessProbe:\n      httpGet:\n        host: 127.0.0.1\n        path: /readyz\n        port: 10259\n        scheme: HTTPS\n"
    host.files[f"{MANIFESTS}/kube-scheduler.yaml"] = (FORMER["kube-scheduler"] + probe).encode()
    host.sleep(60)
    former = host.running("kube-scheduler")[0].id
    run = swap(host, "etcd")
    assert host.running("kube-scheduler")[0].id != former
    assert "not ready since the API was away, and started anew: kube-scheduler" in said(run)
    assert any("/leases/kube-scheduler" in change for change in host.changes), (
        "the next one need not wait for its lease to run out"
    )


def test_the_way_back_starts_it_too(stage: Stage) -> None:
    host = tired(mood=new_is("exits", "etcd"))
    fails(host, "etcd")
    assert host.serves("kube-scheduler")
    expect_settled(host, FORMER, status="taken back")


def test_the_kubelet_goes_on_where_every_controller_works(stage: Stage) -> None:
    host = make_control_plane()
    swap(host, "etcd")
    assert "run systemctl restart kubelet" not in host.changes


def test_a_controller_that_did_not_work_before_costs_no_time(stage: Stage) -> None:
    host = make_control_plane(mood=lambda name, _: "exits" if name == "kube-scheduler" else "")
    swap(host, "etcd")
    assert "run systemctl restart kubelet" not in host.changes


def test_a_run_that_goes_on_waits_for_a_controller_that_the_kubelet_delays(stage: Stage) -> None:
    """kb was killed after it had put the new one in, and that has ended since."""
    host = make_control_plane(back_off_s=160.0)

    def die(change: str) -> None:
        if change == "move /etc/kubernetes/manifests/kube-scheduler.yaml":
            host.is_dead = True
            raise Gone(change)

    host.at_change = die
    with pytest.raises(Gone):
        swap(host, "kube-scheduler")
    host.at_change = lambda change: None
    host.revive()
    host._end(host.running("kube-scheduler")[0])
    swap(host, "kube-scheduler")
    expect_settled(host, {**FORMER, **wanted("kube-scheduler")}, status="done")


# ---- failures, and the way back

FAILURES = [
    ("exits", "exited", name) for name in COMPONENTS
] + [
    ("exits late", "exited", name) for name in COMPONENTS
] + [
    ("unhealthy", "", name) for name in COMPONENTS
] + [
    ("other image", "does not run the image of its manifest", name) for name in COMPONENTS
] + [
    ("other argv", "does not run with the arguments of its manifest", name) for name in COMPONENTS
] + [
    ("never leads", "does not lead", name) for name in CONTROLLERS
]  # fmt: skip


@pytest.mark.parametrize(("mood", "told", "name"), FAILURES)
def test_a_pod_that_does_not_work_is_taken_back_with_all_others(stage: Stage, mood: str, told: str, name: str) -> None:
    host = make_control_plane(mood=new_is(mood, name))
    error = fails(host, *COMPONENTS)
    assert error.code == "static-pod-not-working"
    assert name in error.what and told in error.what
    expect_settled(host, FORMER, status="taken back")


@pytest.mark.parametrize("name", COMPONENTS)
def test_an_exit_is_known_at_once(stage: Stage, name: str) -> None:
    host = make_control_plane(mood=new_is("exits", name))
    began = host.ticks
    fails(host, name)
    assert host.ticks - began < 45


def test_the_first_cause_is_told_with_the_last_words_of_the_container(stage: Stage) -> None:
    host = make_control_plane(mood=new_is("exits", "kube-scheduler"))

    run = make_swap_run(host, ALL)
    error = fails_with_logs(host, run)
    assert "unknown flag: --v4" in f"{error.what} {error.cause} {error.details}"
    assert "Going back to the former pods" in said(run)
    assert "the former pods serve again" in said(run)


@pytest.mark.parametrize(
    "word",
    [
        "listen tcp 192.0.2.77:2379: bind: cannot assign requested address",
        "member 8e9e05c52164694d has already been bootstrapped",
    ],
)
def test_nobody_is_told_to_reset_a_control_plane_or_to_move_its_data_away(stage: Stage, word: str) -> None:
    """As would be right while a node is being made."""
    host = make_control_plane(mood=new_is("exits", "etcd"))
    error = fails_with_logs(host, make_swap_run(host, ALL), word)
    assert word.split()[-1] in f"{error.cause} {error.details}"
    assert "reset" not in error.remedy and "mv " not in error.remedy


def fails_with_logs(host: ControlPlane, run: static_pods_swap.SwapRun, word: str = "unknown flag: --v4") -> KbError:
    settle = host.settle

    def settle_and_log() -> None:
        settle()
        for one in host.containers:
            text = f"2026-01-01T00:00:00Z stderr F E0101 {word}\n"
            host.files.setdefault(f"/var/log/{one.id}.log", text.encode())

    host.settle = settle_and_log  # type: ignore[method-assign]
    with pytest.raises(KbError) as caught:
        static_pods_swap.swap_pods(run)
    return caught.value


def test_another_control_plane_that_leads_is_no_failure(stage: Stage) -> None:
    """The new controller works; what it would do as leader is unproven, and that is told."""
    host = make_control_plane(others={"10.0.0.12:6443": True})
    host.holders = dict.fromkeys(CONTROLLERS, "cp2_abc")
    run = swap(host, *CONTROLLERS)
    expect_settled(host, {**FORMER, **wanted(*CONTROLLERS)}, status="done")
    for name in CONTROLLERS:
        assert f"{name} of this node runs, and cp2 leads" in said(run)


def test_a_former_holder_of_this_node_is_no_proof_that_the_new_one_leads(stage: Stage) -> None:
    """A lease keeps the name of its last holder. A run that continues while the API server is out cannot have read it before."""
    host = make_control_plane(mood=new_is("never leads", "kube-controller-manager"))
    host.at_change = lambda change: kill_at(host, change, "move /etc/kubernetes/manifests/.etcd.yaml.kb-former")
    with pytest.raises(Gone):
        swap(host, *COMPONENTS)
    host.at_change = lambda change: None
    host.revive()
    error = fails(host, *COMPONENTS)
    assert "does not lead" in error.what
    expect_settled(host, FORMER, status="taken back")


def kill_at(host: ControlPlane, change: str, where: str) -> None:
    if change == where:
        host.dies_after = len(host.changes)


@pytest.mark.parametrize("at", ["out kube-apiserver", "out etcd", "in etcd", "in kube-apiserver", "in kube-scheduler"])
def test_a_kubelet_that_is_stopped_meanwhile_is_started_again(stage: Stage, at: str) -> None:
    host = make_control_plane()

    def stop(_: str) -> None:
        if at in host.events and not [change for change in host.changes if "start kubelet" in change]:
            host.kubelet_runs = False

    host.at_change = stop
    run = swap(host, *COMPONENTS)
    assert "the kubelet is not running: starting it" in said(run)
    expect_settled(host, ALL, status="done")


def test_a_kubelet_that_does_not_let_itself_be_asked_takes_longer_and_no_more(stage: Stage) -> None:
    host = make_control_plane(kubelet_answers=False)
    swap(host, *COMPONENTS)
    expect_settled(host, ALL, status="done")


def test_a_copy_of_etcd_that_fails_is_taken_back(stage: Stage) -> None:
    error = HostError("no room", cause="the disk is full", remedy="make space", code="disk-full")
    stage.copies.fails_with["copy"] = error
    host = make_control_plane()
    assert fails(host, "etcd") is error
    expect_settled(host, FORMER, status="taken back")
    assert "restore" not in stage.copies.calls


def test_the_former_etcd_gets_its_data_back_only_if_it_cannot_start_with_the_new(stage: Stage) -> None:
    def mood(name: str, text: str) -> str:
        if name == "etcd":
            return "breaks data" if text == WANTED["etcd"] else "needs its own data"
        return new_is("exits", "kube-apiserver")(name, text)

    host = make_control_plane(mood=mood)
    fails(host, *COMPONENTS)
    assert stage.copies.calls.count("restore") == 1
    expect_settled(host, FORMER, status="taken back")
    stage.copies.calls.clear()
    host = make_control_plane(mood=new_is("exits", "kube-apiserver"))
    fails(host, *COMPONENTS)
    assert "restore" not in stage.copies.calls


def test_the_copy_never_comes_back_over_what_the_cluster_wrote_since(stage: Stage) -> None:
    """The swap was killed when all of its pods were in. The cluster served with them for an hour before somebody took it back."""

    def mood(name: str, text: str) -> str:
        return "needs its own data" if name == "etcd" and text == FORMER["etcd"] else ""

    host = make_control_plane(mood=mood)
    host.at_change = lambda change: kill_at(host, change, "move /etc/kubernetes/manifests/kube-scheduler.yaml")
    with pytest.raises(Gone):
        swap(host, *COMPONENTS)
    host.at_change = lambda change: None
    host.revive(3600)
    host.files[DATA] = b"with an hour of everybody's work"
    with pytest.raises(KbError):
        static_pods_swap.swap_pods(undo_run(host))
    assert host.files[DATA] == b"with an hour of everybody's work"


@pytest.mark.parametrize("name", COMPONENTS)
def test_what_an_earlier_run_has_put_in_is_proven_too(stage: Stage, name: str) -> None:
    host = make_control_plane(mood=new_is("unhealthy", name))
    host.at_change = lambda change: kill_at(host, change, f"move /etc/kubernetes/manifests/{name}.yaml")
    with pytest.raises(Gone):
        swap(host, name)
    host.at_change = lambda change: None
    host.revive(3)
    error = fails(host, name)
    assert error.code == "static-pod-not-working" and name in error.what
    expect_settled(host, FORMER, status="taken back")


def test_a_run_that_comes_at_once_takes_no_former_container_for_the_new_one(stage: Stage) -> None:
    host = make_control_plane()
    host.at_change = lambda change: kill_at(host, change, "move /etc/kubernetes/manifests/kube-scheduler.yaml")
    with pytest.raises(Gone):
        swap(host, "kube-scheduler")
    host.at_change = lambda change: None
    host.revive(0)
    swap(host, "kube-scheduler")
    expect_settled(host, {**FORMER, **wanted("kube-scheduler")}, status="done")


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_manifest_that_cannot_be_laid_ready_stops_nothing(stage: Stage, name: str) -> None:
    host = make_control_plane(cannot_write=lambda path: path.endswith(f".{name}.yaml.kb-next"))
    assert fails(host, *COMPONENTS).code == "disk-full"
    assert manifests_of(host) == {f"{one}.yaml": FORMER[one] for one in COMPONENTS}
    assert not [event for event in host.events if event.startswith(("out", "end"))]
    assert "/var/lib/kb/swap/ballast" not in host.files


def test_a_record_that_cannot_be_written_stops_nothing(stage: Stage) -> None:
    host = make_control_plane(cannot_write=lambda path: path.endswith("swap.json"))
    assert fails(host, *COMPONENTS).code == "disk-full"
    assert manifests_of(host) == {f"{one}.yaml": FORMER[one] for one in COMPONENTS}
    assert not [event for event in host.events if event.startswith(("out", "end"))]


def test_a_disk_that_fills_up_once_the_swap_has_begun_stops_nobody(stage: Stage) -> None:
    """Nothing below the kubelet's folder is written any more, neither on the way there nor on the way back."""
    host = make_control_plane(mood=new_is("exits late", "kube-scheduler"))
    host.cannot_write = lambda path: "out kube-apiserver" in host.events and path.startswith("/etc/")
    assert fails(host, *COMPONENTS).code == "static-pod-not-working"
    expect_settled(host, FORMER, status="taken back")


def test_the_ballast_goes_before_the_way_back(stage: Stage) -> None:
    host = make_control_plane(mood=new_is("exits", "kube-scheduler"))
    fails(host, "kube-scheduler")
    assert any(change.startswith("run fallocate") for change in host.changes)
    dropped = host.changes.index("remove /var/lib/kb/swap/ballast")
    back = [
        number
        for number, change in enumerate(host.changes)
        if change == "move /etc/kubernetes/manifests/kube-scheduler.yaml"
    ]
    assert dropped < back[-1]


class FullDisk(ControlPlane):
    """A disk that fills up. It ends etcd, also each of its next starts, which the kubelet delays for longer each time; with some space, etcd
    takes the next segment of its log at once. The kubelet starts nothing without space."""

    is_filled: bool = False
    taken: int = 0
    ballast: dict[str, int]

    def fill(self) -> None:
        self.is_filled = True
        for one in self.running("etcd"):
            self._end(one)

    def run(self, argv: Argv, **more: Any) -> CommandResult:
        if argv[0] == "fallocate":
            self.ballast = {**getattr(self, "ballast", {}), str(argv[-1]): int(str(argv[2]).removesuffix("MiB")) << 20}
        return super().run(argv, **more)

    def free_bytes(self, path: Path) -> int:
        if not self.is_filled:
            return 1 << 40
        return sum(size for name, size in self.ballast.items() if name not in self.files) - self.taken

    def _start(self, pod: Any, *, attempt: int) -> None:
        if self.is_filled and self.free_bytes(Path("/")) < 1 << 20 and pod.name != "etcd":
            del self.pods[pod.name]
            self._not_before[pod.name] = self.ticks + 5.0
            return
        super()._start(pod, attempt=attempt)
        if pod.name != "etcd" or not self.is_filled:
            return
        self.back_off_s = 10.0 * 2 ** max(0, attempt - 1)
        if self.free_bytes(Path("/")) < 1 << 20:
            pod.container.mood, pod.container.stops_at = "exits", self.ticks + 0.4
        else:
            self.taken += min(self.free_bytes(Path("/")), 64_000_000)


@pytest.mark.parametrize("name", [*CONTROLLERS, "kube-apiserver"])
@pytest.mark.parametrize("load", ["0.1", "16.0"])
@pytest.mark.parametrize("at", ["out", "in"])
def test_a_disk_that_ends_etcd_during_the_swap_of_another_has_it_go_back_at_once(
    stage: Stage, name: str, load: str, at: str
) -> None:
    """Each further start of etcd on a full disk would delay the next one for twice as long, and the way back has the space that it needs."""
    host = make_control_plane(FullDisk)
    assert isinstance(host, FullDisk)
    host.files["/proc/loadavg"] = f"{load} 0 0 1/1 1".encode()
    moved = f"move {MANIFESTS}/.{name}.yaml.kb-former" if at == "out" else f"move {MANIFESTS}/{name}.yaml"

    def fill(change: str) -> None:
        if change == moved and not host.is_filled:
            host.fill()

    host.at_change = fill
    began = host.ticks
    run = make_swap_run(host, wanted(name))
    with pytest.raises(ClusterError) as caught:
        static_pods_swap.swap_pods(run)
    assert "free space" in str(caught.value) or "free space" in caught.value.cause
    assert host.serves("etcd") and host.serves("kube-apiserver") and host.ticks - began < 45.0, host.ticks - began
    assert "etcd has ended meanwhile" in said(run)
    assert "run systemctl restart kubelet" not in host.changes  # which would cost a minute without an API server
    host.violations.clear()  # the disk has stopped etcd under its API server, not kb
    expect_settled(host, FORMER, status="taken back")


@pytest.mark.parametrize("name", ["etcd", *CONTROLLERS])
def test_a_disk_on_which_the_kubelet_starts_nothing_has_the_swap_go_back_at_once(stage: Stage, name: str) -> None:
    """It may wait for minutes on a busy machine, where only the way back has space."""
    host = make_control_plane(FullDisk)
    assert isinstance(host, FullDisk)
    host.files["/proc/loadavg"] = b"16.0 0 0 1/1 1"
    last = {"etcd": "kube-apiserver"}.get(name, name)

    def fill(change: str) -> None:
        if change == f"move {MANIFESTS}/{last}.yaml":
            host.is_filled = True

    host.at_change = fill
    began = host.ticks
    error = fails(host, name)
    assert "free space" in str(error) and host.ticks - began < 45.0, host.ticks - began
    expect_settled(host, FORMER, status="taken back")


def test_an_etcd_that_the_kubelet_delays_for_minutes_is_started_by_a_new_kubelet(stage: Stage) -> None:
    """A run that was killed left it so; its way back has space, and the kubelet does not know that."""
    host = make_control_plane()
    host.at_change = lambda change: kill_at(host, change, f"move {MANIFESTS}/.kube-scheduler.yaml.kb-former")
    with pytest.raises(Gone):
        swap(host, "kube-scheduler")
    host.revive()
    host.pods["etcd"].container.attempt = 6  # type: ignore[union-attr]
    host.back_off_s = 300.0
    host._end(host.running("etcd")[0])
    host.at_change = lambda change: None
    began = host.ticks
    run = undo_run(host)
    static_pods_swap.swap_pods(run)
    assert "restarting the kubelet" in said(run) and host.ticks - began < 60.0
    host.violations.clear()  # somebody else has stopped etcd under its API server
    expect_settled(host, FORMER, status="taken back")


def test_a_signal_takes_the_way_back_and_stays_a_signal(stage: Stage) -> None:
    host = make_control_plane()
    came: list[int] = []

    def interrupt(change: str) -> None:
        if change == "move /etc/kubernetes/manifests/etcd.yaml" and not came:
            came.append(15)
            raise Interrupted(15)

    host.at_change = interrupt
    with pytest.raises(Interrupted):
        swap(host, *COMPONENTS)
    expect_settled(host, FORMER, status="taken back")


def test_a_users_command_that_fails_before_anything_stops_stops_nothing(stage: Stage) -> None:
    host = make_control_plane()
    host.answers["sh"] = lambda argv: CommandResult(argv, 3, stderr="no such backend")
    error = fails(host, "kube-apiserver", before_stop="spare it")
    assert (error.code, error.cause) == ("users-command-failed", "no such backend")
    assert not [event for event in host.events if event.startswith("out")]
    expect_settled(host, FORMER, status="taken back")


def test_a_users_command_that_fails_afterwards_is_told(stage: Stage) -> None:
    """The pods run, and only the user can put the API server back into his own load balancer."""
    host = make_control_plane()
    host.answers["sh"] = lambda argv: CommandResult(argv, 3, stderr="no such backend")
    run = make_swap_run(host, wanted("kube-apiserver"), after_start="take it")
    static_pods_swap.swap_pods(run)
    assert "the command of --after-start ended with code 3" in said(run)
    expect_settled(host, {**FORMER, **wanted("kube-apiserver")}, status="done")


# ---- the way back fails too


def broken(host: ControlPlane, *, name: str = "kube-scheduler") -> Callable[[str, str], str]:
    """Neither the wanted nor, from its first swap on, the former manifest works."""
    return lambda one, text: "exits" if one == name and "lay " + name in host.events else ""


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_way_back_that_fails_is_told_with_both_causes_and_completes_later(stage: Stage, name: str) -> None:
    host = make_control_plane()
    host.mood = broken(host, name=name)
    error = fails(host, *COMPONENTS)
    assert error.code == "swap-not-taken-back"
    assert isinstance(error, ClusterError)
    assert name in error.what and error.cause.startswith("the way back failed too: ")
    assert "--undo" in error.remedy
    assert status_of(host) == "running"
    host.mood = lambda one, text: ""
    static_pods_swap.swap_pods(undo_run(host))
    expect_settled(host, FORMER, status="taken back")


def test_after_a_way_back_that_failed_the_same_command_may_go_on_too(stage: Stage) -> None:
    host = make_control_plane()
    host.mood = broken(host)
    fails(host, *COMPONENTS)
    host.mood = lambda one, text: ""
    swap(host, *COMPONENTS)
    expect_settled(host, ALL, status="done")


def test_a_kubelet_that_cannot_be_started_is_the_end_of_both_ways(stage: Stage) -> None:
    host = make_control_plane()
    real = host.run

    def run(argv: Argv, **more: Any) -> CommandResult:
        words = tuple(map(str, argv))
        if words[:2] == ("systemctl", "start"):
            return CommandResult(words, 1, stderr="Unit kubelet.service is masked.")
        return real(argv, **more)

    host.run = run  # type: ignore[method-assign]

    def stop(_: str) -> None:
        host.kubelet_runs = "out kube-scheduler" not in host.events

    host.at_change = stop
    error = fails(host, "kube-scheduler")
    assert error.code == "swap-not-taken-back"
    host.at_change = lambda change: None
    host.run = real  # type: ignore[method-assign]
    static_pods_swap.swap_pods(undo_run(host))
    expect_settled(host, FORMER, status="taken back")


# ---- taking back a swap that ended


def test_undo_of_a_swap_that_is_done(stage: Stage) -> None:
    host = make_control_plane()
    swap(host, *COMPONENTS)
    static_pods_swap.swap_pods(undo_run(host))
    expect_settled(host, FORMER, status="taken back")


def test_a_swap_after_one_that_was_taken_back(stage: Stage) -> None:
    host = make_control_plane(mood=new_is("exits", "kube-scheduler"))
    fails(host, "kube-scheduler")
    host.mood = lambda one, text: ""
    swap(host, "kube-scheduler")
    expect_settled(host, {**FORMER, **wanted("kube-scheduler")}, status="done")


def test_the_same_text_with_another_image_is_another_pod(stage: Stage) -> None:
    host = make_control_plane()
    text = manifest("kube-scheduler", image="registry.k8s.io/kube-scheduler:v1.35.7")
    static_pods_swap.swap_pods(make_swap_run(host, {"kube-scheduler": text}))
    expect_settled(host, {**FORMER, "kube-scheduler": text}, status="done")


def test_a_swap_that_did_not_work_leaves_the_last_one_undoable(stage: Stage) -> None:
    host = make_control_plane()
    swap(host, "kube-scheduler")
    host.mood = new_is("exits", "kube-controller-manager")
    fails(host, "kube-controller-manager")
    expect_settled(host, {**FORMER, **wanted("kube-scheduler")}, status="done")
    host.mood = lambda one, text: ""
    static_pods_swap.swap_pods(undo_run(host))
    expect_settled(host, FORMER, status="taken back")
    assert not host.exists(Path("/var/lib/kb/swap/last.json"))


def test_the_record_is_written_before_the_swap_counts_as_ended(stage: Stage) -> None:
    """Killed in between, the same command would say that there is nothing to do, and never write it."""
    host = make_control_plane()
    seen: list[str] = []

    def keep(run: Any, swapped: Any) -> None:
        seen.append(status_of(host))

    run = make_swap_run(host, wanted("kube-scheduler"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static_pods_swap, "record_files", keep)
        static_pods_swap.swap_pods(run)
    assert seen == ["running"]


@pytest.mark.parametrize(
    ("load", "times"), [("0.5", 1.0), ("3.0", 1.0), ("8.0", 2.0), ("90.0", 4.0), ("nonsense", 1.0)]
)
def test_a_busy_machine_gets_more_time(stage: Stage, load: str, times: float) -> None:
    host = make_control_plane()
    host.files["/proc/loadavg"] = f"{load} 1.0 1.0 1/100 1".encode()
    run = make_swap_run(host, {})
    run.host.cpu_count = lambda: 2  # type: ignore[method-assign]
    assert patience.find_patience(run.host) == times


def test_on_a_busy_machine_the_only_controller_may_lead_later(stage: Stage) -> None:
    took_s = []
    for load in ("0.5", "16.0"):
        host = make_control_plane(mood=new_is("never leads", "kube-scheduler"))
        host.files["/proc/loadavg"] = f"{load} 1.0 1.0 1/100 1".encode()
        began = host.ticks
        fails(host, "kube-scheduler")
        took_s.append(host.ticks - began)
    assert took_s[1] - took_s[0] > 0.9 * proof.LEAD_S


def test_what_the_kubelet_restarts_while_a_pod_is_taken_out_is_no_new_container(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller-manager that lost its lease ends by itself; its restart, in the pod that is just being stopped, ends at once."""
    host = make_control_plane()
    asked: dict[str, bool] = {}
    real = proof.list_ids

    def list_ids(run: Any, names: Sequence[str], *, only_ended: bool = False) -> frozenset[str]:
        for name in names:
            asked[name] = host.exists(Path(f"/etc/kubernetes/manifests/{name}.yaml"))
        return real(run, names, only_ended=only_ended)

    monkeypatch.setattr(proof, "list_ids", list_ids)
    swap(host, *COMPONENTS)
    assert asked == dict.fromkeys(COMPONENTS, False), "asked before the pods had ended"
    asked.clear()
    host.mood = lambda name, text: "exits" if name == "kube-scheduler" and text == FORMER[name] else ""
    with pytest.raises(KbError):
        static_pods_swap.swap_pods(undo_run(host))
    assert asked == dict.fromkeys(COMPONENTS, False), "asked before the pods of the way back had ended"


# ---- repairs


def test_a_pod_that_did_not_work_before_is_repaired(stage: Stage) -> None:
    host = make_control_plane(mood=lambda name, text: "unhealthy" if text == FORMER["kube-apiserver"] else "")
    host.sleep(30)
    swap(host, "kube-apiserver")
    expect_settled(host, {**FORMER, **wanted("kube-apiserver")}, status="done")


def test_a_repair_that_does_not_work_ends_where_it_began(stage: Stage) -> None:
    """Its way back does not wait for a pod that never worked, and other manifests may be tried next."""
    host = make_control_plane(mood=lambda name, text: "unhealthy" if name == "kube-scheduler" else "")
    host.sleep(30)
    error = fails(host, "kube-scheduler")
    assert error.code == "static-pod-not-working"
    assert status_of(host) == "taken back"
    assert host.files["/etc/kubernetes/manifests/kube-scheduler.yaml"] == FORMER["kube-scheduler"].encode()


def test_etcd_that_does_not_answer_is_repaired(stage: Stage) -> None:
    host = make_control_plane(mood=lambda name, text: "unhealthy" if text == FORMER["etcd"] else "")
    host.sleep(30)
    real = host.http_ask

    def ask(url: str, body: bytes, **more: Any) -> HttpResponse:
        if not host.serves("etcd"):
            raise Unreachable(url, "refused", text="nobody listens")
        return real(url, body, **more)

    host.http_ask = ask  # type: ignore[method-assign]
    static_pods_swap.check_swap(make_swap_run(host, wanted("etcd")))
    swap(host, "etcd")
    expect_settled(host, {**FORMER, **wanted("etcd")}, status="done")


# ---- one control plane at a time

LEASE = "kb-static-pods"


def held_by(node: str, *, host: ControlPlane, for_s: float = 5.0, says_s: Optional[float] = None) -> dict[str, Any]:
    """for_s: since when, by the API server's clock. says_s: the same by the holder's, if that is another."""
    now = host.now() - datetime.timedelta(seconds=host.clock_ahead_s)
    written, said_to_be = (
        now - datetime.timedelta(seconds=each or 0.0) for each in (for_s, for_s if says_s is None else says_s)
    )
    spec = {"holderIdentity": node, "renewTime": f"{said_to_be:%Y-%m-%dT%H:%M:%S.%fZ}", "leaseDurationSeconds": 600}
    owner = {"manager": "kb", "operation": "Update", "time": f"{written:%Y-%m-%dT%H:%M:%SZ}"}
    return {"metadata": {"name": LEASE, "resourceVersion": "1", "managedFields": [owner]}, "spec": spec}


def test_the_others_are_kept_from_swapping_meanwhile(stage: Stage) -> None:
    host = make_control_plane()
    seen = []
    host.at_change = lambda change: seen.append(host.leases.get(LEASE, {}).get("spec", {}).get("holderIdentity"))
    swap(host, "kube-scheduler")
    assert set(seen[:-2]) == {"cp1"}
    assert not host.leases


@pytest.mark.parametrize("for_s", [-300.0, 5.0, 590.0])
def test_while_another_control_plane_swaps_nothing_stops(stage: Stage, for_s: float) -> None:
    """Its clock may be ahead of this one's."""
    host = make_control_plane(members={"cp2": True, "cp3": True})
    host.leases[LEASE] = held_by("cp2", host=host, for_s=for_s)
    error = fails(host, "etcd")
    assert error.code == "swap-elsewhere"
    assert "control plane cp2 swaps its static pods" in error.what
    assert f"kubectl -n kube-system delete lease {LEASE}" in error.remedy
    assert not host.changes
    assert host.leases[LEASE]["spec"]["holderIdentity"] == "cp2"


@pytest.mark.parametrize("ahead_s", [-700.0, 700.0])
def test_clocks_that_are_off_change_nothing(stage: Stage, ahead_s: float) -> None:
    """Neither this node's clock nor the holder's says when a swap is over."""
    host = make_control_plane(members={"cp2": True, "cp3": True})
    host.clock_ahead_s = ahead_s
    host.leases[LEASE] = held_by("cp2", host=host, for_s=5.0)
    assert fails(host, "etcd").code == "swap-elsewhere"
    host.leases[LEASE] = held_by("cp2", host=host, for_s=5.0, says_s=5.0 - ahead_s)
    assert fails(host, "etcd").code == "swap-elsewhere"
    assert not host.changes
    host.leases[LEASE] = held_by("cp2", host=host, for_s=602.0, says_s=602.0 - ahead_s)
    swap(host, "etcd")
    assert not host.leases


def test_a_lease_whose_owners_are_not_noted_goes_by_its_own_time(stage: Stage) -> None:
    host = make_control_plane(members={"cp2": True, "cp3": True})
    host.leases[LEASE] = held_by("cp2", host=host, for_s=5.0)
    del host.leases[LEASE]["metadata"]["managedFields"]
    assert fails(host, "etcd").code == "swap-elsewhere"
    host.leases[LEASE]["spec"]["renewTime"] = "yesterday"
    assert fails(host, "etcd").code == "swap-elsewhere"


def test_a_lease_that_a_dead_machine_left_lapses(stage: Stage) -> None:
    host = make_control_plane()
    host.leases[LEASE] = held_by("cp2", host=host, for_s=602.0)
    swap(host, "etcd")
    expect_settled(host, {**FORMER, "etcd": WANTED["etcd"]}, status="done")


def test_quorum_is_counted_again_when_it_is_this_node_s_turn(stage: Stage) -> None:
    """Another control plane has swapped since the question was asked, and its member does not serve yet."""
    host = make_control_plane(members={"cp2": True, "cp3": False})
    assert fails(host, "etcd").code == "etcd-stop-unsafe"
    assert not host.leases
    assert not moves(host)


def test_an_api_that_is_away_hinders_no_way_back(stage: Stage) -> None:
    host = make_control_plane()
    host.at_change = lambda change: kill_at(host, change, "move /etc/kubernetes/manifests/.etcd.yaml.kb-former")
    with pytest.raises(Gone):
        swap(host, "etcd")
    host.at_change = lambda change: None
    host.revive()
    assert host.leases
    run = undo_run(host)
    static_pods_swap.swap_pods(run)
    assert "are not kept from swapping" in said(run)
    expect_settled(host, FORMER, status="taken back")


def test_where_both_ways_fail_the_others_have_to_wait(stage: Stage) -> None:
    host = make_control_plane()
    host.mood = broken(host)
    fails(host, "kube-scheduler")
    assert host.leases[LEASE]["spec"]["holderIdentity"] == "cp1"


@pytest.mark.parametrize("members", [{}, {"cp2": True, "cp3": True}])
def test_one_exit_of_the_former_etcd_replaces_no_data(stage: Stage, members: dict[str, bool]) -> None:
    """Its port was not free yet, for example."""
    starts = []

    def mood(name: str, text: str) -> str:
        if name != "etcd":
            return ""
        starts.append(text)
        return "exits" if text == WANTED["etcd"] or starts.count(FORMER["etcd"]) == 2 else ""

    host = make_control_plane(members=members, mood=mood)
    fails(host, "etcd")
    assert "restore" not in stage.copies.calls
    expect_settled(host, FORMER, status="taken back")


def is_half_replaced(host: ControlPlane) -> bool:
    return host.is_dir(Path("/var/lib/etcd/.kb-coming"))


def changes_until_the_end(make: Callable[[], ControlPlane]) -> int:
    host = make()
    fails(host, *COMPONENTS)
    return len(host.changes)


def gone_on_after_halves(make: Callable[[], ControlPlane], *, is_undone: bool) -> Iterator[tuple[int, ControlPlane]]:
    """Killed after each change that leaves the data half replaced, and gone on with: (the change's number, the machine)."""
    for number in range(1, changes_until_the_end(make)):
        host = make()
        host.dies_after = number
        with pytest.raises(Gone):
            swap(host, *COMPONENTS)
        host.revive()
        if not is_half_replaced(host):
            continue
        if is_undone:
            static_pods_swap.swap_pods(undo_run(host))
        else:
            assert fails(host, *COMPONENTS).code == "swap-goes-back", number
        yield number, host


@pytest.mark.parametrize("is_undone", [False, True])
def test_killed_while_the_data_of_etcd_are_put_back(stage: Stage, is_undone: bool) -> None:
    """On a folder that is empty, or half of this and half of that, etcd would begin a new cluster, and the copy would be removed."""

    def mood(name: str, text: str) -> str:
        if name == "etcd":
            return "breaks data" if text == WANTED["etcd"] else "needs its own data"
        return new_is("exits", "kube-apiserver")(name, text)

    def make() -> ControlPlane:
        return make_control_plane(mood=mood)

    halves = 0
    for number, host in gone_on_after_halves(make, is_undone=is_undone):
        halves += 1
        expect_settled(host, FORMER, status="taken back")
        assert host.files[DATA] == b"of the former etcd" and not is_half_replaced(host), number
    assert halves > 2


@pytest.mark.parametrize("is_undone", [False, True])
def test_killed_while_a_member_joins_again(stage: Stage, monkeypatch: pytest.MonkeyPatch, is_undone: bool) -> None:
    """The manifest of the first control plane names its own member alone: on an empty folder, that is a new cluster."""
    listed: list[str] = []

    def remove_and_add(client: Any, *, empty: Callable[[], None], name: str, peer_url: str, **more: Any) -> Any:
        if "learner" not in listed:
            empty()
            client.host.run(["true"])  # stands for the request
            listed.append("learner")
        return [(name, peer_url), ("cp2", "https://10.0.0.12:2380")]

    def promote(client: Any, peer_url: str, **more: Any) -> None:
        client.host.sleep(2)
        client.host.run(["true"])
        assert client.host.running("etcd")

    monkeypatch.setattr(etcd_join, "remove_and_add_learner", remove_and_add)
    monkeypatch.setattr(etcd_join, "promote_when_ready", promote)

    def mood(name: str, text: str) -> str:
        return "" if name != "etcd" else "breaks data" if text == WANTED["etcd"] else "needs its own data"

    def is_well(name: str, text: str) -> str:
        told = mood(name, text) or new_is("exits", "kube-apiserver")(name, text)
        return "" if "--initial-cluster-state=existing" in text else told

    def make() -> ControlPlane:
        listed.clear()
        return make_control_plane(members={"cp2": True, "cp3": True}, mood=is_well, accepts={"true"})

    halves = 0
    for number, host in gone_on_after_halves(make, is_undone=is_undone):
        halves += 1
        etcd_text = manifests_of(host)["etcd.yaml"]
        assert "--initial-cluster-state=existing" in etcd_text
        expect_settled(host, {**FORMER, "etcd": etcd_text}, status="taken back")
        assert host.files[DATA] == b"of the others" and not is_half_replaced(host), number
    assert halves > 3


def test_a_disk_that_is_not_there_after_a_power_cut_is_no_empty_cluster(stage: Stage) -> None:
    host = make_control_plane(members={"cp2": True, "cp3": True})
    host.at_change = lambda change: kill_at(host, change, "move /etc/kubernetes/manifests/.etcd.yaml.kb-former")
    with pytest.raises(Gone):
        swap(host, *COMPONENTS)
    host.at_change = lambda change: None
    host.revive()
    data = host.files.pop(DATA)
    error = fails(host, *COMPONENTS)
    assert error.code == "swap-not-taken-back" and "mount them" in error.remedy and not host.violations
    assert DATA not in host.files
    host.files[DATA] = data
    swap(host, *COMPONENTS)
    expect_settled(host, ALL, status="done")


@pytest.mark.parametrize(
    ("at", "is_undo"),
    [(".kube-apiserver.yaml.kb-former", False), ("etcd.yaml", True)],
)
def test_quorum_is_counted_again_by_a_run_that_goes_on(stage: Stage, at: str, is_undo: bool) -> None:
    """Since the swap was cut off, the machine of another member has gone. What does not stop etcd may still be done."""
    host = make_control_plane(members={"cp2": True, "cp3": True})
    host.at_change = lambda change: kill_at(host, change, f"move {MANIFESTS}/{at}")
    with pytest.raises(Gone):
        swap(host, "etcd", "kube-apiserver")
    host.at_change = lambda change: None
    host.revive()
    host.members["cp3"] = False
    before = list(moves(host))
    with pytest.raises(ClusterError) as caught:
        static_pods_swap.swap_pods(undo_run(host)) if is_undo else swap(host, "etcd", "kube-apiserver")
    assert caught.value.code == "etcd-stop-unsafe" and moves(host) == before
    assert caught.value.remedy.endswith(
        "kb reconfigure static-pods" if is_undo else "kb reconfigure static-pods --undo"
    )
    if is_undo:
        swap(host, "etcd", "kube-apiserver")
    else:
        static_pods_swap.swap_pods(undo_run(host))
    texts = {**FORMER, **wanted("etcd", "kube-apiserver")} if is_undo else FORMER
    expect_settled(host, texts, status="done" if is_undo else "taken back")


def test_a_member_that_is_still_a_learner_is_no_obstacle_to_the_way_back(stage: Stage) -> None:
    host = make_control_plane(members={"cp2": True, "cp3": True})
    host.at_change = lambda change: kill_at(host, change, f"move {MANIFESTS}/etcd.yaml")
    with pytest.raises(Gone):
        swap(host, "etcd")
    host.at_change = lambda change: None
    host.revive()
    real = host.http_ask

    def ask(url: str, body: bytes, **more: Any) -> HttpResponse:
        if url.startswith("https://10.0.0.11:") and url.endswith("member/list") and not moves_back(host):
            return HttpResponse(400, b'{"message": "etcdserver: rpc not supported for learner"}')
        return real(url, body, **more)

    host.http_ask = ask  # type: ignore[method-assign]
    static_pods_swap.swap_pods(undo_run(host))
    expect_settled(host, FORMER, status="taken back")


def moves_back(host: ControlPlane) -> bool:
    return moves(host).count("out etcd") > 1


def test_a_former_etcd_that_the_kubelet_delays_comes_back(stage: Stage) -> None:
    """With the data that are there it has ended so often that the kubelet waits for minutes."""
    host = make_control_plane()
    host.at_change = lambda change: kill_at(host, change, f"move {MANIFESTS}/.etcd.yaml.kb-former")
    with pytest.raises(Gone):
        swap(host, *COMPONENTS)
    host.revive()

    def delay(change: str) -> None:
        if change == f"move {MANIFESTS}/etcd.yaml":
            host._not_before["etcd"] = host.ticks + 300.0

    host.at_change = delay
    run = undo_run(host)
    static_pods_swap.swap_pods(run)
    assert "restarting the kubelet" in said(run)
    expect_settled(host, FORMER, status="taken back")


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_that_loses_its_lease_on_the_way_back_is_no_failure(stage: Stage, name: str) -> None:
    """It was never taken out, and ends once it has tried for ten seconds to renew its lease: when the API server is back already."""
    host = make_control_plane()
    host.at_change = lambda change: kill_at(host, change, f"move {MANIFESTS}/.kube-apiserver.yaml.kb-former")
    with pytest.raises(Gone):
        swap(host, *COMPONENTS)
    host.revive()

    def lose(change: str) -> None:
        if change == f"move {MANIFESTS}/kube-apiserver.yaml":
            (one,) = host.running(name)
            one.mood, one.stops_at = "unhealthy", host.ticks + 8.0

    host.at_change = lose
    static_pods_swap.swap_pods(undo_run(host))
    expect_settled(host, FORMER, status="taken back")


@pytest.mark.parametrize("silent_s", [15.0, 1e9])
def test_what_ended_while_the_runtime_was_silent_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, silent_s: float
) -> None:
    """Its successor works by the end of the watch."""
    name = "kube-scheduler"
    host = make_control_plane(back_off_s=1.0)

    def mood(one: str, text: str) -> str:
        is_first = "--v=4" in text and all("--v=4" not in made.argv for made in host.containers)
        return "exits late" if is_first else ""

    host.mood = mood
    real, run = proof.watch_all, make_swap_run(host, wanted(name))

    def watch_all(run: Any, containers_of: Any) -> None:
        ask, began = containers.ask_containers, host.ticks
        with monkeypatch.context() as patch:
            patch.setattr(
                containers, "ask_containers", lambda *a, **k: ask(*a, **k) if host.ticks - began > silent_s else None
            )
            real(run, containers_of)

    monkeypatch.setattr(proof, "watch_all", watch_all)
    if silent_s > 100:
        static_pods_swap.swap_pods(run)
        assert "that kube-scheduler ran on is not proven" in said(run)
        return
    with pytest.raises(KbError) as caught:
        static_pods_swap.swap_pods(run)
    assert caught.value.code == "static-pod-not-working"
    expect_settled(host, FORMER, status="taken back")


@pytest.mark.parametrize("is_undo", [False, True])
def test_what_somebody_wrote_meanwhile_is_kept_aside(stage: Stage, is_undo: bool) -> None:
    host = make_control_plane()
    host.at_change = lambda change: kill_at(host, change, f"move {MANIFESTS}/kube-apiserver.yaml")
    with pytest.raises(Gone):
        swap(host, *COMPONENTS)
    host.at_change = lambda change: None
    host.revive()
    edited = manifest("kube-apiserver", "--v=9")
    host.files[f"{MANIFESTS}/kube-apiserver.yaml"] = edited.encode()
    host.sleep(30)
    run = undo_run(host) if is_undo else make_swap_run(host, ALL)
    static_pods_swap.swap_pods(run)
    expect_settled(host, FORMER if is_undo else ALL, status="taken back" if is_undo else "done")
    assert host.files["/var/lib/kb/swap/kube-apiserver.yaml"] == edited.encode()
    assert host.modes["/var/lib/kb/swap/kube-apiserver.yaml"] == 0o600 and "was changed since" in said(run)


def test_a_successor_that_led_before_it_was_swapped_leaves_no_lease_to_run_out(stage: Stage) -> None:
    """It could not renew its lease while the API was away, so the next one holds it by another name than at the beginning."""
    name = "kube-controller-manager"
    host = make_control_plane(back_off_s=1.0)

    def end(change: str) -> None:
        if change == f"move {MANIFESTS}/kube-apiserver.yaml":
            host._stop((host.running(name)[0].id,))
            host.sleep(30)

    host.at_change = end
    former = host.holders[name]
    swap(host, "kube-apiserver", name)
    freed = [change for change in host.changes if change.startswith("PATCH") and name in change]
    assert freed and host.holders[name] != former
    expect_settled(host, {**FORMER, **wanted("kube-apiserver", name)}, status="done")


def test_after_a_network_that_was_away_everything_serves_again_by_itself(stage: Stage) -> None:
    host = make_control_plane(members={"cp2": True, "cp3": True})

    def unplug(change: str) -> None:
        if change == "move /etc/kubernetes/manifests/.etcd.yaml.kb-former":
            host.members = {"cp2": False, "cp3": False}

    host.at_change = unplug
    assert fails(host, "etcd").code == "swap-not-taken-back"
    assert not [name for name in COMPONENTS if f"{name}.yaml" not in manifests_of(host)]
    host.at_change = lambda change: None
    host.members = {"cp2": True, "cp3": True}
    host.sleep(60)
    assert host.serves("kube-apiserver")
    static_pods_swap.swap_pods(undo_run(host))
    expect_settled(host, FORMER, status="taken back")
