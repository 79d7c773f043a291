"""Whether this node's member of etcd may go on alone: how far its data are, whether the others are really gone (the fence), and whether
one of them is known to have newer data.

Two members that each go on alone are two clusters with the same certificates (H40). So nothing of a control plane may listen on the
machines of the others as seen from here, which do not even refuse a connection, and the operator gives their word for each of them, since a network that is cut looks the same.
"""

from __future__ import annotations

import datetime
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

from kubeup.addresses import join_host_port
from kubeup.cluster import api, etcd
from kubeup.cluster.etcd import Member
from kubeup.engine.run import Run
from kubeup.errors import ClusterError, HostError, KbError, UsageError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.machine.http import Tls, Unreachable
from kubeup.machine.waiting import watch
from kubeup.node import etcd_file, kubeconfig
from kubeup.swap import proof

COMMAND = "kb etcd recover"
PORTS = (10250, 6443)
"""What else listens on a machine whose kubelet would start etcd again: the kubelet, and the API server."""
PROBE_S = 3.0
READ_S = 2.0
QUORUM_READ_S = 5
"""After how long an API server gives up a read from its etcd, and says so: longer than members take to elect a leader."""
TRIES = 3
"""How often in a row such a read has to fail before an API server counts as one without a quorum."""
DOUBT_S = 45.0
"""For how long an API server is asked again that leaves in doubt whether it has a quorum."""
_AWAY = ("route", "unreachable", "host is down")


@frozen
class LastMember:
    """This node's member, and the others in its list. index, term: of the last entry in its data. written: when its log was last
    written to; None if that is unknown. answers: whether it was asked, or its file was read."""

    own: Member
    others: tuple[Member, ...]
    index: int
    term: int
    written: Optional[datetime.datetime]
    answers: bool

    @property
    def voters(self) -> tuple[Member, ...]:
        return tuple(member for member in self.others if not member.is_learner)

    def describe(self) -> str:
        """`entry 2814 of term 4, last written to at 2026-11-29 23:25:20 UTC`"""
        when = f", last written to at {self.written:%Y-%m-%d %H:%M:%S} UTC" if self.written else ""
        return f"entry {self.index} of term {self.term}{when}"


@frozen
class Known:
    """How far the data of another member are. index: of the last entry that is known of; source: who says so."""

    member: Member
    index: int
    source: str

    def describe(self) -> str:
        """`cp2 has the data up to entry 2900 (/mnt/etcd)`"""
        return f"{_name(self.member)} has the data up to entry {self.index} ({self.source})"


def find_last_member(run: Run) -> LastMember:
    """From the member's own word; if it answers nobody, as one does that was started again without the others, from its file.

    Raises HostError (etcd-file-unreadable), ClusterError (etcd-member-unknown).
    """
    client = proof.own_etcd(run)
    own_client = client.at(client.endpoints[0])
    index, term, answers = 0, 0, True
    try:
        members: Sequence[Member] = own_client.list_members(is_sure=False)
        status = own_client.read_status(client.endpoints[0])
        index, term = max(status.applied, status.index), status.term
    except (Unreachable, etcd.EtcdRefused):
        content = etcd_file.read_content(run.host, run.paths.etcd_data)
        index, term, answers = content.index, content.term, False
        members = [
            Member(one.member_id, one.name, one.peer_urls, one.client_urls, one.is_learner) for one in content.members
        ]
    own = proof.find_own_member(run, members)
    if own is None:
        raise ClusterError(
            "etcd does not list this node's member",
            cause=f"--initial-advertise-peer-urls in {run.paths.manifest('etcd')} is none of: "
            + "; ".join(member.describe() for member in members),
            remedy="run the command on a control plane whose member is listed: kb etcd members",
            code="etcd-member-unknown",
        )
    others = tuple(sorted((member for member in members if member is not own), key=lambda member: member.name))
    return LastMember(own, others, index, term, _find_last_write(run), answers)


def _find_last_write(run: Run) -> Optional[datetime.datetime]:
    folder = run.paths.etcd_data / "member" / "wal"
    found = [run.host.stat(folder / name) for name in run.host.list_dir(folder) if name.endswith(".wal")]
    newest = max((one.mtime for one in found if one is not None), default=0.0)
    return datetime.datetime.fromtimestamp(newest, datetime.timezone.utc) if newest else None


# ---- what is known of the others


def find_known(run: Run, found: LastMember, *, given: Sequence[str]) -> list[Known]:
    """How far the others are, the newest first: by their own word, if one answers, and by the operator's.

    given: `cp2=2900`, the entry that kb names on that machine, or `cp2=/mnt/etcd`, its data or a copy of them. Raises UsageError
    (bad-known-entry), ClusterError (etcd-member-unknown), HostError (etcd-file-unreadable, file-unreadable).
    """
    client = proof.own_etcd(run)
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(client.read_member, found.others))
    asked = [
        Known(member, max(status.applied, status.index), "it says so itself")
        for member, status in zip(found.others, statuses)
        if status.endpoint
    ]
    return sorted([*asked, *(_read_given(run.host, found, words=words) for words in given)], key=lambda one: -one.index)


