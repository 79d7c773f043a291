"""Checks of etcd: the disk it writes to, and its members."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Optional

from kubeup.cluster import etcd, etcd_upkeep, health, objects
from kubeup.cluster.api import path_of
from kubeup.cluster.etcd import Member, Status
from kubeup.config.types import ExternalEtcd
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings, not_proven
from kubeup.doctor.node_files import Patient, open_api, read_flags, read_mapping
from kubeup.errors import KbError
from kubeup.machine.host import Host
from kubeup.machine.http import Unreachable

OWN_MEMBER, NO_QUORUM = "etcd/own", "etcd/quorum"
SLOW_FSYNC_S, SLOW_COMMIT_S = 0.01, 0.025
"""etcd's own recommendations: 99 of 100 writes of the log are on disk within 10 ms, of the database within 25 ms (docs of etcd, FAQ and metrics)."""
_FSYNC, _COMMIT = "etcd_disk_wal_fsync_duration_seconds", "etcd_disk_backend_commit_duration_seconds"
_MANY_CHANGES = 4
"""So many changes of the leader, and at least one an hour: etcd's own alert counts them in a quarter of an hour."""
_LARGE = 100 << 20
"""A smaller file is not worth a defragmentation (etcd's alert etcdDatabaseHighFragmentationRatio)."""


def look_at_disk(patient: Patient) -> Findings:
    """How long etcd's writes take and how often its leader changes, from etcd's own metrics: nothing is written to find out."""
    url = read_flags(patient.host, patient.paths, component="etcd").get("listen-metrics-urls", "").partition(",")[0]
    if not url:
        return
    try:
        text = patient.host.http_get(f"{url}/metrics", timeout_s=5).body.decode(errors="replace")
    except Unreachable as error:
        yield not_proven("disk", error)
        return
    slow = [
        f"{what} takes longer than {took * 1000:.0f} ms (etcd needs {limit * 1000:.0f} ms)"
        for name, what, limit in (
            (_FSYNC, "one of 100 writes", SLOW_FSYNC_S),
            (_COMMIT, "one of 100 commits of the database", SLOW_COMMIT_S),
        )
        if (took := read_p99_s(text, name)) is not None and took > limit
    ]
    if slow:
        folder = patient.config.cluster.local_etcd.data_dir if patient.config.cluster.local_etcd else "/var/lib/etcd"
        yield Finding(
            "disk",
            WARNING,
            f"the disk of {folder} is slow: {', and '.join(slow)}",
            f"put {folder} on an SSD, away from other writers",
        )
    yield from _judge_leader_changes(patient, text)


def _judge_leader_changes(patient: Patient, text: str) -> Findings:
    """etcd counts them since its member's start, and the first leader that a member meets is one too."""
    seen, started = (
        _read_number(text, name) for name in ("etcd_server_leader_changes_seen_total", "process_start_time_seconds")
    )
    if seen is None or started is None:
        return
    changes, hours = int(seen) - 1, max(0.0, patient.host.now().timestamp() - started) / 3600
    if changes >= _MANY_CHANGES and changes >= hours:
        yield Finding(
            "disk/leader",
            WARNING,
            f"the leader of etcd has changed {changes} times in the {_say_hours(hours)} since its member on this node was started: each time, nothing "
            "can be written for a second or more",
            "crictl ps -a --name etcd on every control plane says whether a member is restarted again and again; else a disk or a network is slow, "
            "or a machine has no CPU time left",
        )


def _say_hours(hours: float) -> str:
    return f"{hours:.0f} hours" if hours >= 2 else f"{hours * 60:.0f} minutes"


def _read_number(metrics: str, name: str) -> Optional[float]:
    found = re.search(rf"^{name} ([0-9.e+]+)$", metrics, re.MULTILINE)
    try:
        return float(found.group(1)) if found else None
    except ValueError:
        return None


