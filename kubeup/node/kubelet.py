"""The kubelet's files: its configuration, its flags, its unit, and its certificate in kubelet.conf.

This module renders the files; phases/kubelet_start.py writes them and starts the service. Mirrors
cmd/kubeadm/app/componentconfigs/kubelet.go and cmd/kubeadm/app/phases/kubelet. The unit and the drop-in are those of the packages
(kubernetes/release), to which kubeadm leaves them.
"""

from __future__ import annotations

import copy
import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kubeup.config.types import Arg, ClusterConfiguration, NodeConfig, Taint
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node.images import image_of
from kubeup.node.static_pods import fill_scalars
from kubeup.paths import RESOLVED_CONF, Paths
from kubeup.releases import Release
from kubeup.yaml_files import dump_yaml, load_yaml, read_resource

WATCHED_FIELDS = (
    "staticPodPath",
    "clusterDNS",
    "clusterDomain",
    "authentication.x509.clientCAFile",
    "authentication.anonymous.enabled",
    "authentication.webhook.enabled",
    "authorization.mode",
    "healthzBindAddress",
    "healthzPort",
    "resolvConf",
)
"""Fields for which a user's value that differs from the default is kept, with a warning."""

FLAGS_ENV_FILE = "/var/lib/kubelet/kubeadm-flags.env"
UNIT_DIRS = tuple(
    Path(text)
    for text in (
        "/etc/systemd/system",
        "/run/systemd/system",
        "/usr/local/lib/systemd/system",
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
    )
)
_FLAGS_VARIABLE = "KUBELET_KUBEADM_ARGS"


# ---- KubeletConfiguration


@frozen
class KubeletConfig:
    """A KubeletConfiguration for the ConfigMap, and warnings about it."""

    document: dict[str, Any]
    warnings: tuple[str, ...] = ()


def render_kubelet_config(config: NodeConfig, release: Release, *, resolv_conf: str = "") -> KubeletConfig:
    """The user's KubeletConfiguration on top of kb's defaults. `resolv_conf` comes from probe_resolv_conf.

    All nodes share this document, so it contains no patches and no CRI socket (see finish_kubelet_config).
    """
    cluster = config.cluster
    defaults = fill_scalars(
        load_yaml(read_resource("kubelet/config.yaml")),
        {
            "pki": cluster.certificates_dir,
            "dns_address": cluster_dns_address(config),
            "dns_domain": cluster.networking.dns_domain,
            "resolv_conf": resolv_conf,
        },
    )
    if not resolv_conf:
        del defaults["resolvConf"]
    if not release.kubelet_config_has_crash_loop_back_off:
        del defaults["crashLoopBackOff"]
    document = merge_defaults(defaults, config.kubelet)
    warnings = [
        _conflict(path, want, have=have)
        for path in WATCHED_FIELDS
        if (want := look_up(defaults, path)) is not None and (have := look_up(document, path)) != want
    ]
    if look_up(document, "readOnlyPort"):
        warnings.append(_conflict("readOnlyPort", 0, have=document["readOnlyPort"]))
    if document["rotateCertificates"] is not True:
        warnings.append("KubeletConfiguration: rotateCertificates is always true: your value is ignored")
        document["rotateCertificates"] = True
    return KubeletConfig(document, tuple(warnings))


def _conflict(path: str, want: object, *, have: object) -> str:
    return f'KubeletConfiguration: "{path}" is {have!r}, the recommended value is {want!r}; yours is kept'


def finish_kubelet_config(document: Mapping[str, Any], config: NodeConfig, *, release: Release) -> dict[str, Any]:
    """This node's config.yaml: the shared document, already patched, with the fields of instance-config.yaml on top."""
    return {**document, **render_instance_config(config, release)}


