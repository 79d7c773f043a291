"""What the API server reaches: the kubelets, by their port, and the servers of aggregated APIs.

Nodes are Ready while nobody reaches their kubelets: they call the API server, and not the other way round. This module changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kubeup import moments
from kubeup.cluster.api import Api, Object, path_of
from kubeup.cluster.health import Part
from kubeup.json_text import as_table
from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.shapes import fit_what_does
from kubeup.trouble import Trouble

KUBELET_S = 4
"""How long the way to a kubelet may take. The API server itself would try for 30 s."""
AT_ONCE = 8
HOLDS_NAMESPACES = "aggregated/namespaces"
"""The kind of an aggregated API without whose answer a namespace stays where it is, which is no matter of that API's users alone."""
Answer = TypeVar("Answer")
REFUSED = "kubelet/refused"
"""The kind of a kubelet that answers the API server, and refuses: what is wrong is the API server's certificate, or its rights."""
_WAYS = (502, 503, 504)
"""The API server's answers if it does not reach a kubelet. Source: apimachinery, pkg/util/proxy/upgradeaware.go; api/errors ServiceUnavailable"""


def probe_kubelets(api: Api, names: Sequence[str]) -> list[Part]:
    """Ask the API server of `api` for the health of each node's kubelet, which it has to call at its port for that: kubectl logs, exec
    and port-forward take the same way."""
    return ask_each(names, functools.partial(_ask_kubelet, api))


def ask_each(names: Sequence[str], ask: Callable[[str], Answer]) -> list[Answer]:
    """What each node's kubelet answers, in the order of the names; some are asked at once, so that 500 nodes take no minutes."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, names))


def _ask_kubelet(api: Api, name: str) -> Part:
    what = f"API server {api.server.partition('://')[2]} does not reach the kubelet of node {name}"
    remedy = f"let TCP port 10250 pass from the control planes to {name} (firewall, security group); kubectl logs and exec need it"
    try:
        answer = api.probe_health(f"{path_of('Node', name)}/proxy/healthz", timeout_s=KUBELET_S)
    except Unreachable as error:
        if error.reason != "timeout":
            return Part("kubelet", name, unproven=f"the kubelet of {name}: {error.cause}", node=name)
        cause = f"it has not answered for {KUBELET_S} s"
        return Part("kubelet", name, Trouble(what, cause, remedy), node=name)
    if answer.status in _WAYS:
        cause = _read_message(answer)
        is_refused = cause.endswith("connection refused")  # by the machine itself: nothing listens there
        stands = f"its kubelet has stopped, or listens at another port; on {name}: kb doctor"
        return Part("kubelet", name, Trouble(what, cause, stands if is_refused else remedy), node=name)
    if answer.status in (401, 403) and not answer.body.startswith(b"{"):  # the API server's own refusal is a Status
        return Part(REFUSED, name if answer.status == 401 else api.server, _explain_refusal(api, name, answer=answer))
    if answer.status != 200:
        return Part("kubelet", name, unproven=f"the kubelet of {name}: HTTP {answer.status}", node=name)
    return Part("kubelet", name, node=name)


def describe_presence(part: Part) -> str:
    """What a node's port tells of a kubelet that does not report, by what probe_kubelets found there; "" if it tells nothing."""
    cause = part.trouble.cause if part.trouble else ""
    if part.is_well or part.kind == REFUSED:
        return "it answers at its port 10250, so it does not reach the API, or is refused there"
    if cause.endswith("connection refused"):
        return "its machine is there, and nothing listens at port 10250: it has stopped, or does not start"
    if "has not answered" in cause or cause.endswith(("i/o timeout", "no route to host")):
        return "its machine does not answer at port 10250 either"
    return ""


def _explain_refusal(api: Api, name: str, *, answer: HttpResponse) -> Trouble:
    """A kubelet that the API server reaches, and that does not take its client certificate (401), or asks the cluster what that may do (403)."""
    server, cert = api.server.partition("://")[2], "/etc/kubernetes/pki/apiserver-kubelet-client.crt"
    anew = (
        f"on that machine: mv {cert} /root/; kb init phase certs apiserver-kubelet-client; "
        "crictl stop $(crictl ps -q --name kube-apiserver)"
    )
    if answer.status == 401:
        cause = f"it takes another authority for the cluster's (clientCAFile in its configuration), or {cert} there is not the cluster's"
        what = f"the kubelet of node {name} does not accept API server {server}"
        return Trouble(what, cause, f"on both machines: kb doctor; if it is the API server's certificate, {anew}")
    what = f"kubelets answer API server {server} nothing, so kubectl logs, exec and port-forward fail through it"
    remedy = f"if that is not the user of the other API servers ({cert}), {anew}; else give that user its rights"
    return Trouble(what, f"a kubelet says: {_read_message(answer)}", remedy)


