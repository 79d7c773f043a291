"""kubeup/commands/closing_look.py: what doctor adds where a command has failed, or has ended."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.commands import closing_look
from kubeup.engine import runner
from kubeup.errors import ClusterError, HostError
from kubeup.report import Report
from tests.fake_cluster import ClusterHost
from tests.unit.commands.test_launcher import INIT
from tests.unit.doctor.doctor_case import make_host
from tests.unit.network.test_pod_view import dns_answer

UNIT = "/etc/systemd/system/kb-routes.service"
"""kb's pod network is set up here, and its CNI configuration is not there."""


def make_error() -> ClusterError:
    return ClusterError("etcd does not answer", cause="it ended", remedy="see its log", code="not-healthy")


def test_a_failure_is_explained_by_what_lies_beside_its_own_chain() -> None:
    host, error = make_host(), make_error()
    closing_look.explain_failure(host, error)
    assert not error.details
    host.files[UNIT] = b""
    closing_look.explain_failure(host, error)
    told: tuple[str, ...] = error.details
    (line,) = told
    assert line.startswith("kb doctor finds: ") and "no CNI configuration in /etc/cni/net.d" in line
    assert not host.changes


def test_what_the_error_says_itself_is_not_said_twice() -> None:
    host = make_host()
    host.files[UNIT] = b""
    first = make_error()
    closing_look.explain_failure(host, first)
    said = first.details[0].removeprefix("kb doctor finds: ").partition(". Remedy")[0]
    second = ClusterError("etcd does not answer", cause=said, remedy="see its log", code="not-healthy")
    closing_look.explain_failure(host, second)
    assert second.details == ()


def test_an_upgrade_says_at_its_end_what_pods_do_not_reach() -> None:
    host, out = make_host(), io.StringIO()
    closing_look.warn_of_pods(host, Report(out))
    assert "warning: the cluster's DNS at 10.96.0.10 does not answer" in out.getvalue()
    host.datagrams["10.96.0.10:53"] = lambda data: bytes.fromhex(dns_answer(data.hex()))
    out.truncate(0)
    closing_look.warn_of_pods(host, Report(out))
    assert "warning" not in out.getvalue()


@pytest.mark.parametrize("kind", [ClusterError, HostError])
def test_only_a_cluster_that_does_not_come_up_is_looked_at(
    kind: type[ClusterError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A command that the machine refuses says why itself."""

    def fail(*_: object, **__: object) -> None:
        place = tmp_path / UNIT.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        raise kind("it failed", cause="a test", remedy="look again", code="failed")

    monkeypatch.setattr(runner.Runner, "run", fail)
    host = ClusterHost(tmp_path)
    assert kb.main(list(INIT), make_host=lambda root: host) == kind.status
    assert ("kb doctor finds: " in capsys.readouterr().err) is (kind is ClusterError)
