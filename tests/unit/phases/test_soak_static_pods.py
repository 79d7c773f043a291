"""kubeup/phases/soak_static_pods.py: a probe that fails is told in the kubelet's words."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from kubeup.config.types import (
    APIServer,
    Arg,
    ClusterConfiguration,
)
from kubeup.engine.run import Run
from kubeup.errors import ClusterError
from kubeup.machine.http import HttpResponse
from kubeup.phases import soak_static_pods
from tests.unit.golden import golden_text
from tests.unit.phases.started_node import COMPONENTS, PODS, make_context, node_of


def probe_fails(ctx: Run, component: str, message: str) -> None:
    objects = node_of(ctx).cluster.objects
    objects[f"{PODS}/{component}-cp1"]["status"]["containerStatuses"][0]["ready"] = False
    for number, text in enumerate(("Startup probe failed: refused", message)):
        event = {"involvedObject": {"name": f"{component}-cp1"}, "reason": "Unhealthy", "message": text}
        event["lastTimestamp"] = f"2026-01-01T00:00:0{number}Z"
        objects[f"/api/v1/namespaces/kube-system/events/{component}.{number}"] = {"metadata": {"name": "x"}, **event}


def write_probes(ctx: Run) -> None:
    for component in COMPONENTS:
        path = ctx.paths.manifest(component)
        ctx.host.write_file(path, golden_text(35, f"manifests/{component}.yaml"), mode=0o600)


def not_asked_yet(ctx: Run, component: str) -> None:
    objects = node_of(ctx).cluster.objects
    objects[f"{PODS}/{component}-cp1"]["status"]["containerStatuses"][0]["ready"] = False


def test_a_pod_that_the_kubelet_has_not_asked_yet_is_asked_as_the_kubelet_would(tmp_path: Path) -> None:
    """The kubelet asks at a random moment, up to 20 s after the start, and begins again when it restarts."""
    ctx = make_context(tmp_path)
    write_probes(ctx)
    for component in COMPONENTS:
        not_asked_yet(ctx, component)
    asked, started = [], ctx.host.monotonic()
    get = type(ctx.host).http_get

    def record(host: object, url: str, **more: object) -> HttpResponse:
        asked.append(url)
        return get(host, url, **more)  # type: ignore[arg-type]

    with mock.patch.object(type(ctx.host), "http_get", record):
        soak_static_pods.soak(ctx, "cp1")
    assert ctx.host.monotonic() - started < 20
    probed = [url for url in asked if "/api/v1/" not in url]
    assert sorted(probed) == [
        "http://127.0.0.1:2381/livez",
        "http://127.0.0.1:2381/readyz",
        "https://10.77.0.11:6443/livez",
        "https://10.77.0.11:6443/readyz",
        "https://127.0.0.1:10257/healthz",
        "https://127.0.0.1:10259/livez",
        "https://127.0.0.1:10259/readyz",
    ]


def test_a_pod_that_answers_nobody_is_not_ready(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    write_probes(ctx)
    not_asked_yet(ctx, "kube-scheduler")
    answer = node_of(ctx).cluster.answer

    def refuse(method: str, url: str, *rest: object) -> HttpResponse:
        return HttpResponse(500) if url.endswith(":10259/readyz") else answer(method, url, *rest)  # type: ignore[arg-type]

    with mock.patch.object(node_of(ctx).cluster, "answer", refuse), pytest.raises(ClusterError) as caught:
        soak_static_pods.soak(ctx, "cp1")
    assert "kube-scheduler is running, not ready" in caught.value.cause


def test_where_it_is_unknown_how_the_kubelet_asks_its_answer_is_waited_for(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    not_asked_yet(ctx, "etcd")
    for text in ("kind: Pod\n", "spec: []\n", golden_text(35, "manifests/etcd.yaml").replace("httpGet:", "tcpSocket:")):
        ctx.host.write_file(ctx.paths.manifest("etcd"), text)
        with pytest.raises(ClusterError) as caught:
            soak_static_pods.soak(ctx, "cp1")
        assert "etcd is running, not ready" in caught.value.cause


@pytest.mark.parametrize(("value", "is_final"), [("false", True), ("true", False)])
def test_a_probe_that_fails_is_told_in_the_kubelet_s_words(tmp_path: Path, value: str, is_final: bool) -> None:
    args = APIServer(extra_args=(Arg("anonymous-auth", value),))
    ctx = make_context(tmp_path, cluster=ClusterConfiguration("v1.35.0", api_server=args))
    write_probes(ctx)  # they answer kb: the kubelet's word counts
    probe_fails(ctx, "kube-apiserver", "Startup probe failed: HTTP probe failed with statuscode: 401")
    started = ctx.host.monotonic()
    with pytest.raises(ClusterError) as caught:
        soak_static_pods.soak(ctx, "cp1")
    assert caught.value.what == "kube-apiserver runs but is not Ready"
    assert caught.value.cause.startswith("Startup probe failed: HTTP probe failed with statuscode: 401")
    assert ("--anonymous-auth=false has the API server answer" in caught.value.cause) is is_final
    waited = ctx.host.monotonic() - started
    assert (waited < 20) is is_final, f"it gave up after {waited:.0f} s"
