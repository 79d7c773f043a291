"""A bundle of two images and some files, on a real disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kubeup.airgap import (
    bundle_needs,
    bundle_verify,
    bundle_write,
    oci_layout,
)
from kubeup.airgap.bundle_needs import Need
from kubeup.airgap.bundle_sources import FolderSource, Gathering, LayoutSource
from kubeup.machine.local_host import LocalHost
from tests.bundle_case import write_layout, write_programs

HOST = LocalHost()
A, B = "registry.k8s.io/pause:3.10.1", "docker.io/library/web:1"
BOTH = {A: {"amd64": [b"pause"], "arm64": [b"pause for arm"]}, B: {"amd64": [b"web", b"shared"], "arm64": [b"w"]}}


def make(tmp_path: Path, out: str = "a.tar", *, archs: tuple[str, ...] = ("amd64",), **words: Any) -> oci_layout.Layout:
    source = tmp_path / "source"
    if not source.exists():
        source.mkdir()
        write_layout(source, BOTH)
        write_programs(tmp_path / "programs")
    gathering = Gathering(HOST, tmp_path / f".{out}.parts", archs)
    sources = (LayoutSource(oci_layout.open_layout(HOST, source)), FolderSource(tmp_path / "programs"))
    for name in (A, B):
        gathering.add_image(Need(name, "a test"), sources)
    if archs == ("amd64",):
        gathering.add_files(bundle_needs.plan_files(archs), sources, kubernetes_version="v1.35.6")
    bundle_write.write_bundle(gathering, tmp_path / out, kubernetes_version="v1.35.6", **words)
    return oci_layout.open_layout(HOST, tmp_path / out)


def verify(found: oci_layout.Layout, **words: Any) -> bundle_verify.Verdict:
    return bundle_verify.verify_bundle(HOST, found, **words)
