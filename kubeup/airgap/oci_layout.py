"""An OCI image layout, in a folder or in an uncompressed tar: finding its blobs, and writing such a tar.

Owns the byte format (image-layout.md of the OCI image specification, ustar headers without times or owners) and the
image names in an index. Never holds blobs in memory. Must not know what kb puts into a bundle (bundle.py), nor use the
network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Optional

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.machine.files import CHUNK
from kubeup.machine.host import Host

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
TITLE = "org.opencontainers.image.title"

LAYOUT_FILE = b'{"imageLayoutVersion":"1.0.0"}'
SIGNATURE_FILE = "kb-signature.json"
"""A file next to index.json; readers that do not know it ignore it."""
MAX_DOCUMENT = 4 * 2**20
"""The maximum size of an index or manifest in bytes; the distribution specification lets registries refuse larger
ones."""
_MAX_STRAYS = 1000
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Descriptor = dict[str, Any]
"""mediaType, digest, size; optionally platform, annotations, artifactType."""


@frozen
class Place:
    """The location of bytes: a file and an offset."""

    path: Path
    offset: int
    size: int


@frozen
class Layout:
    """A layout as found. blobs: digest -> place. index: the parsed index.json; index_bytes: its raw bytes."""

    path: Path
    index: Mapping[str, Any]
    index_bytes: bytes
    blobs: Mapping[str, Place]
    signature: bytes = b""
    names: Mapping[str, Descriptor] = field(default_factory=dict)
    """Full image name -> descriptor of the index."""
    strays: tuple[str, ...] = ()
    """Members that belong to no layout: readers ignore them, but unpacking the file extracts them."""


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def as_json(value: object) -> bytes:
    """Serialize a value in only one form, so that equal inputs give equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# ---- reading


def read_kubernetes_version(host: Host, path: Path) -> str:
    """The Kubernetes version that a bundle declares (`v1.35.6`), or "". Raises HostError like open_layout."""
    return str((open_layout(host, path).index.get("annotations") or {}).get("io.kb.kubernetes", ""))


def open_layout(host: Host, path: Path) -> Layout:
    """Open a folder with oci-layout, or a tar of one. Raises HostError: bundle-unreadable, bundle-truncated."""
    if not host.exists(path):
        raise _unreadable(path, "there is no such file")
    files, strays = _list_folder(host, path) if host.is_dir(path) else _list_tar(host, path)
    if "oci-layout" not in files or "index.json" not in files:
        missing = "index.json" if "oci-layout" in files else "oci-layout"
        raise _unreadable(path, f"it is not an OCI image layout: {missing} is not in it")
    index_bytes = _read_document(host, files["index.json"])
    index = parse_manifest(path, index_bytes, name="index.json")
    blobs = {
        f"sha256:{name[len('blobs/sha256/') :]}": place
        for name, place in files.items()
        if re.fullmatch(r"blobs/sha256/[0-9a-f]{64}", name)
    }
    signature = _read_document(host, files[SIGNATURE_FILE]) if SIGNATURE_FILE in files else b""
    return Layout(path, index, index_bytes, blobs, signature, _read_names(index), strays)


def is_layout(host: Host, path: Path) -> bool:
    """Whether `path` is a layout's folder, or a file that may be a tar."""
    return host.exists(path / "oci-layout") if host.is_dir(path) else host.exists(path)


_MEMBER = re.compile(r"oci-layout|index\.json|kb-signature\.json|blobs/sha256/[0-9a-f]{64}")
_FOLDERS = ("", ".", "blobs", "blobs/sha256")


def _list_folder(host: Host, path: Path) -> tuple[dict[str, Place], tuple[str, ...]]:
    """The members that are regular files (following links would serve other files of the machine), and the strays."""
    names = host.list_dir(path) + [f"blobs/{name}" for name in host.list_dir(path / "blobs")]
    names += [f"blobs/sha256/{name}" for name in host.list_dir(path / "blobs/sha256")]
    found, strays = {}, []
    for name in names:
        stat = host.stat(path / name)
        if stat is None or (stat.is_dir and name in _FOLDERS):
            continue
        if stat.is_regular and not stat.is_symlink and _MEMBER.fullmatch(name):
            found[name] = Place(path / name, 0, stat.size)
        else:
            strays.append(name)
    return found, tuple(strays)


