"""Moves the pods of one node away: cordon, evict, wait until they are gone, and uncordon.

It works with an admin's identity and with the node's own: a kubelet may read and evict the pods that are bound to its node and change
its Node object except for labels and taints, but may not read disruption budgets (plugin/pkg/auth/authorizer/node/node_authorizer.go,
admitPodEviction of plugin/pkg/admission/noderestriction/admission.go). So the budget that refuses an eviction is known by the API
server's answer alone, and a trial of the eviction asks for it ahead. Whether pods are to be moved at all is decided elsewhere.
Source: staging/src/k8s.io/kubectl/pkg/drain
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Optional

from kubeup.cluster import probes
from kubeup.cluster.api import FIELD_MANAGER, Api, ApiRefused, Object, path_of
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import say_round, watch

MARK = "kb.io/cordoned"
"""The annotation on a Node that kb has cordoned: without it, the cordon is the admin's and stays."""
MIRROR = "kubernetes.io/config.mirror"
REFUSED_S = 300.0
"""For how long disruption budgets may refuse the evictions. A Deployment whose new pods become ready on other nodes needs a minute or two."""
GONE_S = 60.0
"""How long a pod may take to disappear after its grace period."""
LONG_GRACE_S = 60
SETTLED_S = 5.0
"""How long after a cordon a pod may still come that was on its way."""
POLL_S = 1.0
_NAMED = 5
"""How many pods are named in one sentence."""


@frozen
class Pod:
    """A pod of the node, as far as an eviction is concerned. grace_s: how long it may take to stop. is_bare: nothing makes it anew."""

    namespace: str
    name: str
    uid: str
    grace_s: int = 30
    is_bare: bool = False
    has_empty_dir: bool = False

    @property
    def label(self) -> str:
        return f"{self.namespace}/{self.name}"


@frozen
class Prospect:
    """What an eviction of the node's pods meets. stays: the pods that stay, since they belong to a DaemonSet or to the kubelet.
    refused: the pods that a disruption budget would not let go now, each with the API server's words."""

    moves: tuple[Pod, ...] = ()
    stays: tuple[Pod, ...] = ()
    refused: tuple[tuple[Pod, str], ...] = ()

    @property
    def bare(self) -> tuple[Pod, ...]:
        return tuple(pod for pod in self.moves if pod.is_bare)

    def describe(self) -> list[str]:
        """One sentence for each thing that a user should know before."""
        local = [pod for pod in self.moves if pod.has_empty_dir]
        slow = [f"{pod.label} ({pod.grace_s} s)" for pod in self.moves if pod.grace_s > LONG_GRACE_S]
        told = [f"pods that stay, of DaemonSets or static: {name_pods(self.stays)}"] if self.stays else []
        if self.bare:
            told.append(f"pods without a controller, which are not made anew elsewhere: {name_pods(self.bare)}")
        if local:
            told.append(f"pods that lose what is in their emptyDir volumes: {name_pods(local)}")
        if slow:
            told.append(f"pods that may take long to stop: {_name(slow)}")
        return told + [f"{pod.label} may not be evicted now: {why}" for pod, why in self.refused]


def name_pods(pods: Sequence[Pod]) -> str:
    return _name([pod.label for pod in pods])


def count(pods: int) -> str:
    """`2 pods are`"""
    return "1 pod is" if pods == 1 else f"{pods or 'no'} pods are"


def _name(labels: Sequence[str]) -> str:
    more = len(labels) - _NAMED
    return ", ".join(labels[:_NAMED]) + (f" and {more} more" if more > 0 else "")


# ---- looks


def look(api: Api, node: str) -> Prospect:
    """What an eviction of all pods of the node would meet; nothing is changed. Raises ApiRefused, Unreachable."""
    moves, stays = _sort(_list_pods(api, node))
    refused = []
    for pod in moves:
        try:
            api.evict(pod.namespace, pod.name, uid=pod.uid, is_trial=True)
        except ApiRefused as error:
            if _is_refusal(error):
                refused.append((pod, _words_of(error)))
    return Prospect(tuple(moves), tuple(stays), tuple(refused))


def has_refuge(api: Api, node: str) -> bool:
    """Whether another node may take the pods of this one: it is Ready and not cordoned. True where this identity may not see the others, as
    a kubelet may not since Kubernetes 1.32. Raises ApiRefused, Unreachable."""
    try:
        nodes = api.list(path_of("Node"))
    except ApiRefused as error:
        if error.http_status != 403:
            raise
        return True
    others = [
        one for one in nodes if one["metadata"]["name"] != node and not (one.get("spec") or {}).get("unschedulable")
    ]
    return any(probes.node_condition(one)[0] == "True" for one in others)


def _list_pods(api: Api, node: str) -> list[Object]:
    return api.list(path_of("Pod"), field=f"spec.nodeName={node}")


