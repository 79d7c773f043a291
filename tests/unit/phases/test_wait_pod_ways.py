"""kubeup/phases/wait_pod_ways.py: what the node reaches proves nothing of its pods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubeup.engine.run import Results, Run
from kubeup.errors import ClusterError
from kubeup.machine.host import CommandResult
from kubeup.phases import verify_node
from tests.unit.network.test_pod_view import dns_answer
from tests.unit.phases.started_node import make_context, node_of


def let_pods_reach(ctx: Run, *ports: int) -> list[list[Any]]:
    """kb's network is this node's, and pods get answers from these ports; gives what was asked."""
    network = {"cniVersion": "0.4.0", "name": "kb-bridge", "plugins": [{"type": "bridge"}]}
    ctx.host.write_file(Path("/etc/cni/net.d/99-kb-bridge.conflist"), json.dumps(network))
    asked: list[list[Any]] = []

    def nsenter(argv: tuple[str, ...]) -> CommandResult:
        questions = json.loads(argv[-1])
        asked.extend(questions)
        answers = [
            ("open" if kind == "tcp" else dns_answer(text)) if port in ports else ""
            for kind, _, port, text in questions
        ]
        return CommandResult(argv, 0, json.dumps(answers))

    node_of(ctx).answers["nsenter"] = nsenter
    return asked


def test_a_node_whose_pods_reach_nothing_is_not_ready(tmp_path: Path) -> None:
    """The node itself reaches the DNS: a firewall drops what is forwarded alone."""
    ctx = make_context(tmp_path)
    asked = let_pods_reach(ctx)
    started = ctx.host.monotonic()
    with pytest.raises(ClusterError) as caught:
        verify_node.verify_node(ctx)
    assert caught.value.code == "not-healthy"
    assert caught.value.what.startswith(
        "a pod on this node does not reach the cluster's DNS at 10.96.0.10:53 nor the API's Service"
    )
    assert "it reaches nothing that was asked" in caught.value.cause and "iptables -S FORWARD" in caught.value.remedy
    assert ctx.host.monotonic() - started < 90
    assert "(still waiting)" in str(ctx.report.notes)
    assert {(kind, address, port) for kind, address, port, _ in asked} >= {("udp", "10.96.0.10", 53), ("tcp", "10.96.0.1", 443), ("tcp", "10.0.0.11", 6443)}  # fmt: skip
    assert node_of(ctx).commands[-1] != "ip netns add kb-probe"


def test_a_node_whose_pods_reach_dns_and_api_is_verified(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    asked = let_pods_reach(ctx, 53, 443, 6443)
    assert verify_node.verify_node(ctx) == Results(node_ready=True) and asked
    assert "ip netns add kb-probe" in node_of(ctx).commands
