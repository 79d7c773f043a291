"""The hook through which Python asks kubeup/startup/native.py for compiled modules, when kb runs from kb.pyz.

Owns: the names that are asked for. Must not: grow. Python compiles this file anew in every run of kb.pyz, while
native.py is needed only where cryptography is. In a checkout it does nothing: the installed packages are used.
kubeup/__init__.py installs it, not __main__.py, so that a spawned or forkserver process of multiprocessing has it too.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

ABSENT = ("bcrypt",)
"""What cryptography takes if it is there, and kb.pyz does not bring: code of somebody else's would run in kb, or break it."""
NAMES = ("cryptography", "cryptography.hazmat.bindings._rust", "_cffi_backend")


class NativeHook:
    """On sys.meta_path, in front."""

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
    """Put the hook in front, when this module itself came from a zip."""
    zip_loader: Any = __spec__.loader
    archive: Optional[str] = getattr(zip_loader, "archive", None)
    if archive is not None and not any(isinstance(finder, NativeHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, NativeHook(archive, zip_loader))
