"""kubeup/node/etcd_file.py: the members in an etcd's file, and files that are none."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from kubeup.errors import HostError
from kubeup.node import etcd_file
from kubeup.node.etcd_file import Content, FileMember
from tests.fake_host import FakeHost

DATA = Path("/var/lib/etcd")
PAGE = 4096
MEMBERS = {
    f"{n:016x}".encode(): json.dumps(
        {
            "id": n,
            "name": f"cp{n}",
            "peerURLs": [f"https://10.0.0.1{n}:2380"],
            "clientURLs": [f"https://10.0.0.1{n}:2379"],
        }
    ).encode()
    for n in (1, 2)
}
META = {b"consistent_index": (2814).to_bytes(8, "big"), b"term": (4).to_bytes(8, "big")}


def leaf(rows: Mapping[bytes, bytes], *, number: int = 0, kind: int = 0) -> bytes:
    """A page with these keys and values; kind 1: the values are buckets."""
    head = struct.pack("<QHHI", number, 2, len(rows), 0)
    elements, data = b"", b""
    for index, (key, value) in enumerate(sorted(rows.items())):
        start = (len(rows) - index) * 16 + len(data)
        elements += struct.pack("<IIII", kind, start, len(key), len(value))
        data += key + value
    return head + elements + data


def inline(rows: Mapping[bytes, bytes]) -> bytes:
    """A bucket that is small enough to lie in its parent."""
    return struct.pack("<QQ", 0, 0) + leaf(rows)


def head(number: int, *, root: int, transaction: int, page_size: int = PAGE) -> bytes:
    meta = struct.pack("<IIIIQQQQQ", etcd_file.MAGIC, 2, page_size, 0, root, 0, 2, 9, transaction)
    page = struct.pack("<QHHI", number, 4, 0, 0) + meta + struct.pack("<Q", etcd_file._fnv(meta))
    return page.ljust(page_size, b"\0")


def make_file(*, old_is_broken: bool = False) -> bytes:
    """The newer of the two heads leads to the page 3, whose bucket of members is a branch of two leaves."""
    first, second = sorted(MEMBERS.items())
    branch = (
        struct.pack("<QHHI", 4, 1, 2, 0)
        + struct.pack("<IIQ", 32, 16, 5)
        + struct.pack("<IIQ", 32, 16, 6)
        + first[0]
        + second[0]
    )
    root = leaf(
        {b"members": struct.pack("<QQ", 4, 0), b"meta": inline(META), b"key": inline({b"x": b"y"})}, number=3, kind=1
    )
    older = bytes(PAGE) if old_is_broken else head(0, root=9, transaction=1)
    pages = [
        older,
        head(1, root=3, transaction=2),
        bytes(PAGE),
        root,
        branch,
        leaf(dict([first]), number=5),
        leaf(dict([second]), number=6),
    ]
    return b"".join(page.ljust(PAGE, b"\0") for page in pages)


def read(data: bytes) -> Content:
    return etcd_file.read_content(FakeHost(files={str(etcd_file.file_of(DATA)): data}), DATA)


@pytest.mark.parametrize("old_is_broken", [False, True])
def test_the_members_and_how_far_the_data_are(old_is_broken: bool) -> None:
    rows = tuple(
        FileMember(str(n), f"cp{n}", (f"https://10.0.0.1{n}:2380",), (f"https://10.0.0.1{n}:2379",), False)
        for n in (1, 2)
    )
    assert read(make_file(old_is_broken=old_is_broken)) == Content(rows, 2814, 4)


def test_what_is_no_file_of_etcd_is_refused() -> None:
    whole = make_file()
    circle = bytearray(whole)
    circle[4 * PAGE + 24 : 4 * PAGE + 32] = struct.pack("<Q", 4)  # the branch leads to itself
    for data in (b"", b"x" * 100, bytes(len(whole)), whole[: 3 * PAGE], whole[: 5 * PAGE], bytes(circle)):
        with pytest.raises(HostError) as caught:
            read(data)
        assert caught.value.code == "etcd-file-unreadable"
    with pytest.raises(HostError):
        etcd_file.read_content(FakeHost(), DATA)


def test_a_file_of_chance_is_read_or_refused() -> None:
    chance = random.Random(7)
    for _ in range(300):
        data = bytearray(make_file())
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(3 * PAGE, len(data))] = chance.randrange(256)
        try:
            read(bytes(data))
        except HostError as error:
            assert error.code == "etcd-file-unreadable"
