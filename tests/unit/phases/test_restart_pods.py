"""A static pod whose manifest stays is restarted by ending its container: the kubelet starts the next one."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from kubeup.cluster.api import Api, Identity
from kubeup.engine.run import Caller, Run
from kubeup.errors import ClusterError, HostError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse, Tls
from kubeup.phases import restart_pods
from kubeup.releases import RELEASES
from kubeup.report import Report
from tests.fake_control_plane import make_control_plane
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, make_config
from tests.unit.swap.swap_case import make_swap_run

MANAGER, SCHEDULER = "kube-controller-manager", "kube-scheduler"
URLS = {MANAGER: "https://127.0.0.1:10257/healthz", SCHEDULER: "https://127.0.0.1:10259/livez"}
INFO = json.dumps({"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}})


@dataclass
class Runtime:
    """A runtime and a kubelet that starts the next container `starts_after_s` after one has ended, or when it is itself restarted."""

    host: FakeHost
    starts_after_s: float = 0.5
    lives_s: float = 1e9
    """How long each new container runs."""
    healthy_after_s: float = 0.0
    ends: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)
    ended_at: dict[str, float] = field(default_factory=dict)

    def add(self, name: str) -> None:
        number = len(self.rows) + 1
        meta = {"name": name, "attempt": number}
        self.rows.append({
            "id": f"id{number}", "metadata": meta, "state": "CONTAINER_RUNNING", "createdAt": str(number), "born": self.host.ticks,
            "labels": {"io.kubernetes.pod.namespace": "kube-system", "io.kubernetes.pod.name": f"{name}-cp1"},
        })  # fmt: skip
        if not self.healthy_after_s or number <= 2:
            self.host.urls[URLS[name]] = HttpResponse(200, b"ok")

    def end(self, row: dict[str, Any]) -> None:
        name = row["metadata"]["name"]
        row["state"] = "CONTAINER_EXITED"
        self.ended_at[name] = self.host.ticks
        self.host.urls.pop(URLS[name], None)

    def catch_up(self, *, is_kubelet_restarted: bool = False) -> None:
        for row in list(self.rows):
            is_new = int(row["id"][2:]) > 2
            if is_new and row["state"] == "CONTAINER_RUNNING" and self.host.ticks - row["born"] >= self.healthy_after_s:
                self.host.urls[URLS[row["metadata"]["name"]]] = HttpResponse(200, b"ok")
            if row["state"] == "CONTAINER_RUNNING" and is_new and self.host.ticks - row["born"] > self.lives_s:
                self.end(row)
        for name, ended in list(self.ended_at.items()):
            if is_kubelet_restarted or self.host.ticks - ended >= self.starts_after_s:
                del self.ended_at[name]
                self.add(name)

    def crictl(self, argv: tuple[str, ...]) -> CommandResult:
        self.catch_up()
        if "info" in argv:
            return CommandResult(argv, 0, INFO)
        if "stop" in argv:
            chosen = [row for row in self.rows if row["id"] in argv and self.ends]
            for row in chosen:
                self.end(row)
            return CommandResult(argv, 0 if chosen else 1, stderr="" if chosen else 'level=fatal msg="it hangs"')
        return CommandResult(argv, 0, json.dumps({"containers": self.rows} if "ps" in argv else {}))

    def restart_kubelet(self, argv: tuple[str, ...]) -> CommandResult:
        self.catch_up(is_kubelet_restarted=True)
        return CommandResult(argv, 0)


def make(**wishes: Any) -> tuple[Run, Runtime]:
    host = FakeHost(programs={"crictl", "systemctl", "containerd"}, dirs={"/run/systemd/system"})
    host.files["/var/run/containerd/containerd.sock"] = b""
    runtime = Runtime(host, **wishes)
    for name in (MANAGER, SCHEDULER):
        host.files[str(PATHS.manifest(name))] = b"kind: Pod\n"
        runtime.add(name)
    host.answers.update({
        "crictl": runtime.crictl,
        "systemctl restart kubelet": runtime.restart_kubelet,
        "systemctl is-active kubelet": "active\n",
        "systemctl show kubelet": "LoadState=loaded\nNeedDaemonReload=no\nDropInPaths=\n",
    })  # fmt: skip
    config = make_config()
    config = replace(config, kb=replace(config.kb, soak_s=10))
    api = Api(host, Identity("https://127.0.0.1:6443", Tls()), retry_s=0)
    report = Report(io.StringIO(), verbosity=1)
    return Run(
        host=host, paths=PATHS, config=config, release=RELEASES[35], report=report, caller=Caller.by(api)
    ), runtime


def host_of(ctx: Run) -> FakeHost:
    assert isinstance(ctx.host, FakeHost)
    return ctx.host


def kubelet_restarts(ctx: Run) -> int:
    return host_of(ctx).changes.count("run systemctl restart kubelet")


def test_both_are_stopped_side_by_side_and_come_back_in_other_containers() -> None:
    ctx, runtime = make()
    first, second = restart_pods.restart_static_pods(ctx, (MANAGER, SCHEDULER))
    assert (first.component, second.component) == (MANAGER, SCHEDULER)
    assert first.away_s == second.away_s == pytest.approx(0.5, abs=0.2)
    assert sorted(row["id"] for row in runtime.rows if row["state"] == "CONTAINER_RUNNING") == ["id3", "id4"]
    (stop,) = (change for change in host_of(ctx).changes if " stop " in change)
    assert stop.endswith("stop --timeout 30 id2 id1") and kubelet_restarts(ctx) == 0
    assert host_of(ctx).ticks > 10, "it was watched for the soak time"


def test_only_the_named_one_is_restarted() -> None:
    ctx, runtime = make()
    restart_pods.restart_static_pods(ctx, (SCHEDULER,))
    assert sorted(row["id"] for row in runtime.rows if row["state"] == "CONTAINER_RUNNING") == ["id1", "id3"]


def test_a_second_scheduler_whose_container_has_the_same_name_is_left_alone() -> None:
    ctx, runtime = make()
    runtime.add(SCHEDULER)
    runtime.rows[-1]["labels"]["io.kubernetes.pod.name"] = "second-scheduler-7d9f"
    restart_pods.restart_static_pods(ctx, (SCHEDULER,))
    assert sorted(row["id"] for row in runtime.rows if row["state"] == "CONTAINER_RUNNING") == ["id1", "id3", "id4"]


def test_on_a_busy_machine_it_may_take_longer() -> None:
    ctx, _ = make(healthy_after_s=100)
    host_of(ctx).files["/proc/loadavg"] = b"16.0 1.0 1.0 1/100 1"
    (done,) = restart_pods.restart_static_pods(ctx, (SCHEDULER,))
    assert done.away_s > 100


def test_nothing_to_restart_changes_nothing() -> None:
    ctx, _ = make()
    assert restart_pods.restart_static_pods(ctx, ()) == [] and host_of(ctx).changes == []


@pytest.mark.parametrize("others", [(), ("kube-apiserver",)])
def test_its_lease_need_not_run_out(others: tuple[str, ...]) -> None:
    host = make_control_plane()
    former = host.holders[SCHEDULER], host.holders[MANAGER]
    restart_pods.restart_static_pods(make_swap_run(host, {}), (SCHEDULER, *others))
    given_up = [one for one in host.changes if one.startswith("PATCH") and SCHEDULER in one]
    assert len(given_up) == 1
    assert host.holders[SCHEDULER] != former[0] and host.holders[MANAGER] == former[1]


def test_the_balancer_is_told_before_and_after() -> None:
    ctx, runtime = make()
    seen: list[str] = []
    note = lambda: seen.append(runtime.rows[-1]["id"])  # noqa: E731
    restart_pods.restart_static_pods(ctx, (SCHEDULER,), before_stop=note, after_start=note)
    assert seen == ["id2", "id3"]


def test_a_back_off_is_ended_by_one_restart_of_the_kubelet() -> None:
    ctx, _ = make(starts_after_s=160)
    line = f'"back-off 2m40s restarting failed container={SCHEDULER} pod={SCHEDULER}-cp1_kube-system(x)"'
    host_of(ctx).answers["journalctl -u kubelet"] = line
    (done,) = restart_pods.restart_static_pods(ctx, (SCHEDULER,))
    assert kubelet_restarts(ctx) == 1 and done.away_s < 6


def test_a_slow_start_is_no_back_off() -> None:
    ctx, _ = make(starts_after_s=8)
    (done,) = restart_pods.restart_static_pods(ctx, (SCHEDULER,))
    assert kubelet_restarts(ctx) == 0 and done.away_s == pytest.approx(8, abs=0.5)


def test_a_crash_before_the_restart_is_not_blamed_on_the_new_container() -> None:
    ctx, runtime = make(healthy_after_s=9)
    runtime.rows[1]["metadata"]["attempt"] = 5
    runtime.end(runtime.rows[1])
    (done,) = restart_pods.restart_static_pods(ctx, (SCHEDULER,))
    assert done.away_s == pytest.approx(9.5, abs=0.5)


def test_one_that_waits_in_its_back_off_needs_no_stop() -> None:
    ctx, runtime = make(starts_after_s=160)
    runtime.end(runtime.rows[1])
    host_of(ctx).answers["journalctl -u kubelet"] = f"back-off 5m0s restarting failed container={SCHEDULER} pod=x"
    restart_pods.restart_static_pods(ctx, (SCHEDULER,))
    assert not [change for change in host_of(ctx).changes if " stop " in change] and kubelet_restarts(ctx) == 1


def test_one_that_does_not_come_back_is_an_error() -> None:
    ctx, _ = make(starts_after_s=1e9)
    with pytest.raises(ClusterError) as caught:
        restart_pods.restart_static_pods(ctx, (MANAGER, SCHEDULER))
    assert caught.value.code == "not-healthy" and host_of(ctx).ticks < 70


def test_one_that_ends_again_is_told_with_its_last_words() -> None:
    ctx, _ = make(lives_s=4)
    with pytest.raises(ClusterError) as caught:
        restart_pods.restart_static_pods(ctx, (SCHEDULER,))
    assert caught.value.code == "static-pod-not-steady" and caught.value.what.startswith(f"{SCHEDULER} ended 4 s after")


def test_one_that_cannot_be_stopped_is_told() -> None:
    ctx, _ = make(ends=False)
    with pytest.raises(HostError) as caught:
        restart_pods.restart_static_pods(ctx, (SCHEDULER,))
    assert (caught.value.code, caught.value.cause) == ("container-not-stopped", "it hangs")


@pytest.mark.parametrize(
    ("lacking", "words"),
    [("manifest", "there is no"), ("crictl", "crictl is missing"), ("socket", "the container runtime does not answer"),
     ("kubelet", "the kubelet does not run"), ("life", "this is not the running node")],
)  # fmt: skip
def test_what_is_in_the_way_is_said(lacking: str, words: str) -> None:
    ctx, _ = make()
    host = host_of(ctx)
    assert restart_pods.find_obstacle(ctx, SCHEDULER) == ""
    if lacking == "manifest":
        del host.files[str(PATHS.manifest(SCHEDULER))]
    if lacking == "socket":
        del host.files["/var/run/containerd/containerd.sock"]
    host.programs.discard(lacking)
    host.is_live = lacking != "life"
    if lacking == "kubelet":
        host.answers["systemctl is-active kubelet"] = CommandResult((), 3, "inactive\n")
    assert words in restart_pods.find_obstacle(ctx, SCHEDULER)
