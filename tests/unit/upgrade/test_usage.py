"""kubeup/upgrade/usage.py: removed APIs over all API servers, budgets that allow nothing, webhooks that block."""

from __future__ import annotations

from typing import Any

import pytest

from kubeup.cluster.api import path_of
from kubeup.upgrade import usage
from kubeup.upgrade.objection import SAID, SKIPPABLE
from kubeup.upgrade.survey import API_SERVER, Asked, Seen
from kubeup.upgrade.usage import Budget, RemovedApi, Usage, Webhook
from tests.unit.upgrade.test_survey import SERVER, Cluster, api_of

OTHER = "https://10.0.0.12:6443"
FLOWS = 'group="flowcontrol.apiserver.k8s.io",{}resource="flowschemas",{}subresource="",version="v1beta3"'


def metrics(start: float, *, requests: int) -> bytes:
    return f"""# HELP apiserver_requested_deprecated_apis [STABLE] Gauge of deprecated APIs
apiserver_requested_deprecated_apis{{{FLOWS.format("", 'removed_release="1.36",')}}} 1
apiserver_requested_deprecated_apis{{group="",removed_release="",resource="componentstatuses",subresource="",version="v1"}} 1
apiserver_request_total{{code="200",component="apiserver",dry_run="",{FLOWS.format("", 'scope="cluster",')},verb="LIST"}} {requests}
apiserver_request_total{{code="200",component="apiserver",dry_run="",{FLOWS.format("", 'scope="cluster",')},verb="WATCH"}} 1
process_start_time_seconds {start}
""".encode()


def test_removed_apis_are_summed_over_all_servers() -> None:
    found = usage.sum_removed_apis(
        [
            ("10.0.0.11:6443", metrics(1.7e9, requests=3).decode()),
            ("10.0.0.12:6443", metrics(1.6e9, requests=4).decode()),
        ]
    )
    (one,) = found
    assert (one.name, one.removed, one.requests) == ("flowschemas.flowcontrol.apiserver.k8s.io/v1beta3", "1.36", 9)
    assert one.servers == ("10.0.0.11:6443", "10.0.0.12:6443")
    assert one.since is not None and one.since.timestamp() == 1.6e9


def test_metrics_of_another_kind_are_no_reason_to_stop() -> None:
    assert usage.sum_removed_apis([("a", "nothing\napiserver_request_total{} NaN\n")]) == ()


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster()
    for kind in (
        "PodDisruptionBudget",
        "ValidatingWebhookConfiguration",
        "MutatingWebhookConfiguration",
        "CustomResourceDefinition",
    ):
        found.answers_of[f"{SERVER}{path_of(kind)}"] = {"kind": "List", "items": []}
    found.answers_of[f"{SERVER}/metrics"] = metrics(1.7e9, requests=3)
    return found


def asked(cluster: Cluster, *servers: str) -> list[Asked]:
    api = api_of(cluster)
    return [
        Asked(api.with_server(one), one[8:], Seen(API_SERVER, "v1.35.6", place=one[8:])) for one in servers or (SERVER,)
    ]


def test_a_server_that_is_silent_is_said(cluster: Cluster) -> None:
    found = usage.read_usage(api_of(cluster), asked(cluster, SERVER, OTHER))
    assert [one.requests for one in found.removed_apis] == [4]
    assert found.unread == ("removed APIs that clients of 10.0.0.12:6443 use: its metrics could not be read",)


def budget(name: str, *, allowed: int, expected: int = 2) -> dict[str, Any]:
    status = {"disruptionsAllowed": allowed, "expectedPods": expected, "currentHealthy": 2, "desiredHealthy": 2}
    selector = {
        "matchLabels": {"app": "web"},
        "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}],
    }
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": {"selector": selector}, "status": status}


def test_budgets_that_allow_nothing_and_where_their_pods_run(cluster: Cluster) -> None:
    budgets = [budget("db", allowed=0), budget("web", allowed=1), budget("gone", allowed=0, expected=0)]
    cluster.answers_of[f"{SERVER}{path_of('PodDisruptionBudget')}"] = {"kind": "List", "items": budgets}
    pods = [{"metadata": {"name": name}, "spec": {"nodeName": name}} for name in ("w2", "w1")]
    query = "labelSelector=app%3Dweb%2Ctier+in+%28a%2Cb%29"
    cluster.answers_of[f"{SERVER}/api/v1/namespaces/shop/pods?{query}"] = {"kind": "PodList", "items": pods}
    found = usage.read_usage(api_of(cluster), asked(cluster))
    assert found.budgets == (Budget("shop/db", ("w1", "w2"), "2 of its 2 pods are healthy, and it wants 2 to stay"),)


def hook(name: str, *, policy: str = "Fail", service: str = "guard", **rule: Any) -> dict[str, Any]:
    rules = [{"apiGroups": [""], "resources": ["pods"], "operations": ["CREATE"], **rule}]
    client = {"service": {"namespace": "guard", "name": service}} if service else {"url": "https://elsewhere"}
    return {"name": name, "failurePolicy": policy, "clientConfig": client, "rules": rules}


