"""kubeup/phases/upload_config.py: what is stored is what kubeadm stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kubeup.cluster import objects
from kubeup.phases import (
    upload_config,
)
from kubeup.yaml_files import load_yaml
from tests.plans import do, is_done
from tests.unit.phases.cluster_case import made, make_context, make_node


def test_the_stored_configuration_is_kubeadms(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    do(upload_config.plan_kubeadm_config, ctx)
    stored = load_yaml(made(ctx, "ConfigMap")["kubeadm-config"]["data"]["ClusterConfiguration"])
    assert stored["kind"] == "ClusterConfiguration"
    assert stored["kubernetesVersion"] == "v1.35.0"
    assert list(made(ctx, "RoleBinding")) == ["kubeadm:nodes-kubeadm-config"]


def test_other_keys_of_kubeadm_config_survive(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    ctx.api.create(objects.render_config_map("kubeadm-config", {"other": "kept"}))
    do(upload_config.plan_kubeadm_config, ctx)
    assert made(ctx, "ConfigMap")["kubeadm-config"]["data"]["other"] == "kept"


def test_older_minors_note_the_cri_socket_on_the_node(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, minor=33, node=make_node())
    do(upload_config.plan_kubelet_config, ctx)
    assert made(ctx, "Node")["cp1"]["metadata"]["annotations"] == {
        "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///var/run/containerd/containerd.sock"
    }
    newer = make_context(tmp_path / "2", minor=34, node=make_node())
    do(upload_config.plan_kubelet_config, newer)
    assert "annotations" not in made(newer, "Node")["cp1"]["metadata"]


def test_a_users_kubelet_configuration_is_not_signed(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    do(upload_config.plan_kubelet_config, ctx)
    assert objects.HASH_ANNOTATION in made(ctx, "ConfigMap")["kubelet-config"]["metadata"]["annotations"]
    own = replace(ctx, config=replace(ctx.config, kubelet={"maxPods": 42}))
    assert is_done(upload_config.plan_kubelet_config, own) is False
    do(upload_config.plan_kubelet_config, own)
    found = made(ctx, "ConfigMap")["kubelet-config"]
    assert "annotations" not in found["metadata"]
    assert load_yaml(found["data"]["kubelet"])["maxPods"] == 42
