"""The members of the cluster's own etcd: listing, probing, adding and removing them.

This client uses etcd's JSON gateway (/v3/... on a member's client URL) with the health check's client certificate; kubeadm's client
does the same over gRPC. The module also derives decisions from what the members report. It knows no phase.
Mirrors cmd/kubeadm/app/util/etcd/etcd.go. Source of the requests: etcd's api/etcdserverpb/rpc.proto
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from kubeup.config.types import ExternalEtcd
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.host import Host
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from kubeup.paths import Paths
from kubeup.secret import Secret
from kubeup.shapes import fit
from kubeup.trust import Anchors
from kubeup.yaml_files import commands_of_pod, flags_of

CLIENT_URLS_ANNOTATION = "kubeadm.kubernetes.io/etcd.advertise-client-urls"
"""An annotation of every etcd pod: its client URLs."""
CLIENT_PORT = 2379
READ_S = 0.5
"""How long a member may take to answer a read. The timeout is short, because a starting member is asked repeatedly."""
RETRY_S = 0.5
SETTLE_S = 20
"""How long etcd may take to consider a new member healthy. Normally it takes five seconds."""
CALL_S = 2
"""The timeout of one request to one member."""
EXTERNAL_S = 5
"""The timeout of a health request to an external etcd, which may be further away."""


MEMBERSHIP = "etcd-member"
"""The kind of compensation (state.json) that a node registers before it becomes a member: if the join does not succeed, the
member is removed from the list."""


@frozen
class Member:
    """One row of the member list. `member_id` is etcd's ID in decimal. A member without a name has never started."""

    member_id: str
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...] = ()
    is_learner: bool = False

    @property
    def hex_id(self) -> str:
        """The ID in hex, as etcdctl and etcd's log show it."""
        return f"{int(self.member_id):x}"

    @property
    def has_started(self) -> bool:
        return bool(self.name)

    def describe(self) -> str:
        """`cp2 (https://10.0.0.12:2380, learner)`"""
        kind = ", learner" if self.is_learner else ""
        started = "" if self.has_started else ", never started"
        return f"{self.name or self.hex_id} ({', '.join(self.peer_urls)}{kind}{started})"


@frozen
class Status:
    """What a member says of itself. trouble: what is wrong, in words, alarms included; "" if it serves.

    applied, index: the raft index of the last entry that it has applied, and of the last one that it knows to be committed. leader:
    the ID of the leader that it knows, in decimal; "" if it knows none. db_size, db_in_use, db_quota: in bytes. revision: of the data
    that it serves. member: its own ID, in decimal; endpoint: the client URL at which it was asked, if it is the member that was meant.
    What a member does not tell is 0 or "": storage_version and db_quota exist since etcd 3.6. Source: StatusResponse in etcd's
    api/etcdserverpb/rpc.proto
    """

    trouble: str
    applied: int = 0
    index: int = 0
    term: int = 0
    leader: str = ""
    version: str = ""
    storage_version: str = ""
    db_size: int = 0
    db_in_use: int = 0
    revision: int = 0
    db_quota: int = 0
    member: str = ""
    endpoint: str = ""

    @property
    def away(self) -> str:
        """What is wrong besides the alarm NOSPACE, which every member tells: with it, it still answers reads, and may lead."""
        return "; ".join(text for text in self.trouble.split("; ") if "alarm:NOSPACE" not in text)


@frozen
class Alarm:
    """An alarm that the cluster keeps until it is disarmed. kind: NOSPACE | CORRUPT. Source: AlarmType in etcd's rpc.proto"""

    member_id: str
    kind: str


class EtcdRefused(ClusterError):
    """A member rejected a request. `message` is etcd's own ("etcdserver: unhealthy cluster")."""

    def __init__(self, request: str, endpoint: str, *, message: str) -> None:
        super().__init__(
            f"etcd refused: {request}",
            cause=f"{endpoint} says: {message}",
            remedy="see the members: kb etcd members; and etcd's log: crictl logs of the container etcd",
            code="etcd-refused",
        )
        self.message = message


_NO_LEADER = "no leader"
"""What a member says that runs, and is left alone. Source: etcd, api/v3rpc/rpctypes/error.go"""


