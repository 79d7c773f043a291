"""The node as described by its files: static pods, the kubelet's files, certificates. Does not query an API server."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from kubeup import releases
from kubeup.addresses import join_host_port
from kubeup.cluster import api as kubeapi
from kubeup.cluster import membership
from kubeup.config import choose
from kubeup.config.types import (
    ClusterConfiguration,
    ExternalEtcd,
    Join,
    KbConfiguration,
    LocalAPIEndpoint,
    LocalEtcd,
    Networking,
    NodeConfig,
    NodeRegistration,
    PodNetwork,
)
from kubeup.diagnosis.checks import facts
from kubeup.errors import KbError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.machine.http import Unreachable
from kubeup.paths import Paths
from kubeup.releases import Release
from kubeup.shapes import Shape, fit_what_does
from kubeup.yaml_files import YAMLError, commands_of_pod, containers_of_pod, flags_of, load_yaml

# a join that looks into one manifest here would pay for cryptography
with lazily:
    from concurrent import futures

    from kubeup.network import load_balancer, pod_network
    from kubeup.node import certificates, kubelet

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


@frozen
class Patient:
    """The node as described by its files, and the identity with which to query the API server. config: of a worker it has a `join`; of a
    control plane it has none, since its files do not say whether it created its cluster."""

    host: Host
    paths: Paths
    config: NodeConfig
    release: Release
    kubeconfig: Path
    is_member: bool
    """Whether a kubelet was configured here, so the node belongs to a cluster."""
    server: str = ""
    """The API server to ask in the place of this node's load balancer, which leads to any of them (choose_server)."""
    answer_s: float = 5
    """How long an answer of the API server is waited for: less, if none served when this began. Many checks ask one after the other."""

    @property
    def is_control_plane(self) -> bool:
        return self.config.is_control_plane

    @property
    def components(self) -> tuple[str, ...]:
        """The static pods of this node, in dependency order."""
        return tuple(name for name in COMPONENTS if self.host.exists(self.paths.manifest(name)))


def read_patient(host: Host, paths: Paths, *, kubeconfig_file: Optional[Path] = None) -> Patient:
    """Read the node from its manifests and the kubelet's files."""
    paths = find_paths(host, paths)
    apiserver, manager = (
        read_flags(host, paths, component="kube-apiserver"),
        read_flags(host, paths, component="kube-controller-manager"),
    )
    config = read_mapping(host, paths.kubelet_config)
    flags = read_kubelet_flags(host, paths)
    version = _find_version(host, paths)
    cluster = ClusterConfiguration(
        version,
        networking=Networking(
            service_subnet=apiserver.get("service-cluster-ip-range", Networking.service_subnet),
            pod_subnet=manager.get("cluster-cidr", ""),
            dns_domain=str(config.get("clusterDomain") or Networking.dns_domain),
        ),
        **_read_etcd(host, paths, apiserver=apiserver),
    )
    own = NodeConfig(
        cluster,
        NodeRegistration(
            read_cert_node_name(host, paths) or read_called_name(host, flags),
            cri_socket=_find_socket(host, paths, config=config, flags=flags),
        ),
        LocalAPIEndpoint(
            apiserver.get("advertise-address") or choose.choose_advertise_address(host, "", prefer=4).value,
            int(apiserver.get("secure-port") or 6443),
        ),
        kubelet=config,
        kb=KbConfiguration(PodNetwork("bridge" if pod_network.is_kept(host, paths) else "none")),
        join=_read_join(host, paths),
    )
    default = paths.admin_conf if host.exists(paths.admin_conf) else paths.kubeconfig("kubelet.conf")
    is_member = any(map(host.exists, (paths.kubelet_config, paths.kubeconfig("kubelet.conf"))))
    release = releases.find_release(version)
    return Patient(host, paths, own, release, kubeconfig_file or default, is_member)


def open_api(patient: Patient, kubeconfig: Optional[Path] = None) -> kubeapi.Api:
    """A client with this node's identity, or another one's, which asks once. Raises what read_identity does."""
    identity = kubeapi.read_identity(patient.host, kubeconfig or patient.kubeconfig)
    api = kubeapi.Api(patient.host, identity, retry_s=0, timeout_s=patient.answer_s)
    is_balanced = patient.server and _leads_to_balancer(patient, api.server)
    return api.with_server(patient.server, timeout_s=patient.answer_s) if is_balanced else api


def _leads_to_balancer(patient: Patient, server: str) -> bool:
    settings = load_balancer.read_settings(patient.host, patient.paths)
    return server == f"https://{settings.endpoint}"


