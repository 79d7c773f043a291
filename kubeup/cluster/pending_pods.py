"""Pods of anybody that do not start, for a reason that is the cluster's and not theirs: no scheduler sees them, a node makes no sandbox, or an image that
is there is to be fetched again.

A pod that asks for more than there is, names an image that does not exist, or ends by itself, is its owner's matter, and none of these.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Optional

from kubeup import moments
from kubeup.cluster.api import Api, Object, path_of
from kubeup.frozen_values import frozen
from kubeup.shapes import fit_what_does
from kubeup.trouble import Trouble

_UNSEEN_S = 10
"""A scheduler that runs says within moments what it makes of a pod."""
_UNMADE_S = 20
"""How long the first sandbox of a pod may take."""
_ASKED = 5
"""For how many nodes the event is read that says why."""
_DEFAULT = "default-scheduler"
_SHAPE = {
    "metadata!": {"name!": str, "namespace!": str, "uid!": str, "creationTimestamp!": str, "deletionTimestamp!": str},
    "spec!": {
        "nodeName!": str,
        "schedulerName!": str,
        "schedulingGates!": [{"name!": str}],
        "containers!": [{"name!": str, "image!": str, "imagePullPolicy!": str}],
    },
    "status!": {
        "conditions!": [{"type!": str, "status!": str}],
        "containerStatuses!": [{"name!": str, "state!": {"waiting!": {"reason!": str, "message!": str}}}],
    },
}
_EVENT = {"message!": str, "lastTimestamp!": str, "eventTime!": str}
_NODE = {"metadata!": {"name!": str}, "status!": {"images!": [{"names!": [str]}]}}


@frozen
class Pending:
    """node: the one whose trouble it is; "" if it is the whole cluster's."""

    trouble: Trouble
    node: str = ""


def find_pending(api: Api, *, pulls_always: bool = False) -> list[Pending]:
    """pulls_always: the API server has every image asked for at its registry (AlwaysPullImages). Ages are by this machine's clock. Raises
    ApiRefused, Unreachable."""
    now = api.host.now()
    pods = [fit_what_does(pod, _SHAPE) for pod in api.list(path_of("Pod"), field="status.phase=Pending")]
    living = [pod for pod in pods if not pod["metadata"]["deletionTimestamp"]]
    pulled = _find_pulled(api, living) if pulls_always else []
    return [*_find_unseen(living, now), *_find_unmade(api, living, now=now), *pulled]


def _find_unseen(pods: Sequence[Any], now: datetime.datetime) -> list[Pending]:
    """Pods of which no scheduler has said anything: none serves the name that they ask for."""
    unseen: dict[str, list[Any]] = {}
    for pod in pods:
        spec = pod["spec"]
        is_told = any(one["type"] == "PodScheduled" for one in pod["status"]["conditions"])
        if not (spec["nodeName"] or spec["schedulingGates"] or is_told) and _age_s(pod, now) > _UNSEEN_S:
            unseen.setdefault(spec["schedulerName"] or _DEFAULT, []).append(pod)
    return [
        Pending(
            Trouble(
                f"no scheduler sees {_count(some)}",
                f"none that runs serves the name {name}, for which they ask",
                "see the profiles of the schedulers: the file of --config in /etc/kubernetes/manifests/kube-scheduler.yaml"
                if name == _DEFAULT
                else f"start the scheduler {name}, or have the pods ask for another one in spec.schedulerName",
            )
        )
        for name, some in sorted(unseen.items())
    ]


def _find_unmade(api: Api, pods: Sequence[Any], *, now: datetime.datetime) -> list[Pending]:
    """Pods that have a node, and no sandbox there."""
    unmade: dict[str, list[Any]] = {}
    for pod in pods:
        ready = next((one for one in pod["status"]["conditions"] if one["type"] == "PodReadyToStartContainers"), None)
        is_made = ready is None or ready["status"] == "True"
        if pod["spec"]["nodeName"] and not is_made and _age_s(pod, now) > _UNMADE_S:
            unmade.setdefault(pod["spec"]["nodeName"], []).append(pod)
    found = []
    for node, some in sorted(unmade.items())[:_ASKED]:
        why = _read_failure(api, some[0])
        if why:
            trouble = Trouble(f"node {node} makes no sandbox for {_count(some)}", why, "on that machine: kb doctor")
            found.append(Pending(trouble, node))
    return found


def _read_failure(api: Api, pod: Any) -> str:
    """What the kubelet says of the last sandbox that it could not make; "" if it says nothing."""
    meta = pod["metadata"]
    field = f"involvedObject.uid={meta['uid']},reason=FailedCreatePodSandBox"
    events = [
        fit_what_does(one, _EVENT) for one in api.list(path_of("Event", namespace=meta["namespace"]), field=field)
    ]
    newest = max(events, key=lambda one: one["lastTimestamp"] or one["eventTime"], default=None)
    return newest["message"].removeprefix("Failed to create pod sandbox: ") if newest else ""


def _find_pulled(api: Api, pods: Sequence[Any]) -> list[Pending]:
    """Pods whose image cannot be fetched, though their node has it."""
    failing = [(pod, one) for pod in pods for one in pod["spec"]["containers"] if _fails_to_pull(pod, one)]
    if not failing:
        return []
    nodes = [fit_what_does(node, _NODE) for node in api.list(path_of("Node"))]
    has = {
        node["metadata"]["name"]: {name for one in node["status"]["images"] for name in one["names"]} for node in nodes
    }
    kept = [(pod, one) for pod, one in failing if _is_there(one["image"], has.get(pod["spec"]["nodeName"], set()))]
    if not kept:
        return []
    pod, first = kept[0]
    node = pod["spec"]["nodeName"]
    cause = (
        f"node {node} has {first['image']}, and asks its registry all the same, in vain: imagePullPolicy is Always, which the API server's "
        "admission plugin AlwaysPullImages makes of every other one"
    )
    remedy = (
        f"have the registry answer: crictl pull {first['image']} on node {node}; or take AlwaysPullImages out of --enable-admission-plugins "
        "in /etc/kubernetes/manifests/kube-apiserver.yaml, and make the pods anew"
    )
    several = [one for one, _ in kept]
    return [Pending(Trouble(f"{_count(several)} cannot start with an image that is there", cause, remedy))]


def _fails_to_pull(pod: Any, container: Any) -> bool:
    waiting = {one["name"]: one["state"]["waiting"]["reason"] for one in pod["status"]["containerStatuses"]}
    is_failing = waiting.get(container["name"], "") in ("ErrImagePull", "ImagePullBackOff")
    return is_failing and container["imagePullPolicy"] == "Always"


def _is_there(image: str, names: set[str]) -> bool:
    return any(name == image or name.endswith(f"/{image}") for name in names)


def _age_s(pod: Any, now: datetime.datetime) -> float:
    created: Optional[datetime.datetime] = moments.find(pod["metadata"]["creationTimestamp"])
    return (now - created).total_seconds() if created is not None else 0.0


def _count(pods: Sequence[Object]) -> str:
    """`pod default/web-1`, or `3 pods, such as default/web-1`."""
    meta = pods[0]["metadata"]
    name = f"{meta['namespace']}/{meta['name']}"
    return f"pod {name}" if len(pods) == 1 else f"{len(pods)} pods, such as {name}"
