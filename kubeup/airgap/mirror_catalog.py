"""The content of a mirror: the manifests, blobs and files of the bundles and layouts in its folder.

Only reads; a layout that cannot be read is skipped and reported.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from kubeup.airgap import bundle, oci_layout, registry_client
from kubeup.airgap.oci_layout import Layout, Place
from kubeup.errors import HostError, KbError, shown
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.machine.local_host import LocalHost

FILES_REPOSITORY = "kb/files"
RETRY_S = 30.0
"""How soon something unreadable is tried again even though nothing has changed."""
_LOOKS = 3
_MAX_OPEN = 64
"""The maximum number of files kept open."""

Log = Callable[[str], None]
LeaveOut = Callable[[str, str], None]
"""Receives what is left out, and why."""


@frozen
class Manifest:
    digest: str
    media_type: str
    size: int


@dataclass
class Catalog:
    """Everything that is served, from all layouts. repositories: full name -> tag -> manifest."""

    repositories: dict[str, dict[str, Manifest]] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    blobs: dict[str, Place] = field(default_factory=dict)
    files: dict[str, bundle.FileEntry] = field(default_factory=dict)
    """Each file from the newest Kubernetes version that has it; kb.pyz is the newest kb's."""
    files_of: dict[str, dict[str, bundle.FileEntry]] = field(default_factory=dict)
    """The files by the Kubernetes version that a bundle is for (`v1.35.6`)."""
    bundles: dict[str, Place] = field(default_factory=dict)
    """The tars, by their names."""
    short_names: dict[str, list[str]] = field(default_factory=dict)
    """Repository name without registry -> the full names."""

    def find_repository(self, name: str, namespace: str) -> Optional[str]:
        """The full name of a repository: given with `ns`, with the registry in the name, or without it if that is
        unambiguous."""
        if namespace and f"{namespace}/{name}" in self.repositories:
            return f"{namespace}/{name}"
        if name in self.repositories and not (namespace and name == FILES_REPOSITORY):
            return name
        full = self.short_names.get(name) or []
        return full[0] if len(full) == 1 and not namespace else None


def build_catalog(host: Host, layouts: Sequence[Layout], *, leave_out: Optional[LeaveOut] = None) -> Catalog:
    """Index the layouts; later ones override earlier ones. Unusable content is passed to `leave_out` and skipped;
    without `leave_out` it raises HostError."""
    found = Catalog()
    for item in layouts:
        found.blobs.update(item.blobs)
        stat = None if host.is_dir(item.path) else host.stat(host.real_path(item.path))
        if stat is not None:
            found.bundles[item.path.name] = Place(host.real_path(item.path), 0, stat.size)
    whole = [replace(item, blobs=found.blobs) for item in layouts]
    for item in whole:
        for name, entry in item.names.items():
            with _leaving_out(leave_out, f"image {shown(name)} of {item.path}"):
                _add_image(host, item, found=found, name=name, entry=entry)
    for full in found.repositories:
        found.short_names.setdefault(full.partition("/")[2], []).append(full)
    usable = []
    for item in whole:
        with _leaving_out(leave_out, f"the files of {item.path}"):
            files = bundle.read_files(host, item)
            _add_artifacts(host, item, found=found)
            usable.append(files)
    found.files_of = bundle.files_by_version(usable)
    found.files = bundle.choose_files(usable)
    return found


def _add_image(host: Host, item: Layout, *, found: Catalog, name: str, entry: Mapping[str, Any]) -> None:
    ref = registry_client.parse_ref(name)
    top = _add_manifests(host, item, entry=entry, found=found)
    if top is not None:
        tags = found.repositories.setdefault(f"{ref.registry}/{ref.repository}", {})
        if ref.tag:
            tags[ref.tag] = top


@contextlib.contextmanager
def _leaving_out(leave_out: Optional[LeaveOut], what: str) -> Iterator[None]:
    try:
        yield
    except KbError as error:
        if leave_out is None:
            raise
        leave_out(shown(what), f"{error}")


def _add_artifacts(host: Host, item: Layout, *, found: Catalog) -> None:
    """Add the files as an artifact that an OCI client can name; its tag is the Kubernetes version they are for."""
    for entry in bundle.list_artifacts(item):
        made = _add_manifests(host, item, entry=entry, found=found)
        told = (oci_layout.read_json_blob(host, item, digest=str(entry["digest"])) or {}).get("annotations") or {}
        if made is not None and told.get(bundle.KUBERNETES):
            # a tag cannot contain +, and kubeadm also replaces it with _
            tag = str(told[bundle.KUBERNETES]).replace("+", "_")
            found.repositories.setdefault(FILES_REPOSITORY, {})[tag] = made