def _list_tar(host: Host, path: Path) -> tuple[dict[str, Place], tuple[str, ...]]:
    found: dict[str, Place] = {}
    strays: list[str] = []
    real = host.real_path(path)
    stat = host.stat(real)
    size, end = stat.size if stat else 0, 0

    def take(member: tarfile.TarInfo) -> None:
        name = re.sub(r"^(\./)+", "", member.name)
        if name in found:
            raise _unreadable(path, f"{name} is in it twice: it is ambiguous which one counts")
        if member.isreg() and _MEMBER.fullmatch(name):
            found[name] = Place(real, member.offset_data, member.size)
        elif not (member.isdir() and name.rstrip("/") in _FOLDERS):
            strays.append(member.name[:200])
        if len(strays) > _MAX_STRAYS:
            raise _unreadable(path, f"it has more than {_MAX_STRAYS} members that are not part of a layout")

    with contextlib.closing(host.open_read(real)) as file:
        if file.read(2) == b"\x1f\x8b":
            raise _unreadable(
                path, "it is compressed with gzip: the blobs in it cannot be found by their offset", gunzip=True
            )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                end = _read_members(tar, path, size=size, take=take)
        except tarfile.ReadError as error:
            if found and "unexpected end" in str(error):
                raise _truncated(path, size, member="") from error
            raise _unreadable(path, f"it is no tar ({error})") from error
        except tarfile.TarError as error:
            raise _unreadable(path, f"it is a damaged tar ({error})") from error
        # a tar ends with two empty blocks: without them, something after the last member may be missing
        file.seek(end)
        if file.read(1024) != bytes(1024):
            raise _truncated(path, size, member="")
    return found, tuple(strays)


def _read_members(tar: tarfile.TarFile, path: Path, *, size: int, take: Callable[[tarfile.TarInfo], None]) -> int:
    """Pass each member to `take`; return where the last one ends. Raises HostError (bundle-truncated)."""
    end = 0
    for member in tar:
        if member.offset_data + member.size > size:
            raise _truncated(path, size, member=member.name)
        end = member.offset_data + (member.size + 511) // 512 * 512
        take(member)
        tar.members.clear()  # type: ignore[attr-defined]
    return end


def _unreadable(path: Path, cause: str, *, gunzip: bool = False) -> HostError:
    return HostError(
        f"{path} cannot be read as a bundle",
        cause=cause,
        remedy=f"unpack it first: gunzip {path}"
        if gunzip
        else "give the file that kb bundle create wrote, or an OCI image layout",
        code="bundle-unreadable",
    )


def _truncated(path: Path, size: int, *, member: str) -> HostError:
    where = f" within {member}" if member else ""
    return HostError(
        f"{path} is truncated",
        cause=f"it ends after {size} bytes{where}: copying it did not finish",
        remedy="copy it again, and compare sizes and sha256sum on both sides",
        code="bundle-truncated",
    )


def _read_document(host: Host, place: Place) -> bytes:
    if place.size > MAX_DOCUMENT:
        raise _unreadable(place.path, f"a document in it has {place.size} bytes, more than any manifest")
    return b"".join(read_place(host, place))


def parse_document(path: Path, data: bytes, *, name: str) -> dict[str, Any]:
    """A JSON object from a layout or a registry. Raises HostError (bundle-unreadable)."""
    try:
        return parse_json_object(data, name, max_bytes=MAX_DOCUMENT)
    except ValueError as error:
        raise _unreadable(path, str(error)) from error


def parse_manifest(path: Path, data: bytes, *, name: str) -> dict[str, Any]:
    """An index or a manifest in which every field that kb reads has the type from the image specification. Raises
    HostError (bundle-unreadable), which names the field."""
    found = parse_document(path, data, name=name)

    def fail(field_name: str, wanted: str) -> HostError:
        return _unreadable(path, f"{name}: {field_name} is no {wanted}")

    for key in ("manifests", "layers"):
        entries = found.get(key)
        if entries is None:
            found.pop(key, None)
            continue
        if not isinstance(entries, list):
            raise fail(key, "list")
        for number, entry in enumerate(entries):
            _check_descriptor(entry, f"{key}[{number}]", fail=fail)
    if found.get("config") is not None:
        _check_descriptor(found["config"], "config", fail=fail)
    else:
        found.pop("config", None)
    if not _is_type(found.get("mediaType")):
        raise fail("mediaType", "media type")
    _check_texts(found, "annotations", place="annotations", fail=fail)
    return found


