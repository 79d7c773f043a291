"""kubeup/doctor/looks/skew.py: this clock and the server's."""

from __future__ import annotations

import datetime

import pytest

from kubeup.doctor.looks import skew as looks_skew
from kubeup.machine.http import HttpResponse
from tests.unit.doctor.doctor_case import make_host, notes


@pytest.mark.parametrize("date", ["Fri, 31 Dec 9999 23:59:59 -2300", "Mon, 01 Jan 0001 00:00:00 +2300", "x", ""])
def test_a_date_beyond_the_calendar_is_none(date: str) -> None:
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    skew = looks_skew.read_skew_s(date, now)
    assert skew is None or abs(skew) > 10**8
    assert looks_skew.read_skew_s("Thu, 01 Jan 2026 00:00:07 -0000", now) == 7


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Thu, 01 Jan 2026 00:00:05 GMT", []),
        ("Thu, 01 Jan 2026 00:01:00 GMT", [("warning", "this clock is 1 min 0 s behind https://10.77.0.11:6443")]),
        ("Thu, 01 Jan 2026 02:07:00 GMT", [("error", "this clock is 2 h 07 min behind https://10.77.0.11:6443")]),
        ("Wed, 31 Dec 2025 21:53:00 GMT", [("error", "this clock is 2 h 07 min ahead of https://10.77.0.11:6443")]),
        ("no date", []),
    ],
)
def test_the_clock_is_compared_with_the_server_s(date: str, expected: list[tuple[str, str]]) -> None:
    host = make_host()
    host.urls["https://10.77.0.11:6443/version"] = HttpResponse(401, b"", {"date": date})
    assert notes(host, "clock") == expected