def _sort(pods: Sequence[Object]) -> tuple[list[Pod], list[Pod]]:
    """The pods that are to move, and those that stay. A pod that has finished is neither: the kubelet has nothing of it to run."""
    moves: list[Pod] = []
    stays: list[Pod] = []
    for found in pods:
        meta, spec, status = (found.get(name) or {} for name in ("metadata", "spec", "status"))
        if status.get("phase") in ("Succeeded", "Failed"):
            continue
        owner = _find_controller(found)
        grace_s = meta.get("deletionGracePeriodSeconds") or spec.get("terminationGracePeriodSeconds")
        pod = Pod(
            str(meta.get("namespace", "")),
            str(meta.get("name", "")),
            str(meta.get("uid", "")),
            grace_s if isinstance(grace_s, int) else 30,
            is_bare=not owner,
            has_empty_dir=any(volume.get("emptyDir") is not None for volume in spec.get("volumes") or ()),
        )
        is_static = MIRROR in (meta.get("annotations") or {})
        (stays if is_static or owner == "DaemonSet" else moves).append(pod)
    return moves, stays


def _find_controller(pod: Object) -> str:
    """The kind of the object that makes a pod anew; "" if there is none."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return next((str(owner.get("kind")) for owner in owners if owner.get("controller")), "")


def _is_refusal(error: ApiRefused) -> bool:
    """Whether a disruption budget, or more than one of them, refuses the eviction."""
    return error.http_status == 429 or (error.http_status == 500 and "PodDisruptionBudget" in error.cause)


def _words_of(error: ApiRefused) -> str:
    return "; ".join(error.causes) or error.cause


# ---- cordon


def cordon(api: Api, node: str) -> bool:
    """Let no new pods onto the node; returns whether kb has done that, now or in an earlier run. A cordon of the admin's stays one.

    Raises ApiRefused, Unreachable; ClusterError (node-not-registered)."""
    found = _read_node(api, node)
    if (found.get("spec") or {}).get("unschedulable"):
        return _is_marked(found)
    # together, so that a kb that is killed leaves no cordon of unknown origin
    api.patch(path_of("Node", node), {"metadata": {"annotations": {MARK: "true"}}, "spec": {"unschedulable": True}})
    return True


def cordon_for_admin(api: Api, node: str) -> bool:
    """Let no new pods onto the node until the admin says otherwise; returns whether it was open to them. A cordon of kb's own becomes the
    admin's: whatever it was for does not take it back. Raises ApiRefused, Unreachable; ClusterError (node-not-registered)."""
    found = _read_node(api, node)
    was_open = not (found.get("spec") or {}).get("unschedulable")
    if was_open or MARK in (found["metadata"].get("annotations") or {}):
        api.patch(path_of("Node", node), {"metadata": {"annotations": {MARK: None}}, "spec": {"unschedulable": True}})
    return was_open


def uncordon(api: Api, node: str) -> bool:
    """Take kb's own cordon back; returns whether there was one. Raises ApiRefused, Unreachable."""
    found = api.get(path_of("Node", node))
    if found is None or not _is_marked(found):
        return False
    _open(api, node)
    return True


def uncordon_for_admin(api: Api, node: str) -> bool:
    """Take a cordon back, whoever has made it; returns whether there was one. Raises ApiRefused, Unreachable; ClusterError
    (node-not-registered)."""
    found = _read_node(api, node)
    was_closed = bool((found.get("spec") or {}).get("unschedulable"))
    if was_closed or MARK in (found["metadata"].get("annotations") or {}):
        _open(api, node)
    return was_closed


def _open(api: Api, node: str) -> None:
    api.patch(path_of("Node", node), {"metadata": {"annotations": {MARK: None}}, "spec": {"unschedulable": None}})


def is_cordoned(api: Api, node: str) -> tuple[bool, bool]:
    """Whether the node is cordoned, and whether kb has done that."""
    found = _read_node(api, node)
    return bool((found.get("spec") or {}).get("unschedulable")), _is_marked(found)


def _read_node(api: Api, node: str) -> Object:
    found = api.get(path_of("Node", node))
    if found is None:
        raise ClusterError(
            f"node {node} is not registered",
            cause="the cluster has no Node of this name",
            remedy="see its nodes: kubectl get nodes",
            code="node-not-registered",
        )
    return found


def _is_marked(node: Object) -> bool:
    """Whether kb's mark is there, and the cordon, if there is one, is nobody else's: the mark of a run that was cut off stays behind when
    somebody uncordons the node, and so may meet a later cordon of theirs."""
    writers = [
        one.get("manager")
        for one in node["metadata"].get("managedFields") or ()
        if "f:unschedulable" in ((one.get("fieldsV1") or {}).get("f:spec") or {})
    ]
    return MARK in (node["metadata"].get("annotations") or {}) and all(one == FIELD_MANAGER for one in writers)


