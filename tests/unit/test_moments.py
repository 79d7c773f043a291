"""moments: the one form of a moment in what kb writes and reads."""

from __future__ import annotations

import datetime

import pytest

from kubeup import moments

UTC = datetime.timezone.utc


def test_a_moment_is_written_in_utc_and_read_back() -> None:
    moment = datetime.datetime(2026, 11, 30, 10, 0, 1, tzinfo=UTC)
    assert moments.show(moment) == "2026-11-30T10:00:01Z"
    assert moments.show(moment.astimezone(datetime.timezone(datetime.timedelta(hours=5)))) == "2026-11-30T10:00:01Z"
    assert moments.parse(moments.show(moment)) == moment


@pytest.mark.parametrize(
    "text", ["", "2026-11-30", "2026-11-30T10:00:00", "2026-11-30T10:00:00+01:00", "2026-13-30T10:00:00Z", "None"]
)
def test_another_form_is_refused(text: str) -> None:
    assert moments.find(text) is None
    with pytest.raises(ValueError):
        moments.parse(text)