def _read_message(answer: HttpResponse) -> str:
    text = answer.body[:2000].decode(errors="replace")
    found = as_table(text).get("message") if text.startswith("{") else ""
    return str(found or text.strip()[:200] or f"HTTP {answer.status}")


def probe_namespaces(api: Api) -> list[Part]:
    """Namespaces that are being deleted, and cannot end: a finalizer whose owner is gone, or content of which nobody knows."""
    held: dict[str, list[str]] = {}
    now = api.host.now()
    for row in (fit_what_does(item, _NAMESPACE) for item in api.list(path_of("Namespace"))):
        since = moments.find(row["metadata"]["deletionTimestamp"])
        if since is None or (now - since).total_seconds() < _ENDING_S:
            continue
        told = {one["type"]: one["message"] for one in row["status"]["conditions"] if one["status"] == "True"}
        why = next((told[kind] for kind in _ENDLESS_BY if kind in told), "")
        if why:
            held.setdefault(why, []).append(row["metadata"]["name"])
    return [
        Part(
            ENDLESS,
            names[0],
            Trouble(
                f"namespace{'s' * (len(names) > 1)} {', '.join(names[:3])}{' and others' * (len(names) > 3)} cannot be deleted",
                why,
                f"have what owns the finalizer remove it (its controller may be gone); what is left: kubectl api-resources --verbs=list --namespaced -o name | xargs -n1 kubectl -n {names[0]} get --ignore-not-found --show-kind",
            ),
        )
        for why, names in held.items()
    ]


ENDLESS = "namespace"
_ENDING_S = 20
_ENDLESS_BY = (
    "NamespaceFinalizersRemaining",
    "NamespaceDeletionContentFailure",
    "NamespaceDeletionGroupVersionParsingFailure",
)
"""Source: pkg/controller/namespace/deletion/status_condition_utils.go"""
_NAMESPACE = {
    "metadata!": {"name!": str, "deletionTimestamp!": str},
    "status!": {"conditions!": [{"type!": str, "status!": str, "message!": str}]},
}


def probe_aggregated(api: Api) -> list[Part]:
    """Every API that a server of the cluster's own serves: without its answer, namespaces are not deleted and the garbage collector
    stands still. Source: kube-aggregator, pkg/apis/apiregistration/v1"""
    parts = [
        _judge_service(item) for item in api.list(path_of("APIService")) if (item.get("spec") or {}).get("service")
    ]
    if all(part.is_well for part in parts):
        return parts
    held = _list_held(api)
    return [_tell_held(part, [name for name, why in held.items() if _say_version(part.name) in why]) for part in parts]


def _list_held(api: Api) -> dict[str, str]:
    """Namespace -> why it cannot be emptied, of those that are being deleted. Source: pkg/controller/namespace/deletion/status_condition_utils.go"""
    shape = {
        "metadata!": {"name!": str},
        "status!": {"phase!": str, "conditions!": [{"type!": str, "status!": str, "message!": str}]},
    }
    rows = [fit_what_does(item, shape) for item in api.list(path_of("Namespace"))]
    return {
        row["metadata"]["name"]: one["message"]
        for row in rows
        for one in row["status"]["conditions"]
        if row["status"]["phase"] == "Terminating"
        and (one["type"], one["status"]) == ("NamespaceDeletionDiscoveryFailure", "True")
    }


def _say_version(name: str) -> str:
    """`metrics.k8s.io/v1beta1` of the APIService v1beta1.metrics.k8s.io."""
    version, _, group = name.partition(".")
    return f"{group}/{version}"


def _tell_held(part: Part, names: Sequence[str]) -> Part:
    if part.trouble is None or not names:
        return part
    told = f"{part.trouble.cause}; so the namespace{'s' if len(names) > 1 else ''} {', '.join(names[:3])} cannot be deleted"
    return dataclasses.replace(part, kind=HOLDS_NAMESPACES, trouble=dataclasses.replace(part.trouble, cause=told))


def _judge_service(item: Object) -> Part:
    found = fit_what_does(
        item,
        {
            "metadata!": {"name!": str},
            "spec!": {"service!": {"namespace!": str, "name!": str}},
            "status!": {"conditions!": [{"type!": str, "status!": str, "message!": str}]},
        },
    )
    name, service = found["metadata"]["name"], found["spec"]["service"]
    conditions = found["status"]["conditions"]
    away = [one for one in conditions if one["type"] == "Available" and one["status"] != "True"]
    if not away:
        return Part("aggregated", name)
    place = f"-n {service['namespace']} get service,endpointslices,pods"
    remedy = f"see what serves it: kubectl {place}; if it is gone for good: kubectl delete apiservice {name}"
    trouble = Trouble(f"the aggregated API {name} does not answer", away[0]["message"] or "no reason given", remedy)
    return Part("aggregated", name, trouble)
