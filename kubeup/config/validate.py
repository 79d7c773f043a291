"""What a configuration may say: every rule of kubeadm's, and those that kb adds where kubeadm finds out too late.

Each check takes values and complains to Problems under the field's own path; none raises, none looks at the machine.
Source: cmd/kubeadm/app/apis/kubeadm/validation/validation.go, apis/bootstraptoken/v1/utils.go, features/features.go
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Optional

from kubeup import releases
from kubeup.config import kubelet_flags, kubelet_values, presets, schema, types
from kubeup.config.choose import Address, Network, is_global_unicast, is_open_address, parse_address
from kubeup.config.problems import Problems, shorten, suggest
from kubeup.errors import UsageError
from kubeup.secret import Secret

_INIT, _CLUSTER, _JOIN, _RESET, _UPGRADE, _KB = (
    "InitConfiguration",
    "ClusterConfiguration",
    "JoinConfiguration",
    "ResetConfiguration",
    "UpgradeConfiguration",
    "KbConfiguration",
)

_LABEL = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_TOKEN = re.compile(r"[a-z0-9]{6}\.[a-z0-9]{16}")
_CERTIFICATE_KEY = re.compile(r"[0-9a-fA-F]{64}")
_TOKEN_GROUP = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]")
_REPOSITORY = re.compile(
    r"(?:localhost|\[[0-9a-fA-F:]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?)(?::\d{1,5})?"
    r"(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_QUALIFIED_NAME = re.compile(r"(?:[a-z0-9.-]{1,253}/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")

PULL_POLICIES = ("Always", "IfNotPresent", "Never")
TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
USAGES = ("signing", "authentication")
ALGORITHMS = ("RSA-2048", "RSA-3072", "RSA-4096", "ECDSA-P256", "ECDSA-P384")
PATH_TYPES = (
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
)
UNMOUNT_FLAGS = ("MNT_FORCE", "MNT_DETACH", "MNT_EXPIRE", "UMOUNT_NOFOLLOW")
PACKAGE_SOURCES = ("auto", "bundle", "mirror", "download", "apt", "dnf", "none")
PLUGINS = ("bridge", "manifest", "none")
BACKENDS = ("auto", "route", "vxlan")
BALANCER_MODES = ("local", "none")
_IMAGE = re.compile(rf"{_REPOSITORY.pattern}(?::{_TAG.pattern})?(?:@sha256:[0-9a-f]{{64}})?")


# ---- texts

MAX_NODE_NAME = 63
"""Of a label's value (k8s.io/apimachinery/pkg/util/validation)."""
_TEMPLATE = re.compile(r"\{\{|\}\}|\$\{|\$\(|<[a-z_ -]+>|%[A-Z_]+%", re.IGNORECASE)


def _shorter_name(name: str) -> str:
    """Of a machine's full name its first label; else as much of it as fits, with a mark that keeps it apart from others."""
    first = name.partition(".")[0]
    if len(first) <= MAX_NODE_NAME:
        return first
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{first[: MAX_NODE_NAME - 9].rstrip('-')}-{mark}"


