"""The node's own files, each in turn no file at all, or one of any content: a pipe, a folder, a socket, a link to itself, too
large, of another encoding. Whatever reads it says so, and waits for nobody."""

from __future__ import annotations

import os
import random
import shutil
import socket
from pathlib import Path
from typing import Callable

import pytest

from tests.fuzz import alter_bytes, cases
from tests.fuzz.node import Node, Site, call
from tests.fuzz.test_answers import COMMANDS

WHAT = ("doctor", "status", "adopt", "certs check-expiration", "certs renew", "certs recover", "certs generate-csr", "token create", "etcd members", "init again", "join again",
        "reset", "reconfigure with a balancer", "kubeconfig user", "routes", "load-balancer", "config images pull", "reset as kubeadm", "support-bundle")  # fmt: skip


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()


def _make_socket(place: Path) -> None:
    folder = os.open(place.parent, os.O_PATH)  # a socket's name has no more than 107 characters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{folder}/{place.name}")
    os.close(folder)


def _make_large(place: Path) -> None:
    with place.open("wb") as file:
        file.truncate(100 << 20)  # a hole, which takes no space


MAKERS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda place: None,
    "a pipe": os.mkfifo,
    "a folder": lambda place: place.mkdir(),
    "a folder with a folder": lambda place: (place / "x").mkdir(parents=True),
    "a socket": _make_socket,
    "a link to itself": lambda place: place.symlink_to(place.name),
    "a link to nothing": lambda place: place.symlink_to("/nowhere"),
    "a link to a folder": lambda place: place.symlink_to("/etc"),
    "an empty file": lambda place: place.touch(),
    "a hole of 100 MiB": _make_large,
    "NUL": lambda place: place.write_bytes(bytes(4096)),
    "deep JSON": lambda place: place.write_text('{"a":' * 60_000),
    "deep YAML": lambda place: place.write_text("- " * 20_000),
    "a list": lambda place: place.write_text("[1, {}]\n"),
    "a number": lambda place: place.write_text("5\n"),
    "no UTF-8": lambda place: place.write_bytes(b"\xff\xfe\x00\xd8" * 50),
}


def spoil(chance: random.Random, node: Node, place: Path) -> str:
    """Put something odd where the file was; what it is, in words."""
    data = place.read_bytes()
    kind = chance.choice((*MAKERS, "other bytes", "other bytes", "UTF-16", "its half", "CRLF"))
    if kind in MAKERS:
        _remove(place)
        MAKERS[kind](place)
    elif kind == "other bytes":
        place.write_bytes(alter_bytes(chance, data))
    elif kind == "UTF-16":
        place.write_bytes(data.decode(errors="replace").encode("utf-16"))
    else:
        place.write_bytes(data[: len(data) // 2] if kind == "its half" else data.replace(b"\n", b"\r\n"))
    return kind


def files_of(node: Node) -> list[Path]:
    """What kb may read there: all but what is no text of anybody's."""
    return [place for place in sorted(node.root.rglob("*")) if place.is_file() and not place.is_symlink()]


@pytest.mark.parametrize("what", WHAT)
def test_a_file_is_something_else(site: Site, what: str) -> None:
    kind, words = COMMANDS[what]
    for chance in cases(f"files of {what}", 8):
        node = site.clone(kind)
        place = chance.choice(files_of(node))
        told = f"{spoil(chance, node, place)} at /{place.relative_to(node.root)}"
        ended = call([f"--discovery-token-ca-cert-hash={site.pin}" if word == "PIN" else word for word in words], lambda node=node: node, site.folder)  # type: ignore[misc] # fmt: skip
        site.drop(node)
        assert not ended.bug, f"{told}\n{ended.bug}"
