"""tests/fake_host.py itself: what a test did not script fails it, and no error handling of kb's hides that."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from kubeup.machine.host import CommandResult
from tests.fake_cluster import ClusterHost
from tests.fake_host import KUBELET_STARTS, FakeHost
from tests.fake_node import finished_node

MISSPELLED = "systemctl restart kubelt"


def test_a_misspelled_change_fails_the_test_and_says_how_to_script_it() -> None:
    host = FakeHost(accepts=KUBELET_STARTS)
    assert host.run(["systemctl", "restart", "kubelet"]).ok
    with pytest.raises(pytest.fail.Exception, match=f"{MISSPELLED}.*FakeHost.accepts"):
        host.run(MISSPELLED.split())
    with pytest.raises(pytest.fail.Exception, match=r"PUT https://a/b.*FakeHost\.urls"):
        host.http_send("PUT", "https://a/b")


def test_kb_cannot_take_the_failure_for_an_error_of_the_machine() -> None:
    with pytest.raises(pytest.fail.Exception), contextlib.suppress(Exception):
        FakeHost().run(["true"])


@pytest.mark.parametrize("answer", ["", "done\n", CommandResult((), 1, stderr="Unit not found.")])
def test_the_answer_of_a_prefix_is_one_for_looks_alone(answer: object) -> None:
    """`systemctl` as a whole may be scripted for looks: it must not let a misspelled unit through, nor stand for the
    failure that a test expects of another command."""
    host = FakeHost(answers={"systemctl": answer, "systemctl stop kubelet": answer})  # type: ignore[dict-item]
    assert host.query(["systemctl", "is-active", "kubelet"]).missing is False
    assert host.run(["systemctl", "stop", "kubelet"]).missing is False
    with pytest.raises(pytest.fail.Exception):
        host.run(MISSPELLED.split())


def test_a_function_judges_every_command_below_its_prefix() -> None:
    host = FakeHost(answers={"crictl": lambda argv: CommandResult(argv, 0 if argv[-1] == "a1" else 1)})
    assert host.run(["crictl", "rmp", "a1"]).ok and not host.run(["crictl", "rmp", "a2"]).ok


def test_the_node_of_the_scenarios_is_as_strict(tmp_path: Path) -> None:
    host = ClusterHost(tmp_path)
    assert host.run(["systemctl", "restart", "kubelet"]).ok
    for words in (MISSPELLED, "systemctl enable kb-route.service", "sysctl -w net.ipv4.ip_forwrd=1", "rm -rf /"):
        with pytest.raises(pytest.fail.Exception, match=words):
            host.run(words.split())


def test_a_finished_node_is_nobody_else_s() -> None:
    host = finished_node()
    host.answers["ip"], host.programs, host.urls["https://a"] = "", {"ip"}, None  # type: ignore[assignment]
    fresh = finished_node()
    assert (fresh.answers, fresh.programs, fresh.urls, fresh.changes) == ({}, set(), {}, [])
