"""kubeup/cluster/reach.py: nodes that are Ready and not reached, aggregated APIs that do not answer."""

from __future__ import annotations

import json

import pytest

from kubeup.cluster import reach
from kubeup.cluster.api import Api, Identity
from kubeup.machine.http import HttpResponse, Tls
from tests.fake_host import FakeHost

SERVER = "https://10.0.0.11:6443"


def make_api(answers: dict[str, tuple[int, object]]) -> Api:
    host = FakeHost()
    for path, (status, value) in answers.items():
        body = value if isinstance(value, str) else json.dumps(value)
        host.urls[f"{SERVER}{path}"] = HttpResponse(status, body.encode())
    return Api(host, Identity(SERVER, Tls()), retry_s=0)


def test_every_kubelet_is_asked_through_the_api_server() -> None:
    refusal = {"kind": "Status", "message": "error trying to reach service: dial tcp 10.0.0.22:10250: i/o timeout"}
    api = make_api(
        {
            "/api/v1/nodes/cp1/proxy/healthz": (200, "ok"),
            "/api/v1/nodes/w1/proxy/healthz": (503, refusal),
            "/api/v1/nodes/w2/proxy/healthz": (502, "Bad Gateway"),
            "/api/v1/nodes/w3/proxy/healthz": (403, {"kind": "Status", "message": "forbidden"}),
            "/api/v1/nodes/w4/proxy/healthz": (
                503,
                {**refusal, "message": "dial tcp 10.0.0.24:10250: connect: connection refused"},
            ),
        }
    )
    well, blocked, plain, forbidden, stopped = reach.probe_kubelets(api, ["cp1", "w1", "w2", "w3", "w4"])
    assert stopped.trouble and stopped.trouble.remedy.endswith("on w4: kb doctor")
    assert well.is_well
    assert str(blocked.trouble) == (
        "API server 10.0.0.11:6443 does not reach the kubelet of node w1: "
        "error trying to reach service: dial tcp 10.0.0.22:10250: i/o timeout"
    )
    assert blocked.trouble and "TCP port 10250 pass from the control planes to w1" in blocked.trouble.remedy
    assert plain.trouble and plain.trouble.cause == "Bad Gateway"
    assert forbidden.trouble is None and forbidden.unproven == "the kubelet of w3: HTTP 403"


@pytest.mark.parametrize(("status", "is_away"), [("True", False), ("False", True), ("Unknown", True)])
def test_an_aggregated_api_that_does_not_answer(status: str, is_away: bool) -> None:
    own = {"metadata": {"name": "v1.apps"}, "spec": {"service": None}, "status": {"conditions": []}}
    metrics = {
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {"service": {"namespace": "kube-system", "name": "metrics-server"}},
        "status": {"conditions": [{"type": "Available", "status": status, "message": "no response from 10.96.1.2"}]},
    }
    api = make_api(
        {
            "/apis/apiregistration.k8s.io/v1/apiservices": (200, {"items": [own, metrics]}),
            "/api/v1/namespaces": (200, {"items": []}),
        }
    )
    (part,) = reach.probe_aggregated(api)
    assert bool(part.trouble) == is_away
    if part.trouble:
        assert part.trouble.cause == "no response from 10.96.1.2"
        assert "kubectl -n kube-system get service,endpointslices,pods" in part.trouble.remedy


@pytest.mark.parametrize(
    ("phase", "message", "kind"),
    [
        (
            "Terminating",
            "Discovery failed for some groups, 1 failing: metrics.k8s.io/v1beta1: stale",
            reach.HOLDS_NAMESPACES,
        ),
        ("Terminating", "Discovery failed for some groups, 1 failing: other.io/v1: stale", "aggregated"),
        ("Active", "metrics.k8s.io/v1beta1", "aggregated"),
    ],
)
def test_an_aggregated_api_that_holds_a_namespace(phase: str, message: str, kind: str) -> None:
    metrics = {
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {"service": {"namespace": "kube-system", "name": "metrics-server"}},
        "status": {"conditions": [{"type": "Available", "status": "False", "message": "no endpoints"}]},
    }
    failing = {"type": "NamespaceDeletionDiscoveryFailure", "status": "True", "message": message}
    held = {"metadata": {"name": "shop"}, "status": {"phase": phase, "conditions": [failing]}}
    answers = {"/apis/apiregistration.k8s.io/v1/apiservices": (200, {"items": [metrics]})}
    (part,) = reach.probe_aggregated(make_api({**answers, "/api/v1/namespaces": (200, {"items": [held]})}))
    assert part.kind == kind and part.trouble
    is_held = kind == reach.HOLDS_NAMESPACES
    assert part.trouble.cause == "no endpoints" + "; so the namespace shop cannot be deleted" * is_held


def test_odd_answers_are_no_trouble() -> None:
    rows = [{"spec": {"service": "odd"}, "status": {"conditions": [None, {"type": 3}]}}]
    api = make_api({"/apis/apiregistration.k8s.io/v1/apiservices": (200, {"items": rows})})
    assert [part.is_well for part in reach.probe_aggregated(api)] == [True]


def test_kubelets_that_refuse_the_api_server() -> None:
    """They are reached. The API server's own refusals are objects of kind Status, and prove nothing."""
    forbidden = "Forbidden (user=apiserver.example.com, verb=get, resource=nodes, subresource(s)=[healthz proxy])"
    api = make_api(
        {
            "/api/v1/nodes/w1/proxy/healthz": (403, forbidden),
            "/api/v1/nodes/w2/proxy/healthz": (403, forbidden),
            "/api/v1/nodes/w3/proxy/healthz": (401, "Unauthorized"),
        }
    )
    first, second, third = reach.probe_kubelets(api, ["w1", "w2", "w3"])
    assert first == second and first.kind == reach.REFUSED  # one trouble, of one certificate
    assert first.trouble and f"a kubelet says: {forbidden}" in str(first.trouble)
    assert "kb init phase certs apiserver-kubelet-client" in first.trouble.remedy
    assert third.trouble and third.trouble.what == "the kubelet of node w3 does not accept API server 10.0.0.11:6443"


def test_namespaces_that_cannot_end() -> None:
    def make(name: str, deleted: str, kind: str = "NamespaceFinalizersRemaining") -> dict[str, object]:
        why = {
            "type": kind,
            "status": "True",
            "message": "Some content in the namespace has finalizers remaining: example.com/x",
        }
        return {"metadata": {"name": name, "deletionTimestamp": deleted}, "status": {"conditions": [why]}}

    old = "2025-12-31T23:50:00Z"
    items = [
        make("a", old),
        make("b", old),
        make("c", "2025-12-31T23:59:55Z"),
        make("d", old, "NamespaceContentRemaining"),
        make("e", ""),
    ]
    (part,) = reach.probe_namespaces(make_api({"/api/v1/namespaces": (200, {"items": items})}))
    assert part.kind == reach.ENDLESS
    assert part.trouble and str(part.trouble).startswith(
        "namespaces a, b cannot be deleted: Some content in the namespace has finalizers"
    )
