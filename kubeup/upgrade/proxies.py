"""The HTTP proxies of a node: which ones, and what is reached without them. Pure.

A component behind a proxy has to reach Services, pods and nodes without it, so NO_PROXY is completed with their ranges and addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from kubeup.config.types import ClusterConfiguration
from kubeup.errors import UsageError
from kubeup.paths import Paths

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
DROP_IN = "20-kb-proxy.conf"
_ALWAYS = ("localhost", "127.0.0.1", "::1", ".svc")


def change(present: Mapping[str, str], *, sets: Sequence[tuple[str, str]], unsets: Iterable[str]) -> dict[str, str]:
    """The proxies after a change, by their names in capitals. Raises UsageError (bad-setting)."""
    found = {name.upper(): value for name, value in present.items() if name.upper() in NAMES}
    for name in unsets:
        found.pop(_known(name), None)
    for name, value in sets:
        key = _known(name)
        if key != "NO_PROXY" and not _is_url(value):
            raise UsageError(
                f"--set {name}=...",
                cause="that is not the URL of a proxy",
                remedy=f"write --set {key}=http://proxy.example.com:3128",
                code="bad-setting",
            )
        if any(char in value for char in " \"'\\\n%"):
            raise UsageError(
                f"--set {name}=...",
                cause="a unit's file cannot hold blanks, quotes, backslashes or percent signs in it",
                remedy="write them as the proxy takes them without such characters",
                code="bad-setting",
            )
        found[key] = value
    return found if {"HTTP_PROXY", "HTTPS_PROXY"} & set(found) else {}


def _known(name: str) -> str:
    key = name.upper().replace("-", "_")
    if key not in NAMES:
        raise UsageError(
            f"the proxy setting {name[:40]!r}",
            cause=f"it is one of {', '.join(NAMES)}",
            remedy="kb reconfigure proxy --set HTTPS_PROXY=http://proxy.example.com:3128",
            code="bad-setting",
        )
    return key


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https", "socks5") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def complete(wanted: Mapping[str, str], cluster: ClusterConfiguration, *, addresses: Iterable[str]) -> dict[str, str]:
    """With everything in NO_PROXY that must not go through a proxy. addresses: of the nodes, and of the endpoint."""
    if not wanted:
        return {}
    own = [one.strip() for one in wanted.get("NO_PROXY", "").split(",") if one.strip()]
    needed = (
        *_ALWAYS,
        f".{cluster.networking.dns_domain}",
        *cluster.service_cidrs(),
        *cluster.pod_cidrs(),
        *addresses,
    )
    return {**wanted, "NO_PROXY": ",".join(dict.fromkeys((*own, *filter(None, needed))))}


def runtime_unit(socket: str) -> str:
    return "crio" if "crio" in socket else "containerd"


def render_drop_ins(paths: Paths, wanted: Mapping[str, str], *, socket: str) -> dict[Path, str]:
    """Path -> text of the drop-ins of the kubelet and the runtime."""
    lines = [f'Environment="{name}={wanted[name]}"' for name in sorted(wanted)]
    text = "\n".join(("# Written by kb: the HTTP proxies of this node.", "[Service]", *lines)) + "\n"
    return {paths.systemd / f"{unit}.service.d" / DROP_IN: text for unit in (runtime_unit(socket), "kubelet")}


def parse_drop_in(text: str) -> dict[str, str]:
    """The proxies in a drop-in that kb wrote."""
    found = {}
    for line in text.splitlines():
        if line.startswith('Environment="') and line.endswith('"'):
            name, _, value = line[len('Environment="') : -1].partition("=")
            found[name] = value
    return found