def test_webhooks_and_where_their_pods_run(cluster: Cluster) -> None:
    hooks = [
        hook("pods.guard"),
        hook("lax.guard", policy="Ignore"),
        hook("far.guard", service=""),
        hook("maps.guard", resources=["configmaps"]),
    ]
    config = {"metadata": {"name": "guard"}, "webhooks": hooks}
    cluster.answers_of[f"{SERVER}{path_of('ValidatingWebhookConfiguration')}"] = {"kind": "List", "items": [config]}
    label = "labelSelector=kubernetes.io%2Fservice-name%3Dguard"
    endpoints = [
        {"addresses": ["10.244.1.2"], "nodeName": "w1", "conditions": {"ready": True}},
        {"addresses": ["10.244.1.3"], "nodeName": "w2", "conditions": {"ready": False}},
    ]
    slices = {"kind": "List", "items": [{"metadata": {"name": "guard-x"}, "endpoints": endpoints}]}
    cluster.answers_of[f"{SERVER}{path_of('EndpointSlice', namespace='guard')}?{label}"] = slices
    found = usage.read_usage(api_of(cluster), asked(cluster))
    name = "validatingwebhookconfiguration/guard ({})"
    assert found.webhooks == (
        Webhook(name.format("pods.guard"), "guard/guard", ("w1",), holds_pods=True),
        Webhook(name.format("maps.guard"), "guard/guard", ("w1",), holds_pods=False),
    )


def test_stored_versions_of_custom_resources(cluster: Cluster) -> None:
    versions = [{"name": "v1", "storage": True}, {"name": "v1beta1", "storage": False}]
    crd = {
        "metadata": {"name": "wells.example.com"},
        "spec": {"versions": versions},
        "status": {"storedVersions": ["v1beta1", "v1"]},
    }
    cluster.answers_of[f"{SERVER}{path_of('CustomResourceDefinition')}"] = {"kind": "List", "items": [crd]}
    found = usage.read_usage(api_of(cluster), asked(cluster))
    assert found.stored_versions == ("wells.example.com has objects stored as v1beta1, and stores v1 now",)


def test_what_may_not_be_listed_is_said(cluster: Cluster) -> None:
    cluster.answers_of[f"{SERVER}{path_of('PodDisruptionBudget')}"] = (403, {"kind": "Status", "message": "no"})
    found = usage.read_usage(api_of(cluster), asked(cluster))
    assert len(found.unread) == 1 and found.unread[0].startswith("poddisruptionbudgets: ")


# ---- what is objected to

POD_HOOK = Webhook("validatingwebhookconfiguration/guard (g)", "guard/guard", ("w1",), holds_pods=True)


@pytest.mark.parametrize(
    ("used", "drains", "wanted"),
    [
        pytest.param(Usage(), True, [], id="nothing"),
        pytest.param(
            Usage(removed_apis=(RemovedApi("x/v1", "1.36", 1, ("a",)), RemovedApi("y/v1", "1.37", 1, ("a",)))),
            False,
            [("removed-api-in-use", SKIPPABLE, "")],
            id="what goes with this version alone",
        ),
        pytest.param(Usage(budgets=(Budget("a/b", ("w1", "w2"), "2 of 2"),)), False, [], id="a patch drains nothing"),
        pytest.param(
            Usage(budgets=(Budget("a/b", ("w1", "w2"), "2 of 2"),)),
            True,
            [("pod-disruption-budget", SKIPPABLE, "w1"), ("pod-disruption-budget", SKIPPABLE, "w2")],
            id="a budget for each node",
        ),
        pytest.param(
            Usage(webhooks=(POD_HOOK,)), True, [("webhook-on-one-node", SKIPPABLE, "w1")], id="a webhook on one node"
        ),
        pytest.param(Usage(webhooks=(POD_HOOK,)), False, [], id="a webhook, no drain"),
        pytest.param(
            Usage(webhooks=(Webhook("x/y (z)", "a/b", ("w1", "w2"), True),)), True, [], id="a webhook on two nodes"
        ),
        pytest.param(
            Usage(webhooks=(Webhook("x/y (z)", "a/b", ("w1",), False),)),
            True,
            [("webhook-on-one-node", SAID, "w1")],
            id="a webhook that is not asked about pods",
        ),
        pytest.param(
            Usage(webhooks=(Webhook("x/y (z)", "a/b", (), False),)), False, [("webhook-down", SKIPPABLE, "")], id="down"
        ),
        pytest.param(
            Usage(stored_versions=("x",), unread=("y",)),
            False,
            [("stored-version", SAID, ""), ("not-looked-at", SAID, "")],
            id="what is only told",
        ),
    ],
)
def test_judge(used: Usage, drains: bool, wanted: list[tuple[str, str, str]]) -> None:
    found = list(usage.judge(used, "v1.36.3", drains=drains))
    assert [(one.name, one.weighs, one.node) for one in found] == wanted
