"""PEM: a text cut into its labelled blocks.

Apart from pki.py, so that whoever only hands certificates on (kubeconfig.py, the API client) need not load
cryptography.
"""

from __future__ import annotations

import re

_BLOCK = re.compile(r"-----BEGIN (?P<label>[A-Z0-9 ]+)-----\r?\n.*?-----END (?P=label)-----", re.DOTALL)


def split_pem(text: str) -> list[tuple[str, str]]:
    """Every (label, block) of `text` in order: ("CERTIFICATE", "-----BEGIN CERTIFICATE-----..."). What stands
    between blocks, openssl's `Bag Attributes` say, is left out."""
    return [(match["label"], match.group(0) + "\n") for match in _BLOCK.finditer(text)]


def select_certs(text: str) -> str:
    """The certificates of `text` alone, as PEM."""
    return "".join(block for label, block in split_pem(text) if label == "CERTIFICATE")


def select_private_keys(text: str) -> str:
    """The private keys of `text` alone, as PEM."""
    return "".join(block for label, block in split_pem(text) if label.endswith("PRIVATE KEY"))
