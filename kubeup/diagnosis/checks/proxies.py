"""Checks of proxies: which of the cluster's own traffic they would intercept."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from typing import Optional

from kubeup.addresses import host_of
from kubeup.config.types import NodeConfig
from kubeup.diagnosis.checks.facts import (
    ERROR,
    WARNING,
    Finding,
    Findings,
    Node,
    address_or_none,
    network_or_none,
    parse_pairs,
    read_or_empty,
)


def uses_proxy(env: Mapping[str, str], host: str, *, port: int = 443) -> str:
    """The proxy that Go programs would use to reach https://host, "" for none (net/http.ProxyFromEnvironment)."""
    proxy = env.get("HTTPS_PROXY") or env.get("https_proxy") or ""
    host = host.strip("[]").lower().rstrip(".")
    address = address_or_none(host)
    if not proxy or host == "localhost" or (address is not None and address.is_loopback):
        return ""
    excluded = (env.get("NO_PROXY") or env.get("no_proxy") or "").split(",")
    return "" if any(_is_excluded(entry.strip().lower(), host, port=port) for entry in excluded) else proxy


def _is_excluded(entry: str, host: str, *, port: int) -> bool:
    if entry in ("", "*"):
        return entry == "*"
    address = address_or_none(host)
    if "/" in entry:
        network = network_or_none(entry)
        return address is not None and network is not None and address in network
    match = re.fullmatch(r"(\[[^]]+\](?=:\d)|[^:]+|[0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:.]*)(?::(\d+))?", entry)
    name, wanted_port = (match.group(1), match.group(2)) if match else (entry, None)
    name = name.strip("[]") if wanted_port else name
    if wanted_port and int(wanted_port) != port:
        return False
    if address_or_none(name) is not None:
        return address == address_or_none(name)
    name = name[1:] if name.startswith("*.") else name
    if name.startswith("."):
        return host.endswith(name)
    return host == name or host.endswith(f".{name}")


def complete_no_proxy(env: Mapping[str, str], config: NodeConfig) -> str:
    """NO_PROXY extended by everything that must not go through a proxy: the current value, and this cluster's
    addresses."""
    told = (entry.strip() for entry in (env.get("NO_PROXY") or env.get("no_proxy") or "").split(","))
    have = [entry for entry in told if re.fullmatch(r"[A-Za-z0-9_.:/*\[\]-]+", entry)]
    cluster = config.cluster
    # without brackets: Go's httpproxy accepts them only before a port
    endpoint = host_of(cluster.control_plane_endpoint)
    wanted = [
        "localhost",
        "127.0.0.1",
        config.local_api_endpoint.advertise_address,
        *([endpoint] if endpoint else []),
        *cluster.service_cidrs(),
        *cluster.pod_cidrs(),
        ".svc",
        f".{cluster.networking.dns_domain}",
    ]
    return ",".join(dict.fromkeys([*have, *wanted]))


def check_proxy(node: Node) -> Findings:
    advertised = node.config.local_api_endpoint.advertise_address
    env = node.host.environ()
    proxy = uses_proxy(env, advertised)
    if proxy:
        yield Finding(
            "HTTPProxy",
            ERROR,
            f"the proxy {_without_password(proxy)} would be used for this node's own API server {advertised}: the control "
            "plane, which gets these variables, would not find it",
            f"export NO_PROXY={complete_no_proxy(env, node.config)}",
        )


def check_kubelet_proxy(node: Node) -> Findings:
    """A proxy in the service manager's environment also applies to the kubelet."""
    shown = node.host.query(["systemctl", "show-environment"], timeout_s=15).stdout
    own = node.host.query(["systemctl", "show", "kubelet", "--property", "Environment", "--value"], timeout_s=15).stdout
    env = {**parse_pairs(shown), **parse_pairs("\n".join(own.replace('"', "").split()))}
    told = _find_server(node)
    advertised = node.config.local_api_endpoint.advertise_address
    server, port = told or (advertised, 443)
    proxy = uses_proxy(env, server, port=port)
    if proxy:
        place = f"systemd gives the kubelet the proxy {_without_password(proxy)}, which"
        what = f"it asks for the API server {server}" if told else f"would be used for the API server {server}"
        kept = complete_no_proxy(env, node.config)
        entries = kept if server in kept.split(",") else f"{kept},{server}"
        yield Finding(
            "KubeletProxy",
            ERROR,
            f"{place} {what}: {'its node does not stay Ready' if told else 'the node would never register'}",
            f"systemctl edit kubelet, and write: [Service] Environment=NO_PROXY={entries}; then: systemctl restart kubelet",
        )


def _find_server(node: Node) -> Optional[tuple[str, int]]:
    """Where the kubelet of a node that exists calls the API; None before that, or if it cannot be read, which another check tells."""
    path = node.paths.kubernetes / "kubelet.conf"
    found = re.search(r"(?m)^\s+server:\s*[\"']?(https://[^\s\"']+)", read_or_empty(node.host, path))
    try:
        parts = urllib.parse.urlsplit(found.group(1)) if found else None
        return (parts.hostname, parts.port or 443) if parts and parts.hostname else None
    except ValueError:  # no number, or no address
        return None


def check_join_proxy(node: Node) -> Findings:
    """The kubelet reaches the API server by Go's proxy rules."""
    server = node.config.join.server if node.config.join else ""
    parts = urllib.parse.urlsplit(server)
    env = node.host.environ()
    proxy = uses_proxy(env, parts.hostname or "", port=parts.port or 443) if server else ""
    if proxy:
        yield Finding(
            "HTTPProxy",
            WARNING,
            f"the proxy {_without_password(proxy)} would be used for the cluster's API server {server}",
            f"export NO_PROXY={','.join(filter(None, (env.get('NO_PROXY') or env.get('no_proxy'), parts.hostname)))}",
        )


def check_proxy_cidrs(node: Node) -> Findings:
    env = node.host.environ()
    for kind, cidrs in (("Service", node.config.cluster.service_cidrs()), ("Pod", node.config.cluster.pod_cidrs())):
        for cidr in filter(None, cidrs):
            network = network_or_none(cidr)
            if network is None:
                yield Finding("HTTPProxyCIDR", ERROR, f"{cidr} is no CIDR", "correct it: 10.96.0.0/12, fd00:10::/112")
                continue
            proxy = uses_proxy(env, str(network[1] if network.num_addresses > 1 else network[0]))
            if proxy:
                yield Finding(
                    "HTTPProxyCIDR",
                    WARNING,
                    f"the proxy {_without_password(proxy)} would be used for addresses of {kind}s ({cidr})",
                    f"export NO_PROXY={complete_no_proxy(env, node.config)}",
                )


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)
