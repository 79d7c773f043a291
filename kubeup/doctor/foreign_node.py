"""A node set up by another tool: its role, and the documents with which kb would set up the same node.

Owns reading a foreign node's configuration, from its files and from the cluster. Only reads; knows no phases. Mirrors
cmd/kubeadm/app/util/config/cluster.go (FetchInitConfigurationFromCluster).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from kubeup.addresses import join_host_port
from kubeup.cluster import api as kubeapi
from kubeup.cluster import membership, objects
from kubeup.config import schema
from kubeup.diagnosis.checks import facts
from kubeup.doctor import node_files
from kubeup.errors import ClusterError, HostError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node import certificates, kubelet
from kubeup.paths import Paths
from kubeup.yaml_files import dump_yaml, load_mapping

SYSTEM = "kube-system"
_USER_PREFIX = "system:node:"


@frozen
class Found:
    """A node of a cluster. documents: the configuration with which `kb init` or `kb join` would set it up, without
    secrets."""

    role: str
    """control plane | worker"""
    workflow: str
    """init or join: the workflow that sets up such a node."""
    node: str
    cri_socket: str
    documents: tuple[Mapping[str, Any], ...]

    @property
    def text(self) -> str:
        return "---\n".join(dump_yaml(document) for document in self.documents)


def look_at_node(host: Host, paths: Paths, *, kubeconfig_file: Optional[Path] = None, patches: str = "") -> Found:
    """Examine the node. Raises HostError (nothing-to-adopt), ClusterError if the cluster does not return its
    configuration."""
    name = _read_node_name(host, paths)
    patient = node_files.read_patient(host, paths, kubeconfig_file=kubeconfig_file)
    registration: dict[str, Any] = {"name": name, "criSocket": patient.config.node.cri_socket}
    flags = kubelet.parse_flags_env(facts.read_or_empty(host, str(paths.kubelet_flags_env)))
    extra = [{"name": flag.name, "value": flag.value} for flag in flags if flag.name not in kubelet.GENERATED_FLAGS]
    if extra:
        registration["kubeletExtraArgs"] = extra
    own: dict[str, Any] = {"nodeRegistration": registration}
    if patches:
        own["patches"] = {"directory": patches}
    if not patient.is_control_plane:
        taints = next((flag.value for flag in flags if flag.name == "register-with-taints"), "")
        if taints:
            registration["taints"] = [parse_taint(text) for text in taints.split(",")]
        document = {"apiVersion": schema.V1BETA4, "kind": "JoinConfiguration", **own}
        return Found("worker", "join", name, patient.config.node.cri_socket, (document,))
    api = _open_api(host, patient, path=kubeconfig_file or paths.admin_conf)
    node = api.get(kubeapi.path_of("Node", name))
    if node is None:
        raise ClusterError(
            f"the cluster has no node {name}",
            cause=f"the kubelet's certificate is for that name, and {api.server} does not know it",
            remedy="look at the cluster's nodes: kubectl get nodes",
            code="adopted-node-missing",
        )
    if not _has_control_plane_taint(node):
        registration["taints"] = []
    endpoint = patient.config.local_api_endpoint
    local = {"advertiseAddress": endpoint.advertise_address, "bindPort": endpoint.bind_port}
    if has_joined(host, paths):
        join = {
            "apiVersion": schema.V1BETA4,
            "kind": "JoinConfiguration",
            **own,
            "controlPlane": {"localAPIEndpoint": local},
        }
        return Found("control plane", "join", name, patient.config.node.cri_socket, (join,))
    own["localAPIEndpoint"] = local
    init = {"apiVersion": schema.V1BETA4, "kind": "InitConfiguration", **own}
    documents = (init, *_read_cluster_documents(api))
    return Found("control plane", "init", name, patient.config.node.cri_socket, documents)


def has_joined(host: Host, paths: Paths) -> bool:
    """Whether a control plane joined an existing cluster: its etcd was started with existing members or, with an
    external etcd, it lacks the super-admin's kubeconfig, which only init writes."""
    if host.exists(paths.manifest("etcd")):
        return "--initial-cluster-state=existing" in host.read_text(paths.manifest("etcd"))
    return not host.exists(paths.kubeconfig("super-admin.conf"))


def _read_node_name(host: Host, paths: Paths) -> str:
    """The name in the kubelet's certificate, by which the cluster knows the node."""
    path = paths.kubernetes / "kubelet.conf"
    access = membership.find_member_access(host, path)
    if access is None or not host.exists(paths.kubelet_config):
        missing = path if access is None else paths.kubelet_config
        raise HostError(
            "there is no node to adopt here",
            cause=f"{missing} is not there, or holds no certificate: this machine is not part of a cluster",
            remedy="make it one: kb init, or kb join",
            code="nothing-to-adopt",
        )
    common_name = certificates.subject_of(certificates.parse_certs(access.client_cert_pem)[0]).common_name
    if not common_name.startswith(_USER_PREFIX):
        raise HostError(
            f"{path} is not a kubelet's",
            cause=f"its certificate is {common_name!r}'s, not {_USER_PREFIX}NAME's",
            remedy="put the kubelet's own kubeconfig there",
            code="nothing-to-adopt",
        )
    return common_name[len(_USER_PREFIX) :]


def _open_api(host: Host, patient: node_files.Patient, *, path: Path) -> kubeapi.Api:
    endpoint = patient.config.local_api_endpoint
    server = f"https://{join_host_port(endpoint.advertise_address, endpoint.bind_port)}"
    return kubeapi.Api(host, kubeapi.read_identity(host, path, server=server), retry_s=5)


def _has_control_plane_taint(node: Mapping[str, Any]) -> bool:
    taints = (node.get("spec") or {}).get("taints") or ()
    return any(taint.get("key") == objects.CONTROL_PLANE_TAINT.key for taint in taints)


def _read_cluster_documents(api: kubeapi.Api) -> list[Mapping[str, Any]]:
    """The cluster's own documents from its ConfigMaps; a missing addon is one that was skipped."""
    cluster = _read_document(api, "kubeadm-config", key="ClusterConfiguration")
    if cluster is None:
        raise ClusterError(
            "the cluster has no ConfigMap kube-system/kubeadm-config with a ClusterConfiguration",
            cause="neither kubeadm nor kb made it, or the ConfigMap was deleted",
            remedy="store its configuration: kubeadm init phase upload-config kubeadm --config FILE",
            code="not-kubeadms-cluster",
        )
    network = objects.read_pod_network(api)
    wishes = {"apiVersion": schema.KB_V1ALPHA1, "kind": "KbConfiguration", "podNetwork": {"plugin": network.plugin}}
    others = (
        _read_document(api, "kubelet-config", key="kubelet"),
        _read_document(api, "kube-proxy", key="config.conf"),
    )
    return [cluster, *(document for document in others if document is not None), wishes]


def _read_document(api: kubeapi.Api, name: str, *, key: str) -> Optional[dict[str, Any]]:
    text = objects.read_config_key(api, name, key=key)
    return load_mapping(text, f"ConfigMap {SYSTEM}/{name}") or None if text else None


def parse_taint(text: str) -> dict[str, str]:
    """`key=value:effect` or `key:effect`, the form of the kubelet's flag."""
    rest, _, effect = text.rpartition(":")
    key, _, value = rest.partition("=")
    return {"key": key, "effect": effect, **({"value": value} if value else {})}
