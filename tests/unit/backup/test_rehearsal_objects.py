"""kubeup/backup/rehearsal_objects.py: every object is counted once, and what cannot be read is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kubeup.backup import rehearsal_objects
from kubeup.backup.rehearsal_objects import Caller
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
    return rehearsal_objects.count_objects(Caller(host, CERT, token=Secret("t")), keys=530, kms=kms)


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
