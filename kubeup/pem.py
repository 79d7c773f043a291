"""PEM: a text cut into its labelled blocks.

Apart from pki.py, so that whoever only hands certificates on (kubeconfig.py, the API client) need not load
cryptography.
"""

from __future__ import annotations

import re

_BLOCK = re.compile(
    r"^-----BEGIN (?P<label>[A-Z0-9 ]+)-----[ \t]*\r?\n.*?^-----END (?P=label)-----", re.DOTALL | re.MULTILINE
)
"""At the beginning of a line, as Go's encoding/pem has it: what is indented there, the API server and the kubelets would not read."""


def split_pem(text: str) -> list[tuple[str, str]]:
    """Every (label, block) of `text` in order: ("CERTIFICATE", "-----BEGIN CERTIFICATE-----..."). What stands
    between blocks, openssl's `Bag Attributes` say, is left out."""
    return [(match["label"], match.group(0) + "\n") for match in _BLOCK.finditer(text)]


def describe_no_block(text: str) -> str:
    """Why a text that should hold PEM holds none that can be read."""
    if re.search(r"^[ \t]+-----BEGIN ", text, re.MULTILINE):
        return "its PEM block is indented: Kubernetes takes -----BEGIN at the beginning of a line alone"
    return "it holds nothing in PEM form"


def select_certs(text: str) -> str:
    """The certificates of `text` alone, as PEM."""
    return "".join(block for label, block in split_pem(text) if label == "CERTIFICATE")


def select_private_keys(text: str) -> str:
    """The private keys of `text` alone, as PEM."""
    return "".join(block for label, block in split_pem(text) if label.endswith("PRIVATE KEY"))
