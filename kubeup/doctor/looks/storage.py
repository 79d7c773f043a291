"""Checks of etcd: the disk it writes to, and its members."""

from __future__ import annotations

import re
from typing import Optional

from kubeup.cluster import etcd, health
from kubeup.config.types import ExternalEtcd
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.doctor.node_files import Patient, read_flags, read_mapping
from kubeup.machine.host import Host
from kubeup.machine.http import Unreachable

SLOW_FSYNC_S = 0.01
"""etcd's own recommendation: 99 of 100 WAL writes are on disk within 10 ms."""


def look_at_disk(patient: Patient) -> Findings:
    """How long etcd's writes take, from etcd's own metrics: nothing is written to find out."""
    url = read_flags(patient.host, patient.paths, component="etcd").get("listen-metrics-urls", "").partition(",")[0]
    if not url:
        return
    try:
        text = patient.host.http_get(f"{url}/metrics", timeout_s=5).body.decode(errors="replace")
    except Unreachable:
        return
    slow = read_fsync_p99_s(text)
    if slow is not None and slow > SLOW_FSYNC_S:
        folder = patient.config.cluster.local_etcd.data_dir if patient.config.cluster.local_etcd else "/var/lib/etcd"
        yield Finding(
            "disk",
            WARNING,
            f"the disk of {folder} is slow: one of 100 writes takes longer than {slow * 1000:.0f} ms (etcd needs 10 ms)",
            f"put {folder} on an SSD, away from other writers",
        )


def read_fsync_p99_s(metrics: str) -> Optional[float]:
    """An upper bound for 99 % of etcd's WAL fsync durations; None with fewer than 100 of them."""
    name = "etcd_disk_wal_fsync_duration_seconds"
    rows = [
        (float(edge), float(count)) for edge, count in re.findall(rf'{name}_bucket{{le="([\d.e+-]+)"}} (\S+)', metrics)
    ]
    total = re.search(rf"^{name}_count (\S+)", metrics, re.MULTILINE)
    if not rows or not total or float(total.group(1)) < 100:
        return None
    wanted = 0.99 * float(total.group(1))
    return next((edge for edge, count in sorted(rows) if count >= wanted), rows[-1][0])


def look_at_etcd(patient: Patient) -> Findings:
    """The members of the cluster's etcd, as this one sees them: which are away, and whether the rest has a quorum."""
    external = patient.config.cluster.external_etcd
    if external:
        yield from _look_at_external_etcd(patient.host, external)
    if "etcd" not in patient.components:
        return
    urls = etcd.client_urls_of_manifest(read_mapping(patient.host, patient.paths.manifest("etcd")))
    client = etcd.Etcd(patient.host, urls, tls=etcd.read_client_tls(patient.host, patient.paths))
    try:
        members = client.list_members(is_sure=False)
    except Unreachable as error:
        yield Finding(
            "etcd", ERROR, f"no etcd member answers: {error}", "see its log: crictl logs of the container etcd"
        )
        return
    statuses = etcd.read_statuses(client, members)
    trouble = {member_id: status.away for member_id, status in statuses.items() if status.away}
    verdict = etcd.judge_members(members, trouble)
    if verdict:
        yield Finding("etcd", ERROR, str(verdict), verdict.remedy)
    for member, part in zip(members, health.judge_members(members, statuses)):
        is_alarm = (
            bool(statuses[member.member_id].trouble) and not statuses[member.member_id].away
        )  # a check of its own
        if (
            part.trouble and not is_alarm and (member.is_learner or member.member_id not in trouble)
        ):  # the verdict names the others
            yield Finding("etcd", WARNING, str(part.trouble), part.trouble.remedy)


def _look_at_external_etcd(host: Host, external: ExternalEtcd) -> Findings:
    """Its members and where they run are its operator's concern; what counts is what this node's API server sees."""
    trouble = {url: text for url, text in etcd.probe_external(host, external).items() if text}
    is_enough = len(trouble) < len(external.http_endpoints or external.endpoints)
    for url, text in trouble.items():
        remedy = f"see whether that etcd runs, and whether a firewall is between: curl -vk {url}/health"
        yield Finding("etcd", WARNING if is_enough else ERROR, f"the external etcd at {url}: {text}", remedy)
