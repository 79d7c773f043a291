"""kubeup/cluster/etcd_stop.py: the quorum without a member that stops, and the leadership that moves away from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeup.cluster import etcd, etcd_stop
from kubeup.cluster.etcd import Member, Status
from kubeup.errors import ClusterError
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from tests.fake_host import FakeHost

CP1 = Member("1", "cp1", ("https://10.0.0.11:2380",), ("https://10.0.0.11:2379",))
CP2 = Member("2", "cp2", ("https://10.0.0.12:2380",), ("https://10.0.0.12:2379",))
CP3 = Member("3", "cp3", ("https://10.0.0.13:2380",), ("https://10.0.0.13:2379",))
LEARNER = Member("4", "cp4", ("https://10.0.0.14:2380",), ("https://10.0.0.14:2379",), is_learner=True)


@dataclass
class Members(FakeHost):
    """Members by their client URL. leader: the ID that all of them name; behind: endpoint -> entries; moves: whether the
    leadership moves when it is told to. takes: how many looks it takes until the others have heard."""

    living: tuple[Member, ...] = (CP1, CP2, CP3)
    leader: str = "1"
    behind: dict[str, int] = field(default_factory=dict)
    moves: bool = True
    takes: int = 0
    asked: list[tuple[str, Any]] = field(default_factory=list)
    former: tuple[str, int] = ("", 0)

    def http_ask(self, url: str, body: bytes, **_: Any) -> HttpResponse:
        endpoint = url.partition("/v3/")[0]
        if endpoint not in [member.client_urls[0] for member in self.living]:
            raise Unreachable(url, "refused", text="connection refused")
        leader, (former, looks) = self.leader, self.former
        if looks:
            self.former, leader = (former, looks - 1), former
        applied = 1000 - self.behind.get(endpoint, 0)
        status = {"raftIndex": "1000", "raftAppliedIndex": str(applied), "leader": leader, "raftTerm": "7"}
        return HttpResponse(200, json.dumps(status).encode())

    def http_send(
        self, method: str, url: str, *, body: bytes = b"", tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None, timeout_s: float = 10,
    ) -> HttpResponse:  # fmt: skip
        verb = url.partition("/v3/")[2]
        self.asked.append((url, json.loads(body)))
        assert verb == "maintenance/transfer-leadership"
        if not self.moves:
            return HttpResponse(400, b'{"message": "etcdserver: not leader"}')
        self.former, self.leader = (self.leader, self.takes), json.loads(body)["targetID"]
        return HttpResponse(200, b"{}")


def client(host: Members) -> etcd.Etcd:
    return etcd.Etcd(host, [CP1.client_urls[0]], tls=Tls())


def test_a_status_is_read_whole_and_what_is_absent_is_zero() -> None:
    answer = {
        "header": {"member_id": "1", "raft_term": "9"}, "version": "3.6.6", "dbSize": "20480", "dbSizeInUse": "16384",
        "leader": "10501334649042878790", "raftIndex": "12", "raftTerm": "9", "raftAppliedIndex": "11", "storageVersion": "3.6.0",
    }  # fmt: skip
    assert etcd.parse_status(answer) == Status(
        "", applied=11, index=12, term=9, leader="10501334649042878790", version="3.6.6", storage_version="3.6.0",
        db_size=20480, db_in_use=16384, member="1",
    )  # fmt: skip
    assert etcd.parse_status({"leader": "0", "errors": ["etcdserver: no leader"]}) == Status("etcdserver: no leader")
    assert etcd.parse_status({"dbSize": "-1", "raftIndex": [], "version": None}) == Status("")


# ---- quorum


@pytest.mark.parametrize(
    ("members", "own", "away", "is_refused"),
    [
        ((CP1,), CP1, (), False),
        ((CP1, CP2), CP1, (), False),
        ((CP1, CP2), CP1, ("2",), False),
        ((CP1, CP2, CP3), CP1, (), False),
        ((CP1, CP2, CP3), CP1, ("2",), True),
        ((CP1, CP2, CP3), CP2, ("2",), False),  # it is away itself
        ((CP1, CP2, CP3), CP1, ("2", "3"), False),  # there is no quorum to lose
        ((CP1, CP2, LEARNER), CP1, (), False),  # a learner has no vote
        ((CP1, CP2, CP3, LEARNER), CP1, ("4",), False),
        ((CP1, CP2, CP3, LEARNER), LEARNER, ("2",), False),
    ],
)
def test_who_may_stop(members: tuple[Member, ...], own: Member, away: tuple[str, ...], is_refused: bool) -> None:
    trouble = dict.fromkeys(away, "no answer: connection refused")
    if not is_refused:
        etcd_stop.check_stop(members, own, trouble=trouble)
        return
    with pytest.raises(ClusterError) as caught:
        etcd_stop.check_stop(members, own, trouble=trouble)
    assert caught.value.code == "etcd-stop-unsafe" and "kb etcd remove cp2" in caught.value.remedy
    assert caught.value.cause.startswith("1 of 3 voting members would be left, 2 are needed; away: cp2 (")


@pytest.mark.parametrize(
    ("members", "own", "away", "told"),
    [
        ((CP1,), CP1, (), "only voting member"),
        ((CP1, LEARNER), CP1, (), "only voting member"),
        ((CP1, LEARNER), LEARNER, (), ""),
        ((CP1,), CP1, ("1",), ""),  # it does not serve now either
        ((CP1, CP2), CP1, (), "2 voting members, and needs 2"),
        ((CP1, CP2), CP1, ("2",), ""),
        ((CP1, CP2, CP3), CP1, (), ""),
    ],
)
def test_where_a_gap_is_to_be_expected(
    members: tuple[Member, ...], own: Member, away: tuple[str, ...], told: str
) -> None:
    found = etcd_stop.stop_gap(members, own, trouble=dict.fromkeys(away, "no answer"))
    assert told in found and bool(found) == bool(told)


@given(st.integers(1, 9), st.sets(st.integers(0, 8)), st.integers(0, 8))
def test_who_may_stop_without_a_gap_leaves_a_quorum(size: int, away: set[int], pick: int) -> None:
    members = [Member(str(n), f"cp{n}", (f"https://{n}:2380",)) for n in range(size)]
    own, trouble = members[pick % size], {str(n): "away" for n in away}
    living = [member for member in members if member.member_id not in trouble]
    try:
        etcd_stop.check_stop(members, own, trouble=trouble)
    except ClusterError:
        return
    if len(living) >= etcd.quorum_of(size) and not etcd_stop.stop_gap(members, own, trouble=trouble):
        assert len([member for member in living if member is not own]) >= etcd.quorum_of(size)


# ---- leadership


def test_the_leadership_moves_at_the_leader_to_the_one_that_has_caught_up_best() -> None:
    host = Members(living=(CP1, CP2, CP3, LEARNER), behind={CP2.client_urls[0]: 20}, takes=5)
    found = etcd_stop.lead_away(client(host), (CP1, CP2, CP3, LEARNER), own=CP1)
    assert found == CP3 and host.former == ("1", 0), "it waits until all have heard"
    assert host.asked == [("https://10.0.0.11:2379/v3/maintenance/transfer-leadership", {"targetID": "3"})]


@pytest.mark.parametrize(
    ("members", "host"),
    [
        ((CP1, CP2, CP3), Members(leader="2")),
        ((CP1, CP2, CP3), Members(leader="0")),
        ((CP1,), Members(living=(CP1,))),
        ((CP1, LEARNER), Members(living=(CP1, LEARNER))),
        ((CP1, CP2), Members(living=(CP1,))),
        ((CP1, Member("2", "", CP2.peer_urls)), Members(living=(CP1,))),
        ((CP1, CP2, CP3), Members(living=())),
    ],
)
def test_nothing_moves_from_who_does_not_lead_or_is_alone(members: tuple[Member, ...], host: Members) -> None:
    assert etcd_stop.lead_away(client(host), members, own=CP1) is None
    assert host.asked == [] and host.ticks == 0


def test_who_is_behind_or_silent_does_not_become_the_leader() -> None:
    late = {CP2.client_urls[0]: etcd_stop.CLOSE + 1}
    host = Members(behind=late)
    assert etcd_stop.lead_away(client(host), (CP1, CP2, CP3), own=CP1) == CP3
    host = Members(living=(CP1, CP2), behind=late)
    with pytest.raises(ClusterError) as caught:
        etcd_stop.lead_away(client(host), (CP1, CP2, CP3), own=CP1)
    assert caught.value.code == "etcd-leader-stays" and "caught up" in caught.value.cause and host.asked == []
    assert host.ticks >= etcd_stop.PATIENCE_S, "it may catch up"


def test_a_leadership_that_does_not_move_is_told_and_one_that_moved_by_itself_is_fine() -> None:
    with pytest.raises(ClusterError) as caught:
        etcd_stop.lead_away(client(Members(moves=False)), (CP1, CP2, CP3), own=CP1)
    assert caught.value.code == "etcd-leader-stays" and "etcdserver: not leader" in caught.value.cause

    class Elected(Members):
        def http_send(self, *args: Any, **named: Any) -> HttpResponse:
            self.leader = "3"
            return HttpResponse(400, b'{"message": "etcdserver: not leader"}')

    assert etcd_stop.lead_away(client(Elected()), (CP1, CP2, CP3), own=CP1) == CP3


def test_targets_are_sorted_by_what_they_have_applied() -> None:
    statuses = {"1": Status("", 1000, 1000), "2": Status("", 990, 1000), "3": Status("", 995, 1000)}
    assert etcd_stop.find_targets((CP1, CP2, CP3), CP1, statuses=statuses) == [CP3, CP2]
    statuses["3"] = replace(statuses["3"], trouble="memberID:3 alarm:NOSPACE ")
    assert etcd_stop.find_targets((CP1, CP2, CP3), CP1, statuses=statuses) == [CP3, CP2], (
        "every member tells it, and leads all the same"
    )
    statuses["3"] = replace(statuses["3"], trouble="memberID:3 alarm:CORRUPT ")
    assert etcd_stop.find_targets((CP1, CP2, CP3), CP1, statuses=statuses) == [CP2]


@pytest.mark.parametrize(
    ("versions", "first"),
    [
        (("3.6.6", "3.6.8", "3.6.6"), CP2),  # the one that was upgraded keeps the leadership while the rest follow
        (("3.6.9", "3.6.10", "3.6.9"), CP2),
        (("3.6.8", "3.6.6", "3.6.8"), CP3),
        (("3.6.8", "", "odd"), CP3),
    ],
)
def test_a_member_that_was_upgraded_already_leads_first(versions: Sequence[str], first: Member) -> None:
    """Each move of the leadership can cost a write that is on its way, so it does not go where it has to leave again."""
    indexes = (1000, 990, 995)
    statuses = {
        str(n): Status("", index, 1000, version=version)
        for n, (index, version) in enumerate(zip(indexes, versions), start=1)
    }
    assert etcd_stop.find_targets((CP1, CP2, CP3), CP1, statuses=statuses)[0] == first