def is_unsettled(error: EtcdRefused) -> bool:
    """Whether etcd refused because a voter is down, or has been connected for less than HealthInterval
    (server/etcdserver/server.go: 5 s)."""
    return "unhealthy cluster" in error.message


class Etcd:
    """A client of the members at `endpoints` (client URLs). The first one that answers is used."""

    def __init__(self, host: Host, endpoints: Sequence[str], *, tls: Tls) -> None:
        self.host = host
        self.endpoints = tuple(endpoints)
        self.tls = tls

    def at(self, endpoint: str) -> Etcd:
        return Etcd(self.host, (endpoint,), tls=self.tls)

    # ---- looks

    def list_members(self, *, is_sure: bool = True) -> tuple[Member, ...]:
        """The member list, in etcd's order. is_sure: confirmed by a quorum; otherwise one member's own view. Raises Unreachable,
        EtcdRefused."""
        return parse_members(self._look("cluster/member/list", {"linearizable": is_sure}))

    def read_status(self, endpoint: str) -> Status:
        """The status of the member at `endpoint`. Never raises."""
        try:
            answer = self.at(endpoint)._look("maintenance/status", {})
        except Unreachable as error:
            return Status(f"no answer: {error.cause}")
        except EtcdRefused as error:
            return Status(error.message)
        return replace(parse_status(answer), endpoint=endpoint)

    def read_member(self, member: Member, *, members: Iterable[Member] = ()) -> Status:
        """The status of a member, at that of its client URLs which leads to it. One that leads to another member, as 127.0.0.1 does from
        another machine, tells nothing of this one. members: who may be there instead, for the words. Never raises."""
        if not member.client_urls:
            return Status("it has never started")
        first: Optional[Status] = None
        astray = ""
        for endpoint in _places_of(member):
            if endpoint not in member.client_urls and not astray:
                break  # it does not answer at all
            status = self.read_status(endpoint)
            if status.member in ("", member.member_id):
                if status.endpoint:
                    return status
                first = first or status
                continue
            astray = astray or _say_astray(member, endpoint, other=status.member, members=members)
        return Status(astray) if astray or first is None else first

    def reach(self, member: Member) -> Etcd:
        """A client of this member alone. Raises EtcdRefused if it is not reached."""
        status = self.read_member(member)
        if not status.endpoint:
            raise EtcdRefused("maintenance status", ", ".join(member.client_urls) or "nobody", message=status.trouble)
        return self.at(status.endpoint)

    def probe_member(self, member: Member, *, timeout_s: float = READ_S) -> str:
        """probe_read at the member itself. Never raises."""
        status = self.read_member(member)
        return self.probe_read(status.endpoint, timeout_s=timeout_s) if status.endpoint else status.trouble

    def probe_read(self, endpoint: str, *, timeout_s: float = READ_S) -> str:
        """Send the member at `endpoint` a linearizable read, as an API server does: it needs a quorum, and a learner refuses it.
        Returns "" if it answers, else what is wrong, in words. Never raises."""
        try:
            key = base64.b64encode(b"kb").decode()
            self.at(endpoint)._look("kv/range", {"key": key, "keys_only": True}, timeout_s=timeout_s)
        except Unreachable as error:
            return f"no answer: {error.cause}"
        except EtcdRefused as error:
            return error.message
        return ""

    def count_keys(self, prefix: str, *, timeout_s: float = 10) -> int:
        """The number of keys that begin with `prefix`, which is not empty. Raises EtcdRefused, Unreachable."""
        answer = self._look("kv/range", {**_range_of(prefix), "count_only": True}, timeout_s=timeout_s)
        told = str(answer.get("count") or 0)
        return int(told) if told.isdecimal() and len(told) <= 20 else 0

    def list_keys(self, prefix: str, *, timeout_s: float = 10) -> list[str]:
        """The keys that begin with `prefix`, which is not empty, without it. Raises EtcdRefused, Unreachable."""
        answer = self._look("kv/range", {**_range_of(prefix), "keys_only": True}, timeout_s=timeout_s)
        rows = self._fit(answer, _KEYS, verb="kv/range")["kvs"]
        return [base64.b64decode(row["key"]).decode(errors="replace")[len(prefix) :] for row in rows]

    def read_revision(self, key: str = "kb") -> tuple[int, int]:
        """The newest revision of all keys, and the one that wrote `key`; 0 if there is no such key. Raises EtcdRefused, Unreachable."""
        body = {"key": base64.b64encode(key.encode()).decode(), "keys_only": True}
        answer = self._fit(self._look("kv/range", body), _REVISIONS, verb="kv/range")
        written = [row["mod_revision"] for row in answer["kvs"]]
        return int(answer["header"]["revision"] or 0), int(written[0] or 0) if written else 0

    def list_alarms(self) -> tuple[Alarm, ...]:
        """The alarms that are raised. Raises EtcdRefused, Unreachable."""
        answer = self._fit(self._look("maintenance/alarm", {"action": "GET"}), _ALARMS, verb="maintenance/alarm")
        return tuple(Alarm(row["memberID"], row["alarm"]) for row in answer["alarms"] if row["alarm"] != "NONE")

    # ---- changes

    def disarm(self, alarm: Alarm) -> None:
        """Raises EtcdRefused, Unreachable."""
        self._change("maintenance/alarm", {"action": "DEACTIVATE", "memberID": alarm.member_id, "alarm": alarm.kind})

    def compact(self, revision: int, *, timeout_s: float) -> None:
        """Forget what was before this revision, on all members; wait until the member that answers has. Raises EtcdRefused,
        Unreachable."""
        self._change("kv/compaction", {"revision": str(revision), "physical": True}, timeout_s=timeout_s)

    def defragment(self, member: Member, *, timeout_s: float) -> None:
        """Have a member write its file anew, without the gaps in it. It answers nobody meanwhile. Raises EtcdRefused, Unreachable."""
        self.reach(member)._change("maintenance/defragment", {}, timeout_s=timeout_s)

    def add_learner(self, peer_url: str) -> tuple[Member, ...]:
        """Add a member as a learner, without a vote; return the new member list. Raises EtcdRefused, Unreachable."""
        return parse_members(self._change("cluster/member/add", {"peerURLs": [peer_url], "isLearner": True}))

    def promote(self, member: Member) -> None:
        """Promote a learner to a voting member. Raises EtcdRefused while it has not caught up."""
        self._change("cluster/member/promote", {"ID": member.member_id})

    def update(self, member: Member, *, peer_urls: Sequence[str]) -> None:
        """Have the list name a member by other peer URLs. Raises EtcdRefused, Unreachable."""
        self._change("cluster/member/update", {"ID": member.member_id, "peerURLs": list(peer_urls)})

    def remove(self, member: Member) -> None:
        """Remove a member. etcd refuses until its members have been connected for some seconds, so right after a join the request
        is retried for up to SETTLE_S. Raises EtcdRefused, Unreachable."""
        started = self.host.monotonic()
        while True:
            try:
                self._change("cluster/member/remove", {"ID": member.member_id})
                return
            except EtcdRefused as error:
                if not is_unsettled(error) or self.host.monotonic() - started > SETTLE_S:
                    raise
            self.host.sleep(RETRY_S)

    def move_leader(self, leader: Member, *, to: Member) -> None:
        """Have `leader` hand its leadership to the voting member `to`. Only the leader itself does this, so it is asked at its own
        endpoint. etcd answers once `to` leads. Raises EtcdRefused (not the leader any more, a learner), Unreachable.
        Source: MoveLeader in server/etcdserver/server.go"""
        self.reach(leader)._change("maintenance/transfer-leadership", {"targetID": to.member_id})

    # ---- plumbing

    def _fit(self, answer: Mapping[str, Any], shape: Mapping[str, Any], *, verb: str) -> dict[str, Any]:
        """Raises EtcdRefused if the answer has another shape."""
        try:
            return dict(fit(answer, shape, what="the answer"))
        except ValueError as error:
            raise EtcdRefused(verb.replace("/", " "), self.endpoints[0], message=str(error)) from error

    def _look(self, verb: str, body: Mapping[str, Any], *, timeout_s: float = CALL_S) -> dict[str, Any]:
        """Send a read-only request to the first endpoint that answers."""

        def ask(url: str, data: bytes) -> HttpResponse:
            return self.host.http_ask(url, data, tls=self.tls, timeout_s=timeout_s)

        return self._first(verb, body, request=ask)

    def _change(self, verb: str, body: Mapping[str, Any], *, timeout_s: float = CALL_S) -> dict[str, Any]:
        """Send a change to the first endpoint that answers."""
        headers = {"Content-Type": "application/json"}

        def send(url: str, data: bytes) -> HttpResponse:
            return self.host.http_send("POST", url, body=data, tls=self.tls, headers=headers, timeout_s=timeout_s)

        return self._first(verb, body, request=send)

    def _first(
        self, verb: str, body: Mapping[str, Any], *, request: Callable[[str, bytes], HttpResponse]
    ) -> dict[str, Any]:
        """Send a request to each endpoint in turn, until one answers."""
        last: Optional[Unreachable] = None
        for endpoint in self.endpoints:
            try:
                answer = request(f"{endpoint}/v3/{verb}", json.dumps(body).encode())
            except Unreachable as error:
                last = error
                continue
            return _read_answer(verb, endpoint, status=answer.status, text=answer.body)
        raise last or Unreachable(f"/v3/{verb}", "other", text="no etcd endpoint is known")


