"""Upkeep of etcd: its file made smaller, its history forgotten, its alarms disarmed, each in the order that is safe.

A member that defragments answers nobody meanwhile, so one at a time does it, the leader last and after it has handed over. Room for the
file comes from three steps in this order: forget history (compact), give back what that left (defragment), and only then let etcd take
writes again (disarm). etcdctl does each step for itself, and stops nobody from the wrong order.
Source: server/etcdserver/api/v3rpc/maintenance.go, server/etcdserver/apply/apply.go (applierV3Capped)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Optional

from kubeup.cluster import etcd, etcd_stop
from kubeup.cluster.etcd import Alarm, Etcd, Member, Status
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.machine.waiting import watch

COMPACTED_BY_API_SERVER = "compact_rev_key"
"""The key in which the API servers remember their last compaction. The revision that wrote it is the one that they compact to at their
next turn, five minutes later. Source: apiserver/pkg/storage/etcd3/compact.go"""
DEFAULT_QUOTA = 2 << 30
"""etcd's --quota-backend-bytes if it is not given, in bytes. Source: server/storage/quota.go"""
ROOM = 0.8
"""The share of the quota that may be in use after defragmenting: with more, the alarm would soon be raised again."""
BACK_S = 60.0
"""How long a member may take to serve again and to catch up after it has defragmented."""
POLL_S = 0.2
_SLOW = 10 << 20
"""Bytes that even a slow disk rewrites in a second."""


@frozen
class Defragmented:
    """before, after: the size of the member's file in bytes. took_s: for how long it answered nobody, at most."""

    member: Member
    before: int
    after: int
    took_s: float

    @property
    def freed(self) -> int:
        return max(0, self.before - self.after)


def find_silent(statuses: Mapping[str, Status]) -> dict[str, str]:
    """member_id -> what is wrong, of the members that do not serve."""
    return {key: told for key, status in statuses.items() if (told := status.away)}


# ---- defragment


def order_of(members: Iterable[Member], statuses: Mapping[str, Status]) -> list[Member]:
    """The members in the order in which they defragment: the leader last."""
    leaders = {status.leader for status in statuses.values() if not status.away}
    return sorted(members, key=lambda member: (member.member_id in leaders, member.name))


def check_all_serve(members: Sequence[Member], statuses: Mapping[str, Status]) -> None:
    """Raise ClusterError (etcd-member-away) if a member is away: while another one defragments, two would be."""
    silent = find_silent(statuses)
    away = [member for member in members if member.member_id in silent]
    if away:
        first = away[0]
        raise ClusterError(
            f"etcd member {first.describe()} does not serve",
            cause=f"{silent[first.member_id]}; a member that defragments answers nobody either, and two at once may cost the quorum",
            remedy=etcd.say_way_back(first, silent[first.member_id]),
            code="etcd-member-away",
        )


def defragment_one(client: Etcd, members: Sequence[Member], member: Member) -> Defragmented:  # noqa: PLR0917
    """Defragment one member, and wait until it serves and has caught up. If it leads, another one leads before; all others are looked at
    first. Raises ClusterError (etcd-member-away, etcd-leader-stays, etcd-not-back), EtcdRefused, Unreachable."""
    statuses = etcd.read_statuses(client, members)
    check_all_serve(members, statuses)
    if statuses[member.member_id].leader == member.member_id and len(members) > 1:
        etcd_stop.lead_away(client, members, own=member)
    before, began = statuses[member.member_id].db_size, client.host.monotonic()
    client.defragment(member, timeout_s=30 + before / _SLOW)
    took_s = client.host.monotonic() - began
    _wait_until_back(client, members, member)
    after = client.read_member(member).db_size
    return Defragmented(member, before, after, took_s)


def _wait_until_back(client: Etcd, members: Sequence[Member], member: Member) -> None:  # noqa: PLR0917
    def look() -> str:
        trouble = "" if member.is_learner else client.probe_member(member)
        statuses = etcd.read_statuses(client, members)
        newest = max(status.index for status in statuses.values())
        behind = newest - statuses[member.member_id].applied
        return trouble or (f"it is {behind} entries behind" if behind > etcd_stop.CLOSE else "")

    missing, elapsed = watch(client.host, look, timeout_s=BACK_S, poll_s=POLL_S)
    if missing:
        raise ClusterError(
            f"etcd member {member.describe()} has defragmented, and does not serve again",
            cause=f"after {elapsed:.0f} s: {missing}; the members that follow were left alone",
            remedy="see the members (kb etcd members) and etcd's log on that machine: crictl logs of the container etcd",
            code="etcd-not-back",
        )


def stop_gap(members: Sequence[Member], statuses: Mapping[str, Status]) -> str:
    """Why etcd will not serve while a member defragments, for the user's consent; "" if it does."""
    silent = find_silent(statuses)
    return next((told for member in members if (told := etcd_stop.stop_gap(members, member, trouble=silent))), "")


# ---- compact


