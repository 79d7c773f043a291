"""A mirror's catalog, of a layout on a real disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.airgap import (
    bundle_write,
    mirror_catalog,
    oci_layout,
)
from kubeup.airgap.bundle_needs import Need
from kubeup.airgap.bundle_sources import Gathering, LayoutSource
from kubeup.airgap.mirror_catalog import Catalog
from tests.bundle_case import write_layout
from tests.unit.airgap.mirror_case import HOST, OTHER, PAUSE, WEB


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    source = tmp_path / "source"
    source.mkdir()
    write_layout(source, {PAUSE: {"amd64": [b"p"]}, OTHER: {"amd64": [b"q"]}, WEB: {"amd64": [b"w"], "arm64": [b"x"]}})
    gathering = Gathering(HOST, tmp_path / "parts", ("amd64",))
    sources = (LayoutSource(oci_layout.open_layout(HOST, source)),)
    for name in (PAUSE, OTHER, WEB):
        gathering.add_image(Need(name, "a test"), sources)
    (tmp_path / "kb.pyz").write_bytes(b"0123456789")
    gathering.add_file("kb.pyz", tmp_path / "kb.pyz")
    bundle_write.write_bundle(gathering, tmp_path / "a.tar", kubernetes_version="v1.35.6")
    return mirror_catalog.build_catalog(HOST, mirror_catalog.find_layouts(HOST, tmp_path / "a.tar"))
