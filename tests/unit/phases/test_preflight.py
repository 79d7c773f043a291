from __future__ import annotations

import dataclasses
import io

import pytest

import kb
from kubeup.config.types import NodeConfig
from kubeup.engine.run import Run
from kubeup.engine.step import fingerprint_spec
from kubeup.errors import PreflightError
from kubeup.paths import Paths
from kubeup.phases import preflight
from kubeup.releases import find_release
from kubeup.report import Report
from tests.fake_host import FakeHost
from tests.unit.diagnosis.test_checks import SWAPS, fit_host, make_node
from tests.unit.node.runtime_case import CRICTL, failed, image_list, pulls


def make_context(host: FakeHost, *, ignored: tuple[str, ...] = (), policy: str = "IfNotPresent") -> Run:
    config: NodeConfig = make_node(host).config
    node = dataclasses.replace(config.node, ignore_preflight_errors=ignored, image_pull_policy=policy)
    report = Report(io.StringIO(), verbosity=1)
    return Run(
        host=host,
        paths=Paths(),
        config=dataclasses.replace(config, node=node),
        release=find_release("v1.35.6"),
        report=report,
    )


def text_of(ctx: Run) -> str:
    assert isinstance(ctx.report.stream, io.StringIO)
    return ctx.report.stream.getvalue()


def test_a_fit_node_gets_its_images() -> None:
    host = fit_host()
    ctx = make_context(host)
    assert preflight.run_checks(ctx) is None
    assert len(pulls(host)) == 7
    assert "pulling registry.k8s.io/kube-apiserver:v1.35.6 (1 of 7)" in text_of(ctx)
    assert ctx.report.warnings == []


def test_with_the_images_at_hand_nothing_is_changed() -> None:
    host = fit_host()
    preflight.run_checks(make_context(host))
    host.answers[f"{CRICTL} images -o json"] = image_list(*pulls(host))
    host.changes.clear()
    preflight.run_checks(make_context(host))
    assert host.changes == []


def test_an_ordinary_user_hears_of_nothing_else() -> None:
    host = fit_host()
    host.root_user = False
    host.cpus = 1
    with pytest.raises(PreflightError) as caught:
        preflight.run_checks(make_context(host))
    assert [line.split("]")[0] for line in caught.value.details] == ["[ERROR IsPrivilegedUser"]


def test_errors_of_the_node_come_together_and_before_any_pull() -> None:
    host = fit_host()
    host.cpus = 1
    host.files["/proc/swaps"] = SWAPS
    with pytest.raises(PreflightError) as caught:
        preflight.run_checks(make_context(host))
    assert [line.split("]")[0] for line in caught.value.details] == ["[ERROR NumCPU", "[ERROR Swap"]
    assert caught.value.code == "preflight"
    assert host.changes == []


def test_what_is_ignored_is_warned_of() -> None:
    host = fit_host()
    host.cpus = 1
    ctx = make_context(host, ignored=("numcpu",))
    preflight.run_checks(ctx)
    assert [warning.split("]")[0] for warning in ctx.report.warnings] == ["[WARNING NumCPU"]


def test_what_kb_made_is_told_by_the_run() -> None:
    host = fit_host()
    host.files["/etc/kubernetes/manifests/etcd.yaml"] = b"x"
    host.files["/var/lib/etcd/member/x"] = b"x"
    host.ports[2379] = "etcd (pid 4)"
    with pytest.raises(PreflightError):
        preflight.run_checks(make_context(host))
    ctx = make_context(host)
    preflight.run_checks(dataclasses.replace(ctx, owned_paths=frozenset({"/etc/kubernetes/manifests/etcd.yaml"})))


def test_the_probe_sees_an_image_that_is_gone() -> None:
    host = fit_host()
    ctx = make_context(host)
    assert preflight.images_are_here(ctx) is False
    preflight.run_checks(ctx)
    names = pulls(host)
    host.answers[f"{CRICTL} images -o json"] = image_list(*names)
    assert preflight.images_are_here(ctx) is True
    host.answers[f"{CRICTL} images -o json"] = image_list(*names[1:])
    assert preflight.images_are_here(ctx) is False
    host.answers[f"{CRICTL} images -o json"] = failed("boom")
    assert preflight.images_are_here(ctx) is False
    assert preflight.images_are_here(make_context(host, policy="Never")) is True


def test_a_dry_run_tries_nothing_on_containerd(monkeypatch: pytest.MonkeyPatch) -> None:
    """--fix: the checks are made, and what containerd itself has to try is only told."""
    tried: list[object] = []
    monkeypatch.setattr(preflight, "fix_runtime", tried.append)
    ctx = make_context(fit_host())
    fixing = dataclasses.replace(ctx.config.kb, runtime=dataclasses.replace(ctx.config.kb.runtime, fix=True))
    ctx = dataclasses.replace(ctx, config=dataclasses.replace(ctx.config, kb=fixing))
    preflight.foretell_checks(ctx)
    assert tried == [] and ctx.report.notes[0].startswith("--fix: ")
    preflight.run_checks(ctx)
    assert tried == [ctx]


def test_any_other_configuration_is_a_reason_to_look_again() -> None:
    ctx = make_context(fit_host())
    other = dataclasses.replace(ctx, config=dataclasses.replace(ctx.config, kubelet={"maxPods": 42}))
    phase = next(phase for phase in kb.INIT if phase.name == "preflight")
    assert fingerprint_spec(phase, ctx) == fingerprint_spec(phase, make_context(fit_host()))
    assert fingerprint_spec(phase, ctx) != fingerprint_spec(phase, other)
