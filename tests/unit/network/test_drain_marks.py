"""kubeup/network/drain_marks.py: which marks count and for how long, how a keeper waits for them, and how it answers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, cast

import pytest

from kubeup.cluster.api import Api, Identity, read_identity
from kubeup.machine.http import HttpResponse, HttpStream, Tls, Unreachable
from kubeup.network import drain_marks
from kubeup.network.drain_marks import ANNOTATION, LAPSE_S, Marks
from kubeup.network.keeper import POLL_S, RETRY_S
from kubeup.paths import Paths
from kubeup.yaml_files import load_all_yaml, read_resource
from tests.fake_host import FakeHost
from tests.fake_node import finished_node

A, B, C = "10.0.0.11:6443", "10.0.0.12:6443", "[fd00::13]:6443"


def config_map(**marks: str) -> dict[str, Any]:
    return {"metadata": {"name": drain_marks.NAME}, "data": marks}


# ---- values


def test_a_mark_reads_back_from_the_config_map_and_from_the_annotation() -> None:
    assert [drain_marks.key_of(server) for server in (A, C)] == ["10.0.0.11_6443", "fd00__13_6443"]
    data = {drain_marks.key_of(server): drain_marks.render_mark(server, "2026-11-29T20:00:00Z") for server in (A, C)}
    marks = {A: "2026-11-29T20:00:00Z", C: "2026-11-29T20:00:00Z"}
    assert drain_marks.parse_config_map(config_map(**data)) == marks
    node = {"metadata": {"annotations": {ANNOTATION: drain_marks.render_annotation(marks)}}}
    assert drain_marks.parse_annotation(node) == marks


@pytest.mark.parametrize("data", [None, {}, {"a": ""}, {"a": "no mark", "b": "=1", "c": f"{A}="}])
def test_what_is_no_mark_is_left_out(data: Optional[dict[str, str]]) -> None:
    assert drain_marks.parse_config_map({"data": data}) == {} == drain_marks.parse_config_map(None)
    assert drain_marks.parse_annotation({"metadata": {}}) == {}


def test_nodes_may_read_this_one_config_map_and_no_other() -> None:
    (role,) = [
        found
        for found in load_all_yaml(read_resource("rbac/load-balancer.yaml"))
        if found["kind"] == "Role" and found["metadata"]["namespace"] == "kube-system"
    ]
    (rule,) = role["rules"]
    assert rule["resourceNames"] == [drain_marks.NAME] and rule["verbs"] == ["get", "list", "watch"]


# ---- which count


def judge(marks: Marks, *servers: str, now: float = 0) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    verdict = marks.judge(servers, now=now)
    return dict(verdict.drained), verdict.lapsed, verdict.last


def test_one_server_is_always_left() -> None:
    marks = Marks()
    marks.note({A: "1"}, now=0)
    assert judge(marks, A, B) == ({A: "1"}, (), ())
    assert judge(marks, A) == ({}, (), (A,)) and "no other API server is left" in marks.judge([A], now=0).say()[0]
    marks.note({A: "1", B: "2"}, now=1)
    assert judge(marks, A, B) == ({A: "1"}, (), (B,))
    marks.note({A: "3", B: "2"}, now=2)
    assert judge(marks, A, B) == ({A: "3"}, (), (B,)), "the first mark goes before, renewed or not"
    assert judge(marks, A, B, C) == ({A: "3", B: "2"}, (), ())


def test_a_mark_lapses_unless_it_is_renewed() -> None:
    marks = Marks()
    marks.note({A: "1"}, now=0)
    marks.note({A: "1"}, now=LAPSE_S - 1)
    assert judge(marks, A, B, now=LAPSE_S - 1) == ({A: "1"}, (), ())
    assert judge(marks, A, B, now=LAPSE_S) == ({}, (A,), ())
    assert marks.judge([A, B], now=LAPSE_S).say() == [
        f"{A} is put back: its mark was not renewed for {LAPSE_S / 60:.0f} minutes"
    ]
    marks.note({A: "2"}, now=LAPSE_S + 1)
    assert judge(marks, A, B, now=LAPSE_S + 2) == ({A: "2"}, (), ())
    marks.note({}, now=LAPSE_S + 3)
    assert judge(marks, A, B, now=LAPSE_S + 3) == ({}, (), ())


# ---- the cluster


@dataclass
class Watched(FakeHost):
    """A cluster that holds `marks`, and sends `pieces` to whoever watches them: bytes at once, a number of seconds later an end."""

    marks: dict[str, str] = field(default_factory=dict)
    status: int = 200
    pieces: list[Any] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    patches: list[tuple[str, Any]] = field(default_factory=list)
    is_registered: bool = True

    def http_get(self, url: str, **_: Any) -> HttpResponse:
        self.asked.append(url)
        items = [config_map(**{drain_marks.key_of(A): text}) for text in self.marks.values()]
        found = {"kind": "List", "metadata": {"resourceVersion": "77"}, "items": items}
        return HttpResponse(self.status, json.dumps(found if self.status == 200 else {"kind": "Status"}).encode())

    @contextlib.contextmanager
    def http_open(self, url: str, **_: Any) -> Iterator[HttpStream]:
        self.asked.append(url)
        if self.pieces and isinstance(self.pieces[0], Unreachable):
            raise self.pieces[0]

        def chunks(*, max_bytes: int) -> Iterator[bytes]:
            for piece in self.pieces:
                if isinstance(piece, bytes):
                    yield piece
                else:
                    self.ticks += piece

        stream = type("Stream", (), {"status": self.status, "chunks": staticmethod(chunks)})
        yield cast(HttpStream, stream)

    def http_send(self, method: str, url: str, *, body: bytes = b"", **_: Any) -> HttpResponse:
        if not self.is_registered:
            return HttpResponse(404, b'{"kind": "Status", "message": "no such node"}')
        self.patches.append((url.partition("?")[0], json.loads(body)))
        return HttpResponse(200, json.dumps({"kind": "Node", "metadata": {"name": "cp1"}}).encode())


def api_of(host: FakeHost, tls: Optional[Tls] = None) -> Api:
    return Api(host, Identity("https://x", tls or Tls()), retry_s=0)


def read(host: Watched, marks: Marks) -> Mapping[str, Any]:
    marks.read(api_of(host))
    return {server: serial for server, (serial, _) in marks.seen.items()}


def test_the_marks_are_read_from_the_cache_of_the_api_server() -> None:
    host, marks = Watched(marks={A: f"{A}=1"}), Marks()
    assert read(host, marks) == {A: "1"} and marks.version == "77"
    assert host.asked == [
        "https://x/api/v1/namespaces/kube-system/configmaps"
        f"?fieldSelector=metadata.name%3D{drain_marks.NAME}&resourceVersion=0"
    ]
    host.marks = {}
    assert read(host, marks) == {}


def test_a_cluster_that_lets_no_node_read_marks_has_none_and_takes_none_back() -> None:
    host, marks = Watched(status=403), Marks()
    assert read(host, marks) == {} and marks.version == ""
    assert marks.watch(lambda: api_of(host), seconds=POLL_S) == POLL_S
    assert not any("watch=1" in url for url in host.asked)
    host.status, host.marks = 200, {A: f"{A}=1"}
    read(host, marks)
    host.status = 403  # an API server that is starting forbids everything
    assert read(host, marks) == {A: "1"}


# ---- waiting


def wait(host: Watched, seconds: float = POLL_S, *, version: str = "77") -> float:
    """How many seconds pass until the keeper looks again."""
    began = host.ticks
    host.sleep(Marks(version=version).watch(lambda: api_of(host), seconds=seconds))
    return host.ticks - began


def test_a_change_ends_the_wait_at_once() -> None:
    host = Watched(pieces=[0.5, b'{"type":"ADDED","object":{}}\n', 9])
    assert wait(host) == 0.5
    assert host.asked[0].endswith("&watch=1&resourceVersion=77&timeoutSeconds=10")


def test_without_a_change_the_watch_is_the_wait() -> None:
    assert wait(Watched(pieces=[POLL_S])) == POLL_S


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [Unreachable("https://x", "refused", text="no")],
        [b'{"type":"ERROR","object":{"code":410}}\n'],
    ],
)
def test_a_watch_that_breaks_makes_no_keeper_spin(pieces: list[Any]) -> None:
    assert wait(Watched(pieces=pieces)) == RETRY_S
    assert wait(Watched(pieces=[b"{}"], status=410)) == RETRY_S


def test_a_watch_that_breaks_late_leaves_only_the_rest_to_sleep() -> None:
    assert wait(Watched(pieces=[POLL_S - 2])) == POLL_S


def test_after_a_failed_round_and_without_a_version_the_keeper_sleeps() -> None:
    host = Watched(pieces=[b"x"])
    assert wait(host, RETRY_S) == RETRY_S and wait(host, version="") == POLL_S
    assert host.asked == []


# ---- the answer


def answer(host: Watched, marks: Marks, *, serial: str = "") -> None:
    node = finished_node()
    tls = read_identity(node, Paths().kubeconfig("kubelet.conf")).tls
    marks.answer(api_of(host, tls), {A: serial} if serial else {})


def test_the_node_says_once_what_its_load_balancer_follows() -> None:
    host, marks = Watched(), Marks()
    answer(host, marks)
    answer(host, marks)
    assert host.patches == [("https://x/api/v1/nodes/cp1", {"metadata": {"annotations": {ANNOTATION: None}}})]
    answer(host, marks, serial="1")
    answer(host, marks, serial="1")
    answer(host, marks, serial="2")
    answer(host, marks)
    told = [body["metadata"]["annotations"][ANNOTATION] for _, body in host.patches[1:]]
    assert told == [f"{A}=1", f"{A}=2", None]


def test_a_node_that_is_not_registered_yet_answers_later() -> None:
    host, marks = Watched(is_registered=False), Marks()
    answer(host, marks)
    assert marks.answered is None
    marks.answer(api_of(host), {A: "1"})  # with the identity of no node
    assert marks.answered is None and host.patches == []
    host.is_registered = True
    answer(host, marks)
    assert marks.answered == "" and len(host.patches) == 1
