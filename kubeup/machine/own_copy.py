"""The copy of kb that its own units run: the keepers, the mirror.

Owns where it lies and that nobody but root can exchange it. Must not decide which units there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from kubeup.errors import HostError
from kubeup.machine.host import Host
from kubeup.machine.mounts import find_read_only_mount
from kubeup.machine.process import find_root_python
from kubeup.paths import Paths


def find_running_pyz() -> Optional[Path]:
    """The kb.pyz that runs now; None where kb runs from a checkout."""
    archive = getattr(__loader__, "archive", None)  # type: ignore[name-defined]
    return Path(archive).resolve() if archive else None


def find_installed_kb(host: Host, paths: Paths) -> Path:
    """Where units find kb: /usr may be read-only, and /usr/local with it."""
    place = paths.installed_kb
    is_closed = not host.exists(place) and find_read_only_mount(host, place)
    return paths.spare_installed_kb if is_closed else place


def plan_command(host: Host, pyz: Optional[Path], *, paths: Paths, python: str = "") -> str:
    """The command line by which a unit runs kb: the installed copy of a pyz, a checkout where it lies."""
    checkout = Path(__file__).resolve().parents[2] / "kb.py"
    # a checkout is imported from its own folder, which -I leaves out
    words = ("-I", str(find_installed_kb(host, paths))) if pyz else (str(checkout),)
    return " ".join((python or find_root_python(), *words))


def ensure_installed_kb(host: Host, paths: Paths, *, pyz: Optional[Path]) -> bool:
    """Copy the running kb.pyz to where units find it; return whether that changed anything. A checkout is not
    copied: it is no single file. Raises HostError (folder-of-another-user)."""
    place = find_installed_kb(host, paths)
    if pyz is None:
        return False
    _require_root_s(host, place.parent)
    if pyz == place:
        return False
    return host.write_file(place, host.read_bytes(pyz), mode=0o755, owner=(0, 0))


def _require_root_s(host: Host, folder: Path) -> None:
    """Raise HostError where another user could exchange what services of root's run from this folder. A group that an admin
    lets write above it (Debian's staff, in /usr/local) is his to trust."""
    if not host.is_live:
        return
    for part in (folder, *folder.parents, host.real_path(folder), *host.real_path(folder).parents):
        found = host.stat(part)
        if found is None:
            continue
        open_to = 0o022 if part in (folder, host.real_path(folder)) else 0o002
        is_open = found.mode & open_to and not found.is_symlink and not found.mode & 0o1000
        if found.uid != 0 or is_open:
            raise HostError(
                f"{part} is not root's alone",
                cause=f"user {found.uid} owns it" if found.uid else f"others can write to it (mode {found.mode:04o})",
                remedy=f"look at it, then: chown root:root {part} && chmod go-w {part}; services of root's are to run from {folder}",
                code="folder-of-another-user",
            )
