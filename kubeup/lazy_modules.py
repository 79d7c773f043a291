"""Modules that load at their first use.

kb.py names every phase of every workflow, so importing it touches every phase module. Python compiles what it
imports from a zip anew in every process, and cryptography alone costs a fifth of a second: the phases therefore
name the domain through lazy_import, and `kb version` or `kb init --list` pays for nothing it does not use.
"""

from __future__ import annotations

import importlib
import types
from typing import Any


class _LazyModule(types.ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.__name__), attribute)


def lazy_import(name: str) -> Any:
    """Stand in for the module `name` (absolute, dotted) until one of its attributes is asked for."""
    return _LazyModule(name)
