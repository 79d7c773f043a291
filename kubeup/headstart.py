"""What a command is sure to need and takes long, begun while Python reads the rest of kb.

A second thread unpacks cryptography, 14 MB, and makes a new control plane's first keys: both happen outside Python's
lock, so they cost the start of kb nothing where there is a second processor. Nobody has to wait for it or to know of
it: whoever imports cryptography finds it loaded, or meets the error that the thread met.

Owns: which commands get a start. Must not: import anything of kb, or cryptography before begin(). kb.pyz's
__main__.py calls begin(); in a checkout nobody does. Mirrors nothing of kubeadm, whose code is loaded at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

COMMANDS = ("adopt", "certs", "init", "join", "kubeconfig", "reconfigure")
"""Those that cannot do their work without cryptography."""

LOOKING = ("-h", "--help", "--list")
"""With one of these words a command only tells something."""

ALGORITHM = "RSA-2048"
"""encryptionAlgorithm's default. Where a configuration asks for another, EARLY keys are made for nothing."""

EARLY = 8
"""How many keys are made before it is known how many are wanted."""

_keys: list[Future[Any]] = []


def begin(words: Sequence[str], pki: str = "/etc/kubernetes/pki") -> None:
    """Begin what the command line `words` needs; `pki` is the folder in whose sa.key an older control plane is seen."""
    if not words or words[0] not in COMMANDS or not set(words).isdisjoint(LOOKING):
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="kb-headstart")
    pool.submit(_load)
    makes_keys = words[0] == "init" or (words[0] == "join" and "--control-plane" in words)
    if makes_keys and not os.path.exists(f"{pki}/sa.key"):
        _keys.extend(pool.submit(_generate) for _ in range(EARLY))
    pool.shutdown(wait=False)


def take_keys(limit: int) -> list[Future[Any]]:
    """Up to `limit` of the keys of kind ALGORITHM that were begun, each given away once."""
    taken = _keys[:limit]
    del _keys[:limit]
    return taken


def _load() -> None:
    import cryptography.hazmat.primitives.asymmetric.rsa  # noqa: F401


def _generate() -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(public_exponent=65537, key_size=2048)
