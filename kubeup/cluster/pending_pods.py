"""Pods of anybody that do not start, for a reason that is the cluster's and not theirs: no scheduler sees them, every node keeps them away, a node makes
no sandbox or mounts no volume, or an image that is there is to be fetched again.

A pod that asks for more than there is, names an image that does not exist, or ends by itself, is its owner's matter, and none of these.
"""

from __future__ import annotations

import collections
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from kubeup import moments
from kubeup.cluster import lease, objects
from kubeup.cluster.api import Api, Object, path_of
from kubeup.frozen_values import frozen
from kubeup.shapes import fit_what_does
from kubeup.trouble import Trouble
from kubeup.yaml_files import commands_of_pod, flags_of

_UNSEEN_S = 10
"""A scheduler that runs says within moments what it makes of a pod."""
_UNMADE_S = 20
"""How long the first sandbox of a pod may take."""
_UNMOUNTED_S = 60
"""How long its volumes may take: the kubelet tries each again after some seconds, and a driver may have to attach it first."""
_FAILURES = (
    (("FailedCreatePodSandBox",), "makes no sandbox for", _UNMADE_S),
    (("FailedMount", "FailedAttachVolume"), "does not mount the volumes of", _UNMOUNTED_S),
    (("Failed",), "makes no folders for", _UNMADE_S),
)
"""(reasons of events, what they come to, how old a pod has to be), the last link of the chain first. Source: pkg/kubelet/events/event.go"""
_PREFIX = "Failed to create pod sandbox: "
_NO_FOLDERS = "error making pod data directories"
"""Source: pkg/kubelet/kubelet.go"""
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
        "tolerations!": [{"key!": str, "operator!": str, "value!": str, "effect!": str}],
        "containers!": [{"name!": str, "image!": str, "imagePullPolicy!": str}],
    },
    "status!": {
        "conditions!": [{"type!": str, "status!": str, "message!": str}],
        "containerStatuses!": [{"name!": str, "state!": {"waiting!": {"reason!": str, "message!": str}}}],
    },
}
_EVENT = {
    "involvedObject!": {"uid!": str, "kind!": str, "namespace!": str, "name!": str},
    "message!": str,
    "lastTimestamp!": str,
    "eventTime!": str,
}
_NODE = {
    "metadata!": {"name!": str},
    "spec!": {"unschedulable!": bool, "taints!": [{"key!": str, "value!": str, "effect!": str}]},
    "status!": {"images!": [{"names!": [str]}]},
}
_CORDON = "node.kubernetes.io/unschedulable"
_OWN_TAINTS = "node.kubernetes.io/"
"""Taints that follow from a node's conditions, which other checks tell. Source: well-known taints"""


@frozen
class Pending:
    """node: the one whose trouble it is; "" if it is the whole cluster's. is_as_made: it may be meant, or is like that until somebody changes it."""

    trouble: Trouble
    node: str = ""
    is_as_made: bool = False


def find_pending(api: Api, *, pulls_always: bool = False) -> list[Pending]:
    """pulls_always: the API server has every image asked for at its registry (AlwaysPullImages). Ages are by this machine's clock. Raises
    ApiRefused, Unreachable."""
    now = api.host.now()
    pods = [fit_what_does(pod, _SHAPE) for pod in api.list(path_of("Pod"), field="status.phase=Pending")]
    living = [pod for pod in pods if not pod["metadata"]["deletionTimestamp"]]
    pulled = _find_pulled(api, living) if pulls_always else []
    placeless = _find_placeless(api, living, now=now)
    return [
        *_find_unmadeable(api, now),
        *_find_unseen(api, living, now=now),
        *placeless,
        *_find_full(api, living, now=now),
        *_find_unmade(api, living, now=now),
        *pulled,
    ]


def _find_unmadeable(api: Api, now: datetime.datetime) -> list[Pending]:
    """Pods that their controllers cannot make: what bars them may be meant, so it is only told. Those of kube-system are a check of their own."""
    newest: dict[tuple[str, str, str], tuple[str, str]] = {}
    for row in api.list(path_of("Event"), field="reason=FailedCreate"):
        event = fit_what_does(row, _EVENT)
        owner = event["involvedObject"]
        key = (owner["namespace"], owner["kind"], owner["name"])
        newest[key] = max(newest.get(key, ("", "")), (event["lastTimestamp"] or event["eventTime"], event["message"]))
    by_space: dict[str, list[tuple[str, str]]] = {}
    for (space, kind, name), (at, message) in sorted(newest.items(), key=lambda pair: pair[1], reverse=True)[
        :_MOST_OWNERS
    ]:
        why = _read_failure(api, space, name=name) if kind == "ReplicaSet" else _say_recent(message, at, now=now)
        if why and space != objects.SYSTEM:
            by_space.setdefault(space, []).append((f"{kind} {space}/{name}", why))
    return [
        Pending(
            Trouble(
                f"no pods are made for {some[0][0]}" + (f" and {len(some) - 1} others there" if len(some) > 1 else ""),
                some[0][1],
                f"see what bars them: kubectl -n {space} get resourcequota,limitrange; kubectl get namespace {space} --show-labels",
            ),
            is_as_made=True,
        )
        for space, some in by_space.items()
    ]


