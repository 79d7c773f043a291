"""kubeup/doctor/looks/skew.py: this clock and the server's."""

from __future__ import annotations

import pytest

from kubeup.machine.http import HttpResponse
from tests.unit.doctor.doctor_case import make_host, notes


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Thu, 01 Jan 2026 00:00:05 GMT", []),
        ("Thu, 01 Jan 2026 00:01:00 GMT", [("warning", "this clock is 1 min behind https://10.77.0.11:6443")]),
        ("Thu, 01 Jan 2026 02:07:00 GMT", [("error", "this clock is 2 h 7 min behind https://10.77.0.11:6443")]),
        ("Wed, 31 Dec 2025 21:53:00 GMT", [("error", "this clock is 2 h 7 min ahead of https://10.77.0.11:6443")]),
        ("no date", []),
    ],
)
def test_the_clock_is_compared_with_the_server_s(date: str, expected: list[tuple[str, str]]) -> None:
    host = make_host()
    host.urls["https://10.77.0.11:6443/version"] = HttpResponse(401, b"", {"date": date})
    assert notes(host, "clock") == expected
