"""What has to hold before a member of etcd is stopped for a moment, and moving the leadership away from it.

A static pod that is replaced is away for some seconds. The others must have a quorum meanwhile, and a leader: without one, etcd answers
nobody until it has elected another, which takes up to two seconds. kubeadm looks after neither: it counts the quorum before the member
stops, and never moves the leadership.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional

from kubeup.cluster.etcd import (
    Etcd,
    EtcdRefused,
    Member,
    Status,
    quorum_of,
    read_statuses,
    say_way_back,
    stops_without,
)
from kubeup.errors import ClusterError
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import becomes_so

CLOSE = 100
"""How many entries a member may be behind the newest one to become the leader. A new leader serves only after it has applied all."""
PATIENCE_S = 5.0
"""How long kb waits for a member that has caught up, and then for all members to know the new leader."""
POLL_S = 0.2


def check_stop(members: Sequence[Member], own: Member, *, trouble: Mapping[str, str]) -> None:
    """Raise ClusterError (etcd-stop-unsafe) if etcd would lose its quorum while the member `own` is stopped.

    trouble: member_id -> what is wrong, for members that do not serve. With one or two voting members there is always a gap: see
    stop_gap. A quorum that is lost already cannot be lost by this.
    """
    voters = [member for member in members if not member.is_learner]
    if len(voters) <= 2 or not stops_without(members, own, trouble=trouble):
        return
    away = [member for member in voters if member is not own and member.member_id in trouble]
    first = away[0]
    raise ClusterError(
        f"etcd member {own.name or own.hex_id} cannot be stopped now: etcd would lose its quorum",
        cause=f"{len(voters) - len(away) - 1} of {len(voters)} voting members would be left, {quorum_of(len(voters))} are needed; "
        "away: " + "; ".join(f"{member.describe()}: {trouble[member.member_id]}" for member in away),
        remedy=say_way_back(first, trouble[first.member_id]),
        code="etcd-stop-unsafe",
    )


def stop_gap(members: Sequence[Member], own: Member, *, trouble: Mapping[str, str]) -> str:
    """Why etcd will not serve while the member `own` is stopped, for the user's consent; "" if it keeps serving, or does not serve
    now either."""
    voters = [member for member in members if not member.is_learner]
    if own.member_id not in {member.member_id for member in voters} or own.member_id in trouble:
        return ""
    if len(voters) == 1:
        return "it is etcd's only voting member"
    if not stops_without(members, own, trouble=trouble):
        return ""
    return f"etcd has {len(voters)} voting members, and needs {quorum_of(len(voters))} that serve"


def lead_away(client: Etcd, members: Sequence[Member], *, own: Member) -> Optional[Member]:
    """Move the leadership away from the member `own`, to the voting member that has caught up best, and wait until all members that
    serve know the new leader. Returns it; None if `own` does not lead, or no other voting member serves.

    Raises ClusterError (etcd-leader-stays) if no other member has caught up, or if the leadership did not move within PATIENCE_S.
    Moving it is the last thing that can fail here: etcd serves either way, and elects a leader by itself if `own` stops.
    """
    if client.read_member(own).leader != own.member_id:
        return None
    statuses: dict[str, Status] = {}
    targets: list[Member] = []

    def has_target() -> bool:
        statuses.update(read_statuses(client, members))
        targets[:] = find_targets(members, own, statuses=statuses)
        return bool(targets) or _is_alone(members, own, statuses=statuses)

    becomes_so(client.host, has_target, timeout_s=PATIENCE_S, poll_s=POLL_S)
    if _is_alone(members, own, statuses=statuses):
        return None
    if not targets:
        raise _stays(own, "no other voting member has caught up: their disks or the network are slow")
    return hand_over(client, members, own=own, to=targets[0])


def find_targets(members: Sequence[Member], own: Member, *, statuses: Mapping[str, Status]) -> list[Member]:
    """The members that may lead instead of `own`, the best first: started voting members that serve and have caught up; those before
    them whose etcd is newer than that of `own`, which an upgrade has behind them: they need not give the leadership away again."""
    newest = max((status.index for status in statuses.values()), default=0)
    fit = [
        member
        for member in _others(members, own)
        if not statuses[member.member_id].away and newest - statuses[member.member_id].applied <= CLOSE
    ]
    own_version = _numbers(statuses[own.member_id].version)

    def rank(member: Member) -> tuple[bool, int]:
        status = statuses[member.member_id]
        return not _numbers(status.version) > own_version, -status.applied

    return sorted(fit, key=rank)


def _numbers(version: str) -> tuple[int, ...]:
    """`3.6.10` -> (3, 6, 10); () for anything else."""
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isascii() and part.isdecimal() for part in parts) else ()


def find_unfit(to: Member, *, statuses: Mapping[str, Status]) -> str:
    """Why a member may not lead, in words; "" if it may."""
    status = statuses[to.member_id]
    if to.is_learner or not to.client_urls:
        return "it is a learner, without a vote" if to.is_learner else "it has never started"
    behind = max(one.index for one in statuses.values()) - status.applied
    return status.away or (f"it is {behind} entries behind" if behind > CLOSE else "")


def _others(members: Sequence[Member], own: Member) -> list[Member]:
    """The other voting members that have started."""
    return [
        member
        for member in members
        if member.member_id != own.member_id and not member.is_learner and member.has_started and member.client_urls
    ]


def _is_alone(members: Sequence[Member], own: Member, *, statuses: Mapping[str, Status]) -> bool:
    return all(statuses[member.member_id].away for member in _others(members, own))


def hand_over(client: Etcd, members: Sequence[Member], *, own: Member, to: Member) -> Member:
    """Hand the leadership over, and return who leads then: `to`, or another that was elected meanwhile."""
    cause = ""
    try:
        client.move_leader(own, to=to)
    except (EtcdRefused, Unreachable) as error:
        cause = error.cause  # it may have moved all the same: what the members say decides
    leaders: list[str] = []

    def have_all_heard() -> bool:
        statuses = read_statuses(client, members)
        leaders[:] = sorted({status.leader for status in statuses.values() if not status.away})
        return len(leaders) == 1 and leaders[0] not in ("", own.member_id)

    if not becomes_so(client.host, have_all_heard, timeout_s=PATIENCE_S, poll_s=POLL_S):
        raise _stays(own, cause or f"its members do not agree within {PATIENCE_S:.0f} s who leads")
    return next(member for member in members if member.member_id == leaders[0])


def _stays(own: Member, cause: str) -> ClusterError:
    return ClusterError(
        f"etcd's leadership cannot be moved away from {own.name or own.hex_id}",
        cause=cause,
        remedy="see whether all members serve (kb etcd members), then run the command again",
        code="etcd-leader-stays",
    )
