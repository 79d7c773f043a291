"""The four static pods of a control-plane node: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

Each is a complete file below configs/manifests/. Its ${words} are replaced in the parsed YAML, so that no value can break out of its
field. Then parts are added or removed according to the configuration, the release and the node. All functions except
probe_host_ca_dirs are pure. This module writes nothing and knows no phase.
Mirrors cmd/kubeadm/app/phases/controlplane, cmd/kubeadm/app/phases/etcd and cmd/kubeadm/app/util/staticpod.
"""

from __future__ import annotations

import math
import posixpath
import string
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from kubeup.addresses import bracket, join_host_port
from kubeup.config.types import Arg, Component, ExternalEtcd, FrozenDict, LocalEtcd, NodeConfig, Volume
from kubeup.errors import UsageError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node.images import image_of
from kubeup.releases import Release, etcd_has_new_flags
from kubeup.yaml_files import load_yaml, read_resource

Pod = dict[str, Any]

CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")

HOST_CA_DIRS: tuple[tuple[str, str], ...] = (
    ("etc-pki-ca-trust", "/etc/pki/ca-trust"),
    ("etc-pki-tls-certs", "/etc/pki/tls/certs"),
    ("etc-ca-certificates", "/etc/ca-certificates"),
    ("usr-share-ca-certificates", "/usr/share/ca-certificates"),
    ("usr-local-share-ca-certificates", "/usr/local/share/ca-certificates"),
)
"""Volume name and folder. /etc/ssl/certs may link into these folders, so a pod mounts those that the host has."""

FLEXVOLUME_DIR = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec"
ETCD_CLIENT_PORT, ETCD_PEER_PORT, ETCD_METRICS_PORT = 2379, 2380, 2381

_FLAGS_BEFORE_ETCD_3_6 = {
    "feature-gates": ("experimental-initial-corrupt-check", "true"),
    "watch-progress-notify-interval": ("experimental-watch-progress-notify-interval", "5s"),
}


@frozen
class NodeFacts:
    """The facts about the node, besides the configuration, that its manifests depend on."""

    host_ca_dirs: Collection[str] = ()
    """The folders in HOST_CA_DIRS that exist on the host."""
    has_external_ca: bool = False
    """The cluster CA's key is not on the node, so the controller manager cannot sign."""
    etcd_members: Sequence[tuple[str, str]] = ()
    """The name and peer URL of every etcd member, including this one, if it joins an existing etcd."""


def probe_host_ca_dirs(host: Host) -> tuple[str, ...]:
    return tuple(path for _, path in HOST_CA_DIRS if host.is_dir(Path(path)))


def render_pod(component: str, config: NodeConfig, *, release: Release, node: NodeFacts = NodeFacts()) -> Pod:
    """The static pod of `component`, without patches. Raises UsageError (rootless-control-plane)."""
    _refuse_rootless(config)
    return _RENDERERS[component](config, release, node)


def render_apiserver_pod(config: NodeConfig, release: Release, node: NodeFacts) -> Pod:  # noqa: PLR0917
    cluster, endpoint = config.cluster, config.local_api_endpoint
    etcd = _etcd_client_files(config)
    pod = _fill_pod(
        "kube-apiserver",
        config,
        release=release,
        words={
            "advertise_address": endpoint.advertise_address,
            "endpoint": join_host_port(endpoint.advertise_address, endpoint.bind_port),
            "dns_domain": cluster.networking.dns_domain,
            "service_subnet": cluster.networking.service_subnet,
            "etcd_servers": _etcd_servers(config),
            "etcd_ca_file": etcd.ca_file,
            "etcd_cert_file": etcd.cert_file,
            "etcd_key_file": etcd.key_file,
            "probe_host": _probe_host(endpoint.advertise_address),
            "probe_port": endpoint.bind_port,
        },
    )
    unwanted: set[str] = set()
    if not etcd.ca_file:
        unwanted.add("etcd-cafile")
    if not (etcd.cert_file and etcd.key_file):
        unwanted.update(("etcd-certfile", "etcd-keyfile"))
    if cluster.api_server.last_arg("authorization-config") is not None:
        unwanted.add("authorization-mode")
    _drop_flags(pod, unwanted)
    _add_host_ca_volumes(pod, node)
    if cluster.external_etcd:
        for index, folder in enumerate(_external_etcd_dirs(cluster.external_etcd, cluster.certificates_dir)):
            _add_volume(pod, Volume(f"etcd-certs-{index}", folder, folder, True, "DirectoryOrCreate"))
    return _finish_pod(pod, cluster.api_server, config=config, release=release)


