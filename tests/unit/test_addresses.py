"""kubeup/addresses.py: hosts and ports, as URLs and command lines write them."""

from __future__ import annotations

from typing import Optional

import pytest

from kubeup.addresses import host_of, join_host_port, port_of, split_host_port


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ("a", None)),
        ("a:1", ("a", 1)),
        ("::1", ("::1", None)),
        ("[::1]", ("::1", None)),
        ("[::1]:5", ("::1", 5)),
        ("[::1]5", None),
        ("[a]:5", None),
        ("[::1", None),
        ("a:", ("a", None)),
        ("a:b", None),
        ("a:²", None),
    ],
)
def test_hosts_and_ports(text: str, parts: Optional[tuple[str, Optional[int]]]) -> None:
    assert split_host_port(text) == parts


def test_joined_hosts_split_again() -> None:
    for host in ("a.org", "10.0.0.1", "fd00::1"):
        assert split_host_port(join_host_port(host, 6443)) == (host, 6443)


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [
        ("h:1", "h", 1),
        ("h", "h", 0),
        ("[fd00::1]:6443", "fd00::1", 6443),
        ("[fd00::1]", "fd00::1", 0),
        ("fd00::1", "fd00::1", 0),
        ("h:x", "h:x", 0),
    ],
)
def test_the_parts_of_an_endpoint(endpoint: str, host: str, port: int) -> None:
    assert (host_of(endpoint), port_of(endpoint)) == (host, port)
    assert port_of(endpoint, 6443) == (port or 6443)
