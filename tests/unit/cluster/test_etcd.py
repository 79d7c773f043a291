"""kubeup/cluster/etcd.py: what the member list means, and requests to whichever member answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeup.cluster import etcd
from kubeup.cluster.etcd import Member
from kubeup.errors import ClusterError
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from tests.fake_host import FakeHost

CP1 = Member("1", "cp1", ("https://10.0.0.11:2380",), ("https://10.0.0.11:2379",))
CP2 = Member("2", "cp2", ("https://10.0.0.12:2380",), ("https://10.0.0.12:2379",))
CP3 = Member("3", "cp3", ("https://10.0.0.13:2380",), ("https://10.0.0.13:2379",))
NEW = Member("255", "", ("https://10.0.0.13:2380",), is_learner=True)
OWN = "https://10.0.0.13:2380"


@dataclass
class EtcdHost(FakeHost):
    """Members that answer by their client URL: endpoint -> verb -> (status, body). What is not there is silent."""

    members: dict[str, dict[str, tuple[int, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def http_ask(self, url: str, body: bytes, **_: Any) -> HttpResponse:
        return self.http_send("POST", url, body=body)

    def http_send(
        self, method: str, url: str, *, body: bytes = b"", tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None, timeout_s: float = 10,
    ) -> HttpResponse:  # fmt: skip
        endpoint, _, verb = url.partition("/v3/")
        self.asked.append((url, json.loads(body)))
        if endpoint not in self.members:
            raise Unreachable(url, "refused", text="connection refused")
        status, answer = self.members[endpoint].get(verb, (200, {}))
        return HttpResponse(status, json.dumps(answer).encode())


def client(members: Mapping[str, Any], *endpoints: str) -> etcd.Etcd:
    return etcd.Etcd(EtcdHost(members=dict(members)), endpoints or tuple(members), tls=Tls())


def test_the_gateway_leaves_out_what_is_false() -> None:
    answer = {
        "members": [
            {"ID": "10501334649042878790", "name": "cp1", "peerURLs": ["https://a:2380"], "clientURLs": ["https://a:2379"]},
            {"ID": "7", "peerURLs": ["https://b:2380"], "isLearner": True},
        ]
    }  # fmt: skip
    first, second = etcd.parse_members(answer)
    assert (first.hex_id, first.has_started, first.is_learner) == ("91bc3c398fb3c146", True, False)
    assert (second.name, second.client_urls, second.is_learner) == ("", (), True)
    assert "learner" in second.describe() and "never started" in second.describe()


def test_a_silent_member_is_passed_over() -> None:
    asked = client(
        {"https://b:2379": {"cluster/member/list": (200, {"members": []})}}, "https://a:2379", "https://b:2379"
    )
    assert asked.list_members() == ()
    with pytest.raises(Unreachable):
        client({}, "https://a:2379").list_members()


def test_what_etcd_refuses_is_told_in_its_words() -> None:
    refused = {
        "https://a:2379": {"cluster/member/add": (503, {"error": "x", "message": "etcdserver: unhealthy cluster"})}
    }
    with pytest.raises(etcd.EtcdRefused) as caught:
        client(refused).add_learner(OWN)
    assert caught.value.message == "etcdserver: unhealthy cluster" and "https://a:2379" in caught.value.cause


def test_the_requests() -> None:
    asked = client({"https://a:2379": {"cluster/member/add": (200, {"members": [{"ID": "9", "peerURLs": [OWN]}]})}})
    assert [member.member_id for member in asked.add_learner(OWN)] == ["9"]
    asked.promote(NEW)
    asked.remove(NEW)
    host = asked.host
    assert isinstance(host, EtcdHost)
    assert [(url.rpartition("/v3/")[2], body) for url, body in host.asked] == [
        ("cluster/member/add", {"peerURLs": [OWN], "isLearner": True}),
        ("cluster/member/promote", {"ID": "255"}),
        ("cluster/member/remove", {"ID": "255"}),
    ]


def test_a_removal_waits_until_etcd_has_settled() -> None:
    """Right after a join etcd refuses for five seconds. Taken for a no, the last of two members would be left alone."""
    url, verb = "https://a:2379", "cluster/member/remove"
    refusal = (503, {"message": "etcdserver: unhealthy cluster"})
    asked = client({url: {verb: refusal}})
    host = asked.host
    assert isinstance(host, EtcdHost)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        host.ticks += seconds
        if sum(slept) >= 5:
            host.members[url] = {}

    host.sleep = sleep  # type: ignore[method-assign]
    asked.remove(NEW)
    assert 5 <= sum(slept) < 6 and len(host.asked) == len(slept) + 1

    host.members[url] = {verb: (400, {"message": "etcdserver: member not found"})}
    slept.clear()
    with pytest.raises(etcd.EtcdRefused):
        asked.remove(NEW)
    assert slept == [], "what will not change is not waited for"


def test_who_serves() -> None:
    members = {
        "https://10.0.0.11:2379": {},
        "https://10.0.0.12:2379": {"maintenance/status": (200, {"errors": ["NOSPACE"]})},
    }
    found = etcd.probe_members(client(members), (CP1, CP2, CP3, NEW))
    assert set(found) == {"2", "3", "255"} and found["2"] == "NOSPACE" and "never started" in found["255"]
    learner = {"https://a:2379": {"kv/range": (503, {"message": "etcdserver: rpc not supported for learner"})}}
    assert "learner" in client(learner).probe_read("https://a:2379")
    assert client({"https://a:2379": {}}).probe_read("https://a:2379") == ""


# ---- this node's place


@pytest.mark.parametrize(
    ("members", "has_data", "action"),
    [
        ((CP1, CP2), False, "add"),
        ((CP1, CP2, NEW), False, "reuse"),
        ((CP1, CP2, NEW), True, "reuse"),
        ((CP1, CP2, Member("3", "cp3", (OWN,), is_learner=True)), True, "reuse"),
        ((CP1, CP2, CP3), True, "keep"),
        ((CP1, CP2, CP3), False, "replace"),
        ((CP1, Member("3", "old-name", (OWN + "/",))), False, "replace"),
    ],
)
def test_the_place_of_this_node(members: tuple[Member, ...], has_data: bool, action: str) -> None:
    place = etcd.find_place(members, name="cp3", peer_url=OWN, has_data=has_data)
    assert place.action == action and (place.member is None) == (action == "add")


def test_a_namesake_elsewhere_is_named_not_overwritten() -> None:
    with pytest.raises(ClusterError) as caught:
        etcd.find_place((CP1, CP2), name="cp2", peer_url=OWN, has_data=False)
    assert caught.value.code == "etcd-name-taken" and "https://10.0.0.12:2380" in caught.value.cause


def test_the_initial_cluster_has_every_member_once() -> None:
    rows = etcd.plan_initial_cluster((CP1, NEW, Member("171", "", ("https://x:2380",))), name="cp3", peer_url=OWN)
    assert rows == (("cp1", "https://10.0.0.11:2380"), ("cp3", OWN), ("ab", "https://x:2380"))


# ---- quorum


@pytest.mark.parametrize(
    ("members", "away", "code"),
    [
        ((CP1,), (), ""),
        ((CP1, CP2, CP3), (), ""),
        ((CP1, CP2, CP3), ("3",), "etcd-member-down"),
        ((CP1, CP2, CP3), ("2", "3"), "etcd-no-quorum"),
        ((CP1, CP2), ("2",), "etcd-no-quorum"),
        ((CP1, CP2, NEW), ("255",), ""),
    ],
)
def test_whether_etcd_takes_a_new_member(members: tuple[Member, ...], away: tuple[str, ...], code: str) -> None:
    error = etcd.judge_members(members, dict.fromkeys(away, "no answer"))
    assert (error.code if error else "") == code
    if error and code == "etcd-member-down":
        assert "kb etcd remove cp3" in error.remedy and "2 of 3" in error.cause


@pytest.mark.parametrize(
    ("members", "gone", "away", "code"),
    [
        ((CP1,), CP1, (), "etcd-last-member"),
        ((CP1, CP2), CP2, ("2",), ""),
        ((CP1, CP2), CP1, ("2",), "etcd-removal-unsafe"),
        ((CP1, CP2, CP3), CP3, ("3",), ""),
        ((CP1, CP2, CP3), CP1, ("3",), "etcd-removal-unsafe"),
        ((CP1, NEW), NEW, ("255",), ""),
    ],
)
def test_what_may_be_removed(members: tuple[Member, ...], gone: Member, away: tuple[str, ...], code: str) -> None:
    trouble = dict.fromkeys(away, "no answer")
    if not code:
        etcd.check_removal(members, gone, trouble=trouble)
        return
    with pytest.raises(ClusterError) as caught:
        etcd.check_removal(members, gone, trouble=trouble)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("members", "gone", "away", "stops"),
    [
        ((CP1,), CP1, (), False),
        ((CP1, CP2), CP2, (), True),
        ((CP1, CP2), CP2, ("1",), False),
        ((CP1, CP2, CP3), CP3, (), False),
        ((CP1, CP2, CP3), CP3, ("1",), True),
        ((CP1, CP2, CP3), CP3, ("3",), False),
        ((CP1, NEW), NEW, (), False),
    ],
)
def test_whom_the_others_need(members: tuple[Member, ...], gone: Member, away: tuple[str, ...], stops: bool) -> None:
    assert etcd.stops_without(members, gone, trouble=dict.fromkeys(away, "no answer")) is stops


@given(st.integers(1, 9), st.sets(st.integers(0, 8)), st.integers(0, 8))
def test_a_removal_that_is_allowed_leaves_a_quorum(size: int, away: set[int], pick: int) -> None:
    members = [Member(str(n), f"cp{n}", (f"https://{n}:2380",)) for n in range(size)]
    gone, trouble = members[pick % size], {str(n): "away" for n in away}
    try:
        etcd.check_removal(members, gone, trouble=trouble)
    except ClusterError:
        return
    rest = [member for member in members if member is not gone]
    assert sum(member.member_id not in trouble for member in rest) >= etcd.quorum_of(len(rest)) >= 1


@pytest.mark.parametrize("word", ["cp2", "2", "10.0.0.12", "https://10.0.0.12:2380"])
def test_a_member_is_named_by_what_people_see_of_it(word: str) -> None:
    assert etcd.match_member((CP1, CP2), word) is CP2


@pytest.mark.parametrize("word", ["", "cp9", "2380"])
def test_who_is_no_member(word: str) -> None:
    with pytest.raises(ClusterError) as caught:
        etcd.match_member((CP1, CP2), word)
    assert "cp1" in caught.value.cause


# ---- where members are found


def test_the_manifest_tells_of_all_whom_it_joined() -> None:
    command = [
        "etcd", "--advertise-client-urls=https://10.0.0.13:2379",
        "--initial-cluster=cp1=https://10.0.0.11:2380,cp3=https://10.0.0.13:2380,b=https://[fd00::2]:2380",
    ]  # fmt: skip
    pod = {"spec": {"containers": [{"command": command}]}}
    assert etcd.client_urls_of_manifest(pod) == (
        "https://10.0.0.13:2379", "https://10.0.0.11:2379", "https://[fd00::2]:2379",
    )  # fmt: skip


def test_the_pods_tell_of_their_members() -> None:
    note = etcd.CLIENT_URLS_ANNOTATION
    pods: list[dict[str, Any]] = [
        {"metadata": {"annotations": {note: "https://b:2379"}}},
        {"metadata": {}},
        {"metadata": {"annotations": {note: "https://a:2379,https://b:2379"}}},
    ]
    assert etcd.client_urls_of_pods(pods) == ("https://a:2379", "https://b:2379")


def test_a_voter_that_never_started_counts_as_away() -> None:
    """It has no client URL to ask, and its vote is missing all the same."""
    silent = Member("2", "", ("https://10.0.0.12:2380",))
    asked = client({"https://10.0.0.11:2379": {"maintenance/status": (200, {"raftAppliedIndex": "7"})}})
    statuses = etcd.read_statuses(asked, [CP1, silent])
    assert statuses == {"1": etcd.Status("", 7, endpoint=CP1.client_urls[0]), "2": etcd.Status("it has never started")}
    assert etcd.find_trouble(statuses) == etcd.probe_members(asked, [CP1, silent]) == {"2": "it has never started"}
    verdict = etcd.judge_members([CP1, silent], etcd.find_trouble(statuses))
    assert verdict is not None and verdict.code == "etcd-no-quorum"


def test_a_member_with_several_peer_urls_is_found_by_the_flag_that_names_them() -> None:
    dual = Member("2", "cp2", ("https://[fd00::12]:2380", "https://10.0.0.12:2380"))
    assert etcd.find_by_peer_url((CP1, dual), "https://10.0.0.12:2380,https://[FD00::12]:2380/") == dual
    assert etcd.find_by_peer_url((CP1, dual), "https://10.0.0.14:2380") is None
    assert etcd.find_by_peer_url((CP1, dual), "") is None


# ---- client URLs that lead to another member


def serving(member_id: str, **more: Any) -> dict[str, tuple[int, Any]]:
    return {"maintenance/status": (200, {"header": {"member_id": member_id}, "raftIndex": "9", **more})}


def at(number: int, *urls: str) -> Member:
    return Member(str(number), f"cp{number}", (f"https://10.0.0.{10 + number}:2380",), urls)


LOCAL = "https://127.0.0.1:2379"


def test_a_member_is_not_taken_for_the_one_that_answers_in_its_place() -> None:
    """As etcd is often set up by hand: each advertises 127.0.0.1, and whoever asks gets its own member three times."""
    members = [at(1, LOCAL), at(2, LOCAL), at(3, LOCAL)]
    asker = client({LOCAL: serving("1")})
    statuses = etcd.read_statuses(asker, members)
    assert not statuses["1"].trouble and statuses["1"].endpoint == LOCAL
    assert statuses["2"] == etcd.Status(f"cp2 advertises a client URL that leads to member cp1 ({LOCAL})")
    verdict = etcd.judge_members(members, etcd.find_trouble(statuses))
    assert verdict is not None and verdict.code == "etcd-no-quorum" and "leads to member cp1" in verdict.cause
    assert "--advertise-client-urls" in verdict.remedy
    assert "etcd remove" not in etcd.say_way_back(members[1], statuses["2"].trouble), "it is not lost"
    assert "leads to member cp1" in asker.probe_member(members[1]).replace(" 1 (", " cp1 (")
    with pytest.raises(etcd.EtcdRefused, match="maintenance status"):
        asker.defragment(members[1], timeout_s=1)


def test_its_other_client_urls_are_asked_first() -> None:
    member = at(2, LOCAL, "https://10.0.0.12:2379")
    asker = client({LOCAL: serving("1"), "https://10.0.0.12:2379": serving("2", leader="2")})
    assert asker.read_member(member).leader == "2" and asker.probe_member(member) == ""
    host = asker.host
    assert isinstance(host, EtcdHost) and not any(url.startswith(LOCAL) for url, _ in host.asked)


def test_the_host_of_its_peer_url_is_asked_if_its_client_urls_lead_elsewhere() -> None:
    asker = client({LOCAL: serving("1"), "https://10.0.0.12:2379": serving("2")})
    assert asker.read_member(at(2, LOCAL)).endpoint == "https://10.0.0.12:2379"
    asker.move_leader(at(2, LOCAL), to=CP3)
    assert isinstance(asker.host, EtcdHost)
    assert asker.host.asked[-1] == ("https://10.0.0.12:2379/v3/maintenance/transfer-leadership", {"targetID": "3"})


def test_a_member_that_is_down_is_asked_once_at_each_of_its_urls() -> None:
    asker = client({}, LOCAL)
    assert asker.read_member(at(2, "https://10.0.0.12:4001")).trouble.startswith("no answer")
    assert isinstance(asker.host, EtcdHost) and len(asker.host.asked) == 1