def _read_given(host: Host, found: LastMember, *, words: str) -> Known:
    name, _, value = words.partition("=")
    is_index = value.isascii() and value.isdecimal() and len(value) <= 19
    if not is_index and not value.startswith("/"):
        raise UsageError(
            f"--known {words}",
            cause="it takes a member, and the last entry or the folder of its data",
            remedy="write MEMBER=INDEX or MEMBER=/FOLDER",
            code="bad-known-entry",
        )
    member = etcd.match_member(found.others, name)
    if is_index:
        return Known(member, int(value), "as given")
    content = etcd_file.read_content(host, Path(value))
    if member.member_id not in [one.member_id for one in content.members]:
        raise ClusterError(
            f"{value} holds no data of {member.describe()}",
            cause="the members in it are: " + ", ".join(one.name or one.member_id for one in content.members),
            remedy="name the folder that has member/snap/db of that machine's etcd, or a copy of it",
            code="etcd-member-unknown",
        )
    return Known(member, content.index, value)


def refuse_newer(found: LastMember, known: Sequence[Known], *, force: bool) -> None:
    """Raises ClusterError (etcd-newer-elsewhere) if another member has entries that are not here. force: leave them behind."""
    newest = next(iter(known), None)
    if newest is None or newest.index <= found.index or force:
        return
    name = _name(newest.member)
    rest = " ".join(
        f"--lost {_name(one)}" for one in (found.own, *found.voters) if one.member_id != newest.member.member_id
    )
    raise ClusterError(
        f"{newest.describe()}, and this machine up to entry {found.index}",
        cause=f"{newest.index - found.index} entries would be lost that {name} has, and whoever wrote them was told that they are safe",
        remedy=f"recover on {name} instead, where its data are: {COMMAND} {rest}; if they are of no use: the same command as now, with --force",
        code="etcd-newer-elsewhere",
    )


# ---- the fence


@frozen
class Answering:
    """An API server that says that it is ready. doubt: why it is not known whether its etcd has a quorum; "" if it has."""

    server: str
    doubt: str = ""


def has_quorum(run: Run) -> bool:
    client = proof.own_etcd(run)
    return not client.probe_read(client.endpoints[0], timeout_s=READ_S)


def check_fence(run: Run, found: LastMember, *, lost: Sequence[str], known: Sequence[Known] = ()) -> None:
    """known: how far the others are. Raises ClusterError: etcd-has-quorum, cluster-serves-elsewhere, etcd-member-reachable, etcd-lost-not-named, etcd-member-unknown, etcd-member-not-lost."""
    if found.answers and has_quorum(run):
        raise ClusterError(
            "etcd has its quorum, so nothing has to be recovered",
            cause=f"{found.own.describe()} answers a read that needs it",
            remedy="see which member does not serve: kb etcd members; to take a lost one out: kb etcd remove NAME",
            code="etcd-has-quorum",
        )
    _refuse_living(run, found)
    named = {etcd.match_member([found.own, *found.others], word).member_id for word in lost}
    if found.own.member_id in named:
        raise ClusterError(
            f"--lost names this machine: {found.own.describe()}",
            cause="it is the one whose data the cluster would go on with",
            remedy=f"name the others: {_say_command(found)}",
            code="etcd-member-not-lost",
        )
    for member, place in find_listeners(run.host, found.others, or_alive=True):
        raise ClusterError(
            f"the machine of {member.describe()} is alive",
            cause=f"it answers from here, on {place}, and its etcd may run or be about to: two members that each go on alone are two clusters",
            remedy=f"let it serve again, so that etcd has its quorum: kb doctor there ({_compare(found, known)}); or "
            "switch it off, or cut it from the network, until this is done; before it comes back: kb reset there",
            code="etcd-member-reachable",
        )
    unnamed = [member for member in found.voters if member.member_id not in named]
    if unnamed:
        raise ClusterError(
            f"it is not said of every other member that it is lost: {', '.join(_name(member) for member in unnamed)}",
            cause="from here, a machine that is off and a network that is cut look the same; if one of them goes on elsewhere, there are "
            f"two clusters. This machine's data end at {found.describe()}; one whose data end later is the one to recover on",
            remedy=f"make sure that they are off and stay off, then: {_say_command(found)}",
            code="etcd-lost-not-named",
        )


def _compare(found: LastMember, known: Sequence[Known]) -> str:
    told = "; ".join(["", *(one.describe() for one in known)])
    newest = known[0] if known and known[0].index > found.index else None
    choice = f"; of them, {_name(newest.member)} is the one to recover on" if newest else ""
    return f"this machine's data end at {found.describe()}{told}{choice}"


def _refuse_living(run: Run, found: LastMember) -> None:
    """Raises ClusterError (cluster-serves-elsewhere)."""
    living = find_living_server(run)
    if living is None:
        return
    lives = "may live" if living.doubt else "lives"
    unknown = f"whether its etcd has a quorum is not known ({living.doubt}); if so,"
    cause = unknown if living.doubt else "its etcd has a quorum,"
    raise ClusterError(
        f"the cluster {lives}: an API server is ready at {living.server}",
        cause=f"{cause} of members that this machine's data need not know, since they may have been replaced. This machine's data end at "
        f"{found.describe()}",
        remedy="see the members on a control plane that serves: kb etcd members; to take this machine back into the cluster: kb reset "
        "here, then join it again",
        code="cluster-serves-elsewhere",
    )


