"""Addresses in the form used by URLs and command lines. Does not access the machine."""

from __future__ import annotations

import re
from typing import Optional


def bracket(address: str) -> str:
    """Put IPv6 addresses in brackets; return IPv4 addresses and names unchanged."""
    return f"[{address}]" if ":" in address else address


def join_host_port(host: str, port: object) -> str:
    return f"{bracket(host)}:{port}"


def split_host_port(text: str) -> Optional[tuple[str, Optional[int]]]:
    """`host`, `host:port`, `[::1]:port`, `::1` -> (host, port or None); None for anything else. `host:` has no port, as
    in Go's net.SplitHostPort."""
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
    """The host of a valid endpoint, without brackets; anything else is returned unchanged."""
    parts = split_host_port(endpoint)
    return parts[0] if parts else endpoint


def port_of(endpoint: str, default: int = 0) -> int:
    """The port of a valid endpoint, or the default if it has none."""
    parts = split_host_port(endpoint)
    return parts[1] or default if parts else default


def replace_address(text: str, old: str, *, new: str) -> str:
    """The text with an IP address in place of another one, wherever that stands alone: not in a longer address, nor in a name."""
    if not old or old == new:
        return text
    tail = r"(?![\w:])" if ":" in old else r"(?!\.?\w)"
    return re.sub(rf"(?<![\w.:]){re.escape(old)}{tail}", new, text)
