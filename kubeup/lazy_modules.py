"""Modules that load at their first use:

    with lazily:
        from kubeup.node import pki, private_keys

kb.py names every phase of every workflow, so importing it imports every phase module. Python recompiles modules from a
zip in every process, and cryptography alone takes a fifth of a second. The phases therefore import the domain lazily,
so that `kb version` or `kb init --list` pays only for what it uses.

Readers and tools see plain imports. Python binds stand-ins; each imports its module when one of its attributes is first
used, and is then replaced by it. Only modules can be imported this way: a function or a class would have to exist
already. Until then a stand-in is not the module itself (`is`, evaluated annotations).
"""

from __future__ import annotations

import builtins
import importlib
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Optional


class _StandIn:
    """Stands in for a module; belongs to the importing module, whose names refer to it."""

    __slots__ = ("_importer", "_name")

    def __init__(self, name: str, importer: dict[str, Any]) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_importer", importer)

    def _load(self) -> Any:
        """The module. Python lets one thread run it while the others wait; then all get the same one."""
        try:
            module = importlib.import_module(self._name)
        except ModuleNotFoundError as error:
            if error.name == self._name:
                raise ImportError(f"{self._name} is no module: `with lazily` imports nothing else") from None
            raise
        for name, value in list(self._importer.items()):
            if value is self:
                self._importer[name] = module
        return module

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._load(), attribute)

    def __setattr__(self, attribute: str, value: object) -> None:
        setattr(self._load(), attribute, value)

    def __delattr__(self, attribute: str) -> None:
        delattr(self._load(), attribute)

    def __dir__(self) -> list[str]:
        return dir(self._load())

    def __repr__(self) -> str:
        return f"<module {self._name!r}, not loaded yet>"


class _Package:
    """What `from package import ...` takes its names from."""

    def __init__(self, name: str, importer: dict[str, Any]) -> None:
        self._name = name
        self._importer = importer

    def __getattr__(self, module: str) -> _StandIn:
        return _StandIn(f"{self._name}.{module}", self._importer)


class _Lazily:
    """The block. Inside it, the import statements of the module that contains it bind stand-ins. Imports of other
    modules, which other threads may be executing, work as usual."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._importers: list[dict[str, Any]] = []
        self._plain = builtins.__import__

    def __enter__(self) -> None:
        with self._lock:
            if not self._importers:
                self._plain = builtins.__import__
                builtins.__import__ = self._import  # type: ignore[assignment]
            self._importers.append(sys._getframe(1).f_globals)

    def __exit__(self, *_: object) -> None:
        importer = sys._getframe(1).f_globals
        with self._lock:
            self._importers = [one for one in self._importers if one is not importer]
            if not self._importers:
                builtins.__import__ = self._plain

    def _import(  # noqa: PLR0917
        self,
        name: str,
        globals: Optional[dict[str, Any]] = None,
        locals: Optional[Mapping[str, Any]] = None,
        fromlist: Optional[Sequence[str]] = (),
        level: int = 0,
    ) -> Any:
        if globals is None or not any(globals is one for one in self._importers):
            return self._plain(name, globals, locals, fromlist or (), level)
        if level or (not fromlist and "." in name):
            raise ImportError(
                f"{globals['__name__']}: write `from package import module` under `with lazily`, not {name}"
            )
        return _Package(name, globals) if fromlist else _StandIn(name, globals)


lazily = _Lazily()
