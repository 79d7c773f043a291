"""Reads an etcd's file from outside: its members, and how far it is. For a member that answers nobody, since it has lost its quorum and
was started again.

The file is one of bbolt: pages of a tree, whose leaves hold keys and values; buckets are trees inside. Only small buckets are read, page
by page, so the size of the file does not matter. Nothing is locked: a file that etcd writes to at that moment may be unreadable, and
then says so. Source: go.etcd.io/bbolt internal/common/{meta,page,bucket}.go, server/storage/schema/{bucket,membership}.go
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Optional

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.host import Host
from kubeup.shapes import fit

MAGIC = 0xED0CDAED
_BRANCH, _LEAF = 0x01, 0x02
_BUCKET = 0x01
_HEADER = struct.Struct("<QHHI")
"""id, flags, count, overflow"""
_META = struct.Struct("<IIIIQQQQQQ")
"""magic, version, page size, flags, root page, root sequence, freelist, page count, transaction, checksum"""
_BRANCH_ROW, _LEAF_ROW = struct.Struct("<IIQ"), struct.Struct("<IIII")
_MOST_PAGES, _MOST_BYTES, _DEEPEST = 4096, 16 << 20, 40
_MEMBER = {"id!": object, "name!": str, "peerURLs!": [str], "clientURLs!": [str], "isLearner!": bool}


@frozen
class FileMember:
    """A member as etcd's file has it; member_id in decimal."""

    member_id: str
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


@frozen
class Content:
    """What the file of a member says. index, term: of the last entry that is in it; entries that are only in the log come on top."""

    members: tuple[FileMember, ...]
    index: int
    term: int


def file_of(data_dir: Path) -> Path:
    return data_dir / "member" / "snap" / "db"


def read_content(host: Host, data_dir: Path) -> Content:
    """Raises HostError: etcd-file-unreadable, file-unreadable."""
    path = file_of(data_dir)
    with host.open_read(path) as file:
        try:
            tree = _Tree(file)
            rows = tuple(_read_member(value) for _, value in tree.bucket(b"members"))
            meta = dict(tree.bucket(b"meta"))
        except (struct.error, ValueError, IndexError, OverflowError, OSError) as error:
            raise HostError(
                f"{path} cannot be read",
                cause=f"it is no file of etcd 3.5 or later, or it changes at this moment: {error}",
                remedy="see etcd's log: crictl logs of the container etcd",
                code="etcd-file-unreadable",
            ) from error
    index, term = (int.from_bytes(meta.get(name, b"")[:8], "big") for name in (b"consistent_index", b"term"))
    return Content(rows, index, term)


def _read_member(value: bytes) -> FileMember:
    found = fit(parse_json(value, "a member"), _MEMBER, what="a member")
    if not isinstance(found["id"], int):
        raise ValueError("a member has no ID")
    return FileMember(
        str(found["id"]), found["name"], tuple(found["peerURLs"]), tuple(found["clientURLs"]), found["isLearner"]
    )


class _Tree:
    """The pages of an open file. Every method raises ValueError or struct.error for what is no tree."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, _MOST_PAGES
        metas = [meta for meta in map(self._read_meta, (0, *_SECOND_META)) if meta is not None]
        if not metas:
            raise ValueError("it has no valid head")
        self._page_size, self._root, _ = max(metas, key=lambda meta: meta[2])

    def _read_meta(self, offset: int) -> Optional[tuple[int, int, int]]:
        """page size, root page, transaction; None if there is no valid head."""
        self._file.seek(offset + _HEADER.size)
        data = self._file.read(_META.size)
        if len(data) < _META.size:
            return None
        magic, _, page_size, _, root, _, _, _, transaction, checksum = _META.unpack(data)
        is_valid = magic == MAGIC and checksum == _fnv(data[:-8]) and 512 <= page_size <= 1 << 20
        return (page_size, root, transaction) if is_valid else None

    def bucket(self, name: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The keys and values of a bucket of the first level; nothing if there is none."""
        for key, value, flags in self._rows(self._read_page(self._root)):
            if key != name or not flags & _BUCKET:
                continue
            root, _ = struct.unpack_from("<QQ", value)
            page = self._read_page(root) if root else value[16:]
            yield from ((key, value) for key, value, _ in self._rows(page))

    def _read_page(self, number: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("its pages lead in a circle")
        self._file.seek(number * self._page_size)
        head = self._file.read(self._page_size)
        *_, overflow = _HEADER.unpack_from(head)
        if overflow * self._page_size > _MOST_BYTES:
            raise ValueError(f"page {number} is too large")
        return head + self._file.read(overflow * self._page_size)

    def _rows(self, page: bytes, depth: int = 0) -> Iterator[tuple[bytes, bytes, int]]:
        _, flags, count, _ = _HEADER.unpack_from(page)
        if not flags & (_BRANCH | _LEAF):
            raise ValueError("a page is neither a branch nor a leaf")
        for index in range(count):
            place = _HEADER.size + index * 16
            if flags & _BRANCH:
                if depth > _DEEPEST:
                    raise ValueError("its pages lead in a circle")
                yield from self._rows(self._read_page(_BRANCH_ROW.unpack_from(page, place)[2]), depth + 1)
                continue
            kind, start, key_size, value_size = _LEAF_ROW.unpack_from(page, place)
            begin, middle = place + start, place + start + key_size
            if middle + value_size > len(page):
                raise ValueError("a value ends outside of its page")
            yield page[begin:middle], page[middle : middle + value_size], kind


_SECOND_META = (4096, 8192, 16384, 65536)
"""Where the second head may begin: at the size of a page, which is that of the machine that made the file."""


def _fnv(data: bytes) -> int:
    """FNV-1a of 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value
