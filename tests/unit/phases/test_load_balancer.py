"""kubeup/phases/load_balancer.py: what a node gets before its kubelet starts, and how reset takes it back."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.config.types import (
    ClusterConfiguration,
    Join,
    KbConfiguration,
    LoadBalancer,
    LocalAPIEndpoint,
    NodeConfig,
    NodeRegistration,
)
from kubeup.engine.run import ResetRun, Run
from kubeup.engine.runner import Runner
from kubeup.engine.state import load_state
from kubeup.errors import HostError, Interrupted
from kubeup.machine import own_copy
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.host import CommandResult
from kubeup.network import load_balancer as balancer
from kubeup.paths import Paths
from kubeup.phases import load_balancer, reset
from kubeup.releases import RELEASES
from kubeup.report import Report
from tests.fake_host import FakeHost
from tests.plans import do, is_done

HOSTS, PATHS = "/etc/hosts", Paths()
BEFORE = b"127.0.0.1 localhost\n"
CLUSTER = ClusterConfiguration("v1.35.6", control_plane_endpoint="kb-api.cluster.local:7443")
LOCAL = KbConfiguration(load_balancer=LoadBalancer("local"))
PHASES = tuple(phase for phase in kb.JOIN if phase.name == "load-balancer/local")


def context(host: Any, config: NodeConfig) -> Run:
    return Run(host=host, paths=PATHS, config=config, release=RELEASES[35], report=Report(io.StringIO()))


def init_config(**fields: Any) -> NodeConfig:
    return NodeConfig(CLUSTER, NodeRegistration("cp1"), LocalAPIEndpoint("10.0.0.11"), **fields)


def join_config(*servers: str, **fields: Any) -> NodeConfig:
    join = Join(api_servers=servers)
    return NodeConfig(CLUSTER, NodeRegistration("w1"), LocalAPIEndpoint("10.0.0.21"), join=join, **fields)


STARTS = (f"enable --no-reload {balancer.UNIT}", "daemon-reload", f"restart {balancer.UNIT}")


def make_host() -> FakeHost:
    return FakeHost(
        files={HOSTS: BEFORE, "/etc/machine-id": b"x\n"},
        programs={"systemctl"},
        answers={"systemctl": ""},
        accepts={f"systemctl {words}" for words in STARTS},
    )


def test_nothing_is_done_for_who_does_not_ask() -> None:
    host = make_host()
    for config in (init_config(), join_config("10.0.0.11:6443")):
        ctx = context(host, config)
        plans = (load_balancer.plan_load_balancer, load_balancer.plan_shared_keeper, load_balancer.plan_keeper)
        for plan in plans:
            do(plan, ctx)
            assert is_done(plan, ctx)
    assert host.changes == []


@pytest.mark.parametrize(
    ("config", "servers"),
    [
        (init_config(kb=LOCAL), ("10.0.0.11:6443",)),
        (join_config("10.0.0.11:6443", "10.0.0.12:6443", kb=LOCAL), ("10.0.0.11:6443", "10.0.0.12:6443")),
    ],
)
def test_what_it_starts_with(config: NodeConfig, servers: tuple[str, ...]) -> None:
    host = make_host()
    ctx = context(host, config)
    assert not is_done(load_balancer.plan_load_balancer, ctx)
    do(load_balancer.plan_load_balancer, ctx)
    assert balancer.read_servers(host, PATHS) == servers
    assert is_done(load_balancer.plan_load_balancer, ctx)
    changes = list(host.changes)
    do(load_balancer.plan_load_balancer, ctx)
    assert host.changes == changes


def test_a_second_run_keeps_the_servers_that_the_keeper_found() -> None:
    host = make_host()
    ctx = context(host, init_config(kb=LOCAL))
    do(load_balancer.plan_load_balancer, ctx)
    settings = balancer.settings_of(CLUSTER.control_plane_endpoint, LOCAL, cri_socket="unix:///x")
    host.write_file(balancer.config_path(PATHS), balancer.render_config(settings, ["10.0.0.11:6443", "10.0.0.12:6443"]))
    assert is_done(load_balancer.plan_load_balancer, ctx)
    do(load_balancer.plan_load_balancer, ctx)
    assert balancer.read_servers(host, PATHS) == ("10.0.0.11:6443", "10.0.0.12:6443")


@pytest.mark.parametrize("lost", [HOSTS, str(PATHS.manifest(balancer.NAME)), str(balancer.config_path(PATHS))])
def test_what_is_lost_is_noticed(lost: str) -> None:
    host = make_host()
    ctx = context(host, init_config(kb=LOCAL))
    do(load_balancer.plan_load_balancer, ctx)
    host.files[lost] = BEFORE
    assert not is_done(load_balancer.plan_load_balancer, ctx)


def test_a_dry_run_changes_nothing() -> None:
    host = make_host()
    plan = DryRunHost(host)
    do(load_balancer.plan_load_balancer, context(plan, init_config(kb=LOCAL)))
    assert host.changes == [] and any(HOSTS in step.what for step in plan.plan)


def test_one_that_nobody_asks_for_any_more_stays_as_long_as_somebody_may_call_it() -> None:
    """Neither a run that leaves the flag out nor one that takes a conversion back takes it away before its last caller."""
    host = make_host()

    def work(config: NodeConfig, only: str = "") -> None:
        Runner("join", PHASES, state=load_state(host, PATHS)).run(context(host, config), only=only)

    work(join_config("10.0.0.11:6443", kb=LOCAL))
    before = dict(host.files)
    for only in ("", "load-balancer/local"):
        work(join_config("10.0.0.11:6443"), only=only)
        for path in (PATHS.manifest(balancer.NAME), balancer.config_path(PATHS), Path(HOSTS)):
            assert host.files[str(path)] == before[str(path)]


def test_somebody_else_s_name_stops_it_before_anything_is_written() -> None:
    host = make_host()
    host.files[HOSTS] += b"10.0.0.9 kb-api.cluster.local\n"
    with pytest.raises(HostError) as caught:
        Runner("join", PHASES, state=load_state(host, PATHS)).run(
            context(host, join_config("10.0.0.11:6443", kb=LOCAL))
        )
    assert caught.value.code == "endpoint-in-hosts"
    assert host.files[HOSTS].endswith(b"10.0.0.9 kb-api.cluster.local\n")
    assert not host.exists(PATHS.manifest(balancer.NAME)) and not host.exists(balancer.config_path(PATHS))


@pytest.mark.parametrize("cut_off_at", STARTS)
def test_a_keeper_that_was_rewritten_and_not_started_again_is_started_by_the_next_run(
    monkeypatch: pytest.MonkeyPatch, cut_off_at: str
) -> None:
    """Killed in between, it runs on from what its unit said before, and the unit's file is right already."""
    host, phases = make_host(), tuple(phase for phase in kb.JOIN if phase.name == "load-balancer/keeper")
    monkeypatch.setattr(balancer, "wait_until_serving", lambda *_, **__: None)

    host.files[str(PATHS.pki / "ca.crt")] = b""

    def run(command: str) -> None:
        monkeypatch.setattr(own_copy, "plan_command", lambda *_, **__: command)
        ctx = context(host, join_config("10.0.0.11:6443", kb=LOCAL))
        Runner("join", phases, state=load_state(host, PATHS)).run(ctx)

    run("python3 kb.py")
    host.answers["systemctl is-active"] = "active"

    def cut_off(_: object) -> CommandResult:
        raise Interrupted(signal.SIGTERM)

    host.answers[f"systemctl {cut_off_at}"] = cut_off
    with pytest.raises(Interrupted):
        run("python3.13 kb.py")
    assert b"python3.13 kb.py" in host.files[str(PATHS.systemd / balancer.UNIT)]
    del host.answers[f"systemctl {cut_off_at}"]
    host.changes.clear()
    run("python3.13 kb.py")
    assert f"run systemctl restart {balancer.UNIT}" in host.changes
    host.changes.clear()
    run("python3.13 kb.py")
    assert host.changes == []


