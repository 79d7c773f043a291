"""What is wrong, why, and the one thing to do: the result of every search for a cause.

A KbError says the same and ends a command. Other pairs of a text and a remedy differ, and their docstrings say how: a
check's finding (diagnosis/checks/facts.py), a configuration's problem (config/problems.py), a row in a table of signs,
the runtime's status (node/runtime.py).
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
    """ "etcd exited 1 time (code 1): its disk is full. Remedy: make space" """
    return f"{trouble}. Remedy: {trouble.remedy}"
