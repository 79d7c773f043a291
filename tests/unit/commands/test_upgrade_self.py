"""kb upgrade self: a newer kb.pyz was copied to the node, and what runs of kb there becomes that one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.machine import own_copy
from kubeup.network import pod_network
from kubeup.paths import Paths
from kubeup.phases import auto_renewal
from tests.unit.commands.test_launcher import INIT, Machine

NEWER = Path("/root/kb.pyz")
UNITS = (pod_network.UNIT, auto_renewal.TIMER)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Machine:
    """A node whose units run a former kb."""
    host = Machine(tmp_path)
    monkeypatch.setattr(own_copy, "_require_root_s", lambda host, folder: None)
    monkeypatch.setattr(own_copy, "find_running_pyz", lambda: NEWER)
    host.write_file(NEWER, "former", mode=0o755)
    assert run(host, *INIT) == 0
    host.write_file(NEWER, "newer", mode=0o755)
    capsys.readouterr()
    return host


def run(host: Machine, *words: str) -> int:
    return kb.main(list(words), make_host=lambda root: host)


def restarted(machine: Machine, *, since: int) -> set[str]:
    return {line.split()[-1] for line in machine.commands[since:] if line.startswith("systemctl restart")}


def test_every_unit_runs_the_newer_one(machine: Machine, capsys: Any) -> None:
    service = Paths.systemd / pod_network.UNIT
    assert machine.read_text(Paths().installed_kb) == "former"
    wanted, since = machine.read_text(service), len(machine.commands)
    machine.write_file(service, wanted.replace(" routes", " keep-routes"))  # as an older kb wrote it
    assert run(machine, "upgrade", "self", "--dry-run") == 0
    assert machine.read_text(Paths().installed_kb) == "former" and not restarted(machine, since=since)
    assert run(machine, "upgrade", "self") == 0
    assert machine.read_text(Paths().installed_kb) == "newer"
    assert machine.read_text(service) == wanted
    assert restarted(machine, since=since) == set(UNITS)
    since = len(machine.commands)
    capsys.readouterr()
    assert run(machine, "upgrade", "self") == 0
    assert not restarted(machine, since=since) and "nothing to do" in capsys.readouterr().err


def test_a_unit_that_is_off_stays_off(machine: Machine) -> None:
    assert run(machine, "certs", "auto", "off") == 0
    since = len(machine.commands)
    assert run(machine, "upgrade", "self") == 0
    assert not machine.exists(Paths.systemd / auto_renewal.TIMER)
    assert restarted(machine, since=since) == {pod_network.UNIT}


def test_a_reset_afterwards_leaves_nothing(machine: Machine) -> None:
    assert run(machine, "upgrade", "self") == 0
    assert run(machine, "reset", "--force") == 0
    assert not machine.exists(Paths().installed_kb)
    assert not any(machine.exists(Paths.systemd / unit) for unit in UNITS)


def test_a_checkout_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(own_copy, "find_running_pyz", lambda: None)
    assert run(machine, "upgrade", "self") == 2
    assert "build_zipapp.py" in capsys.readouterr().err
