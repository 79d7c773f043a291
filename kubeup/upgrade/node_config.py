"""NodeConfig of this node, from what its cluster stores and from the node's own files, for the version that runs or for another one.

Only looks. A control plane reads as its admin, a worker as its kubelet, which may read kubeadm-config and kubelet-config. Mirrors
cmd/kubeadm/app/util/config/cluster.go (FetchInitConfigurationFromCluster).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from kubeup.cluster import api as kubeapi
from kubeup.config import choose, load_join, types
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.yaml_files import containers_of_pod, load_all_yaml, load_mapping

with lazily:
    from kubeup.cluster import addons, objects
    from kubeup.engine import state
    from kubeup.node import kubelet

_GENERATED = ("apiVersion", "kind")


@frozen
class Stored:
    """What a cluster says about all of its nodes. cluster_text: its ClusterConfiguration. kubelet, kube_proxy: the user's own documents;
    {} where a tool generated what is stored, so that another version may generate it again."""

    cluster_text: str
    kubelet: types.FrozenDict
    kube_proxy: types.FrozenDict
    pod_network: types.PodNetwork
    load_balancer: types.LoadBalancer
    api_servers: tuple[str, ...] = ()


def read_stored(api: kubeapi.Api, *, is_control_plane: bool) -> Stored:
    """Raises ClusterError (not-kubeadms-cluster), and those of the API."""
    cluster_text = objects.read_config_key(api, "kubeadm-config", key="ClusterConfiguration")
    if not cluster_text:
        raise ClusterError(
            "the cluster has no ConfigMap kube-system/kubeadm-config with a key ClusterConfiguration",
            cause="neither kb nor kubeadm made it, or the ConfigMap was deleted",
            remedy="store its configuration: kb init phase upload-config kubeadm --config FILE",
            code="not-kubeadms-cluster",
        )
    return Stored(
        cluster_text,
        _read_own_document(api, "kubelet-config", key="kubelet", keeps_generated=not is_control_plane),
        _read_own_document(api, "kube-proxy", key="config.conf") if is_control_plane else {},
        objects.read_pod_network(api),
        objects.read_load_balancer(api),
        objects.read_api_servers(api),
    )


def _read_own_document(api: kubeapi.Api, name: str, *, key: str, keeps_generated: bool = False) -> types.FrozenDict:
    """A component's configuration as the user wrote it. {} if a tool generated it: then its annotation is the hash of the data."""
    found = api.get(kubeapi.path_of("ConfigMap", name, namespace="kube-system")) or {}
    data: Mapping[str, str] = found.get("data") or {}
    if not data.get(key) or (addons.is_generated(found) and not keeps_generated):
        return {}
    document = load_mapping(data[key], f"ConfigMap kube-system/{name}")
    return {field: value for field, value in document.items() if field not in _GENERATED}


def make_node_config(
    host: Host,
    paths: Paths,
    *,
    own: types.NodeConfig,
    stored: Stored,
    join: Optional[types.Join] = None,
    version: str = "",
    patches: str = "",
) -> types.NodeConfig:
    """The configuration of this node. own: as its files describe it (its name, its socket, where its API server listens). join: of a node
    that joined. version: `v1.36.3`; "" for the version that the cluster stores. patches: the folder of --patches; "" for the one with which
    the node was made, as far as kb knows and the folder is still there.

    Raises ClusterError (stored-config-invalid).
    """
    warnings: list[str] = []
    cluster = load_join.parse_stored_cluster(host, stored.cluster_text, warnings=warnings)
    return replace(
        own,
        cluster=replace(cluster, kubernetes_version=version or cluster.kubernetes_version),
        node=replace(own.node, kubelet_extra_args=_read_kubelet_args(host, paths)),
        kubelet=stored.kubelet,
        kube_proxy=stored.kube_proxy,
        kb=types.KbConfiguration(pod_network=stored.pod_network, load_balancer=stored.load_balancer),
        patches_directory=patches or _find_patches(host, paths, warnings),
        proxy_env=_read_proxy_env(host, paths),
        join=replace(join, api_servers=stored.api_servers) if join else None,
        warnings=tuple(warnings),
    )


def _read_kubelet_args(host: Host, paths: Paths) -> tuple[types.Arg, ...]:
    """What somebody has given this node's kubelet beside that which the tools write."""
    path = paths.kubelet_flags_env
    flags = kubelet.parse_flags_env(host.read_text(path) if host.exists(path) else "")
    return tuple(flag for flag in flags if flag.name not in kubelet.GENERATED_FLAGS)


def _find_patches(host: Host, paths: Paths, warnings: list[str]) -> str:  # noqa: PLR0917
    found = _read_patches(host, paths)
    if found and not host.is_dir(Path(found)):
        warnings.append(
            f"this node was made with patches of {found}, which is gone: they are left out; give their folder: --patches DIR"
        )
        return ""
    return found


def _read_patches(host: Host, paths: Paths) -> str:
    """The folder that kb's record of this node names, or the documents with which it was adopted."""
    made_with = state.load_state(host, paths).patches
    if made_with:
        return made_with
    for path in (paths.adopted("init"), paths.adopted("join")):
        for document in load_all_yaml(host.read_text(path)) if host.exists(path) else ():
            told = document.get("patches") if isinstance(document, Mapping) else None
            if isinstance(told, Mapping) and told.get("directory"):
                return str(told["directory"])
    return ""


def _read_proxy_env(host: Host, paths: Paths) -> dict[str, str]:
    """The proxies of this node's API server, and those of kb's own environment, which count more: whoever upgrades from a shell without
    them has not decided against them."""
    return {**read_manifest_proxies(host, paths), **choose.read_proxy_env(host)}


def read_manifest_proxies(host: Host, paths: Paths) -> dict[str, str]:
    """The proxies of this node's API server; {} on a worker."""
    path = paths.manifest("kube-apiserver")
    pod: Mapping[str, Any] = load_mapping(host.read_text(path), str(path)) if host.exists(path) else {}
    own, *_ = [*containers_of_pod(pod), {}]
    return {
        str(one["name"]): str(one["value"])
        for one in own.get("env") or ()
        if str(one.get("name", "")).lower().endswith("_proxy") and one.get("value")
    }
