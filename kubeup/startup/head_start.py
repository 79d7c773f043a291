"""What a command is sure to need and takes long, begun while Python reads the rest of kb.

A second thread unpacks cryptography, 11 MB, and makes a new control plane's first keys: both happen outside Python's
lock, so they cost the start of kb nothing where there is a second processor. Nobody has to wait for it or to know of
it: whoever imports cryptography finds it loaded, or meets the error that the thread met.

Owns: which commands get a start. Must not: import anything of kb, or cryptography before begin(). kb.pyz's
__main__.py calls begin(); in a checkout nobody does. Mirrors nothing of kubeadm, whose code is loaded at once.
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
"""Those that cannot do their work without cryptography."""

LOOKING = ("-h", "--help", "--list")
"""With one of these words a command only tells something."""

ALGORITHM = "RSA-2048"
"""encryptionAlgorithm's default. Where a configuration asks for another, EARLY keys are made for nothing."""

EARLY = 11
"""How many keys are made before it is known how many are wanted: as many as there are files in pki/."""

SWITCH_S = 0.0001
"""How long a thread that waits for Python's lock lets another one go on, in place of 5 ms: the second thread asks for
it at every file of cryptography's, and what it is after is to leave Python soon."""

KEYS_NICE = 5
"""How far the threads that make keys stand back (nice(2)) for the one that reads kb, signs and writes: two of them keep
two processors busy, and what it has not done when the last key is made, it then does alone."""

COLLECT_AFTER = 50_000
"""How many objects are made before Python looks for cycles among them, in place of 700: kb has made that many by the time
it begins to work, all of them there to stay."""


class Making:
    """A value that a thread makes: a Future of few words (concurrent.futures loads for as long as a tenth of a key)."""

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
        """The value, as soon as it is made. Raises what making it raised."""
        self._is_made.wait()
        if self._error is not None:
            raise self._error
        return self._value


def make_in_threads(values: Iterable[Making], *, threads: int = 2) -> None:
    """Begin to make `values`, in their order, behind all else that this process does (nice(2); on Linux each thread has
    a priority of its own)."""
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
    """Begin what the command line `words` needs; `pki` is the folder in whose sa.key an older control plane is seen."""
    if not words or words[0] not in COMMANDS or not set(words).isdisjoint(LOOKING):
        return
    global _second
    makes_keys = words[0] == "init" or (words[0] == "join" and "--control-plane" in words)
    early = EARLY if makes_keys and not os.path.exists(f"{pki}/sa.key") else 0
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(COLLECT_AFTER)
    _second = threading.Thread(target=_load, args=(early,), name="kb-headstart")
    _second.start()


def take_keys(limit: int) -> list[Making]:
    """Up to `limit` of the keys of kind ALGORITHM that were begun, each given away once."""
    if _second is not None:
        _second.join()
    taken = _keys[:limit]
    del _keys[:limit]
    return taken


def _load(early: int) -> None:
    """Load cryptography, and begin `early` keys. An error is left to the thread that needs it and will meet it again."""
    with contextlib.suppress(Exception):
        # first what leaves Python's lock to the other thread, while that one is busiest
        import cryptography.hazmat.bindings._rust  # noqa: F401
        from cryptography.hazmat.primitives.asymmetric import rsa

        if early:
            _keys.extend(Making(rsa.generate_private_key, 65537, 2048) for _ in range(early))
            make_in_threads(_keys)
