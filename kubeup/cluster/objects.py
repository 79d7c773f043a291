"""The objects that kb creates in a cluster so that nodes can join and kubeadm can take over: configuration ConfigMaps, RBAC,
cluster-info, a node's labels and taints.

This module renders them, and handles the few cases that server-side apply does not cover (a binding's roleRef, signatures in
cluster-info, a taint list). When they are written is decided by the phases. Mirrors
cmd/kubeadm/app/phases/{uploadconfig,bootstraptoken,markcontrolplane,patchnode}.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional

from kubeup import moments
from kubeup.addresses import join_host_port
from kubeup.cluster.api import AlreadyExists, Api, ApiRefused, Object, path_of
from kubeup.config.types import LoadBalancer, PodNetwork, Taint
from kubeup.errors import ClusterError, HostError
from kubeup.machine.http import Unreachable
from kubeup.shapes import Shape, fit
from kubeup.yaml_files import YAMLError, covers, dump_yaml, load_all_yaml, load_mapping, load_yaml, read_resource

SYSTEM = "kube-system"
PUBLIC = "kube-public"
HASH_ANNOTATION = "kubeadm.kubernetes.io/component-config.hash"
CRI_SOCKET_ANNOTATION = "kubeadm.alpha.kubernetes.io/cri-socket"
JWS_PREFIX = "jws-kubeconfig-"
RESTARTED_ANNOTATION = "kubectl.kubernetes.io/restartedAt"
RESTART_DUE = "kb.io/restart-due"
"""Of a ConfigMap: the pods that read it were not restarted yet since it was written."""
"""An annotation of a pod template. It is kubectl's own, so that the rollout history and other tools recognize it."""

CONTROL_PLANE_LABELS = {
    "node-role.kubernetes.io/control-plane": "",
    "node.kubernetes.io/exclude-from-external-load-balancers": "",
}
CONTROL_PLANE_TAINT = Taint(key="node-role.kubernetes.io/control-plane", effect="NoSchedule")

API_SERVERS = path_of("EndpointSlice", "kubernetes", namespace="default")
"""Each API server registers itself there, and the others remove it once it has been silent for 15 s."""

NO_BALANCER = LoadBalancer()

_BINDINGS = ("RoleBinding", "ClusterRoleBinding")
_NOT_RUNNING = frozenset({"route-controller", "service-controller", "selinux-warning-controller"})
"""Controllers that have rights in every cluster and run in few: with a cloud provider, or if they are asked for."""


# ---- values


def load_objects(name: str) -> list[Object]:
    """The objects in a file below configs/ ("rbac/bootstrap.yaml"), in the file's order."""
    return [dict(document) for document in load_all_yaml(read_resource(name))]


def render_config_map(
    name: str,
    data: Mapping[str, str],
    *,
    namespace: str = SYSTEM,
    labels: Optional[Mapping[str, str]] = None,
    annotations: Optional[Mapping[str, str]] = None,
) -> Object:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if labels:
        metadata["labels"] = dict(labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}


def render_kubeadm_config(stored: Mapping[str, Any]) -> Object:
    """ConfigMap kubeadm-config with the given ClusterConfiguration document."""
    return render_config_map("kubeadm-config", {"ClusterConfiguration": dump_yaml(dict(stored))})


def render_component_config(
    name: str, data: Mapping[str, str], *, generated_hash: str, labels: Optional[Mapping[str, str]] = None
) -> Object:
    """ConfigMap kubelet-config or kube-proxy. `generated_hash` is "" if the user provided the document: without the annotation,
    an upgrade leaves it alone."""
    annotations = {HASH_ANNOTATION: generated_hash} if generated_hash else None
    return render_config_map(name, data, labels=labels, annotations=annotations)


def render_cluster_info(server: str, ca_pem: str) -> Object:
    """ConfigMap cluster-info: everything that a node needs to reach the cluster, once it has checked the signature."""
    cluster = {"certificate-authority-data": base64.b64encode(ca_pem.encode()).decode(), "server": server}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "", "cluster": cluster}],
        "contexts": None,
        "current-context": "",
        "users": None,
    }
    return render_config_map("cluster-info", {"kubeconfig": dump_yaml(kubeconfig)}, namespace=PUBLIC)