def find_living_server(run: Run) -> Optional[Answering]:
    """The API server that this node's kubeconfigs lead to, if it is ready and reads from etcd by a quorum, or if that is in doubt; None if
    none answers so. The addresses in a member list that is old lead nowhere; a load balancer leads to the members of today.

    /readyz alone proves nothing: its check of etcd can be left out, and this machine's own API server may answer through the balancer.
    One without a quorum is ended by its kubelet now and then, which cuts connections: what is in doubt is asked again for a while."""
    found: Optional[Answering] = None

    def look() -> str:
        nonlocal found
        found = _look_for_living_server(run)
        return found.doubt if found is not None else ""

    watch(run.host, look, timeout_s=DOUBT_S, poll_s=2.0)
    return found


def _look_for_living_server(run: Run) -> Optional[Answering]:
    own = kubeconfig.local_url(run.config)
    doubtful: dict[str, Answering] = {}
    without_quorum = set()
    for path in (run.paths.admin_conf, run.paths.kubernetes / "kubelet.conf"):
        try:
            if not run.host.exists(path):
                continue
            client = api.Api(run.host, api.read_identity(run.host, path), retry_s=0)
        except KbError:
            continue  # no kubeconfig that could be used
        server = client.identity.server.rstrip("/")
        if server == own or server in without_quorum or not _is_ready(client):
            continue
        doubt = _ask_by_quorum(client, run.config.node.name)
        if doubt is None:
            without_quorum.add(server)
        elif not doubt:
            return Answering(server)
        else:
            doubtful[server] = Answering(server, doubt)
    return next((one for server, one in doubtful.items() if server not in without_quorum), None)


def _is_ready(client: api.Api) -> bool:
    try:
        return client.probe_health("/readyz", timeout_s=PROBE_S).status == 200
    except KbError:
        return False


def _ask_by_quorum(client: api.Api, node: str) -> Optional[str]:
    """ "" if an API server reads an object from etcd, which without resourceVersion needs a quorum; None if it says again and again that
    it cannot; else why that is in doubt. It is the node's own object, which a kubelet may read, too.

    The server is given a time to answer in: by itself it goes on to try for a minute, and says nothing meanwhile.
    Source: apiserver/pkg/endpoints/filters/request_deadline.go"""
    path = f"{api.path_of('Node', node)}?timeout={QUORUM_READ_S}s"
    tries, doubt = 0, ""

    def look() -> str:
        nonlocal tries, doubt
        tries += 1
        try:
            status = client.probe_health(path, timeout_s=QUORUM_READ_S + PROBE_S).status
        except KbError as error:
            doubt = str(error)
            return doubt
        if status in (200, 404):  # that there is none was read, too
            return ""
        if status not in (500, 503, 504):
            doubt = f"GET {path} answers HTTP {status}"
        return f"HTTP {status}"

    longest_s = TRIES * (QUORUM_READ_S + PROBE_S + 1)
    missing, _ = watch(
        client.host, look, timeout_s=longest_s, is_over=lambda missing, elapsed: tries == TRIES, poll_s=1.0
    )
    return "" if not missing else doubt or None


def _say_command(found: LastMember) -> str:
    return f"{COMMAND} " + " ".join(f"--lost {_name(member)}" for member in found.voters)


def _name(member: Member) -> str:
    return member.name or member.hex_id


def find_listeners(host: Host, members: Sequence[Member], *, or_alive: bool = False) -> list[tuple[Member, str]]:
    """The members on whose machines something of a control plane listens, with its host:port. or_alive: or that answer at all: a machine
    that refuses these connections runs none of it now, and may be about to, as one does that has just booted."""
    asked = [(member, place) for member in members for place in _places_of(member)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: _ask(host, one[1]), asked))
    counted = ("listens", "refuses") if or_alive else ("listens",)
    return [one for one, answer in zip(asked, answers) if answer in counted]


def _places_of(member: Member) -> Iterator[str]:
    seen = set()
    for url in (*member.client_urls, *member.peer_urls):
        parts = urllib.parse.urlsplit(url)
        name = parts.hostname or ""
        for port in (parts.port or etcd.CLIENT_PORT, *PORTS):
            if name and (name, port) not in seen:
                seen.add((name, port))
                yield join_host_port(name, port)


def _ask(host: Host, place: str) -> str:
    """listens | refuses | "" if nothing answers."""
    try:
        host.http_get(f"https://{place}/", tls=Tls(), timeout_s=PROBE_S)
    except Unreachable as error:
        text = str(error).lower()
        is_away = error.reason == "other" and any(word in text for word in _AWAY)
        if error.reason == "refused":
            return "refuses"
        return "listens" if error.reason in ("tls", "reset", "other") and not is_away else ""
    except HostError:
        return "listens"
    return "listens"
