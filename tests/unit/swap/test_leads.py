"""leads: the lease of a controller that kb has ended is given up, and nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

from kubeup.swap import leads
from tests.fake_control_plane import ControlPlane, make_control_plane

from .swap_case import make_swap_run

NAME = "kube-scheduler"


@pytest.fixture
def host() -> ControlPlane:
    return make_control_plane()


def end(host: ControlPlane, name: str) -> str:
    """Its container ends; returns who held its lease."""
    for one in host.running(name):
        host.run(["crictl", "stop", "--timeout", "0", one.id])
    return str(host.holders.get(name, ""))


def writes(host: Any) -> list[str]:
    return [change for change in host.changes if change.startswith("PATCH")]


def test_who_was_ended_holds_its_lease_no_longer(host: ControlPlane) -> None:
    holder = end(host, NAME)
    assert holder.startswith("cp1_")
    leads.free(make_swap_run(host, {}), {NAME: holder, "kube-controller-manager": "cp2_x"})
    assert len(writes(host)) == 1 and NAME in writes(host)[0]
    assert host.holders[NAME] == "" and host.holders["kube-controller-manager"]


@pytest.mark.parametrize("holder", ["cp2_1234", "cp1_another", ""])
def test_the_lease_of_another_process_stays(host: ControlPlane, holder: str) -> None:
    leads.free(make_swap_run(host, {}), {NAME: holder})
    assert writes(host) == [] and host.holders[NAME]


def test_whoever_takes_it_meanwhile_keeps_it(host: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = host.holders[NAME]
    versions = iter(["1", "2"])
    monkeypatch.setattr(host, "_version_of", lambda name: next(versions))
    leads.free(make_swap_run(host, {}), {NAME: holder})
    assert host.holders[NAME] == holder


def test_an_api_that_is_away_lets_it_run_out(host: ControlPlane) -> None:
    holder = host.holders[NAME]
    end(host, "kube-apiserver")
    leads.free(make_swap_run(host, {}), {NAME: holder})
    assert host.holders[NAME] == holder


def test_a_machine_that_is_called_as_others_are_gives_nothing_up(host: ControlPlane) -> None:
    """A holder is called after its machine. The one of another node whose machine is called the same lives."""
    holder = end(host, NAME).replace("cp1", "localhost")
    host.host_name, host.holders[NAME] = "localhost", holder
    leads.free(make_swap_run(host, {}), {NAME: holder})
    assert writes(host) == [] and host.holders[NAME] == holder
