"""The archive of a backup: a plain tar whose first member, manifest.json, lists every other one with its size and SHA-256.

    manifest.json        the version of this format, the facts of the cluster (About), and a row for each member
    etcd/snapshot.db     etcd's data as `etcdctl snapshot save` writes it, its hash at the end; absent if the facts say so
    objects/NAME.yaml    objects of the cluster, to read; they are in the snapshot as well
    files/etc/...        files and links of the node, by their path
    manifest.sha256      the hash of manifest.json, as sha256sum prints it

How to read one: `with open_archive(host, path) as backup:`, then `backup.about`, `backup.entries`, `backup.read(name)` and
`backup.chunks(name)`. An archive is checked as a whole when it is opened, to the last byte: whoever holds a Backup need not ask
whether it is damaged. How to write one: `render_archive(about, contents)` gives its bytes.

The bytes follow from the manifest and the contents alone, so that every byte can be checked: headers and padding are compared with
what they have to be. Programs that read tar files read it; one that was packed again by such a program is not accepted.
This module knows no host's paths, no etcd and no encryption. kubeadm has no equivalent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn

from kubeup import moments
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.machine.host import Host
from kubeup.shapes import fit

FORMAT = 1
"""The version of this format. An archive with a higher one is refused, since kb cannot know what it would miss."""
MANIFEST = "manifest.json"
SNAPSHOT = "etcd/snapshot.db"
OBJECTS = "objects/"
FILES = "files/"
_END = "manifest.sha256"
_KIND = "kb-backup"
_CHUNK = 1 << 20
_MAX_MANIFEST = 64 << 20
_MAX_MEMBER = 64 << 20
"""The limit, in bytes, of a member that is read into memory. Only the snapshot is larger."""


@frozen
class Member:
    """A member of etcd when the backup was made. id: in hex, as etcdctl shows it."""

    id: str
    name: str
    peer_urls: tuple[str, ...] = ()
    client_urls: tuple[str, ...] = ()
    is_learner: bool = False


@frozen
class About:
    """What the backup is of. What could not be found out is "" or 0."""

    made: str
    """When it was made: 2026-11-29T23:14:07Z"""
    kb: str
    """The version of kb that made it."""
    node: str
    machine_id: str = ""
    kubernetes: str = ""
    """The version of this node's API server: v1.35.6"""
    etcd: str = ""
    """The version of the etcd member that gave the snapshot: 3.6.6"""
    etcd_kind: str = "local"
    """local | external"""
    etcd_prefix: str = "/registry"
    """Below which the API server keeps its objects (--etcd-prefix)."""
    revision: int = 0
    """etcd's revision right before the snapshot, which holds at least that one."""
    objects: int = 0
    """The number of keys below etcd_prefix at that time."""
    members: tuple[Member, ...] = ()
    address: str = ""
    """--advertise-address of this node's API server"""
    endpoint: str = ""
    """controlPlaneEndpoint, or "" if the cluster has none."""
    pki: str = "/etc/kubernetes/pki"
    etcd_data: str = "/var/lib/etcd"
    images: tuple[str, ...] = ()
    """The images of this node's static pods."""
    missing: tuple[str, ...] = ()
    """What a restore could need and is not in the backup, and why, in words: a KMS plugin's key, the key of an external CA."""


@frozen
class Entry:
    """A member of the archive. link: the target of a symbolic link; "" for a file. size, sha256: of the content, none for a link."""

    name: str
    size: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    link: str = ""

    @property
    def path(self) -> Path:
        """The path on the node of a member below files/. Raises ValueError for others."""
        return Path("/") / PurePosixPath(self.name).relative_to(FILES)


@frozen
class Content:
    """What goes into an archive: a member, and its content in pieces. The pieces have the size and the hash that the entry says."""

    entry: Entry
    chunks: Iterable[bytes] = ()


