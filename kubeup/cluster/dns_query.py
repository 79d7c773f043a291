"""Encodes a DNS query and decodes its answer: enough to ask the cluster's DNS for an address (RFC 1035).

These functions are pure; the datagram itself goes through Host.udp_exchange.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Optional

TYPE_A, TYPE_NS, TYPE_AAAA = 1, 2, 28
_CODES = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
"""Source: RFC 1035, section 4.1.1"""


def render_query(name: str, *, query_id: int, record_type: int = TYPE_A) -> bytes:
    """A recursive query for `name`, `.` for the root. Raises ValueError if a label is empty or longer than 63 bytes."""
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".")] if name != "." else []
    if any(not 0 < len(label) < 64 for label in labels):
        raise ValueError(f"not a domain name: {name!r}")
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack(">HHHHHH", query_id, 0x0100, 1, 0, 0, 0) + question + struct.pack(">HH", record_type, 1)


def parse_answer(data: Optional[bytes], *, query_id: int) -> Optional[list[str]]:
    """The addresses in an answer; [] if the server says that there are none; None if the data does not answer this query, or the
    server failed."""
    if data is None or len(data) < 12:
        return None
    answer_id, flags, questions, answers, _, _ = struct.unpack(">HHHHHH", data[:12])
    code = flags & 0xF
    if answer_id != query_id or not flags & 0x8000 or code not in (0, 3):
        return None
    try:
        at = 12
        for _ in range(questions):
            at = _skip_name(data, at) + 4
        found = []
        for _ in range(answers):
            at = _skip_name(data, at)
            record_type, _, _, length = struct.unpack(">HHIH", data[at : at + 10])
            value = data[at + 10 : at + 10 + length]
            if record_type in (TYPE_A, TYPE_AAAA):
                found.append(str(ipaddress.ip_address(value)))
            at += 10 + length
    except (IndexError, struct.error, ValueError):
        return None
    return found


def read_failure(data: Optional[bytes], *, query_id: int) -> Optional[str]:
    """`SERVFAIL`: how the server says that it failed, or has no such name; "" if it does not; None if the data does not answer this query."""
    if data is None or len(data) < 12:
        return None
    answer_id, flags = struct.unpack(">HH", data[:4])
    if answer_id != query_id or not flags & 0x8000:
        return None
    code = flags & 0xF
    return _CODES.get(code, f"error {code}") if code else ""


def _skip_name(data: bytes, at: int) -> int:
    while True:
        length = data[at]
        if length & 0xC0:
            return at + 2
        at += 1
        if not length:
            return at
        at += length
