"""kubeup/phases/soak_static_pods.py: a probe that fails is told in the kubelet's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.config.types import (
    APIServer,
    Arg,
    ClusterConfiguration,
)
from kubeup.engine.run import Run
from kubeup.errors import ClusterError
from kubeup.phases import soak_static_pods
from tests.unit.phases.started_node import PODS, make_context, node_of


def probe_fails(ctx: Run, component: str, message: str) -> None:
    objects = node_of(ctx).cluster.objects
    objects[f"{PODS}/{component}-cp1"]["status"]["containerStatuses"][0]["ready"] = False
    for number, text in enumerate(("Startup probe failed: refused", message)):
        event = {"involvedObject": {"name": f"{component}-cp1"}, "reason": "Unhealthy", "message": text}
        event["lastTimestamp"] = f"2026-01-01T00:00:0{number}Z"
        objects[f"/api/v1/namespaces/kube-system/events/{component}.{number}"] = {"metadata": {"name": "x"}, **event}


@pytest.mark.parametrize(("value", "is_final"), [("false", True), ("true", False)])
def test_a_probe_that_fails_is_told_in_the_kubelet_s_words(tmp_path: Path, value: str, is_final: bool) -> None:
    args = APIServer(extra_args=(Arg("anonymous-auth", value),))
    ctx = make_context(tmp_path, cluster=ClusterConfiguration("v1.35.0", api_server=args))
    probe_fails(ctx, "kube-apiserver", "Startup probe failed: HTTP probe failed with statuscode: 401")
    started = ctx.host.monotonic()
    with pytest.raises(ClusterError) as caught:
        soak_static_pods.soak(ctx, "cp1")
    assert caught.value.what == "kube-apiserver runs but is not Ready"
    assert caught.value.cause.startswith("Startup probe failed: HTTP probe failed with statuscode: 401")
    assert ("--anonymous-auth=false has the API server answer" in caught.value.cause) is is_final
    waited = ctx.host.monotonic() - started
    assert (waited < 20) is is_final, f"it gave up after {waited:.0f} s"
