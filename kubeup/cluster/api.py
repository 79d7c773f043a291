"""A small REST client for the Kubernetes API: get, list, create, apply, replace, patch, delete.

It sends JSON through Host, so that a dry run sees every change. It knows the few kinds that kb uses and asks the server about any
other. What an object should look like is decided elsewhere.
Sources: Kubernetes API concepts (server-side apply), cmd/kubeadm/app/util/apiclient/idempotency.go
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, TypeVar

from kubeup.errors import ClusterError, HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.host import Host
from kubeup.machine.http import HttpResponse, HttpStream, Tls, Unreachable
from kubeup.secret import Secret
from kubeup.shapes import Shape, fit, fit_what_does
from kubeup.trust import Anchors

FIELD_MANAGER = "kb"
NO_TOKEN = Secret("")
REQUEST_TIMEOUT_S = 10
TRIAL_TIMEOUT_S = 12
"""The timeout of a dry run: longer than a webhook may take by default (timeoutSeconds: 10)."""
RETRY_INTERVAL_S = 0.2
_MAX_OBJECTS = 256 << 20
"""The maximum size, in bytes, of an answer of an authenticated API server: enough for the list of a large cluster's nodes."""

_T = TypeVar("_T")
Object = dict[str, Any]

# kind -> (API prefix, plural, namespaced): the kinds that kb itself makes or reads
_KINDS: Mapping[str, tuple[str, str, bool]] = {
    "ConfigMap": ("/api/v1", "configmaps", True),
    "Namespace": ("/api/v1", "namespaces", False),
    "Node": ("/api/v1", "nodes", False),
    "Pod": ("/api/v1", "pods", True),
    "Secret": ("/api/v1", "secrets", True),
    "Service": ("/api/v1", "services", True),
    "ServiceAccount": ("/api/v1", "serviceaccounts", True),
    "Endpoints": ("/api/v1", "endpoints", True),
    "Event": ("/api/v1", "events", True),
    "DaemonSet": ("/apis/apps/v1", "daemonsets", True),
    "Deployment": ("/apis/apps/v1", "deployments", True),
    "ReplicaSet": ("/apis/apps/v1", "replicasets", True),
    "Job": ("/apis/batch/v1", "jobs", True),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases", True),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices", True),
    "ClusterRole": ("/apis/rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "Role": ("/apis/rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings", True),
    "CertificateSigningRequest": ("/apis/certificates.k8s.io/v1", "certificatesigningrequests", False),
    "APIService": ("/apis/apiregistration.k8s.io/v1", "apiservices", False),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets", True),
    "ValidatingWebhookConfiguration": (
        "/apis/admissionregistration.k8s.io/v1",
        "validatingwebhookconfigurations",
        False,
    ),
    "MutatingWebhookConfiguration": ("/apis/admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations", False),
    "CustomResourceDefinition": ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", False),
}
_PREFIX_OF_VERSION = {prefix.split("/", 2)[2]: prefix for prefix, _, _ in _KINDS.values()}


def _moment(text: str) -> None:
    datetime.datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")


def _network(text: str) -> None:
    ipaddress.ip_network(text, strict=False)


