"""Starts slow work that a command is sure to need, while Python loads the rest of kb.

A second thread unpacks cryptography (11 MB) and generates a new control plane's first keys. Both happen outside the GIL, so with a
second CPU they do not slow down kb's start. No other code has to wait for the thread or know of it: importing cryptography finds it
loaded, or raises the same error as in the thread.

This module decides which commands get a head start. It imports nothing of kb, and cryptography not before begin(). Only kb.pyz's
__main__.py calls begin(), not a checkout. kubeadm has no counterpart, since it is a single binary.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Callable, Optional

COMMANDS = ("adopt", "certs", "init", "join", "kubeconfig", "reconfigure")
"""The commands that need cryptography. Of those that join, only control planes do (CONTROL_PLANE)."""

CONTROL_PLANE = ("--control-plane", "--config")
"""One of these flags makes the node that joins a control plane, or may do so: the file of --config is not read here."""

LOOKING = ("-h", "--help", "--list")
"""With one of these flags a command only prints something."""

ALGORITHM = "RSA-2048"
"""The default of encryptionAlgorithm. If a configuration asks for another one, the EARLY keys are wasted."""

EARLY = 11
"""How many keys are generated before kb knows how many it needs: as many as there are key files in pki/."""

SWITCH_S = 0.0001
"""The GIL's switch interval, instead of 5 ms. The second thread needs the GIL for every file of cryptography, but only briefly."""

KEYS_NICE = 5
"""The nice(2) value of the threads that generate keys. Two of them keep two CPUs busy, so without it the main thread, which loads
kb, signs and writes, would fall behind and have to catch up alone after the last key."""

COLLECT_AFTER = 50_000
"""The threshold of the garbage collector, instead of 700 objects. kb creates about this many objects while it starts, and all of
them stay."""


class Making:
    """A value that a thread computes: a minimal Future. (Importing concurrent.futures takes a tenth of the time of one key.)"""

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        self._make, self._args = make, args
        self._is_made = threading.Event()
        self._value: Any = None
        self._error: Optional[Exception] = None

    def run(self) -> None:
        try:
            self._value = self._make(*self._args)
        except Exception as error:
            self._error = error
        self._is_made.set()

    def result(self) -> Any:
        """Wait for the value and return it. Raises whatever computing it raised."""
        self._is_made.wait()
        if self._error is not None:
            raise self._error
        return self._value


def make_in_threads(values: Iterable[Making], *, threads: int = 2) -> None:
    """Start computing `values`, in order, at a lower priority than the rest of this process (nice(2); on Linux each thread has its
    own)."""
    left = deque(values)

    def work() -> None:
        with contextlib.suppress(OSError):
            os.nice(KEYS_NICE)
        with contextlib.suppress(IndexError):  # none is left
            while True:
                left.popleft().run()

    for _ in range(min(threads, len(left))):
        threading.Thread(target=work, name="kb-keys", daemon=True).start()


_keys: list[Making] = []
_second: Optional[threading.Thread] = None


def begin(words: Sequence[str], pki: str = "/etc/kubernetes/pki") -> None:
    """Start what the command line `words` needs. If `pki` contains sa.key, this is a control plane already, and no keys are
    generated."""
    given = {word.partition("=")[0] for word in words}
    if not words or words[0] not in COMMANDS or not given.isdisjoint(LOOKING):
        return
    gc.set_threshold(COLLECT_AFTER)
    if words[0] == "join" and given.isdisjoint(CONTROL_PLANE):
        return
    global _second
    makes_keys = words[0] == "init" or (words[0] == "join" and "--control-plane" in words)
    early = EARLY if makes_keys and not os.path.exists(f"{pki}/sa.key") else 0
    sys.setswitchinterval(SWITCH_S)
    _second = threading.Thread(target=_load, args=(early,), name="kb-headstart")
    _second.start()


def take_keys(limit: int) -> list[Making]:
    """Take up to `limit` of the keys of type ALGORITHM that were started. Each key is returned once."""
    if _second is not None:
        _second.join()
    taken = _keys[:limit]
    del _keys[:limit]
    return taken


def _load(early: int) -> None:
    """Import cryptography, and start generating `early` keys. Errors are ignored: the thread that needs cryptography will get the
    same error."""
    with contextlib.suppress(Exception):
        # first the import that releases the GIL, while the main thread is busiest
        import cryptography.hazmat.bindings._rust  # noqa: F401
        from cryptography.hazmat.primitives.asymmetric import rsa

        if early:
            _keys.extend(Making(rsa.generate_private_key, 65537, 2048) for _ in range(early))
            make_in_threads(_keys)
