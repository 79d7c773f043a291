"""kubeup/drift/mending.py: what runs otherwise than its manifest says is restarted, and nobody who uses it notices more than has to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import pytest

from kubeup.drift import identities, mending
from kubeup.drift.drifted import Drift, Ground
from kubeup.engine.records import Records
from kubeup.errors import ClusterError
from kubeup.phases import static_pods_swap
from tests.fake_control_plane import FORMER, WANTED, ControlPlane, Gone, expect_settled, make_control_plane
from tests.unit.swap.swap_case import PATHS, Stage, make_swap_run, set_stage, undo_run

OTHERS = {"10.0.0.12:6443": True, "10.0.0.13:6443": True}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(identities, "find_item", lambda ground, name: None)
    return set_stage(monkeypatch)


def ask_nobody() -> NoReturn:
    raise AssertionError("the cluster is not asked")


def mend(host: ControlPlane, *names: str) -> list[str]:
    run = make_swap_run(host, {})
    ground = Ground(run, None, Records(host, PATHS.records, steps={}, generation=0), {}, frozenset())  # type: ignore[arg-type]
    drift = [Drift(f"running/{name}", f"the process of {name}", "--v", is_fixable=True) for name in names]
    return mending.mend(ground, run, found=drift, api=ask_nobody)


@pytest.mark.parametrize("names", [("etcd",), ("kube-apiserver",), ("etcd", "kube-apiserver", "kube-scheduler")])
def test_etcd_never_stops_under_an_api_server_that_serves(stage: Stage, names: Sequence[str]) -> None:
    host = make_control_plane(others=OTHERS, members={"cp2": True, "cp3": True})
    former = {name: host.running(name)[0].id for name in FORMER}
    assert mend(host, *names) == [f"restarted: {', '.join(names)}"]
    assert all(host.running(name)[0].id != former[name] for name in names)
    assert stage.balancers.calls == ["drain 10.0.0.11:6443", "undrain 10.0.0.11:6443"]
    expect_settled(host, FORMER, status="")  # there is nothing of it to undo


def test_the_last_swap_can_be_undone_after_a_restart(stage: Stage) -> None:
    host = make_control_plane(others=OTHERS)
    static_pods_swap.swap_pods(make_swap_run(host, {"kube-scheduler": WANTED["kube-scheduler"]}))
    assert mend(host, "kube-apiserver") == ["restarted: kube-apiserver"]
    static_pods_swap.swap_pods(undo_run(host))
    expect_settled(host, FORMER, status="taken back")


@pytest.mark.parametrize("undoes", [True, False])
def test_a_restart_that_was_killed_leaves_the_last_swap_to_be_undone(stage: Stage, undoes: bool) -> None:
    host = make_control_plane(others=OTHERS)
    static_pods_swap.swap_pods(make_swap_run(host, {"kube-scheduler": WANTED["kube-scheduler"]}))
    host.dies_after = len(host.changes) + 9
    with pytest.raises(Gone):
        mend(host, "kube-apiserver")
    host.revive(0.0)
    static_pods_swap.swap_pods(undo_run(host) if undoes else make_swap_run(host, {}))
    static_pods_swap.swap_pods(undo_run(host))
    expect_settled(host, FORMER, status="taken back")


def test_etcd_does_not_stop_where_the_others_need_it(stage: Stage) -> None:
    host = make_control_plane(others=OTHERS, members={"cp2": True, "cp3": False})
    with pytest.raises(ClusterError) as caught:
        mend(host, "etcd")
    assert caught.value.code == "etcd-stop-unsafe" and not host.events
