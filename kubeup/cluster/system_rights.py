"""What the cluster's own programs may do, and whether their pods could be made again: rights and policies change on a later day, and what runs
goes on until its next start.

Asks by reviews and by dry runs, and stores nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional

from kubeup.cluster import objects
from kubeup.cluster.api import Api, ApiRefused, Object, path_of
from kubeup.cluster.objects import read_api_servers
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine.http import Unreachable
from kubeup.shapes import fit_what_does
from kubeup.trouble import Trouble
from kubeup.yaml_files import load_mapping

_REVIEW_S = 5
_AT_ONCE = 8


@frozen
class _Need:
    """What a service account of kube-system has to be allowed, and the binding that allows it in a cluster as kubeadm makes it."""

    account: str
    resource: str
    group: str
    without: str
    binding: str
    remedy: str


_NEEDS = (
    _Need(
        "coredns", "endpointslices", "discovery.k8s.io", "CoreDNS answers for no Service", "system:coredns", "kb init phase addon coredns"
    ),
    _Need(
        "kube-proxy", "endpointslices", "discovery.k8s.io", "kube-proxy follows no Service", "kubeadm:node-proxier",
        "kb init phase addon kube-proxy",
    ),
)  # fmt: skip
"""Source: kubeadm's manifests of CoreDNS and kube-proxy"""


def find_lost_rights(api: Api, node: str) -> list[Trouble]:
    """Rights that a program of the cluster has no more, by the API server's own word. node: one of its nodes. Raises Unreachable."""
    accounts = [*_find_unbound(api), *filter(None, (_judge_account(api, need) for need in _NEEDS))]
    servers = [f"https://{server}" for server in read_api_servers(api)] or [api.server]
    return [*accounts, *(trouble for server in servers for trouble in _judge_node(api.with_server(server), node))]


_BOOTSTRAP = "kubernetes.io/bootstrapping=rbac-defaults"
"""The label of what each API server writes when it starts, unless it was told to let it be. Source: pkg/registry/rbac/rest/storage_rbac.go"""
_BOUND = re.compile(r"system:(?:controller:.*|kube-scheduler|kube-controller-manager|volume-scheduler)")


def _find_unbound(api: Api) -> Iterator[Trouble]:
    """The roles of the cluster's controllers that nobody has, since the ClusterRoleBinding of the same name is gone."""
    roles, bindings = (
        {str(item["metadata"]["name"]) for item in api.list(path_of(kind), label=label)}
        for kind, label in (("ClusterRole", _BOOTSTRAP), ("ClusterRoleBinding", ""))
    )
    gone = sorted(name for name in roles - bindings if _BOUND.fullmatch(name))
    if gone:
        whose = " and ".join(name.removeprefix("system:").removeprefix("controller:") for name in gone)
        what = f"{whose} may not do what {'it has' if len(gone) == 1 else 'they have'} to"
        cause = f"there is no ClusterRoleBinding {' nor '.join(gone)} any more"
        again = "an API server writes it anew when it starts, so on one control plane: crictl stop $(crictl ps -q --name kube-apiserver)"
        yield Trouble(what, cause, again)


def _judge_account(api: Api, need: _Need) -> Optional[Trouble]:
    if api.get(path_of("ServiceAccount", need.account, namespace=objects.SYSTEM)) is None:
        return None  # another DNS, or another proxy
    name = f"system:serviceaccount:{objects.SYSTEM}:{need.account}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{objects.SYSTEM}", "system:authenticated"]
    wanted = {"verb": "list", "resource": need.resource, "group": need.group}
    if _may(api, name, groups, wanted=wanted) is not False:
        return None
    found = api.get(path_of("ClusterRoleBinding", need.binding))
    cause = (
        f"ClusterRoleBinding {need.binding} is gone"
        if found is None
        else f"see ClusterRoleBinding {need.binding} and its role"
    )
    what = f"ServiceAccount {objects.SYSTEM}/{need.account} may not list {need.resource} any more, so {need.without}"
    return Trouble(what, cause, need.remedy)


def _judge_node(own: Api, node: str) -> Iterator[Trouble]:
    """What one API server lets a kubelet do: authorizers are its own, and what they read is the cluster's."""
    with contextlib.suppress(Unreachable):  # the check of the API servers reports why
        if (
            _may(own, f"system:node:{node}", ["system:nodes", "system:authenticated"], wanted=want_status(node))
            is False
        ):
            yield deny_nodes(own.server)


