"""Turns values back into documents, for storing in the cluster and for config print and config migrate.

The inverse of documents.build, with the same tables; always v1beta4. Empty values are left out where kubeadm leaves
them out. Secrets are written in clear text: that is the purpose of these documents. Source:
cmd/kubeadm/app/phases/uploadconfig/uploadconfig.go, cmd/kubeadm/app/util/config/common.go
"""

from __future__ import annotations

import dataclasses
from typing import Any

from kubeup.config import schema, types
from kubeup.config.documents import snake_case
from kubeup.releases import Release
from kubeup.secret import Secret
from kubeup.yaml_files import format_duration

Object = dict[str, Any]

_ALWAYS_SHOWN = ("apiServer", "controllerManager", "dns", "etcd", "networking", "proxy", "scheduler")
"""Structs of ClusterConfiguration that are written even when empty: {}."""


def render_cluster_configuration(cluster: types.ClusterConfiguration, release: Release) -> Object:
    """The document that ConfigMap kube-system/kubeadm-config stores."""
    body = _render_struct(schema.CLUSTER, cluster)
    for name in _ALWAYS_SHOWN:
        body.setdefault(name, {})
    if cluster.external_etcd:
        external = _render_struct(_struct(schema.ETCD, "external"), cluster.external_etcd)
        if not release.has_etcd_http_endpoints:
            external.pop("httpEndpoints", None)
        body["etcd"] = {"external": external}
    else:
        body["etcd"] = {"local": _render_struct(_struct(schema.ETCD, "local"), cluster.local_etcd or types.LocalEtcd())}
    return {"apiVersion": release.config_api, "kind": "ClusterConfiguration", **body}


def render_init_configuration(config: types.NodeConfig) -> Object:
    """The InitConfiguration with every default, including a token that kb generated."""
    body = _render_struct(schema.INIT, config)
    body["bootstrapTokens"] = [_render_token(token) for token in config.bootstrap_tokens]
    body["nodeRegistration"].setdefault("taints", None if config.node.taints is None else [])
    return {"apiVersion": schema.V1BETA4, "kind": "InitConfiguration", **body}


def render_join_configuration(join: types.JoinConfiguration) -> Object:
    body = _render_struct(schema.JOIN, join)
    body["nodeRegistration"].setdefault("taints", None if join.node.taints is None else [])
    if join.control_plane is not None:
        body.setdefault("controlPlane", {})
    return {"apiVersion": schema.V1BETA4, "kind": "JoinConfiguration", **body}


def render_reset_configuration(reset: types.ResetConfiguration) -> Object:
    return {"apiVersion": schema.V1BETA4, "kind": "ResetConfiguration", **_render_struct(schema.RESET, reset)}


def render_upgrade_configuration(upgrade: types.UpgradeConfiguration) -> Object:
    body = _render_struct(schema.UPGRADE, upgrade)
    body.setdefault("diff", {})
    return {"apiVersion": schema.V1BETA4, "kind": "UpgradeConfiguration", **body}


def render_kb_configuration(kb: types.KbConfiguration) -> Object:
    return {"apiVersion": schema.KB_V1ALPHA1, "kind": "KbConfiguration", **_render_struct(schema.KB, kb)}


def _struct(outer: schema.Struct, name: str) -> schema.Struct:
    found = outer.fields[name]
    assert isinstance(found, schema.Struct)
    return found


def _render_token(token: types.BootstrapToken) -> Object:
    body = _render_struct(schema.BOOTSTRAP_TOKEN, token)
    if token.ttl_s is None and not token.expires:
        body["ttl"] = "0s"
    return body


def _render_struct(struct: schema.Struct, value: Any) -> Object:
    """The fields of `value` under their document names, without empty values and booleans at their default of False."""
    found: Object = {}
    off = {f.name for f in dataclasses.fields(value) if f.default is False}
    for name, item in struct.fields.items():
        attribute = struct.renames.get(name, snake_case(name) + ("_s" if item is schema.DURATION else ""))
        held = getattr(value, attribute, None)
        if held is None or (held is False and attribute in off):
            continue
        rendered = _render_value(item, held)
        is_empty_list = rendered == [] and name != "taints"
        if rendered in ("", {}) or is_empty_list or (item is schema.NUMBER and rendered == 0):
            continue
        found[name] = rendered
    return found


def _render_value(wanted: schema.Type, value: Any) -> Any:
    if isinstance(value, types.Arg):
        return {"name": value.name, "value": value.value}
    if isinstance(value, Secret):
        return value.reveal()
    if wanted is schema.DURATION:
        return format_duration(value)
    if isinstance(wanted, schema.ListOf):
        return [_render_value(wanted.item, item) for item in value]
    if isinstance(wanted, schema.MapOf):
        return {name: _render_value(wanted.item, item) for name, item in value.items()}
    if isinstance(wanted, schema.Struct) and isinstance(value, str):  # patches: one field, kept as a text
        return {next(iter(wanted.fields)): value} if value else {}
    if isinstance(wanted, schema.Struct) and wanted.make is not None:
        return _render_struct(wanted, value)
    return value
