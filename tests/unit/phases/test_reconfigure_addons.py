"""kubeup/phases/reconfigure_addons.py: an addon's changed configuration, and the way back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from kubeup.errors import ClusterError
from kubeup.phases import reconfigure_addons, upgrade_addons
from kubeup.report import Report
from tests.fake_host import FakeHost

PLACE = "/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"
FORMER: Any = {"metadata": {"name": "kube-proxy"}, "data": {"config.conf": "mode: ''"}}


class Rollout:
    """What is missing, second by second; the last of them for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
        self.seen = list(missing)
        self.written: list[Any] = []
        self.restarted = 0
        monkeypatch.setattr(upgrade_addons, "describe_rollout", self.describe)
        monkeypatch.setattr(reconfigure_addons, "objects", self)
        api = SimpleNamespace()
        self.run: Any = SimpleNamespace(host=FakeHost(), report=Report(io.StringIO()), api=api)

    def describe(self, run: Any, **_: str) -> str:
        return self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]

    def apply_component_config(self, api: Any, wanted: Any) -> None:
        self.written.append(wanted)
        self.seen = [""]

    def restart_pods(self, *_: Any, **__: Any) -> None:
        self.restarted += 1

    def wait(self, former: Any = FORMER) -> float:
        began = self.run.host.monotonic()
        reconfigure_addons._wait_or_go_back(self.run, place=PLACE, label="k8s-app=kube-proxy", former=former)
        return float(self.run.host.monotonic() - began)


def flapping() -> Iterator[str]:
    for number in range(100):
        yield "0 of 1 pods run (kube-proxy-x on cp1: Error)" if number % 3 else ""


def test_pods_that_come_up_have_to_stay_up_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Rollout(monkeypatch, "1 of 3 pods run", "2 of 3 pods run", "")
    assert reconfigure_addons.LASTS_S <= made.wait() < reconfigure_addons.LASTS_S + 5
    assert not made.written


def test_a_pod_that_ends_again_and_again_is_taken_back_though_it_runs_for_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Rollout(monkeypatch, *flapping())
    with pytest.raises(ClusterError) as caught:
        made.wait()
    assert caught.value.code == "addon-not-rolled-out"
    assert "the former configuration is back" in caught.value.cause
    assert (made.written, made.restarted) == ([FORMER], 1)


def test_one_failure_on_the_way_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Rollout(monkeypatch, "0 of 1 pods run (a on cp1: Error)", "0 of 1 pods run", "")
    made.wait()
    assert not made.written


def test_a_rollout_without_a_former_configuration_only_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Rollout(monkeypatch, "0 of 1 pods run (no node takes it)")
    with pytest.raises(ClusterError, match="does not come up"):
        made.wait(former=None)
    assert not made.written
