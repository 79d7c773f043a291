"""kubeup/backup/schedule.py: when, how many, and how the last one ended."""

from __future__ import annotations

import datetime

import pytest

from kubeup.backup import schedule
from kubeup.backup.schedule import Last, Schedule
from kubeup.errors import UsageError
from kubeup.paths import Paths
from tests.fake_host import FakeHost

PATHS = Paths()


@pytest.mark.parametrize(
    ("text", "calendar"),
    [
        ("daily", "daily"),
        ("30 3 * * *", "*-*-* 03:30:00"),
        ("*/15 * * * *", "*-*-* *:0/15:00"),
        ("0 4 1,15 * *", "*-*-01,15 04:00:00"),
        ("0 4 * jan-mar mon-fri", "Mon,Tue,Wed,Thu,Fri *-01..03-* 04:00:00"),
        ("5 0-6/2 * * 0", "Sun *-*-* 00..06/2:05:00"),
        ("0 0 * * 5-7", "Fri,Sat,Sun *-*-* 00:00:00"),
        ("0 0 * * sun,3", "Sun,Wed *-*-* 00:00:00"),
    ],
)
def test_cron_in_systemd_s_words(text: str, calendar: str) -> None:
    """Each was tried with systemd-analyze calendar."""
    assert schedule.parse_when(text) == calendar


@pytest.mark.parametrize(
    "text",
    ["", "x", "60 * * * *", "0 0 1 * 1", "0 0 * * */2", "5-1 * * * *", "1/0 * * * *", "a b c d e", "0 0 0 * *", "* * * *", "0 0 * 13 *"],
)  # fmt: skip
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        schedule.parse_when(text)
    assert caught.value.code == "schedule-invalid"


@pytest.mark.parametrize(
    ("when", "hours"),
    [("hourly", 1), ("daily", 24), ("*/5 * * * *", 1), ("0 4 * * *", 24), ("0 4 * * mon", 168), ("0 4 1 * *", 744)],
)
def test_the_time_between_two(when: str, hours: int) -> None:
    assert schedule.longest_gap(when) == datetime.timedelta(hours=hours)


def test_what_is_written_is_read_again() -> None:
    host = FakeHost()
    wanted = Schedule("daily", "/backup", 3, age=("age1abc",))
    host.write_file(schedule.schedule_file(PATHS), schedule.render_schedule(wanted))
    assert schedule.read_schedule(host, PATHS) == wanted
    assert schedule.read_last(host, PATHS) is None
    last = Last("2026-11-29T23:14:07Z", error="etcd gives no snapshot")
    schedule.write_last(host, PATHS, last=last)
    assert schedule.read_last(host, PATHS) == last


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keep": "x", "ended": 1}'])
def test_damaged_files_are_none(text: str) -> None:
    host = FakeHost({str(schedule.schedule_file(PATHS)): text.encode(), str(schedule.last_file(PATHS)): text.encode()})
    assert schedule.read_schedule(host, PATHS) is None and schedule.read_last(host, PATHS) is None


def test_the_oldest_of_this_node_go_and_nothing_else() -> None:
    moments = [datetime.datetime(2026, 11, day, 3, 30, tzinfo=datetime.timezone.utc) for day in range(1, 6)]
    names = [
        schedule.file_name("cp1", moment, program=program)
        for moment, program in zip(moments, ("", "age", "gpg", "", ""))
    ]
    assert names[1] == "kb-cp1-20261102T033000Z.tar.age"
    others = [
        "kb-cp10-20260101T000000Z.tar",
        "kb-cp1-notes.tar",
        "README",
        ".kb-cp1-20260101T000000Z.tar.kb-12-7f",
        "kb-cp1-20260101T000000Z.tar.bak",
    ]
    last = names[-1]
    assert schedule.choose_old([*others, *reversed(names)], newest=last, node="cp1", keep=3) == names[:2]
    assert schedule.choose_old(names[:2], newest=names[1], node="cp1", keep=3) == []


def test_the_one_of_just_now_stays_if_the_clock_was_ahead_before() -> None:
    ahead = [f"kb-cp1-2031110{day}T033000Z.tar" for day in range(1, 4)]
    now = "kb-cp1-20261129T033000Z.tar"
    assert schedule.choose_old([now, *ahead], newest=now, node="cp1", keep=3) == ahead[:1]
    assert schedule.choose_old([now, *ahead], newest=now, node="cp1", keep=1) == ahead