def read_p99_s(metrics: str, name: str) -> Optional[float]:
    """An upper bound for 99 % of the durations in a histogram; None with fewer than 100 of them."""
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
        text = f"the member of etcd on this node does not answer: {error.cause}"
        yield Finding(OWN_MEMBER, ERROR, text, "see its log: crictl logs $(crictl ps -aq --name etcd | head -1)")
        return
    statuses = etcd.read_statuses(client, members)
    trouble = {member_id: status.away for member_id, status in statuses.items() if status.away}
    verdict = etcd.judge_members(members, trouble)
    if verdict:
        name = NO_QUORUM if verdict.code == "etcd-no-quorum" else "etcd"
        yield Finding(name, ERROR, str(verdict), verdict.remedy)
    for member, part in zip(members, health.judge_members(members, statuses)):
        is_alarm = (
            bool(statuses[member.member_id].trouble) and not statuses[member.member_id].away
        )  # a check of its own
        if (
            part.trouble and not is_alarm and (member.is_learner or member.member_id not in trouble)
        ):  # the verdict names the others
            yield Finding("etcd", WARNING, str(part.trouble), part.trouble.remedy)
    yield from _judge_space(patient, members, statuses=statuses)
    yield from _find_nodeless(patient, [member.name for member in members if member.member_id not in trouble])


def _find_nodeless(patient: Patient, names: Sequence[str]) -> Findings:
    """Members that serve and whose Node is gone. kubeadm names a member as its node; where this node's own is called otherwise, nothing follows."""
    own = patient.config.node.name
    nodes = set[str]()
    with contextlib.suppress(KbError):
        nodes = {str(node["metadata"]["name"]) for node in open_api(patient).list(path_of("Node"))}
    for name in names if own in names and own in nodes else ():
        if name and name not in nodes:
            text = f"etcd has a member {name} that serves, and the cluster has no node of that name: it was deleted, and nothing that goes from node to node reaches its machine"
            label = f"kubectl label node {name} {objects.CONTROL_PLANE_TAINT.key}="
            remedy = f"if that is a mistake, on that machine: systemctl restart kubelet, then: {label}; else: kb etcd remove {name}"
            yield Finding("etcd", WARNING, text, remedy)


def _judge_space(patient: Patient, members: Sequence[Member], *, statuses: Mapping[str, Status]) -> Findings:
    """Files that are near their quota, with which etcd refuses every write, or that are mostly empty."""
    given = read_flags(patient.host, patient.paths, component="etcd").get("quota-backend-bytes", "")
    quota = int(given) if given.isdecimal() and int(given) else etcd_upkeep.DEFAULT_QUOTA
    full = {member.member_id: limit for member, _, limit in etcd_upkeep.find_full(members, statuses, quota=quota)}
    for member in members:
        status = statuses[member.member_id]
        is_hollow = status.db_size > _LARGE and 0 < status.db_in_use < status.db_size / 2
        if "alarm:NOSPACE" in status.trouble or not (is_hollow or member.member_id in full):
            continue  # the verdict names an alarm
        size, used = etcd_upkeep.in_mib(status.db_size), etcd_upkeep.in_mib(status.db_in_use)
        text = f"the file of etcd on {member.name} has {size} MiB, of which {used} are in use"
        if member.member_id in full:
            limit = etcd_upkeep.in_mib(full[member.member_id])
            text += f"; with {limit} MiB (its quota) etcd takes no more writes"
        remedy = "kb etcd defrag"
        if not is_hollow:
            remedy += "; or raise --quota-backend-bytes, and see what fills it: kubectl get --raw /metrics | grep apiserver_storage_objects"
        yield Finding("etcd/space", WARNING, text, remedy)


def _look_at_external_etcd(host: Host, external: ExternalEtcd) -> Findings:
    """Its members and where they run are its operator's concern; what counts is what this node's API server sees."""
    trouble = {url: text for url, text in etcd.probe_external(host, external).items() if text}
    is_enough = len(trouble) < len(external.http_endpoints or external.endpoints)
    for url, text in trouble.items():
        remedy = f"see whether that etcd runs, and whether a firewall is between: curl -vk {url}/health"
        yield Finding("etcd", WARNING if is_enough else ERROR, f"the external etcd at {url}: {text}", remedy)
