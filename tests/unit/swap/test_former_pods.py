"""former_pods: what ends the static pods of before, in one job with the start of a kubelet of another minor."""

from __future__ import annotations

from typing import Any

import pytest

from kubeup.machine import services
from kubeup.node.containers import ContainerInfo
from kubeup.swap import former_pods, manifests
from tests.fake_control_plane import ControlPlane

from .swap_case import make_swap_run

RELOAD = "systemctl daemon-reload"


def list_drop_in(run: Any) -> list[str]:
    if not run.host.exists(former_pods.DROP_IN):
        return []
    return [line for line in run.host.read_text(former_pods.DROP_IN).splitlines() if line != "[Service]"]


@pytest.fixture
def living(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Container -> ID, of what runs."""
    found = {"kube-apiserver": "a1", "kube-controller-manager": "c1", "kube-scheduler": "s1", "etcd": "e1"}
    monkeypatch.setattr(
        manifests,
        "find_living",
        lambda run, names: [ContainerInfo(found[name], name, "running") for name in names if name in found],
    )
    monkeypatch.setattr(services, "find", lambda host: services.SYSTEMD)
    return found


def test_the_api_server_ends_before_its_etcd_and_the_kubelet_starts_last(living: dict[str, str]) -> None:
    host = ControlPlane(accepts=frozenset({RELOAD}))
    run = make_swap_run(host, {})
    with former_pods.ended_by_start(run):
        first, second = list_drop_in(run)
    assert first.startswith("ExecStartPre=-/") and first.endswith("stop --timeout 2 a1")
    assert second.endswith(" c1 s1 e1")
    assert list_drop_in(run) == [], "a later start of the kubelet has nothing to end"
    assert f"run {RELOAD}" in host.changes


def test_it_goes_away_when_the_start_fails(living: dict[str, str]) -> None:
    run = make_swap_run(ControlPlane(accepts=frozenset({RELOAD})), {})
    with pytest.raises(RuntimeError), former_pods.ended_by_start(run):
        raise RuntimeError
    assert list_drop_in(run) == []


def test_nothing_is_written_where_nothing_runs_or_nobody_can_end_it(
    living: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_swap_run(ControlPlane(accepts=frozenset({RELOAD})), {})
    monkeypatch.setattr(services, "find", lambda host: services.OPENRC)
    with former_pods.ended_by_start(run):
        assert list_drop_in(run) == []
    monkeypatch.setattr(services, "find", lambda host: services.SYSTEMD)
    living.clear()
    with former_pods.ended_by_start(run):
        assert list_drop_in(run) == []
