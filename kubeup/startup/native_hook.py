"""The import hook that calls kubeup/startup/native.py for compiled modules, when kb runs from kb.pyz.

Keep this file small: Python compiles it in every run of kb.pyz, while native.py is loaded only with cryptography. In a checkout the
hook does nothing, and the installed packages are used. It is installed by kubeup/__init__.py rather than __main__.py, so that spawned
and forkserver processes of multiprocessing have it too.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

ABSENT = ("bcrypt",)
"""Modules that cryptography uses if installed, and that kb.pyz does not include. Foreign code would run in kb, or break it."""
NAMES = ("cryptography", "cryptography.hazmat.bindings._rust", "_cffi_backend")


class NativeHook:
    """A finder at the front of sys.meta_path."""

    def __init__(self, archive: str, zip_loader: Any) -> None:
        self._archive = archive
        self._zip = zip_loader

    def find_spec(self, name: str, path: object = None, target: object = None) -> Optional[ModuleSpec]:  # noqa: PLR0917
        if name in ABSENT:
            raise ModuleNotFoundError(f"kb.pyz brings no {name}", name=name)
        if name not in NAMES:
            return None
        from kubeup.startup.native import NativeFinder

        return NativeFinder(self._archive, self._zip).find_spec(name)


def install() -> None:
    """Put the hook in front of sys.meta_path, if this module was itself loaded from a zip."""
    zip_loader: Any = __spec__.loader
    archive: Optional[str] = getattr(zip_loader, "archive", None)
    if archive is not None and not any(isinstance(finder, NativeHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, NativeHook(archive, zip_loader))
