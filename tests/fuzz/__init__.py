"""Fuzzers: one module per subject. Chance has a fixed seed, so that a failure comes again; `make test` runs each for some
seconds, `make fuzz` for as long as KB_FUZZ_ROUNDS says.

A fuzzer feeds `cases` to the subject and lets only KbError (or what the subject's docstring names) pass.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Iterator
from typing import Any

ROUNDS = max(1, int(os.environ.get("KB_FUZZ_ROUNDS", "1")))
SEED = os.environ.get("KB_FUZZ_SEED", "kb")
SECONDS = 5.0
"""What one subject may take in one round, whatever the machine."""

ODD_TEXTS = (
    "", " ", "\0", "\n", "a\nb", "\x1b[31m", "'", '"', "=", "--", "..", "/", "//etc", "../../etc/passwd", "x" * 5000, "9" * 5000,
    "\ud7ff\ufffd", "é", "日本", "\U0001f600", "0o9", "1e999", "NaN", "null", "~", "yes", "{{", "%s", "https://", "sha256:", "a: b",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 70, -0.0, 1e308, [], {}, [None], [[]], {"": None}, [{}], {"a": {}}, *ODD_TEXTS,
)  # fmt: skip


def cases(subject: str, count: int) -> Iterator[random.Random]:
    """`count` sources of chance per round, each with a seed of its own; fewer where time is up. subject: what makes
    them differ from another fuzzer's."""
    ends = time.monotonic() + SECONDS * ROUNDS
    for number in range(count * ROUNDS):
        if number and time.monotonic() > ends:
            return
        yield random.Random(f"{SEED}/{subject}/{number}")


def alter_bytes(chance: random.Random, data: bytes) -> bytes:
    """`data` with some bytes changed, cut out, doubled or put in."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at, width = chance.randrange(len(found) + 1), chance.choice((1, 1, 4, 64))
        found[at : at + width] = chance.choice(
            (
                b"",
                chance.randbytes(width),
                bytes(found[at : at + width]) * 2,
                chance.choice(
                    (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"[" * 300, b"{", b"&a", b"*a", b": ", b"- ")
                ),
            )
        )
    return bytes(found)


def alter_value(chance: random.Random, value: Any) -> Any:
    """A copy of a value of mappings, lists and scalars in which one to three places hold something odd, or are gone."""
    found = [copy.deepcopy(value)]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(found))
        container, key = chance.choice(places)
        if chance.random() < 0.15 and container is not found:
            del container[key]
        else:
            container[key] = copy.deepcopy(chance.choice(ODD_VALUES))
    return found[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])