_TEXTS = {str: str}
_META: Shape = {
    "name!": str,
    "namespace": str,
    "uid": str,
    "resourceVersion": str,
    "creationTimestamp": str,
    "deletionTimestamp": str,
    "labels": _TEXTS,
    "annotations": _TEXTS,
    "managedFields": [{"manager": str, "operation": str}],
    "ownerReferences": [{"kind": str, "name": str, "controller": bool}],
    "deletionGracePeriodSeconds": int,
}
_CONDITIONS: Shape = [{"type": str, "status": str, "message": str, "reason": str}]
_CONTAINER_STATUSES: Shape = [
    {
        "name": str,
        "containerID": str,
        "restartCount": int,
        "ready": bool,
        "state": {
            "running": {"startedAt": _moment},
            "terminated": {"exitCode": int, "reason": str, "message": str},
            "waiting": {"reason": str, "message": str},
        },
    }
]
_WORKLOAD: Shape = {
    "spec!": {
        "replicas": int,
        "template!": {
            "metadata!": _META,
            "spec!": {"containers": [{"name": str, "image": str, "env": [{"name": str, "value": str}]}]},
        },
    },
    "status": {
        "conditions": _CONDITIONS,
        "replicas": int,
        "readyReplicas": int,
        "observedGeneration": int,
        "updatedReplicas": int,
        "availableReplicas": int,
        "desiredNumberScheduled": int,
        "updatedNumberScheduled": int,
        "numberAvailable": int,
    },
}
_SELECTOR: Shape = {
    "matchLabels": _TEXTS,
    "matchExpressions": [{"key!": str, "operator!": str, "values": [str]}],
}
_WEBHOOK: Shape = {
    "name!": str,
    "failurePolicy": str,
    "clientConfig": {"url": str, "service": {"namespace": str, "name": str}},
    "rules": [{"apiGroups": [str], "resources": [str], "operations": [str]}],
}
_SHAPES: Mapping[str, Shape] = {
    # plural -> the fields that kb reads from such an object, besides its metadata
    "configmaps": {"data": _TEXTS},
    "secrets": {"data": _TEXTS, "type": str},
    "nodes": {
        "spec": {
            "podCIDR": _network,
            "podCIDRs": [_network],
            "unschedulable": bool,
            "taints": [{"key!": str, "value": str, "effect!": str}],
        },
        "status": {
            "conditions": _CONDITIONS,
            "addresses": [{"type": str, "address!": str}],
            "nodeInfo": {"kubeletVersion": str, "containerRuntimeVersion": str, "osImage": str},
        },
    },
    "pods": {
        "spec": {
            "nodeName": str,
            "terminationGracePeriodSeconds": int,
            "volumes": [{"name": str, "emptyDir": {str: object}}],
        },
        "status": {"podIP": str, "phase": str, "conditions": _CONDITIONS, "containerStatuses": _CONTAINER_STATUSES},
    },
    "deployments": _WORKLOAD,
    "daemonsets": _WORKLOAD,
    "services": {"spec": {"clusterIP": str, "clusterIPs": [str]}},
    "endpointslices": {
        "ports": [{"name": str, "port": int}],
        "endpoints": [{"addresses": [str], "conditions": {"ready": bool}, "nodeName": str}],
    },
    "events": {"message": str, "reason": str, "lastTimestamp": str, "eventTime": str},
    "certificatesigningrequests": {
        "spec!": {"request": str, "username": str, "signerName": str},
        "status": {"certificate": str, "conditions": _CONDITIONS},
    },
    "customresourcedefinitions": {
        "spec": {"versions": [{"name": str, "storage": bool, "served": bool}]},
        "status": {"conditions": _CONDITIONS, "storedVersions": [str]},
    },
    "poddisruptionbudgets": {
        "spec": {"selector": _SELECTOR},
        "status": {"disruptionsAllowed": int, "expectedPods": int, "currentHealthy": int, "desiredHealthy": int},
    },
    "validatingwebhookconfigurations": {"webhooks": [_WEBHOOK]},
    "mutatingwebhookconfigurations": {"webhooks": [_WEBHOOK]},
    "leases": {"spec!": {"holderIdentity": str, "leaseDurationSeconds": int, "renewTime": str, "acquireTime": str}},
    "clusterrolebindings": {"roleRef": {"kind": str, "name": str}, "subjects": [{"name": str}]},
    "rolebindings": {"roleRef": {"kind": str, "name": str}},
    "": {"resources": [{"kind!": str, "name!": str, "namespaced!": bool}]},
}
"""The types that callers may rely on in an answer of the API server: an answer with other types is rejected on arrival, as Go's
clients do."""

_PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}


class ApiRefused(ClusterError):
    """The API server rejected a request. `http_status` is HTTP's, `reason` the API's ("Forbidden"), `causes` the messages of its
    causes: which disruption budget refuses an eviction, for example."""

    def __init__(
        self, request: str, status: int, *, reason: str, message: str, server: str, causes: Sequence[str] = ()
    ) -> None:
        super().__init__(
            f"the API server refused: {request}",
            cause=f"{message or reason or 'no reason given'} (HTTP {status})",
            remedy=_REMEDIES.get(status, f"look at the API server's log: crictl logs of kube-apiserver at {server}"),
            code=_CODES.get(status, "api-refused"),
        )
        self.http_status = status
        self.reason = reason
        self.causes = tuple(causes)


