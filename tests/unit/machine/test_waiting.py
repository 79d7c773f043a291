"""kubeup/machine/waiting.py: what a wait calls, how often, and how it ends."""

from __future__ import annotations

import pytest

from kubeup.errors import ClusterError
from kubeup.machine.waiting import becomes_so, wait_for, watch
from tests.fake_host import FakeHost


def test_what_holds_at_once_takes_no_time() -> None:
    host = FakeHost()
    assert watch(host, lambda: "", timeout_s=0) == ("", 0)
    assert becomes_so(host, lambda: True, timeout_s=0) and host.ticks == 0


def test_a_wait_that_is_in_vain_ends_before_its_time() -> None:
    host = FakeHost()
    assert watch(host, lambda: "a file", timeout_s=60, is_over=lambda _, elapsed: elapsed >= 2, poll_s=1) == (
        "a file",
        2,
    )


def test_a_wait_looks_once_more_when_its_time_is_over() -> None:
    host = FakeHost()
    assert becomes_so(host, lambda: host.ticks > 10, timeout_s=10, poll_s=4)
    assert not becomes_so(host, lambda: False, timeout_s=10, poll_s=4) and host.ticks == 24


def test_each_round_is_told_and_the_last_one_is_the_error() -> None:
    host = FakeHost()
    told: list[str] = []
    rounds: list[tuple[str, float]] = []

    def failure(missing: str, elapsed: float) -> ClusterError:
        return ClusterError(f"no {missing} after {elapsed:.0f} s", cause="c", remedy="r", code="x")

    with pytest.raises(ClusterError, match="no file after 2 s"):
        wait_for(
            host,
            lambda: "file",
            goal="mirror",
            timeout_s=1,
            tell=told.append,
            failure=failure,
            meanwhile=lambda missing, elapsed: rounds.append((missing, elapsed)),
            poll_s=1,
        )
    assert told == [f"mirror: {second} s of 1 s; file" for second in range(3)]
    assert rounds == [("file", 0), ("file", 1), ("file", 2)]
