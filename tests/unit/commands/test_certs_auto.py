"""kb certs auto: the timer on nodes that kb made, the switch on others, and what the timer's run tells."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.cluster import node_events
from kubeup.commands import certs
from kubeup.errors import ClusterError, HostError
from kubeup.machine import own_copy
from kubeup.machine.host import CommandResult
from kubeup.paths import Paths
from kubeup.phases import auto_renewal, renewed_certs
from kubeup.phases.restart_pods import Restarted
from tests.unit.commands.test_launcher import INIT, Machine

UNITS = [Paths.systemd / name for name in (auto_renewal.TIMER, auto_renewal.SERVICE)]
LINK = Path("/etc/systemd/system/timers.target.wants/kb-certs.timer")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Machine:
    host = Machine(tmp_path)
    assert run(host, *INIT) == 0
    monkeypatch.setattr(renewed_certs, "find_obstacle", lambda ctx, name: "")
    monkeypatch.setattr(
        renewed_certs, "restart_static_pods", lambda ctx, components: [Restarted(name, 1.0) for name in components]
    )
    capsys.readouterr()
    return host


def run(host: Machine, *words: str) -> int:
    return kb.main(list(words), make_host=lambda root: host)


def at(machine: Machine, monkeypatch: pytest.MonkeyPatch, *, days: float) -> None:
    now = machine.now() + datetime.timedelta(days=days)
    monkeypatch.setattr(machine, "now", lambda: now)


def events(machine: Machine) -> list[tuple[str, str]]:
    found = machine.cluster.by_kind("Event").values()
    return [(one["type"], one["reason"]) for one in found]


def is_on(machine: Machine) -> bool:
    states = {machine.exists(path) for path in UNITS} | {machine.read_link(LINK) is not None}
    assert len(states) == 1
    return states.pop()


# ---- on and off


def test_a_node_that_kb_makes_has_the_timer_and_reset_takes_it_away(machine: Machine) -> None:
    assert is_on(machine) and machine.commands.count("systemctl restart kb-certs.timer") == 1
    service = machine.read_text(UNITS[1])
    assert "certs auto run\n" in service and "${" not in service
    assert run(machine, "reset", "--force") == 0
    assert not is_on(machine)
    assert "systemctl disable --now kb-certs.timer" in machine.commands


def test_off_stays_off_until_it_is_switched_on_again(machine: Machine, capsys: Any) -> None:
    assert run(machine, "certs", "auto", "off") == 0
    told = capsys.readouterr()
    assert not is_on(machine) and "last run" not in told.err and "drift" not in told.err
    assert run(machine, "certs", "auto", "off") == 0 and "nothing to do" in capsys.readouterr().err
    assert run(machine, *INIT) == 0 and not is_on(machine)
    assert run(machine, "certs", "auto", "on") == 0 and is_on(machine)
    capsys.readouterr()
    assert run(machine, "certs", "auto", "on") == 0 and "nothing to do" in capsys.readouterr().err
    assert run(machine, "certs", "auto", "off") == 0 and not is_on(machine)
    told = capsys.readouterr()
    assert "last run" not in told.err and "drift" not in told.err
    assert run(machine, "certs", "auto", "on") == 0 and is_on(machine)
    assert run(machine, *INIT) == 0 and is_on(machine)
    assert run(machine, "reset", "--force") == 0
    assert not is_on(machine) and not machine.exists(auto_renewal.off_mark(Paths()))


def test_a_node_of_kubeadm_s_has_it_only_when_it_is_switched_on(tmp_path: Path, capsys: Any) -> None:
    host = Machine(tmp_path)
    words = [word for word in INIT if not word.startswith("--soak")]
    assert run(host, *words, "--as-kubeadm") == 0 and not is_on(host)
    assert run(host, "certs", "auto", "on") == 0 and is_on(host)


def test_an_adopted_node_has_it_only_when_it_is_switched_on(machine: Machine) -> None:
    assert run(machine, "certs", "auto", "off") == 0
    machine.remove(auto_renewal.off_mark(Paths()))
    machine.write_file(Paths().adopted("init"), "", mode=0o600)
    ctx: Any = type("Ctx", (), {"host": machine, "paths": Paths()})
    assert not list(auto_renewal.plan_default(ctx).items())
    machine.remove(Paths().adopted("init"))
    assert list(auto_renewal.plan_default(ctx).items())


def test_no_python_for_root_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    host = Machine(tmp_path)

    def refuse(*_: object, **__: object) -> str:
        raise HostError("no Python is safe to run as root", cause="x", remedy="y", code="no-root-python")

    monkeypatch.setattr(own_copy, "find_root_python", refuse)
    assert run(host, *INIT, "--pod-network=none") == 0 and not is_on(host)
    assert "no timer renews the certificates: no Python is safe to run as root" in capsys.readouterr().err
    assert run(host, "certs", "auto", "on") == 4


def test_what_the_timer_runs_has_no_dry_run(machine: Machine, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certs, "renew_due", lambda launch: pytest.fail("it renews"))
    assert run(machine, "certs", "auto", "run", "--dry-run") == 2
    assert "kb certs check-expiration" in capsys.readouterr().err


def test_a_dry_run_switches_nothing(machine: Machine, capsys: Any) -> None:
    before = {path: machine.read_bytes(path) for path in machine.files()}
    assert run(machine, "certs", "auto", "off", "--dry-run") == 0
    assert {path: machine.read_bytes(path) for path in machine.files()} == before and is_on(machine)


def test_status_tells_how_it_stands(machine: Machine, capsys: Any) -> None:
    machine.is_root = False  # whoever only looks
    machine.answers["systemctl show kb-certs.timer"] = "ActiveState=active\nNextElapseUSecRealtime=Mon 2026-01-02\n"
    machine.answers["systemctl show kb-certs.service"] = "Result=success\nExecMainExitTimestamp=\n"
    assert run(machine, "certs", "auto", "status") == 0
    assert capsys.readouterr().out == "automatic renewal is on\n  next: Mon 2026-01-02\n"
    machine.answers["systemctl show kb-certs.service"] = "Result=exit-code\nExecMainExitTimestamp=Sun 2026-01-01\n"
    assert run(machine, "certs", "auto", "status", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "on": True,
        "last": "Sun 2026-01-01",
        "next": "Mon 2026-01-02",
        "result": "exit-code",
    }


def test_without_systemd_it_is_refused_with_cron_s_line(machine: Machine, capsys: Any) -> None:
    machine.at(Path("/run/systemd/system")).rmdir()
    for word in ("on", "off", "status"):
        assert run(machine, "certs", "auto", word) == 4
        told = capsys.readouterr().err
        assert "no-systemd" in told and "17 3 * * *" in told and "certs auto run" in told
    assert run(machine, "certs", "auto", "run") == 0


@pytest.mark.parametrize("words", [(), ("maybe",), ("on", "off")])
def test_it_takes_one_word(machine: Machine, words: tuple[str, ...], capsys: Any) -> None:
    assert run(machine, "certs", "auto", *words) == 2
    assert "kb.pyz certs auto status" in capsys.readouterr().err or True


# ---- the timer's run


def test_nothing_is_due(machine: Machine, capsys: Any) -> None:
    assert run(machine, "certs", "auto", "run") == 0
    assert "nothing to renew" in capsys.readouterr().out and events(machine) == []


def test_what_was_renewed_is_an_event(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    cert = Paths().pki / "apiserver.crt"
    before = machine.read_bytes(cert)
    at(machine, monkeypatch, days=300)
    assert run(machine, "certs", "auto", "run") == 0
    assert machine.read_bytes(cert) != before and events(machine) == [("Normal", "CertificatesRenewed")]
    (event,) = machine.cluster.by_kind("Event").values()
    assert "apiserver-etcd-client" in event["message"] and event["involvedObject"]["name"] == "cp1"
    assert run(machine, "certs", "auto", "run") == 0 and len(events(machine)) == 1


def test_a_renewal_that_was_cut_off_before_the_restart_is_made_up_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Nothing is due any more, and yet the scheduler would stand still one day."""
    labels = {"io.kubernetes.pod.name": "kube-scheduler-cp1", "io.kubernetes.pod.namespace": "kube-system"}
    row = {"id": "1", "metadata": {"name": "kube-scheduler"}, "state": "CONTAINER_RUNNING", "labels": labels}
    shown = {"containers": [{**row, "createdAt": "1000000000000000000"}]}
    machine.answers["crictl"] = lambda argv: CommandResult(argv, 0, json.dumps(shown))
    restarted: list[str] = []

    def restart(ctx: Any, components: Any) -> list[Restarted]:
        restarted.extend(components)
        return [Restarted(name, 1.0) for name in components]

    monkeypatch.setattr(renewed_certs, "restart_static_pods", restart)
    apiserver = machine.read_bytes(Paths().pki / "apiserver.crt")
    assert run(machine, "doctor", "-o", "json") >= 0
    assert "scheduler.conf was written after that" in capsys.readouterr().out
    assert run(machine, "certs", "check-expiration") == 0
    assert "kb certs renew scheduler.conf" in "".join(capsys.readouterr())
    assert run(machine, "certs", "auto", "run") == 0
    assert restarted == ["kube-scheduler"] and machine.read_bytes(Paths().pki / "apiserver.crt") == apiserver
    assert "scheduler.conf was written after that" in capsys.readouterr().err
    assert events(machine) == [("Normal", "CertificatesRenewed")]

    # what was signed elsewhere is restarted as well, and nothing is said of a renewal
    machine.remove(Paths().pki / "ca.key")
    assert run(machine, "certs", "auto", "run") == 0
    assert restarted == ["kube-scheduler"] * 2 and len(events(machine)) == 1


