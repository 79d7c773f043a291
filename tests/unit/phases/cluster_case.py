"""A folder as node and a dict as cluster, whose API server runs."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any, Optional

from kubeup.cluster.api import Api, Identity, Object
from kubeup.config.types import (
    BootstrapToken,
    ClusterConfiguration,
    LocalAPIEndpoint,
    Networking,
    NodeConfig,
    NodeRegistration,
)
from kubeup.engine.run import Caller, Run
from kubeup.machine.host import CommandResult
from kubeup.machine.http import Tls
from kubeup.paths import Paths
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.secret import Secret
from tests.fake_cluster import ClusterHost, FakeCluster

TOKEN = BootstrapToken(Secret("abcdef.0123456789abcdef"))
CA_PEM = "-----BEGIN CERTIFICATE-----\nQ0E=\n-----END CERTIFICATE-----\n"
CA_DATA = base64.b64encode(CA_PEM.encode()).decode()
ADMIN_CONF = f"""
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "https://api.example.com:6443", certificate-authority-data: {CA_DATA}}}}}]
users: [{{name: u, user: {{token: t}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""
LINKS = [{"ifname": "eth0", "mtu": 1500, "addr_info": [{"local": "10.0.0.11", "prefixlen": 24, "scope": "global"}]}]


def make_context(tmp_path: Path, *, minor: int = 35, node: Optional[Object] = None, **config: Any) -> Run:
    host = ClusterHost(tmp_path, FakeCluster())
    api = Api(host, Identity("https://10.0.0.11:6443", Tls()), retry_s=0)
    host.write_file(Path("/etc/kubernetes/admin.conf"), ADMIN_CONF)
    host.answers["ip -json address show"] = lambda argv: CommandResult(argv, 0, json.dumps(LINKS))
    for name in ("bridge", "host-local", "loopback", "portmap"):
        host.write_file(Path("/opt/cni/bin") / name, b"")
    if node is not None:
        api.create(node)
    networking = Networking(pod_subnet="10.244.0.0/16")
    given = {"cluster": ClusterConfiguration(f"v1.{minor}.0", networking), "bootstrap_tokens": (TOKEN,), **config}
    made = NodeConfig(node=NodeRegistration("cp1"), local_api_endpoint=LocalAPIEndpoint("10.0.0.11"), **given)
    stream = io.StringIO()
    return Run(
        host=host, paths=Paths(), config=made, release=RELEASES[minor], report=Report(stream), caller=Caller.by(api)
    )


def make_node(**spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "cp1", "labels": {"kubernetes.io/hostname": "cp1"}},
        "spec": {"podCIDRs": ["10.244.0.0/24"], **spec},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.11"}]},
    }


def fake(ctx: Run) -> FakeCluster:
    assert isinstance(ctx.host, ClusterHost)
    return ctx.host.cluster


def made(ctx: Run, kind: str) -> dict[str, Object]:
    return fake(ctx).by_kind(kind)


def changes(ctx: Run) -> int:
    """A number that grows with every change of an object."""
    return fake(ctx).version
