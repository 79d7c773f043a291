"""kubeup/phases/upload_certs.py: under which key, and owned by what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kubeup.cluster import shared_certs, tokens
from kubeup.engine.run import Results, Run
from kubeup.phases import (
    upload_certs,
)
from kubeup.secret import Secret
from tests.unit.phases.cluster_case import fake, made, make_context

KEY = Secret("0123456789abcdef" * 4)


SHARED = (
    "ca.crt",
    "ca.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "sa.pub",
    "sa.key",
    "etcd/ca.crt",
    "etcd/ca.key",
)


def with_pki(ctx: Run) -> Run:
    for name in SHARED:
        kind = "CERTIFICATE" if name.endswith(".crt") else "PUBLIC KEY" if name.endswith(".pub") else "PRIVATE KEY"
        ctx.host.write_file(ctx.paths.pki / name, f"-----BEGIN {kind}-----\nQ0E=\n-----END {kind}-----\n")
    return ctx


def test_without_the_flag_no_certificate_is_uploaded(tmp_path: Path) -> None:
    ctx = with_pki(make_context(tmp_path))
    assert upload_certs.certs_are_uploaded(ctx) is True
    assert upload_certs.upload_certs(ctx) is None
    assert fake(ctx).objects == {}
    assert ctx.report.notes == []


def test_certificates_are_uploaded_under_the_key_and_owned_by_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_certs, "check_shareable", lambda host, paths: None)
    ctx = with_pki(make_context(tmp_path, upload_certs=True, certificate_key=KEY))
    assert upload_certs.certs_are_uploaded(ctx) is False
    assert upload_certs.upload_certs(ctx) == Results(certificate_key=KEY)
    secrets = made(ctx, "Secret")
    owner = secrets["kubeadm-certs"]["metadata"]["ownerReferences"]
    token = next(secret for name, secret in secrets.items() if name.startswith("bootstrap-token-"))
    assert [(entry["name"], entry["uid"]) for entry in owner] == [(token["metadata"]["name"], token["metadata"]["uid"])]
    parsed = tokens.parse_token_secret(token)
    assert parsed is not None
    assert parsed.usages == ()
    files = shared_certs.plan_downloads(secrets["kubeadm-certs"], KEY, paths=ctx.paths, cluster=ctx.config.cluster)
    assert len(files) == 8
    assert list(made(ctx, "RoleBinding")) == ["kubeadm:kubeadm-certs"]
    assert upload_certs.certs_are_uploaded(ctx) is True
    other = replace(ctx, config=replace(ctx.config, certificate_key=Secret("f" * 64)))
    assert upload_certs.certs_are_uploaded(other) is False


def test_a_second_upload_has_one_owner_and_a_new_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_certs, "check_shareable", lambda host, paths: None)
    ctx = with_pki(make_context(tmp_path, upload_certs=True))
    first, second = upload_certs.upload_certs(ctx), upload_certs.upload_certs(ctx)
    assert first is not None
    assert second is not None
    assert first.certificate_key != second.certificate_key
    assert len(made(ctx, "Secret")["kubeadm-certs"]["metadata"]["ownerReferences"]) == 1