def _range_of(prefix: str) -> dict[str, str]:
    begin = prefix.encode()
    end = begin[:-1] + bytes((begin[-1] + 1,))  # the first key after all of them
    return {"key": base64.b64encode(begin).decode(), "range_end": base64.b64encode(end).decode()}


def _check_number(text: str) -> None:
    if not text.isdecimal() or len(text) > 20:
        raise ValueError(f"{text!r} is not a number of etcd's")


def _check_base64(text: str) -> None:
    base64.b64decode(text, validate=True)


_ASTRAY = "leads to member"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_KEYS = {"kvs!": [{"key!": _check_base64}]}
_URLS = [urllib.parse.urlsplit]
_REVISIONS = {"header!": {"revision!": _check_number}, "kvs!": [{"mod_revision!": _check_number}]}
_ALARMS = {"alarms!": [{"memberID!": _check_number, "alarm!": str}]}
_ANSWER = {
    "members": [{"ID!": _check_number, "name!": str, "peerURLs!": _URLS, "clientURLs!": _URLS, "isLearner!": bool}],
}

_PEERS = [{"id": object, "name!": str, "peerURLs!": _URLS, "clientURLs!": _URLS, "isLearner!": bool}]
"""What a member tells its peers. Its IDs are numbers there, with up to 64 bits."""