@pytest.mark.parametrize("written_since", [b"", b"10.0.0.8 new\n"])
@pytest.mark.parametrize("before", [BEFORE, BEFORE.rstrip(b"\n"), b""])
@pytest.mark.parametrize("case", ["", "of a kb that wrote no marks", "the step is left out"])
def test_reset_takes_its_line_and_files_and_leaves_what_came_since(
    before: bytes, written_since: bytes, case: str
) -> None:
    host = make_host()
    host.files[HOSTS] = before
    config = join_config("10.0.0.11:6443", kb=LOCAL)
    Runner("join", PHASES, state=load_state(host, PATHS)).run(context(host, config))
    assert balancer.MARK in host.files[HOSTS].decode()
    (copy,) = (path for path, data in host.files.items() if path.startswith("/var/lib/kb/backups/"))
    assert host.files[copy] == before
    host.files[HOSTS] += written_since
    ctx = ResetRun(host=host, paths=PATHS, report=Report(io.StringIO()), cri_socket=NodeRegistration.cri_socket)
    node_state = load_state(host, PATHS)
    assert node_state.marks == {HOSTS: balancer.MARK}
    if case == "of a kb that wrote no marks":
        node_state.marks.clear()
        node_state.save()
    if case != "the step is left out":
        do(load_balancer.plan_removal, ctx)
    reset.take_back_files(ctx)
    # a last line without its end gets one where another follows
    joint = b"\n" if before and written_since and not before.endswith(b"\n") else b""
    assert host.files[HOSTS] == before + joint + written_since
    assert not host.is_dir(Path("/etc/kubernetes/kb-load-balancer")) and not host.exists(PATHS.manifest(balancer.NAME))
