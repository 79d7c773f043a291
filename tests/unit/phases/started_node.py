"""A control plane that came up, with a scripted API server and runtime."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from kubeup.cluster.api import Api, Identity
from kubeup.config.types import (
    ClusterConfiguration,
    LocalAPIEndpoint,
    Networking,
    NodeConfig,
    NodeRegistration,
    Timeouts,
)
from kubeup.engine.run import Caller, Run
from kubeup.machine.host import CommandResult
from kubeup.machine.http import Tls
from kubeup.paths import Paths
from kubeup.releases import RELEASES
from kubeup.report import Report
from tests.fake_cluster import ClusterHost

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
PODS = "/api/v1/namespaces/kube-system/pods"
INFO = {"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}}
LOG = "E0101 00:00:00.000000       1 proxier.go:1] Failed to execute iptables-restore\n"


class Node(ClusterHost):
    """A node that came up. `answers_dns` False: nothing leads to the DNS' Service."""

    answers_dns = True

    def udp_exchange(self, address: str, port: int, *, payload: bytes, timeout_s: float = 2) -> Optional[bytes]:
        return super().udp_exchange(address, port, payload=payload) if self.answers_dns else None


def make_context(tmp_path: Path, **config: Any) -> Run:
    host = Node(tmp_path)
    for component in COMPONENTS:
        host.write_file(Path(f"/etc/kubernetes/manifests/{component}.yaml"), "kind: Pod\n")
    host.write_file(Path("/var/run/containerd/containerd.sock"), "")
    host.answers["crictl"] = lambda argv: CommandResult(argv, 0, json.dumps(INFO if "info" in argv else {}))
    host.run(["systemctl", "restart", "kubelet"])
    api = Api(host, Identity("https://10.0.0.11:6443", Tls()), retry_s=0)
    made = NodeConfig(
        cluster=ClusterConfiguration("v1.35.0", Networking(pod_subnet="10.244.0.0/16")),
        node=NodeRegistration("cp1"),
        local_api_endpoint=LocalAPIEndpoint("10.0.0.11"),
        timeouts=Timeouts(kubelet_health_check_s=30),
    )
    return Run(
        host=host,
        paths=Paths(),
        config=replace(made, **config),
        release=RELEASES[35],
        report=Report(io.StringIO()),
        caller=Caller.by(api),
    )


def node_of(ctx: Run) -> Node:
    assert isinstance(ctx.host, Node)
    return ctx.host


def run_container(ctx: Run, name: str, *, state: str, exit_code: int = 0) -> None:
    """Let crictl tell of one container, with one line in its log."""
    ctx.host.write_file(Path("/var/log/one.log"), f"2026-01-01T00:00:00Z stderr F {LOG}")
    row = {"id": "abc", "metadata": {"name": name, "attempt": 1}, "state": state, "createdAt": "1"}
    inspect = {"status": {"id": "abc", "exitCode": exit_code, "logPath": "/var/log/one.log"}}

    def answer(argv: tuple[str, ...]) -> CommandResult:
        told: dict[str, Any] = {"info": INFO, "ps": {"containers": [row]}, "inspect": inspect}
        word = next((word for word in argv if word in told), "")
        return CommandResult(argv, 0, json.dumps(told.get(word, {})))

    node_of(ctx).answers["crictl"] = answer
