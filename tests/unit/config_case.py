"""What the tests of the configuration share: machines, documents, and the details of a refused one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.config.load_init import load_init_config
from kubeup.config.types import NodeConfig
from kubeup.errors import UsageError
from tests.fake_host import FakeHost

ROUTE = (
    b"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    b"eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
    b"eth0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
)

INIT = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n"
CLUSTER = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n"
KB = "apiVersion: kb/v1alpha1\nkind: KbConfiguration\n"

FLAGS: Mapping[str, Any] = {"apiserver-advertise-address": "10.0.0.11", "kubernetes-version": "v1.35.6"}
"""Enough to ask no machine for anything but a pod network."""


def addresses(**interfaces: list[str]) -> str:
    """What `ip -json addr` says."""
    rows = [
        {"ifname": name, "flags": ["UP"], "addr_info": [{"local": text} for text in texts]}
        for name, texts in interfaces.items()
    ]
    return json.dumps(rows)


def machine(**interfaces: list[str]) -> FakeHost:
    """A node with a default route over eth0 (10.0.0.11) and the kubelet of 1.35.6."""
    return FakeHost(
        files={"/proc/net/route": ROUTE},
        programs={"kubelet"},
        answers={
            "ip -json addr": addresses(**(interfaces or {"lo": ["127.0.0.1"], "eth0": ["10.0.0.11", "fe80::1"]})),
            "ip -4 -json route": '[{"dst":"default"},{"dst":"10.0.0.0/24"}]',
            "ip -6 -json route": "[]",
            "/usr/bin/kubelet --version": "Kubernetes v1.35.6\n",
        },
    )


def load(text: str = "", *, host: Optional[FakeHost] = None, flags: Optional[Mapping[str, Any]] = None) -> NodeConfig:
    """Load a file's text (or flags alone) on a machine."""
    host = host or machine()
    if not text:
        return load_init_config(host, config_file=None, flags=flags or {})
    host.files["init.yaml"] = text.encode()
    return load_init_config(host, config_file=Path("init.yaml"), flags=flags or {})


def refuse(text: str = "", *, host: Optional[FakeHost] = None, flags: Optional[Mapping[str, Any]] = None) -> list[str]:
    """The details of the refusal."""
    with pytest.raises(UsageError) as caught:
        load(text, host=host, flags=flags)
    assert caught.value.code == "invalid-config"
    return list(caught.value.details)