def _read_answer(verb: str, endpoint: str, *, status: int, text: bytes) -> dict[str, Any]:
    try:
        found = parse_json(text or b"{}", "the answer")
        if status < 300:
            return dict(fit(found, _ANSWER, what="the answer"))
    except ValueError as error:
        found = {"message": text[:200].decode(errors="replace")} if status >= 300 else {"message": str(error)}
    told = found if isinstance(found, dict) else {}
    message = str(told.get("message") or told.get("error") or f"HTTP {status}")
    raise EtcdRefused(verb.replace("/", " "), endpoint, message=message)


def parse_members(answer: Mapping[str, Any]) -> tuple[Member, ...]:
    """The members in an answer of the gateway, which omits empty and false fields. Raises ValueError."""
    return tuple(
        Member(
            entry["ID"] or "0", entry["name"], tuple(entry["peerURLs"]), tuple(entry["clientURLs"]), entry["isLearner"]
        )
        for entry in fit(answer, _ANSWER, what="the answer").get("members", ())
    )


def parse_status(answer: Mapping[str, Any]) -> Status:
    """The status in an answer of the gateway. It writes 64-bit numbers as texts, and omits what is zero."""

    head = answer.get("header")

    def count(name: str, holder: Mapping[str, Any] = answer) -> int:
        text = str(holder.get(name, ""))
        return int(text) if text.isdecimal() and len(text) <= 20 else 0

    errors = answer.get("errors") or []
    return Status(
        "; ".join(str(text) for text in errors) if isinstance(errors, list) else str(errors),
        applied=count("raftAppliedIndex"),
        index=count("raftIndex"),
        term=count("raftTerm"),
        leader=str(count("leader") or ""),
        version=str(answer.get("version") or ""),
        storage_version=str(answer.get("storageVersion") or ""),
        db_size=count("dbSize"),
        db_in_use=count("dbSizeInUse"),
        revision=count("revision", head if isinstance(head, dict) else {}),
        db_quota=count("dbSizeQuota"),
        member=str(count("member_id", head if isinstance(head, dict) else {}) or ""),
    )


