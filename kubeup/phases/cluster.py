"""The phases that put a new cluster's objects in place: upload-config, upload-certs, mark-control-plane,
bootstrap-token.

The objects are in kubeup/cluster/objects.py. Mirrors cmd/kubeadm/app/cmd/phases/init/{uploadconfig,uploadcerts,
markcontrolplane,bootstraptoken}.go.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kubeup.engine.items import ClusterInfo, Object, TokenSecret
from kubeup.engine.plan import Plan, digest
from kubeup.engine.run import Outputs, Results, Run
from kubeup.errors import ClusterError, KbError
from kubeup.lazy_modules import lazy_import
from kubeup.machine import services
from kubeup.secret import Secret
from kubeup.yaml_files import covers

if TYPE_CHECKING:
    from kubeup.cluster import api, objects, shared_certs, tokens
    from kubeup.config import render
    from kubeup.config.types import BootstrapToken
    from kubeup.diagnosis import kubelet_trouble
    from kubeup.node import kubeconfig, kubelet
else:
    shared_certs = lazy_import("kubeup.cluster.shared_certs")
    objects = lazy_import("kubeup.cluster.objects")
    kubelet_trouble = lazy_import("kubeup.diagnosis.kubelet_trouble")
    api = lazy_import("kubeup.cluster.api")
    kubeconfig = lazy_import("kubeup.node.kubeconfig")
    kubelet = lazy_import("kubeup.node.kubelet")
    render = lazy_import("kubeup.config.render")
    tokens = lazy_import("kubeup.cluster.tokens")

Manifest = dict[str, Any]
SYSTEM = "kube-system"
NODE_POLL_S = 0.25
LOOK_EVERY_S = 4
"""A kubelet registers its node within two seconds: after this long it is asked why it has not."""


# ---- upload-config


def upload_kubeadm_config(ctx: Run) -> Outputs:
    objects.apply_objects(ctx.api, _kubeadm_config(ctx))
    return None


def kubeadm_config_is_uploaded(ctx: Run) -> bool:
    return objects.has_objects(ctx.api, _kubeadm_config(ctx))


def _kubeadm_config(ctx: Run) -> list[Manifest]:
    stored = render.render_cluster_configuration(ctx.config.cluster, ctx.release)
    return [objects.render_kubeadm_config(stored), *objects.load_objects("rbac/kubeadm-config.yaml")]


def upload_kubelet_config(ctx: Run) -> Outputs:
    """The configuration that joining nodes start from, and on older minors this node's CRI socket."""
    config_map, *rbac = _kubelet_config(ctx)
    objects.apply_component_config(ctx.api, config_map)
    objects.apply_objects(ctx.api, rbac)
    if not kubelet.has_instance_config(ctx.config.cluster, ctx.release):
        wait_for_node(ctx)
        ctx.api.patch(_node_path(ctx), {"metadata": {"annotations": _socket_annotation(ctx)}})
    return None


def kubelet_config_is_uploaded(ctx: Run) -> bool:
    if not objects.has_objects(ctx.api, _kubelet_config(ctx)):
        return False
    if kubelet.has_instance_config(ctx.config.cluster, ctx.release):
        return True
    node = ctx.api.get(_node_path(ctx))
    return covers(node, {"metadata": {"annotations": _socket_annotation(ctx)}})


def _kubelet_config(ctx: Run) -> list[Manifest]:
    # without this node's resolvConf: each node that joins looks for its own
    document = kubelet.render_kubelet_config(ctx.config, ctx.release).document
    data = {"kubelet": kubelet.dump_kubelet_config(document)}
    generated = "" if ctx.config.kubelet else kubelet.component_config_hash(data)
    config_map = objects.render_component_config("kubelet-config", data, generated)
    return [config_map, *objects.load_objects("rbac/kubelet-config.yaml")]


def _socket_annotation(ctx: Run) -> dict[str, str]:
    return {objects.CRI_SOCKET_ANNOTATION: ctx.config.node.cri_socket}


# ---- upload-certs