def render_controller_manager_pod(config: NodeConfig, release: Release, node: NodeFacts) -> Pod:  # noqa: PLR0917
    cluster, own = config.cluster, config.cluster.controller_manager
    pki = cluster.certificates_dir
    pod = _fill_pod(
        "kube-controller-manager",
        config,
        release=release,
        words={
            "pod_subnet": cluster.networking.pod_subnet,
            "service_subnet": cluster.networking.service_subnet,
            "cluster_name": cluster.cluster_name,
            "signing_cert_file": "" if node.has_external_ca else f"{pki}/ca.crt",
            "signing_key_file": "" if node.has_external_ca else f"{pki}/ca.key",
            "flexvolume_dir": own.last_arg("flex-volume-plugin-dir") or FLEXVOLUME_DIR,
            "probe_host": _probe_host(_bind_address(own)),
        },
    )
    unwanted: set[str] = set()
    if not cluster.networking.pod_subnet:
        unwanted.update(("allocate-node-cidrs", "cluster-cidr", "service-cluster-ip-range"))
    if not cluster.cluster_name:
        unwanted.add("cluster-name")
    _drop_flags(pod, unwanted)
    if not release.mounts_flexvolume_dir:
        _drop_volume(pod, "flexvolume-dir")
    _add_host_ca_volumes(pod, node)
    return _finish_pod(pod, own, config=config, release=release)


def render_scheduler_pod(config: NodeConfig, release: Release, node: NodeFacts) -> Pod:  # noqa: PLR0917
    own = config.cluster.scheduler
    pod = _fill_pod("kube-scheduler", config, release=release, words={"probe_host": _probe_host(_bind_address(own))})
    if not release.scheduler_has_readyz:
        container = _container(pod)
        del container["readinessProbe"]
        for probe in ("livenessProbe", "startupProbe"):
            container[probe]["httpGet"]["path"] = "/healthz"
    return _finish_pod(pod, own, config=config, release=release)


def render_etcd_pod(config: NodeConfig, release: Release, node: NodeFacts) -> Pod:  # noqa: PLR0917
    """The pod of a local etcd member: the first member, or one that joins `node.etcd_members`."""
    own = config.cluster.local_etcd or LocalEtcd()
    address = config.local_api_endpoint.advertise_address
    peer_url = etcd_peer_url(address)
    scheme, probe_host, probe_port = _etcd_probe(own, address)
    members = node.etcd_members or [(config.node.name, peer_url)]
    pod = _fill_pod(
        "etcd",
        config,
        release=release,
        words={
            "client_url": etcd_client_url(address),
            "peer_url": peer_url,
            "initial_cluster": ",".join(f"{name}={url}" for name, url in members),
            "loopback": bracket(_loopback(address)),
            "data_dir": own.data_dir,
            "node_name": config.node.name,
            "probe_scheme": scheme,
            "probe_host": probe_host,
            "probe_port": probe_port,
        },
    )
    if not node.etcd_members:
        _drop_flags(pod, {"initial-cluster-state"})
    if not etcd_has_new_flags(image_of("etcd", config.cluster, release=release).tag):
        _rename_flags(pod, _FLAGS_BEFORE_ETCD_3_6)
    container = _container(pod)
    container["command"] = override_args(container["command"], own.extra_args)
    _set_env(pod, merge_env({}, own.extra_envs))
    _adapt_probes(pod, release)
    return pod


_RENDERERS: Mapping[str, Callable[[NodeConfig, Release, NodeFacts], Pod]] = {
    "etcd": render_etcd_pod,
    "kube-apiserver": render_apiserver_pod,
    "kube-controller-manager": render_controller_manager_pod,
    "kube-scheduler": render_scheduler_pod,
}


# ---- flags


