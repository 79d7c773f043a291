"""kb certs recover: which way a node comes back, what it says, and what it refuses."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

import kb
from kubeup.cluster.etcd import quorum_of
from kubeup.machine.host import FileStat
from kubeup.machine.local_host import LocalHost
from kubeup.node import expired_certs, renewal
from kubeup.paths import Paths
from kubeup.phases import recovered_certs
from kubeup.phases.recovered_certs import Gap, Missing, Recovered
from kubeup.swap import recovery_record
from tests.unit.commands.test_launcher import INIT, Machine

MADE = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)


class OldMachine(Machine):
    """Its files are dated by its own clock, not by that of the machine that runs the tests."""

    def stat(self, path: Path) -> Optional[FileStat]:
        found = super().stat(path)
        return found and replace(found, mtime=MADE.timestamp())


@pytest.fixture
def machine(tmp_path: Path, capsys: Any) -> Machine:
    host = OldMachine(tmp_path)
    assert run(host, *INIT) == 0
    capsys.readouterr()
    return host


def run(host: LocalHost, *words: str) -> int:
    return kb.main(list(words), make_host=lambda root: host)


def at(machine: Machine, monkeypatch: pytest.MonkeyPatch, *, days: float) -> None:
    """The clock of the machine, so many days after the certificates were made."""
    now = machine.now() + datetime.timedelta(days=days)
    monkeypatch.setattr(machine, "now", lambda: now)


def script(monkeypatch: pytest.MonkeyPatch, done: Recovered) -> list[tuple[str, ...]]:
    """What the recovery of a control plane ends with; returns the names that it was called with."""
    seen: list[tuple[str, ...]] = []

    def recover(ctx: object, expired: object, *, names: tuple[str, ...], files: object) -> Recovered:
        seen.append(names)
        return done

    monkeypatch.setattr(recovered_certs, "recover", recover)
    return seen


def test_nothing_has_expired(machine: Machine, capsys: Any) -> None:
    before = {path: machine.read_bytes(path) for path in machine.files()}
    assert run(machine, "certs", "recover") == 0
    assert capsys.readouterr().out == "nothing has expired on cp1\n"
    assert {path: machine.read_bytes(path) for path in machine.files()} == before


def test_it_names_what_it_issues_and_who_is_missing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    at(machine, monkeypatch, days=400)
    gap = Gap(3, quorum_of(3), (Missing("cp2", "10.0.0.12", "does not answer"),))
    done = Recovered(("apiserver",), Path("/var/lib/kb/former-certs/x"), ("kube-scheduler",), {}, gap)
    seen = script(monkeypatch, done)
    assert run(machine, "certs", "recover") == 0
    assert seen == [(*renewal.ROWS, expired_certs.EMBEDDED)]
    told = capsys.readouterr().out
    assert (
        "apiserver (/etc/kubernetes/pki/apiserver.crt) expired at" in told
        and "restarted: kubelet, kube-scheduler" in told
    )
    assert "2 of 3 members are needed" in told and "node cp1 is Ready" not in told
    assert "cp2 (10.0.0.12), which does not answer: python3 kb.pyz certs recover" in told
    run(machine, "certs", "recover", "-o", "json")
    value = json.loads(capsys.readouterr().out)
    assert value["next"][0]["command"] == "python3 kb.pyz certs recover" and not value["hasQuorum"]


def test_a_dry_run_changes_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    at(machine, monkeypatch, days=400)
    seen = script(monkeypatch, Recovered(()))
    before = {path: machine.read_bytes(path) for path in machine.files()}
    assert run(machine, "certs", "recover", "--dry-run") == 0
    told = capsys.readouterr().out
    assert told.count("would be issued anew") == len(renewal.ROWS) + 1 and "nothing was changed" in told
    assert seen == [] and {path: machine.read_bytes(path) for path in machine.files()} == before


@pytest.mark.parametrize(
    "key, code, named",
    [
        ("ca.key", "external-ca-expired", "admin.conf"),
        ("front-proxy-ca.key", "external-ca-expired", "front-proxy-client"),
    ],
)
def test_an_external_authority_is_refused_by_name(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any, key: str, code: str, named: str
) -> None:
    at(machine, monkeypatch, days=400)
    seen = script(monkeypatch, Recovered(()))
    machine.remove(Paths().pki / key)
    assert run(machine, "certs", "recover") == 4 and seen == []
    told = capsys.readouterr().err
    assert code in told and named in told and "certs generate-csr" in told


def test_an_authority_that_has_ended_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    at(machine, monkeypatch, days=3660)
    assert run(machine, "certs", "recover") == 4 and "clock-doubtful" in capsys.readouterr().err
    assert run(machine, "certs", "recover", "--force") == 4 and "ca-expired" in capsys.readouterr().err


def test_a_clock_before_the_certificates_is_said(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    at(machine, monkeypatch, days=-9)
    assert run(machine, "certs", "recover") == 4 and "clock-behind" in capsys.readouterr().err


def test_another_host_name_is_said(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    at(machine, monkeypatch, days=400)
    seen = script(monkeypatch, Recovered(()))
    monkeypatch.setattr(machine, "hostname", lambda: "renamed")
    assert run(machine, "certs", "recover") == 0 and len(seen) == 1
    told = capsys.readouterr().err
    assert "its certificate is of node cp1, and the kubelet would call itself renamed" in told


def test_a_machine_that_is_no_node(tmp_path: Path, capsys: Any) -> None:
    assert run(Machine(tmp_path), "certs", "recover") == 4 and "no-node" in capsys.readouterr().err


def test_beside_a_recovery_of_etcd_that_was_cut_off(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Its manifests may be out: no API server could come up."""
    monkeypatch.setattr(recovery_record, "load_cut_off", lambda host, paths: object())
    seen = script(monkeypatch, Recovered(("scheduler.conf",)))
    assert run(machine, "certs", "recover") == 4 and seen == []
    assert "kb etcd recover --undo" in capsys.readouterr().err


def test_what_was_cut_off_goes_on(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    machine.write_file(Paths.recovery, '{"names": ["scheduler.conf"]}', mode=0o600)
    seen = script(monkeypatch, Recovered(("scheduler.conf",)))
    assert run(machine, "certs", "recover") == 0 and seen == [("scheduler.conf",)]
    assert "restarted: kubelet" in capsys.readouterr().out
