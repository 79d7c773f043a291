"""Brings a node back whose certificates have expired: issues them from this node's own files, and has everything read them.

With quorum lost, the first of several control planes can only do its own part: `Gap` says which members are missing. What reads its
certificate only when it starts is in kubeup/node/renewal.py (docs/adr/0017-renewed-certificates.md says why). Workload pods run on: the
kubelet restarts no container when it starts. kubeadm has no counterpart.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

from kubeup import yaml_files
from kubeup.addresses import host_of, port_of
from kubeup.engine.run import Run
from kubeup.errors import KbError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.http import Unreachable
from kubeup.phases import kubelet_start
from kubeup.phases.restart_pods import Restart, find_obstacle_to_stop
from kubeup.phases.wait_node import is_renewed, node_path
from kubeup.phases.waits import Wait, nudge_kubelet
from kubeup.yaml_files import commands_of_pod, flags_of

with lazily:
    from kubeup.cluster import api, authority_places, etcd, probes
    from kubeup.node import certificates, containers, expired_certs, former_certs, renewal

API_S = 120.0
"""How long an API server may take to serve: a second if it ran on, 20 s if it has to start with its etcd."""
READY_S = 120.0
STUCK_S = 8.0
"""After how long an API server that does not reach an etcd which serves is restarted: it waits up to two minutes between two tries
(grpc's back-off)."""
LOOK_EVERY_S = 2.0
CALL_S = 3
RECENT = datetime.timedelta(seconds=40)
"""A kubelet renews its lease every 10 s; after 40 s the cluster takes its node for lost."""
_LEASES = "kube-node-lease"


@frozen
class Missing:
    """A member of etcd on another node that does not take part. why: in words."""

    name: str
    address: str
    why: str


@frozen
class Gap:
    """etcd has no quorum yet. missing: the members that do not take part."""

    voters: int
    needed: int
    missing: tuple[Missing, ...]


@dataclass
class Recovered:
    """What was done. names: the certificates that were issued anew, in this run or in one that was cut off."""

    names: tuple[str, ...]
    former: Optional[Path] = None
    """The folder of the former files; None if nothing was replaced in this run."""
    restarted: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)
    """component that goes on with its former certificate -> why it was not restarted, in words."""
    gap: Optional[Gap] = None


# ---- what was cut off


def read_cut_off(run: Run) -> tuple[str, ...]:
    """The names of the certificates that a run which was cut off was replacing; () if none was."""
    if not run.host.exists(run.paths.recovery):
        return ()
    try:
        found = parse_json_object(run.host.read_bytes(run.paths.recovery), "it").get("names")
    except ValueError:
        found = None
    names = found if isinstance(found, list) else list(renewal.ROWS)
    return tuple(str(name) for name in names)


def begin(run: Run, names: Sequence[str], *, waits: bool = False) -> None:
    """Note what is about to be replaced, before anything is. waits: it has been, and other nodes have to follow."""
    run.host.make_dir(run.paths.state_dir, mode=0o700)
    noted = json.dumps({"names": list(names), "waits": waits})
    run.host.write_file(run.paths.recovery, f"{noted}\n", mode=0o600)


def has_come_back(run: Run) -> bool:
    """Whether the node that only waited for others works by now, so that nothing is left to do."""
    try:
        waits = parse_json_object(run.host.read_bytes(run.paths.recovery), "it").get("waits") is True
        client = api.Api(run.host, run.api.identity, retry_s=0)
        return waits and not _find_silence(client, run, since=run.host.now() - RECENT)
    except (KbError, ValueError):
        return False


def end(run: Run) -> None:
    run.host.remove(run.paths.recovery)


# ---- a control plane


def recover(
    run: Run,
    expired: Sequence[expired_certs.Expired],
    *,
    names: Sequence[str],
    files: expired_certs.KubeletFiles,
) -> Recovered:
    """Issue what has expired, restart the kubelet and what reads its certificate only when it starts, and wait for the API server and
    this node. names: those of `expired`, and of a run that was cut off.

    Raises HostError from the files and the kubelet's start, ClusterError (not-healthy). Run again, it goes on.
    """
    done = Recovered(tuple(names))
    readers = _list_readers(run, names)
    done.left = {name: why for name in readers if (why := find_obstacle_to_stop(run, name))}
    done.restarted = tuple(name for name in readers if name not in done.left)
    restart = Restart(run, done.restarted) if done.restarted else None
    running = _read_running(run)
    is_cut_off = bool(read_cut_off(run))
    begin(run, names)
    done.former = issue(run, expired, files=files)
    began = run.host.now()

    def stop() -> None:
        if restart is not None:
            restart.stop()
        if _has_lost_etcd(run):
            Restart(run, ("kube-apiserver",)).stop(grace_s=CALL_S)

    restart_node(run, names=names, files=files, stop=stop)
    done.gap = _wait_for_api(run, running=running)
    if done.gap is None:
        if restart is not None:
            restart.wait_until_healthy()
        wait_for_report(run, since=began)
        if expired_certs.AUTHORITY in names and run.host.exists(run.paths.manifest("kube-apiserver")):
            authority_places.replace_ended(run.api, run.host.read_text(run.paths.pki / "ca.crt"))
    if done.gap is not None:
        begin(run, names, waits=True)
        return done
    if is_cut_off:
        run.host.remove(run.paths.kubernetes / "bootstrap-kubelet.conf")
    end(run)
    return done


