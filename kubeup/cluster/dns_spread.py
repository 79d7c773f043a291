"""Spreads CoreDNS over more than one node. All its replicas start on the first node of a cluster, and kubeadm leaves them there.

This module moves one replica to another node, and restarts CoreDNS when another pod network replaces kb's. The keepers on the
control planes do both, because only they have the right to. A move never reduces the number of replicas: one replica is added, the
scheduler puts it on another node (the pods prefer not to share a node), and once it is Ready, one of those that share a node is
removed. If it does not become Ready, the added one is removed. A Deployment whose replicas somebody else changes meanwhile is left
alone.

The state of a move is an annotation of the Deployment, patched together with its replicas. So several keepers, or a keeper that
was killed, never work against each other.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional

from kubeup import moments
from kubeup.cluster.api import Api, ApiRefused, Object, path_of, read_identity
from kubeup.errors import KbError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.shapes import fit_what_does

ANNOTATION = "kb/spread"
NETWORK_ANNOTATION = "kb/pod-network"
"""An annotation of the pods: the CNI file of the network that they were restarted for."""
LABEL = "k8s-app=kube-dns"
SYSTEM = "kube-system"
PATIENCE_S = 120.0
"""How long the added replica may take to become Ready: its image may have to be pulled."""
_TOLERATED = ("node-role.kubernetes.io/control-plane", "CriticalAddonsOnly")
"""Taints that CoreDNS tolerates."""


@frozen
class Move:
    """A change of the Deployment: its replicas, the annotation ("" removes it), and the reason in words."""

    replicas: int
    note: str
    why: str


# ---- planning


def plan_move(
    deployment: Mapping[str, Any],
    pods: Sequence[Mapping[str, Any]],
    *,
    nodes: Sequence[Mapping[str, Any]],
    now: datetime.datetime,
) -> Optional[Move]:
    """The next step of a move; None if there is nothing to do. Pure."""
    replicas = int((deployment.get("spec") or {}).get("replicas", 1))
    note = _read_note(deployment)
    if note.get("state") == "moving":
        return _plan_end(note, replicas, pods=pods, nodes=nodes, now=now)
    placed = [_node_of(pod) for pod in pods if _is_ready(pod)]
    if replicas < 2 or len(placed) != replicas or len(pods) != replicas or len(set(placed)) > 1:
        return None
    free = sorted(name for name in _usable(nodes) if name not in placed)
    if not free or note.get("tried") == _digest(free):
        return None
    told = {"state": "moving", "replicas": replicas, "from": placed[0], "since": moments.show(now)}
    why = f"all {replicas} replicas of CoreDNS run on {placed[0]}: starting one more, on {' or '.join(free[:3])}"
    return Move(replicas + 1, json.dumps(told, sort_keys=True), why)


def _plan_end(
    note: Mapping[str, Any],
    replicas: int,
    *,
    pods: Sequence[Mapping[str, Any]],
    nodes: Sequence[Mapping[str, Any]],
    now: datetime.datetime,
) -> Optional[Move]:
    before, crowded = int(note.get("replicas", 2)), str(note.get("from", ""))
    free = sorted(name for name in _usable(nodes) if name != crowded)
    tried = json.dumps({"state": "failed", "tried": _digest(free)}, sort_keys=True)
    if replicas != before + 1:
        # perhaps an autoscaler, which would undo the move again and again
        return Move(replicas, tried, f"somebody else set CoreDNS to {replicas} replicas: leaving it at that")
    ready = [_node_of(pod) for pod in pods if _is_ready(pod)]
    if len(ready) > before and set(ready) != {crowded}:
        return Move(before, "", f"CoreDNS runs on {', '.join(sorted(set(ready)))}: back to {before} replicas")
    if _age_s(str(note.get("since", "")), now) < PATIENCE_S:
        return None
    why = f"the added replica of CoreDNS did not become Ready elsewhere within {PATIENCE_S:.0f} s: back to {before}; tried again when nodes join"
    return Move(before, tried, why)


def _read_note(deployment: Mapping[str, Any]) -> dict[str, Any]:
    text = ((deployment.get("metadata") or {}).get("annotations") or {}).get(ANNOTATION, "")
    try:
        found = parse_json(text, "it") if text else {}
    except ValueError:
        return {}
    return dict(fit_what_does(found, {"state": str, "tried": str, "replicas": int, "from": str, "since": str}))


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


def _age_s(since: str, now: datetime.datetime) -> float:
    began = moments.find(since)
    return (now - began).total_seconds() if began is not None else PATIENCE_S


def _node_of(pod: Mapping[str, Any]) -> str:
    return str((pod.get("spec") or {}).get("nodeName", ""))


def _is_ready(pod: Mapping[str, Any]) -> bool:
    if pod["metadata"].get("deletionTimestamp"):
        return False
    return _condition(pod, "Ready") == "True"


def _condition(found: Mapping[str, Any], name: str) -> str:
    entries = (found.get("status") or {}).get("conditions") or []
    return next((str(entry.get("status")) for entry in entries if entry.get("type") == name), "")


def _usable(nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """The nodes on which CoreDNS can be scheduled."""
    found = []
    for node in nodes:
        spec = node.get("spec") or {}
        taints = [
            taint
            for taint in spec.get("taints") or []
            if taint.get("effect") != "PreferNoSchedule" and taint.get("key") not in _TOLERATED
        ]
        is_linux = (node["metadata"].get("labels") or {}).get("kubernetes.io/os", "linux") == "linux"
        if _condition(node, "Ready") == "True" and not spec.get("unschedulable") and not taints and is_linux:
            found.append(str(node["metadata"]["name"]))
    return found


# ---- applying


def spread_once(api: Api, now: datetime.datetime) -> str:
    """Look once and take the next step, if any. Returns what was done, in words, or "". Raises KbError.

    The patch carries the resourceVersion of the Deployment, so that only one of several keepers wins.
    """
    found = api.list(path_of("Deployment", "", namespace=SYSTEM), label=LABEL)
    if len(found) != 1:
        return ""
    deployment = found[0]
    pods = api.list(path_of("Pod", "", namespace=SYSTEM), label=LABEL)
    placed = {_node_of(pod) for pod in pods}
    # the common case, in which the nodes need not be listed
    if len(placed) > 1 and _read_note(deployment).get("state") != "moving":
        return ""
    move = plan_move(deployment, pods, nodes=api.list(path_of("Node")), now=now)
    if move is None:
        return ""
    try:
        api.patch(
            path_of("Deployment", str(deployment["metadata"]["name"]), namespace=SYSTEM), _patch_of(deployment, move)
        )
    except ApiRefused as error:
        if error.http_status == 409:
            return ""
        raise
    return move.why


def _patch_of(deployment: Object, move: Move) -> Object:
    version = deployment["metadata"].get("resourceVersion")
    metadata = {"resourceVersion": version, "annotations": {ANNOTATION: move.note or None}}
    return {"metadata": metadata, "spec": {"replicas": move.replicas}}


def is_moving(deployment: Mapping[str, Any]) -> Optional[int]:
    """The number of replicas that the Deployment has outside of a move; None if no move is under way."""
    note = _read_note(deployment)
    return int(note.get("replicas", 2)) if note.get("state") == "moving" else None


def follow_network(host: Host, cni_file: str, *, paths: Paths) -> str:
    """Restart CoreDNS once, after another pod network was installed. Returns what was done, in words, or "". Raises KbError.

    kb init started CoreDNS before the network of `cni_file` was applied, so other nodes can no longer reach it. (In a cluster made
    by kubeadm, CoreDNS waits for the network.) The restart is a rolling update: an old replica ends when a new one is Ready.

    It works by putting the name of the file into the pod template. So it happens once per network, whichever keeper comes first.
    """
    if not _may_change(host, paths):
        return ""
    api = Api(host, read_identity(host, paths.admin_conf), retry_s=0)
    found = api.list(path_of("Deployment", "", namespace=SYSTEM), label=LABEL)
    if len(found) != 1:
        return ""
    template = (found[0].get("spec") or {}).get("template") or {}
    if ((template.get("metadata") or {}).get("annotations") or {}).get(NETWORK_ANNOTATION) == cni_file:
        return ""
    body = {"spec": {"template": {"metadata": {"annotations": {NETWORK_ANNOTATION: cni_file}}}}}
    api.patch(path_of("Deployment", str(found[0]["metadata"]["name"]), namespace=SYSTEM), body)
    return "restarted CoreDNS for the new network"


def _may_change(host: Host, paths: Paths) -> bool:
    return host.exists(paths.admin_conf) and host.exists(paths.manifest("kube-apiserver"))


def keep_spread(host: Host, *, paths: Paths, log: Callable[[str], None]) -> None:
    """Run spread_once from a keeper. Does nothing on a worker, which lacks the rights, and ignores errors of the cluster."""
    if not _may_change(host, paths):
        return
    try:
        done = spread_once(Api(host, read_identity(host, paths.admin_conf), retry_s=0), host.now())
    except KbError:
        return
    if done:
        log(f"kb: {done}")
