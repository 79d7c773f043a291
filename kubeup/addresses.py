"""Addresses as URLs and command lines write them. Knows no machine."""

from __future__ import annotations

from typing import Optional


def bracket(address: str) -> str:
    """IPv6 in brackets; IPv4 and names as they are."""
    return f"[{address}]" if ":" in address else address


def join_host_port(host: str, port: object) -> str:
    return f"{bracket(host)}:{port}"


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


def host_of(endpoint: str) -> str:
    """The host of an endpoint that was checked before, without brackets; what is no endpoint as it is."""
    parts = split_host_port(endpoint)
    return parts[0] if parts else endpoint


def port_of(endpoint: str, default: int = 0) -> int:
    """The port of an endpoint that was checked before; default where it names none."""
    parts = split_host_port(endpoint)
    return parts[1] or default if parts else default