def upload_certs(ctx: Run) -> Outputs:
    """Share the control plane's secrets, encrypted, for two hours: a token that expires owns them."""
    if not ctx.config.upload_certs:
        ctx.report.detail("certificates are not uploaded: give --upload-certs to let control planes fetch them")
        return None
    key = ctx.config.certificate_key or shared_certs.new_certificate_key()
    files = shared_certs.read_shared_files(ctx.host, ctx.paths, ctx.config.cluster)
    store_shared_files(ctx.api, files, key, now=ctx.host.now())
    return Results(certificate_key=key)


def store_shared_files(client: api.Api, files: Mapping[str, bytes], key: Secret, *, now: datetime.datetime) -> None:
    """The Secret kubeadm-certs with the files, encrypted, owned by a token that ends with it."""
    proxy = shared_certs.make_proxy_token()
    owner = client.create(tokens.render_token_secret(proxy, now))
    secret = shared_certs.render_certs_secret(files, key, token_id=proxy.token_id, token_uid=_uid(owner))
    # replaced as a whole: applying would leave the owner of the upload before beside the new one
    client.create_or_replace(secret)
    objects.apply_objects(client, objects.load_objects("rbac/kubeadm-certs.yaml"))
    _remove_other_proxies(client, proxy, now)


def _remove_other_proxies(client: api.Api, proxy: BootstrapToken, now: datetime.datetime) -> None:
    """An upload before this one, cut off perhaps, left its own token: nothing is owned by it any more."""
    for token in valid_tokens(client, now):
        if token.description == proxy.description and not token.usages and token.token_id != proxy.token_id:
            client.delete(api.path_of("Secret", tokens.secret_name(token.token_id), SYSTEM))


def certs_are_uploaded(ctx: Run) -> bool:
    """Whether the Secret is there and opens with the configured key, if one is; a key that kb made up and nobody has
    seen, since the run was cut off before its end, opens nothing. Without --upload-certs nothing is wanted."""
    if not ctx.config.upload_certs:
        return True
    secret = ctx.api.get(api.path_of("Secret", shared_certs.SECRET_NAME, SYSTEM))
    key = ctx.config.certificate_key
    if secret is None or not key:
        return secret is not None and "show-join-command" not in ctx.selection.unfinished
    try:
        shared_certs.plan_downloads(secret, key, paths=ctx.paths, cluster=ctx.config.cluster)
    except KbError:
        return False
    return True


def _uid(secret: Manifest) -> str:
    return str((secret.get("metadata") or {}).get("uid", ""))


# ---- mark-control-plane


def mark_control_plane(ctx: Run) -> Outputs:
    wait_for_node(ctx)
    objects.mark_control_plane(ctx.api, ctx.config.node.name, _taints(ctx))
    return None


def control_plane_is_marked(ctx: Run) -> bool:
    node = ctx.api.get(_node_path(ctx))
    return node is not None and objects.plan_node_marks(node, _taints(ctx)) is None


def _taints(ctx: Run) -> Any:
    wanted = ctx.config.node.taints
    return (objects.CONTROL_PLANE_TAINT,) if wanted is None else wanted


def _node_path(ctx: Run) -> str:
    return api.path_of("Node", ctx.config.node.name)


def wait_for_node(ctx: Run) -> Manifest:
    """The Node object of this machine, as soon as its kubelet has registered it.

    Raises ClusterError (node-not-registered) with the kubelet's state.
    """
    name, timeout_s = ctx.config.node.name, ctx.config.timeouts.kubernetes_api_call_s
    started, looked, told = ctx.host.monotonic(), 0.0, ""
    while True:
        node: Any = ctx.api.get(_node_path(ctx))
        # the label comes with the kubelet's first full report
        if node and "kubernetes.io/hostname" in (node["metadata"].get("labels") or {}):
            found: Manifest = node
            return found
        elapsed = ctx.host.monotonic() - started
        if elapsed >= timeout_s:
            raise _not_registered(ctx, elapsed)
        if elapsed - looked > LOOK_EVERY_S:
            looked = elapsed
            link = kubelet_trouble.find_kubelet_trouble(ctx.host) or kubelet_trouble.find_registration_trouble(ctx.host)
            if link and link.what != told:
                told = link.what
                ctx.report.note(f"{link.what}: {link.cause}. Remedy: {link.remedy} (kb goes on waiting)")
        ctx.report.waiting(f"node {name}: {elapsed:.0f} s of {timeout_s} s; the kubelet has not registered it yet")
        ctx.host.sleep(NODE_POLL_S)