def content_of(name: str, data: bytes, *, mode: int = 0o600, owner: tuple[int, int] = (0, 0)) -> Content:
    """A member whose content is in memory."""
    return Content(Entry(name, len(data), hashlib.sha256(data).hexdigest(), mode, *owner), (data,))


def file_name(path: Path) -> str:
    """The member's name of a node's file: files/etc/kubernetes/admin.conf"""
    return FILES + str(path).lstrip("/")


# ---- writing


def render_archive(about: About, contents: Iterable[Content]) -> Iterator[bytes]:
    """The bytes of the archive, in pieces. Raises ValueError if a content is not what its entry says, or a name is there twice or is
    not UTF-8."""
    listed = tuple(contents)
    manifest = _render_manifest(about, tuple(content.entry for content in listed))
    _check_entries([content.entry for content in listed])
    made = _seconds(about.made)
    yield from _render_member(content_of(MANIFEST, manifest), made=made)
    for content in listed:
        yield from _render_member(content, made=made)
    yield from _render_member(content_of(_END, _render_end(manifest)), made=made)
    yield bytes(1024)


def size_of(about: About, entries: Iterable[Entry]) -> int:
    """How many bytes the archive will have."""
    listed = tuple(entries)
    manifest = _render_manifest(about, listed)
    made = _seconds(about.made)
    ends = (content_of(MANIFEST, manifest).entry, content_of(_END, _render_end(manifest)).entry)
    return 1024 + sum(len(_header(entry, made=made)) + entry.size + -entry.size % 512 for entry in (*ends, *listed))


