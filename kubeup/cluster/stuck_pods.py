"""Pods that do not run and will not by themselves: no node takes them, or a container does not start or does not stay up."""

from __future__ import annotations

import datetime
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from kubeup import moments
from kubeup.cluster import probes
from kubeup.cluster.api import Api, path_of
from kubeup.machine.http import Unreachable
from kubeup.shapes import Shape, fit_what_does
from kubeup.trouble import Trouble

_YOUNG_S = 60
"""A pod may take so long for its first start."""
_STUCK = frozenset(
    {
        "CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError",
        "CreateContainerError", "RunContainerError", "StartError",
    }
)  # fmt: skip
"""Reasons with which the kubelet waits before it tries again. Source: pkg/kubelet/images/types.go, pkg/kubelet/kuberuntime"""
_STATUS = {
    "name!": str,
    "restartCount!": int,
    "state!": {
        "waiting!": {"reason!": str, "message!": str},
        "running!": {"startedAt!": str},
        "terminated!": {"reason!": str, "exitCode!": int, "finishedAt!": str},
    },
    "lastState!": {"terminated!": {"reason!": str, "exitCode!": int, "finishedAt!": str}},
}
_SHAPE = {
    "metadata!": {"name!": str, "namespace!": str, "creationTimestamp!": str, "deletionTimestamp!": str},
    "spec!": {"nodeName!": str},
    "status!": {
        "conditions!": [{"type!": str, "status!": str, "reason!": str, "message!": str, "lastTransitionTime!": str}],
        "initContainerStatuses!": [_STATUS],
        "containerStatuses!": [_STATUS],
    },
}


def find_stuck(api: Api, namespace: str) -> list[Trouble]:
    """One trouble for each pod of `namespace` that is stuck. Ages are by this machine's clock."""
    now = api.host.now()
    pods = api.list(path_of("Pod", namespace=namespace))
    found = list[Trouble]()
    for pod in pods:
        reads = api if len(found) < _MOST_LOGS else None
        found += filter(None, (_judge(reads, pod, now=now) or _judge_probes(api, pod, now=now),))
    return found


def _judge_probes(api: Api, pod: Mapping[str, Any], *, now: datetime.datetime) -> Optional[Trouble]:
    """A pod whose containers all run, and whose probes have been failing for a minute."""
    found = fit_what_does(pod, _SHAPE)
    meta, status = found["metadata"], found["status"]
    lasting = [
        one
        for one in status["conditions"]
        if (one["type"], one["status"], one["reason"]) == ("Ready", "False", "ContainersNotReady")
        and (since := moments.find(one["lastTransitionTime"])) is not None
        and (now - since).total_seconds() > _YOUNG_S
    ]
    is_running = all(one["state"]["running"]["startedAt"] for one in status["containerStatuses"])
    if not lasting or not is_running or meta["deletionTimestamp"]:
        return None
    what = f"pod {meta['namespace']}/{meta['name']} on node {found['spec']['nodeName']} runs, and is not Ready"
    cause = probes.read_probe_failure(api, meta["name"]) or lasting[0]["message"] or "no reason given"
    return Trouble(
        what,
        cause,
        f"kubectl -n {meta['namespace']} logs {meta['name']}; kubectl -n {meta['namespace']} describe pod {meta['name']}",
    )


_PLANE_POD: Shape = {"metadata!": {"name!": str, "labels!": {"component": str}}, "spec!": {"nodeName!": str}}


def find_missing(api: Api, namespace: str, *, nodes: Sequence[str]) -> list[Trouble]:
    """Static pods that some of these control planes run and others do not: a manifest that was taken away leaves no trace in the cluster but this, since
    another controller leads, and an API server that is gone is no endpoint any more. nodes: those that are Ready."""
    runs: dict[str, set[str]] = {}
    for pod in api.list(path_of("Pod", namespace=namespace), label="tier=control-plane"):
        found = fit_what_does(pod, _PLANE_POD)
        component, node = found["metadata"]["labels"].get("component", ""), found["spec"]["nodeName"]
        if component and found["metadata"]["name"] == f"{component}-{node}":
            runs.setdefault(component, set()).add(node)
    return [
        Trouble(
            f"control plane {node} runs no {component}",
            f"the cluster has no pod {namespace}/{component}-{node}, and {' and '.join(sorted(having))} has one",
            "on that machine: kb doctor",
        )
        for component, having in sorted(runs.items())
        for node in nodes
        if node not in having
    ]


