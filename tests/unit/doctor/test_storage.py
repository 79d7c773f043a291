"""kubeup/doctor/looks/storage.py: etcd's members and its disk."""

from __future__ import annotations

import json

from kubeup.doctor.looks import storage
from kubeup.machine.http import HttpResponse
from tests.unit.doctor.doctor_case import APISERVER, make_host, notes, remedies


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
    assert storage.read_fsync_p99_s("etcd_disk_wal_fsync_duration_seconds_count 5\n") is None


def test_an_alarm_of_etcd_is_told_by_itself() -> None:
    host = make_host()
    text = "spec:\n  containers:\n  - command: [etcd, --advertise-client-urls=https://10.77.0.11:2379]\n"
    host.files["/etc/kubernetes/manifests/etcd.yaml"] = text.encode()
    assert notes(host, "etcd-alarms") == []  # no member answers: that is other looks' to tell

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
