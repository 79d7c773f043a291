"""Addresses as URLs and command lines write them. Knows no machine."""

from __future__ import annotations


def bracket(address: str) -> str:
    """IPv6 in brackets; IPv4 and names as they are."""
    return f"[{address}]" if ":" in address else address


def join_host_port(host: str, port: object) -> str:
    return f"{bracket(host)}:{port}"
