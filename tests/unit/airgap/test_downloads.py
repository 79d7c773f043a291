"""kubeup/airgap/downloads.py: where releases lie."""

from __future__ import annotations

import pytest

from kubeup.airgap import (
    downloads,
)
from kubeup.config import presets
from kubeup.errors import UsageError

# ---- downloads


def test_official_urls() -> None:
    plan = downloads.plan_download("kubelet", kubernetes_version="v1.35.6", arch="arm64", versions={})
    assert plan.url == "https://dl.k8s.io/release/v1.35.6/bin/linux/arm64/kubelet"
    own = downloads.plan_download(
        "containerd", kubernetes_version="v1.35.6", arch="amd64", versions={"containerd": "2.0.1"}
    )
    assert own.url.endswith("/v2.0.1/containerd-2.0.1-linux-amd64.tar.gz") and own.members["bin/ctr"] == "ctr"
    preset = presets.find_preset("daocloud")
    moved = downloads.plan_download("runc", kubernetes_version="v1.35.6", arch="amd64", versions={}, preset=preset)
    assert moved.url.startswith("https://files.m.daocloud.io/github.com/opencontainers/runc/")
    with pytest.raises(UsageError):
        presets.find_preset("nowhere")


def test_every_minor_has_its_row_of_versions() -> None:
    from kubeup.releases import RELEASES

    for release in RELEASES.values():
        for component in ("crictl", "containerd", "runc", "cni"):
            plan = downloads.plan_download(
                component, kubernetes_version=f"v{release.name}.0", arch="amd64", versions={}
            )
            assert plan.version and "{" not in plan.url


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ("a" * 64, "x", "a" * 64),
        (f"{'a' * 64}  runc.amd64\n{'b' * 64}  runc.arm64\n", "runc.arm64", "b" * 64),
        (f"{'a' * 64} *x\n", "x", "a" * 64),
        (f"{'a' * 64}  other\n", "x", ""),
        ("<html>not found</html>", "x", ""),
    ],
)
def test_checksums(text: str, name: str, wanted: str) -> None:
    assert downloads.parse_sha256(text, name) == wanted