def override_args(command: Sequence[str], extra: Iterable[Arg]) -> list[str]:
    """A command with the user's arguments. They replace defaults of the same name, and follow the other defaults.

    Defaults are sorted. The user's arguments keep their order, which matters if a flag is given twice.
    """
    extras = tuple(extra)
    given = {arg.name for arg in extras}
    defaults = [_parse_flag(text) for text in command[1:]]
    kept = sorted((arg.name, arg.value) for arg in defaults if arg.name not in given)
    return [command[0], *(f"--{name}={value}" for name, value in kept), *(f"--{a.name}={a.value}" for a in extras)]


def _parse_flag(text: str) -> Arg:
    name, _, value = text.lstrip("-").partition("=")
    return Arg(name, value)


def _drop_flags(pod: Pod, names: Collection[str]) -> None:
    container = _container(pod)
    container["command"] = [text for text in container["command"] if _parse_flag(text).name not in names]


def _rename_flags(pod: Pod, renames: Mapping[str, tuple[str, str]]) -> None:
    container = _container(pod)
    for index, text in enumerate(container["command"]):
        name, value = renames.get(_parse_flag(text).name, ("", ""))
        if name:
            container["command"][index] = f"--{name}={value}"


# ---- environment


def merge_env(proxy_env: Mapping[str, str], extra_envs: Iterable[FrozenDict]) -> list[dict[str, Any]]:
    """The variables of a container, sorted by name: the proxy settings in kb's environment, overridden by the user's extraEnvs."""
    merged: dict[str, dict[str, Any]] = {name: {"name": name, "value": value} for name, value in proxy_env.items()}
    for variable in extra_envs:
        merged[str(variable["name"])] = dict(variable)
    return [merged[name] for name in sorted(merged)]


def _set_env(pod: Pod, env: list[dict[str, Any]]) -> None:
    if env:
        _container(pod)["env"] = env


# ---- volumes


def _add_host_ca_volumes(pod: Pod, node: NodeFacts) -> None:
    for name, path in HOST_CA_DIRS:
        if path in node.host_ca_dirs:
            _add_volume(pod, Volume(name, path, path, True, "DirectoryOrCreate"))


def _add_volume(pod: Pod, volume: Volume) -> None:
    """Mount a folder or file of the host in the pod, replacing a volume of the same name."""
    _drop_volume(pod, volume.name)
    mount: dict[str, Any] = {"mountPath": volume.mount_path, "name": volume.name}
    if volume.read_only:
        mount["readOnly"] = True
    _container(pod)["volumeMounts"].append(mount)
    pod["spec"]["volumes"].append(
        {"hostPath": {"path": volume.host_path, "type": volume.path_type}, "name": volume.name}
    )


def _drop_volume(pod: Pod, name: str) -> None:
    for owner, key in ((_container(pod), "volumeMounts"), (pod["spec"], "volumes")):
        owner[key] = [item for item in owner[key] if item["name"] != name]


def _external_etcd_dirs(etcd: ExternalEtcd, pki: str) -> list[str]:
    """The folders of the client files for an external etcd that no other volume mounts; only the outermost ones."""
    brought = (pki, "/etc/ssl/certs", *(path for _, path in HOST_CA_DIRS))
    files = (etcd.ca_file, etcd.cert_file, etcd.key_file)
    folders = {posixpath.normpath(posixpath.dirname(file)) for file in files if posixpath.dirname(file)}
    needed = {folder for folder in folders if not any(_is_within(folder, outer) for outer in brought)}
    return sorted(one for one in needed if not any(_is_within(one, other) for other in needed - {one}))


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


# ---- addresses and probes


def etcd_client_url(address: str) -> str:
    return f"https://{join_host_port(address, ETCD_CLIENT_PORT)}"


def etcd_peer_url(address: str) -> str:
    return f"https://{join_host_port(address, ETCD_PEER_PORT)}"


def _loopback(address: str) -> str:
    return "::1" if ":" in address else "127.0.0.1"


def _bind_address(component: Component) -> str:
    given = component.last_arg("bind-address")
    return "127.0.0.1" if given is None else given


def _probe_host(address: str) -> str:
    """The host of the kubelet's probes for a component that listens on `address`; "" (the pod's address) if it listens on all."""
    return "" if address in ("0.0.0.0", "::") else address


