"""kubeup/doctor/looks/backups.py: a failed or missing backup is an error."""

from __future__ import annotations

import datetime

import pytest

from kubeup.backup import schedule
from kubeup.backup.schedule import Last, Schedule
from kubeup.paths import Paths
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import make_host, notes

PATHS = Paths()
FILE = "/backup/kb-cp1-20260101T000000Z.tar"


def scheduled(last: Last | None, *, age_h: float = 1) -> FakeHost:
    """A node whose last good backup is so old. A fake file has no age, so it was scheduled in 1970."""
    host = make_host()
    host.answers["systemctl is-active kb-backup.timer"] = "active\n"
    host.files[FILE] = b"x"
    host.files[str(schedule.schedule_file(PATHS))] = schedule.render_schedule(Schedule("daily", "/backup")).encode()
    if last is not None:
        schedule.write_last(host, PATHS, last=last)
    host.clock = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(hours=age_h)
    return host


GOOD = Last("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", file=FILE, good="2026-01-01T00:00:00Z")


def test_without_a_schedule_and_with_good_backups_nothing_is_found() -> None:
    assert notes(make_host(), "backups") == []
    assert notes(scheduled(GOOD, age_h=30), "backups") == []


@pytest.mark.parametrize(
    ("last", "age_h", "text"),
    [
        (GOOD, 40, "no backup was made since 2026-01-01 00:00 UTC, and they are to be made daily"),
        (None, 1, "no backup was made since they were scheduled"),
        (Last("2026-01-01T00:30:00Z", "2026-01-01T00:31:00Z", "the disk is full", FILE, GOOD.good), 1, "the last backup failed: the disk is full"),
        (Last(GOOD.began, GOOD.ended, file="/backup/gone.tar", good=GOOD.good), 1, "the last backup, /backup/gone.tar, is not there any more"),
    ],
)  # fmt: skip
def test_what_is_found(last: Last | None, age_h: float, text: str) -> None:
    ((level, shown),) = notes(scheduled(last, age_h=age_h), "backups")
    assert level == "error" and text in shown


def test_a_timer_that_does_not_run_and_a_damaged_schedule() -> None:
    host = scheduled(GOOD)
    host.answers["systemctl is-active kb-backup.timer"] = "inactive\n"
    ((_, shown),) = notes(host, "backups")
    assert "kb-backup.timer does not run" in shown
    host.files[str(schedule.schedule_file(PATHS))] = b"{"
    ((_, shown),) = notes(host, "backups")
    assert "is damaged" in shown