def _add_manifests(host: Host, item: Layout, *, entry: Mapping[str, Any], found: Catalog) -> Optional[Manifest]:
    for descriptor, document in bundle.walk_manifests(host, item, entry=dict(entry), seen=set()):
        digest = str(descriptor["digest"])
        if document is not None:
            kind = str(descriptor.get("mediaType") or document.get("mediaType") or oci_layout.OCI_MANIFEST)
            found.manifests[digest] = Manifest(digest, kind, found.blobs[digest].size)
    return found.manifests.get(str(entry["digest"]))


def find_layouts(host: Host, path: Path, *, leave_out: Optional[LeaveOut] = None) -> list[Layout]:
    """The layout at `path`, or all tars and layouts in the folder `path`, sorted by name. Raises HostError
    (bundle-unreadable) if there is none. leave_out: receives the unreadable ones, which otherwise raise."""
    if oci_layout.is_layout(host, path):
        return [oci_layout.open_layout(host, path)]
    names = [name for name in host.list_dir(path) if not name.startswith(".")]
    chosen = [path / name for name in names if name.endswith(".tar") or host.exists(path / name / "oci-layout")]
    found = []
    for place in chosen:
        with _leaving_out(leave_out, str(place)):
            found.append(oci_layout.open_layout(host, place))
    if not chosen:
        raise HostError(
            f"{path} holds no bundle",
            cause="there is no .tar and no OCI image layout in it" if host.is_dir(path) else "there is no such file",
            remedy="give the file that kb bundle create wrote, or a folder with such files",
            code="bundle-unreadable",
        )
    return found


class Store:
    """The catalog of a path, rebuilt when the files there change. An unreadable file is reported and skipped, so one
    bad file does not take the others down. It is tried again later, because its disk may have failed only briefly."""

    def __init__(self, host: LocalHost, path: Path, *, log: Log) -> None:
        self.host, self._path, self._log = host, path, log
        self._built = time.monotonic()
        self._left_out: dict[str, str] = {}
        self._stamp = self._read_stamp()
        self.serving = Serving(host, self._build())

    @property
    def catalog(self) -> Catalog:
        return self.serving.catalog

    def look_again(self) -> None:
        """Apply changes. Never raises: the previous content is still served."""
        try:
            self._look_again()
        except Exception as error:
            self._log(f"{self._path} cannot be examined ({shown(str(error))}): serving the previous content")

    def _read_stamp(self) -> tuple[object, ...]:
        host, path = self.host, self._path
        names = [path, *((path / name) for name in (host.list_dir(path) if host.is_dir(path) else ()))]
        stats = [(str(name), host.stat(host.real_path(name))) for name in names if not name.name.startswith(".")]
        return tuple((name, stat.mtime, stat.size) for name, stat in stats if stat is not None)

    def _build(self) -> Catalog:
        """Raises KbError if there is nothing at all."""
        left_out: dict[str, str] = {}
        found = find_layouts(self.host, self._path, leave_out=left_out.__setitem__)
        catalog = build_catalog(self.host, found, leave_out=left_out.__setitem__)
        for what, why in left_out.items():
            if what not in self._left_out:  # report a file that is still being copied only once
                self._log(f"{what} is left out: {why}")
        self._left_out, self._built = left_out, time.monotonic()
        return catalog

    def _look_again(self) -> None:
        stamp = self._read_stamp()
        is_due = bool(self._left_out) and time.monotonic() - self._built > RETRY_S
        if stamp == self._stamp and not is_due:
            return
        before = (self.catalog, set(self._left_out))
        for _ in range(_LOOKS):
            self._stamp, serving = stamp, Serving(self.host, self._build())
            stamp = self._read_stamp()
            if stamp == self._stamp:  # else a file may have been exchanged between the look at it and its opening
                break
        self.serving = serving
        if (self.catalog, set(self._left_out)) != before:
            self._log(f"{self._path} has changed: {describe(self.catalog)}")


class Serving:
    """A catalog, and the open files to which its places belong: a file that takes the name of one later has other bytes at these offsets."""

    def __init__(self, host: LocalHost, catalog: Catalog) -> None:
        self.catalog, self._host = catalog, host
        self._files: dict[Path, OpenFile] = {}
        counted = collections.Counter(place.path for place in catalog.blobs.values())
        for path, count in counted.most_common(_MAX_OPEN):
            if count > 1:
                with contextlib.suppress(KbError):
                    self._files[path] = OpenFile(host, path)

    def open_file(self, path: Path) -> OpenFile:
        """The file, opened once for all threads: every read passes its own offset."""
        found = self._files.get(path)
        if found is None:
            found = OpenFile(self._host, path)
            if len(self._files) < _MAX_OPEN:
                self._files[path] = found
        return found


class OpenFile:
    """A descriptor that stays open while something is sent from it."""

    def __init__(self, host: LocalHost, path: Path) -> None:
        self._file = host.open_read(path, follows=False)
        self.descriptor = self._file.fileno()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._file.close()


def describe(catalog: Catalog) -> str:
    images = sum(len(tags) for name, tags in catalog.repositories.items() if name != FILES_REPOSITORY)
    return f"{images} images, {len(catalog.files)} files, {len(catalog.blobs)} blobs"
