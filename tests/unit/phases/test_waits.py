"""While it waits, kb says what is in the way: at once and for good what cannot heal, once and going on what may."""

from __future__ import annotations

import io
from typing import Optional

import pytest

from kubeup.diagnosis import chain, signs
from kubeup.engine.run import Run
from kubeup.errors import ClusterError
from kubeup.phases import waits
from kubeup.releases import RELEASES
from kubeup.report import Report
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, make_config

BROKEN = signs.BrokenLink("etcd exited 1 time (code 1)", "its disk is full", "make space", link="container")


def wait(monkeypatch: pytest.MonkeyPatch, links: list[Optional[signs.BrokenLink]], *, well_after_s: float) -> Run:
    """One wait of at most 60 s, whose looks see `links`, the last one from then on."""
    host = FakeHost()
    ctx = Run(host=host, paths=PATHS, config=make_config(), release=RELEASES[35], report=Report(io.StringIO()))
    left = list(links)

    def find(*_: object, **__: object) -> Optional[signs.BrokenLink]:
        return left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(chain, "find_broken_link", find)
    waits.Wait(ctx, 60, "control plane").until(lambda: "" if host.ticks >= well_after_s else "etcd refused")
    return ctx


def test_what_cannot_heal_ends_the_wait_at_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    final = signs.BrokenLink(BROKEN.what, BROKEN.cause, BROKEN.remedy, is_final=True, details=("last line",))
    with pytest.raises(ClusterError) as caught:
        wait(monkeypatch, [final], well_after_s=1000)
    assert (caught.value.what, caught.value.cause, caught.value.remedy) == (BROKEN.what, BROKEN.cause, BROKEN.remedy)
    assert (caught.value.code, caught.value.details) == ("not-healthy", ("last line",))


def test_what_may_heal_is_said_once_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = wait(monkeypatch, [BROKEN], well_after_s=30)
    assert ctx.report.notes == ["etcd exited 1 time (code 1): its disk is full. Remedy: make space (still waiting)"]


def test_a_hiccup_of_a_start_is_not_worth_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = wait(monkeypatch, [BROKEN, None], well_after_s=30)
    assert ctx.report.notes == []


def test_at_the_end_of_the_patience_the_broken_link_is_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError) as caught:
        wait(monkeypatch, [BROKEN], well_after_s=1000)
    assert caught.value.what == BROKEN.what


def test_a_wait_that_sees_nothing_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError) as caught:
        wait(monkeypatch, [None], well_after_s=1000)
    assert caught.value.what == "control plane: not there after 60 s"
    assert caught.value.cause == "etcd refused"


def test_a_patient_wait_goes_on_and_says_once_what_cannot_heal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look finds need not be what is waited for."""
    final = signs.BrokenLink(BROKEN.what, BROKEN.cause, BROKEN.remedy, is_final=True)
    monkeypatch.setattr(chain, "find_broken_link", lambda *_, **__: final)
    host = FakeHost()
    ctx = Run(host=host, paths=PATHS, config=make_config(), release=RELEASES[35], report=Report(io.StringIO()))
    end = waits.Wait(ctx, 60, "cluster DNS", is_patient=True).watch(lambda: "" if host.ticks >= 30 else "no answer")
    assert not end.missing and len(ctx.report.notes) == 1
    end = waits.Wait(ctx, 60, "cluster DNS", is_patient=True).watch(lambda: "no answer")
    assert end.missing == "no answer" and end.took_s > 60 and end.link == final
