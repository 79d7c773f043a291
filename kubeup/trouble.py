"""The result of every search for a cause: what is wrong, why, and the one thing to do.

A KbError holds the same fields and ends a command. Similar types differ, as their docstrings say: a check's finding
(diagnosis/checks/facts.py), a configuration's problem (config/problems.py), a row in a table of signs, and the runtime's
status (node/runtime.py).
"""

from __future__ import annotations

from typing import Union

from kubeup.errors import KbError
from kubeup.frozen_values import frozen


@frozen
class Trouble:
    """what: the object and its current value; cause: why; remedy: one thing to do. None of them is empty."""

    what: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.cause}"


def advise(trouble: Union[Trouble, KbError]) -> str:
    """One line for the user: "etcd exited 1 time (code 1): its disk is full. Remedy: make space"."""
    return f"{trouble}. Remedy: {trouble.remedy}"