def list_servers(patient: Patient) -> tuple[str, ...]:
    """`https://10.0.0.11:6443`: every API server at its own address as this node's load balancer knows them, this node's own first; () without
    a load balancer."""
    host, paths = patient.host, patient.paths
    if not host.exists(load_balancer.settings_path(paths)):
        return ()
    servers, _ = load_balancer.parse_config(facts.read_or_empty(host, str(load_balancer.config_path(paths))))
    own = find_own_server(host, paths)
    told = [f"https://{server}" for server in servers]
    return tuple(dict.fromkeys([own, *told] if own in told else told))


def choose_server(patient: Patient) -> Patient:
    """With the first API server that serves, if this node has a load balancer: each connection through it may lead to another server, so one that is
    sick would spoil some answers, and others not."""
    if not patient.is_member:
        return patient
    try:
        api = kubeapi.Api(patient.host, kubeapi.read_identity(patient.host, patient.kubeconfig), retry_s=0)
    except KbError:
        return patient  # the checks report why

    servers, name = list_servers(patient) or (api.server,), patient.config.node.name

    def serves(server: str) -> bool:
        own = api.with_server(server)
        try:
            is_ready = own.probe_health("/readyz", timeout_s=_READY_S).status == 200
            # one that has just lost its etcd calls itself ready, and answers no read
            return is_ready and own.probe_health(kubeapi.path_of("Node", name), timeout_s=_READY_S).status in _READ
        except Unreachable:
            return False

    with futures.ThreadPoolExecutor(len(servers)) as pool:
        ready = [server for server, is_ready in zip(servers, pool.map(serves, servers)) if is_ready]
    if not ready:
        return dataclasses.replace(patient, answer_s=_HASTE_S)
    return dataclasses.replace(patient, server=ready[0]) if len(servers) > 1 else patient


_READY_S, _HASTE_S = 3, 2
_READ = (200, 403, 404)
"""What an API server answers that reads from etcd; another identity than a node's may not exist there, or not read it."""


def _read_join(host: Host, paths: Paths) -> Optional[Join]:
    """What a worker's kubelet knows of its cluster; None on a control plane, even if its API server's manifest was taken away."""
    if any(host.exists(paths.manifest(name)) for name in COMPONENTS) or host.exists(paths.pki / "apiserver.crt"):
        return None
    member = membership.find_member_access(host, paths.kubernetes / "kubelet.conf")
    return Join(member.server, member.ca_pem) if member is not None else Join()


def read_kubelet_flags(host: Host, paths: Paths) -> dict[str, str]:
    text = facts.read_or_empty(host, str(paths.kubelet_flags_env))
    return {arg.name: arg.value for arg in kubelet.parse_flags_env(text)}


def read_called_name(host: Host, flags: Mapping[str, str]) -> str:
    """The name with which the kubelet would register now."""
    return flags.get("hostname-override") or choose.read_node_name(host)


def find_paths(host: Host, paths: Paths) -> Paths:
    """The paths of this node's files, from its static pods: certificatesDir and etcd's dataDir may be anywhere, and
    with the defaults a healthy node would look broken. Without static pods (a worker), `paths` unchanged."""
    flags = read_flags(host, paths, component="kube-apiserver")
    told = [Path(flags.get(flag, "")) for flag in ("tls-cert-file", "client-ca-file")]
    folder = next((path.parent for path in told if path.is_absolute() and host.exists(path)), paths.pki)
    data = read_flags(host, paths, component="etcd").get("data-dir", "")
    return dataclasses.replace(paths, pki=folder, etcd_data=Path(data) if data.startswith("/") else paths.etcd_data)


def find_own_server(host: Host, paths: Paths) -> str:
    """`https://10.0.0.11:8443`, this node's API server according to its static pod; "" if there is none."""
    flags = read_flags(host, paths, component="kube-apiserver")
    address, port = flags.get("advertise-address", ""), flags.get("secure-port") or "6443"
    return f"https://{join_host_port(address, port)}" if address else ""


def read_flags(host: Host, paths: Paths, *, component: str) -> dict[str, str]:
    """The flags in a component's manifest, by name without dashes; {} if there is no manifest. The last one of a name
    counts."""
    command, *_ = [*commands_of_pod(read_mapping(host, paths.manifest(component))), []]
    return flags_of(command)