def _not_registered(ctx: Run, elapsed: float) -> ClusterError:
    name = ctx.config.node.name
    state = services.read_state(ctx.host, "kubelet")
    others = [str(node["metadata"]["name"]) for node in ctx.api.list(api.path_of("Node"))]
    known = f"; the cluster's nodes are: {', '.join(sorted(others))}" if others else "; the cluster has no node"
    link = kubelet_trouble.find_registration_trouble(ctx.host) if state == "active" else None
    if link:
        cause, remedy = f"{link.what}: {link.cause}{known}", link.remedy
    elif state == "active":
        cause = f"the kubelet runs, and has not registered a node of this name{known}"
        remedy = f"see what it says: {services.say_log(ctx.host, 'kubelet')}"
    else:
        cause = f"the kubelet's service is {state}, so it registers no node{known}"
        remedy = f"see why it does not run: {services.say_log(ctx.host, 'kubelet')}"
    return ClusterError(
        f"node {name} is not registered after {elapsed:.0f} s", cause=cause, remedy=remedy, code="node-not-registered"
    )


# ---- bootstrap-token


def plan_bootstrap_tokens(run: Run) -> Plan:
    """The tokens, the rights that they give, and cluster-info, by which a node finds and checks the cluster."""
    valid = valid_tokens(run.api, run.host.now())
    made = _take_earlier_tokens(run, valid)
    wanted = zip(run.config.bootstrap_tokens, made)
    return Plan(
        *(_plan_token(run, token, valid, is_generated=asked.is_generated) for asked, token in wanted),
        *(Object(found) for found in objects.load_objects("rbac/bootstrap.yaml")),
        ClusterInfo(_cluster_info(run)),
        *(Object(found) for found in objects.load_objects("rbac/cluster-info.yaml")),
        hands_on=Results(tokens=[token.token for token in made], token_ids=[token.token_id for token in made]),
    )


def _plan_token(run: Run, token: BootstrapToken, valid: Sequence[BootstrapToken], *, is_generated: bool) -> TokenSecret:
    """A token that kb made up differs in every run: any that lets nodes in will do for it."""
    if is_generated:
        title, what = "the bootstrap token", {"for": token.description}
        is_there = any("authentication" in other.usages for other in valid)
    else:
        title, what = (
            f"bootstrap token {token.token_id}",
            {"id": token.token_id, "digest": digest(token.token.reveal())},
        )
        is_there = token.token in {other.token for other in valid}
    return TokenSecret(tokens.render_token_secret(token, run.host.now()), title, what, is_there)


def _take_earlier_tokens(run: Run, valid: Sequence[BootstrapToken]) -> list[BootstrapToken]:
    """The configured tokens; for one that kb makes up, the like of it that a run which was cut off left behind."""
    earlier = [] if run.config.kb.only_kubeadm else list(valid)
    made = []
    for wanted in run.config.bootstrap_tokens:
        kind = (wanted.description, set(wanted.usages), set(wanted.groups))
        alike = [token for token in earlier if kind == (token.description, set(token.usages), set(token.groups))]
        if wanted.is_generated and alike:
            earlier.remove(alike[0])
            wanted = replace(wanted, token=alike[0].token, expires=alike[0].expires)
        made.append(wanted)
    return made


def valid_tokens(client: api.Api, now: datetime.datetime) -> list[BootstrapToken]:
    listed = client.list(api.path_of("Secret", "", SYSTEM), field="type=bootstrap.kubernetes.io/token")
    parsed = [tokens.parse_token_secret(secret) for secret in listed]
    return [token for token in parsed if token and not tokens.is_expired(token, now)]


def _cluster_info(ctx: Run) -> Manifest:
    """With the server and the CA of admin.conf as it lies on disk: the address that other nodes use."""
    path = ctx.paths.admin_conf
    admin = kubeconfig.read_kubeconfig(ctx.host.read_text(path), host=ctx.host, path=path)
    info: Manifest = objects.render_cluster_info(admin.server, admin.ca_pem)
    return info