def _list_readers(run: Run, names: Sequence[str]) -> list[str]:
    """The static pods that read at their start alone what is replaced."""
    is_over = expired_certs.AUTHORITY in names
    readers = [row.reader for row in renewal.ROWS.values() if row.reader and (is_over or row.name in names)]
    # etcd/ca.crt ends with ca.crt, and both go on with what has ended
    servers = [name for name in ("etcd", "kube-apiserver") if is_over and run.host.exists(run.paths.manifest(name))]
    return readers + servers


def issue(run: Run, expired: Sequence[expired_certs.Expired], *, files: expired_certs.KubeletFiles) -> Optional[Path]:
    """Issue these anew, but for what the kubelet makes for itself. Returns the folder of the former files."""
    host, paths = run.host, run.paths
    if not expired:
        return None
    replaced = expired_certs.files_of(host, paths, expired=expired, kubelet_files=files)
    former = former_certs.keep_former(host, paths, files=replaced)
    expired_certs.trust_authorities(host, paths, expired=expired)
    for one in expired:
        if one.name in renewal.ROWS:
            expired_certs.issue_row(host, paths, one=one)
            run.report.detail(f"issued anew: {one.name}")
    if any(one.name in (expired_certs.CLIENT, expired_certs.EMBEDDED) for one in expired):
        expired_certs.issue_kubelet_client(host, paths, expired=expired, files=files)
    return former.folder