def read_mapping(host: Host, path: Path) -> dict[str, Any]:
    try:
        found = load_yaml(facts.read_or_empty(host, str(path)) or "{}")
    except YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _find_version(host: Host, paths: Paths) -> str:
    """The version of the API server's image, else of the kubelet's program, else what that told the cluster, else the newest that kb knows."""
    found = read_server_version(host, paths)
    if found is None:
        found = releases.parse_version(read_installed_kubelet(host) or _read_told_version(host, paths))
    return found.text if found and found.minor in releases.RELEASES else releases.NEWEST_PROVEN


def _read_told_version(host: Host, paths: Paths) -> str:
    """The version of this node's kubelet in its Node object: of a program that is gone, or is no program any more, nothing else tells it."""
    name, access = read_cert_node_name(host, paths), paths.kubernetes / "kubelet.conf"
    with contextlib.suppress(KbError):
        api = kubeapi.Api(host, kubeapi.read_identity(host, access), retry_s=0, timeout_s=_TOLD_S)
        node = fit_what_does(api.get(kubeapi.path_of("Node", name)) or {}, _VERSION)
        return str(node["status"]["nodeInfo"]["kubeletVersion"])
    return ""


_VERSION: Shape = {"status!": {"nodeInfo!": {"kubeletVersion!": str}}}
_TOLD_S = 3


def read_installed_kubelet(host: Host) -> str:
    """`v1.35.6`, the version of the kubelet's program; "" if there is none."""
    return host.query(["kubelet", "--version"], timeout_s=15).stdout.replace("Kubernetes", "").strip()


def read_server_version(host: Host, paths: Paths) -> Optional[releases.Version]:
    """The version of this node's API server by the tag of its image; None if there is no manifest, or no tag that can be read."""
    rows = containers_of_pod(read_mapping(host, paths.manifest("kube-apiserver")))
    own = [row for row in rows if row.get("name") == "kube-apiserver"] or rows
    return next(filter(None, (releases.version_of_image(str(row.get("image") or "")) for row in own)), None)


def _read_etcd(host: Host, paths: Paths, *, apiserver: Mapping[str, str]) -> dict[str, Any]:
    if host.exists(paths.manifest("etcd")):
        data_dir = read_flags(host, paths, component="etcd").get("data-dir", "/var/lib/etcd")
        return {"local_etcd": LocalEtcd(data_dir=data_dir)}
    return {"local_etcd": None, "external_etcd": find_external_etcd(apiserver)}


def find_external_etcd(apiserver: Mapping[str, str]) -> Optional[ExternalEtcd]:
    """The external etcd in an API server's flags, on a node that runs no etcd; None if there are no such flags."""
    urls = tuple(filter(None, apiserver.get("etcd-servers", "").split(",")))
    if not urls:
        return None
    ca, cert, key = (apiserver.get(f"etcd-{name}", "") for name in ("cafile", "certfile", "keyfile"))
    return ExternalEtcd(urls, ca_file=ca, cert_file=cert, key_file=key)


def _find_socket(host: Host, paths: Paths, *, config: Mapping[str, Any], flags: Mapping[str, str]) -> str:
    instance = read_mapping(host, paths.kubelet_instance_config)
    told = instance.get("containerRuntimeEndpoint") or config.get("containerRuntimeEndpoint")
    return str(told or flags.get("container-runtime-endpoint") or choose.choose_cri_socket(host).value)


def parse_first(path: Path, pem: str) -> Iterator[tuple[Path, Any]]:
    try:
        certs = certificates.parse_certs(pem) if pem else ()
    except ValueError:
        return
    yield from ((path, cert) for cert in certs[:1])


def read_cert_node_name(host: Host, paths: Paths) -> str:
    """The node's name in the kubelet's own certificate, by which the cluster knows it. "" if there is none."""
    access = membership.find_member_access(host, paths.kubernetes / "kubelet.conf")
    certs = [cert for _, cert in parse_first(paths.kubelet_client_pem, access.client_cert_pem)] if access else []
    prefix, _, name = (certificates.subject_of(certs[0]).common_name if certs else "").partition("system:node:")
    return name if not prefix else ""


def describe_patient(patient: Patient) -> str:
    """`node cp1, control plane, Kubernetes v1.35.6, containerd socket ...`"""
    if not patient.is_member:
        return f"node {patient.config.node.name}: no kubelet was configured here, so it belongs to no cluster"
    role = "control plane" if patient.is_control_plane else "worker"
    return f"node {patient.config.node.name}, {role}, Kubernetes {patient.config.cluster.kubernetes_version}"
