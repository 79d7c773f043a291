"""kubeup/phases/wait_dns.py: what it waits for, and what it says at the end of its patience."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubeup.cluster import objects as clusterobjects
from kubeup.config.types import (
    Proxy,
)
from kubeup.engine.run import Results
from kubeup.errors import ClusterError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from kubeup.phases import verify_node, wait_dns
from tests.unit.phases.started_node import INFO, PODS, make_context, node_of, run_container


def test_a_running_kube_proxy_without_rules_is_named_with_its_last_error(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    node_of(ctx).answers_dns = False
    run_container(ctx, "kube-proxy", state="CONTAINER_RUNNING")
    with pytest.raises(ClusterError) as caught:
        verify_node.verify_node(ctx)
    assert caught.value.code == "not-healthy"
    assert caught.value.cause == (
        "CoreDNS is Ready, but no answer comes from 10.96.0.10:53; kube-proxy says: Failed to execute iptables-restore"
    )


def test_coredns_that_waits_for_the_rules_does_not_hide_kube_proxy(tmp_path: Path) -> None:
    """Without kube-proxy's rules CoreDNS does not reach the API, so it is not Ready either."""
    ctx = make_context(tmp_path)
    node_of(ctx).cluster.objects[f"{PODS}/coredns-1"]["status"]["conditions"] = []
    run_container(ctx, "kube-proxy", state="CONTAINER_RUNNING")
    with pytest.raises(ClusterError) as caught:
        verify_node.verify_node(ctx)
    assert caught.value.cause == "CoreDNS is not Ready yet; kube-proxy says: Failed to execute iptables-restore"


def test_a_node_that_takes_no_pods_for_want_of_space_is_named(tmp_path: Path) -> None:
    """CoreDNS stays Pending, and no container of the node shows why."""
    ctx = make_context(tmp_path)
    node_of(ctx).cluster.objects[f"{PODS}/coredns-1"]["status"]["conditions"] = []
    (found,) = (one for path, one in node_of(ctx).cluster.objects.items() if path.endswith("/nodes/cp1"))
    pressure = {"type": "DiskPressure", "status": "True", "message": "kubelet has disk pressure"}
    found["status"]["conditions"].append(pressure)
    run_container(ctx, "kube-proxy", state="CONTAINER_RUNNING")
    with pytest.raises(ClusterError) as caught:
        verify_node.verify_node(ctx)
    assert caught.value.what == "node cp1 has DiskPressure and accepts no pods"
    assert caught.value.cause.startswith("kubelet has disk pressure: ") and "df -h" in caught.value.remedy
    pressure["status"] = "False"
    assert wait_dns.find_pressure(ctx) is None


def test_a_kube_proxy_that_ended_is_the_broken_link(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    node_of(ctx).cluster.objects[f"{PODS}/coredns-1"]["status"]["conditions"] = []
    run_container(ctx, "kube-proxy", state="CONTAINER_EXITED", exit_code=1)
    with pytest.raises(ClusterError) as caught:
        verify_node.verify_node(ctx)
    assert caught.value.what.startswith("kube-proxy exited 2 times")
    assert "Failed to execute iptables-restore" in caught.value.cause


def test_without_kube_proxy_its_absence_is_the_cause(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    cluster = replace(ctx.config.cluster, proxy=Proxy(disabled=True))
    ctx = replace(ctx, config=replace(ctx.config, cluster=cluster))
    node_of(ctx).cluster.objects[f"{PODS}/coredns-1"]["status"]["conditions"] = []
    with pytest.raises(ClusterError) as caught:
        verify_node.verify_node(ctx)
    assert caught.value.cause.startswith("CoreDNS is not Ready yet; there is no kube-proxy")


def test_a_pod_does_not_wait_out_the_pause_after_a_pull_that_works_by_now(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    objects, image = node_of(ctx).cluster.objects, "registry.k8s.io/coredns/coredns:v1.13.1"
    waiting = objects[f"{PODS}/coredns-1"]
    ready = json.loads(json.dumps(waiting))
    waiting["status"] |= {
        "conditions": [],
        "containerStatuses": [{"image": image, "state": {"waiting": {"reason": "ImagePullBackOff"}}}],
    }
    waiting["metadata"]["name"] = "coredns-1"
    refused = 3

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        nonlocal refused
        if "pull" not in argv:
            return CommandResult(argv, 0, json.dumps(INFO if "info" in argv else {}))
        refused -= 1
        return CommandResult(argv, 1 if refused else 0, stderr="dial tcp 10.0.0.9:443: connect: connection refused")

    node_of(ctx).answers["crictl"] = crictl
    send = ctx.host.http_send

    def http_send(method: str, url: str, **rest: Any) -> HttpResponse:
        answer = send(method, url, **rest)
        if method == "DELETE" and url.endswith("/coredns-1"):
            objects[f"{PODS}/coredns-2"] = {**ready, "metadata": {**ready["metadata"], "name": "coredns-2"}}
        return answer

    ctx.host.http_send = http_send  # type: ignore[method-assign]
    started = ctx.host.monotonic()
    assert verify_node.verify_node(ctx) == Results(node_ready=True)
    assert f"{PODS}/coredns-1" not in objects and not refused
    assert ctx.host.monotonic() - started < 25
    assert f"{image} can be pulled again: deleted pod coredns-1," in str(ctx.report.notes)


def test_the_end_of_a_kube_proxy_with_the_old_configuration_does_not_count(tmp_path: Path) -> None:
    """Its configuration was mended, and a restart asked for: the pod of before is waited out."""
    ctx = make_context(tmp_path)
    owner = "/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"
    objects = node_of(ctx).cluster.objects
    objects[owner] = {"metadata": {"resourceVersion": "1", "uid": "u"}, "spec": {"template": {"metadata": {}}}}
    pod = objects[f"{PODS}/kube-proxy-1"] = {
        "metadata": {"name": "kube-proxy-1", "labels": {"k8s-app": "kube-proxy"}},
        "spec": {"nodeName": "cp1"},
        "status": {},
    }
    assert verify_node.verify_node(ctx) == Results(node_ready=True)

    clusterobjects.restart_pods(ctx.api, owner, now=ctx.host.now())
    with pytest.raises(ClusterError) as caught:
        verify_node.verify_node(ctx)
    assert caught.value.what.startswith("kube-proxy's restart: not there after 30 s")
    assert caught.value.cause == "pod kube-proxy-1 still has the old configuration"

    pod["metadata"]["annotations"] = objects[owner]["spec"]["template"]["metadata"]["annotations"]
    assert verify_node.verify_node(ctx) == Results(node_ready=True)