def _check_descriptor(entry: Any, place: str, *, fail: Callable[[str, str], HostError]) -> None:
    if not isinstance(entry, dict):
        raise fail(place, "descriptor")
    if not isinstance(entry.get("digest"), str) or not is_digest(entry["digest"]):
        raise fail(f"{place}.digest", "sha256 digest")
    size = entry.get("size")
    if type(size) is not int or not 0 <= size < 1 << 50:
        raise fail(f"{place}.size", "number of bytes")
    for key in ("mediaType", "artifactType"):
        if not _is_type(entry.get(key)):
            raise fail(f"{place}.{key}", "media type")
    if not isinstance(entry.get("urls") or [], list):
        raise fail(f"{place}.urls", "list")
    for key in ("annotations", "platform"):
        _check_texts(entry, key, place=f"{place}.{key}", fail=fail)


def _is_type(value: Any) -> bool:
    """Whether the value is a valid or absent media type. It is copied into an HTTP header unchanged."""
    return value is None or (isinstance(value, str) and re.fullmatch(r"[ -~]{0,255}", value) is not None)


def _check_texts(entry: dict[str, Any], key: str, *, place: str, fail: Callable[[str, str], HostError]) -> None:
    """Check a mapping with text values, except platform's list os.features."""
    value = entry.get(key)
    if value is None:
        entry.pop(key, None)
        return
    if not isinstance(value, dict) or not all(
        isinstance(item, str) or name == "os.features" for name, item in value.items()
    ):
        raise fail(place, "mapping of texts")


def _read_names(index: Mapping[str, Any]) -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}
    for entry in index.get("manifests") or []:
        annotations = entry.get("annotations") or {}
        name = annotations.get(NAME) or annotations.get(REF_NAME)
        if name:
            found[str(name)] = entry
    return found


def read_place(host: Host, place: Place) -> Iterator[bytes]:
    """Yield the bytes in pieces. Raises HostError (bundle-truncated) if the file has become shorter."""
    with contextlib.closing(host.open_read(place.path)) as file:
        file.seek(place.offset)
        left = place.size
        while left:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise _truncated(place.path, place.offset + place.size - left, member="")
            left -= len(piece)
            yield piece


def read_checked(host: Host, place: Place, *, digest: str) -> Iterator[bytes]:
    """Yield the bytes of a blob; compare the digest at the end. Raises HostError (blob-damaged)."""
    summed = hashlib.sha256()
    for piece in read_place(host, place):
        summed.update(piece)
        yield piece
    if f"sha256:{summed.hexdigest()}" != digest:
        raise HostError(
            f"blob {digest} of {place.path} is damaged",
            cause=f"its content has the digest sha256:{summed.hexdigest()} (at byte {place.offset}, {place.size} bytes)",
            remedy="get the file again from where it was made; which image or file it belongs to: kb bundle show",
            code="blob-damaged",
        )


def read_json_blob(host: Host, layout: Layout, *, digest: str) -> Optional[dict[str, Any]]:
    """A manifest or configuration, verified; None if the layout does not have it."""
    place = layout.blobs.get(digest)
    return parse_manifest(layout.path, read_document(host, place, digest=digest), name=digest) if place else None


def read_document(host: Host, place: Place, *, digest: str) -> bytes:
    """The raw bytes of a manifest or configuration, complete and verified. Raises HostError."""
    if place.size > MAX_DOCUMENT:
        raise _unreadable(place.path, f"document {digest} has {place.size} bytes, more than any manifest")
    return b"".join(read_checked(host, place, digest=digest))


# ---- writing


def render_tar(documents: Mapping[str, bytes], blobs: Iterable[tuple[str, int, Iterable[bytes]]]) -> Iterator[bytes]:
    """The bytes of the tar: oci-layout and the documents (index.json first), then the blobs (digest, size, content) in
    the given order."""
    for name, data in (("oci-layout", LAYOUT_FILE), *documents.items()):
        yield _header(name, len(data)) + data + _padding(len(data))
    for folder in ("blobs/", "blobs/sha256/"):
        yield _header(folder, 0, is_folder=True)
    for digest, size, content in blobs:
        yield _header(f"blobs/sha256/{digest[len('sha256:') :]}", size)
        yield from content
        yield _padding(size)
    yield bytes(1024)


def _header(name: str, size: int, *, is_folder: bool = False) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o755 if is_folder else 0o644
    info.type = tarfile.DIRTYPE if is_folder else tarfile.REGTYPE
    # ustar allows 8 GiB per member; all readers understand GNU's form of larger numbers
    return info.tobuf(tarfile.GNU_FORMAT if size >= 8**11 else tarfile.USTAR_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % 512)
