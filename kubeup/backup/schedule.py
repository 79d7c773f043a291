"""When backups are made, how many are kept, and how the last one ended.

Owns the two files that say so: the schedule, which the timer's command reads, and the result of its last run, which the doctor reads. What
starts it is a timer of systemd (phases/backup_timer.py). Neither file has a secret: recipients are public.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Optional

from kubeup.errors import UsageError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.shapes import fit

KEEP = 7
_HOUR, _DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)
WORDS = ("hourly", "daily", "weekly", "monthly")
"""What systemd.time(7) knows by a name."""
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of the month", 1, 31), ("month", 1, 12), ("day of the week", 0, 7))


@frozen
class Schedule:
    """when: as it was given, `daily` or a line of cron's five fields; to: a folder, or a URL of what keeps objects."""

    when: str
    to: str
    keep: int = KEEP
    age: tuple[str, ...] = ()
    gpg: tuple[str, ...] = ()


@frozen
class Last:
    """The last run. began, ended, good: moments in UTC (2026-11-29T23:14:07Z); good: of the last run that made a backup. error: why it
    failed, in words; "" if it did not. file: the last good backup."""

    began: str
    ended: str = ""
    error: str = ""
    file: str = ""
    good: str = ""


def schedule_file(paths: Paths) -> Path:
    return paths.state_dir / "backup-schedule.json"


def last_file(paths: Paths) -> Path:
    return paths.state_dir / "backup-last.json"


def render_schedule(found: Schedule) -> str:
    return json.dumps(asdict(found), indent=1, sort_keys=True) + "\n"


def read_schedule(host: Host, paths: Paths) -> Optional[Schedule]:
    """None if there is none, or it is damaged."""
    shape = {"when!": str, "to!": str, "keep!": int, "age!": [str], "gpg!": [str]}
    try:
        told = fit(parse_json_object(host.read_text(schedule_file(paths)), "it"), shape, what="it")
    except ValueError:
        return None
    return Schedule(told["when"], told["to"], told["keep"], tuple(told["age"]), tuple(told["gpg"]))


def write_last(host: Host, paths: Paths, *, last: Last) -> None:
    host.write_file(last_file(paths), json.dumps(asdict(last), indent=1, sort_keys=True) + "\n", mode=0o600)


def read_last(host: Host, paths: Paths) -> Optional[Last]:
    shape = dict.fromkeys(("began!", "ended!", "error!", "file!", "good!"), str)
    if not host.exists(last_file(paths)):
        return None
    try:
        told = fit(parse_json_object(host.read_text(last_file(paths)), "it"), shape, what="it")
    except ValueError:
        return None
    return Last(*(told[name] for name in ("began", "ended", "error", "file", "good")))


# ---- names


def file_name(node: str, moment: datetime.datetime, *, program: str) -> str:
    """kb-cp1-20261129T231407Z.tar.age. The names of a node's backups sort by time."""
    return f"kb-{node}-{moment:%Y%m%dT%H%M%SZ}.tar" + (f".{program}" if program else "")


def names_of(node: str) -> str:
    """The pattern of the names of a node's backups."""
    return rf"kb-{re.escape(node)}-\d{{8}}T\d{{6}}Z\.tar(?:\.age|\.gpg)?"


def choose_old(names: Sequence[str], *, newest: str, node: str, keep: int) -> list[str]:
    """The backups of this node that are more than `keep`, oldest first. Names of others are not touched. newest: the one that was made
    just now, which stays although the clock may have been ahead when others were made."""
    own = sorted(name for name in names if re.fullmatch(names_of(node), name) and name != newest)
    return own[: max(0, len(own) + 1 - keep)]


# ---- when


def parse_when(text: str) -> str:
    """The schedule as systemd's OnCalendar takes it. Raises UsageError (schedule-invalid)."""
    if text in WORDS:
        return text
    words = text.split()
    if len(words) != 5:
        raise _invalid(text, f"it is neither one of {', '.join(WORDS)} nor cron's five fields")
    fields = [
        _parse_field(text, word, name=name, lowest=lowest, highest=highest)
        for word, (name, lowest, highest) in zip(words, _FIELDS)
    ]
    minute, hour, day, month, weekday = fields
    if day != "*" and weekday != "*":
        raise _invalid(text, "cron runs it on either of the two days, and systemd only where both fall together")
    days = "" if weekday == "*" else f"{weekday} "
    return f"{days}*-{month}-{day} {hour}:{minute}:00"


def longest_gap(when: str) -> datetime.timedelta:
    """At least the time between two backups of a schedule that parse_when accepts."""
    if when in WORDS:
        return {"hourly": _HOUR, "daily": _DAY, "weekly": 7 * _DAY, "monthly": 31 * _DAY}[when]
    _, hour, day, month, weekday = when.split()
    for field, gap in ((month, 366 * _DAY), (day, 31 * _DAY), (weekday, 7 * _DAY), (hour, _DAY)):
        if field != "*":
            return gap
    return _HOUR


def _parse_field(text: str, word: str, *, name: str, lowest: int, highest: int) -> str:
    parts = [_parse_part(text, part, name=name, lowest=lowest, highest=highest) for part in word.split(",")]
    return "*" if "*" in parts else ",".join(parts)


def _parse_part(text: str, part: str, *, name: str, lowest: int, highest: int) -> str:
    base, slash, step = part.partition("/")
    first, dash, last = base.partition("-")
    words = [] if base == "*" else [first, last] if dash else [first]
    numbers = [
        number for word in words if (number := _number_of(word, name)) is not None and lowest <= number <= highest
    ]
    has_step = not slash or (step.isdecimal() and 0 < int(step) <= highest)
    if len(numbers) < len(words) or numbers != sorted(numbers) or not has_step:
        raise _invalid(text, f"{part!r} is no {name}: {lowest} to {highest}, lists, ranges and steps")
    if name == "day of the week":
        if slash:
            raise _invalid(text, "systemd knows no steps of weekdays; list them")
        first_day, last_day = (numbers[0], numbers[-1]) if numbers else (0, -1)
        # as a list: systemd's week begins on Monday, and its ranges do not go over the end
        return ",".join(_DAYS[number % 7] for number in range(first_day, last_day + 1)) or "*"
    if not numbers:
        return f"{lowest}/{int(step)}" if slash else "*"
    shown = "..".join(f"{number:02}" for number in numbers)
    return f"{shown}/{int(step)}" if slash else shown


def _number_of(word: str, name: str) -> Optional[int]:
    names = _MONTHS if name == "month" else tuple(day.lower() for day in _DAYS) if name == "day of the week" else ()
    if word.lower() in names:
        return names.index(word.lower()) + (name == "month")
    return int(word) if word.isdecimal() and len(word) < 3 else None


def _invalid(text: str, cause: str) -> UsageError:
    return UsageError(
        f"the schedule {text!r} cannot be used",
        cause=cause,
        remedy="for example daily, or '30 3 * * *' for half past three each night",
        code="schedule-invalid",
    )
