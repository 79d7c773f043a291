"""kubeup/doctor/looks/storage.py: etcd's members and its disk."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kubeup.cluster import etcd
from kubeup.doctor.looks import storage
from kubeup.machine.http import HttpResponse
from tests.unit.doctor.doctor_case import APISERVER, SERVER, make_host, make_patient, notes, remedies


def test_an_external_etcd_is_judged_by_what_this_node_meets() -> None:
    host = make_host()
    del host.files["/etc/kubernetes/manifests/etcd.yaml"]
    flags = APISERVER.replace("https://127.0.0.1:2379", "https://e1:2379,https://e2:2379")
    host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = flags.encode()
    assert [level for level, _ in notes(host, "etcd")] == ["error", "error"]
    host.urls["https://e1:2379/health"] = HttpResponse(200, b'{"health":"true"}')
    host.urls["https://e2:2379/health"] = HttpResponse(503, b'{"health":"false","reason":"RAFT NO LEADER"}')
    ((level, text),) = notes(host, "etcd")
    assert level == "warning" and "https://e2:2379" in text and "RAFT NO LEADER" in text
    host.urls["https://e2:2379/health"] = HttpResponse(404)
    assert notes(host, "etcd") == []


METRICS = """\
etcd_disk_wal_fsync_duration_seconds_bucket{{le="0.001"}} {fast}
etcd_disk_wal_fsync_duration_seconds_bucket{{le="0.008"}} {fair}
etcd_disk_wal_fsync_duration_seconds_bucket{{le="0.128"}} {slow}
etcd_disk_wal_fsync_duration_seconds_bucket{{le="+Inf"}} 1000
etcd_disk_wal_fsync_duration_seconds_count 1000
"""


def test_a_slow_disk_is_told_by_etcd_s_own_count() -> None:
    host = make_host()
    url = "http://127.0.0.1:2381/metrics"
    host.urls[url] = HttpResponse(200, METRICS.format(fast=900, fair=995, slow=1000).encode())
    assert notes(host, "disk") == []
    host.urls[url] = HttpResponse(200, METRICS.format(fast=10, fair=900, slow=995).encode())
    ((level, text),) = notes(host, "disk")
    assert level == "warning"
    assert "the disk of /data/etcd is slow: one of 100 writes takes longer than 128 ms" in text
    assert (
        storage.read_p99_s("etcd_disk_wal_fsync_duration_seconds_count 5\n", "etcd_disk_wal_fsync_duration_seconds")
        is None
    )
    commits = METRICS.replace("wal_fsync", "backend_commit").format(fast=10, fair=900, slow=995)
    host.urls[url] = HttpResponse(200, (METRICS.format(fast=10, fair=900, slow=995) + commits).encode())
    ((_, text),) = notes(host, "disk")
    assert text.endswith(
        "(etcd needs 10 ms), and one of 100 commits of the database takes longer than 128 ms (etcd needs 25 ms)"
    )


@pytest.mark.parametrize(
    ("seen", "hours", "says"),
    [
        (5, 1.5, "has changed 4 times in the 90 minutes since"),
        (31, 24, "has changed 30 times in the 24 hours since"),
        (31, 72, ""),
        (4, 0.1, ""),
    ],
)
def test_a_leader_that_changes_often(seen: int, hours: float, says: str) -> None:
    host = make_host()
    started = host.now().timestamp() - hours * 3600
    text = f"etcd_server_leader_changes_seen_total {seen}\nprocess_start_time_seconds {started:.9e}\n"
    host.urls["http://127.0.0.1:2381/metrics"] = HttpResponse(200, text.encode())
    found = notes(host, "disk")
    assert [level for level, _ in found] == (["warning"] if says else [])
    assert all(says in text for _, text in found)


MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "used", "quota", "says"),
    [
        (900 * MIB, 300 * MIB, 0, "has 900 MiB, of which 300 are in use"),
        (900 * MIB, 800 * MIB, 0, ""),
        (90 * MIB, 9 * MIB, 0, ""),
        (1800 * MIB, 1700 * MIB, 0, "with 2048 MiB (its quota) etcd takes no more writes"),
        (1800 * MIB, 1700 * MIB, 8192 * MIB, ""),
    ],
)
def test_a_file_of_etcd_that_is_large(size: int, used: int, quota: int, says: str) -> None:
    """Every member is judged, by its own quota if it tells one."""
    members = [etcd.Member("1", "cp1", (), ()), etcd.Member("2", "cp2", (), ())]
    statuses = {
        "1": etcd.Status("", db_size=MIB, db_in_use=MIB),
        "2": etcd.Status("", db_size=size, db_in_use=used, db_quota=quota),
    }
    found = list(storage._judge_space(make_patient(make_host()), members, statuses=statuses))
    assert [note.name for note in found] == (["etcd/space"] if says else [])
    assert all(
        says in note.text and "on cp2" in note.text and note.remedy.startswith("kb etcd defrag") for note in found
    )
    alarmed = dataclasses.replace(statuses["2"], trouble="alarm:NOSPACE")
    assert not list(storage._judge_space(make_patient(make_host()), members, statuses={**statuses, "2": alarmed}))


def test_a_member_whose_node_was_deleted() -> None:
    host = make_host()
    nodes = f"{SERVER}/api/v1/nodes"

    def find(*names: str) -> list[str]:
        rows = [{"metadata": {"name": name}} for name in names]
        host.urls[nodes] = HttpResponse(200, json.dumps({"items": rows}).encode())
        return [note.text for note in storage._find_nodeless(make_patient(host), ["cp1", "cp2"])]

    assert find("cp1", "cp2", "w1") == find("w1") == []
    (told,) = find("cp1", "w1")
    assert told.startswith(
        "etcd has a member cp2 that serves, and the cluster has no node of that name: it was deleted"
    )
    del host.urls[nodes]
    assert list(storage._find_nodeless(make_patient(host), ["cp1", "cp2"])) == []


def test_an_alarm_of_etcd_is_told_by_itself() -> None:
    host = make_host()
    text = "spec:\n  containers:\n  - command: [etcd, --advertise-client-urls=https://10.77.0.11:2379]\n"
    host.files["/etc/kubernetes/manifests/etcd.yaml"] = text.encode()
    ((level, text),) = notes(host, "etcd-alarms")  # why no member answers, is other looks' to tell
    assert level == "ok" and text.startswith("not proven: no answer from https://10.77.0.11:2379")

    def alarms(*kinds: str) -> None:
        rows = [{"memberID": "7", "alarm": kind} for kind in kinds]
        body = json.dumps({"alarms": rows}).encode()
        host.urls["https://10.77.0.11:2379/v3/maintenance/alarm"] = HttpResponse(200, body)

    alarms()
    assert notes(host, "etcd-alarms") == []
    alarms("NOSPACE", "NOSPACE")
    ((level, text),) = notes(host, "etcd-alarms")
    assert level == "error" and text.startswith("etcd has raised the alarm NOSPACE: its database has reached its quota")
    assert remedies(host, "etcd-alarms") == ["kb etcd alarm disarm, which makes room first"]
    alarms("CORRUPT")
    assert (
        "are not to be trusted" in notes(host, "etcd-alarms")[0][1]
        or "it is not to be trusted" in notes(host, "etcd-alarms")[0][1]
    )
