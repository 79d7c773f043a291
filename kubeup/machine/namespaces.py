"""Calls from inside the network of another process: for programs that kb runs where nothing else reaches them.

Linux changes the network of one thread, so a thread of its own does it, and its sockets, old and new, stay there. Only for looks at
programs that kb itself has started.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Callable, Optional, TypeVar

from kubeup.errors import HostError

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


def call_inside(pid: int, function: Callable[[], T]) -> T:
    """What the function returns, called by a thread in the network namespace of the process. Raises what it raises, and HostError
    (no-such-network) if the process has ended."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            _enter(pid)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _enter(pid: int) -> None:
    error: Optional[OSError] = None
    try:
        descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
                error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(descriptor)
    except OSError as failed:
        error = failed
    if error is not None:
        raise HostError(
            f"the network of process {pid} cannot be entered",
            cause=str(error.strerror),
            remedy="see whether it still runs, and that kb runs as root",
            code="no-such-network",
        ) from error