def find_unapproved(api: Api, node: str) -> Optional[Trouble]:
    """Whether nobody approves the certificates with which kubelets follow their own. Nothing shows until these end. Raises Unreachable."""
    own = {"verb": "create", "group": "certificates.k8s.io", "resource": "certificatesigningrequests"}
    groups = ["system:nodes", "system:authenticated"]
    if _may(api, f"system:node:{node}", groups, wanted={**own, "subresource": "selfnodeclient"}) is not False:
        return None
    what = "the requests of kubelets for their next certificates are not approved: nodes are lost when the present ones end"
    cause = f"no ClusterRoleBinding lets system:nodes create certificatesigningrequests/selfnodeclient (kubeadm's is {_ROTATION})"
    role = "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient"
    return Trouble(
        what, cause, f"kubectl create clusterrolebinding {_ROTATION} --clusterrole={role} --group=system:nodes"
    )


_ROTATION = "kubeadm:node-autoapprove-certificate-rotation"


def want_status(node: str) -> dict[str, str]:
    """What a kubelet has to be allowed all the time, for a review."""
    return {"verb": "update", "resource": "nodes", "subresource": "status", "name": node}


def deny_nodes(server: str) -> Trouble:
    """That this API server does not let kubelets do what they have to."""
    return Trouble(
        f"API server {server.partition('://')[2]} lets no kubelet update its node, so nodes become NotReady",
        "its --authorization-mode lacks Node (it is Node,RBAC by default)",
        "put it back on that machine, in /etc/kubernetes/manifests/kube-apiserver.yaml: --authorization-mode=Node,RBAC",
    )


def may_update_status(api: Api, node: str) -> Optional[bool]:
    """Whether the identity of `api`, a kubelet's, may update its node's status; None if the API server does not say. Raises Unreachable."""
    return _review(api, "selfsubjectaccessreviews", spec={"resourceAttributes": want_status(node)})


def _may(api: Api, user: str, groups: Sequence[str], *, wanted: Mapping[str, str]) -> Optional[bool]:  # noqa: PLR0917
    """Whether a user may do that; None if this identity may not ask."""
    spec = {"user": user, "groups": list(groups), "resourceAttributes": dict(wanted)}
    return _review(api, "subjectaccessreviews", spec=spec)


def _review(api: Api, resource: str, *, spec: Mapping[str, Any]) -> Optional[bool]:
    kind = "SelfSubjectAccessReview" if resource.startswith("self") else "SubjectAccessReview"
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": dict(spec)}
    answer = api.ask(f"/apis/authorization.k8s.io/v1/{resource}", body, timeout_s=_REVIEW_S)
    found = fit_what_does(as_table(answer.body.decode(errors="replace")), {"status!": {"allowed": bool}})
    return found["status"].get("allowed") if answer.status in (200, 201) else None


def find_lost_proxy(api: Api) -> list[Trouble]:
    """A kube-proxy that was deleted: what it wrote stays on the nodes, and nothing shows until a Service or a pod changes. A network that takes
    its place has its ConfigMap deleted too."""
    config = api.get(path_of("ConfigMap", "kube-proxy", namespace=objects.SYSTEM))
    if config is None:
        return []
    proxy = api.get(path_of("DaemonSet", "kube-proxy", namespace=objects.SYSTEM))
    follows = "nodes go on with the rules that they have, and follow no Service any more"
    if proxy is None:
        what = f"DaemonSet {objects.SYSTEM}/kube-proxy is gone: {follows}"
        again = f"kb init phase addon kube-proxy; if something else serves Services now: kubectl -n {objects.SYSTEM} delete configmap kube-proxy"
        return [Trouble(what, "its ConfigMap is still there", again)]
    found = fit_what_does(proxy, _PROXY)
    selector = found["spec"]["template"]["spec"]["nodeSelector"]
    is_seen = 0 < found["metadata"]["generation"] == found["status"]["observedGeneration"]
    if found["status"]["desiredNumberScheduled"] or not is_seen or _PUT_OUT & set(selector):
        return []
    what = f"DaemonSet {objects.SYSTEM}/kube-proxy runs on no node: {follows}"
    added = [name for name in selector if name != "kubernetes.io/os"]
    if not added:
        return [Trouble(what, "no node fits it", f"see why: kubectl -n {objects.SYSTEM} describe daemonset kube-proxy")]
    shown = ", ".join(f"{name}={selector[name]}" for name in added)
    path = f"/spec/template/spec/nodeSelector/{added[0].replace('~', '~0').replace('/', '~1')}"
    patch = f"""kubectl -n {objects.SYSTEM} patch daemonset kube-proxy --type=json -p '[{{"op": "remove", "path": "{path}"}}]'"""
    return [Trouble(what, f"its nodeSelector asks for {shown}", patch)]


