"""Reading a bundle: an OCI image layout in a tar, with images and one artifact per version whose layers are files.

The tar is uncompressed, the images keep their upstream names, and the layers have title, mode and sha256 as
annotations. Owns the annotation names, and which files of a bundle a node uses. Must not install anything on a node.
bundle_verify.py checks whether a bundle is complete. kubeadm has no equivalent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from kubeup.airgap import oci_layout as layout
from kubeup.airgap.oci_layout import Descriptor, Layout
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host

ARTIFACT_TYPE = "application/vnd.kb.bundle.v1"
FILE_TYPE = "application/octet-stream"
MODE, SHA256, VERSION, SINCE, KUBERNETES = (
    "io.kb.mode",
    "io.kb.sha256",
    "io.kb.version",
    "io.kb.since",
    "io.kb.kubernetes",
)
KB_FILE = "kb.pyz"

Tell = Callable[[str], None]


@frozen
class FileEntry:
    """A file in a bundle."""

    title: str
    mode: int
    digest: str
    size: int
    version: str = ""


def list_artifacts(found: Layout) -> list[Descriptor]:
    """The descriptors of the file artifacts in a layout: one or none."""
    return [entry for entry in found.index.get("manifests") or [] if entry.get("artifactType") == ARTIFACT_TYPE]


def file_layers(host: Host, found: Layout) -> list[Descriptor]:
    """The descriptors of the files in a layout; [] if it has no artifact of kb's."""
    layers: list[Descriptor] = []
    for entry in list_artifacts(found):
        manifest = layout.read_json_blob(host, found, digest=str(entry["digest"])) or {}
        layers += [item for item in manifest.get("layers") or [] if (item.get("annotations") or {}).get(layout.TITLE)]
    return layers


def list_files(host: Host, found: Layout) -> list[FileEntry]:
    """The files in a layout. A title that leads outside the folder it is unpacked into is refused (bundle-unsafe)."""
    entries = []
    for layer in file_layers(host, found):
        told = layer["annotations"]
        title = str(told[layout.TITLE])
        if title.startswith("/") or ".." in title.split("/") or not layout.is_digest(str(layer.get("digest"))):
            raise HostError(
                f"{found.path} names a file {title!r}",
                cause="a title is a relative path without .., and its digest a sha256",
                remedy="do not use this file: kb made no such bundle",
                code="bundle-unsafe",
            )
        mode = parse_mode(told.get(MODE, "0755"))
        entries.append(FileEntry(title, mode, str(layer["digest"]), int(layer["size"]), str(told.get(VERSION, ""))))
    return entries


@frozen
class NodeFiles:
    """The files of a bundle. version: the Kubernetes version they are for (`v1.35.6`; "" if not specified)."""

    version: str
    entries: tuple[FileEntry, ...]


def read_files(host: Host, found: Layout) -> NodeFiles:
    """The files of a layout. Raises HostError like list_files."""
    return NodeFiles(_read_kubernetes_version(host, found), tuple(list_files(host, found)))


def _read_kubernetes_version(host: Host, found: Layout) -> str:
    for entry in list_artifacts(found):
        manifest = layout.read_json_blob(host, found, digest=str(entry["digest"])) or {}
        told = (manifest.get("annotations") or {}).get(KUBERNETES)
        if told:
            return str(told)
    return str((found.index.get("annotations") or {}).get(KUBERNETES) or "")


def files_by_version(bundles: Iterable[NodeFiles]) -> dict[str, dict[str, FileEntry]]:
    """Kubernetes version -> title -> file; a later bundle wins."""
    found: dict[str, dict[str, FileEntry]] = {}
    for item in bundles:
        if item.entries:
            found.setdefault(item.version, {}).update({entry.title: entry for entry in item.entries})
    return found


def choose_files(bundles: Sequence[NodeFiles]) -> dict[str, FileEntry]:
    """The files to use if no version is given: each file from the newest Kubernetes version; kb.pyz from the newest kb,
    which serves all versions. The mirror's answers and the checksums that kb prints both follow this rule."""
    chosen: dict[str, FileEntry] = {}
    by_version = files_by_version(bundles)
    for version in sorted(by_version, key=_order_of):
        chosen.update(by_version[version])
    own = [entry for item in bundles for entry in item.entries if entry.title == KB_FILE]
    if own:
        chosen[KB_FILE] = max(own, key=lambda entry: _order_of(entry.version))
    return chosen


def choose_version(versions: Iterable[str], wanted: str) -> str:
    """The version among these that serves a node of a cluster at `wanted`: that version, else the newest patch release
    of its minor, else the newest older one, because a kubelet may be older than the API server; "" for none."""
    have = sorted(versions, key=_order_of)
    if wanted in have:
        return wanted
    minor = _order_of(wanted)[0][:2]
    fit = [version for version in have if (-1,) < _order_of(version)[0][:2] <= minor]
    return fit[-1] if fit else ""


def _order_of(version: str) -> tuple[tuple[int, ...], bool, str]:
    """Sort key for `v1.35.6`, `v1.36.0-rc.1`, `v1.36.0` by semantic versioning; anything that is not a version sorts
    first."""
    numbers, _, more = version.lstrip("v").partition("-")
    parts = numbers.partition("+")[0].split(".")
    is_version = all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts)
    return tuple(map(int, parts)) if is_version else (-1,), not more, more


def parse_mode(text: str) -> int:
    """A program's mode or that of other files: whatever a bundle says, only root may change what root runs."""
    is_program = re.fullmatch(r"[0-7]{1,6}", text) is None or int(text, 8) & 0o111
    return 0o755 if is_program else 0o644


def walk_blobs(host: Host, found: Layout) -> Iterator[tuple[str, int, str]]:
    """(digest, size, what needs it) of every blob reachable from the index. Of an image index only the children that
    are present: a bundle leaves other architectures out."""
    seen: set[str] = set()
    for entry in found.index.get("manifests") or []:
        annotations = entry.get("annotations") or {}
        owner = str(annotations.get(layout.NAME) or annotations.get(layout.REF_NAME) or "the files")
        for descriptor, document in walk_manifests(host, found, entry=entry, seen=seen):
            yield str(descriptor["digest"]), int(descriptor["size"]), owner
            yield from _leaves(document or {}, owner)


def walk_manifests(
    host: Host, found: Layout, *, entry: Descriptor, seen: set[str]
) -> Iterator[tuple[Descriptor, Optional[dict[str, Any]]]]:
    """The descriptors and documents below an entry of the index, each once, however it is reached: an index can name
    another one twice, and so on. None for a missing document; missing children are left out. seen: digests already
    walked."""
    waiting = [entry]
    while waiting:
        descriptor = waiting.pop()
        digest = str(descriptor["digest"])
        if digest in seen:
            continue
        seen.add(digest)
        document = layout.read_json_blob(host, found, digest=digest)
        yield descriptor, document
        children = {str(child["digest"]): child for child in reversed((document or {}).get("manifests") or [])}
        waiting += [child for name, child in children.items() if name in found.blobs and name not in seen]


def _leaves(document: Mapping[str, Any], owner: str) -> Iterator[tuple[str, int, str]]:
    """The blobs that a manifest names, except manifests."""
    for child in [*([document["config"]] if "config" in document else []), *(document.get("layers") or [])]:
        title = (child.get("annotations") or {}).get(layout.TITLE)
        if not child.get("urls"):
            yield str(child["digest"]), int(child["size"]), f"file {title}" if title else owner
