"""Small images and layouts for the tests of bundles: real bytes, no programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kubeup.airgap import oci_layout
from kubeup.airgap.oci_layout import as_json, digest_of
from kubeup.config.types import ClusterConfiguration, LocalAPIEndpoint, NodeConfig, NodeRegistration

ELF = {"amd64": 62, "arm64": 183}


def elf(arch: str, size: int = 4096, mark: str = "") -> bytes:
    """The head of an ELF program for that machine, and `size` bytes."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + ELF[arch].to_bytes(2, "little")
    return (head + mark.encode()).ljust(size, b"\0")


def write_blob(folder: Path, data: bytes) -> dict[str, Any]:
    path = folder / "blobs/sha256" / digest_of(data).partition(":")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"digest": digest_of(data), "size": len(data)}


def write_manifest(folder: Path, arch: str, layers: Sequence[bytes]) -> dict[str, Any]:
    config = write_blob(folder, as_json({"architecture": arch, "os": "linux"}))
    manifest = {
        "schemaVersion": 2,
        "mediaType": oci_layout.OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", **write_blob(folder, data)} for data in layers
        ],
    }
    return {"mediaType": oci_layout.OCI_MANIFEST, **write_blob(folder, as_json(manifest))}


def write_layout(folder: Path, images: Mapping[str, Mapping[str, Sequence[bytes]]]) -> Path:
    """name -> architecture -> layers. Several architectures make an index."""
    entries = []
    for name, archs in images.items():
        made = {arch: write_manifest(folder, arch, layers) for arch, layers in archs.items()}
        entry = next(iter(made.values()))
        if len(made) > 1:
            children = [{**one, "platform": {"os": "linux", "architecture": arch}} for arch, one in made.items()]
            index = {"schemaVersion": 2, "mediaType": oci_layout.OCI_INDEX, "manifests": children}
            entry = {"mediaType": oci_layout.OCI_INDEX, **write_blob(folder, as_json(index))}
        entries.append({**entry, "annotations": {oci_layout.NAME: name, oci_layout.REF_NAME: name}})
    (folder / "oci-layout").write_bytes(oci_layout.LAYOUT_FILE)
    index = {"schemaVersion": 2, "mediaType": oci_layout.OCI_INDEX, "manifests": entries}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def write_programs(folder: Path, arch: str = "amd64") -> Path:
    """A folder with a file for every program of a node."""
    from kubeup.airgap.downloads import NODE_FILES

    for item in NODE_FILES:
        path = folder / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(elf(arch, mark=item.name))
    return folder


def config(version: str = "v1.35.6", **fields: Any) -> NodeConfig:
    return NodeConfig(ClusterConfiguration(version), NodeRegistration("cp1"), LocalAPIEndpoint("10.0.0.1"), **fields)