def find_proxy_astray(api: Api) -> Optional[Trouble]:
    """A kube-proxy that calls the API where nobody answers: what it wrote stays on the nodes until its pods start again. Raises Unreachable,
    ApiRefused."""
    text = objects.read_config_key(api, "kube-proxy", key="kubeconfig.conf")
    try:
        found = load_mapping(text, "ConfigMap kube-proxy")
    except HostError:  # its pods end, which others tell
        return None
    rows = fit_what_does(found, {"clusters!": [{"cluster!": {"server!": str}}]})["clusters"]
    server = rows[0]["cluster"]["server"] if rows else ""
    if not server or server == api.server:
        return None
    try:
        api.with_server(server).probe_health("/livez", timeout_s=_REVIEW_S)
    except Unreachable as error:
        remedy = (
            f"correct server there: kubectl -n {objects.SYSTEM} edit configmap kube-proxy (kubeconfig.conf); "
            f"then: kubectl -n {objects.SYSTEM} rollout restart daemonset kube-proxy"
        )
        what = f"kube-proxy is told to call the API at {server} (ConfigMap {objects.SYSTEM}/kube-proxy), which does not answer"
        return Trouble(what, error.cause, remedy)
    return None


_PROXY = {
    "metadata!": {"generation!": int},
    "spec!": {"template!": {"spec!": {"nodeSelector!": {str: str}}}},
    "status!": {"desiredNumberScheduled!": int, "observedGeneration!": int},
}
_PUT_OUT = frozenset({"non-calico"})
"""Labels of no node, by which the guides of networks that serve Services themselves have kube-proxy run nowhere. Source: Calico's guide to eBPF"""


# ---- their pods

_TEMPLATE = {"metadata!": {"name!": str}, "spec!": {"template!": {"spec!": {"containers!": [{"name!": str}]}}}}


def find_barred_pods(api: Api) -> list[Trouble]:
    """Pods of kube-system that the API server would not take any more: a quota, the security level of the namespace, or another policy."""
    barred: dict[str, list[str]] = {}
    items = [
        (kind, item)
        for kind in ("DaemonSet", "Deployment")
        for item in api.list(path_of(kind, namespace=objects.SYSTEM))
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # each may meet a webhook that takes its time
        told = list(pool.map(lambda pair: _try(api, pair[1]), items))
    for (kind, item), why in zip(items, told):
        if why:
            barred.setdefault(why, []).append(f"{kind} {fit_what_does(item, _TEMPLATE)['metadata']['name']}")
    if not barred:
        return []
    names = [name for some in barred.values() for name in some]
    return [
        Trouble(
            f"no new pod of {' and '.join(names)} is let into {objects.SYSTEM}, so none comes back once it ends",
            next(iter(barred)),
            f"see what bars it: kubectl get namespace {objects.SYSTEM} --show-labels; kubectl -n {objects.SYSTEM} get resourcequota,limitrange; "
            "kubectl get validatingadmissionpolicybindings,validatingwebhookconfigurations",
        )
    ]


def _try(api: Api, item: Object) -> str:
    """Why a pod of this template is refused, without its name; "" if it is not. A webhook's failure is the check of admission's to tell."""
    template = as_table(item["spec"].get("template")) if isinstance(item.get("spec"), dict) else {}
    if not fit_what_does(item, _TEMPLATE)["spec"]["template"]["spec"]["containers"]:
        return ""
    labels = (template.get("metadata") or {}).get("labels") or {}
    name = f"kb-trial-{item['metadata']['name']}"[:63]
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": objects.SYSTEM, "labels": labels},
        "spec": template["spec"],
    }
    try:
        api.try_create(pod)
    except Unreachable:
        return ""
    except ApiRefused as error:
        return error.cause.replace(name, "NAME") if _is_denial(error) else ""
    return ""


def _is_denial(error: ApiRefused) -> bool:
    """A policy chooses its status, and a webhook that answers says that it denied. 422: a ValidatingAdmissionPolicy that names none, or a pod that is
    not valid once defaults were put into it, such as a LimitRange's: the template that runs was."""
    if error.http_status == 422 or re.search(r"denied (?:the )?request", error.cause):
        return True
    return error.http_status == 403 and not re.search("cannot create resource|webhook", error.cause)
