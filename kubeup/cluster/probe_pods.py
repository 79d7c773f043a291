"""The pods with which `kb doctor --probe-pods` shows what a new pod gets: made, read, removed, and found again if kb was killed.

Each runs the pause image for a minute at most: the kubelet ends it then, whatever has become of kb. They are given to their nodes without
the scheduler, tolerate every taint, and may do nothing at all. kubeadm has no such pods.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from kubeup import moments
from kubeup.cluster import objects
from kubeup.cluster.api import Api, Object, path_of
from kubeup.frozen_values import frozen
from kubeup.machine.waiting import becomes_so
from kubeup.shapes import Shape, fit_what_does

NAMESPACE = objects.SYSTEM
APP = "kb-probe"
SELECTOR = f"app.kubernetes.io/name={APP}"
RUN = "kb.io/probe"
"""The label by which the pods of one run are told from those of another."""
LIFE_S = 60
_STALE = datetime.timedelta(seconds=2 * LIFE_S)
"""Whoever made a pod so long ago does not look at it any more. Clocks of machines differ."""
_GONE_S = 3
PORT = 8099
"""Where the listener of the host port's proof listens in its pod."""


@frozen
class Wish:
    """A pod to make. host_port: 0 for none."""

    node: str
    image: str
    host_port: int = 0


@frozen
class ProbePod:
    """A pod as the API has it. waits_for: the reason for which its container does not run yet, or for which the kubelet refused the pod."""

    name: str
    node: str
    addresses: tuple[str, ...]
    is_running: bool
    waits_for: str
    has_failed: bool = False


def new_run() -> str:
    return f"{APP}-{secrets.token_hex(3)}"


def labels_of(run: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": APP, RUN: run}


def make_pods(api: Api, run: str, *, wishes: Sequence[Wish]) -> None:
    """Raises ApiRefused, Unreachable; what was made by then is for remove_pods."""
    for place, wish in enumerate(wishes):
        api.create(render_pod(run, place, wish=wish))


def render_pod(run: str, place: int, *, wish: Wish) -> Object:
    container: dict[str, Any] = {
        "name": run,
        "image": wish.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 65535,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}},
    }
    if wish.host_port:
        container["ports"] = [{"containerPort": PORT, "hostPort": wish.host_port, "protocol": "TCP"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{run}-{place}", "namespace": NAMESPACE, "labels": labels_of(run)},
        "spec": {
            "nodeName": wish.node,
            "activeDeadlineSeconds": LIFE_S,
            "terminationGracePeriodSeconds": 1,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
        },
    }


_SHAPE: Shape = {
    "metadata!": {"name!": str, "creationTimestamp!": str, "labels!": {str: str}},
    "spec!": {"nodeName!": str},
    "status!": {
        "phase!": str,
        "reason!": str,
        "message!": str,
        "podIP!": str,
        "podIPs!": [{"ip!": str}],
        "containerStatuses!": [{"state!": {"running": {}, "waiting!": {"reason!": str, "message!": str}}}],
    },
}


def read_pods(api: Api, run: str) -> list[ProbePod]:
    """The pods of one run, in the order in which they were made."""
    found = [_read(pod) for pod in api.list(path_of("Pod", namespace=NAMESPACE), label=f"{RUN}={run}")]
    return sorted(found, key=lambda pod: int(pod.name.rpartition("-")[2]))


def _read(pod: Mapping[str, Any]) -> ProbePod:
    told = fit_what_does(pod, _SHAPE)
    status = told["status"]
    states = [one["state"] for one in status["containerStatuses"]]
    waiting = [state["waiting"] for state in states if state["waiting"]["reason"]]
    refused = ": ".join(filter(None, (status["reason"], status["message"]))) if status["phase"] == "Failed" else ""
    why = refused or next((": ".join(filter(None, (one["reason"], one["message"]))) for one in waiting), "")
    addresses = [one["ip"] for one in status["podIPs"]] or [status["podIP"]]
    return ProbePod(
        told["metadata"]["name"],
        told["spec"]["nodeName"],
        tuple(filter(None, addresses)),
        is_running=any("running" in state for state in states),
        waits_for=why,
        has_failed=bool(refused),
    )


def list_leftovers(api: Api) -> list[str]:
    """The names of probes' pods that nobody looks at any more: they have ended, or are older than any probe."""
    now = api.host.now()
    found = []
    for pod in api.list(path_of("Pod", namespace=NAMESPACE), label=SELECTOR):
        told = fit_what_does(pod, _SHAPE)
        made = moments.find(told["metadata"]["creationTimestamp"])
        is_old = made is not None and now - made > _STALE
        if is_old or told["status"]["phase"] in ("Failed", "Succeeded"):
            found.append(str(told["metadata"]["name"]))
    return found


def remove_pods(api: Api, names: Sequence[str]) -> list[str]:
    """Remove pods, by force those whose kubelet does not end them at once; return the names of those that are still there.
    Raises ApiRefused, Unreachable."""
    left = list(names)
    for name in left:
        api.delete(path_of("Pod", name, namespace=NAMESPACE))

    def are_gone() -> bool:
        there = {pod["metadata"]["name"] for pod in api.list(path_of("Pod", namespace=NAMESPACE), label=SELECTOR)}
        left[:] = [name for name in left if name in there]
        return not left

    if left and not becomes_so(api.host, are_gone, timeout_s=_GONE_S):
        for name in left:
            api.delete(f"{path_of('Pod', name, namespace=NAMESPACE)}?gracePeriodSeconds=0")
        are_gone()
    return left


_OTHER_POLICIES = (
    "/apis/crd.projectcalico.org/v1/globalnetworkpolicies",
    f"/apis/crd.projectcalico.org/v1/namespaces/{NAMESPACE}/networkpolicies",
    "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies",
    f"/apis/cilium.io/v2/namespaces/{NAMESPACE}/ciliumnetworkpolicies",
    "/apis/policy.networking.k8s.io/v1alpha1/adminnetworkpolicies",
    "/apis/policy.networking.k8s.io/v1alpha1/baselineadminnetworkpolicies",
)
"""Policies of pod networks' own, whose selectors only these understand."""
_DNS = "k8s-app=kube-dns"


def find_policies(api: Api, run: str) -> list[str]:
    """The policies that may deny what these pods send and get, or what CoreDNS gets: a denial is meant. Raises ApiRefused, Unreachable."""
    found = []
    for policy in api.list(f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies"):
        selector = objects.render_selector((policy.get("spec") or {}).get("podSelector"))
        labels = [f"{label},{selector}".rstrip(",") for label in (f"{RUN}={run}", _DNS)]
        if any(api.list(path_of("Pod", namespace=NAMESPACE), label=label) for label in labels):
            found.append(f"NetworkPolicy {NAMESPACE}/{policy['metadata']['name']}")
    for path in _OTHER_POLICIES:
        kind = path.rpartition("/")[2]
        found += [f"{kind} {(one.get('metadata') or {}).get('name')}" for one in api.list(path)]
    return found