def _read_failure(api: Api, space: str, *, name: str) -> str:
    """What a ReplicaSet says of pods that it cannot make now; "" if it makes them, or is gone. Source: pkg/controller/replicaset, ReplicaFailure"""
    found = fit_what_does(api.get(path_of("ReplicaSet", name, namespace=space)) or {}, _OWNER)
    failing = [
        one for one in found["status"]["conditions"] if (one["type"], one["status"]) == ("ReplicaFailure", "True")
    ]
    return str(failing[0]["message"]) if failing else ""


def _say_recent(message: str, at: str, *, now: datetime.datetime) -> str:
    since = moments.find(at)
    is_recent = since is not None and (now - since).total_seconds() < _RECENT_S
    return (message.partition("Error creating: ")[2] or message) if is_recent else ""


_OWNER = {"status!": {"conditions!": [{"type!": str, "status!": str, "message!": str}]}}
_MOST_OWNERS = 20
_RECENT_S = 120


def _find_unseen(api: Api, pods: Sequence[Any], *, now: datetime.datetime) -> list[Pending]:
    """Pods of which no scheduler has said anything: none serves the name that they ask for."""
    unseen: dict[str, list[Any]] = {}
    for pod in pods:
        spec = pod["spec"]
        is_told = any(one["type"] == "PodScheduled" for one in pod["status"]["conditions"])
        if not (spec["nodeName"] or spec["schedulingGates"] or is_told) and _age_s(pod, now) > _UNSEEN_S:
            unseen.setdefault(spec["schedulerName"] or _DEFAULT, []).append(pod)
    if _DEFAULT in unseen and not _has_led_long(api, now):
        del unseen[_DEFAULT]  # none leads, which is the check of the leaders' to tell, or one has just begun
    return [Pending(_describe_unseen(api, name, some)) for name, some in sorted(unseen.items())]


def _describe_unseen(api: Api, name: str, pods: Sequence[Any]) -> Trouble:  # noqa: PLR0917
    what, cause = f"no scheduler sees {_count(pods)}", f"none that runs serves the name {name}, for which they ask"
    if name != _DEFAULT:
        return Trouble(
            what, cause, f"start the scheduler {name}, or have the pods ask for another one in spec.schedulerName"
        )
    label = "component=kube-scheduler,tier=control-plane"
    told = [
        flags_of(words)
        for pod in api.list(path_of("Pod", namespace=objects.SYSTEM), label=label)
        for words in commands_of_pod(pod)
    ]
    if not told or any(flags.get("config") for flags in told):
        return Trouble(
            what,
            cause,
            "see the profiles of the schedulers: the file of --config in /etc/kubernetes/manifests/kube-scheduler.yaml",
        )
    leader = _read_lease(api)["holderIdentity"].partition("_")[0] or "?"
    return Trouble(
        what,
        f"kube-scheduler of {leader} leads, and does not say anything of them",
        f"on {leader}: crictl logs $(crictl ps -q --name kube-scheduler)",
    )


def _has_led_long(api: Api, now: datetime.datetime) -> bool:
    """Whether a kube-scheduler has led for some time, and still does."""
    found = _read_lease(api)
    acquired, renewed = moments.find(found["acquireTime"]), moments.find(found["renewTime"])
    if acquired is None or renewed is None:
        return True
    return (now - acquired).total_seconds() > _UNSEEN_S and (now - renewed).total_seconds() < lease.DURATION_S


def _read_lease(api: Api) -> Any:
    found = api.get(path_of("Lease", "kube-scheduler", namespace=objects.SYSTEM)) or {}
    return fit_what_does(found, _LEASE)["spec"]


_LEASE = {"spec!": {"holderIdentity!": str, "acquireTime!": str, "renewTime!": str}}


def _find_placeless(api: Api, pods: Sequence[Any], *, now: datetime.datetime) -> list[Pending]:
    """Pods that every node keeps away, by a taint that they do not tolerate or a cordon: what else they ask for does not matter then."""
    told = [pod for pod in pods if _is_refused(pod) and _age_s(pod, now) > _UNSEEN_S]
    nodes = [fit_what_does(node, _NODE) for node in api.list(path_of("Node"))] if told else []
    placeless: dict[tuple[tuple[str, tuple[str, ...]], ...], list[Any]] = {}
    for pod in told:
        barred = {node["metadata"]["name"]: _find_bars(node, pod["spec"]["tolerations"]) for node in nodes}
        if all(barred.values()) and not all(bar.startswith(_OWN_TAINTS) for bars in barred.values() for bar in bars):
            placeless.setdefault(tuple((name, tuple(bars)) for name, bars in barred.items()), []).append(pod)
    return [_describe_placeless(dict(barred), some) for barred, some in placeless.items()]