class AlreadyExists(ApiRefused):
    """A POST of an object whose name is taken."""


_CODES = {401: "api-unauthorized", 403: "api-forbidden", 409: "api-conflict", 422: "api-invalid"}
_REMEDIES = {
    401: "the client certificate or token is not accepted: does admin.conf belong to this cluster, and is the clock right?",
    403: "the identity lacks the right: bind kubeadm:cluster-admins to cluster-admin, or use super-admin.conf",
    409: "the object changed meanwhile: run the command again",
    422: "correct the field that the cause names (it comes from the configuration or a patch), then run the command again",
}


@frozen
class Identity:
    """An API server, and the credentials used for it."""

    server: str
    """`https://10.0.0.11:6443`, without a trailing slash."""
    tls: Tls
    token: Secret = NO_TOKEN


class Api:
    """Requests to one API server with one identity."""

    def __init__(
        self, host: Host, identity: Identity, *, retry_s: float = 60, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        self.host = host
        self.identity = identity
        self.server = identity.server
        self.retry_s = retry_s
        """How many seconds get, apply and the others retry while the server is starting or does not answer
        (timeouts.kubernetesAPICall)."""
        self.timeout_s = timeout_s
        """How many seconds the answer to one GET may take."""
        self.is_fleeting = False
        """Whether each request has a connection of its own. One that is kept leads to the same API server for as long as that lives, and
        behind a load balancer that may be one that has lost its etcd and answers from its cache."""
        self.changes: list[str] = []
        """The objects changed through this client: "ConfigMap kube-system/kubeadm-config"."""
        self._resources: dict[str, dict[str, tuple[str, bool]]] = {}

    def with_server(self, server: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> Api:
        identity = Identity(server, self.identity.tls, self.identity.token)
        return Api(self.host, identity, retry_s=self.retry_s, timeout_s=timeout_s)

    def become(self, identity: Identity) -> None:
        """Switch to another identity, but keep the server."""
        self.identity = Identity(self.server, identity.tls, identity.token)

    # ---- objects

    def get(self, path: str) -> Optional[Object]:
        """The object at `path`; None if there is none. Raises ApiRefused, Unreachable."""
        answer = self._retrying(lambda: self._get(path), f"GET {path}")
        if answer.status == 404:
            return None
        return self._object(answer, f"GET {path}")

    def list(self, path: str, *, label: str = "", field: str = "") -> list[Object]:
        """The items of the collection at `path` that match the label and field selectors."""
        query = {name: value for name, value in (("labelSelector", label), ("fieldSelector", field)) if value}
        full = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        found = self.get(full)
        return list((found or {}).get("items") or [])

    def create(self, obj: Object) -> Object:
        """POST an object. Raises AlreadyExists if the name is taken."""
        made = self._send("POST", self.object_path(obj, collection=True), body=obj)
        self.changes.append(describe_object(obj))
        return made

    def try_create(self, obj: Object) -> None:
        """POST an object as a dry run: the server runs admission and validation, and stores nothing. Asks once. Raises ApiRefused,
        Unreachable. Source: KEP-576"""
        path = self.object_path(obj, collection=True)
        answer = self.host.http_ask(
            self._url(f"{path}?dryRun=All"),
            json.dumps(obj).encode(),
            tls=self.identity.tls,
            headers=self._headers(),
            timeout_s=TRIAL_TIMEOUT_S,
        )
        self._object(answer, f"POST {path}")

    def ask(
        self, path: str, body: Mapping[str, Any], *, timeout_s: float, headers: Optional[Mapping[str, str]] = None
    ) -> HttpResponse:
        """POST what only asks, such as a review, once, and return the answer, whatever its status. Raises Unreachable."""
        return self.host.http_ask(
            self._url(path),
            json.dumps(body).encode(),
            tls=self.identity.tls,
            headers={**self._headers("application/json"), **(headers or {})},
            timeout_s=timeout_s,
        )

    def evict(self, namespace: str, name: str, *, uid: str, is_trial: bool = False) -> None:
        """Ask for the eviction of one pod, which disruption budgets may refuse. Asks once. is_trial: the server only says whether it would
        evict it. Raises ApiRefused (409 if the pod of this name has another uid by now), Unreachable.
        Source: pkg/registry/core/pod/storage/eviction.go"""
        path = f"{path_of('Pod', name, namespace=namespace)}/eviction"
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        data, headers = json.dumps(body).encode(), self._headers("application/json")
        if is_trial:
            url, ask = self._url(f"{path}?dryRun=All"), self.host.http_ask
            answer = ask(url, data, tls=self.identity.tls, headers=headers, timeout_s=TRIAL_TIMEOUT_S)
        else:
            answer = self.host.http_send(
                "POST", self._url(path), body=data, tls=self.identity.tls, headers=headers, timeout_s=TRIAL_TIMEOUT_S
            )
        self._object(answer, f"POST {path}")
        if not is_trial:
            self.changes.append(path)

    def apply(self, obj: Object) -> bool:
        """Apply `obj` by server-side apply, creating it if needed; fields that others set and `obj` does not name stay. Returns
        whether anything changed."""
        path = self.object_path(obj)
        before = self.get(path)
        after = self._send(
            "PATCH", f"{path}?fieldManager={FIELD_MANAGER}&force=true", body=obj, content_type=_PATCH_TYPES["apply"]
        )
        is_changed = before is None or _version_of(before) != _version_of(after)
        if is_changed:
            self.changes.append(describe_object(obj))
        return is_changed

    def replace(self, obj: Object) -> Object:
        """PUT the whole object. Raises ApiRefused (api-conflict) if its resourceVersion is stale."""
        after = self._send("PUT", self.object_path(obj), body=obj)
        self.changes.append(describe_object(obj))
        return after

    def create_or_replace(self, obj: Object) -> Object:
        """Write as kubeadm does: POST, or PUT if the name is taken. PUT drops every field that `obj` does not name."""
        try:
            return self.create(obj)
        except AlreadyExists:
            return self.replace(obj)

    def patch(self, path: str, body: object, *, kind: str = "merge") -> Object:
        """PATCH the object at `path` with a `merge` (RFC 7386), `strategic` or `json` (RFC 6902) body."""
        after = self._send("PATCH", f"{path}?fieldManager={FIELD_MANAGER}", body=body, content_type=_PATCH_TYPES[kind])
        self.changes.append(path)
        return after

    def delete(self, path: str) -> bool:
        """Delete the object at `path`; return False if there was none."""
        answer = self._retrying(
            lambda: self.host.http_send("DELETE", self._url(path), tls=self.identity.tls, headers=self._headers()),
            f"DELETE {path}",
        )
        if answer.status == 404:
            return False
        self._object(answer, f"DELETE {path}")
        self.changes.append(path)
        return True

    def open(self, path: str, *, timeout_s: float) -> contextlib.AbstractContextManager[HttpStream]:
        """GET `path` as a stream, for a watch. Asks once, over a connection of its own. timeout_s: until the answer begins, and between
        its pieces. Raises Unreachable; whatever the status is, it is the caller's."""
        return self.host.http_open(self._url(path), tls=self.identity.tls, headers=self._headers(), timeout_s=timeout_s)

    # ---- the server itself

    def probe_health(
        self, endpoint: str = "/livez", timeout_s: float = REQUEST_TIMEOUT_S, *, accept: str = "application/json"
    ) -> HttpResponse:
        """GET a health endpoint once and return the answer, whatever its status. Raises Unreachable."""
        headers = {**self._headers(), "Accept": accept}
        return self.host.http_get(self._url(endpoint), tls=self.identity.tls, headers=headers, timeout_s=timeout_s)

    def read_page(self, path: str, *, timeout_s: float, max_bytes: int) -> HttpResponse:
        """GET what is no object, such as /metrics, once, and return the answer, whatever its status. Raises Unreachable."""
        return self.host.http_get(
            self._url(path), tls=self.identity.tls, headers=self._headers(), timeout_s=timeout_s, max_bytes=max_bytes
        )

    # ---- paths

    def object_path(self, obj: Object, *, collection: bool = False) -> str:
        """The API path of `obj`, from its apiVersion, kind and metadata. Asks the server about kinds that kb does not know. Raises
        ClusterError (unknown-kind) if the server does not know the kind either."""
        version, kind = str(obj.get("apiVersion", "")), str(obj.get("kind", ""))
        prefix, plural, namespaced = self._resource(version, kind)
        meta = obj.get("metadata") or {}
        namespace = (meta.get("namespace") or "default") if namespaced else ""
        return _join(prefix, plural, name="" if collection else str(meta.get("name", "")), namespace=namespace)

    def _resource(self, version: str, kind: str) -> tuple[str, str, bool]:
        known = _KINDS.get(kind)
        if known and known[0] == _PREFIX_OF_VERSION.get(version):
            return known
        prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if kind not in self._resources.get(version, {}):
            found = self.get(prefix) or {}
            self._resources[version] = {
                entry["kind"]: (entry["name"], bool(entry["namespaced"]))
                for entry in found.get("resources") or []
                if "/" not in entry["name"]
            }
        if kind not in self._resources[version]:
            raise ClusterError(
                f"the cluster knows no kind {kind!r} of {version!r}",
                cause="no built-in API and no CustomResourceDefinition has it",
                remedy="apply the CustomResourceDefinition first, or correct apiVersion and kind in the manifest",
                code="unknown-kind",
            )
        plural, namespaced = self._resources[version][kind]
        return prefix, plural, namespaced

    # ---- plumbing

    def _url(self, path: str) -> str:
        return self.server + path

    def _headers(self, content_type: str = "") -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "kb"}
        if self.is_fleeting:
            headers["Connection"] = "close"
        if content_type:
            headers["Content-Type"] = content_type
        if self.identity.token:
            headers["Authorization"] = f"Bearer {self.identity.token.reveal()}"
        return headers

    def _get(self, path: str) -> HttpResponse:
        return self.host.http_get(
            self._url(path),
            tls=self.identity.tls,
            headers=self._headers(),
            timeout_s=self.timeout_s,
            max_bytes=_MAX_OBJECTS,
        )

    def _send(self, method: str, path: str, *, body: object, content_type: str = "application/json") -> Object:
        data = json.dumps(body).encode()
        request = f"{method} {path.partition('?')[0]}"
        answer = self._retrying(
            lambda: self.host.http_send(
                method,
                self._url(path),
                body=data,
                tls=self.identity.tls,
                headers=self._headers(content_type),
                timeout_s=REQUEST_TIMEOUT_S,
            ),
            request,
        )
        return self._object(answer, request)

    def _object(self, answer: HttpResponse, request: str) -> Object:
        try:
            body = parse_json(answer.body, "the answer", max_bytes=_MAX_OBJECTS) if answer.body else {}
            if answer.status < 300:
                return fit_object(body, request.partition(" ")[2])
        except ValueError as error:
            if answer.status < 300:
                raise _not_understood(request, str(error), server=self.server) from error
            body = {"message": answer.body[:200].decode(errors="replace")}
        reason = str(body.get("reason", "")) if isinstance(body, dict) else ""
        message = str(body.get("message", "")) if isinstance(body, dict) else ""
        wrong = AlreadyExists if reason == "AlreadyExists" else ApiRefused
        causes = _read_causes(body)
        raise wrong(request, answer.status, reason=reason, message=message, server=self.server, causes=causes)

    def _retrying(self, ask: Callable[[], HttpResponse], request: str) -> HttpResponse:
        """Retry until the answer is final. A starting or overloaded server answers 429 or 5xx, and a restarting one refuses the
        connection. If time runs out, the last error or answer counts."""
        deadline = self.host.monotonic() + self.retry_s
        while True:
            try:
                answer = ask()
            except Unreachable as error:
                if not self.host.is_live and self.host.mode != "look" and request.startswith("GET "):
                    return HttpResponse(404)  # a cluster that is only planned holds no objects
                if error.reason in ("tls", "dns") or not self._has_time(deadline):
                    raise
            else:
                is_passing = answer.status in (429, 500, 502, 503, 504) or self._is_starting(answer)
                if not is_passing or not self._has_time(deadline):
                    return answer
            self.host.sleep(RETRY_INTERVAL_S)

    def _is_starting(self, answer: HttpResponse) -> bool:
        """Whether a 403 is worth a retry: a starting API server forbids everything until it has loaded its roles. Once it is ready,
        403 is final. /readyz itself is open to every authenticated user."""
        if answer.status != 403 or not self.host.is_live:
            return False
        if b"RBAC: " in answer.body and b"not found" in answer.body:
            return True
        try:
            return self.probe_health("/readyz", timeout_s=5).status != 200
        except Unreachable:
            return True

    def _has_time(self, deadline: float) -> bool:
        return self.host.is_live and self.host.monotonic() + RETRY_INTERVAL_S < deadline


def _read_causes(body: object) -> list[str]:
    """The messages of the causes in a Status. Source: apimachinery, meta/v1 StatusCause"""
    shape: Shape = {"details!": {"causes": [{"message": str}]}}
    found = fit_what_does(body, shape)
    return [cause["message"] for cause in found["details"].get("causes") or () if cause.get("message")]


def fit_object(body: object, path: str) -> Object:
    """The answer to a request for `path`, an object or a list, checked against the types of its kind. Raises ValueError."""
    found: Object = fit(body, {"kind": str}, what="it")
    if found.get("kind") == "Status":
        return found
    plural = _plural_of(path)
    shape: Shape = {"metadata!" if plural in _SHAPES and plural else "metadata": _META, **_SHAPES.get(plural, {})}
    if "items" in found and "name" not in fit(found.get("metadata"), {}, what="metadata"):
        shape = {"items": [shape]}
    return dict(fit(found, shape, what=""))


def _plural_of(path: str) -> str:
    """The plural in a path: `pods` in /api/v1/namespaces/x/pods/y; "" if the path names only an API."""
    words = path.partition("?")[0].strip("/").split("/")
    words = words[3 if words[0] == "apis" else 2 :]
    return words[2] if words[:1] == ["namespaces"] and len(words) > 2 else words[0] if words else ""


def _not_understood(request: str, cause: str, *, server: str) -> ClusterError:
    return ClusterError(
        f"the API server's answer to {request.partition('?')[0]} is not understood",
        cause=cause,
        remedy=f"see what answers at {server}: kubectl get --raw {request.partition(' ')[2].partition('?')[0]}",
        code="api-answer-odd",
    )


def describe_object(obj: Object) -> str:
    """`ConfigMap kube-system/kubeadm-config`"""
    meta = obj.get("metadata") or {}
    name = f"{meta['namespace']}/{meta.get('name')}" if meta.get("namespace") else str(meta.get("name"))
    return f"{obj.get('kind')} {name}"


def _version_of(obj: Object) -> object:
    return (obj.get("metadata") or {}).get("resourceVersion")


def _join(prefix: str, plural: str, *, name: str, namespace: str) -> str:
    parts = [prefix]
    if namespace:
        parts += ["namespaces", urllib.parse.quote(namespace, safe="")]
    parts.append(plural)
    if name:
        parts.append(urllib.parse.quote(name, safe=""))
    return "/".join(parts)


def path_of(kind: str, name: str = "", *, namespace: str = "") -> str:
    """The API path of an object, or without a name, of a collection. Without a namespace, the collection of a namespaced kind spans
    all namespaces. Raises KeyError for a kind that kb does not know."""
    prefix, plural, _ = _KINDS[kind]
    return _join(prefix, plural, name=name, namespace=namespace)


def read_identity(host: Host, path: Any, *, server: str = "") -> Identity:
    """The identity in a kubeconfig file; `server` overrides the one in the file.

    Raises HostError (kubeconfig-unreadable) if the file is missing or is no kubeconfig, and whatever resolve_credentials raises.
    """
    from kubeup.node.credential_plugin import resolve_credentials
    from kubeup.node.kubeconfig import read_kubeconfig

    if not host.exists(path):
        raise HostError(
            f"no kubeconfig at {path}",
            cause="the file is not there",
            remedy="run kb init first, or give --kubeconfig the file of a cluster admin",
            code="kubeconfig-unreadable",
        )
    found = read_kubeconfig(host.read_text(path), host=host, path=path)
    found = resolve_credentials(host, found, place=str(path), folder=path.parent)
    # a kubeconfig on this machine is trusted, because its operator put it there
    ca = Anchors.given(found.ca_pem) if found.ca_pem else None
    cert, key = found.client_cert_pem or None, found.client_key_pem or None
    tls = Tls(ca, cert, key, found.tls_server_name, found.proxy_url)
    return Identity(server or found.server, tls, found.token or Secret(""))