def restart_node(
    run: Run,
    *,
    names: Sequence[str],
    files: expired_certs.KubeletFiles,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Restart the kubelet. stop: ends what has to start anew; it is called while the kubelet is stopped, which so delays none of these
    starts.

    Raises HostError (kubelet-not-started, no-init-system, container-not-stopped); the kubelet runs then if it can.
    """
    host = run.host
    try:
        kubelet_start.stop_kubelet(run)
        if expired_certs.SERVER in names:
            take_serving_pair(run, files)
        stop()
    finally:
        try:
            if services.find(host) is services.SYSTEMD and services.read_state(host, "kubelet") == "failed":
                host.run(["systemctl", "reset-failed", "kubelet"])
        finally:  # told to stop once more, kb still leaves a kubelet that runs
            kubelet_start.restart_kubelet(run)


def take_serving_pair(run: Run, files: expired_certs.KubeletFiles) -> None:
    """Take the serving pair away that the kubelet made, if it has expired: it makes another when it starts. Its copy is kept."""
    path = files.serving
    if path is None or not expired_certs.is_self_made(run.host, path):
        return
    shown = certificates.parse_shown(run.host.read_text(path))
    if shown and certificates.is_expired(shown[0], run.host.now()):
        for one in (path, path.with_suffix(".key")):
            run.host.remove(one)


# ---- the API server, or why it cannot serve yet


def _wait_for_api(run: Run, *, running: frozenset[str]) -> Optional[Gap]:
    """Wait until this node's API server serves. Returns the gap if etcd cannot have a quorum before other nodes are recovered.
    running: the containers of API servers that ran before. Raises ClusterError (not-healthy)."""
    gap: Optional[Gap] = None
    began, looked, is_stopped = run.host.monotonic(), 0.0, False
    unhealthy: dict[str, str] = {}

    def look() -> str:
        nonlocal gap, looked, is_stopped
        seen = probes.probe_apiserver(api.Api(run.host, run.api.identity, retry_s=0))
        if seen.is_healthy:
            return ""
        unhealthy["kube-apiserver"] = seen.seen
        now = run.host.monotonic()
        if now - looked < LOOK_EVERY_S:
            return f"kube-apiserver {seen.seen}"
        looked = now
        client = _etcd_of(run)
        if client is not None and client.probe_read(client.endpoints[0], timeout_s=CALL_S):
            gap = find_gap(run, client)
        elif now - began > STUCK_S and not is_stopped:
            is_stopped = True
            _stop_stuck(run, running)
        return "" if gap else f"kube-apiserver {seen.seen}"

    pods = tuple(name for name in ("etcd", "kube-apiserver") if run.host.exists(run.paths.manifest(name)))
    wait = Wait(run, API_S, "API server", pods, unhealthy, nudge=lambda: nudge_kubelet(run, pods))
    wait.is_patient = True  # how often a container has ended before tells nothing of the one that starts now
    wait.until(look)
    return gap


def _read_running(run: Run) -> frozenset[str]:
    found = containers.list_containers(run.host, run.config.node.cri_socket)
    return frozenset(one.id for one in found if one.name == "kube-apiserver" and one.state == "running")


def _has_lost_etcd(run: Run) -> bool:
    """Whether this node's API server runs and its etcd does not. It accepts calls then and answers none, and a kubelet that waits for
    its answers starts no static pod, etcd among them."""
    if not run.host.exists(run.paths.manifest("etcd")) or find_obstacle_to_stop(run, "kube-apiserver"):
        return False
    found = containers.list_containers(run.host, run.config.node.cri_socket)
    running = {one.name for one in found if one.state == "running"}
    return "kube-apiserver" in running and "etcd" not in running


def _stop_stuck(run: Run, running: frozenset[str]) -> None:
    """Have an API server start anew that ran before and has not come back. It serves nobody, so it gets little time to end."""
    if not running & _read_running(run) or find_obstacle_to_stop(run, "kube-apiserver"):
        return
    run.report.detail("etcd serves and the API server does not: it is restarted")
    Restart(run, ("kube-apiserver",)).stop(grace_s=CALL_S)


def _etcd_of(run: Run) -> Optional[etcd.Etcd]:
    """A client of this node's own member; None if the node has none."""
    flags = _etcd_flags(run)
    urls = flags.get("advertise-client-urls", "").split(",")
    return etcd.Etcd(run.host, urls[:1], tls=etcd.read_client_tls(run.host, run.paths)) if urls[0] else None


def _etcd_flags(run: Run) -> dict[str, str]:
    path = run.paths.manifest("etcd")
    if not run.host.exists(path):
        return {}
    command, *_ = [*commands_of_pod(yaml_files.load_mapping(run.host.read_text(path), str(path))), []]
    return flags_of(command)


def find_gap(run: Run, client: etcd.Etcd) -> Optional[Gap]:
    """Who is missing, if etcd cannot have a quorum now: members whose certificate has expired, or that do not answer. None if it can,
    or if this node's member does not tell."""
    members = _list_members(run, client)
    own = _etcd_flags(run).get("name", "")
    voters = [member for member in members if not member.is_learner]
    silent = [
        Missing(member.name or member.hex_id, host_of(_place_of(member)), why)
        for member in voters
        if member.name != own and (why := _why_silent(run, _place_of(member)))
    ]
    if not voters:
        return None
    needed = etcd.quorum_of(len(voters))
    return Gap(len(voters), needed, tuple(silent)) if len(voters) - len(silent) < needed else None


def _list_members(run: Run, client: etcd.Etcd) -> tuple[etcd.Member, ...]:
    """This node's own view of the members; () if it does not tell."""
    peers = _etcd_flags(run).get("initial-advertise-peer-urls", "").split(",")
    try:
        return client.list_members(is_sure=False)
    except (Unreachable, etcd.EtcdRefused):
        pass
    try:
        return etcd.read_peer_members(run.host, peers[0].rstrip("/"), tls=client.tls) if peers[0] else ()
    except (Unreachable, etcd.EtcdRefused):
        return ()


def _place_of(member: etcd.Member) -> str:
    return member.peer_urls[0].partition("://")[2].rstrip("/") if member.peer_urls else ""


def _why_silent(run: Run, place: str) -> str:
    pem = run.host.served_cert(host_of(place), port_of(place, 2380)) if place else None
    if pem is None:
        return "does not answer"
    shown = certificates.parse_shown(pem)
    if shown and certificates.is_expired(shown[0], run.host.now()):
        return f"presents a certificate that expired at {shown[0].not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    return ""


# ---- this node


def wait_for_report(run: Run, *, since: datetime.datetime) -> None:
    """Wait until the node is Ready by a report that its kubelet made after `since`: what the API server knew before may be stale.
    Raises ClusterError (not-healthy)."""

    def look() -> str:
        client = api.Api(run.host, run.api.identity, retry_s=0)
        try:
            return _find_silence(client, run, since=since)
        except KbError as error:
            return f"node {run.config.node.name} cannot be read: {error.cause}"

    Wait(run, READY_S, "node Ready").until(look)


def _find_silence(client: api.Api, run: Run, *, since: datetime.datetime) -> str:
    """What is missing to a node that is Ready by a report since then; "" if nothing is. Raises KbError."""
    name = run.config.node.name
    status, message = probes.node_condition(client.get(node_path(run)))
    if status != "True":
        return f"node {name} is not Ready: {message}"
    lease = client.get(api.path_of("Lease", name, namespace=_LEASES))
    return "" if lease is None or is_renewed(lease, since) else f"the kubelet of {name} has not reported yet"
