"""kubeup/phases/addons.py: what is left out, what restarts, and what of people's changes stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kubeup.cluster.api import Object
from kubeup.config.types import (
    DNS,
    Proxy,
)
from kubeup.engine.run import Run
from kubeup.phases import (
    addons,
)
from kubeup.releases import RELEASES
from tests.unit.phases.cluster_case import fake, made, make_context


def test_disabled_addons_are_left_out(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    without = replace(ctx.config.cluster, dns=DNS(disabled=True), proxy=Proxy(disabled=True))
    ctx = replace(ctx, config=replace(ctx.config, cluster=without))
    assert addons.coredns_is_applied(ctx)
    assert addons.kube_proxy_is_applied(ctx)
    addons.apply_coredns(ctx)
    addons.apply_kube_proxy(ctx)
    assert fake(ctx).objects == {}
    assert ctx.report.notes == ["dns.disabled is set: no CoreDNS", "proxy.disabled is set: no kube-proxy"]


def test_a_changed_configuration_restarts_kube_proxy(tmp_path: Path) -> None:
    """kube-proxy reads its configuration once; the first install and an unchanged one restart nothing."""
    ctx = make_context(tmp_path)
    restarted = "kubectl.kubernetes.io/restartedAt"

    def annotations(ctx: Run) -> Object:
        found: Object = made(ctx, "DaemonSet")["kube-proxy"]["spec"]["template"]["metadata"].get("annotations") or {}
        return found

    addons.apply_kube_proxy(ctx)
    addons.apply_kube_proxy(ctx)
    assert restarted not in annotations(ctx)
    changed = replace(ctx, config=replace(ctx.config, kube_proxy={"mode": "nftables"}))
    addons.apply_kube_proxy(changed)
    assert annotations(ctx)[restarted] == "2026-01-01T00:00:00Z"
    assert addons.kube_proxy_is_applied(changed)


def test_what_people_changed_in_coredns_stays(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    addons.apply_coredns(ctx)
    deployment = made(ctx, "Deployment")["coredns"]
    deployment["spec"]["replicas"] = 4
    config_map = made(ctx, "ConfigMap")["coredns"]
    config_map["data"]["Corefile"] = edited = config_map["data"]["Corefile"].replace("ttl 30", "ttl 5")
    assert addons.coredns_is_applied(ctx) is True
    addons.apply_coredns(ctx)
    assert made(ctx, "Deployment")["coredns"]["spec"]["replicas"] == 4
    assert made(ctx, "ConfigMap")["coredns"]["data"]["Corefile"] == edited
    assert ctx.report.notes == ["the Corefile in ConfigMap kube-system/coredns was edited: it is kept"]


def test_a_coredns_of_another_version_is_not_done(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    addons.apply_coredns(ctx)
    assert addons.coredns_is_applied(replace(ctx, release=RELEASES[36])) is False
