"""Becoming a member of etcd: a node that joins, and a member that lost its data and comes back.

A node is added as a learner, without a vote, and promoted when it has copied the data. etcd takes one learner at a time, and refuses for
some seconds after any change. What runs the member, and its manifest, are the caller's concern.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Optional

from kubeup.cluster import etcd
from kubeup.cluster.etcd import Etcd, EtcdRefused, Member
from kubeup.errors import ClusterError
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import wait_for

SETTLE_S = 60
"""How long to retry while etcd refuses a new member although all members serve: it requires them to have been connected for
five seconds, and the learner of another tool takes a while to be promoted."""
POLL_S = 0.2
SERVES_S = 5.0
"""How long a member may take to answer before it counts as one that does not serve."""
Rows = tuple[tuple[str, str], ...]
"""(name, peer URL) of all members, for --initial-cluster."""


def _say_nothing(_: str) -> None: ...


def _do_nothing() -> None: ...


def list_members(client: Etcd) -> tuple[Member, ...]:
    """The member list, confirmed by a quorum. Raises ClusterError (etcd-unreachable), EtcdRefused."""
    try:
        return client.list_members()
    except Unreachable as error:
        raise ClusterError(
            "no etcd member answers",
            cause=f"asked: {', '.join(client.endpoints)}; {error.cause}",
            remedy="check the way there (port 2379 of every control plane): curl -vk "
            + client.endpoints[0]
            + "/health",
            code="etcd-unreachable",
        ) from error


def promise(peer_url: str, others: Sequence[str]) -> dict[str, str]:
    """The compensation to register before a node is added: what reset needs to remove a member that never started. others: the
    client URLs of the other members."""
    return {"kind": etcd.MEMBERSHIP, "peer_url": peer_url, "endpoints": ",".join(others)}


def remove_former(client: Etcd, former: Member) -> None:
    """Remove a member that lost its data. Raises ClusterError (etcd-last-member, etcd-removal-unsafe, etcd-member-unknown)."""
    members = list_members(client)
    gone = etcd.match_member(members, former.member_id)
    others = [member for member in members if member is not gone]
    etcd.check_removal(members, gone, trouble=etcd.probe_members(client, others))
    client.remove(gone)


def add_learner(
    client: Etcd,
    peer_url: str,
    *,
    tell: Callable[[str], None] = _say_nothing,
    keep: Callable[[], None] = _do_nothing,
) -> tuple[Member, ...]:
    """Add the node with this peer URL as a learner. A refusal may be temporary, so it is retried for SETTLE_S seconds. Returns all
    members. keep: called in every round. Raises ClusterError (etcd-busy, etcd-member-down, etcd-no-quorum)."""
    members: tuple[Member, ...] = ()
    trouble: Optional[ClusterError] = None

    def look() -> str:
        nonlocal members, trouble
        try:
            # use this answer: a later list from a member that lags behind could lack this node
            members = client.add_learner(peer_url)
            return ""
        except EtcdRefused as error:
            trouble = _explain_refusal(client, error)
            if trouble.code == "etcd-no-quorum":
                raise trouble from error
        keep()
        return str(trouble)

    def failure(_: str, elapsed: float) -> ClusterError:
        assert trouble is not None
        return trouble

    wait_for(client.host, look, goal="etcd", timeout_s=SETTLE_S, tell=tell, failure=failure, poll_s=POLL_S)
    return members


def _explain_refusal(client: Etcd, error: EtcdRefused) -> ClusterError:
    members = list_members(client)
    down = etcd.judge_members(members, etcd.probe_members(client, [m for m in members if not m.is_learner]))
    if down:
        return down
    learner = next((m for m in members if m.is_learner), None)
    if learner is not None and "learner" in error.message:
        return ClusterError(
            f"etcd has a learner already: {learner.describe()}",
            cause="it takes one at a time; that one is joining, or its join was interrupted",
            remedy=f"wait for it; if it is gone for good, on a control plane: kb etcd remove {learner.hex_id}; then "
            "run the command again",
            code="etcd-busy",
        )
    return ClusterError(
        "etcd accepts no new member yet",
        cause=f"{error.message}: all of its members must have been connected for five seconds first",
        remedy="run the command again; if the error persists: kb etcd members",
        code="etcd-busy",
    )


def try_promote(client: Etcd, peer_url: str) -> str:
    """Promote the learner with this peer URL if it can be. Returns "" if it is a voting member then, else what is missing, in words.
    Raises no error of etcd's."""
    try:
        own = etcd.find_by_peer_url(client.list_members(), peer_url)
        if own is None:
            return "it is not in etcd's member list any more"
        if not own.has_started:
            return "its container is not started yet"
        if own.is_learner:
            client.promote(own)
        return ""
    except EtcdRefused as error:
        return "it is still copying the data, and has no vote yet" if "in sync" in error.message else error.message
    except Unreachable as error:
        return f"etcd does not answer: {error.cause}"


