"""kubeup/phases/runtime_registries.py: what is asked of containerd, and when it is asked again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubeup.config.types import Packages
from kubeup.engine.run import Run
from kubeup.engine.runner import Runner
from kubeup.engine.state import load_state
from kubeup.engine.step import Phase
from kubeup.machine.dry_run import DryRunHost
from kubeup.node import runtime, runtime_fix
from kubeup.phases import runtime_registries
from tests.fake_host import FakeHost
from tests.fake_node import PATHS
from tests.plans import do
from tests.unit.phases.wishes_case import context

HOSTS = Path("/etc/containerd/certs.d/docker.io/hosts.toml")
STEPS = (Phase("install/registries", does="r", plan=runtime_registries.plan_registries),)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[runtime_fix.Wanted, bool]]:
    """What containerd's configuration was made to say; the runtime answers."""
    calls: list[tuple[runtime_fix.Wanted, bool]] = []

    def fix(host: Any, socket: str, wanted: runtime_fix.Wanted, *, restarts: bool = False) -> tuple[str, ...]:
        calls.append((wanted, restarts))
        return ("it was not so",) if len(calls) == 1 else ()

    monkeypatch.setattr(runtime_fix, "fix_runtime", fix)
    monkeypatch.setattr(runtime, "probe_runtime", lambda host, socket: runtime.RuntimeStatus(socket, is_ready=True))
    return calls


def preset(host: FakeHost, **wishes: Any) -> Run:
    return context(host, packages=Packages("auto", "daocloud"), **wishes)


def work(ctx: Run) -> str:
    return Runner("init", STEPS, state=load_state(ctx.host, PATHS)).run(ctx).phases[0].status


def test_what_is_right_is_not_asked_for_again(asked: list[Any]) -> None:
    host = FakeHost()
    assert work(preset(host)) == "done" and "server" in host.read_text(HOSTS)
    assert work(preset(host)) == "unchanged" and len(asked) == 1
    host.remove(HOSTS)
    assert work(preset(host)) == "done" and host.exists(HOSTS)


def test_another_sandbox_image_is_asked_for(asked: list[Any]) -> None:
    """Containerd's own configuration is not looked at again: the plan says that something else is wanted."""
    host = FakeHost()
    work(preset(host))
    ctx = preset(host)
    cluster = replace(ctx.config.cluster, image_repository="r.example")
    assert work(replace(ctx, config=replace(ctx.config, cluster=cluster))) in ("done", "unchanged")
    assert [wanted.sandbox_image.partition("/")[0] for wanted, _ in asked] == ["registry.k8s.io", "r.example"]


def test_a_run_that_was_cut_off_restarts_containerd_in_the_next(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have written the configuration and not come to the restart."""
    host, real = FakeHost(), runtime_fix.fix_runtime

    def cut_off(*words: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime_fix, "fix_runtime", cut_off)
    with pytest.raises(KeyboardInterrupt):
        work(preset(host))
    monkeypatch.setattr(runtime_fix, "fix_runtime", real)
    work(preset(host))
    assert [restarts for _, restarts in asked] == [True]


def test_a_dry_run_names_what_containerd_itself_has_to_try(asked: list[Any]) -> None:
    host = DryRunHost(FakeHost())
    do(runtime_registries.plan_registries, replace(preset(FakeHost()), host=host))
    assert asked == []
    assert "containerd's configuration" in [planned.what for planned in host.plan if planned.kind == "later"]


def test_another_runtime_is_told_and_left_alone(asked: list[Any]) -> None:
    host = FakeHost()
    ctx = preset(host)
    node = replace(ctx.config.node, cri_socket="unix:///run/crio/crio.sock")
    do(runtime_registries.plan_registries, replace(ctx, config=replace(ctx.config, node=node)))
    assert asked == [] and host.changes == []
    assert "is not containerd" in ctx.report.notes[0]