def _render_manifest(about: About, entries: Iterable[Entry]) -> bytes:
    value = {"kind": _KIND, "format": FORMAT, "about": asdict(about), "entries": [asdict(entry) for entry in entries]}
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def _render_end(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def _render_member(content: Content, *, made: int) -> Iterator[bytes]:
    entry, digest, size = content.entry, hashlib.sha256(), 0
    yield _header(entry, made=made)
    for piece in content.chunks:
        digest.update(piece)
        size += len(piece)
        yield piece
    if (size, digest.hexdigest()) != (entry.size, entry.sha256):
        raise ValueError(f"{entry.name} changed while it was written")
    yield bytes(-size % 512)


def _header(entry: Entry, *, made: int) -> bytes:
    info = tarfile.TarInfo(entry.name)
    info.size, info.mode, info.uid, info.gid, info.mtime = entry.size, entry.mode, entry.uid, entry.gid, made
    if entry.link:
        info.type, info.linkname = tarfile.SYMTYPE, entry.link
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError:  # a long name, or more than 8 GiB
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _seconds(made: str) -> int:
    """Raises ValueError."""
    return int(moments.parse(made).timestamp())


def _check_entries(entries: Iterable[Entry]) -> None:
    """Raise ValueError for a name that is there twice, or that would lead out of the folder it is unpacked in."""
    seen = {MANIFEST, _END}
    for entry in entries:
        parts = entry.name.split("/")
        if not set(parts).isdisjoint(("", ".", "..")) or "\0" in entry.name + entry.link:
            raise ValueError(f"{entry.name!r} is no name for a member")
        if entry.name in seen:
            raise ValueError(f"{entry.name!r} is there twice")
        if entry.size < 0 or (entry.link and entry.size):
            raise ValueError(f"{entry.name!r} has a size of {entry.size}")
        seen.add(entry.name)


# ---- reading


class Backup:
    """An open archive that is whole. `read` and `chunks` raise HostError (backup-damaged) if it was changed since."""

    def __init__(self, file: BinaryIO, *, what: str) -> None:
        """Check the archive. what: names it in errors. Raises HostError: not-a-backup, backup-encrypted, backup-too-new,
        backup-truncated, backup-damaged."""
        self._file, self._what = file, what
        self.about, self.entries, start = self._read_manifest()
        self._places: dict[str, tuple[int, Entry]] = {}
        self._check(start)

    def has(self, name: str) -> bool:
        return name in self._places

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a member, in pieces. Raises KeyError."""
        start, entry = self._places[name]
        digest, left = hashlib.sha256(), entry.size
        self._file.seek(start)
        while left:
            piece = self._file.read(min(left, _CHUNK))
            if not piece:
                self._refuse_truncated(entry.name)
            digest.update(piece)
            left -= len(piece)
            yield piece
        if digest.hexdigest() != entry.sha256:
            self._refuse_damaged(f"the content of {entry.name} does not have the hash that {MANIFEST} says")

    def read(self, name: str) -> bytes:
        """The content of a member. Raises KeyError, ValueError if it is too large for memory."""
        if self._places[name][1].size > _MAX_MEMBER:
            raise ValueError(f"{name} has {self._places[name][1].size} bytes")
        return b"".join(self.chunks(name))

    def _read_manifest(self) -> tuple[About, tuple[Entry, ...], int]:
        """The manifest, and where the next member begins."""
        header = self._file.read(512)
        self._refuse_foreign(header)
        size = int(header[124:135], 8)
        data = self._file.read(size)
        if len(data) < size:
            self._refuse_truncated(MANIFEST)
        try:
            value = parse_json_object(data, MANIFEST, max_bytes=_MAX_MANIFEST)
            version = fit(value, {"format!": int}, what=MANIFEST)["format"]
        except ValueError as error:
            self._refuse_damaged(str(error))
        if version > FORMAT:
            self._refuse_newer(version)
        try:
            about, entries = _parse_manifest(value)
            _check_entries(entries)
            expected = _header(content_of(MANIFEST, data).entry, made=_seconds(about.made))
        except ValueError as error:
            self._refuse_damaged(f"{MANIFEST}: {error}")
        if header != expected:
            self._refuse_damaged(f"the header of {MANIFEST} is not what it has to be")
        self._expect(bytes(-size % 512), f"what follows {MANIFEST}", entry=MANIFEST)
        end = content_of(_END, _render_end(data)).entry
        return about, (*entries, end), len(header) + size + -size % 512

    def _check(self, start: int) -> None:
        """Read everything once, and fill in where each member's content is."""
        made = _seconds(self.about.made)
        for entry in self.entries:
            header = _header(entry, made=made)
            self._file.seek(start)
            self._expect(header, f"the header of {entry.name}", entry=entry.name)
            start += len(header)
            self._places[entry.name] = (start, entry)
            for _ in self.chunks(entry.name):
                pass
            self._expect(bytes(-entry.size % 512), f"what follows {entry.name}", entry=entry.name)
            start += entry.size + -entry.size % 512
        self._expect(bytes(1024), "its end", entry=_END)
        if self._file.read(1):
            self._refuse_damaged("something follows its end")
        self.entries = tuple(entry for entry in self.entries if entry.name != _END)

    def _expect(self, data: bytes, place: str, *, entry: str) -> None:
        found = self._file.read(len(data))
        if found != data:
            if len(found) < len(data):
                self._refuse_truncated(entry)
            self._refuse_damaged(f"{place} is not what it has to be")

    # ---- refusals

    def _refuse_foreign(self, header: bytes) -> None:
        encrypted_by = find_encryption(header)
        if encrypted_by:
            raise HostError(
                f"{self._what} is encrypted",
                cause=f"it was encrypted with {encrypted_by}, and no key was given",
                remedy="give the key with which age opens it: --identity FILE"
                if encrypted_by == "age"
                else "import the secret key into root's keyring: gpg --import FILE",
                code="backup-encrypted",
            )
        if MANIFEST.encode().startswith(header[: len(MANIFEST)]) and len(header) < 512:
            self._refuse_truncated(MANIFEST)
        is_named = header[:100].rstrip(b"\0") == MANIFEST.encode() and header[257:262] == b"ustar"
        size = header[124:135]
        if not is_named or not size.isdigit() or b"8" in size or b"9" in size or int(size, 8) > _MAX_MANIFEST:
            raise HostError(
                f"{self._what} is not a backup of kb",
                cause=f"it does not begin with {MANIFEST}, or its first bytes are damaged",
                remedy=f"see what it is: file {self._what}",
                code="not-a-backup",
            )

    def _refuse_newer(self, version: int) -> NoReturn:
        raise HostError(
            f"{self._what} was made by a newer kb",
            cause=f"its format is version {version}, and this kb knows {FORMAT}",
            remedy="use that kb, or a newer one: kb version says which this is",
            code="backup-too-new",
        )

    def _refuse_truncated(self, name: str) -> NoReturn:
        raise HostError(
            f"{self._what} is cut off",
            cause=f"it ends in the middle of {name}" if name != _END else "its end is missing",
            remedy="copy it again from where it was made, or take the backup before it",
            code="backup-truncated",
        )

    def _refuse_damaged(self, cause: str) -> NoReturn:
        raise HostError(
            f"{self._what} is damaged",
            cause=cause,
            remedy="copy it again from where it was made, or take the backup before it",
            code="backup-damaged",
        )


@contextlib.contextmanager
def open_archive(host: Host, path: Path) -> Iterator[Backup]:
    """The archive in a file, checked as a whole. Raises HostError: file-unreadable, and as Backup."""
    with host.open_read(path) as file:
        yield Backup(file, what=str(path))


def find_encryption(begin: bytes) -> str:
    """`age` or `gpg`, by the first bytes of what it wrote; "" for anything else. Source: age's format (C2SP), RFC 9580, 4.2"""
    if begin.startswith((b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE-----")):
        return "age"
    # a packet of a session key: encrypted to a public key (tag 1) or with a passphrase (tag 3)
    is_packet = bool(begin) and (begin[0] >> 2 in (0b100001, 0b100011) or begin[0] in (0xC1, 0xC3))
    return "gpg" if is_packet or begin.startswith(b"-----BEGIN PGP MESSAGE-----") else ""


_TEXTS = [str]
_MEMBER = {"id!": str, "name!": str, "peer_urls!": _TEXTS, "client_urls!": _TEXTS, "is_learner!": bool}
_ENTRY = {"name!": str, "size!": int, "sha256!": str, "mode!": int, "uid!": int, "gid!": int, "link!": str}
_ABOUT = {
    **{
        f"{name}!": str
        for name in ("made", "kb", "node", "machine_id", "kubernetes", "etcd", "etcd_kind", "etcd_prefix")
    },
    **{f"{name}!": str for name in ("address", "endpoint", "pki", "etcd_data")},
    **{f"{name}!": int for name in ("revision", "objects")},
    "members!": [_MEMBER],
    "images!": _TEXTS,
    "missing!": _TEXTS,
}


def _parse_manifest(value: Mapping[str, Any]) -> tuple[About, tuple[Entry, ...]]:
    """Raises ValueError."""
    if value.get("kind") != _KIND:
        raise ValueError(f"its kind is {value.get('kind')!r}")
    told = fit(value, {"about!": _ABOUT, "entries!": [_ENTRY]}, what="it")
    about = _pick(told["about"], _ABOUT)
    rows = (_pick(row, _MEMBER) for row in about.pop("members"))
    members = tuple(
        Member(**{**row, "peer_urls": tuple(row["peer_urls"]), "client_urls": tuple(row["client_urls"])})
        for row in rows
    )
    images, missing = tuple(about.pop("images")), tuple(about.pop("missing"))
    entries = tuple(Entry(**_pick(row, _ENTRY)) for row in told["entries"])
    return About(**about, images=images, missing=missing, members=members), entries


def _pick(row: Mapping[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """What this kb knows of a row. Fields may be added without a new version of the format, if a reader can do without them."""
    return {name.rstrip("!"): row[name.rstrip("!")] for name in shape}
