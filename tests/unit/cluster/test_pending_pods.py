"""kubeup/cluster/pending_pods.py: pods that do not start, for a reason that is the cluster's."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import pytest

from kubeup.cluster import pending_pods
from kubeup.cluster.api import Api, Identity
from kubeup.machine.http import HttpResponse, Tls
from tests.fake_host import FakeHost

SERVER = "https://10.0.0.11:6443"
OLD, NEW = "2025-12-31T23:59:00Z", "2025-12-31T23:59:55Z"
OLDEST = "2025-12-31T23:00:00Z"
OLDER, OLD_BUT_FRESH = "2025-12-31T23:58:00Z", "2025-12-31T23:59:10Z"
IMAGE = "registry.example.org/web:v1"


def make_pod(*conditions: tuple[str, str], created: str = OLD, node: str = "", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "creationTimestamp": created},
        "spec": {"nodeName": node, **spec},
        "status": {"phase": "Pending", "conditions": [{"type": kind, "status": status} for kind, status in conditions]},
    }


LEADS = {"acquireTime": "2025-12-31T22:00:00.000000Z", "renewTime": NEW}
LEASE = f"{SERVER}/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-scheduler"


def find(
    *pods: dict[str, Any],
    events: tuple[dict[str, Any], ...] = (),
    always: bool = False,
    lease: dict[str, str] = LEADS,
    flag: str = "--config=/etc/kubernetes/scheduler.yaml",
    running: tuple[dict[str, Any], ...] = (),
    unmade: tuple[dict[str, Any], ...] = (),
    failing: tuple[str, ...] = (),
    nodes: tuple[dict[str, Any], ...] = (),
) -> list[pending_pods.Pending]:
    host = FakeHost()
    host.urls[LEASE] = HttpResponse(200, json.dumps({"metadata": {"name": "kube-scheduler"}, "spec": lease}).encode())

    def answer(path: str, items: Any) -> None:
        host.urls[f"{SERVER}{path}"] = HttpResponse(200, json.dumps({"items": list(items)}).encode())

    answer("/api/v1/pods?" + urllib.parse.urlencode({"fieldSelector": "status.phase=Pending"}), pods)
    command = ["kube-scheduler", flag]
    scheduler = {
        "metadata": {"name": "kube-scheduler-cp1"},
        "spec": {"nodeName": "cp1", "containers": [{"name": "kube-scheduler", "command": command}]},
    }
    label = {"labelSelector": "component=kube-scheduler,tier=control-plane"}
    answer("/api/v1/namespaces/kube-system/pods?" + urllib.parse.urlencode(label), [scheduler])
    phase = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
    answer("/api/v1/pods?" + urllib.parse.urlencode(phase), running)
    answer("/api/v1/events?fieldSelector=reason%3DFailedCreate", unmade)
    told = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: now"}]
    for one in unmade:
        space, name = one["involvedObject"]["namespace"], one["involvedObject"]["name"]
        url = f"{SERVER}/apis/apps/v1/namespaces/{space}/replicasets/{name}"
        owner = {"metadata": {"name": name}, "status": {"conditions": told if name in failing else []}}
        host.urls[url] = HttpResponse(404 if name == "gone" else 200, json.dumps(owner).encode())
    for reason in ("FailedCreatePodSandBox", "FailedMount", "FailedAttachVolume", "Failed"):
        why = {"fieldSelector": f"involvedObject.kind=Pod,reason={reason}"}
        some = [one for one in events if one.get("reason", "FailedCreatePodSandBox") == reason]
        answer("/api/v1/events?" + urllib.parse.urlencode(why), some)
    answer(
        "/api/v1/nodes",
        [*nodes, {"metadata": {"name": "w1"}, "status": {"images": [{"names": [IMAGE]}]}}][: len(nodes) or 1],
    )
    return pending_pods.find_pending(Api(host, Identity(SERVER, Tls()), retry_s=0), pulls_always=always)


def test_a_pod_that_no_scheduler_has_seen() -> None:
    (told,) = find(make_pod(), make_pod(created=NEW))
    assert str(told.trouble) == (
        "no scheduler sees pod shop/web-1: none that runs serves the name default-scheduler, for which they ask"
    )
    (told,) = find(make_pod(), flag="--v=2", lease={**LEADS, "holderIdentity": "cp1_0b2c"})
    assert told.trouble.cause == "kube-scheduler of cp1 leads, and does not say anything of them"
    (told,) = find(make_pod(schedulerName="gpu"), make_pod(schedulerName="gpu"))
    assert "2 pods, such as shop/web-1" in told.trouble.what and "start the scheduler gpu" in told.trouble.remedy


@pytest.mark.parametrize(
    "pod",
    [
        make_pod(created=NEW),
        make_pod(("PodScheduled", "False")),
        make_pod(schedulingGates=[{"name": "quota"}]),
        make_pod(("PodScheduled", "True"), node="w1"),
        {**make_pod(), "metadata": {**make_pod()["metadata"], "deletionTimestamp": OLD}},
    ],
)
def test_what_is_seen_or_waits_on_purpose_is_no_trouble(pod: dict[str, Any]) -> None:
    assert find(pod) == []


@pytest.mark.parametrize(
    "lease", [{**LEADS, "acquireTime": NEW}, {**LEADS, "renewTime": OLD}], ids=["has just begun", "leads no more"]
)
def test_a_scheduler_that_takes_over_is_waited_for(lease: dict[str, str]) -> None:
    assert find(make_pod(), lease=lease) == []
    assert len(find(make_pod(schedulerName="gpu"), lease=lease)) == 1  # somebody else's lease is not known


def make_node(name: str, *taints: str, cordoned: bool = False) -> dict[str, Any]:
    """taints: `key=value:Effect`."""
    rows = []
    for taint in (*taints, *(["node.kubernetes.io/unschedulable:NoSchedule"] if cordoned else [])):
        key, _, effect = taint.rpartition(":")
        rows.append({"key": key.partition("=")[0], "value": key.partition("=")[2], "effect": effect})
    return {"metadata": {"name": name}, "spec": {"taints": rows, "unschedulable": cordoned}}


MAINTENANCE, OWN = "maintenance=yes:NoSchedule", "node-role.kubernetes.io/control-plane:NoSchedule"


def test_a_pod_that_every_node_keeps_away() -> None:
    pod = make_pod(("PodScheduled", "False"))
    nodes = (make_node("cp1", OWN, MAINTENANCE), make_node("w1", MAINTENANCE), make_node("w2", cordoned=True))
    (told,) = find(pod, nodes=nodes)
    assert str(told.trouble) == (
        "no node takes pod shop/web-1, which tolerates none of what keeps pods away: "
        f"{OWN} on cp1; {MAINTENANCE} on cp1, w1; cordoned on w2"
    )
    assert told.trouble.remedy.endswith("kubectl taint nodes cp1 w1 maintenance:NoSchedule-") and not told.is_as_made
    assert find(pod, nodes=(*nodes, make_node("w3"))) == []  # it asks for more than w3 has: its owner's matter
    assert find(make_pod(("PodScheduled", "False"), created=NEW), nodes=nodes) == []


@pytest.mark.parametrize(
    ("toleration", "is_told"),
    [
        ({"operator": "Exists"}, False),
        ({"key": "maintenance", "operator": "Exists"}, False),
        ({"key": "maintenance", "value": "yes"}, False),
        ({"key": "maintenance", "value": "no"}, True),
        ({"key": "maintenance", "operator": "Exists", "effect": "NoExecute"}, True),
    ],
)
def test_a_pod_that_tolerates_what_others_do_not(toleration: dict[str, str], is_told: bool) -> None:
    pod = make_pod(("PodScheduled", "False"), tolerations=[toleration])
    assert bool(find(pod, nodes=(make_node("w1", MAINTENANCE),))) == is_told


@pytest.mark.parametrize(("limit", "is_as_made"), [("3", False), ("110", True)])
def test_a_node_that_takes_no_more_pods(limit: str, is_as_made: bool) -> None:
    pod = make_pod(("PodScheduled", "False"))
    pod["status"]["conditions"][0]["message"] = "0/1 nodes are available: 1 Too many pods."
    node = {**make_node("w1"), "status": {"allocatable": {"pods": limit}}}
    some = tuple(make_pod(node="w1") for _ in range(int(limit)))
    (told,) = find(pod, nodes=(node,), running=some)
    assert str(told.trouble).startswith(
        f"w1 takes no more pods: there is no place for pod shop/web-1: maxPods in the kubelet's configuration is {limit} there"
    )
    assert told.is_as_made == is_as_made
    assert find(pod, nodes=(node,), running=some[1:]) == []


def test_a_cluster_without_workers_is_as_it_was_made() -> None:
    pod = make_pod(("PodScheduled", "False"))
    (told,) = find(pod, nodes=(make_node("cp1", OWN),))
    assert told.is_as_made and "join a worker" in told.trouble.remedy
    assert find(pod, nodes=(make_node("w1", "node.kubernetes.io/not-ready:NoSchedule"),)) == []  # told elsewhere
    (told,) = find(pod, nodes=(make_node("w1", cordoned=True),))
    assert told.trouble.remedy == "kubectl uncordon w1"


def test_a_node_that_makes_no_sandbox_is_named_with_the_newest_reason() -> None:
    stuck = make_pod(("PodScheduled", "True"), ("PodReadyToStartContainers", "False"), node="w1")
    events = [
        {
            "involvedObject": {"uid": "u1"},
            "message": "Failed to create pod sandbox: an older one",
            "lastTimestamp": "2025-12-31T23:59:10Z",
        },
        {
            "involvedObject": {"uid": "u1"},
            "message": "Failed to create pod sandbox: open /etc/resolv.conf",
            "lastTimestamp": "2025-12-31T23:59:40Z",
        },
    ]
    (told,) = find(stuck, events=tuple(events))
    assert (
        str(told.trouble) == "node w1 makes no sandbox for pod shop/web-1: open /etc/resolv.conf" and told.node == "w1"
    )
    assert find(stuck) == []  # it waits for a volume, or the kubelet is slow
    assert find({**stuck, "metadata": {**stuck["metadata"], "creationTimestamp": NEW}}, events=tuple(events)) == []


def say(uid: str, message: str, reason: str = "FailedMount") -> dict[str, Any]:
    return {"involvedObject": {"uid": uid}, "reason": reason, "message": message, "lastTimestamp": OLD}


def wait(uid: str, node: str, created: str = OLDER) -> dict[str, Any]:
    pod = make_pod(("PodScheduled", "True"), ("PodReadyToStartContainers", "False"), node=node, created=created)
    return {**pod, "metadata": {**pod["metadata"], "uid": uid, "name": f"web-{uid}"}}


def test_a_node_that_mounts_no_volumes_is_named_with_how_many_pods_wait() -> None:
    pods = [wait("a", "w1"), wait("b", "w1"), wait("c", "w2"), wait("d", "w2")]
    events = (
        say("a", 'MountVolume.SetUp failed for volume "cfg" : configmap "mine" not found'),
        say(
            "b",
            "MountVolume.SetUp failed for volume x: driver name nfs.csi not found in the list of registered CSI drivers",
        ),
        say("c", 'MountVolume.SetUp failed for volume "kube-api-access" : configmap "kube-root-ca.crt" not found'),
        say("d", "AttachVolume.Attach failed", "FailedAttachVolume"),
    )
    own = say("a", 'MountVolume.SetUp failed for volume "kube-proxy" : configmap "kube-proxy" not found')
    own["involvedObject"]["namespace"] = "kube-system"
    (proxy,) = find(wait("a", "w1"), events=(own,))
    assert 'configmap "kube-proxy" not found' in str(proxy.trouble), "the cluster is its owner"
    first, second = find(*pods, events=events)
    assert (
        str(first.trouble).startswith("node w1 does not mount the volumes of pod shop/web-b: MountVolume")
        and first.node == "w1"
    )
    assert str(second.trouble).startswith(
        "node w2 does not mount the volumes of 2 pods, such as shop/web-c: MountVolume"
    )
    assert "kubectl -n shop describe pod web-c" in second.trouble.remedy
    assert find(wait("b", "w1", OLD_BUT_FRESH), events=events) == [], "it has had no minute yet"


def test_a_pod_whose_volumes_were_late_is_named_for_its_sandbox_alone() -> None:
    events = (say("a", "timed out"), say("a", "no address is left", "FailedCreatePodSandBox"))
    (told,) = find(wait("a", "w1"), events=events)
    assert str(told.trouble) == "node w1 makes no sandbox for pod shop/web-a: no address is left"


def test_an_image_that_is_there_and_is_asked_for_all_the_same() -> None:
    container = {"name": "web", "image": IMAGE, "imagePullPolicy": "Always"}
    pod = make_pod(("PodReadyToStartContainers", "True"), node="w1", containers=[container])
    pod["status"]["containerStatuses"] = [{"name": "web", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]
    (told,) = find(pod, always=True)
    assert "cannot start with an image that is there" in told.trouble.what and "AlwaysPullImages" in told.trouble.cause
    assert find(pod) == []  # its owner wants it so
    container["image"] = "registry.example.org/web:v2"
    assert find(pod, always=True) == []


def fail_to_make(kind: str, space: str, name: str, at: str = NEW) -> dict[str, Any]:
    owner = {"kind": kind, "namespace": space, "name": name}
    return {"involvedObject": owner, "message": "(combined) Error creating: exceeded quota: q", "lastTimestamp": at}


def test_pods_that_are_not_made() -> None:
    events = [fail_to_make("ReplicaSet", "shop", name) for name in ("web-1", "web-2", "gone")]
    told = find(unmade=(*events, fail_to_make("ReplicaSet", "kube-system", "web-1")), failing=("web-1", "web-2"))
    assert [str(one.trouble) for one in told] == [
        "no pods are made for ReplicaSet shop/web-1 and 1 others there: exceeded quota: now"
    ]
    assert told[0].is_as_made
    (job,) = find(unmade=(fail_to_make("Job", "shop", "nightly"), fail_to_make("Job", "shop", "weekly", OLDEST)))
    assert str(job.trouble) == "no pods are made for Job shop/nightly: exceeded quota: q"


def test_a_node_that_makes_no_folders() -> None:
    pods = (wait("a", "w1"), wait("b", "w1"))
    events = (
        say("a", "error making pod data directories: mkdir /var/lib/kubelet/pods/a: read-only file system", "Failed"),
        say("b", "Failed to pull image", "Failed"),
    )
    (told,) = find(*pods, events=events)
    assert str(told.trouble).startswith(
        "node w1 makes no folders for pod shop/web-a: error making pod data directories"
    )