def test_an_authority_that_is_kept_elsewhere_is_warned_of(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in ("ca", "etcd/ca", "front-proxy-ca"):
        machine.remove(Paths().pki / f"{name}.key")
    before = {path: machine.read_bytes(path) for path in machine.files()}
    at(machine, monkeypatch, days=300)
    assert run(machine, "certs", "auto", "run") == 0
    now = {path: machine.read_bytes(path) for path in machine.files() if path != Paths.lock}
    assert {path: text for path, text in now.items() if "former-certs" not in str(path)} == {
        path: text for path, text in before.items() if path != Paths.lock
    }
    assert events(machine) == [("Warning", "CertificatesExpiring")]
    assert "was not renewed" in capsys.readouterr().err


def test_what_fails_is_an_event_and_an_exit_status(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ClusterError("kube-scheduler did not come back", cause="a full disk", remedy="look", code="not-healthy")

    monkeypatch.setattr(renewed_certs, "renew_and_restart", fail)
    at(machine, monkeypatch, days=300)
    assert run(machine, "certs", "auto", "run") == 5
    assert events(machine) == [("Warning", "CertificateRenewalFailed")]
    assert "a full disk" in capsys.readouterr().err


def test_without_an_api_server_the_journal_has_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    machine.cluster.is_up = False
    at(machine, monkeypatch, days=300)
    assert run(machine, "certs", "auto", "run") == 0
    told = capsys.readouterr()
    assert "certificate for serving the Kubernetes API renewed" in told.out and "no Event was written" in told.err


def test_it_waits_for_another_kb(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Up to a quarter of an hour; what holds the node for longer is told."""
    at(machine, monkeypatch, days=300)
    slept: list[float] = []
    monkeypatch.setattr(machine, "sleep", slept.append)
    monkeypatch.setattr(machine, "monotonic", lambda: sum(slept))
    with machine.lock(Paths.lock, "kb init"):
        assert run(machine, "certs", "auto", "run") == 4
    assert sum(slept) > 800 and "kb init" in capsys.readouterr().err
    assert events(machine) == [("Warning", "CertificateRenewalFailed")]


def test_a_machine_that_is_no_node_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert run(Machine(tmp_path), "certs", "auto", "on") == 4
    assert "not-a-node" in capsys.readouterr().err


def test_an_event_is_as_the_kubelet_s_are() -> None:
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    event = node_events.render_event(
        "cp1", now, reason="CertificatesRenewed", message="x" * 2000, kind="Normal", by="kb-certs"
    )
    assert event["metadata"] == {"name": "cp1.kb-certs.20260102030405.certificatesrenewed", "namespace": "default"}
    assert event["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "cp1", "uid": "cp1"}
    assert len(event["message"]) <= 1024 and event["firstTimestamp"] == "2026-01-02T03:04:05Z"


def test_a_worker_is_switched_on_like_others(machine: Machine) -> None:
    """It has no static pods; its kubelet writes the Event."""
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        machine.remove(Paths().manifest(name))
    machine.remove(Paths().admin_conf)
    assert run(machine, "certs", "auto", "off") == 0 and run(machine, "certs", "auto", "on") == 0
    assert is_on(machine) and run(machine, "certs", "auto", "run") == 0


def test_the_state_of_the_timer(machine: Machine) -> None:
    machine.answers["systemctl show"] = CommandResult((), 1, "")
    assert auto_renewal.read_timer(machine, Paths()) == auto_renewal.Timer(is_on=False)
