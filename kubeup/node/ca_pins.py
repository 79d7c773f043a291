"""Pins: the hash of a CA's public key, by which a joining node knows its cluster (kubeadm's --discovery-token-ca-cert-hash).

A worker needs of a certificate only the bytes of its public key, so this module finds them without cryptography, whose import would
be a quarter of the CPU time of a worker's join. It reads DER strictly: a form that two readers could understand differently is
refused. Whether a certificate is otherwise good is judged by TLS, which verifies the server with it. Mirrors
cmd/kubeadm/app/util/pubkeypin/pubkeypin.go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Optional

from kubeup.config.pins import parse_ca_cert_hash
from kubeup.pem import Block, describe_lack, split_pem
from kubeup.trust import Anchors, Offered

_INTEGER, _BIT_STRING, _SEQUENCE, _VERSION = 0x02, 0x03, 0x30, 0xA0
"""The tags of DER (X.690) that a certificate's fields have; _VERSION is [0], which a certificate of version 1 lacks."""
_BEFORE_KEY = (_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE)
"""The fields before the public key (RFC 5280, 4.1): serial number, signature algorithm, issuer, validity, subject."""


def ca_cert_hashes(pem: str) -> tuple[str, ...]:
    """The pins of all certificates in `pem`: `sha256:` and the hash of the public key. Raises ValueError."""
    return tuple(_pin_of(block) for block in _split_certs(pem))


def ca_cert_hash(pem: str) -> str:
    """The pin of the first certificate in `pem`, for --discovery-token-ca-cert-hash. Raises ValueError."""
    return ca_cert_hashes(pem)[0]


def keep_pinned(offered: Offered, pins: Iterable[str]) -> Optional[Anchors]:
    """Only the certificates whose hash is one of the pins; None if there are none. The pins say nothing about other certificates in
    the same text: a server may present a foreign certificate beside the real one, which is public. Raises ValueError if the text
    holds no certificates."""
    wanted = {parse_ca_cert_hash(pin) for pin in pins}
    kept = dict.fromkeys(block.text for block in _split_certs(offered.pem) if _pin_of(block) in wanted)
    return Anchors("".join(kept)) if kept else None


def _split_certs(pem: str) -> list[Block]:
    blocks = [block for block in split_pem(pem) if block.is_cert]
    if not blocks:
        raise ValueError(describe_lack(pem, "certificate"))
    return blocks


def _pin_of(block: Block) -> str:
    try:
        key = read_public_key(block.content)
    except ValueError as error:
        raise ValueError("its certificate is damaged") from error
    return "sha256:" + hashlib.sha256(key).hexdigest()


# ---- DER


def read_public_key(der: bytes) -> bytes:
    """The SubjectPublicKeyInfo in a certificate, as it stands there. Raises ValueError for anything but a certificate's fields in their
    order."""
    ((_, start, end),) = _read_fields(der, 0, end=len(der), tags=(_SEQUENCE,))
    (_, start, end), *_ = _read_fields(der, start, end=end, tags=(_SEQUENCE, _SEQUENCE, _BIT_STRING))
    version = (_VERSION,) * (der[start : start + 1] == bytes((_VERSION,)))
    wanted = (*version, *_BEFORE_KEY, _SEQUENCE)
    begin, start, end = _read_fields(der, start, end=end, tags=wanted, may_go_on=True)[-1]
    _read_fields(der, start, end=end, tags=(_SEQUENCE, _BIT_STRING))
    return der[begin:end]


def _read_fields(
    der: bytes, at: int, *, end: int, tags: tuple[int, ...], may_go_on: bool = False
) -> list[tuple[int, int, int]]:
    """Where the fields between `at` and `end` are: of each, where it begins, where its content begins, and where it ends. Raises
    ValueError unless they have these tags; with may_go_on, others may follow."""
    fields = list(_walk(der, at, end=end))
    found = tuple(der[begin] for begin, _, _ in fields)
    if found[: len(tags)] != tags or (len(found) > len(tags) and not may_go_on):
        raise ValueError("it has other fields than a certificate")
    return fields[: len(tags)]


def _walk(der: bytes, at: int, *, end: int) -> Iterator[tuple[int, int, int]]:
    while at < end:
        begin, size, at = at, der[at + 1] if at + 1 < end else 0x80, at + 2
        if size >= 0x80:
            count = size - 0x80
            size, at = int.from_bytes(der[at : at + count], "big"), at + count
            # DER allows one form of a length: the shortest
            if not 1 <= count <= 4 or size < 0x80 or size.bit_length() <= 8 * (count - 1):
                raise ValueError("a field's length is not written as DER has it")
        if at + size > end:
            raise ValueError("a field goes on behind the end of what holds it")
        yield begin, at, at + size
        at += size