def is_subdomain(text: str) -> bool:
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def is_token(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None


def split_host_port(text: str) -> Optional[tuple[str, Optional[int]]]:
    """`host`, `host:port`, `[::1]:port`, `::1` -> (host, port or None); None where it is neither. `host:` has no port, as
    with Go's net.SplitHostPort."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in host:
            return None
        port = rest[1:] if rest else None
    elif text.count(":") == 1:
        host, port = text.split(":")
    else:
        host, port = text, None
    if not port:
        return host, None
    return (host, int(port)) if port.isdecimal() and port.isascii() and len(port) < 7 else None


def parse_cidr(text: str) -> Optional[Network]:
    """`10.96.0.0/12`; bits after the prefix are allowed and dropped, as in Go. None for anything else."""
    address, slash, prefix = text.partition("/")
    if not slash or not prefix.isdecimal() or not prefix.isascii() or len(prefix) > 3 or parse_address(address) is None:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


# ---- checks of one value, shared by all kinds


def check_choice(problems: Problems, kind: str, path: str, *, value: str, choices: Iterable[str]) -> None:
    known = [choice for choice in choices if choice]
    if value not in choices:
        close = suggest(value, known)
        remedy = close if close.startswith("did") else f"choose one of {', '.join(known)}"
        problems.fail(kind, path, f"{shorten(value)!r} is not allowed", remedy)


def check_absolute(problems: Problems, kind: str, path: str, value: str) -> None:
    if not value.startswith("/") or "\0" in value:
        problems.fail(kind, path, f"{shorten(value)!r} is not an absolute path", "write the path from / on")


def check_token(problems: Problems, kind: str, path: str, token: Secret) -> None:
    if not is_token(token.reveal()):
        problems.fail(
            kind, path, "not a bootstrap token (6 and 16 of a-z0-9 with a dot between)", "make one: kb token generate"
        )


def check_certificate_key(problems: Problems, kind: str, path: str, key: Secret) -> None:
    if key and not _CERTIFICATE_KEY.fullmatch(key.reveal()):
        problems.fail(kind, path, "not a key of 32 bytes (64 hexadecimal digits)", "make one: kb certs certificate-key")


def check_port(problems: Problems, kind: str, path: str, port: int) -> None:
    if not 1 <= port <= 65535:
        problems.fail(kind, path, f"port {port} does not exist", "give a port from 1 to 65535")


def check_sans(problems: Problems, kind: str, path: str, sans: Iterable[str]) -> None:
    for index, san in enumerate(sans):
        name = san[2:] if san.startswith("*.") else san
        if parse_address(san) is None and not is_subdomain(name):
            problems.fail(
                kind,
                f"{path}[{index}]",
                f"{shorten(san)!r} is neither an IP address nor a DNS name nor a wildcard such as *.example.com",
                "write it without scheme and port, in lower case",
            )


def check_args(problems: Problems, kind: str, path: str, args: Iterable[types.Arg]) -> None:
    for index, arg in enumerate(args):
        if not arg.name:
            problems.fail(kind, f"{path}[{index}].name", "an argument without a name", "give it: name: the-flag")
        elif arg.name.startswith("-") or not arg.name.isprintable() or any(char in arg.name for char in " ="):
            remedy = f"write name: {shorten(arg.name.lstrip('-').partition('=')[0].split(' ')[0] or 'the-flag')}"
            problems.fail(
                kind, f"{path}[{index}].name", f"{shorten(arg.name)!r} is not a flag's name without its dashes", remedy
            )
        elif "\0" in arg.value or "\n" in arg.value:
            problems.fail(
                kind, f"{path}[{index}].value", "a value with a line break or NUL in it", "write it in one line"
            )


def check_repository(problems: Problems, kind: str, path: str, value: str) -> None:
    if value and (len(value) > 255 or not _REPOSITORY.fullmatch(value)):
        bare = re.sub(r"^[a-z]+://", "", value).rstrip("/")
        good = bare != value and len(bare) < 255 and _REPOSITORY.fullmatch(bare)
        remedy = f"write {bare}" if good else "write host[:port][/path] without scheme, tag and a / at the end"
        problems.fail(kind, path, f"{shorten(value)!r} is not the beginning of an image name", remedy)


def check_tag(problems: Problems, kind: str, path: str, value: str) -> None:
    if value and not _TAG.fullmatch(value):
        problems.fail(kind, path, f"{shorten(value)!r} is not an image tag", "write a tag such as v1.14.2")


def check_socket(problems: Problems, kind: str, path: str, value: str) -> None:
    if value and not re.fullmatch(r"unix:///[!-~]*[!-.0-~]", value):
        problems.fail(kind, path, f"{shorten(value)!r} is not a socket", "write unix:///path/to/the.sock")


def check_advertise_address(problems: Problems, kind: str, path: str, value: str) -> None:
    address = parse_address(value)
    if address is None:
        problems.fail(kind, path, f"{shorten(value)!r} is not an IP address", "write an address of this machine")
    elif not (address.is_loopback or is_global_unicast(address)):
        problems.fail(
            kind,
            path,
            f'cannot use "{value}" as the bind address for the API Server: it is no address of one machine',
            "write an address of this machine that the other nodes reach",
        )


def check_timeouts(problems: Problems, kind: str, timeouts: types.Timeouts) -> None:
    for name, field in _TIMEOUT_FIELDS.items():
        if getattr(timeouts, field) < 0:
            problems.fail(kind, f"timeouts.{name}", "a negative duration", "write a duration such as 4m0s")
        elif getattr(timeouts, field) == 0:
            problems.warn(kind, f"timeouts.{name}", "0s: nothing is waited for; remove the line to have the default")


_TIMEOUT_FIELDS = {
    "controlPlaneComponentHealthCheck": "control_plane_component_health_check_s",
    "kubeletHealthCheck": "kubelet_health_check_s",
    "kubernetesAPICall": "kubernetes_api_call_s",
    "etcdAPICall": "etcd_api_call_s",
    "tlsBootstrap": "tls_bootstrap_s",
    "discovery": "discovery_s",
    "upgradeManifests": "upgrade_manifests_s",
}


def check_ignored(problems: Problems, kind: str, path: str, names: tuple[str, ...]) -> None:
    if "all" in names and len(set(names)) > 1:
        problems.fail(kind, path, "'all' stands beside other checks", "write all alone, or the checks without it")


# ---- init


def check_init(config: types.InitConfig, trees: Mapping[str, Mapping[str, object]], problems: Problems) -> None:
    """Every rule of an init, in the order of the documents."""
    found = releases.parse_version(config.cluster.kubernetes_version)
    check_node(problems, _INIT, config.node, minor=found.minor if found else 0)
    endpoint = config.local_api_endpoint
    check_advertise_address(problems, _INIT, "localAPIEndpoint.advertiseAddress", endpoint.advertise_address)
    check_port(problems, _INIT, "localAPIEndpoint.bindPort", endpoint.bind_port)
    check_bootstrap_tokens(problems, config.bootstrap_tokens)
    check_certificate_key(problems, _INIT, "certificateKey", config.certificate_key)
    check_timeouts(problems, _INIT, config.timeouts)
    check_cluster(config.cluster, trees.get(_CLUSTER, {}), problems)
    check_networks(config, problems)
    check_kb(config.kb, problems)
    _check_balancer(config, problems)
    for kind in schema.COMPONENT_GROUPS:
        _check_newer_fields(kind, trees.get(kind, {}), config.cluster.kubernetes_version, problems)
    for path, what, remedy in kubelet_values.find_faults(trees.get("KubeletConfiguration", {})):
        if problems.is_kubeadm:
            problems.warn("KubeletConfiguration", path, f"{what}, and the kubelet does not start with it; {remedy}")
        else:
            problems.fail("KubeletConfiguration", path, f"{what}, and the kubelet does not start with it", remedy)


def _check_newer_fields(kind: str, tree: Mapping[str, object], version: str, problems: Problems) -> None:
    """A component leaves out what it does not know, with no word that anybody reads."""
    found = releases.parse_version(version)
    for path, minor in schema.find_newer_fields(kind, tree, found.minor) if found and tree else ():
        problems.warn(kind, path, f"Kubernetes {version} has no such field and leaves it out: it came with 1.{minor}")


def check_node(problems: Problems, kind: str, node: types.NodeRegistration, *, minor: int = 0) -> None:
    """minor: of the cluster, where it is known."""
    path = "nodeRegistration"
    if is_subdomain(node.name) and len(node.name) > MAX_NODE_NAME:
        problems.fail(
            kind,
            f"{path}.name",
            f"{shorten(node.name)!r} has {len(node.name)} characters: the kubelet could not register it, since it is the value of "
            f"the label kubernetes.io/hostname, which has {MAX_NODE_NAME} at most",
            f"give a shorter one: --node-name {_shorter_name(node.name)}",
        )
    elif _TEMPLATE.search(node.name):
        problems.fail(
            kind,
            f"{path}.name",
            f"{shorten(node.name)!r} is a template that nobody filled in",
            "have the tool that writes the file render it, or give the name: --node-name NAME",
        )
    elif not is_subdomain(node.name):
        good = re.sub(r"[^a-z0-9.-]+", "-", node.name.lower()).strip("-.")
        remedy = f"give --node-name {good}" if good and is_subdomain(good) else "give a name of a-z, 0-9, - and ."
        problems.fail(kind, f"{path}.name", f"{shorten(node.name)!r} cannot be a node's name", remedy)
    elif node.name == "localhost":
        problems.warn(kind, f"{path}.name", "the node is called localhost, as every machine is: give --node-name")
    check_socket(problems, kind, f"{path}.criSocket", node.cri_socket)
    for index, taint in enumerate(node.taints or ()):
        check_choice(problems, kind, f"{path}.taints[{index}].effect", value=taint.effect, choices=TAINT_EFFECTS)
        if not _QUALIFIED_NAME.fullmatch(taint.key):
            problems.fail(
                kind,
                f"{path}.taints[{index}].key",
                f"{shorten(taint.key)!r} is not a taint's key",
                "write name or domain/name",
            )
    check_args(problems, kind, f"{path}.kubeletExtraArgs", node.kubelet_extra_args)
    _check_kubelet_args(problems, kind, f"{path}.kubeletExtraArgs", args=node.kubelet_extra_args, minor=minor)
    check_ignored(problems, kind, f"{path}.ignorePreflightErrors", node.ignore_preflight_errors)
    check_choice(problems, kind, f"{path}.imagePullPolicy", value=node.image_pull_policy, choices=PULL_POLICIES)


def _check_kubelet_args(problems: Problems, kind: str, path: str, *, args: Iterable[types.Arg], minor: int) -> None:
    """What a kubelet ends of. Of a flag that older kubelets of this cluster may have yet it is a warning: the check of the
    node asks the kubelet itself."""
    oldest = (releases.RELEASES.get(minor) or releases.RELEASES[min(releases.RELEASES)]).oldest_kubelet_minor
    for index, arg in enumerate(args):
        if kubelet_flags.normal_name(arg.name) == kubelet_flags.LABELS_FLAG:
            for refusal in kubelet_flags.find_refused_labels(arg.value):
                _refuse(problems, kind, f"{path}[{index}].value", refusal, is_sure=True)
        gone = kubelet_flags.find_gone(arg.name)
        if gone and gone.since <= max(oldest, minor):
            _refuse(problems, kind, f"{path}[{index}].name", gone.refusal(arg.name), is_sure=gone.since <= oldest)


def _refuse(problems: Problems, kind: str, place: str, refusal: kubelet_flags.Refusal, *, is_sure: bool) -> None:
    """Under the name kubeadm, which does not look, a warning."""
    if is_sure and not problems.is_kubeadm:
        problems.fail(kind, place, refusal.message, refusal.remedy)
    else:
        problems.warn(kind, place, f"{refusal.message}; {refusal.remedy}")


def check_bootstrap_tokens(problems: Problems, tokens: tuple[types.BootstrapToken, ...]) -> None:
    seen: dict[str, int] = {}
    for index, token in enumerate(tokens):
        path = f"bootstrapTokens[{index}]"
        check_token(problems, _INIT, f"{path}.token", token.token)
        if token.token_id in seen and is_token(token.token.reveal()):
            problems.fail(
                _INIT,
                f"{path}.token",
                f"its id is that of bootstrapTokens[{seen[token.token_id]}]",
                "give another token",
            )
        seen.setdefault(token.token_id, index)
        if token.ttl_s is not None and token.ttl_s < 0:
            problems.fail(_INIT, f"{path}.ttl", "a negative duration", "write 24h0m0s, or 0s for a token without end")
        if token.expires and problems.is_given(_INIT, f"{path}.ttl"):
            problems.fail(_INIT, f"{path}.expires", "ttl and expires are mutually exclusive", "remove one of them")
        for number, usage in enumerate(token.usages):
            check_choice(problems, _INIT, f"{path}.usages[{number}]", value=usage, choices=USAGES)
        for number, group in enumerate(token.groups):
            if not _TOKEN_GROUP.fullmatch(group):
                problems.fail(
                    _INIT,
                    f"{path}.groups[{number}]",
                    f"{shorten(group)!r} is not a group of bootstrap tokens",
                    "write system:bootstrappers:name",
                )
        if "authentication" not in token.usages and token.groups:
            problems.fail(_INIT, f"{path}.groups", "groups need the usage authentication", "add it to usages")


def check_cluster(cluster: types.ClusterConfiguration, tree: Mapping[str, object], problems: Problems) -> None:
    """The rules of a ClusterConfiguration that need nothing but itself."""
    release = check_version(problems, _CLUSTER, cluster.kubernetes_version)
    if release:
        check_gates(cluster.feature_gates, release, problems)
    check_algorithm(cluster.encryption_algorithm, release, problems)
    _check_endpoint(cluster.control_plane_endpoint, problems)
    if not is_subdomain(cluster.networking.dns_domain):
        problems.fail(
            _CLUSTER,
            "networking.dnsDomain",
            f"{shorten(cluster.networking.dns_domain)!r} is not a DNS domain",
            "write a name such as cluster.local",
        )
    check_absolute(problems, _CLUSTER, "certificatesDir", cluster.certificates_dir)
    check_repository(problems, _CLUSTER, "imageRepository", cluster.image_repository)
    _check_validity(cluster, problems)
    check_sans(problems, _CLUSTER, "apiServer.certSANs", cluster.api_server.cert_sans)
    for name, component in (
        ("apiServer", cluster.api_server),
        ("controllerManager", cluster.controller_manager),
        ("scheduler", cluster.scheduler),
        *([("etcd.local", cluster.local_etcd)] if cluster.local_etcd else []),
    ):
        _check_component(name, component, problems)
    check_repository(problems, _CLUSTER, "dns.imageRepository", cluster.dns.image_repository)
    check_tag(problems, _CLUSTER, "dns.imageTag", cluster.dns.image_tag)
    _check_etcd(cluster, tree, problems)


def check_version(
    problems: Problems, kind: str, version: str, path: str = "kubernetesVersion"
) -> Optional[releases.Release]:
    try:
        return releases.find_release(version)
    except UsageError as error:
        problems.fail(kind, path, f"{error.what}: {error.cause}", error.remedy)
        return None


def check_gates(gates: Mapping[str, bool], release: releases.Release, problems: Problems) -> None:
    for gate in gates:
        if gate in release.feature_gates:
            continue
        elsewhere = [row.name for row in releases.RELEASES.values() if gate in row.feature_gates]
        if elsewhere:
            message = (
                f"Kubernetes {release.name} has no feature gate {gate} (known to {elsewhere[0]} to {elsewhere[-1]})"
            )
            remedy = "remove it"
        else:
            message, remedy = f"unrecognized feature-gate key: {shorten(gate)}", suggest(gate, release.feature_gates)
        problems.fail(_CLUSTER, f"featureGates.{gate}", message, remedy)


def check_algorithm(name: str, release: Optional[releases.Release], problems: Problems) -> None:
    choices = ALGORITHMS if release is None or release.has_ecdsa_p384 else ALGORITHMS[:-1]
    check_choice(problems, _CLUSTER, "encryptionAlgorithm", value=name, choices=choices)


def _check_endpoint(endpoint: str, problems: Problems) -> None:
    if not endpoint:
        return
    path, example = "controlPlaneEndpoint", "write host:port such as api.example.com:6443"
    parts = split_host_port(endpoint)
    scheme = re.fullmatch(r"\[?([A-Za-z][A-Za-z0-9+.-]*)://([^\]/]*)[^\]]*\]?(:\d+)?", endpoint)
    if scheme:
        given, right = f"{scheme[1]}://{scheme[2]}", scheme[2] or "api.example.com:6443"
        problems.fail(_CLUSTER, path, f"{shorten(given)!r} is a URL", f"write it without {scheme[1]}://: {right}")
    elif parts is not None and parts[0] != parts[0].lower() and is_subdomain(parts[0].lower()):
        text = f"{shorten(parts[0])!r} has upper-case letters, which a DNS name in Kubernetes has not"
        problems.fail(_CLUSTER, path, text, f"write {parts[0].lower()}")
    elif parts is None or (parse_address(parts[0]) is None and not is_subdomain(parts[0])):
        problems.fail(_CLUSTER, path, f"{shorten(endpoint)!r} is not a DNS name or IP address with a port", example)
    elif parts[1] is not None:
        check_port(problems, _CLUSTER, path, parts[1])


_YEAR_S = types.ClusterConfiguration.certificate_validity_period_s
_DECADE_S = types.ClusterConfiguration.ca_certificate_validity_period_s


def _check_validity(cluster: types.ClusterConfiguration, problems: Problems) -> None:
    leaf_s, ca_s = cluster.certificate_validity_period_s, cluster.ca_certificate_validity_period_s
    for path, seconds in (("certificateValidityPeriod", leaf_s), ("caCertificateValidityPeriod", ca_s)):
        if seconds <= 0:
            problems.fail(
                _CLUSTER, path, "a certificate would be expired when it is made", "write a duration such as 8760h"
            )
    if leaf_s > _YEAR_S:
        problems.warn(
            _CLUSTER, "certificateValidityPeriod", "longer than a year: revoking a certificate is not possible"
        )
    if ca_s > _DECADE_S:
        problems.warn(_CLUSTER, "caCertificateValidityPeriod", "longer than ten years")
    if 0 < ca_s < leaf_s:
        problems.warn(
            _CLUSTER,
            "caCertificateValidityPeriod",
            "shorter than certificateValidityPeriod: the CA ends before its certificates",
        )


def _check_component(name: str, component: types.Component, problems: Problems) -> None:
    check_args(problems, _CLUSTER, f"{name}.extraArgs", component.extra_args)
    names: set[str] = set()
    for index, volume in enumerate(component.extra_volumes):
        path = f"{name}.extraVolumes[{index}]"
        if not re.fullmatch(_LABEL, volume.name[:64]) or len(volume.name) > 63:
            problems.fail(
                _CLUSTER, f"{path}.name", f"{shorten(volume.name)!r} is not a volume's name", "use a-z, 0-9 and -"
            )
        elif volume.name in names:
            problems.fail(_CLUSTER, f"{path}.name", f"two volumes are called {volume.name}", "rename one of them")
        names.add(volume.name)
        check_absolute(problems, _CLUSTER, f"{path}.hostPath", volume.host_path)
        if not volume.mount_path or ":" in volume.mount_path or "\0" in volume.mount_path:
            problems.fail(
                _CLUSTER,
                f"{path}.mountPath",
                f"{shorten(volume.mount_path)!r} is not a path",
                "write a path without a colon",
            )
        check_choice(problems, _CLUSTER, f"{path}.pathType", value=volume.path_type, choices=PATH_TYPES)
    for index, env in enumerate(component.extra_envs):
        path = f"{name}.extraEnvs[{index}]"
        env_name = str(env.get("name") or "")
        if not env_name or "=" in env_name or not env_name.isprintable() or not env_name.isascii():
            problems.fail(_CLUSTER, f"{path}.name", f"{shorten(env_name)!r} is not a variable's name", "give it a name")
        if env.get("value") and env.get("valueFrom"):
            problems.fail(_CLUSTER, path, "value and valueFrom are mutually exclusive", "remove one of them")


def _check_etcd(cluster: types.ClusterConfiguration, tree: Mapping[str, object], problems: Problems) -> None:
    if cluster.local_etcd:
        local = cluster.local_etcd
        check_absolute(problems, _CLUSTER, "etcd.local.dataDir", local.data_dir)
        check_repository(problems, _CLUSTER, "etcd.local.imageRepository", local.image_repository)
        check_tag(problems, _CLUSTER, "etcd.local.imageTag", local.image_tag)
        check_sans(problems, _CLUSTER, "etcd.local.serverCertSANs", local.server_cert_sans)
        check_sans(problems, _CLUSTER, "etcd.local.peerCertSANs", local.peer_cert_sans)
    if cluster.external_etcd:
        _check_external_etcd(cluster.external_etcd, problems)
    given = tree.get("etcd")
    if isinstance(given, Mapping) and given.get("local") is not None and given.get("external") is not None:
        problems.fail(_CLUSTER, "etcd", "etcd.local and etcd.external are mutually exclusive", "remove one of them")


def _check_external_etcd(etcd: types.ExternalEtcd, problems: Problems) -> None:
    path = "etcd.external"
    files = {"caFile": etcd.ca_file, "certFile": etcd.cert_file, "keyFile": etcd.key_file}
    if not etcd.endpoints:
        problems.fail(_CLUSTER, f"{path}.endpoints", "no endpoint", "list the members' client URLs: https://host:2379")
    own_http = () if etcd.http_endpoints == etcd.endpoints else etcd.http_endpoints
    for name, urls in (("endpoints", etcd.endpoints), ("httpEndpoints", own_http)):
        for index, url in enumerate(urls):
            scheme = _url_scheme(url)
            place = f"{path}.{name}[{index}]"
            if scheme is None:
                problems.fail(_CLUSTER, place, f"{shorten(url)!r} is not a URL", "write https://host:2379")
            elif scheme == "http" and any(files.values()) and name == "endpoints":
                problems.fail(
                    _CLUSTER, place, "http, while certificates are given", "write https://, or remove the files"
                )
    for name, value in files.items():
        if value:
            check_absolute(problems, _CLUSTER, f"{path}.{name}", value)
    if bool(etcd.cert_file) != bool(etcd.key_file):
        missing = "keyFile" if etcd.cert_file else "certFile"
        problems.fail(_CLUSTER, path, f"certFile and keyFile go together, {missing} is missing", f"give {missing}")
    if (etcd.cert_file or etcd.key_file) and not etcd.ca_file:
        problems.fail(_CLUSTER, path, "certFile and keyFile without caFile", "give caFile")


def _url_scheme(url: str) -> Optional[str]:
    """http or https for a URL with a host; None for anything else."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    is_url = parts.scheme in ("http", "https") and parts.hostname and url.isprintable() and " " not in url
    return parts.scheme if is_url else None


# ---- networks


def check_networks(config: types.InitConfig, problems: Problems) -> None:
    """Subnets: their form and their sizes; what overlaps is told."""
    cluster = config.cluster
    services = _check_subnet(
        problems, "networking.serviceSubnet", cluster.networking.service_subnet, _check_service_size
    )
    pods = _check_subnet(problems, "networking.podSubnet", cluster.networking.pod_subnet, _check_pod_size)
    for pod in pods:
        _check_node_mask(pod, cluster.controller_manager, problems)
        for service in services:
            if pod.version == service.version and pod.overlaps(service):
                # kubeadm takes it, and clusters run so: the controller-manager leaves the Services' range out
                problems.warn(
                    _CLUSTER,
                    "networking.podSubnet",
                    f"{pod} overlaps the service subnet {service}: better take ranges of their own",
                )
    path = "localAPIEndpoint.advertiseAddress"
    address = parse_address(config.local_api_endpoint.advertise_address)
    if address is None:
        return
    for name, nets in (("networking.serviceSubnet", services), ("networking.podSubnet", pods)):
        for net in nets:
            if address in net:
                text = f"{net} holds this node's own address {address}: pods do not reach the machines whose addresses are pods' too"
                problems.warn(_CLUSTER, name, text)
    _check_families(address, services, pods, problems, path)


def _check_families(
    address: Address, services: list[Network], pods: list[Network], problems: Problems, path: str
) -> None:
    if services and services[0].version != address.version:
        problems.fail(
            _CLUSTER,
            "networking.serviceSubnet",
            f"the first subnet is IPv{services[0].version}, the advertise address {address} is not: the API server refuses that",
            f"put an IPv{address.version} subnet first, or give an IPv{services[0].version} advertise address ({path})",
        )
    elif services and pods and services[0].version != pods[0].version:
        problems.fail(
            _CLUSTER,
            "networking.podSubnet",
            f"the first subnet is IPv{pods[0].version}, the first service subnet IPv{services[0].version}",
            "give both in the same order",
        )
    elif len(services) == 2 and len(pods) == 1:
        problems.warn(_CLUSTER, "networking.podSubnet", "services are dual-stack, pods are not")


def _check_subnet(problems: Problems, path: str, text: str, check_size: object) -> list[Network]:
    """The one or two networks of a subnet field; [] where it is wrong (then that is said) or empty."""
    if not text:
        return []
    nets: list[Network] = []
    parts = text.split(",")
    if len(parts) > 2:
        problems.fail(_CLUSTER, path, f"{len(parts)} subnets", "give one, or one IPv4 and one IPv6: a,b")
        return []
    for part in parts:
        net = parse_cidr(part)
        if net is None:
            problems.fail(
                _CLUSTER, path, f"{shorten(part)!r} is not a subnet", "write a CIDR such as 10.96.0.0/12 (no spaces)"
            )
            return []
        if str(net.network_address) != str(parse_address(part.partition("/")[0])):
            problems.warn(_CLUSTER, path, f"{part} has bits after its prefix: it means {net}")
        nets.append(net)
        if callable(check_size):
            check_size(problems, path, net)
    if len(nets) == 2 and nets[0].version == nets[1].version:
        problems.fail(_CLUSTER, path, f"two IPv{nets[0].version} subnets", "dual-stack wants one IPv4 and one IPv6")
    return nets


def _check_service_size(problems: Problems, path: str, net: Network) -> None:
    host_bits = net.max_prefixlen - net.prefixlen
    if net.num_addresses < 10:
        problems.fail(
            _CLUSTER, path, f"{net} has {net.num_addresses} addresses, services need 10 at least", "take a larger one"
        )
    elif host_bits > 20:
        problems.fail(
            _CLUSTER,
            path,
            f"{net} is too large: the API server handles 2^20 addresses",
            f"write /{net.max_prefixlen - 20} or longer",
        )


def _check_pod_size(problems: Problems, path: str, net: Network) -> None:
    if net.num_addresses < 14:
        problems.fail(
            _CLUSTER, path, f"{net} has {net.num_addresses} addresses, pods need 14 at least", "take a larger one"
        )


def _check_node_mask(net: Network, manager: types.Component, problems: Problems) -> None:
    """The controller manager cuts the pod subnet into one piece per node, 65536 at most."""
    if (manager.last_arg("allocate-node-cidrs") or "").lower() in ("false", "0", "f"):
        return
    flag = f"node-cidr-mask-size-ipv{net.version}"
    given = manager.last_arg(flag)
    mask = 24 if net.version == 4 else 64
    if given is not None:
        if not given.isdecimal() or not given.isascii() or not 1 <= int(given[:4]) <= net.max_prefixlen:
            problems.fail(
                _CLUSTER,
                "controllerManager.extraArgs",
                f"{flag}={shorten(given)!r} is not a prefix length",
                f"write {mask}",
            )
            return
        mask = int(given)
    if net.prefixlen > mask:
        problems.fail(
            _CLUSTER,
            "networking.podSubnet",
            f"{net} is smaller than one node's piece of it (/{mask})",
            f"take a larger one, or set {flag} in controllerManager.extraArgs",
        )
    elif mask - net.prefixlen > 16:
        problems.fail(
            _CLUSTER,
            "networking.podSubnet",
            f"{net} in pieces of /{mask} makes more than 65536 nodes",
            f"write /{mask - 16} or longer, or set {flag} in controllerManager.extraArgs",
        )


# ---- kb's own document


def check_kb(kb: types.KbConfiguration, problems: Problems) -> None:
    network = kb.pod_network
    check_choice(problems, _KB, "podNetwork.plugin", value=network.plugin, choices=PLUGINS)
    check_choice(problems, _KB, "podNetwork.backend", value=network.backend, choices=BACKENDS)
    if network.plugin == "manifest" and not network.manifest:
        problems.fail(
            _KB,
            "podNetwork.manifest",
            "plugin manifest without a manifest",
            "give a path or URL: --pod-network-manifest",
        )
    if network.manifest and network.plugin != "manifest":
        problems.fail(
            _KB,
            "podNetwork.manifest",
            f"a manifest beside plugin {shorten(network.plugin)}",
            "write plugin: manifest, or remove it",
        )
    check_repository(problems, _KB, "podNetwork.imageRepository", network.image_repository)
    if network.image_repository and network.plugin != "manifest":
        problems.fail(
            _KB,
            "podNetwork.imageRepository",
            f"plugin {shorten(network.plugin)} has no images",
            "write plugin: manifest, or remove it",
        )
    if network.mtu and not 576 <= network.mtu <= 65535:
        problems.fail(_KB, "podNetwork.mtu", f"{network.mtu} cannot be an MTU", "write 0 (found out) or 576 to 65535")
    balancer = kb.load_balancer
    check_choice(problems, _KB, "loadBalancer.mode", value=balancer.mode, choices=BALANCER_MODES)
    check_port(problems, _KB, "loadBalancer.healthPort", balancer.health_port)
    if balancer.image and not _IMAGE.fullmatch(balancer.image):
        problems.fail(
            _KB, "loadBalancer.image", f"{shorten(balancer.image)!r} is no image's name", "write REGISTRY/NAME:TAG"
        )
    _check_sources(kb, problems)
    if not 0 <= kb.soak_s <= 3600:
        problems.fail(_KB, "soak", "the soak lasts from 0s to 1h", "write 10s")


def _check_balancer(config: types.InitConfig, problems: Problems) -> None:
    """What a load balancer on every node wants of the endpoint: a name of its own, and a port that is free there."""
    balancer, path = config.kb.load_balancer, "controlPlaneEndpoint"
    parts = split_host_port(config.cluster.control_plane_endpoint)
    if not balancer.is_local or parts is None:
        return
    host, port = parts
    if parse_address(host) is not None:
        problems.fail(
            _CLUSTER,
            path,
            f"{host} is an address, and loadBalancer.mode local needs a name that leads to 127.0.0.1 on every node",
            "write a name such as kb-api.cluster.local:7443, or leave it out",
        )
    bind_port = config.local_api_endpoint.bind_port
    if port == bind_port:
        problems.fail(
            _CLUSTER,
            path,
            f"port {port} is the API server's own, and loadBalancer.mode local listens on the same node",
            f"take another port for the endpoint, such as {host}:7443",
        )
    if balancer.health_port in (port, bind_port):
        problems.fail(
            _KB,
            "loadBalancer.healthPort",
            f"{balancer.health_port} is the port of the API server or its endpoint",
            f"write another one, such as {types.LoadBalancer.health_port}",
        )


def _check_sources(kb: types.KbConfiguration, problems: Problems) -> None:
    mirror, packages = kb.mirror, kb.packages
    if mirror.endpoint and _url_scheme(mirror.endpoint) is None:
        text = f"{shorten(mirror.endpoint)!r} is not a URL"
        problems.fail(_KB, "mirror.endpoint", text, "write http://10.0.0.11:5000")
    if mirror.ca_hash and not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", mirror.ca_hash):
        text = f"{shorten(mirror.ca_hash)!r} is no pin of an authority"
        problems.fail(_KB, "mirror.caHash", text, "write sha256: and 64 hexadecimal digits, as kb init printed it")
    if mirror.ca_hash and not mirror.endpoint.startswith("https://"):
        problems.fail(_KB, "mirror.caHash", "a pin without an https mirror", "give mirror.endpoint as https://...")
    check_choice(problems, _KB, "packages.source", value=packages.source, choices=PACKAGE_SOURCES)
    if packages.source == "bundle" and not kb.bundle:
        problems.fail(_KB, "packages.source", "bundle, and no bundle is named", "give one: --bundle FILE")
    if packages.source == "mirror" and not mirror.endpoint:
        problems.fail(_KB, "packages.source", "mirror, and no mirror is named", "give one: --mirror URL")
    if packages.preset and packages.preset not in presets.list_presets():
        known = ", ".join(presets.list_presets())
        problems.fail(
            _KB, "packages.preset", f"there is no preset {shorten(packages.preset)!r}", f"write one of {known}"
        )
    if kb.verify_key and not kb.bundle:
        problems.fail(_KB, "verifyKey", "a key without a bundle", "give the bundle too: --bundle FILE")
    if kb.air_gapped and packages.source in ("download", "apt", "dnf"):
        problems.fail(_KB, "packages.source", f"{packages.source} beside airGapped", "write bundle, mirror or none")


# ---- join, reset, upgrade


def check_join(join: types.JoinConfiguration, problems: Problems, *, needs_discovery: bool = True) -> None:
    """needs_discovery: False for a node that is a member already, which finds its cluster by its kubelet.conf."""
    check_node(problems, _JOIN, join.node)
    check_timeouts(problems, _JOIN, join.timeouts)
    check_absolute(problems, _JOIN, "caCertPath", join.ca_cert_path)
    if not join.ca_cert_path.endswith(".crt"):
        problems.fail(
            _JOIN, "caCertPath", f"{shorten(join.ca_cert_path)!r} does not end with .crt", "write a .crt path"
        )
    if needs_discovery or join.discovery.bootstrap_token or join.discovery.file:
        _check_discovery(join.discovery, problems)
    if join.control_plane:
        check_certificate_key(problems, _JOIN, "controlPlane.certificateKey", join.control_plane.certificate_key)
        endpoint = join.control_plane.local_api_endpoint
        if endpoint:
            path = "controlPlane.localAPIEndpoint"
            check_port(problems, _JOIN, f"{path}.bindPort", endpoint.bind_port)
            if not is_open_address(endpoint.advertise_address):
                check_advertise_address(problems, _JOIN, f"{path}.advertiseAddress", endpoint.advertise_address)


def _check_discovery(discovery: types.Discovery, problems: Problems) -> None:
    token = discovery.bootstrap_token
    if (token is None) == (not discovery.file):
        word = "neither" if token is None else "both"
        problems.fail(
            _JOIN, "discovery", f"{word} of discovery.bootstrapToken and discovery.file", "give exactly one of the two"
        )
    if token is not None:
        path = "discovery.bootstrapToken"
        check_token(problems, _JOIN, f"{path}.token", token.token)
        parts = split_host_port(token.api_server_endpoint)
        if parts is None or not parts[0] or parts[1] is None:
            problems.fail(
                _JOIN,
                f"{path}.apiServerEndpoint",
                f"{shorten(token.api_server_endpoint)!r} is not host:port",
                "write the control plane's address: 10.0.0.10:6443",
            )
        if not token.ca_cert_hashes and not token.unsafe_skip_ca_verification:
            problems.fail(
                _JOIN,
                f"{path}.caCertHashes",
                "without the CA's hash nothing proves that this is your cluster",
                "take the join command that a control plane prints: kb token create --print-join-command",
            )
    if discovery.file and "://" in discovery.file and not discovery.file.startswith("https://"):
        problems.fail(_JOIN, "discovery.file.kubeConfigPath", "neither a path nor an https URL", "give one of the two")
    if discovery.tls_bootstrap_token:
        check_token(problems, _JOIN, "discovery.tlsBootstrapToken", discovery.tls_bootstrap_token)


def check_reset(reset: types.ResetConfiguration, problems: Problems) -> None:
    check_absolute(problems, _RESET, "certificatesDir", reset.certificates_dir)
    check_socket(problems, _RESET, "criSocket", reset.cri_socket)
    check_ignored(problems, _RESET, "ignorePreflightErrors", reset.ignore_preflight_errors)
    for index, flag in enumerate(reset.unmount_flags):
        check_choice(problems, _RESET, f"unmountFlags[{index}]", value=flag, choices=UNMOUNT_FLAGS)
    check_timeouts(problems, _RESET, reset.timeouts)


def check_upgrade(upgrade: types.UpgradeConfiguration, problems: Problems) -> None:
    for name, section in (("apply", upgrade.apply), ("node", upgrade.node)):
        policy = section.image_pull_policy
        check_choice(problems, _UPGRADE, f"{name}.imagePullPolicy", value=policy, choices=PULL_POLICIES)
        check_ignored(problems, _UPGRADE, f"{name}.ignorePreflightErrors", section.ignore_preflight_errors)
        if section.patches_directory:
            check_absolute(problems, _UPGRADE, f"{name}.patches.directory", section.patches_directory)
    if upgrade.diff.context_lines < 0:
        problems.fail(_UPGRADE, "diff.contextLines", "a negative number of lines", "write 3")
    check_timeouts(problems, _UPGRADE, upgrade.timeouts)
