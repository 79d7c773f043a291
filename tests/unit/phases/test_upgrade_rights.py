"""kubeup/phases/upgrade_rights.py: the rights that the certificates of the new version need are there before them."""

from __future__ import annotations

from pathlib import Path

from kubeup.engine.plan import Plan
from kubeup.phases import upgrade_rights
from tests.plans import do, is_done
from tests.unit.phases.cluster_case import fake, made, make_context


def names(plan: Plan) -> set[str]:
    return {item.name.rpartition(" ")[2] for item in plan.items()}


def test_the_bindings_come_first(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, minor=36)
    do(upgrade_rights.plan_bindings, ctx)
    assert set(made(ctx, "ClusterRoleBinding")) == {"kubeadm:cluster-admins", "kubeadm:apiserver-kubelet-client"}
    (subject,) = made(ctx, "ClusterRoleBinding")["kubeadm:apiserver-kubelet-client"]["subjects"]
    assert (subject["kind"], subject["name"]) == ("User", "kube-apiserver-kubelet-client")


def test_the_rights_of_joining_nodes_are_kubeadm_s(tmp_path: Path) -> None:
    """The five sets, and that of cluster-info; no token, and no cluster-info."""
    ctx = make_context(tmp_path, minor=36)
    assert not is_done(upgrade_rights.plan_bootstrap_rights, ctx)
    do(upgrade_rights.plan_bootstrap_rights, ctx)
    assert set(made(ctx, "ClusterRoleBinding")) == {
        "kubeadm:get-nodes",
        "kubeadm:kubelet-bootstrap",
        "kubeadm:node-autoapprove-bootstrap",
        "kubeadm:node-autoapprove-certificate-rotation",
        "kubeadm:apiserver-kubelet-client",
    }
    assert set(made(ctx, "RoleBinding")) == {"kubeadm:bootstrap-signer-clusterinfo"}
    assert not made(ctx, "Secret") and not made(ctx, "ConfigMap")
    version = fake(ctx).version
    do(upgrade_rights.plan_bootstrap_rights, ctx)
    assert is_done(upgrade_rights.plan_bootstrap_rights, ctx) and fake(ctx).version == version
