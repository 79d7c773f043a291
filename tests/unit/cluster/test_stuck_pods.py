"""kubeup/cluster/stuck_pods.py: pods that will not run by themselves."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import pytest

from kubeup.cluster import stuck_pods
from kubeup.cluster.api import Api, Identity
from kubeup.machine.http import HttpResponse, Tls
from tests.fake_host import FakeHost

SERVER = "https://10.0.0.11:6443"


def find(*pods: dict[str, Any], log: bytes = b"") -> list[str]:
    host = FakeHost()
    body = json.dumps({"items": list(pods)}).encode()
    host.urls[f"{SERVER}/api/v1/namespaces/kube-system/pods"] = HttpResponse(200, body)
    why = urllib.parse.urlencode({"fieldSelector": "involvedObject.name=coredns-1,reason=Unhealthy"})
    said = {"items": [{"message": "Readiness probe failed: HTTP 503"}]}
    host.urls[f"{SERVER}/api/v1/namespaces/kube-system/events?{why}"] = HttpResponse(200, json.dumps(said).encode())
    if log:
        url = f"{SERVER}/api/v1/namespaces/kube-system/pods/coredns-1/log?container=coredns&previous=true&tailLines=5"
        host.urls[url] = HttpResponse(200, log)
    api = Api(host, Identity(SERVER, Tls()), retry_s=0)
    return [f"{trouble}. {trouble.remedy}" for trouble in stuck_pods.find_stuck(api, "kube-system")]


def make_pod(created: str = "2025-12-31T23:00:00Z", **status: Any) -> dict[str, Any]:
    meta = {"name": "coredns-1", "namespace": "kube-system", "creationTimestamp": created}
    return {"metadata": meta, "spec": {"nodeName": "w1"}, "status": status}


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"name": "coredns", "state": {"waiting": {"reason": reason, "message": message}}, **more}


def test_a_container_that_does_not_stay_up() -> None:
    ended = {"terminated": {"reason": "Error", "exitCode": 1}}
    pod = make_pod(containerStatuses=[waiting("CrashLoopBackOff", restartCount=7, lastState=ended)])
    assert find(pod) == [
        "container coredns of pod kube-system/coredns-1 on node w1 does not run (CrashLoopBackOff): "
        "it has ended 7 times, last with exit code 1 (Error). kubectl -n kube-system logs coredns-1 -c coredns --previous"
    ]


def test_a_container_between_two_starts() -> None:
    def end(second: int, code: int = 1) -> dict[str, Any]:
        return {"terminated": {"reason": "Error", "exitCode": code, "finishedAt": f"2025-12-31T23:59:{second:02d}Z"}}

    def tell(last: dict[str, Any], before: dict[str, Any]) -> list[str]:
        return find(
            make_pod(containerStatuses=[{"name": "coredns", "restartCount": 2, "state": last, "lastState": before}])
        )

    (told,) = tell(end(55), end(35))
    assert "does not run (it ends again and again): it has ended 2 times, last with exit code 1 (Error)" in told
    assert (
        tell(end(55), {})
        == tell(end(55, 0), end(35))
        == tell({"running": {"startedAt": "2025-12-31T23:59:56Z"}}, end(55))
        == []
    )


def test_what_it_said_last_is_told() -> None:
    pod = make_pod(containerStatuses=[waiting("CrashLoopBackOff", restartCount=7)])
    (told,) = find(pod, log=b"one\n[FATAL] plugin/loop: Loop detected\n\n")
    assert "; its last word: [FATAL] plugin/loop: Loop detected. kubectl" in told


@pytest.mark.parametrize("where", ["containerStatuses", "initContainerStatuses"])
def test_an_image_that_is_not_to_be_had(where: str) -> None:
    status: dict[str, Any] = {where: [waiting("ImagePullBackOff", "Back-off pulling image")]}
    (told,) = find(make_pod(**status))
    assert "(ImagePullBackOff): Back-off pulling image. kubectl -n kube-system describe pod coredns-1" in told


def test_a_pod_that_no_node_takes_after_a_minute() -> None:
    lost = [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]
    (told,) = find(make_pod(conditions=lost))
    assert told.startswith("no node takes pod kube-system/coredns-1: 0/3 nodes are available. ")
    assert find(make_pod("2025-12-31T23:59:30Z", conditions=lost)) == []


def test_what_is_on_its_way_is_not_stuck() -> None:
    ends = make_pod(containerStatuses=[waiting("CrashLoopBackOff")])
    ends["metadata"]["deletionTimestamp"] = "2025-12-31T23:59:00Z"
    starts = make_pod(containerStatuses=[waiting("ContainerCreating")])
    runs = make_pod(containerStatuses=[{"name": "coredns", "state": {"running": {}}}])
    assert find(ends, starts, runs, {}) == []


def test_a_control_plane_that_lacks_what_the_others_run() -> None:
    def plane_pod(component: str, node: str) -> dict[str, Any]:
        meta = {"name": f"{component}-{node}", "namespace": "kube-system", "labels": {"component": component}}
        return {"metadata": meta, "spec": {"nodeName": node}}

    host = FakeHost()
    pods = [plane_pod("kube-apiserver", "cp1"), plane_pod("kube-apiserver", "cp2"), plane_pod("kube-scheduler", "cp1")]
    url = f"{SERVER}/api/v1/namespaces/kube-system/pods?labelSelector=tier%3Dcontrol-plane"
    host.urls[url] = HttpResponse(200, json.dumps({"items": pods}).encode())
    api = Api(host, Identity(SERVER, Tls()), retry_s=0)
    (told,) = stuck_pods.find_missing(api, "kube-system", nodes=["cp1", "cp2"])
    assert str(told).startswith("control plane cp2 runs no kube-scheduler: ") and "cp1 has one" in str(told)
    assert stuck_pods.find_missing(api, "kube-system", nodes=["cp1"]) == []


def test_a_pod_that_runs_and_is_not_ready() -> None:
    ready = {
        "type": "Ready",
        "status": "False",
        "reason": "ContainersNotReady",
        "lastTransitionTime": "2025-12-31T23:50:00Z",
    }
    running = {"name": "coredns", "state": {"running": {"startedAt": "2025-12-31T23:49:00Z"}}}
    (told,) = find(make_pod(conditions=[ready], containerStatuses=[running]))
    assert told.startswith(
        "pod kube-system/coredns-1 on node w1 runs, and is not Ready: Readiness probe failed: HTTP 503. kubectl -n kube-system logs"
    )
    assert (
        find(
            make_pod(conditions=[{**ready, "lastTransitionTime": "2025-12-31T23:59:30Z"}], containerStatuses=[running])
        )
        == []
    )
    assert find(make_pod(conditions=[{**ready, "reason": "PodCompleted"}], containerStatuses=[running])) == []
    assert find(make_pod(conditions=[ready], containerStatuses=[waiting("PodInitializing")])) == []
