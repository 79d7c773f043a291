"""kubeup/backup/rehearsal_objects.py: every object is counted once, and what cannot be read is said."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from kubeup.backup import rehearsal_objects
from kubeup.backup.rehearsal_objects import Caller, Keys
from kubeup.machine.http import HttpResponse
from kubeup.secret import Secret
from tests.fake_host import FakeHost

CERT = Path("/s/certs/apiserver.crt")
BASE = "https://127.0.0.1:6443"
CORE = {
    "resources": [
        {"name": "pods", "kind": "Pod", "verbs": ["get", "list"]},
        {"name": "pods/log", "kind": "Pod", "verbs": ["get"]},
        {"name": "secrets", "kind": "Secret", "verbs": ["list"]},
        {"name": "bindings", "kind": "Binding", "verbs": ["create"]},
        {"name": "componentstatuses", "kind": "ComponentStatus", "verbs": ["list"]},
    ]
}
GROUPS = {
    "groups": [
        {"name": "apps", "preferredVersion": {"groupVersion": "apps/v1"}},
        {"name": "events.k8s.io", "preferredVersion": {"groupVersion": "events.k8s.io/v1"}},
        {"name": "metrics.k8s.io", "preferredVersion": {"groupVersion": "metrics.k8s.io/v1"}},
    ]
}
APPS = {"resources": [{"name": "deployments", "kind": "Deployment", "verbs": ["list"]}]}


def answer(value: Any, status: int = 200) -> HttpResponse:
    return HttpResponse(status, json.dumps(value).encode())


def listed(count: int, *, rest: str = "") -> HttpResponse:
    return answer({"metadata": {"continue": rest}, "items": [{"metadata": {"name": str(n)}} for n in range(count)]})


def make_host(**more: HttpResponse) -> FakeHost:
    host = FakeHost({str(CERT): b"-----BEGIN CERTIFICATE-----\n"})
    host.urls = {
        f"{BASE}/api/v1": answer(CORE),
        f"{BASE}/apis": answer(GROUPS),
        f"{BASE}/apis/apps/v1": answer(APPS),
        f"{BASE}/apis/metrics.k8s.io/v1": answer({"message": "unavailable"}, 503),
        f"{BASE}/api/v1/pods?limit=500": listed(500, rest="a/b"),
        f"{BASE}/api/v1/pods?limit=500&continue=a%2Fb": listed(20),
        f"{BASE}/api/v1/secrets?limit=500": listed(2),
        f"{BASE}/api/v1/secrets?limit=1": answer({"items": [{"data": {"word": "cGxhaW4="}}]}),
        f"{BASE}/apis/apps/v1/deployments?limit=500": listed(0),
        f"{BASE}/readyz": HttpResponse(200, b"ok"),
    }
    host.urls.update({f"{BASE}{path}": found for path, found in more.items()})
    return host


def count(host: FakeHost, *kms: str) -> rehearsal_objects.Counted:
    return rehearsal_objects.count_objects(Caller(host, CERT, token=Secret("t")), keys=Keys(530), kms=kms)


def test_every_page_counts_and_nothing_twice() -> None:
    found = count(make_host())
    assert found.kinds == {"pods": 520, "secrets": 2} and found.objects == 522
    assert (found.keys, found.secret, found.unread) == (530, "read", {})


def test_what_cannot_be_read_is_said() -> None:
    refused = answer({"message": "no matching key was found for the provided AES transformer"}, 500)
    found = count(make_host(**{"/api/v1/secrets?limit=500": refused, "/api/v1/secrets?limit=1": refused}))
    assert found.unread == {"secrets": "no matching key was found for the provided AES transformer"}
    assert found.secret.startswith("unreadable: no matching key")
    assert found.kinds == {"pods": 520}


def test_with_a_kms_plugin_nothing_is_proven() -> None:
    assert count(make_host(), "unix:///kms.sock").secret == "not proven: unix:///kms.sock encrypts"


def test_what_takes_a_program_that_is_not_here_is_not_blamed_on_the_backup() -> None:
    encrypted = answer(
        {"message": 'unable to transform key "/registry/pods/a": identity transformer tried to read encrypted data'},
        500,
    )
    found = count(make_host(**{"/api/v1/pods?limit=500": encrypted}), "unix:///kms.sock")
    assert list(found.unproven) == ["pods"] and found.unread == {}
    found = count(make_host(**{"/api/v1/pods?limit=500": encrypted}))
    assert list(found.unread) == ["pods"] and found.unproven == {}, (
        "without a plugin, the key is missing from the backup"
    )
    webhook = answer(
        {"message": "conversion webhook for example.com/v1, Kind=Thing failed: network is unreachable"}, 500
    )
    found = count(make_host(**{"/apis/apps/v1/deployments?limit=500": webhook}))
    assert list(found.unproven) == ["deployments.apps"] and found.unread == {}


def test_a_cluster_without_secrets_and_one_whose_secret_is_none() -> None:
    assert count(make_host(**{"/api/v1/secrets?limit=1": answer({"items": []})})).secret == "none"
    odd = answer({"items": [{"data": {"word": "k8s:enc:aescbc"}}]})
    assert count(make_host(**{"/api/v1/secrets?limit=1": odd})).secret.startswith("unreadable: it is no Secret")


def test_it_is_ready_when_it_says_so() -> None:
    host = make_host()
    caller = Caller(host, CERT, token=Secret("t"))
    assert caller.probe("/readyz") == ""
    host.urls[f"{BASE}/readyz"] = HttpResponse(500, b"[-]etcd failed")
    assert caller.probe("/readyz") == "[-]etcd failed"
    del host.urls[f"{BASE}/readyz"]
    assert "nothing listens there" in caller.probe("/readyz")
    del host.files[str(CERT)]
    assert caller.probe("/readyz") == "it has made no certificate yet"


EXAMPLE = {
    "groups": [
        *GROUPS["groups"],
        {
            "name": "example.com",
            "preferredVersion": {"groupVersion": "example.com/v1"},
            "versions": [{"groupVersion": "example.com/v1"}, {"groupVersion": "example.com/v1alpha1"}],
        },
    ]
}


def things(*names: str) -> HttpResponse:
    return answer({"resources": [{"name": name, "kind": "Thing", "verbs": ["list"]} for name in names]})


@dataclass
class LateHost(FakeHost):
    """offers: what the API server offers by and by: (second, path, answer)."""

    offers: list[tuple[float, str, HttpResponse]] = field(default_factory=list)

    def http_get(self, url: str, **more: Any) -> HttpResponse:
        for second, path, found in self.offers:
            if self.monotonic() >= second:
                self.urls[f"{BASE}{path}"] = found
        return super().http_get(url, **more)


def late_host(*offers: tuple[float, str, HttpResponse]) -> LateHost:
    found = make_host()
    return LateHost(found.files, urls=found.urls, offers=list(offers))


def test_custom_objects_are_waited_for() -> None:
    host = late_host(
        (3, "/apis", answer(EXAMPLE)),
        (3, "/apis/example.com/v1", things("widgets")),
        (6, "/apis/example.com/v1alpha1", things("widgets", "gadgets")),
        (0, "/apis/example.com/v1/widgets?limit=500", listed(2)),
        (0, "/apis/example.com/v1alpha1/gadgets?limit=500", listed(1)),
    )
    keys = Keys(3, {"widgets.example.com": 2, "gadgets.example.com": 1})
    found = rehearsal_objects.count_objects(Caller(host, CERT, token=Secret("t")), keys=keys, kms=())
    assert found.kinds == {"gadgets.example.com": 1, "pods": 520, "secrets": 2, "widgets.example.com": 2}
    assert found.uncounted == {} and 6 <= host.monotonic() < 8


def test_custom_objects_that_are_never_offered_are_named() -> None:
    host = late_host(
        (0, "/apis", answer(EXAMPLE)),
        (0, "/apis/example.com/v1", things("widgets")),
        (0, "/apis/example.com/v1/widgets?limit=500", listed(2)),
    )
    keys = Keys(5, {"widgets.example.com": 3, "gadgets.example.com": 2})
    found = rehearsal_objects.count_objects(Caller(host, CERT, token=Secret("t")), keys=keys, kms=())
    assert found.uncounted == {"gadgets.example.com": "0 of 2", "widgets.example.com": "2 of 3"}
    assert host.monotonic() < 20, "the wait has an end"


def test_what_etcd_holds_of_each_custom_resource() -> None:
    held = {"/r/": 9, "/r/example.com/widgets/": 3, "/r/example.com/gadgets/": 0}

    class Client:
        def list_keys(self, prefix: str) -> list[str]:
            assert prefix == "/r/apiextensions.k8s.io/customresourcedefinitions/"
            return ["widgets.example.com", "gadgets.example.com"]

        def count_keys(self, prefix: str) -> int:
            return held[prefix]

    assert rehearsal_objects.count_keys(cast(Any, Client()), "/r") == Keys(9, {"widgets.example.com": 3})