def _places_of(member: Member) -> list[str]:
    """Where a member may be asked: at its client URLs, those last that mean whoever asks; then at the host of its peer URLs, with the
    port that kubeadm gives the clients."""
    own = sorted(member.client_urls, key=lambda url: urllib.parse.urlsplit(url).hostname in _LOOPBACK)
    peers = (re.sub(r":\d+$", f":{CLIENT_PORT}", url.rstrip("/")) for url in member.peer_urls)
    return list(dict.fromkeys([*own, *peers]))


def _say_astray(member: Member, endpoint: str, *, other: str, members: Iterable[Member]) -> str:
    found = next((one for one in members if one.member_id == other), None) or Member(other, "", ())
    return f"{member.name or member.hex_id} advertises a client URL that {_ASTRAY} {found.name or found.hex_id} ({endpoint})"


def say_way_back(member: Member, trouble: str) -> str:
    """What to do about a voting member that does not serve: one that is asked at another's address is not lost."""
    name = member.name or member.hex_id
    if _ASTRAY in trouble:
        return f"on {name}: name an address of that machine in --advertise-client-urls, in a copy of etcd's manifest, then: kb reconfigure static-pods COPY"
    return f"start that machine again; or, if it is lost for good: kb etcd remove {name}"


def read_client_tls(host: Host, paths: Paths) -> Tls:
    """The health check's client certificate, which every control plane has. Raises HostError (file-unreadable)."""
    folder = paths.pki / "etcd"
    return Tls(
        Anchors.given(host.read_text(folder / "ca.crt")),
        cert_pem=host.read_text(folder / "healthcheck-client.crt"),
        key_pem=Secret(host.read_text(folder / "healthcheck-client.key")),
    )


def read_peer_members(host: Host, peer_url: str, *, tls: Tls) -> tuple[Member, ...]:
    """The member list as the member at `peer_url` tells its peers: also before it has a leader, when a member that was just started
    serves no client yet. Raises Unreachable, EtcdRefused. Source: peerMembersHandler in server/etcdserver/api/etcdhttp/peer.go"""
    answer = host.http_get(f"{peer_url}/members", tls=tls, timeout_s=CALL_S)
    try:
        rows = fit(parse_json(answer.body, "the answer"), _PEERS, what="the answer") if answer.status == 200 else None
    except ValueError:
        rows = None
    if not rows or not all(isinstance(row.get("id"), int) for row in rows):
        raise EtcdRefused("members", peer_url, message=f"HTTP {answer.status}, and no list of members")
    return tuple(
        Member(
            str(row["id"]),
            row["name"],
            tuple(row["peerURLs"]),
            tuple(row["clientURLs"]),
            row["isLearner"],
        )
        for row in rows
    )


# ---- external etcd


def read_external_tls(host: Host, external: ExternalEtcd) -> Tls:
    """The CA and client certificate that the configuration names for the external etcd. Raises HostError (file-unreadable)."""
    key, ca, cert = (
        host.read_text(Path(name)) if name else None
        for name in (external.key_file, external.ca_file, external.cert_file)
    )
    return Tls(Anchors.given(ca) if ca else None, cert_pem=cert, key_pem=Secret(key) if key else None)


def probe_external(host: Host, external: ExternalEtcd) -> dict[str, str]:
    """Each endpoint and what is wrong with it, seen from this node; "" if it serves, which requires a quorum. Raises HostError
    (file-unreadable)."""
    tls = read_external_tls(host, external)
    return {url: _probe_health(host, url, tls=tls) for url in external.http_endpoints or external.endpoints}


