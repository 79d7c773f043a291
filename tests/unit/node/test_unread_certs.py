"""kubeup/node/unread_certs.py: a renewal that was cut off before it restarted what reads the new kubeconfigs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kubeup.machine.host import CommandResult
from kubeup.node import renewal, unread_certs
from kubeup.paths import Paths
from tests.fake_cluster import ClusterHost

PATHS = Paths()
ROWS = tuple(renewal.ROWS.values())
BEGAN_S = 1_800_000_000


def row(
    name: str, *, state: str = "RUNNING", created_s: float = BEGAN_S, namespace: str = "kube-system"
) -> dict[str, Any]:
    labels = {"io.kubernetes.pod.name": f"{name}-cp1", "io.kubernetes.pod.namespace": namespace}
    return {
        "id": f"{name}{created_s}", "metadata": {"name": name}, "state": f"CONTAINER_{state}",
        "createdAt": str(int(created_s * 1e9)), "labels": labels,
    }  # fmt: skip


def set_time(root: Path, path: Path, seconds: float) -> None:
    os.utime(root / path.relative_to("/"), (seconds, seconds))


def make(tmp_path: Path, *rows: dict[str, Any], written_s: float = BEGAN_S + 60) -> ClusterHost:
    host = ClusterHost(tmp_path)
    host.answers["crictl"] = lambda argv: CommandResult(argv, 0, json.dumps({"containers": list(rows)}))
    for name in ("controller-manager.conf", "scheduler.conf", "admin.conf"):
        host.write_file(PATHS.kubeconfig(name), "x", mode=0o600)
        set_time(tmp_path, PATHS.kubeconfig(name), written_s)
    return host


def find(host: ClusterHost) -> list[str]:
    return [one.row.name for one in unread_certs.find_unread(host, PATHS, socket="unix:///run/x.sock", rows=ROWS)]


def test_what_was_written_after_its_reader_began_is_not_read(tmp_path: Path) -> None:
    host = make(tmp_path, row("kube-controller-manager"), row("kube-scheduler", created_s=BEGAN_S + 61), row("etcd"))
    assert find(host) == ["controller-manager.conf"]
    (one,) = unread_certs.find_unread(host, PATHS, socket="unix:///run/x.sock", rows=ROWS)
    assert "kube-controller-manager has run since 2027-01-15 08:00:00 UTC" in one.describe()


def test_the_container_that_runs_now_counts(tmp_path: Path) -> None:
    rows = row("kube-scheduler", state="EXITED"), row("kube-scheduler", created_s=BEGAN_S + 61)
    assert find(make(tmp_path, *rows)) == []
    assert find(make(tmp_path / "2", row("kube-scheduler", state="EXITED"))) == []


def test_another_s_of_the_same_name_and_no_runtime_say_nothing(tmp_path: Path) -> None:
    assert find(make(tmp_path, row("kube-scheduler", namespace="batch"), row("kube-scheduler", created_s=0))) == []
    host = make(tmp_path / "2", row("kube-scheduler"))
    host.answers["crictl"] = lambda argv: CommandResult(argv, 1, stderr="no runtime")
    assert find(host) == []


def test_a_kubeconfig_that_is_a_link_counts_by_what_it_leads_to(tmp_path: Path) -> None:
    host, path = make(tmp_path, row("kube-scheduler")), PATHS.kubeconfig("scheduler.conf")
    host.write_file(Path("/root/scheduler.conf"), "x", mode=0o600)
    set_time(tmp_path, Path("/root/scheduler.conf"), BEGAN_S - 60)
    host.remove(path)
    host.symlink(path, "/root/scheduler.conf")
    assert find(host) == []
