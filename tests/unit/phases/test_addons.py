"""kubeup/phases/addons.py: what is left out, what restarts, and what of people's changes stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from kubeup.cluster.api import Object
from kubeup.config.types import (
    DNS,
    Proxy,
)
from kubeup.engine.run import Run
from kubeup.engine.runner import Runner
from kubeup.engine.state import load_state
from kubeup.engine.step import Phase
from kubeup.phases import (
    addons,
)
from kubeup.releases import RELEASES
from tests.plans import do, is_done
from tests.unit.phases.cluster_case import fake, made, make_context


def test_disabled_addons_are_left_out(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    without = replace(ctx.config.cluster, dns=DNS(disabled=True), proxy=Proxy(disabled=True))
    ctx = replace(ctx, config=replace(ctx.config, cluster=without))
    assert is_done(addons.plan_coredns, ctx)
    assert is_done(addons.plan_kube_proxy, ctx)
    do(addons.plan_coredns, ctx)
    do(addons.plan_kube_proxy, ctx)
    assert fake(ctx).objects == {}
    assert ctx.report.notes == ["dns.disabled is set: no CoreDNS", "proxy.disabled is set: no kube-proxy"]


def test_a_changed_configuration_restarts_kube_proxy(tmp_path: Path) -> None:
    """kube-proxy reads its configuration once; the first install and an unchanged one restart nothing."""
    ctx = make_context(tmp_path)
    restarted = "kubectl.kubernetes.io/restartedAt"

    def annotations(ctx: Run) -> Object:
        found: Object = made(ctx, "DaemonSet")["kube-proxy"]["spec"]["template"]["metadata"].get("annotations") or {}
        return found

    do(addons.plan_kube_proxy, ctx)
    do(addons.plan_kube_proxy, ctx)
    assert restarted not in annotations(ctx)
    changed = replace(ctx, config=replace(ctx.config, kube_proxy={"mode": "nftables"}))
    do(addons.plan_kube_proxy, changed)
    assert annotations(ctx)[restarted] == "2026-01-01T00:00:00Z"
    assert is_done(addons.plan_kube_proxy, changed)


def test_what_people_changed_in_coredns_stays(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    do(addons.plan_coredns, ctx)
    deployment = made(ctx, "Deployment")["coredns"]
    deployment["spec"]["replicas"] = 4
    config_map = made(ctx, "ConfigMap")["coredns"]
    config_map["data"]["Corefile"] = edited = config_map["data"]["Corefile"].replace("ttl 30", "ttl 5")
    assert is_done(addons.plan_coredns, ctx) is True
    do(addons.plan_coredns, ctx)
    assert made(ctx, "Deployment")["coredns"]["spec"]["replicas"] == 4
    assert made(ctx, "ConfigMap")["coredns"]["data"]["Corefile"] == edited
    assert ctx.report.notes == ["the Corefile in ConfigMap kube-system/coredns was edited: it is kept"]


def test_a_coredns_of_another_version_is_not_done(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    do(addons.plan_coredns, ctx)
    assert is_done(addons.plan_coredns, replace(ctx, release=RELEASES[36])) is False


def test_what_a_patch_brought_is_missed_when_it_goes(tmp_path: Path) -> None:
    """All that is wanted is there then, and more."""
    ctx = make_context(tmp_path)
    with_env = replace(ctx, config=replace(ctx.config, proxy_env={"NO_PROXY": "10.0.0.0/8"}))
    do(addons.plan_kube_proxy, with_env)
    assert is_done(addons.plan_kube_proxy, with_env)
    assert not is_done(addons.plan_kube_proxy, ctx)
    do(addons.plan_kube_proxy, ctx)
    assert is_done(addons.plan_kube_proxy, ctx)


def test_a_run_that_was_cut_off_restarts_kube_proxy_in_the_next(tmp_path: Path) -> None:
    """Its pods may run from what was there before the configuration was written."""
    ctx = make_context(tmp_path)
    steps = (Phase("addon/kube-proxy", does="k", plan=addons.plan_kube_proxy),)
    restarted: Any = lambda: made(ctx, "DaemonSet")["kube-proxy"]["spec"]["template"]["metadata"].get("annotations")  # noqa: E731
    Runner("init", steps, state=load_state(ctx.host, ctx.paths)).run(ctx)
    changed = replace(ctx, config=replace(ctx.config, kube_proxy={"mode": "nftables"}))
    real, ctx.api.patch = ctx.api.patch, mock.Mock(side_effect=KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        Runner("init", steps, state=load_state(ctx.host, ctx.paths)).run(changed)
    assert not restarted()
    ctx.api.patch = real  # type: ignore[method-assign]
    Runner("init", steps, state=load_state(ctx.host, ctx.paths)).run(changed)
    assert list(restarted()) == ["kubectl.kubernetes.io/restartedAt"]
    version = fake(ctx).version
    result = Runner("init", steps, state=load_state(ctx.host, ctx.paths)).run(changed)
    assert [phase.status for phase in result.phases] == ["unchanged"] and fake(ctx).version == version
