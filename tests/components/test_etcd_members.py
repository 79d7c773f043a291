"""Stopping, copying and replacing members of a real etcd, on loopback: $KB_E2E_BIN/<minor>/etcd."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kubeup.cluster import etcd, etcd_join, etcd_stop, etcd_upkeep
from kubeup.errors import ClusterError, HostError
from kubeup.machine.local_host import LocalHost
from kubeup.node import etcd_data
from tests.components.real_etcd import PROGRAM, Cluster, PatientHost

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(PROGRAM is None, reason="needs $KB_E2E_BIN with etcd"),
]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, 3)
    try:
        yield cluster
    finally:
        cluster.stop()


def test_the_leader_hands_over_before_it_stops_and_nothing_waits_for_an_election(three: Cluster) -> None:
    leader = three.leader()
    leader.put("a", "1")
    client = three.client(leader)
    members = client.list_members()
    own = three.row_of(leader)
    trouble = etcd.probe_members(client, members)
    etcd_stop.check_stop(members, own, trouble=trouble)
    assert etcd_stop.stop_gap(members, own, trouble=trouble) == ""

    other = next(member for member in members if member != own)
    with pytest.raises(etcd.EtcdRefused, match="not leader"):
        client.move_leader(other, to=own)
    found = etcd_stop.lead_away(client, members, own=own)
    assert found is not None and found != own and three.leader().name == found.name
    assert etcd_stop.lead_away(client, members, own=own) is None
    status = client.read_status(leader.client_url)
    assert status.leader == found.member_id and status.term > 1 and status.version and status.storage_version
    assert status.index >= status.applied > 0 and status.db_size >= status.db_in_use > 0

    leader.stop()
    rest = [one for one in three.members if one is not leader]
    assert three.client(rest[0]).probe_read(rest[0].client_url) == "", "it serves at once"
    rest[0].put("a", "2")

    trouble = etcd.probe_members(three.client(*rest), members)
    with pytest.raises(ClusterError) as caught:
        etcd_stop.check_stop(members, three.row_of(rest[0]), trouble=trouble)
    assert caught.value.code == "etcd-stop-unsafe" and leader.name in caught.value.cause
    leader.start(three.rows)
    three.wait_for(leader)
    assert leader.read("a") == "2"


def test_a_silent_or_missing_quorum_is_seen_by_a_read(three: Cluster) -> None:
    first, *rest = three.members
    for one in rest:
        one.stop(kill=True)
    assert three.client(first).probe_read(first.client_url, timeout_s=1) != ""
    members = three.client(first).list_members(is_sure=False)
    assert [member.name for member in sorted(members, key=lambda row: row.name)] == ["cp1", "cp2", "cp3"]
    assert etcd_stop.lead_away(three.client(first), members, own=three.row_of(first)) is None


def test_the_copy_of_a_stopped_member_brings_back_what_was_there(tmp_path: Path) -> None:
    cluster, host = Cluster(tmp_path, 1), LocalHost()
    (one,) = cluster.members
    try:
        one.put("a", "kept")
        members = cluster.client().list_members()
        assert "only voting member" in etcd_stop.stop_gap(members, members[0], trouble={})
        etcd_stop.check_stop(members, members[0], trouble={})
        etcd_data.refuse_empty(host, one.data_dir, others=[])
        etcd_data.check_room(host, one.data_dir)
        one.stop()
        etcd_data.copy_data(host, one.data_dir)
        for name in ("wal", "snap/db"):  # what a new version may leave
            path = one.data_dir / "member" / name
            host.remove_tree(path)
            host.write_file(path, b"broken")
        one.start(cluster.rows)
        assert one.process and one.process.wait(20) != 0
        etcd_data.restore_data(host, one.data_dir)
        one.start(cluster.rows)
        cluster.wait_for(one)
        assert one.read("a") == "kept" and cluster.client().list_members() == members
        assert etcd_data.remove_copy(host, one.data_dir)
        one.stop()
        etcd_data.empty_data(host, one.data_dir)
        with pytest.raises(HostError, match="holds no data"):
            etcd_data.refuse_empty(host, one.data_dir, others=[])
    finally:
        cluster.stop()


def test_one_of_several_comes_back_empty_as_a_learner(three: Cluster) -> None:
    first, lost, third = three.members
    first.put("a", "1")
    before = three.row_of(lost)
    lost.stop(kill=True)
    host = PatientHost()
    client = three.client(first, third, host=host)
    promised: list[Mapping[str, str]] = []
    emptied: list[str] = []

    def empty() -> None:
        rows = client.list_members()
        assert before.member_id not in [row.member_id for row in rows], "it is emptied once it is out of the list"
        etcd_data.empty_data(host, lost.data_dir)
        emptied.append("yes")

    def come_back() -> etcd_join.Rows:
        return etcd_join.remove_and_add_learner(
            client, name=lost.name, peer_url=lost.peer_url, empty=empty, register=promised.append
        )

    rows = come_back()
    assert sorted(rows) == sorted(three.rows) and come_back() == rows, "the learner stays"
    assert emptied == ["yes"] and promised == [etcd_join.promise(lost.peer_url, client.endpoints)]
    lost.start(rows, state="existing")
    etcd_join.promote_when_ready(client, lost.peer_url, timeout_s=60)
    assert lost.read("a") == "1" and not three.row_of(lost).is_learner
    assert three.row_of(lost).member_id != before.member_id
    assert sorted(come_back()) == sorted(three.rows) and emptied == ["yes"], "one that serves is not touched"


def test_of_two_the_other_one_alone_cannot_change_the_list(tmp_path: Path) -> None:
    two = Cluster(tmp_path, 2)
    try:
        first, lost = two.members
        lost.stop(kill=True)
        with pytest.raises(ClusterError) as caught:
            etcd_join.remove_and_add_learner(
                two.client(first),
                name="cp2",
                peer_url=lost.peer_url,
                empty=pytest.fail,
                register=lambda _: pytest.fail(),
            )
        assert caught.value.code == "etcd-no-quorum" and "cp2" in str(caught.value.details)
    finally:
        two.stop()


def test_upkeep_one_member_after_the_other(three: Cluster) -> None:
    for _ in range(200):
        three.leader().put("a", "x" * 20000)
    client, leader = three.client(), three.leader()
    members = client.list_members()
    newest, written = client.read_revision("a")
    assert newest == written == 201 and client.read_revision(etcd_upkeep.COMPACTED_BY_API_SERVER)[1] == 0
    statuses = etcd.read_statuses(client, members)
    assert etcd_upkeep.compact(client, newest, statuses=statuses)
    assert not etcd_upkeep.compact(client, newest - 1, statuses=statuses), "it was compacted already"
    order = etcd_upkeep.order_of(members, statuses)
    assert order[-1].name == leader.name
    for member in order:
        done = etcd_upkeep.defragment_one(client, members, member)
        assert done.before > 4_000_000 and done.after < 1_000_000
    assert three.leader().name != leader.name and leader.read("a") == "x" * 20000
    assert etcd_upkeep.move_leader(client, members, to=three.row_of(leader), tell=print) and three.leader() is leader


def test_an_alarm_of_a_full_etcd_is_told_and_disarmed(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1, more=(f"--quota-backend-bytes={8 << 20}",))
    (one,) = cluster.members
    try:
        with pytest.raises(urllib.error.HTTPError):
            for _ in range(500):
                one.put("a", "x" * 100000)
        client = cluster.client()
        members = client.list_members()
        assert [alarm.kind for alarm in client.list_alarms()] == ["NOSPACE"]
        status = client.read_status(one.client_url)
        assert "alarm:NOSPACE" in status.trouble and status.away == "" and status.db_quota in (0, 8 << 20)
        statuses = etcd.read_statuses(client, members)
        assert etcd_upkeep.find_full(members, statuses, quota=8 << 20)
        newest, _ = etcd_upkeep.find_floor(client)
        assert etcd_upkeep.compact(client, newest, statuses=statuses)
        etcd_upkeep.defragment_one(client, members, members[0])
        assert not etcd_upkeep.find_full(members, etcd.read_statuses(client, members), quota=8 << 20)
        client.disarm(client.list_alarms()[0])
        one.put("a", "taken again")
        assert client.list_alarms() == ()
    finally:
        cluster.stop()
