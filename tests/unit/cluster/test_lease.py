"""kubeup/cluster/lease.py: one holder at a time, the next one at once, and nobody waits for ever for a dead one."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from kubeup.cluster.api import Api, Identity
from kubeup.cluster.lease import DURATION_S, RENEW_EVERY_S, Lease
from kubeup.machine.http import HttpResponse, Tls
from tests.fake_host import FakeHost

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
PATH = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/q"


@dataclass
class LeaseHost(FakeHost):
    """An API server with optimistic locking, which the general fake leaves out."""

    store: dict[str, Any] = field(default_factory=dict)
    version: int = 0

    def http_get(self, url: str, **_: Any) -> HttpResponse:
        found = self.store.get(url[len("https://x") :])
        return HttpResponse(200, json.dumps(found).encode()) if found else HttpResponse(404, b"{}")

    def http_send(
        self, method: str, url: str, *, body: bytes = b"", tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None, timeout_s: float = 10,
    ) -> HttpResponse:  # fmt: skip
        path = url[len("https://x") :]
        value = json.loads(body) if body else {}
        if method == "DELETE":
            return HttpResponse(200 if self.store.pop(path, None) else 404, b"{}")
        if method == "POST":
            path = f"{path}/{value['metadata']['name']}"
            if path in self.store:
                return HttpResponse(409, b'{"reason": "AlreadyExists"}')
        elif path not in self.store:
            return HttpResponse(404, b'{"reason": "NotFound"}')
        elif value["metadata"].get("resourceVersion") != self.store[path]["metadata"]["resourceVersion"]:
            return HttpResponse(409, b'{"reason": "Conflict"}')
        self.version += 1
        value["metadata"]["resourceVersion"] = str(self.version)
        self.store[path] = value
        return HttpResponse(200, json.dumps(value).encode())


def queue(host: LeaseHost, identity: str) -> Lease:
    return Lease(Api(host, Identity("https://x", Tls()), retry_s=0), "q", identity)


def after(seconds: float) -> datetime.datetime:
    return NOW + datetime.timedelta(seconds=seconds)


def test_one_works_and_the_other_can_say_for_whom_it_waits() -> None:
    host = LeaseHost()
    first, second = queue(host, "cp2"), queue(host, "cp3")
    assert first.try_take(NOW, 0) == ""
    assert second.try_take(NOW, 0) == "cp2" and host.store[PATH]["spec"]["holderIdentity"] == "cp2"
    first.give_back()
    assert PATH not in host.store
    assert second.try_take(NOW, 1) == ""


def test_a_holder_that_renews_keeps_it_however_long_it_works() -> None:
    host = LeaseHost()
    first, second = queue(host, "cp2"), queue(host, "cp3")
    first.try_take(NOW, 0)
    for second_s in range(4 * DURATION_S):
        first.keep(after(second_s), second_s)
        assert second.try_take(NOW, second_s) == "cp2"
    assert host.version <= 4 * DURATION_S / RENEW_EVERY_S + 1  # not at every look


def test_a_dead_holder_is_followed_whatever_the_clocks_say() -> None:
    host = LeaseHost()
    queue(host, "cp2").try_take(after(9999), 0)  # its clock is far ahead
    second = queue(host, "cp3")
    assert second.try_take(NOW, 100) == "cp2"
    assert second.try_take(NOW, 100 + DURATION_S) == "cp2"
    assert second.try_take(NOW, 100 + DURATION_S + 0.1) == ""


def test_a_node_that_was_cut_off_takes_its_own_turn_again_at_once() -> None:
    host = LeaseHost()
    queue(host, "cp2").try_take(NOW, 0)
    assert queue(host, "cp2").try_take(after(1), 0) == ""


def test_of_two_who_take_it_at_one_moment_one_gets_it() -> None:
    host = LeaseHost()
    queue(host, "cp1").try_take(NOW, 0)
    host.store[PATH]["spec"]["holderIdentity"] = ""
    stale = json.loads(json.dumps(host.store[PATH]))
    first, second = queue(host, "cp2"), queue(host, "cp3")
    assert first.try_take(NOW, 0) == ""
    kept = host.store[PATH]
    host.store[PATH] = stale  # what the second one saw before
    host.store[PATH]["metadata"]["resourceVersion"] = "0"

    class Racing(LeaseHost):
        pass

    original = host.http_get
    host.http_get = lambda url, **rest: (original(url, **rest), host.store.update({PATH: kept}))[0]  # type: ignore[method-assign]
    assert second.try_take(NOW, 0) != "" and host.store[PATH]["spec"]["holderIdentity"] == "cp2"


def test_one_that_lost_it_does_not_take_it_back() -> None:
    host = LeaseHost()
    first, second = queue(host, "cp2"), queue(host, "cp3")
    first.try_take(NOW, 0)
    second.try_take(NOW, 0)
    assert second.try_take(NOW, DURATION_S + 1) == ""
    first.keep(after(DURATION_S + 2), DURATION_S + 2)
    assert host.store[PATH]["spec"]["holderIdentity"] == "cp3"
    first.give_back()
    assert host.store[PATH]["spec"]["holderIdentity"] == "cp3"
