"""Checks of single values, shared by all kinds of documents: names, ports, addresses, tokens, paths, arguments."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import urllib.parse
from collections.abc import Iterable
from typing import Optional

from kubeup.config import types
from kubeup.config.choose import Network, is_global_unicast, parse_address
from kubeup.config.problems import Problems, shorten, suggest
from kubeup.secret import Secret

INIT, CLUSTER, JOIN, RESET, UPGRADE, KB = (
    "InitConfiguration",
    "ClusterConfiguration",
    "JoinConfiguration",
    "ResetConfiguration",
    "UpgradeConfiguration",
    "KbConfiguration",
)

LABEL = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{LABEL}(?:\.{LABEL})*")
_TOKEN = re.compile(r"[a-z0-9]{6}\.[a-z0-9]{16}")
_CERTIFICATE_KEY = re.compile(r"[0-9a-fA-F]{64}")
REPOSITORY = re.compile(
    r"(?:localhost|\[[0-9a-fA-F:]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?)(?::\d{1,5})?"
    r"(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*"
)
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
QUALIFIED_NAME = re.compile(r"(?:[a-z0-9.-]{1,253}/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


# ---- texts

MAX_NODE_NAME = 63
"""The maximum length of a label value (k8s.io/apimachinery/pkg/util/validation)."""
TEMPLATE = re.compile(r"\{\{|\}\}|\$\{|\$\(|<[a-z_ -]+>|%[A-Z_]+%", re.IGNORECASE)


def shorter_name(name: str) -> str:
    """The first label of a machine's full name; if that is too long, as much of it as fits, with a suffix that keeps it
    unique."""
    first = name.partition(".")[0]
    if len(first) <= MAX_NODE_NAME:
        return first
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{first[: MAX_NODE_NAME - 9].rstrip('-')}-{mark}"


def is_subdomain(text: str) -> bool:
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def is_token(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None


def parse_cidr(text: str) -> Optional[Network]:
    """`10.96.0.0/12`; bits after the prefix are accepted and dropped, as in Go. None for anything else."""
    address, slash, prefix = text.partition("/")
    if not slash or not prefix.isdecimal() or not prefix.isascii() or len(prefix) > 3 or parse_address(address) is None:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


# ---- checks of single values, shared by all kinds


def check_choice(problems: Problems, kind: str, *, path: str, value: str, choices: Iterable[str]) -> None:
    known = [choice for choice in choices if choice]
    if value not in choices:
        close = suggest(value, known)
        remedy = close if close.startswith("did") else f"choose one of {', '.join(known)}"
        problems.fail(kind, path, message=f"{shorten(value)!r} is not allowed", remedy=remedy)


def check_absolute(problems: Problems, kind: str, *, path: str, value: str) -> None:
    if not value.startswith("/") or "\0" in value:
        problems.fail(kind, path, message=f"{shorten(value)!r} is not an absolute path", remedy="start the path with /")


def check_token(problems: Problems, kind: str, *, path: str, token: Secret) -> None:
    if not is_token(token.reveal()):
        problems.fail(
            kind,
            path,
            message="not a bootstrap token (6 and 16 of a-z0-9 with a dot between)",
            remedy="make one: kb token generate",
        )


def check_certificate_key(problems: Problems, kind: str, *, path: str, key: Secret) -> None:
    if key and not _CERTIFICATE_KEY.fullmatch(key.reveal()):
        problems.fail(
            kind,
            path,
            message="not a key of 32 bytes (64 hexadecimal digits)",
            remedy="make one: kb certs certificate-key",
        )


def check_port(problems: Problems, kind: str, *, path: str, port: int) -> None:
    if not 1 <= port <= 65535:
        problems.fail(kind, path, message=f"port {port} does not exist", remedy="give a port from 1 to 65535")


def check_sans(problems: Problems, kind: str, *, path: str, sans: Iterable[str]) -> None:
    for index, san in enumerate(sans):
        name = san[2:] if san.startswith("*.") else san
        if parse_address(san) is None and not is_subdomain(name):
            problems.fail(
                kind,
                f"{path}[{index}]",
                message=f"{shorten(san)!r} is neither an IP address nor a DNS name nor a wildcard such as *.example.com",
                remedy="write it without scheme and port, in lower case",
            )


def check_args(problems: Problems, kind: str, *, path: str, args: Iterable[types.Arg]) -> None:
    for index, arg in enumerate(args):
        if not arg.name:
            problems.fail(
                kind, f"{path}[{index}].name", message="an argument without a name", remedy="give it: name: the-flag"
            )
        elif arg.name.startswith("-") or not arg.name.isprintable() or any(char in arg.name for char in " ="):
            remedy = f"write name: {shorten(arg.name.lstrip('-').partition('=')[0].split(' ')[0] or 'the-flag')}"
            problems.fail(
                kind,
                f"{path}[{index}].name",
                message=f"{shorten(arg.name)!r} is not a flag's name without its dashes",
                remedy=remedy,
            )
        elif "\0" in arg.value or "\n" in arg.value:
            problems.fail(
                kind,
                f"{path}[{index}].value",
                message="a value with a line break or NUL in it",
                remedy="write it in one line",
            )


def check_repository(problems: Problems, kind: str, *, path: str, value: str) -> None:
    if value and (len(value) > 255 or not REPOSITORY.fullmatch(value)):
        bare = re.sub(r"^[a-z]+://", "", value).rstrip("/")
        good = bare != value and len(bare) < 255 and REPOSITORY.fullmatch(bare)
        remedy = f"write {bare}" if good else "write host[:port][/path] without scheme, tag and a / at the end"
        problems.fail(kind, path, message=f"{shorten(value)!r} is not the beginning of an image name", remedy=remedy)


def check_tag(problems: Problems, kind: str, *, path: str, value: str) -> None:
    if value and not TAG.fullmatch(value):
        problems.fail(
            kind, path, message=f"{shorten(value)!r} is not an image tag", remedy="write a tag such as v1.14.2"
        )


def check_socket(problems: Problems, kind: str, *, path: str, value: str) -> None:
    if value and not re.fullmatch(r"unix:///[!-~]*[!-.0-~]", value):
        problems.fail(
            kind, path, message=f"{shorten(value)!r} is not a socket", remedy="write unix:///path/to/the.sock"
        )


def check_advertise_address(problems: Problems, kind: str, *, path: str, value: str) -> None:
    address = parse_address(value)
    if address is None:
        problems.fail(
            kind, path, message=f"{shorten(value)!r} is not an IP address", remedy="write an address of this machine"
        )
    elif not (address.is_loopback or is_global_unicast(address)):
        problems.fail(
            kind,
            path,
            message=f'cannot use "{value}" as the bind address for the API Server: it is no address of one machine',
            remedy="write an address of this machine that the other nodes reach",
        )


def check_timeouts(problems: Problems, kind: str, *, timeouts: types.Timeouts) -> None:
    for name, field in _TIMEOUT_FIELDS.items():
        if getattr(timeouts, field) < 0:
            problems.fail(
                kind, f"timeouts.{name}", message="a negative duration", remedy="write a duration such as 4m0s"
            )
        elif getattr(timeouts, field) == 0:
            problems.warn(
                kind, f"timeouts.{name}", message="0s: kb would not wait at all; remove the line to get the default"
            )


_TIMEOUT_FIELDS = {
    "controlPlaneComponentHealthCheck": "control_plane_component_health_check_s",
    "kubeletHealthCheck": "kubelet_health_check_s",
    "kubernetesAPICall": "kubernetes_api_call_s",
    "etcdAPICall": "etcd_api_call_s",
    "tlsBootstrap": "tls_bootstrap_s",
    "discovery": "discovery_s",
    "upgradeManifests": "upgrade_manifests_s",
}


def check_ignored(problems: Problems, kind: str, *, path: str, names: tuple[str, ...]) -> None:
    if "all" in names and len(set(names)) > 1:
        problems.fail(
            kind,
            path,
            message="'all' is combined with other checks",
            remedy="write all alone, or the checks without it",
        )


def url_scheme(url: str) -> Optional[str]:
    """http or https for a URL with a host; None for anything else."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    is_url = parts.scheme in ("http", "https") and parts.hostname and url.isprintable() and " " not in url
    return parts.scheme if is_url else None