def render_kb_config(network: PodNetwork, balancer: LoadBalancer = NO_BALANCER) -> Object:
    """ConfigMap kb-config: the cluster's pod network and load balancer, so that a joining node sets up the same ones, or none.
    The image of `balancer` must be set."""
    stored = {"podNetwork": dump_yaml({"plugin": network.plugin, "backend": network.backend, "mtu": network.mtu})}
    if balancer.is_local:
        told = {"mode": balancer.mode, "image": balancer.image, "healthPort": balancer.health_port}
        stored["loadBalancer"] = dump_yaml(told)
    return render_config_map("kb-config", stored)


_STORED: Shape = {
    "plugin": str, "backend": str, "mtu": int, "mode": str, "image": str, "healthPort": int,
}  # fmt: skip


def _read_stored(found: Optional[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """A mapping in ConfigMap kb-config; {} if it is missing. Raises HostError (not-a-yaml-mapping)."""
    place = "ConfigMap kube-system/kb-config"
    text = str(((found or {}).get("data") or {}).get(key, ""))
    try:
        stored = load_yaml(text)
    except YAMLError:
        return load_mapping(text, place)
    try:
        return dict(fit(stored, _STORED, what=key)) if isinstance(stored, dict) else {}
    except ValueError as error:
        raise HostError(
            f"{place} cannot be read",
            cause=str(error),
            remedy="correct it: kubectl -n kube-system edit configmap kb-config; then run the command again",
            code="not-a-yaml-mapping",
        ) from error


def parse_kb_config(found: Optional[Mapping[str, Any]]) -> PodNetwork:
    """The pod network in ConfigMap kb-config. A cluster without one was made by kubeadm and has its own."""
    stored = _read_stored(found, "podNetwork")
    if not stored:
        return PodNetwork(plugin="none")
    return PodNetwork(stored.get("plugin", "none"), backend=stored.get("backend", "auto"), mtu=stored.get("mtu", 0))


def parse_load_balancer(found: Optional[Mapping[str, Any]]) -> LoadBalancer:
    """The load balancer in ConfigMap kb-config; mode "none" if it names none."""
    stored = _read_stored(found, "loadBalancer")
    if not stored:
        return LoadBalancer()
    port = stored.get("healthPort", LoadBalancer.health_port)
    return LoadBalancer(stored.get("mode", "none"), stored.get("image", ""), port)


def parse_api_servers(found: Optional[Mapping[str, Any]]) -> tuple[str, ...]:
    """The API servers in the EndpointSlice that they maintain: `10.0.0.11:6443`, `[fd00::11]:6443`."""
    ports = [entry.get("port") for entry in (found or {}).get("ports") or [] if entry.get("name") == "https"]
    addresses = [
        str(address)
        for endpoint in (found or {}).get("endpoints") or []
        if (endpoint.get("conditions") or {}).get("ready") is not False
        for address in endpoint.get("addresses") or []
    ]
    return tuple(sorted({join_host_port(address, ports[0]) for address in addresses})) if ports else ()


def render_taint(taint: Taint) -> dict[str, str]:
    found = {"key": taint.key, "value": taint.value, "effect": taint.effect, "timeAdded": taint.time_added}
    return {name: value for name, value in found.items() if value}


def plan_node_marks(node: Mapping[str, Any], taints: Sequence[Taint]) -> Optional[dict[str, Any]]:
    """A merge patch that marks `node` as a control plane; None if it is marked already.

    The configured taints come first, followed by the node's other taints. The patch replaces the whole list, which controllers
    change at the same time, so it carries the node's resourceVersion.
    """
    meta, spec = node["metadata"], node.get("spec") or {}
    missing = {
        key: value for key, value in CONTROL_PLANE_LABELS.items() if (meta.get("labels") or {}).get(key) != value
    }
    wanted = [render_taint(taint) for taint in taints]
    marks = {(taint["key"], taint["effect"]) for taint in wanted}
    existing = list(spec.get("taints") or [])
    merged = [*wanted, *(taint for taint in existing if (taint["key"], taint["effect"]) not in marks)]
    has_taints = all(any(covers(found, taint) for found in existing) for taint in wanted)
    if not missing and has_taints:
        return None
    patch: dict[str, Any] = {"metadata": {"labels": missing, "resourceVersion": meta.get("resourceVersion")}}
    if not has_taints:
        patch["spec"] = {"taints": merged}
    return patch


# ---- looks


def has_objects(api: Api, objects: Iterable[Object]) -> bool:
    """Whether each object is in the cluster as rendered."""
    return all(covers(api.get(api.object_path(wanted)), wanted) for wanted in objects)


def read_config_key(api: Api, name: str, *, key: str) -> str:
    """The value of a key of a ConfigMap in kube-system; "" if it is missing."""
    return value_of(api.get(path_of("ConfigMap", name, namespace=SYSTEM)), key)


def value_of(config_map: Optional[Object], key: str) -> str:
    """The value of a key of a ConfigMap that was read; "" if it, or the ConfigMap, is missing."""
    return str(((config_map or {}).get("data") or {}).get(key) or "")


def read_pod_network(api: Api) -> PodNetwork:
    """The cluster's pod network according to kb-config; plugin "none" without one, as in a cluster made by kubeadm. Its nodes may not
    read kb-config, so "forbidden" means the same as "not found"."""
    try:
        return parse_kb_config(api.get(path_of("ConfigMap", "kb-config", namespace=SYSTEM)))
    except ApiRefused as error:
        if error.http_status != 403:
            raise
        return PodNetwork(plugin="none")


def read_load_balancer(api: Api) -> LoadBalancer:
    """The load balancer of the cluster's nodes according to kb-config; mode "none" without one, as in read_pod_network."""
    try:
        return parse_load_balancer(api.get(path_of("ConfigMap", "kb-config", namespace=SYSTEM)))
    except ApiRefused as error:
        if error.http_status != 403:
            raise
        return LoadBalancer()


def read_api_servers(api: Api) -> tuple[str, ...]:
    """The cluster's API servers; () if this identity may not see them."""
    try:
        return parse_api_servers(api.get(API_SERVERS))
    except ApiRefused as error:
        if error.http_status != 403:
            raise
        return ()


def render_selector(selector: Any) -> str:
    """A LabelSelector as a query has it: `app=web,tier in (a,b),!old`."""
    found = selector if isinstance(selector, dict) else {}
    parts = [f"{key}={value}" for key, value in (found.get("matchLabels") or {}).items()]
    for row in found.get("matchExpressions") or ():
        key, verb, values = row.get("key"), row.get("operator"), ",".join(row.get("values") or ())
        forms = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": f"{key}"}
        parts.append(forms.get(str(verb), f"!{key}"))
    return ",".join(parts)


# ---- changes


def apply_objects(api: Api, objects: Iterable[Object]) -> bool:
    """Apply the objects in order; return whether anything changed.

    Raises ClusterError (binding-role-differs) if a binding exists with another role: no update can change that.
    """
    changed = False
    for wanted in objects:
        if wanted["kind"] in _BINDINGS:
            _check_role_ref(wanted, api.get(api.object_path(wanted)))
        changed = api.apply(wanted) or changed
    return changed


def _check_role_ref(wanted: Object, found: Optional[Object]) -> None:
    if found is None:
        return
    have, want = found.get("roleRef") or {}, wanted["roleRef"]
    if (have.get("kind"), have.get("name")) == (want["kind"], want["name"]):
        return
    meta = wanted["metadata"]
    where = f" -n {meta['namespace']}" if "namespace" in meta else ""
    raise ClusterError(
        f"{wanted['kind']} {meta['name']!r} binds {have.get('kind')} {have.get('name')!r}, "
        f"and must bind {want['kind']} {want['name']!r}",
        cause="another tool or person made it, and the role of a binding cannot be changed",
        remedy=f"kubectl delete {wanted['kind'].lower()}{where} {meta['name']}, then run the command again",
        code="binding-role-differs",
    )


def create_controllers_accounts(api: Api) -> None:
    """Create those service accounts of the controllers that are not there yet. Which controllers there are is said by the role bindings
    that the API server has written for them.

    The controller-manager would create them itself, and alike: one after the other, with three of the 20 requests a second that it
    allows itself, before any controller starts. On a new cluster that takes five seconds, in which no node gets a podCIDR. Source:
    getOrCreateServiceAccount in staging/src/k8s.io/controller-manager/pkg/clientbuilder/client_builder_dynamic.go
    """
    there = {account["metadata"]["name"] for account in api.list(path_of("ServiceAccount", namespace=SYSTEM))}
    bindings = api.list(path_of("ClusterRoleBinding"), label="kubernetes.io/bootstrapping=rbac-defaults")
    theirs = [binding for binding in bindings if binding["metadata"]["name"].startswith("system:controller:")]
    bound = (subject for binding in theirs for subject in binding.get("subjects") or [])
    named = {one["name"] for one in bound if one["kind"] == "ServiceAccount" and one.get("namespace") == SYSTEM}
    for name in sorted(named - there - _NOT_RUNNING):
        with contextlib.suppress(AlreadyExists):  # the controller-manager has come first
            api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": SYSTEM, "name": name}})


def apply_component_config(api: Api, wanted: Object) -> bool:
    """Apply a ConfigMap with or without the hash annotation, and return whether anything changed. A user's own document must not
    have the annotation; one that another tool set is removed separately, because applying does not remove it."""
    found = api.get(api.object_path(wanted))
    has_hash = bool(found and HASH_ANNOTATION in ((found["metadata"].get("annotations")) or {}))
    wants_hash = HASH_ANNOTATION in (wanted["metadata"].get("annotations") or {})
    changed = api.apply(wanted)
    if has_hash and not wants_hash:
        api.patch(api.object_path(wanted), {"metadata": {"annotations": {HASH_ANNOTATION: None}}})
        return True
    return changed


def restart_pods(api: Api, path: str, *, now: datetime.datetime) -> None:
    """Restart the pods of the DaemonSet or Deployment at `path`, as `kubectl rollout restart` does."""
    annotations = {RESTARTED_ANNOTATION: moments.show(now)}
    api.patch(path, {"spec": {"template": {"metadata": {"annotations": annotations}}}})


def with_restart_due(manifest: Object) -> Object:
    """The ConfigMap with a note that the pods that read it are still to be restarted: whoever wrote it may be killed before."""
    meta = manifest["metadata"]
    return {**manifest, "metadata": {**meta, "annotations": {**meta.get("annotations", {}), RESTART_DUE: "true"}}}


def is_restart_due(found: Object) -> bool:
    return RESTART_DUE in (found["metadata"].get("annotations") or {})


def is_restarted(pod: Object, owner: Object) -> bool:
    """Whether this pod of a DaemonSet or Deployment was created after the last restart_pods."""
    asked = (owner["spec"]["template"]["metadata"].get("annotations") or {}).get(RESTARTED_ANNOTATION)
    return bool((pod["metadata"].get("annotations") or {}).get(RESTARTED_ANNOTATION) == asked)


def apply_cluster_info(api: Api, wanted: Object) -> bool:
    """Write cluster-info. If its kubeconfig is unchanged, the signatures stay. Otherwise they are removed, since they would make every
    join fail, and the controller-manager signs it again."""
    path = api.object_path(wanted)
    found = api.get(path)
    have = (found or {}).get("data") or {}
    kubeconfig = wanted["data"]["kubeconfig"]
    if found is None:
        return api.apply(wanted)
    if have.get("kubeconfig") == kubeconfig:
        return False
    stale = {key: None for key in have if key.startswith(JWS_PREFIX)}
    api.patch(path, {"data": {**stale, "kubeconfig": kubeconfig}})
    return True


def patch_fields(api: Api, path: str, *, plan: Callable[[Object], Optional[Object]]) -> bool:
    """Patch the object at `path` with the patch that `plan` returns for it; return whether there was one. On a conflict, which a
    patch with a resourceVersion meets if somebody else changed the object, a new patch is planned."""
    for attempt in range(10):
        patch = plan(api.get(path) or {"metadata": {}})
        if patch is None:
            return False
        try:
            api.patch(path, patch)
        except ApiRefused as error:
            if error.http_status != 409 or attempt == 9:
                raise
            continue
        return True
    return True


def ensure_admin_binding(api: Api, make_super_api: Callable[[], Api]) -> bool:
    """Bind admin.conf's group to cluster-admin; return whether the binding had to be created.

    `api` uses admin.conf, which may do this only once the binding exists. super-admin.conf always may, but exists only on the first
    control plane, so it is opened only if needed. Raises ClusterError (admin-not-bound) if neither may.
    """
    (binding,) = load_objects("rbac/cluster-admins.yaml")
    try:
        api.create(binding)
    except AlreadyExists:
        return False
    except ApiRefused as error:
        if error.http_status != 403:
            raise
        return _bind_with_super_admin(make_super_api, binding)
    return True


def _bind_with_super_admin(make_super_api: Callable[[], Api], binding: Object) -> bool:
    try:
        make_super_api().create(binding)
    except AlreadyExists:
        return False
    except HostError as error:
        if isinstance(error, Unreachable):
            raise
        raise ClusterError(
            "admin.conf has no rights in the cluster yet",
            cause="ClusterRoleBinding kubeadm:cluster-admins is missing, and super-admin.conf, which could make it, "
            f"cannot be used: {error}",
            remedy="run the command on the first control plane, or make super-admin.conf there: "
            "kb init phase kubeconfig super-admin",
            code="admin-not-bound",
        ) from error
    return True
