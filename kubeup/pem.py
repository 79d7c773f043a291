"""PEM: splits a text into its labelled blocks, like Go's encoding/pem.

It accepts what kubeadm, the API server and the kubelets accept, and no more: they would reject the rest minutes later.
Separate from node/certificates.py and node/private_keys.py, so that code that only passes certificates on
(kubeconfig.py, the API client) does not load cryptography.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Optional

from kubeup.frozen_values import frozen

_BEGIN, _END, _DASHES = "-----BEGIN ", "\n-----END ", "-----"
BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_NO_BLANKS = str.maketrans("", "", " \t\r\n")


@frozen
class Block:
    """One block: `-----BEGIN {label}-----`, optional `name: value` lines, and bytes in base64."""

    label: str
    content: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)

    @property
    def is_cert(self) -> bool:
        """Go does not accept a certificate with headers."""
        return self.label == "CERTIFICATE" and not self.headers

    @property
    def is_private_key(self) -> bool:
        return self.label == "PRIVATE KEY" or self.label.endswith(" PRIVATE KEY")

    @property
    def text(self) -> str:
        """The block in the form that every reader accepts."""
        body = base64.b64encode(self.content).decode()
        lines = [f"{name}: {value}" for name, value in self.headers.items()] + [""] * bool(self.headers)
        lines += [body[at : at + 64] for at in range(0, len(body), 64)]
        return "\n".join((f"{_BEGIN}{self.label}{_DASHES}", *lines, f"{_END[1:]}{self.label}{_DASHES}", ""))


def split_pem(text: str) -> Iterator[Block]:
    """The blocks of `text` in order. Text between them, such as openssl's `Bag Attributes`, is skipped, and so are
    blocks that Go does not accept: indented, without END, with invalid base64."""
    start = 0
    while True:
        end = text.find(_END, start)
        if end < 0:
            return
        trailer = end + len(_END)
        begin = text.rfind(_BEGIN, start, end)
        if begin < 0 or (begin > start and text[begin - 1] != "\n"):
            start = trailer
            continue
        block = _read_block(text, begin + len(_BEGIN), end=end)
        if block is not None:
            yield block
            trailer = _line(text, trailer)[1]
        start = trailer


def _read_block(text: str, at: int, *, end: int) -> Optional[Block]:
    first, at = _line(text, at)
    if not first.endswith(_DASHES):
        return None
    headers: dict[str, str] = {}
    while at < end:
        line, after = _line(text, at)
        name, colon, value = line.partition(":")
        if not colon:
            break
        headers[name.strip()] = value.strip()
        at = after
    if headers and at > end:
        return None
    if _line(text, end + len(_END))[0] != first:
        return None
    body = text[at:end].translate(_NO_BLANKS)
    if not BASE64.fullmatch(body):
        return None
    return Block(first[: -len(_DASHES)], base64.b64decode(body), headers)


def _line(text: str, at: int) -> tuple[str, int]:
    """The line that begins at `at`, without trailing blanks, and the start of the next line."""
    end = text.find("\n", at)
    end, after = (len(text), len(text)) if end < 0 else (end, end + 1)
    return text[at:end].removesuffix("\r").rstrip(" \t"), after


def describe_no_block(text: str) -> str:
    """Why a text that should contain PEM contains none that can be read."""
    if "\0" in text[:200]:
        return "it is not text (DER, or UTF-16), and Kubernetes reads only PEM"
    if not text.strip():
        return "it is empty"
    if text.startswith("\ufeff"):
        return "it begins with a byte order mark, so Kubernetes (Go) finds no -----BEGIN at the beginning of a line"
    if re.search(r"^[ \t]+-----(BEGIN|END) ", text, re.MULTILINE):
        return "its PEM block is indented: Kubernetes accepts -----BEGIN and -----END only at the beginning of a line"
    if _BEGIN in text:
        return "its PEM block is broken: Kubernetes (Go) finds no -----BEGIN and -----END of one label, each in a line of its own, with nothing but base64 between"
    return "it holds nothing in PEM form"


def describe_lack(text: str, wanted: str) -> str:
    """Why a text contains no `wanted` (a certificate, a private key) that Kubernetes can read."""
    blocks = list(split_pem(text))
    if not blocks:
        return describe_no_block(text)
    if wanted == "certificate" and any(block.label == "CERTIFICATE" for block in blocks):
        return (
            "its certificate has lines of `name: value` before its base64: Kubernetes (Go) ignores such a certificate"
        )
    return f"it holds no {wanted}, but {' and '.join(dict.fromkeys(block.label for block in blocks))}"


def select_certs(text: str) -> str:
    """Only the certificates of `text`, as PEM."""
    return "".join(block.text for block in split_pem(text) if block.is_cert)


def select_private_keys(text: str) -> str:
    """Only the private keys of `text`, as PEM."""
    return "".join(block.text for block in split_pem(text) if block.is_private_key)