# ---- evict


def drain(api: Api, node: str, *, tell: Callable[[str], None], note: Callable[[str], None], refused_s: float) -> None:
    """Cordon the node and evict its pods. tell: what is waited for; note: what was done. Raises what cordon and evict_all raise; the cordon
    stays then, for the caller to take back."""
    if not cordon(api, node):
        note(f"node {node} was cordoned before, and stays so")
    gone = evict_all(api, node, tell=tell, refused_s=refused_s)
    if gone:
        note(f"evicted from node {node}: {name_pods(gone)}")


def foretell_drain(api: Api, node: str) -> None:
    """For a dry run: what drain sends, without the waits for what comes of it."""
    cordon(api, node)
    for pod in look(api, node).moves:
        api.evict(pod.namespace, pod.name, uid=pod.uid)


def evict_all(api: Api, node: str, *, tell: Callable[[str], None], refused_s: float = REFUSED_S) -> tuple[Pod, ...]:
    """Evict the pods of a cordoned node, and wait until they are gone; returns them. A pod that comes later, since it tolerates the
    cordon, stays: it would come again and again.

    refused_s: for how long in all disruption budgets may refuse. Raises ClusterError (pods-not-evicted, pods-not-gone), ApiRefused,
    Unreachable; what was evicted by then stays so."""
    host = api.host
    began = host.monotonic()
    chosen: dict[str, Pod] = {}
    asked: dict[str, float] = {}
    refused: list[tuple[Pod, str]] = []

    def look() -> str:
        moves, _ = _sort(_list_pods(api, node))
        there = {pod.uid for pod in moves}
        if host.monotonic() - began < SETTLED_S:
            chosen.update({pod.uid: pod for pod in moves})
        refused.clear()
        left = [pod for pod in chosen.values() if pod.uid in there]
        for pod in (pod for pod in left if pod.uid not in asked):
            why = _try_evict(api, pod)
            if why:
                refused.append((pod, why))
            elif why == "":
                asked[pod.uid] = host.monotonic()
        held = {pod.uid for pod, _ in refused}
        return _say_missing([pod for pod in left if pod.uid not in held], refused)

    def is_over(missing: str, elapsed: float) -> bool:
        slowest_s = max((pod.grace_s for pod in chosen.values()), default=0)
        limit_s = refused_s if refused else max((*asked.values(), began)) - began + slowest_s + GONE_S
        tell(say_round(f"eviction of the pods of node {node}", missing, elapsed=elapsed, timeout_s=limit_s))
        return elapsed > limit_s

    missing, elapsed = watch(host, look, timeout_s=float("inf"), is_over=is_over, poll_s=POLL_S)
    if refused:
        raise _refused(node, refused, elapsed=elapsed)
    if missing:
        raise ClusterError(
            f"pods of node {node} do not stop",
            cause=f"{missing} after {elapsed:.0f} s",
            remedy=f"see why: kubectl get pods -A --field-selector spec.nodeName={node} -o wide",
            code="pods-not-gone",
        )
    return tuple(chosen.values())


def _try_evict(api: Api, pod: Pod) -> Optional[str]:
    """ "" if the eviction is accepted or the pod has gone, the words of its refusal, or None if it is to be asked for again."""
    try:
        api.evict(pod.namespace, pod.name, uid=pod.uid)
    except ApiRefused as error:
        if _is_refusal(error):
            return _words_of(error)
        if error.http_status in (404, 409):  # gone, or there is another of its name
            return ""
        if error.http_status < 500:
            raise
        return None
    except Unreachable as error:
        if error.reason in ("tls", "dns"):
            raise
        return None
    return ""


def _say_missing(left: Sequence[Pod], refused: Sequence[tuple[Pod, str]]) -> str:
    words = [f"{pod.label} may not be evicted: {why}" for pod, why in refused[:_NAMED]]
    if left:
        words.append(f"still there: {name_pods(left)}")
    return "; ".join(words)


def _refused(node: str, refused: Sequence[tuple[Pod, str]], *, elapsed: float) -> ClusterError:
    namespace = refused[0][0].namespace
    return ClusterError(
        f"{len(refused)} pods of node {node} may not be evicted"
        if len(refused) > 1
        else f"{refused[0][0].label} may not be evicted",
        cause="; ".join(f"{pod.label}: {why}" if len(refused) > 1 else why for pod, why in refused[:_NAMED])
        + f" (tried for {elapsed:.0f} s)",
        remedy=f"have more of its pods run elsewhere, or change the budget: kubectl -n {namespace} get pdb,pods -o wide",
        code="pods-not-evicted",
    )
