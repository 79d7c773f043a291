"""What a mirror's folder holds, bundle by bundle, and what can go of it: images, whole bundles, and blobs that nothing names.

A bundle is a tar whose index names images; its index and its signature stay as they were made. So an image is removed by leaving its manifest
out of the tar, which the mirror does not miss, and what is removed has no record that could be lost. A tar that loses something is written
anew beside the old one and renamed over it: whoever reads the old one, as the mirror does, goes on with it, and a kill leaves one or the other.
Bundles share blobs: a delta has only what its base lacks. What another bundle needs of one that goes stays in its tar, under no name.

This module knows no cluster, and nothing of who needs what (mirror_needs.py).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from kubeup.airgap import bundle, mirror_catalog, oci_layout
from kubeup.airgap.oci_layout import Descriptor, Layout
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host

NEW_SUFFIX = ".new"
"""Ends the name of a tar that is being written; it begins with a dot, so that no mirror serves it."""
_BLOCK = 512


@frozen
class Stored:
    """A bundle in the folder. version: of Kubernetes, `v1.35.6`; "" if it says none. size: of its file, in bytes; 0 for a folder, of which nothing
    is removed."""

    found: Layout
    version: str
    size: int

    @property
    def name(self) -> str:
        return self.found.path.name

    @property
    def minor(self) -> str:
        """`v1.35`"""
        return ".".join(self.version.split(".")[:2])


@frozen
class Image:
    """An image that is served. size: of all its blobs, in bytes. bundles: the names of those that name it."""

    name: str
    digest: str
    size: int
    bundles: tuple[str, ...]


class Content:
    """The bundles of a folder, read once."""

    def __init__(self, host: Host, bundles: Collection[Stored]) -> None:
        self._host = host
        self.bundles = tuple(bundles)
        blobs = {digest: place for one in self.bundles for digest, place in one.found.blobs.items()}
        self._whole = Layout(Path(), {}, b"", blobs)
        self._reached: dict[str, frozenset[str]] = {}

    def reach(self, entry: Descriptor) -> frozenset[str]:
        """The digests of all blobs that an entry of an index needs and the folder has. Raises HostError (blob-damaged, bundle-unreadable)."""
        top = str(entry["digest"])
        if top not in self._reached:
            layout = replace(self._whole, index={"manifests": [entry]})
            named = {digest for digest, _, _ in bundle.walk_blobs(self._host, layout)}
            self._reached[top] = frozenset(named & self._whole.blobs.keys())
        return self._reached[top]

    def entries_of(self, one: Stored) -> Iterator[tuple[str, Descriptor]]:
        """(image name, entry) of what a bundle names and the folder has; "" for its files."""
        names = {id(entry): name for name, entry in one.found.names.items()}
        for entry in one.found.index.get("manifests") or []:
            if str(entry["digest"]) in self._whole.blobs:
                yield names.get(id(entry), ""), entry

    def size_of(self, digests: Collection[str]) -> int:
        return sum(self._whole.blobs[digest].size for digest in digests)

    @functools.cached_property
    def images(self) -> tuple[Image, ...]:
        """All that are served, sorted by their names."""
        rows: dict[str, tuple[Descriptor, list[str]]] = {}
        for one in self.bundles:
            for name, entry in self.entries_of(one):
                if name:
                    rows[name] = (entry, [*rows.get(name, (entry, []))[1], one.name])
        found = [
            Image(name, str(entry["digest"]), self.size_of(self.reach(entry)), tuple(where))
            for name, (entry, where) in sorted(rows.items())
        ]
        return tuple(found)

    def versions(self, bundles: Collection[Stored]) -> frozenset[str]:
        """The Kubernetes versions for which these have the programs of a node."""
        return frozenset(
            one.version for one in bundles if one.version and any(not name for name, _ in self.entries_of(one))
        )


def read_content(host: Host, folder: Path) -> Content:
    """Raises HostError: bundle-unreadable, bundle-truncated, of any file there. It may be a bundle that is being copied: what that needs of the
    others is not known yet."""
    found = []
    for layout in mirror_catalog.find_layouts(host, folder):
        version = str((layout.index.get("annotations") or {}).get(bundle.KUBERNETES) or "")
        stat = host.stat(host.real_path(layout.path))
        found.append(Stored(layout, version, stat.size if stat and not host.is_dir(layout.path) else 0))
    return Content(host, found)


# ---- what is to go


@frozen
class Removal:
    """images: the names that are served no more. bundles: the names of those that go. rewritten: path of a tar -> the blobs that stay in it;
    forgotten: those of these whose index goes too. deleted: the tars that go as a whole. freed: bytes."""

    images: tuple[str, ...]
    bundles: tuple[str, ...]
    rewritten: Mapping[Path, frozenset[str]]
    forgotten: frozenset[Path]
    deleted: tuple[Path, ...]
    freed: int

    @property
    def is_empty(self) -> bool:
        return not self.rewritten and not self.deleted


def plan_removal(content: Content, *, bundles: Collection[str] = (), images: Collection[str] = ()) -> Removal:
    """What removing these bundles and images, by their names, comes to; without any, only what nothing names goes. An image that is the same as
    another one, or that another one contains, goes with it. Raises HostError (blob-damaged, bundle-unreadable)."""
    tops = {image.digest for image in content.images if image.name in images}
    kept = [one for one in content.bundles if one.name not in bundles or not one.size]
    needed, stays = set[str](), set[str]()
    for one in kept:
        for name, entry in content.entries_of(one):
            reached = content.reach(entry)
            if not one.size or not tops & reached:
                needed |= reached
                stays.update([name] if name else [])
    rewritten, deleted, freed = dict[Path, frozenset[str]](), list[Path](), 0
    whole = [one for one in kept if any(content.entries_of(one)) or not one.size]
    held = {digest for one in whole for digest in one.found.blobs}
    for one in content.bundles:
        own = frozenset(one.found.blobs)
        left = own & needed if one in whole else (own & needed) - held  # of what others have, no second copy is lent
        held |= left
        if not one.size or (one in kept and left == own):
            continue
        if left:
            rewritten[one.found.path] = left
            freed += sum(_padded(one.found.blobs[digest].size) for digest in own - left)
        else:
            deleted.append(one.found.path)
            freed += one.size
    gone = tuple(image.name for image in content.images if image.name not in stays)
    names = tuple(one.name for one in content.bundles if one not in kept)
    forgotten = frozenset(path for path in rewritten if path.name in names)
    return Removal(gone, names, rewritten, forgotten, tuple(deleted), freed)


def _padded(size: int) -> int:
    return _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK


# ---- changes


def carry_out(host: Host, content: Content, removal: Removal, *, tell: Callable[[str], None]) -> None:  # noqa: PLR0917
    """Raises HostError (disk-full, blob-damaged); what is done until then stays done, and everything else is as it was."""
    for path in removal.deleted:
        host.remove(path)
    by_path = {one.found.path: one.found for one in content.bundles}
    for path, stays in removal.rewritten.items():
        tell(f"writing {path.name} without what goes")
        _rewrite(host, by_path[path], stays=stays, is_forgotten=path in removal.forgotten)


def _rewrite(host: Host, found: Layout, *, stays: frozenset[str], is_forgotten: bool) -> None:
    size = sum(_padded(found.blobs[digest].size) for digest in stays)
    free = host.free_bytes(found.path.parent)
    if free < size:
        raise HostError(
            f"the file system of {found.path.parent} is too full to take something out of {found.path.name}",
            cause=f"the rest of it needs {size >> 20} MiB beside it, and {free >> 20} MiB are free",
            remedy="remove a whole bundle first, which needs no space: kb mirror list",
            code="disk-full",
        )
    documents: dict[str, bytes] = {"index.json": found.index_bytes}
    if found.signature:
        documents[oci_layout.SIGNATURE_FILE] = found.signature
    if is_forgotten:
        told = {name: value for name, value in (found.index.get("annotations") or {}).items() if name == bundle.SINCE}
        documents = {"index.json": oci_layout.as_json(_empty_index(told))}
    blobs = (
        (digest, place.size, oci_layout.read_checked(host, place, digest=digest))
        for digest, place in sorted(found.blobs.items())
        if digest in stays
    )
    own = found.path.with_name(f".{found.path.name}{NEW_SUFFIX}")
    try:
        host.write_stream(own, oci_layout.render_tar(documents, blobs), mode=0o600)
        host.move_file(own, found.path)
    finally:
        host.remove(own)


def _empty_index(annotations: Mapping[str, Any]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": oci_layout.OCI_INDEX, "manifests": [], "annotations": annotations}


def find_leftovers(host: Host, folder: Path) -> dict[Path, int]:
    """What a killed kb has left of tars that it was writing: path -> bytes. To be called while no other kb writes there."""
    names = [name for name in host.list_dir(folder) if name.startswith(".") and NEW_SUFFIX in name]
    stats = {folder / name: host.stat(folder / name) for name in names}
    return {path: stat.size for path, stat in stats.items() if stat is not None and stat.is_regular}


def remove_leftovers(host: Host, folder: Path) -> int:
    """Returns how many bytes that frees."""
    found = find_leftovers(host, folder)
    for path in found:
        with contextlib.suppress(HostError):
            host.remove(path)
    return sum(found.values())


def find_bundles(content: Content, word: str) -> Optional[list[str]]:
    """The names of the bundles that a word stands for: `v1.34` and `1.34` for all of that minor, `v1.34.9`, or a file's name. None if it is none
    of these, and may be an image's name."""
    if word.endswith(".tar"):
        return [one.name for one in content.bundles if one.name == Path(word).name]
    version = word if word.startswith("v") else f"v{word}"
    numbers = version[1:].partition("-")[0].split(".")
    if len(numbers) not in (2, 3) or not all(part.isascii() and part.isdigit() for part in numbers):
        return None
    return [one.name for one in content.bundles if version in (one.minor, one.version)]
