"""kubeup/airgap/bundle_sources.py: where things come from, and what is not taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.airgap import (
    bundle_sources,
    bundle_write,
    downloads,
    oci_layout,
)
from kubeup.airgap.bundle_needs import Need
from kubeup.airgap.bundle_sources import FolderSource, Gathering, LayoutSource
from kubeup.config import presets
from kubeup.errors import HostError, KbError
from tests.bundle_case import elf, write_layout
from tests.unit.airgap.bundle_case import HOST, A, make


def test_what_is_nowhere_is_listed_with_what_needs_it(tmp_path: Path) -> None:
    gathering = Gathering(HOST, tmp_path / "parts", ("amd64",))
    gathering.add_image(Need(A, "the sandbox of every pod"), ())
    gathering.add_files(
        [Need("amd64/kubelet", "the node's agent")], (FolderSource(tmp_path),), kubernetes_version="v1.35.6"
    )
    with pytest.raises(HostError) as caught:
        bundle_write.write_bundle(gathering, tmp_path / "a.tar", kubernetes_version="v1.35.6")
    assert caught.value.code == "bundle-incomplete"
    assert [line.partition(" (for ")[0] for line in caught.value.details] == [A, "amd64/kubelet"]
    assert not (tmp_path / "a.tar").exists()


def test_a_program_for_another_machine_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "kubelet").write_bytes(elf("arm64"))
    gathering = Gathering(HOST, tmp_path / "parts", ("amd64",))
    gathering.add_files(
        [Need("amd64/kubelet", "the node's agent")], (FolderSource(tmp_path),), kubernetes_version="v1.35.6"
    )
    assert [why for _, why in gathering.missing] == [f"{tmp_path}/kubelet is for arm64"]


def test_an_image_for_another_machine_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_layout(tmp_path / "source", {A: {"arm64": [b"x"]}})
    gathering = Gathering(HOST, tmp_path / "parts", ("amd64",))
    gathering.add_image(Need(A, "a test"), (LayoutSource(oci_layout.open_layout(HOST, tmp_path / "source")),))
    assert "it is only for arm64, but amd64 is wanted" in gathering.missing[0][1]


def test_elf_machines() -> None:
    assert downloads.elf_architecture(elf("amd64")) == "amd64" and downloads.elf_architecture(elf("arm64")) == "arm64"
    assert downloads.elf_architecture(b"#!/bin/sh\n" + bytes(30)) is None and downloads.elf_architecture(b"") is None
    assert downloads.elf_architecture(b"\x7fELF\x02\x01" + bytes(12) + b"\x77\x77") == ""


def test_sources(tmp_path: Path) -> None:
    (tmp_path / "programs").mkdir()
    make(tmp_path)
    words = ["https://r.example/", str(tmp_path / "a.tar"), str(tmp_path / "programs"), "official"]
    kinds = [
        type(source).__name__
        for source in bundle_sources.parse_sources(HOST, words, preset=presets.Preset(""), versions={})
    ]
    assert kinds == ["RegistrySource", "LayoutSource", "FolderSource", "RegistrySource", "DownloadSource"]
    with pytest.raises(KbError):
        bundle_sources.parse_sources(HOST, ["nowhere"], preset=presets.Preset(""), versions={})