def judge(api: Api, pod: Mapping[str, Any]) -> Optional[Trouble]:
    """What keeps one pod from running. Ages are by this machine's clock."""
    return _judge(api, pod, now=api.host.now())


def _is_between_ends(container: Any, now: datetime.datetime) -> bool:
    """Whether it has ended twice within a minute, the last time just now: the kubelet's word for that comes only while it waits before another start."""
    last, before = container["state"]["terminated"], container["lastState"]["terminated"]
    ends = [moments.find(one["finishedAt"]) for one in (last, before)]
    if ends[0] is None or ends[1] is None or not (last["exitCode"] and before["exitCode"]):
        return False
    return (ends[0] - ends[1]).total_seconds() < _YOUNG_S and (now - ends[0]).total_seconds() < _YOUNG_S


def _read_last_word(api: Api, namespace: str, *, pod: str, container: str) -> str:
    """`; its last word: ...`: the last line of a container that has ended; "" if the kubelet does not give it."""
    query = urllib.parse.urlencode({"container": container, "previous": "true", "tailLines": 5})
    try:
        answer = api.read_page(
            f"{path_of('Pod', pod, namespace=namespace)}/log?{query}", timeout_s=_LOG_S, max_bytes=20_000
        )
    except Unreachable:
        return ""
    lines = [line.strip() for line in answer.body.decode(errors="replace").splitlines() if line.strip()]
    return f"; its last word: {lines[-1][:_WORDS]}" if answer.status == 200 and lines else ""


_LOG_S, _WORDS, _MOST_LOGS = 3, 300, 3


def _judge(api: Optional[Api], pod: Mapping[str, Any], *, now: datetime.datetime) -> Optional[Trouble]:
    """api: None to read no log."""
    found = fit_what_does(pod, _SHAPE)
    meta, status, node = found["metadata"], found["status"], found["spec"]["nodeName"]
    pod_name = f"{meta['namespace']}/{meta['name']}"
    look = f"kubectl -n {meta['namespace']} describe pod {meta['name']}"
    if meta["deletionTimestamp"]:
        return None  # its node is away, or it ends
    for container in (*status["initContainerStatuses"], *status["containerStatuses"]):
        waiting, ended = container["state"]["waiting"], container["lastState"]["terminated"]
        is_between = _is_between_ends(container, now)
        if waiting["reason"] not in _STUCK and not is_between:
            continue
        why = "it ends again and again" if is_between else waiting["reason"]
        what = f"container {container['name']} of pod {pod_name} on node {node} does not run ({why})"
        if is_between or why == "CrashLoopBackOff":
            ended = container["state"]["terminated"] if is_between else ended
            cause = f"it has ended {container['restartCount']} times, last with exit code {ended['exitCode']} ({ended['reason'] or 'no reason given'})"
            if api is not None:
                cause += _read_last_word(api, meta["namespace"], pod=meta["name"], container=container["name"])
            return Trouble(
                what, cause, f"kubectl -n {meta['namespace']} logs {meta['name']} -c {container['name']} --previous"
            )
        return Trouble(what, waiting["message"] or "no reason given", look)
    created = moments.find(meta["creationTimestamp"])
    is_young = created is not None and (now - created).total_seconds() < _YOUNG_S
    lost = [one for one in status["conditions"] if one["type"] == "PodScheduled" and one["status"] == "False"]
    if lost and not is_young:
        return Trouble(f"no node takes pod {pod_name}", lost[0]["message"] or "no reason given", look)
    return None
