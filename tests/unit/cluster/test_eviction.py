"""kubeup/cluster/eviction.py: nothing is evicted past a budget, and an admin's cordon stays."""

from __future__ import annotations

import json
from typing import Any, Optional

import pytest

from kubeup.cluster import eviction
from kubeup.cluster.api import ApiRefused
from kubeup.errors import ClusterError
from kubeup.machine.http import HttpResponse, Unreachable
from tests.fake_drain import BUDGET, NODE, DrainedNode, api_of, make_node, make_pod, refuse


def evict(host: DrainedNode, **more: Any) -> tuple[str, ...]:
    return tuple(pod.name for pod in eviction.evict_all(api_of(host), NODE, tell=lambda text: None, **more))


def test_pods_of_daemon_sets_static_and_finished_ones_stay() -> None:
    done = make_pod("done")
    done["status"]["phase"] = "Succeeded"
    host = make_node(make_pod("web"), make_pod("proxy", owner="DaemonSet"), make_pod("etcd", owner="static"), done)
    found = eviction.look(api_of(host), NODE)
    assert [pod.name for pod in found.moves] == ["web"]
    assert [pod.name for pod in found.stays] == ["proxy", "etcd"]
    assert evict(host) == ("web",)
    assert host.evicted == ["web"] and set(host.pods) == {"proxy", "etcd", "done"}


def test_what_it_would_meet_is_told_by_name_and_nothing_is_changed() -> None:
    host = make_node(
        make_pod("lonely", owner=""),
        make_pod("cache", volumes=[{"name": "tmp", "emptyDir": {}}]),
        make_pod("slow", terminationGracePeriodSeconds=600),
        make_pod("web"),
        answer=lambda name, at: refuse() if name == "web" else None,
    )
    told = eviction.look(api_of(host), NODE).describe()
    assert told == [
        "pods without a controller, which are not made anew elsewhere: app/lonely",
        "pods that lose what is in their emptyDir volumes: app/cache",
        "pods that may take long to stop: app/slow (600 s)",
        f"app/web may not be evicted now: {BUDGET}",
    ]
    assert host.tried and not host.evicted and not host.changes


def test_a_budget_that_gives_way_is_waited_for() -> None:
    host = make_node(
        make_pod("web"), make_pod("other"), answer=lambda name, at: refuse() if name == "web" and at < 40 else None
    )
    assert set(evict(host)) == {"web", "other"}
    assert host.evicted[0] == "other" and host.ticks > 40


def test_a_budget_that_never_gives_way_is_named() -> None:
    host = make_node(make_pod("web"), make_pod("other"), answer=lambda name, at: refuse() if name == "web" else None)
    with pytest.raises(ClusterError) as caught:
        evict(host, refused_s=20)
    assert caught.value.code == "pods-not-evicted"
    assert BUDGET in caught.value.cause and "app/web" in caught.value.what
    assert host.ticks < 25


def test_two_budgets_for_one_pod_are_a_refusal_too() -> None:
    words = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
    answer = HttpResponse(500, json.dumps({"kind": "Status", "message": words}).encode())
    host = make_node(make_pod("web"), answer=lambda name, at: answer)
    with pytest.raises(ClusterError) as caught:
        evict(host, refused_s=5)
    assert "more than one PodDisruptionBudget" in caught.value.cause


def test_a_server_that_is_away_for_a_moment_is_asked_again() -> None:
    def answer(name: str, at: float) -> Optional[HttpResponse]:
        if at < 5:
            raise Unreachable("https://10.0.0.11:6443", "refused", text="refused")
        return HttpResponse(503, b"{}") if at < 9 else None

    host = make_node(make_pod("web"), answer=answer)
    assert evict(host) == ("web",)
    assert not host.pods


def test_a_pod_that_does_not_stop_is_named_after_its_grace_period() -> None:
    host = make_node(make_pod("web", terminationGracePeriodSeconds=90), stops_s=9999)
    with pytest.raises(ClusterError) as caught:
        evict(host)
    assert caught.value.code == "pods-not-gone" and "app/web" in caught.value.cause
    assert 150 <= host.ticks < 155


def test_another_pod_of_the_same_name_is_asked_for_by_its_own_uid() -> None:
    host = make_node(make_pod("db-0", owner="StatefulSet"))

    def answer(name: str, at: float) -> Optional[HttpResponse]:
        if host.pods[name]["metadata"]["uid"] == "another":
            return None
        host.pods[name]["metadata"]["uid"] = "another"
        return HttpResponse(409, b'{"kind": "Status", "reason": "Conflict"}')

    host.answer = answer
    assert evict(host) == ("db-0", "db-0")
    assert host.evicted == ["db-0"] and not host.pods


def test_a_refused_right_ends_it() -> None:
    host = make_node(make_pod("web"), answer=lambda name, at: HttpResponse(403, b'{"reason": "Forbidden"}'))
    with pytest.raises(ApiRefused):
        evict(host)


# ---- cordon


def test_cordon_and_uncordon_leave_the_node_as_it_was() -> None:
    host = make_node()
    path = f"/api/v1/nodes/{NODE}"
    assert eviction.cordon(api_of(host), NODE)
    assert host.cluster.objects[path]["spec"]["unschedulable"] is True
    assert eviction.is_cordoned(api_of(host), NODE) == (True, True)
    assert eviction.cordon(api_of(host), NODE), "a run that was cut off goes on"
    assert eviction.uncordon(api_of(host), NODE)
    assert host.cluster.objects[path]["spec"] == {}
    assert "annotations" not in host.cluster.objects[path]["metadata"]
    assert not eviction.uncordon(api_of(host), NODE)


def test_the_cordon_of_the_admin_stays() -> None:
    host = make_node()
    host.cluster.objects[f"/api/v1/nodes/{NODE}"]["spec"]["unschedulable"] = True
    assert not eviction.cordon(api_of(host), NODE)
    assert not eviction.uncordon(api_of(host), NODE)
    assert eviction.is_cordoned(api_of(host), NODE) == (True, False)


def test_a_node_that_the_cluster_does_not_know() -> None:
    host = make_node()
    host.cluster.objects.clear()
    with pytest.raises(ClusterError) as caught:
        eviction.cordon(api_of(host), NODE)
    assert caught.value.code == "node-not-registered"


def test_a_later_cordon_of_the_admins_is_not_taken_for_that_of_a_run_that_was_cut_off() -> None:
    """kb cordoned and was killed; somebody uncordoned the node, and cordons it today."""
    host = make_node()
    api, path = api_of(host), f"/api/v1/nodes/{NODE}"
    assert eviction.cordon(api, NODE)
    for is_cordoned in (False, True):
        body = json.dumps({"spec": {"unschedulable": is_cordoned}}).encode()
        headers = {"Content-Type": "application/merge-patch+json"}
        assert (
            host.cluster.answer("PATCH", f"https://10.0.0.11:6443{path}?fieldManager=kubectl", body, headers).status
            == 200
        )
    assert not eviction.cordon(api, NODE)
    assert not eviction.uncordon(api, NODE)
    assert host.cluster.objects[path]["spec"]["unschedulable"] is True
