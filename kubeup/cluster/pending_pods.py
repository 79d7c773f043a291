"""Pods of anybody that do not start, for a reason that is the cluster's and not theirs: no scheduler sees them, a node makes no sandbox or mounts no
volume, or an image that is there is to be fetched again.

A pod that asks for more than there is, names an image that does not exist, or ends by itself, is its owner's matter, and none of these.
"""

from __future__ import annotations

import datetime
import re
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
_UNMOUNTED_S = 60
"""How long its volumes may take: the kubelet tries each again after some seconds, and a driver may have to attach it first."""
_FAILURES = (
    (("FailedCreatePodSandBox",), "makes no sandbox for", _UNMADE_S),
    (("FailedMount", "FailedAttachVolume"), "does not mount the volumes of", _UNMOUNTED_S),
)
"""(reasons of events, what they come to, how old a pod has to be), the last link of the chain first. Source: pkg/kubelet/events/event.go"""
_PREFIX = "Failed to create pod sandbox: "
_OF_OWNER = re.compile(
    r"\b(configmaps?|secrets?|persistentvolumeclaims?) \"[^\"]*\" not found|references non-existent|hostPath type check failed|not registered"
)
"""What a volume names that is not there. Source: pkg/volume/configmap, pkg/volume/secret, pkg/volume/host_path"""
_ROOT_CA = 'configmap "kube-root-ca.crt" not found'
"""This one the controller-manager owes to every namespace."""
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
_EVENT = {"involvedObject!": {"uid!": str}, "message!": str, "lastTimestamp!": str, "eventTime!": str}
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
    """Pods that have a node, and no sandbox there, for a reason that their node's kubelet gives."""
    unmade = []
    for pod in pods:
        ready = next((one for one in pod["status"]["conditions"] if one["type"] == "PodReadyToStartContainers"), None)
        is_made = ready is None or ready["status"] == "True"
        if pod["spec"]["nodeName"] and not is_made and _age_s(pod, now) > _UNMADE_S:
            unmade.append(pod)
    if not unmade:
        return []
    found = []
    for reasons, what, least_s in _FAILURES:
        said = _read_failures(api, reasons)
        failing: dict[str, list[Any]] = {}
        for pod in unmade:
            if pod["metadata"]["uid"] in said and _age_s(pod, now) > least_s:
                failing.setdefault(pod["spec"]["nodeName"], []).append(pod)
        for node, some in sorted(failing.items()):
            meta = some[0]["metadata"]
            trouble = Trouble(
                f"node {node} {what} {_count(some)}",
                said[meta["uid"]],
                f"on that machine: kb doctor; what it says of the pod: kubectl -n {meta['namespace']} describe pod {meta['name']}",
            )
            found.append(Pending(trouble, node))
        unmade = [pod for pod in unmade if pod["metadata"]["uid"] not in said]
    return found


def _read_failures(api: Api, reasons: Sequence[str]) -> dict[str, str]:
    """UID of a pod -> what is said last of its failures of these kinds, without what its owner can mend."""
    newest: dict[str, tuple[str, str]] = {}
    for reason in reasons:
        for row in api.list(path_of("Event"), field=f"involvedObject.kind=Pod,reason={reason}"):
            event = fit_what_does(row, _EVENT)
            at, uid = event["lastTimestamp"] or event["eventTime"], event["involvedObject"]["uid"]
            newest[uid] = max(newest.get(uid, ("", "")), (at, event["message"]))
    said = {uid: message.removeprefix(_PREFIX) for uid, (_, message) in newest.items()}
    return {uid: text for uid, text in said.items() if _ROOT_CA in text or not _OF_OWNER.search(text)}


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
