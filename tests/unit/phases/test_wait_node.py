"""kubeup/phases/wait_node.py: until when a node is waited for, and what is said at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.errors import ClusterError
from kubeup.machine.host import CommandResult
from kubeup.phases import (
    wait_node,
)
from tests.fake_cluster import ClusterHost
from tests.unit.phases.cluster_case import fake, make_context, make_node


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("active", "the kubelet runs but has not registered a node with this name; the cluster's nodes are: other"),
        ("failed", "the kubelet's service is failed, so it registers no node; the cluster's nodes are: other"),
    ],
)
def test_a_node_that_never_registers_is_an_error_with_the_kubelets_state(
    tmp_path: Path, state: str, cause: str
) -> None:
    ctx = make_context(tmp_path)
    ctx.api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}})
    assert isinstance(ctx.host, ClusterHost)
    ctx.host.answers["systemctl is-active kubelet"] = lambda argv: CommandResult(argv, 0, f"{state}\n")
    with pytest.raises(ClusterError) as caught:
        wait_node.wait_for_node(ctx)
    error = caught.value
    assert error.code == "node-not-registered"
    assert error.what == "node cp1 is not registered after 60 s"
    assert error.cause == cause
    assert "journalctl -u kubelet" in error.remedy


def test_a_node_is_waited_for_until_its_kubelet_reported(tmp_path: Path) -> None:
    node = make_node()
    labels = node["metadata"].pop("labels")
    ctx = make_context(tmp_path, node=node)
    host, original = ctx.host, ctx.host.sleep
    started = host.monotonic()

    def sleep(seconds: float) -> None:
        original(seconds)
        if host.monotonic() - started > 3:
            fake(ctx).objects["/api/v1/nodes/cp1"]["metadata"]["labels"] = labels

    host.sleep = sleep  # type: ignore[method-assign]
    assert wait_node.wait_for_node(ctx)["metadata"]["labels"] == labels
    assert host.monotonic() - started == pytest.approx(3.25)