def _find_full(api: Api, pods: Sequence[Any], *, now: datetime.datetime) -> list[Pending]:
    """Nodes that take no more pods, however small: each has as many as its kubelet takes. That the pods ask for more than there is, is their owner's
    matter."""
    crowded = [pod for pod in pods if _is_refused(pod) and _TOO_MANY in _why(pod) and _age_s(pod, now) > _UNSEEN_S]
    if not crowded:
        return []
    limits = {
        str(node["metadata"]["name"]): int(told)
        for node in api.list(path_of("Node"))
        if (told := str(((node.get("status") or {}).get("allocatable") or {}).get("pods") or "")).isdigit()
    }
    running = [
        fit_what_does(pod, _SHAPE)
        for pod in api.list(path_of("Pod"), field="status.phase!=Succeeded,status.phase!=Failed")
    ]
    counts = collections.Counter(pod["spec"]["nodeName"] for pod in running)
    full = {name: limit for name, limit in limits.items() if counts[name] >= limit}
    what = f"{' and '.join(full)} take{'s' * (len(full) == 1)} no more pods: there is no place for {_count(crowded)}"
    cause = f"maxPods in the kubelet's configuration is {' and '.join(map(str, dict.fromkeys(full.values())))} there (110 by default)"
    remedy = "add a node, or raise maxPods in /var/lib/kubelet/config.yaml there; then: systemctl restart kubelet"
    is_as_made = all(limit >= _MAX_PODS for limit in full.values())
    return [Pending(Trouble(what, cause, remedy), is_as_made=is_as_made)] if full else []


_TOO_MANY, _MAX_PODS = "Too many pods", 110
"""What a scheduler says, and the kubelet's default. Source: pkg/scheduler/framework/plugins/noderesources/fit.go"""


def _why(pod: Any) -> str:
    return next((str(one["message"]) for one in pod["status"]["conditions"] if one["type"] == "PodScheduled"), "")


def _is_refused(pod: Any) -> bool:
    return any(one["type"] == "PodScheduled" and one["status"] == "False" for one in pod["status"]["conditions"])


def _find_bars(node: Any, tolerations: Sequence[Any]) -> list[str]:
    """What of a node keeps such a pod away: `maintenance=yes:NoSchedule`, `cordoned`."""
    taints = [one for one in node["spec"]["taints"] if one["effect"] in ("NoSchedule", "NoExecute")]
    bars = [one for one in taints if not any(_tolerates(it, one) for it in tolerations)]
    names = [f"{one['key']}{'=' * bool(one['value'])}{one['value']}:{one['effect']}" for one in bars]
    return ["cordoned" if name.startswith(f"{_CORDON}:") else name for name in names]


def _tolerates(toleration: Any, taint: Any) -> bool:
    """Source: core/v1 Toleration.ToleratesTaint. An operator that compares numbers is taken to fit."""
    fits = toleration["key"] in ("", taint["key"]) and toleration["effect"] in ("", taint["effect"])
    return fits and (toleration["operator"] not in ("", "Equal") or toleration["value"] == taint["value"])


def _describe_placeless(barred: Mapping[str, Sequence[str]], pods: Sequence[Any]) -> Pending:
    places: dict[str, list[str]] = {}
    for name, bars in barred.items():
        for bar in bars:
            places.setdefault(bar, []).append(name)
    cause = "; ".join(f"{bar} on {', '.join(names)}" for bar, names in places.items())
    what = f"no node takes {_count(pods)}, which tolerates none of what keeps pods away"
    put = [bar for bar in places if bar not in _AS_MADE and not bar.startswith(_OWN_TAINTS)]
    if not put:
        remedy = f"join a worker (kb token create --print-join-command), or let pods run here: kubectl taint nodes --all {objects.CONTROL_PLANE_TAINT.key}-"
        return Pending(Trouble(what, cause, remedy), is_as_made=True)
    first = put[0]
    names = " ".join(places[first])
    if first == "cordoned":
        return Pending(Trouble(what, cause, f"kubectl uncordon {names}"))
    key, _, effect = first.rpartition(":")
    remedy = f"if nobody needs it any more: kubectl taint nodes {names} {key.partition('=')[0]}:{effect}-"
    return Pending(Trouble(what, cause, remedy))


_AS_MADE = (f"{objects.CONTROL_PLANE_TAINT.key}:{objects.CONTROL_PLANE_TAINT.effect}",)


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
    own = set[str]()
    for reason in reasons:
        for row in api.list(path_of("Event"), field=f"involvedObject.kind=Pod,reason={reason}"):
            event = fit_what_does(row, _EVENT)
            at, uid = event["lastTimestamp"] or event["eventTime"], event["involvedObject"]["uid"]
            newest[uid] = max(newest.get(uid, ("", "")), (at, event["message"]))
            if event["involvedObject"]["namespace"] == objects.SYSTEM:
                own.add(uid)  # the cluster is the owner
    said = {uid: message.removeprefix(_PREFIX) for uid, (_, message) in newest.items()}
    if "Failed" in reasons:  # which says other things too
        said = {uid: text for uid, text in said.items() if text.startswith(_NO_FOLDERS)}
    return {uid: text for uid, text in said.items() if uid in own or _ROOT_CA in text or not _OF_OWNER.search(text)}


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