def _etcd_probe(etcd: LocalEtcd, address: str) -> tuple[str, str, int]:
    """Scheme, host and port of etcd's metrics listener: from the user's first URL, or the default."""
    default = ("HTTP", _loopback(address), ETCD_METRICS_PORT)
    given = etcd.last_arg("listen-metrics-urls")
    if not given:
        return default
    try:
        url = urllib.parse.urlsplit(given.split(",")[0].strip())
        scheme = "HTTPS" if url.scheme == "https" else "HTTP"
        return (scheme, url.hostname, url.port or ETCD_METRICS_PORT) if url.hostname else default
    except ValueError:
        return default


def _etcd_servers(config: NodeConfig) -> str:
    if config.cluster.external_etcd:
        return ",".join(config.cluster.external_etcd.endpoints)
    given = config.cluster.local_etcd and config.cluster.local_etcd.last_arg("advertise-client-urls")
    return given or etcd_client_url(_loopback(config.local_api_endpoint.advertise_address))


def _etcd_client_files(config: NodeConfig) -> ExternalEtcd:
    """The API server's client files for etcd: those of the external etcd, or those in certificatesDir."""
    pki = config.cluster.certificates_dir
    return config.cluster.external_etcd or ExternalEtcd(
        endpoints=(),
        ca_file=f"{pki}/etcd/ca.crt",
        cert_file=f"{pki}/apiserver-etcd-client.crt",
        key_file=f"{pki}/apiserver-etcd-client.key",
    )


def startup_failures(timeout_s: int) -> int:
    """How often the startup probe (every 10 s) may fail, so that the component has `timeout_s` to start. 0 (no timeout) means the
    default, because a probe cannot wait forever."""
    return math.ceil((timeout_s or 240) / 10)


def _adapt_probes(pod: Pod, release: Release) -> None:
    container = _container(pod)
    port = container["ports"][0]["containerPort"]
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if probe not in container:
            continue
        request = container[probe]["httpGet"]
        if not request["host"]:
            del request["host"]
        if not release.has_named_probe_ports:
            request["port"] = port
    if not release.has_named_probe_ports:
        del container["ports"]


# ---- filling in the file


def _fill_pod(component: str, config: NodeConfig, *, release: Release, words: Mapping[str, Union[str, int]]) -> Pod:
    timeout_s = config.timeouts.control_plane_component_health_check_s
    common: dict[str, Union[str, int]] = {
        "pki": config.cluster.certificates_dir,
        "image": image_of(component, config.cluster, release=release).ref,
        "startup_failures": startup_failures(timeout_s),
    }
    pod: Pod = fill_scalars(load_yaml(read_resource(f"manifests/{component}.yaml")), {**common, **words})
    return pod


def fill_scalars(value: Any, words: Mapping[str, Union[str, int]]) -> Any:
    """`value` with every ${word} in its strings replaced. A string that is just one ${word} becomes the value itself, even a number.
    Raises KeyError for an unknown word."""
    if isinstance(value, dict):
        return {key: fill_scalars(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [fill_scalars(item, words) for item in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    whole = _whole_word(value)
    return words[whole] if whole else string.Template(value).substitute(words)


def _whole_word(text: str) -> Optional[str]:
    word = text[2:-1]
    return word if text == f"${{{word}}}" and word.isidentifier() else None


def _finish_pod(pod: Pod, own: Component, *, config: NodeConfig, release: Release) -> Pod:
    """Apply what the three components have in common, after their own volumes and flags."""
    container = _container(pod)
    container["command"] = override_args(container["command"], own.extra_args)
    _set_env(pod, merge_env(config.proxy_env, own.extra_envs))
    for volume in own.extra_volumes:
        _add_volume(pod, volume)
    container["volumeMounts"].sort(key=lambda item: str(item["name"]))
    pod["spec"]["volumes"].sort(key=lambda item: str(item["name"]))
    _adapt_probes(pod, release)
    return pod


def _container(pod: Pod) -> dict[str, Any]:
    container: dict[str, Any] = pod["spec"]["containers"][0]
    return container


def _refuse_rootless(config: NodeConfig) -> None:
    if config.cluster.feature_gates.get("RootlessControlPlane"):
        raise UsageError(
            "featureGates: RootlessControlPlane is true",
            cause="kb does not support this alpha gate: it would need users and groups of its own on every node",
            remedy="remove RootlessControlPlane from featureGates, then run the command again",
            code="rootless-control-plane",
        )
