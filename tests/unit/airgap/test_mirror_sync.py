"""kubeup/airgap/mirror_sync.py: what is pushed, once each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from kubeup.airgap import (
    mirror_sync,
    oci_layout,
    registry_client,
)
from kubeup.machine.local_host import LocalHost
from tests.bundle_case import write_blob, write_layout, write_manifest
from tests.unit.airgap.mirror_case import HOST


class Pushed(registry_client.Registry):
    """A registry that refuses what names something that it does not have."""

    def __init__(self) -> None:
        super().__init__(HOST, "https://registry.example")
        self.manifests: list[str] = []
        self.blobs: list[str] = []

    def has_blob(self, repository: str, digest: str) -> bool:
        return digest in self.blobs

    def push_blob(self, local: LocalHost, repository: str, *, digest: str, size: int, content: Iterable[bytes]) -> None:
        assert digest not in self.blobs and oci_layout.digest_of(b"".join(content)) == digest
        self.blobs.append(digest)

    def push_manifest(self, repository: str, reference: str, *, media_type: str, data: bytes) -> None:
        document = json.loads(data)
        assert {child["digest"] for child in document.get("manifests", [])} <= set(self.manifests)
        assert {part["digest"] for part in document.get("layers", [])} <= set(self.blobs)
        assert media_type == document["mediaType"]
        self.manifests.append(reference)


def test_an_index_that_names_the_next_twice_is_pushed_once(tmp_path: Path) -> None:
    """40 levels of it are 2 to the power of 40 ways; the registry gets each document once, children first."""
    made = [write_manifest(tmp_path, "amd64", [bytes([number])]) for number in range(2)]
    for level in range(40):
        texts = [
            {"mediaType": oci_layout.OCI_INDEX, "manifests": made, "annotations": {"a": f"{level}-{n}"}} for n in (0, 1)
        ]
        made = [{"mediaType": oci_layout.OCI_INDEX, **write_blob(tmp_path, oci_layout.as_json(text))} for text in texts]
    write_layout(tmp_path, {})
    server, found = Pushed(), oci_layout.open_layout(HOST, tmp_path)
    mirror_sync._push_image(HOST, found, server=server, repository="x", reference="1", entry=made[0])
    assert len(server.manifests) == len(set(server.manifests)) == 2 + 2 * 39 + 1 and server.manifests[-1] == "1"


def test_an_index_of_one_child_is_pushed_as_that_child_however_deep(tmp_path: Path) -> None:
    leaf = made = write_manifest(tmp_path, "amd64", [b"x"])
    for _ in range(2000):
        text = {"mediaType": oci_layout.OCI_INDEX, "manifests": [made]}
        made = {"mediaType": oci_layout.OCI_INDEX, **write_blob(tmp_path, oci_layout.as_json(text))}
    write_layout(tmp_path, {})
    server, found = Pushed(), oci_layout.open_layout(HOST, tmp_path)
    mirror_sync._push_image(HOST, found, server=server, repository="x", reference="1", entry=made)
    assert server.manifests == ["1"] and len(server.blobs) == 2 and leaf["digest"] not in server.blobs