def find_floor(client: Etcd) -> tuple[int, int]:
    """The newest revision, and the one up to which the API servers need no history: what they compact to at their next turn. 0 if no API
    server has compacted this etcd yet. Raises EtcdRefused, Unreachable."""
    return client.read_revision(COMPACTED_BY_API_SERVER)


def compact(client: Etcd, revision: int, *, statuses: Mapping[str, Status]) -> bool:
    """Compact to `revision`; whether there was anything to forget. Raises EtcdRefused, Unreachable."""
    largest = max((status.db_size for status in statuses.values()), default=0)
    try:
        client.compact(revision, timeout_s=30 + largest / _SLOW)
    except etcd.EtcdRefused as error:
        if "has been compacted" in error.message:
            return False
        raise
    return True


# ---- alarms


def find_full(
    members: Iterable[Member], statuses: Mapping[str, Status], *, quota: int
) -> list[tuple[Member, int, int]]:
    """The members whose file leaves no room, with its size and their quota in bytes. quota: of members that do not tell theirs."""
    found = []
    for member in members:
        status = statuses[member.member_id]
        limit = status.db_quota or quota
        if status.db_size > ROOM * limit:
            found.append((member, status.db_size, limit))
    return found


def refuse_full(full: Sequence[tuple[Member, int, int]]) -> None:
    """Raise ClusterError (etcd-no-room) if a member still has no room: the alarm would be raised again by the next writes."""
    if not full:
        return
    told = ", ".join(f"{in_mib(size)} of {in_mib(limit)} MiB on {member.name}" for member, size, limit in full)
    raise ClusterError(
        "etcd's alarm NOSPACE stays: its file is still too large",
        cause=f"after compacting and defragmenting it takes {told}; above {ROOM:.0%} the alarm would soon be raised again",
        remedy="delete objects that nobody needs (deleting works meanwhile; kubectl get events -A | wc -l is a good start); or raise "
        "--quota-backend-bytes in a copy of etcd's manifest on each control plane, then: kb reconfigure static-pods COPY",
        code="etcd-no-room",
    )


def refuse_corrupt(alarms: Iterable[Alarm], members: Sequence[Member]) -> None:
    """Raise ClusterError (etcd-corrupt) if a member that is still in the list differs from the others: to disarm that alarm would hide
    it, and clients go on reading one thing here and another there."""
    by_id = {member.member_id: member for member in members}
    bad = next((by_id[one.member_id] for one in alarms if one.kind == "CORRUPT" and one.member_id in by_id), None)
    if bad is None:
        return
    word = bad.name or bad.hex_id
    remedy = (
        f"on that machine: kb reset; then here: kb etcd alarm disarm; then join it again, and it copies the data of the others: {word}"
        if len(members) > 1
        else "restore a snapshot of before: etcdutl snapshot restore"
    )
    raise ClusterError(
        f"etcd's alarm CORRUPT stays: the data of {bad.describe()} differ from those of the others",
        cause="a checksum over all keys is not the same on all members; to disarm the alarm would only hide that",
        remedy=remedy,
        code="etcd-corrupt",
    )


def in_mib(size: int) -> int:
    return -(-size >> 20)


# ---- leader


def find_leader(members: Iterable[Member], statuses: Mapping[str, Status]) -> Optional[Member]:
    """The member that leads, by the word of those that serve; None if there is none, or they do not agree."""
    silent = find_silent(statuses)
    leaders = {status.leader for key, status in statuses.items() if key not in silent and status.leader}
    return next((one for one in members if {one.member_id} == leaders), None)


def find_former_leader(client: Etcd, members: Sequence[Member], *, to: Member) -> Optional[Member]:
    """Who leads and would hand over to `to`; None if that leads already. Raises ClusterError (etcd-no-leader, etcd-leader-unfit)."""
    statuses = etcd.read_statuses(client, members)
    leader = find_leader(members, statuses)
    if leader is None:
        raise ClusterError(
            "etcd has no leader",
            cause="; ".join(find_silent(statuses).values()) or "its members do not agree who leads",
            remedy="see the members: kb etcd members",
            code="etcd-no-leader",
        )
    if leader == to:
        return None
    why = etcd_stop.find_unfit(to, statuses=statuses)
    if why:
        raise ClusterError(
            f"{to.describe()} cannot lead etcd",
            cause=why,
            remedy="name another one: kb etcd members",
            code="etcd-leader-unfit",
        )
    return leader


def move_leader(client: Etcd, members: Sequence[Member], *, to: Member, tell: Callable[[str], None]) -> bool:
    """Have `to` lead; False if it does already. Raises ClusterError (etcd-no-leader, etcd-leader-unfit), EtcdRefused, Unreachable."""
    leader = find_former_leader(client, members, to=to)
    if leader is None:
        return False
    tell(f"{leader.name or leader.hex_id} hands over to {to.name}")
    etcd_stop.hand_over(client, members, own=leader, to=to)
    return True
