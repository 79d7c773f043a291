"""Writes a bundle: the index, the artifact with the files, and the tar. Equal inputs give equal bytes.

Blobs are copied from their source to the file in pieces. Downloads are kept in a folder next to the file, so that an
interrupted run can be continued.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from kubeup.airgap import oci_layout as layout
from kubeup.airgap.bundle import ARTIFACT_TYPE, KUBERNETES, SINCE
from kubeup.airgap.bundle_signature import sign_index
from kubeup.airgap.bundle_sources import Gathering
from kubeup.airgap.oci_layout import Descriptor, Layout, as_json, digest_of
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.machine.process import is_stream
from kubeup.secret import Secret

EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"


@frozen
class Written:
    """The result of writing a bundle."""

    path: Path
    digest: str
    """The digest of index.json, which names everything else by digest."""
    images: int
    files: int
    blobs: int
    bytes: int
    left_out: int
    """The number of blobs left out because a delta's base has them."""


def write_bundle(
    gathering: Gathering,
    out: Path,
    *,
    kubernetes_version: str,
    since: Optional[Layout] = None,
    key: Optional[Secret] = None,
) -> Written:
    """Write the tar. Raises HostError (bundle-incomplete) if something was not found, (source-changed), (disk-full)."""
    if gathering.missing:
        raise HostError(
            f"not found for the bundle: {len(gathering.missing)} of what it needs",
            cause=f"{gathering.missing[0][0].name}: {gathering.missing[0][1]}",
            remedy="name a source that has them: --from URL|DIR|FILE; or leave them out with a fitting --config",
            code="bundle-incomplete",
            details=[f"{need.name} (for {need.by}): {why}" for need, why in gathering.missing],
        )
    index = _render_index(gathering, kubernetes_version, since=since)
    index_bytes = as_json(index)
    documents = {"index.json": index_bytes}
    if key is not None:
        documents[layout.SIGNATURE_FILE] = sign_index(index_bytes, key)
    base = since.blobs if since else {}
    chosen = [(digest, place) for digest, place in sorted(gathering.blobs.items()) if digest not in base]
    total = sum(place.size for _, place in chosen)

    def contents() -> Iterator[tuple[str, int, Iterator[bytes]]]:
        for digest, place in chosen:
            gathering.tell(f"writing {digest[7:19]} ({place.size >> 20} MiB)")
            yield digest, place.size, layout.read_checked(gathering.local, place, digest=digest)

    if not is_stream(str(out)):
        _require_space(gathering.local, out, needed=total)
    gathering.local.write_output(str(out), layout.render_tar(documents, contents()))
    count = len(gathering.blobs) - len(chosen)
    return Written(out, digest_of(index_bytes), len(gathering.entries), len(gathering.files), len(chosen), total, count)


def _require_space(host: Host, path: Path, *, needed: int) -> None:
    free = host.free_bytes(path.parent)
    if free < needed:
        raise HostError(
            f"cannot write {path}",
            cause=f"it needs {needed >> 20} MiB, and the file system of {path.parent} has {free >> 20} MiB free",
            remedy=f"make space there (df -h {path.parent}), or choose another place",
            code="disk-full",
        )


def _render_index(gathering: Gathering, kubernetes_version: str, *, since: Optional[Layout]) -> dict[str, Any]:
    entries = [gathering.entries[name] for name in sorted(gathering.entries)]
    annotations = {KUBERNETES: kubernetes_version}
    if gathering.files:
        entries.append(_add_artifact(gathering, kubernetes_version))
    if since is not None:
        annotations[SINCE] = digest_of(since.index_bytes)
    return {"schemaVersion": 2, "mediaType": layout.OCI_INDEX, "manifests": entries, "annotations": annotations}


def _add_artifact(gathering: Gathering, kubernetes_version: str) -> Descriptor:
    """Add the manifest of the files. It has no name in the index: containerd would take a named entry for an image."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": layout.OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": digest_of(EMPTY), "size": len(EMPTY)},
        "layers": [gathering.files[title] for title in sorted(gathering.files)],
        "annotations": {KUBERNETES: kubernetes_version},
    }
    data = as_json(manifest)
    for document in (data, EMPTY):
        gathering.blobs[digest_of(document)] = gathering._keep(document)
    return {
        "mediaType": layout.OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "digest": digest_of(data),
        "size": len(data),
    }