# ---- coming back


def remove_and_add_learner(
    client: Etcd,
    *,
    name: str,
    peer_url: str,
    empty: Callable[[], None],
    register: Callable[[Mapping[str, str]], None],
    tell: Callable[[str], None] = _say_nothing,
    keep: Callable[[], None] = _do_nothing,
) -> Rows:
    """The way back of a stopped member whose cluster has others: its old data must not come back, since it has voted since. Its entry
    is removed from the list, `empty` removes its data, and it is added as a learner. Returns the members for its manifest, whose
    --initial-cluster-state has to be `existing`; then it is started, and promote_when_ready ends it.

    client: of the other members alone, since this one is stopped. register: takes the compensation, before the learner is added. Can
    be called again after it was interrupted: a learner that was added stays, with what it has copied. A member that serves is not
    touched: then the rows are those of the list.

    Raises ClusterError: etcd-no-quorum if the others do not serve (of two members, the other one alone cannot change the list);
    etcd-removal-unsafe; those of add_learner.
    """
    members = _require_quorum(client, peer_url)
    own = etcd.find_by_peer_url(members, peer_url)
    is_learner = own is not None and own.is_learner
    if own is not None and not is_learner and not _serves(client, own):
        remove_former(client, own)
        own = None
    if own is None:
        empty()
        register(promise(peer_url, client.endpoints))
        members = add_learner(client, peer_url, tell=tell, keep=keep)
    return etcd.plan_initial_cluster(members, name=name, peer_url=peer_url)


def _serves(client: Etcd, own: Member) -> bool:
    """One that only answers late serves, too: whoever does not is removed, and its data are."""
    return bool(own.client_urls) and not client.probe_member(own, timeout_s=SERVES_S)


def _require_quorum(client: Etcd, peer_url: str) -> tuple[Member, ...]:
    """The member list, if the others can change it. Looks at one member's own view first: without a quorum nothing else is told."""
    try:
        members = client.list_members(is_sure=False)
    except Unreachable:
        members = ()
    own = etcd.find_by_peer_url(members, peer_url)
    verdict = etcd.judge_members(members, etcd.probe_members(client, members)) if members else None
    if verdict is not None and verdict.code == "etcd-no-quorum" and own is not None and not own.is_learner:
        verdict.details = (*verdict.details, f"the member that is to come back is {own.describe()}")
    if verdict is not None and verdict.code == "etcd-no-quorum":
        raise verdict
    return list_members(client)


def _probe_at(client: Etcd, peer_url: str) -> str:
    """What is wrong with the started member with this peer URL, at its own client URL; "" if it serves."""
    try:
        own = etcd.find_by_peer_url(client.list_members(is_sure=False), peer_url)
    except (EtcdRefused, Unreachable) as error:
        return f"etcd does not answer: {error.cause}"
    return client.probe_member(own) if own and own.client_urls else "it has not told its client URL yet"


def promote_when_ready(
    client: Etcd,
    peer_url: str,
    *,
    timeout_s: float,
    tell: Callable[[str], None] = _say_nothing,
    keep: Callable[[], None] = _do_nothing,
) -> float:
    """Wait until the learner with this peer URL has started and caught up, promote it, and wait until it serves. Returns the seconds
    elapsed. It may serve only seven seconds later, unless its container is restarted then (publishV3 in etcdserver). Raises
    ClusterError (etcd-not-promoted)."""

    def look() -> str:
        keep()
        return try_promote(client, peer_url) or _probe_at(client, peer_url)

    def failure(missing: str, elapsed: float) -> ClusterError:
        return ClusterError(
            f"the etcd member at {peer_url} did not become a voting member within {elapsed:.0f} s",
            cause=missing,
            remedy="see its log (crictl logs of the container etcd) and kb etcd members, then run the command again",
            code="etcd-not-promoted",
        )

    return wait_for(
        client.host, look, goal="etcd member", timeout_s=timeout_s, tell=tell, failure=failure, poll_s=POLL_S
    )