def _probe_health(host: Host, endpoint: str, *, tls: Tls) -> str:
    """Ask etcd's /health, for which a client certificate without rights to any key is enough."""
    try:
        answer = host.http_get(f"{endpoint.rstrip('/')}/health", tls=tls, timeout_s=EXTERNAL_S)
    except Unreachable as error:
        return f"no answer: {error.cause}"
    if answer.status < 500 and b'"false"' not in answer.body:
        return ""  # a proxy in front of etcd need not know the path
    said = answer.body[:200].decode(errors="replace").strip()
    return f"it is not healthy: {said or f'HTTP {answer.status}'}"


def client_urls_of_pods(pods: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The client URLs that the cluster's etcd pods (label component=etcd) advertise, sorted."""
    texts = ((pod["metadata"].get("annotations") or {}).get(CLIENT_URLS_ANNOTATION, "") for pod in pods)
    return tuple(sorted({url for text in texts for url in text.split(",") if url}))


def client_urls_of_manifest(pod: Mapping[str, Any]) -> tuple[str, ...]:
    """The client URLs in an etcd static pod manifest: its own first, then those of the members that it joined (as in kubeadm: the
    peer's host with port 2379)."""
    command, *_ = [*commands_of_pod(pod), []]
    flags = flags_of(command)
    own = [url for url in flags.get("advertise-client-urls", "").split(",") if url]
    peers = (row.partition("=")[2] for row in flags.get("initial-cluster", "").split(",") if row)
    others = (re.sub(r":\d+$", f":{CLIENT_PORT}", url) for url in peers)
    return tuple(dict.fromkeys([*own, *others]))


def read_statuses(client: Etcd, members: Iterable[Member]) -> dict[str, Status]:
    """member_id -> status. A member without a client URL has never started."""
    members = tuple(members)
    return {member.member_id: client.read_member(member, members=members) for member in members}


def probe_members(client: Etcd, members: Iterable[Member]) -> dict[str, str]:
    """The members that do not serve: member_id -> what is wrong."""
    return find_trouble(read_statuses(client, members))


def find_trouble(statuses: Mapping[str, Status]) -> dict[str, str]:
    """member_id -> what is wrong, of the members that do not serve."""
    return {member_id: status.trouble for member_id, status in statuses.items() if status.trouble}


# ---- what the member list means for a node that joins or leaves


@frozen
class Place:
    """What the member list says about this node.

    action: add | reuse (already added: continue with it) | replace (a stale member of this machine: remove it, then add a new
    one) | keep (a voting member)
    """

    action: str
    member: Optional[Member] = None


def find_by_peer_url(members: Iterable[Member], peer_url: str) -> Optional[Member]:
    """The member with this peer URL, or one of several that a comma separates as in etcd's flags, ignoring case and a trailing slash."""
    wanted = {_plain_url(url) for url in peer_url.split(",")}
    return next((m for m in members if any(_plain_url(url) in wanted for url in m.peer_urls)), None)


def _plain_url(url: str) -> str:
    return url.rstrip("/").lower()


def find_place(members: Sequence[Member], *, name: str, peer_url: str, has_data: bool) -> Place:
    """What has to be done so that this node becomes a member.

    has_data: the data directory holds a member's data. If it is empty, but a member with this node's address has started, that
    member lost its disk: nobody else can have this address. Raises ClusterError (etcd-name-taken).
    """
    own = find_by_peer_url(members, peer_url)
    namesakes = [m for m in members if m.name == name and m is not own]
    if namesakes:
        other = namesakes[0]
        raise ClusterError(
            f"etcd has a member {name} already, at another address",
            cause=f"{other.describe()}: left over from this machine, or another machine; two members with one name "
            "cannot be told apart",
            remedy=f"if that one is gone for good: kb etcd remove {other.hex_id} (on a control plane); "
            "else give this machine another name: --node-name",
            code="etcd-name-taken",
        )
    if own is None:
        return Place("add")
    if own.has_started and not has_data:
        return Place("replace", own)
    return Place("keep" if not own.is_learner and own.has_started else "reuse", own)


def plan_initial_cluster(members: Iterable[Member], *, name: str, peer_url: str) -> tuple[tuple[str, str], ...]:
    """(name, peer URL) of all members for --initial-cluster: this node by its name, other members that have not started by their
    hex ID."""
    rows: list[tuple[str, str]] = []
    for member in members:
        is_own = find_by_peer_url([member], peer_url) is not None
        shown = name if is_own else member.name or member.hex_id
        rows.extend(
            (shown, peer_url if is_own else url) for url in (member.peer_urls[:1] if is_own else member.peer_urls)
        )
    return tuple(rows)


def quorum_of(voters: int) -> int:
    """How many of `voters` members must be up for etcd to serve."""
    return voters // 2 + 1


def judge_members(members: Sequence[Member], trouble: Mapping[str, str]) -> Optional[ClusterError]:
    """Why etcd accepts no new member now; None if it does.

    trouble: member_id -> what is wrong, for members that do not serve. etcd itself refuses a new member while any voter is down,
    since losing one more would stop the cluster.
    """
    voters = [m for m in members if not m.is_learner]
    away = [m for m in voters if m.member_id in trouble]
    if not away:
        return None
    told = "; ".join(f"{m.describe()}: {trouble[m.member_id]}" for m in away)
    first = next((m for m in away if _NO_LEADER not in trouble[m.member_id]), away[0])
    living = len(voters) - len(away)
    if living < quorum_of(len(voters)):
        return ClusterError(
            f"etcd has lost its quorum: {living} of {len(voters)} members serve, it needs {quorum_of(len(voters))}",
            cause=told,
            remedy=say_way_back(first, trouble[first.member_id])
            if _ASTRAY in trouble[first.member_id]
            else f"on the machine of {first.name or first.hex_id}: start it again, or kb doctor (its kubelet runs etcd); until then "
            "nothing in the cluster can be changed",
            code="etcd-no-quorum",
        )
    return ClusterError(
        f"etcd member {first.name or first.hex_id} does not serve, so etcd accepts no new one",
        cause=f"{told}; {living} of {len(voters)} members serve",
        remedy=f"{say_way_back(first, trouble[first.member_id])} (on a control plane)",
        code="etcd-member-down",
    )


def check_removal(members: Sequence[Member], gone: Member, *, trouble: Mapping[str, str]) -> None:
    """Raise ClusterError if removing `gone` would stop the cluster: etcd-last-member, etcd-removal-unsafe."""
    voters = [m for m in members if not m.is_learner]
    if gone.is_learner:
        return
    if len(voters) == 1:
        raise ClusterError(
            f"{gone.describe()} is etcd's last member",
            cause="with it all of the cluster's data would be lost",
            remedy="to take this node away with its cluster: kb reset",
            code="etcd-last-member",
        )
    living_rest = [m for m in voters if m is not gone and m.member_id not in trouble]
    needed = quorum_of(len(voters) - 1)
    if len(living_rest) < needed:
        away = ", ".join(m.describe() for m in voters if m is not gone and m.member_id in trouble)
        raise ClusterError(
            f"{gone.describe()} is not removed: the rest would have no quorum",
            cause=f"{len(living_rest)} of the {len(voters) - 1} others serve, {needed} are needed; away: {away}",
            remedy="start one of those machines first, or remove the one that is lost before this one",
            code="etcd-removal-unsafe",
        )


def stops_without(members: Sequence[Member], gone: Member, *, trouble: Mapping[str, str]) -> bool:
    """Whether etcd serves now, but would stop if the machine of `gone` were switched off while it is still in the member list."""
    voters = [m for m in members if not m.is_learner]
    living = sum(m.member_id not in trouble for m in voters)
    needed = quorum_of(len(voters))
    loss = int(gone in voters and gone.member_id not in trouble)
    return living >= needed > living - loss and len(voters) > 1


def match_member(members: Sequence[Member], word: str) -> Member:
    """The member that an operator means by a name, an ID (hex, as etcdctl shows it) or an address.

    Raises ClusterError (etcd-member-unknown).
    """
    for member in members:
        hosts = {urllib.parse.urlsplit(url).hostname for url in member.peer_urls}
        if word in (member.name, member.hex_id, member.member_id, *member.peer_urls, *hosts) and word:
            return member
    raise ClusterError(
        f"etcd has no member {word!r}",
        cause=f"its members are: {', '.join(m.describe() for m in members)}",
        remedy="name one of them: kb etcd members",
        code="etcd-member-unknown",
    )
