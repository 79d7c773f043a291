"""kubeup/phases/verify_node.py: what it says of a node that is well, and what a second run looks at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kubeup.config.types import (
    KbConfiguration,
)
from kubeup.engine.run import Results
from kubeup.phases import verify_node
from tests.unit.golden import golden_text
from tests.unit.phases.started_node import PODS, make_context, node_of


def test_a_node_whose_dns_answers_is_verified(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    assert verify_node.verify_node(ctx) == Results(node_ready=True)
    assert verify_node.node_is_verified(ctx)


def test_a_serving_certificate_that_waits_for_approval_is_told_at_the_end(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, kubelet={"serverTLSBootstrap": True})
    requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    spec = {"username": "system:node:cp1", "signerName": "kubernetes.io/kubelet-serving"}
    objects = node_of(ctx).cluster.objects
    objects[f"{requests}/csr-1"] = {"metadata": {"name": "csr-1"}, "spec": spec, "status": {}}
    verify_node.verify_node(ctx)
    (told,) = ctx.report.warnings
    assert "its request csr-1 is Pending" in told and "kubectl certificate approve csr-1" in told
    ctx.report.warnings.clear()
    verify_node.verify_node(replace(ctx, config=replace(ctx.config, kubelet={})))
    objects[f"{requests}/csr-1"]["status"] = {"conditions": [{"type": "Approved"}], "certificate": "eA=="}
    verify_node.verify_node(ctx)
    assert ctx.report.warnings == []


def test_a_second_run_looks_at_ready_pods_and_dns(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    pod = node_of(ctx).cluster.objects[f"{PODS}/etcd-cp1"]
    pod["status"]["containerStatuses"][0]["ready"] = False
    assert not verify_node.node_is_verified(ctx)
    pod["status"]["containerStatuses"][0]["ready"] = True
    assert verify_node.node_is_verified(ctx)
    node_of(ctx).answers_dns = False
    assert not verify_node.node_is_verified(ctx)
    assert verify_node.node_is_verified(replace(ctx, config=replace(ctx.config, kb=KbConfiguration(soak_s=0))))


def test_a_second_run_asks_itself_where_the_kubelet_has_not_asked_yet(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    node_of(ctx).cluster.objects[f"{PODS}/etcd-cp1"]["status"]["containerStatuses"][0]["ready"] = False
    ctx.host.write_file(ctx.paths.manifest("etcd"), golden_text(35, "manifests/etcd.yaml"), mode=0o600)
    assert verify_node.node_is_verified(ctx)


def test_a_second_run_does_not_take_pods_that_just_started_for_proven(tmp_path: Path) -> None:
    """The control plane was made anew a moment ago, as after a kubeadm reset: the soak has to be waited for again."""
    ctx = make_context(tmp_path)
    running = node_of(ctx).cluster.objects[f"{PODS}/etcd-cp1"]["status"]["containerStatuses"][0]["state"]["running"]
    running["startedAt"] = f"{ctx.host.now():%Y-%m-%dT%H:%M:%SZ}"
    assert not verify_node.node_is_verified(ctx)
