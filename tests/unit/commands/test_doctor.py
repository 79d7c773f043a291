"""kubeup/commands/doctor.py: metrics for node_exporter, and a watch that tells what changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubeup.commands import doctor, launcher
from kubeup.diagnosis.checks.facts import Finding
from kubeup.doctor import node_files
from kubeup.doctor.looks import table
from kubeup.errors import UsageError


class Host:
    def __init__(self, rounds: int) -> None:
        self.rounds, self.written = rounds, dict[str, bytes]()

    def sleep(self, seconds: float) -> None:
        self.rounds -= 1
        if not self.rounds:
            raise KeyboardInterrupt

    def monotonic(self) -> float:
        return 5.0

    def now(self) -> Any:
        import datetime

        return datetime.datetime(2026, 1, 1, 12, 30, tzinfo=datetime.timezone.utc)

    def write_output(self, target: str, chunks: list[bytes]) -> None:
        self.written[target] = b"".join(chunks)


class Call:
    def __init__(self, *, output: str = "text", **flags: Any) -> None:
        self.output, self.flags, self.lines = output, flags, list[str]()

    def print(self, text: str) -> None:
        self.lines.append(text)

    def tell(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[list[Finding]]:
    """What each examination finds, one after the other."""
    found: list[list[Finding]] = []
    monkeypatch.setattr(doctor, "_read_patient", lambda call: "patient")
    monkeypatch.setattr(table, "examine", lambda patient, looks: found.pop(0))
    monkeypatch.setattr(node_files, "describe_patient", lambda patient: "node cp1")
    return found


def test_a_watch_tells_what_begins_and_what_ends(rounds: list[list[Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A finding whose number has changed is the same one; one that was well is not told."""
    host, call = Host(rounds=4), Call(watch=True)
    monkeypatch.setattr(launcher, "open_host", lambda call: host)
    dns, disk = Finding("dns", "ok", "answers", ""), Finding("machine/space", "warning", "/ has 16 GiB left", "x")
    worse = Finding("machine/space", "error", "/ has 14 GiB left", "x")
    rounds += [[dns], [dns, disk], [dns, Finding("machine/space", "warning", "/ has 15 GiB left", "x")], [worse]]
    with pytest.raises(KeyboardInterrupt):
        doctor.doctor(call)  # type: ignore[arg-type]
    assert call.lines == [
        "node cp1",
        "12:30:00  warning  machine/space  / has 16 GiB left",
        "12:30:00  error    machine/space  / has 14 GiB left",
    ]
    host.rounds = 1
    rounds += [[disk]]
    call.lines.clear()
    host.rounds = 2
    rounds += [[dns]]
    with pytest.raises(KeyboardInterrupt):
        doctor.doctor(call)  # type: ignore[arg-type]
    assert call.lines[1:] == [
        "12:30:00  warning  machine/space  / has 16 GiB left",
        "12:30:00  ended    machine/space  / has 16 GiB left",
    ]


def test_a_watch_has_no_document() -> None:
    with pytest.raises(UsageError) as refused:
        doctor.doctor(Call(watch=True, output="json"))  # type: ignore[arg-type]
    assert refused.value.code == "watch-as-text-only"


def test_metrics_are_written_beside_the_findings(
    rounds: list[list[Finding]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host, call = Host(rounds=1), Call(textfile=str(tmp_path))
    monkeypatch.setattr(launcher, "open_host", lambda call: host)
    rounds += [[Finding("dns", "error", "no answer", "look")]]
    assert doctor.doctor(call) == doctor.UNFIT  # type: ignore[arg-type]
    assert b'kb_doctor_finding{check="dns",level="error"} 1\n' in host.written[f"{tmp_path}/kb_doctor.prom"]
    assert call.lines[-1] == "1 errors, 0 warnings; nothing was changed"


def test_a_worker_does_not_know_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        is_control_plane = False

    monkeypatch.setattr(doctor, "_read_patient", lambda call: Worker())
    monkeypatch.setattr(launcher, "open_host", lambda call: Host(rounds=1))
    with pytest.raises(UsageError) as refused:
        doctor.doctor(Call(cluster=True))  # type: ignore[arg-type]
    assert refused.value.code == "cluster-from-control-plane"


def test_a_finding_is_one_line(rounds: list[list[Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who writes a condition's message writes findings."""
    call = Call()
    monkeypatch.setattr(launcher, "open_host", lambda call: Host(rounds=1))
    rounds += [[Finding("cluster", "warning", "a webhook refused:\nok       etcd  well", "see\n it")]]
    doctor.doctor(call)  # type: ignore[arg-type]
    assert call.lines[1:3] == [
        "warning  cluster  a webhook refused: ok etcd well",
        "                  remedy: see it",
    ]
