"""kubeup/cluster/etcd_join.py: a member is added as a learner, and comes back from nothing, wherever it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

from kubeup.cluster import etcd, etcd_join
from kubeup.errors import ClusterError
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from tests.fake_host import FakeHost

OWN = "https://10.0.0.12:2380"


class Killed(BaseException):
    pass


def row(number: int, *, learner: bool = False, started: bool = True) -> dict[str, Any]:
    url = f"https://10.0.0.1{number}"
    found: dict[str, Any] = {"ID": str(number), "peerURLs": [f"{url}:2380"], "isLearner": learner}
    return {**found, "name": f"cp{number}", "clientURLs": [f"{url}:2379"]} if started else found


@dataclass
class Members(FakeHost):
    """A member list that all living members answer with. log: the changes; dies_at: kb is killed before or after that one."""

    rows: list[dict[str, Any]] = field(default_factory=lambda: [row(1), row(2), row(3)])
    living: set[str] = field(default_factory=lambda: {"10.0.0.11", "10.0.0.13"})
    refusals: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    dies_before: str = ""
    dies_after: str = ""

    def http_ask(self, url: str, body: bytes, **_: Any) -> HttpResponse:
        if url.partition("//")[2].partition(":")[0] not in self.living:
            raise Unreachable(url, "refused", text="connection refused")
        return HttpResponse(200, json.dumps({"members": self.rows}).encode())

    def http_send(
        self, method: str, url: str, *, body: bytes = b"", tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None, timeout_s: float = 10,
    ) -> HttpResponse:  # fmt: skip
        verb, asked = url.rpartition("/")[2], json.loads(body)
        self.step(verb, before=True)
        if self.refusals:
            return HttpResponse(503, json.dumps({"message": self.refusals.pop(0)}).encode())
        self.log.append(verb)
        if verb == "remove":
            self.rows = [one for one in self.rows if one["ID"] != asked["ID"]]
        elif verb == "add":
            number = 1 + max(int(one["ID"]) for one in self.rows)
            self.rows.append({"ID": str(number), "peerURLs": asked["peerURLs"], "isLearner": True})
        else:
            (own,) = [one for one in self.rows if one["ID"] == asked["ID"]]
            own["isLearner"] = False
        self.step(verb, before=False)
        return HttpResponse(200, json.dumps({"members": self.rows}).encode())

    def step(self, verb: str, *, before: bool) -> None:
        if verb == (self.dies_before if before else self.dies_after):
            raise Killed

    def empty(self) -> None:
        self.step("empty", before=True)
        self.log.append("empty")
        self.step("empty", before=False)


def client(host: Members) -> etcd.Etcd:
    return etcd.Etcd(host, ["https://10.0.0.11:2379", "https://10.0.0.13:2379"], tls=Tls())


def come_back(host: Members) -> etcd_join.Rows:
    def register(promised: Mapping[str, str]) -> None:
        assert promised == etcd_join.promise(OWN, ["https://10.0.0.11:2379", "https://10.0.0.13:2379"])
        host.log.append("register")

    return etcd_join.remove_and_add_learner(client(host), name="cp2", peer_url=OWN, empty=host.empty, register=register)


WHOLE = ["remove", "empty", "register", "add"]
ROWS = (("cp1", "https://10.0.0.11:2380"), ("cp3", "https://10.0.0.13:2380"), ("cp2", OWN))


def test_one_that_answers_late_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy. Removed, it would lose its data."""
    host = Members(living={"10.0.0.11", "10.0.0.12", "10.0.0.13"})
    http_ask = host.http_ask

    def late(url: str, body: bytes, *, timeout_s: float = 10, **more: Any) -> HttpResponse:
        if "10.0.0.12" in url and url.endswith("kv/range") and timeout_s < 2:
            raise Unreachable(url, "timeout", text="timed out")
        return http_ask(url, body, **more)

    monkeypatch.setattr(host, "http_ask", late)
    assert sorted(come_back(host)) == sorted(ROWS) and host.log == []


def test_it_is_removed_then_emptied_then_announced_then_added() -> None:
    host = Members()
    assert come_back(host) == ROWS and host.log == WHOLE
    assert come_back(host) == ROWS and host.log == WHOLE, "the learner stays"


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("verb", ["remove", "empty", "add"])
def test_killed_anywhere_it_goes_on(verb: str, where: str) -> None:
    host = Members(**{f"dies_{where}": verb})  # type: ignore[arg-type]
    with pytest.raises(Killed):
        come_back(host)
    host.dies_before = host.dies_after = ""
    assert come_back(host) == ROWS
    assert host.log.count("remove") == host.log.count("add") == 1
    assert host.log.index("remove") < host.log.index("empty") and "empty" not in host.log[host.log.index("add") :]


def test_one_that_serves_is_not_touched() -> None:
    host = Members(living={"10.0.0.11", "10.0.0.12", "10.0.0.13"})
    assert sorted(come_back(host)) == sorted(ROWS) and host.log == []


@pytest.mark.parametrize(
    ("living", "code"),
    [({"10.0.0.11"}, "etcd-no-quorum"), (set(), "etcd-unreachable")],
)
def test_where_the_others_cannot_decide_nothing_is_removed(living: set[str], code: str) -> None:
    host = Members(living=living)
    with pytest.raises(ClusterError) as caught:
        come_back(host)
    assert caught.value.code == code and host.log == []


def test_a_refusal_is_waited_for_and_explained() -> None:
    host = Members(rows=[row(1), row(3)], refusals=["etcdserver: unhealthy cluster"] * 3)
    told: list[str] = []
    members = etcd_join.add_learner(client(host), OWN, tell=told.append, keep=lambda: told.append("kept"))
    assert [member.peer_urls[0] for member in members][-1] == OWN and told.count("kept") == 3
    host = Members(rows=[row(1), row(3), row(4, learner=True)], refusals=["etcdserver: too many learner members"] * 999)
    with pytest.raises(ClusterError) as caught:
        etcd_join.add_learner(client(host), OWN)
    assert caught.value.code == "etcd-busy" and "learner already" in caught.value.what
    assert host.ticks >= etcd_join.SETTLE_S


def test_a_learner_is_promoted_once_it_has_caught_up_and_waited_for_until_it_serves() -> None:
    host = Members(
        rows=[row(1), row(2, learner=True), row(3)], refusals=["etcdserver: can only promote a learner in sync"] * 2
    )
    told: list[str] = []

    def keep() -> None:
        if "promote" in host.log:
            host.living.add("10.0.0.12")

    etcd_join.promote_when_ready(client(host), OWN, timeout_s=10, tell=told.append, keep=keep)
    assert host.log == ["promote"] and "still copying" in told[0] and "no answer" in told[-1]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(1), row(3)], "not in etcd's member list"),
        ([row(1), row(2, started=False, learner=True), row(3)], "not started yet"),
        ([row(1), row(2), row(3)], "no answer"),
    ],
)
def test_one_that_does_not_come_is_told(rows: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ClusterError) as caught:
        etcd_join.promote_when_ready(client(Members(rows=rows)), OWN, timeout_s=3)
    assert caught.value.code == "etcd-not-promoted" and told in caught.value.cause