def merge_defaults(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` with the defaults for missing values. null and "" count as missing; 0 and false do not."""
    merged: dict[str, Any] = {key: copy.deepcopy(value) for key, value in own.items() if value is not None}
    for key, value in defaults.items():
        have = merged.get(key)
        if isinstance(value, Mapping) and isinstance(have, Mapping):
            merged[key] = merge_defaults(value, have)
        elif have is None or have == "":
            merged[key] = copy.deepcopy(value)
    return merged


def look_up(document: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None if there is none."""
    value: Any = document
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def cluster_dns_address(config: NodeConfig) -> str:
    """The address of the cluster's DNS: the tenth of the first service CIDR."""
    return config.cluster.service_address(10)


def probe_resolv_conf(host: Host) -> str:
    """The resolv.conf for pods: systemd-resolved's own if that runs, otherwise "" (the host's)."""
    active = host.query(["systemctl", "is-active", "systemd-resolved"])
    return RESOLVED_CONF if active.stdout.strip() == "active" else ""


# ---- instance-config.yaml


def has_instance_config(cluster: ClusterConfiguration, release: Release) -> bool:
    """Whether the CRI socket is in instance-config.yaml, by the feature gate NodeLocalCRISocket."""
    return cluster.feature_gates.get("NodeLocalCRISocket", release.node_local_cri_socket)


def render_instance_config(config: NodeConfig, release: Release) -> dict[str, str]:
    """The settings that are specific to this node; {} if the feature gate is off."""
    if not has_instance_config(config.cluster, release):
        return {}
    return {"containerRuntimeEndpoint": config.node.cri_socket}


def dump_instance_config(instance: Mapping[str, str]) -> str:
    """The text of instance-config.yaml, with quoted values as kubeadm writes them."""
    return "".join(f"{key}: {_quote(value)}\n" for key, value in instance.items())


# ---- kubeadm-flags.env

GENERATED_FLAGS = frozenset(
    {"container-runtime-endpoint", "pod-infra-container-image", "hostname-override", "register-with-taints"}
)
"""The flags that kubeadm and kb write themselves; all others are somebody's kubeletExtraArgs."""


def plan_kubelet_flags(
    config: NodeConfig, release: Release, *, os_hostname: str, register_with_taints: bool = False
) -> tuple[Arg, ...]:
    """The flags of this node's kubelet, with the user's kubeletExtraArgs last and in their order.

    `register_with_taints`: a worker registers with its taints; those of a control plane are patched in later.
    """
    node = config.node
    own = node.kubelet_extra_args
    flags: list[Arg] = []
    if not has_instance_config(config.cluster, release):
        flags.append(Arg("container-runtime-endpoint", node.cri_socket))
    name = next((arg.value for arg in reversed(own) if arg.name == "hostname-override"), node.name)
    if name != os_hostname.strip().lower():
        flags.append(Arg("hostname-override", name))
    if release.pod_infra_container_image_flag:
        flags.append(Arg("pod-infra-container-image", image_of("pause", config.cluster, release=release).ref))
    if register_with_taints and node.taints:
        flags.append(Arg("register-with-taints", ",".join(format_taint(taint) for taint in node.taints)))
    given = {arg.name for arg in own}
    return (*(flag for flag in flags if flag.name not in given), *own)


def format_taint(taint: Taint) -> str:
    """`key=value:effect`, or `key:effect`."""
    return f"{taint.key}={taint.value}:{taint.effect}" if taint.value else f"{taint.key}:{taint.effect}"


def render_flags_env(flags: Iterable[Arg]) -> str:
    """The text of kubeadm-flags.env, which the drop-in loads as an EnvironmentFile."""
    return f"{_FLAGS_VARIABLE}={_quote(' '.join(f'--{flag.name}={flag.value}' for flag in flags))}\n"


def parse_flags_env(text: str, variable: str = _FLAGS_VARIABLE) -> tuple[Arg, ...]:
    """The flags in a kubeadm-flags.env, in order; () for an empty or foreign file. `--flag value` is read like `--flag=value`."""
    line = next((line for line in text.splitlines() if line.startswith(f"{variable}=")), "")
    content = _unquote(line.partition("=")[2].strip())
    flags: list[Arg] = []
    for word in content.split():
        if word.startswith("-"):
            name, _, value = word.lstrip("-").partition("=")
            flags.append(Arg(name, value))
        elif flags:
            last = flags.pop()
            flags.append(Arg(last.name, f"{last.value} {word}" if last.value else word))
    return tuple(flags)


def render_kubelet_command(flags: Iterable[Arg], *, kubelet: Path) -> str:
    """The command line of the unit, for starting the kubelet by hand."""
    words = [
        str(kubelet),
        "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
        "--kubeconfig=/etc/kubernetes/kubelet.conf",
        "--config=/var/lib/kubelet/config.yaml",
        *(f"--{flag.name}={flag.value}" for flag in flags),
    ]
    return shlex.join(words)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _unquote(text: str) -> str:
    inner = text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text.strip('"')
    return re.sub(r"\\(.)", r"\1", inner)


# ---- the systemd unit


def plan_unit_files(host: Host, paths: Paths, *, owned: Iterable[str]) -> dict[Path, str]:
    """The unit and drop-in that kb has to write so that the kubelet reads kb's files: path -> file in configs/systemd.

    An existing unit (from a package or an admin) stays, and kb adds a drop-in only if nothing else makes it read
    kubeadm-flags.env. `owned`: the paths that kb created itself, which are kept up to date.
    """
    own = set(owned)
    foreign = [path for path in find_unit_files(host) if str(path) not in own]
    files = {}
    if not any(path.name == "kubelet.service" for path in foreign):
        files[paths.systemd / "kubelet.service"] = "kubelet.service"
    if not any(FLAGS_ENV_FILE in host.read_text(path) for path in foreign):
        files[paths.systemd / "kubelet.service.d" / "10-kubeadm.conf"] = "10-kubeadm.conf"
    return files


def render_unit_file(name: str, kubelet: Path) -> str:
    """configs/systemd/<name> with the path `kubelet`."""
    return read_resource(f"systemd/{name}").replace("/usr/bin/kubelet", str(kubelet))


def find_unit_files(host: Host) -> list[Path]:
    """kubelet.service and its drop-ins in all folders that systemd searches."""
    found = []
    for folder in UNIT_DIRS:
        if host.exists(folder / "kubelet.service"):
            found.append(folder / "kubelet.service")
        drop_ins = folder / "kubelet.service.d"
        found.extend(drop_ins / name for name in host.list_dir(drop_ins) if name.endswith(".conf"))
    return found


# ---- the rotating client certificate


def find_rotated_cert(config: NodeConfig) -> Path:
    """The path of the kubelet's current client certificate with its key."""
    folders = [arg.value for arg in config.node.kubelet_extra_args if arg.name == "cert-dir"]
    return Path(folders[-1] if folders else "/var/lib/kubelet/pki") / "kubelet-client-current.pem"


def use_rotated_cert(kubeconfig: Mapping[str, Any], pem: Path) -> dict[str, Any]:
    """The kubeconfig with the current user's certificate in the file `pem` instead of embedded, since an embedded one expires after a
    year. Raises LookupError if the kubeconfig has no current user."""
    changed = copy.deepcopy(dict(kubeconfig))
    context = _named(changed.get("contexts"), str(changed.get("current-context", "")))["context"]
    user = _named(changed.get("users"), str(context["user"]))["user"]
    for embedded in ("client-certificate-data", "client-key-data"):
        user.pop(embedded, None)
    user["client-certificate"] = user["client-key"] = str(pem)
    return changed


def _named(items: Any, name: str) -> Any:
    for item in items or ():
        if item.get("name") == name:
            return item
    raise LookupError(name)


# ---- stored component configs


def component_config_hash(data: Mapping[str, str]) -> str:
    """The annotation kubeadm.kubernetes.io/component-config.hash of a ConfigMap with this `data`. It marks generated content, which an
    upgrade may generate again."""
    return "sha256:" + hashlib.sha256("".join(data[key] for key in sorted(data)).encode()).hexdigest()


def dump_kubelet_config(document: Mapping[str, Any]) -> str:
    """The text of config.yaml, and of the key `kubelet` of the ConfigMap."""
    return dump_yaml(dict(document))
