"""kb backup schedule, from the command line to the timer, and what the timer runs."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.backup import destination, making
from kubeup.cluster import etcd
from kubeup.errors import HostError
from kubeup.machine import services
from kubeup.machine.http import Unreachable
from kubeup.paths import Paths
from tests.unit.commands.test_backup import Node
from tests.unit.commands.test_launcher import INIT

TIMER, SERVICE = Path("/etc/systemd/system/kb-backup.timer"), Path("/etc/systemd/system/kb-backup.service")
WANTED = Path("/var/lib/kb/backup-schedule.json")
FOLDER = Path("/backup")


@pytest.fixture
def node(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Node:
    host = Node(tmp_path)
    assert kb.main(list(INIT), make_host=lambda root: host) == 0
    host.make_dir(FOLDER, mode=0o700)
    host.answers["systemctl is-active kb-backup.timer"] = host._keeper_state
    host.answers["systemctl show kb-backup.timer kb-backup.service"] = host._loaded
    host.accepts |= {
        "systemctl enable --no-reload kb-backup.timer",
        "systemctl restart kb-backup.timer",
        "systemctl disable --now kb-backup.timer",
        "systemctl disable --now kb-backup.service",
        "systemctl clean --what=state kb-backup.timer",
    }
    monkeypatch.setattr(services, "find", lambda host: services.SYSTEMD)
    capsys.readouterr()
    return host


def run(host: Node, *words: str) -> int:
    return kb.main(["backup", "schedule", *words], make_host=lambda root: host)


def on(host: Node, *words: str) -> None:
    assert run(host, *(words or ("daily",)), "--to", str(FOLDER), "--keep", "2") == 0


def refused(host: Node, capsys: Any, *words: str, code: str) -> str:
    assert run(host, *words) != 0
    told = str(capsys.readouterr().err)
    assert f"code:   {code}\n" in told, told
    assert not host.exists(TIMER)
    return told


def status(host: Node, capsys: Any) -> Any:
    capsys.readouterr()
    assert run(host, "status", "-o", "json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_timer_that_comes_back_after_a_boot(node: Node) -> None:
    on(node, "30", "3", "*", "*", "*", "--age", "age1abc")
    timer, service = node.read_text(TIMER), node.read_text(SERVICE)
    assert "OnCalendar=*-*-* 03:30:00\n" in timer and "Persistent=yes" in timer
    assert " backup schedule run\n" in service and "HOME=/root" in service
    assert node.exists(Path("/etc/systemd/system/timers.target.wants/kb-backup.timer"))
    told = json.loads(node.read_text(WANTED))
    assert told == {"when": "30 3 * * *", "to": "/backup", "keep": 2, "age": ["age1abc"], "gpg": []}


def test_the_cron_line_may_be_one_word(node: Node) -> None:
    on(node, "30 3 * * *")
    assert "OnCalendar=*-*-* 03:30:00\n" in node.read_text(TIMER)


def test_the_same_again_changes_nothing_and_another_schedule_does(node: Node) -> None:
    on(node)
    count = node.commands.count("systemctl restart kb-backup.timer")
    on(node)
    assert node.commands.count("systemctl restart kb-backup.timer") == count
    on(node, "hourly")
    assert "OnCalendar=hourly\n" in node.read_text(TIMER)
    assert node.commands.count("systemctl restart kb-backup.timer") == count + 1


def test_off_removes_both_units_and_no_backup(node: Node, capsys: Any) -> None:
    on(node)
    assert run(node, "run") == 0
    assert run(node, "off") == 0
    assert not any(map(node.exists, (TIMER, SERVICE, WANTED)))
    assert len(node.list_dir(FOLDER)) == 1
    assert status(node, capsys) == {"on": False, "schedule": None, "last": None}
    assert run(node, "off") == 0
    on(node)
    assert node.exists(TIMER)


def test_runs_keep_the_newest(node: Node, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on(node)
    assert status(node, capsys)["last"] is None
    names: list[str] = []
    for second in range(4):
        moment = datetime.datetime(2026, 11, 29, 3, 30, second, tzinfo=datetime.timezone.utc)
        monkeypatch.setattr(node, "now", lambda: moment)  # noqa: B023
        assert run(node, "run") == 0
        names += [name for name in node.list_dir(FOLDER) if name not in names]
    assert node.list_dir(FOLDER) == names[-2:]
    last = status(node, capsys)["last"]
    assert last["file"] == f"/backup/{names[-1]}" and last["error"] == "" and last["good"]


def test_a_failed_run_keeps_the_old_ones_and_is_told(node: Node, capsys: Any) -> None:
    on(node)
    assert run(node, "run") == 0
    before, good = node.list_dir(FOLDER), status(node, capsys)["last"]["good"]
    node.breaks_after = 1000
    assert run(node, "run") != 0
    assert node.list_dir(FOLDER) == before
    last = status(node, capsys)["last"]
    assert "ends early" in last["error"] and last["good"] == good
    assert run(node, "status") == 0
    assert "ends early" in capsys.readouterr().out


def test_a_backup_is_made_although_the_old_ones_cannot_go(
    node: Node, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(node)

    def refuse(*_: object) -> None:
        raise HostError("no", cause="retention lock", remedy="wait", code="destination-failed")

    monkeypatch.setattr(destination.Folder, "names", refuse)
    assert run(node, "run") != 0
    last = status(node, capsys)["last"]
    assert "retention lock" in last["error"] and last["good"] and node.exists(Path(last["file"]))


def test_nobody_waits_while_a_backup_goes_out(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that hangs while it sends one would keep the renewal of certificates waiting."""
    on(node)
    seen = []
    real = making.write_backup

    def write(source: Any, planned: Any, **more: Any) -> Any:
        with node.lock(Paths().lock, "another kb"):
            seen.append("free")
        return real(source, planned, **more)

    monkeypatch.setattr(making, "write_backup", write)
    assert run(node, "run") == 0
    assert kb.main(["backup", "-o", "/backup/by-hand.tar"], make_host=lambda root: node) == 0
    assert seen == ["free", "free"]


