"""kubeup/phases/bootstrap_tokens.py: tokens, cluster-info, and which token does for which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kubeup.config.types import (
    BootstrapToken,
)
from kubeup.engine.run import Results
from kubeup.phases import (
    bootstrap_tokens,
)
from kubeup.secret import Secret
from kubeup.yaml_files import load_yaml
from tests.plans import do, is_done
from tests.unit.phases.cluster_case import CA_DATA, TOKEN, fake, made, make_context


def test_tokens_and_cluster_info(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    handed = do(bootstrap_tokens.plan_bootstrap_tokens, ctx)
    assert handed == Results(tokens=[TOKEN.token], token_ids=["abcdef"])
    assert list(made(ctx, "Secret")) == ["bootstrap-token-abcdef"]
    info = load_yaml(made(ctx, "ConfigMap")["cluster-info"]["data"]["kubeconfig"])
    assert info["clusters"] == [
        {"name": "", "cluster": {"server": "https://api.example.com:6443", "certificate-authority-data": CA_DATA}}
    ]


def test_objects_come_in_kubeadms_order(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    do(bootstrap_tokens.plan_bootstrap_tokens, ctx)
    sent = [request.rpartition("/")[2] for request in fake(ctx).requests if not request.startswith("GET")]
    assert sent == [
        "bootstrap-token-abcdef",
        "kubeadm:get-nodes",
        "kubeadm:get-nodes",
        "kubeadm:kubelet-bootstrap",
        "kubeadm:node-autoapprove-bootstrap",
        "kubeadm:node-autoapprove-certificate-rotation",
        "kubeadm:apiserver-kubelet-client",
        "cluster-info",
        "kubeadm:bootstrap-signer-clusterinfo",
        "kubeadm:bootstrap-signer-clusterinfo",
    ]


def test_an_expired_token_is_made_again(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    do(bootstrap_tokens.plan_bootstrap_tokens, ctx)
    assert is_done(bootstrap_tokens.plan_bootstrap_tokens, ctx) is True
    ctx.host.sleep(86400 + 1)
    assert is_done(bootstrap_tokens.plan_bootstrap_tokens, ctx) is False


def test_another_token_is_not_taken_for_the_configured_one(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    do(bootstrap_tokens.plan_bootstrap_tokens, ctx)
    other = BootstrapToken(Secret("zzzzzz.0123456789abcdef"))
    assert (
        is_done(
            bootstrap_tokens.plan_bootstrap_tokens, replace(ctx, config=replace(ctx.config, bootstrap_tokens=(other,)))
        )
        is False
    )
    same_id = BootstrapToken(Secret("abcdef.ffffffffffffffff"))
    assert (
        is_done(
            bootstrap_tokens.plan_bootstrap_tokens,
            replace(ctx, config=replace(ctx.config, bootstrap_tokens=(same_id,))),
        )
        is False
    )