@pytest.mark.parametrize("away", [3, 10**6])
def test_after_a_boot_it_waits_for_etcd(node: Node, capsys: Any, monkeypatch: pytest.MonkeyPatch, away: int) -> None:
    """The timer makes up for what was missed before the kubelet has started anything."""
    on(node)
    looks: list[float] = []

    def probe(*_: object, **more: object) -> str:
        looks.append(node.monotonic())
        with node.lock(Paths().lock, "another kb"):  # nobody waits for it
            return "no answer: refused" if len(looks) <= away else ""

    def answer_not(*_: object, **more: object) -> Any:
        raise Unreachable("https://10.0.0.11:2379", "refused", text="refused")

    slept: list[float] = []
    monkeypatch.setattr(node, "sleep", slept.append)
    monkeypatch.setattr(node, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(etcd.Etcd, "probe_read", probe)
    if away > 3:
        monkeypatch.setattr(etcd.Etcd, "list_members", answer_not)
        assert run(node, "run") != 0 and "code:   no-snapshot\n" in capsys.readouterr().err
        assert 250 < sum(slept) < 400
    else:
        assert run(node, "run") == 0 and len(looks) == 4 and len(node.list_dir(FOLDER)) == 1


def test_the_timer_s_run_has_no_dry_run(node: Node, capsys: Any) -> None:
    on(node)
    before = sorted(node.files())
    assert run(node, "run", "--dry-run") == 2
    assert "kb backup --dry-run" in capsys.readouterr().err and sorted(node.files()) == before


def test_what_a_killed_run_left_goes(node: Node) -> None:
    on(node)
    half = FOLDER / ".kb-cp1-20260101T000000Z.tar.kb-999999999-7f"
    node.write_file(half, "half")
    assert run(node, "run") == 0
    assert not node.exists(half)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "usage"),
        (("daily",), "missing-flag"),
        (("noon", "--to", "/backup"), "schedule-invalid"),
        (("daily", "--to", "/nowhere"), "destination-missing"),
        (("daily", "--to", "ftp://x"), "usage"),
        (("daily", "--to", "/backup", "--keep", "0"), "usage"),
        (("daily", "--to", "/backup", "--age", "bad"), "recipient-refused"),
        (("run",), "no-schedule"),
    ],
)
def test_what_is_refused(node: Node, capsys: Any, words: tuple[str, ...], code: str) -> None:
    refused(node, capsys, *words, code=code)


def test_without_systemd_the_line_for_cron_is_given(node: Node, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "find", lambda host: services.OPENRC)
    told = refused(node, capsys, "daily", "--to", "/backup", "--age", "age1abc", code="no-systemd")
    assert "30 3 * * * " in told and "-o /backup/kb-" in told and "--age age1abc" in told
    told = refused(node, capsys, "daily", "--to", "s3://bucket/kb", code="no-systemd")
    assert "-o - | PROGRAM, one that sends its input to s3://bucket/kb/kb-" in told


def test_reset_takes_the_timer_along(node: Node) -> None:
    on(node)
    assert kb.main(["reset", "--force"], make_host=lambda root: node) == 0
    assert not node.exists(TIMER) and not node.exists(SERVICE)
