"""The copy of kb that its own systemd units run: the keepers and the mirror.

This module decides where the copy is installed, and ensures that only root can replace it. It knows no unit in particular.
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
    """The running kb.pyz; None if kb runs from a checkout."""
    archive = getattr(__loader__, "archive", None)  # type: ignore[name-defined]
    return Path(archive).resolve() if archive else None


def find_installed_kb(host: Host, paths: Paths) -> Path:
    """The path at which units find kb. It has an alternative, because /usr, and with it /usr/local, may be read-only."""
    place = paths.installed_kb
    is_closed = not host.exists(place) and find_read_only_mount(host, place)
    return paths.spare_installed_kb if is_closed else place


def plan_command(host: Host, pyz: Optional[Path], *, paths: Paths, python: str = "") -> str:
    """The command line with which a unit runs kb: the installed copy of kb.pyz, or a checkout in place."""
    checkout = Path(__file__).resolve().parents[2] / "kb.py"
    # a checkout is imported from its own folder, which -I would exclude
    words = ("-I", str(find_installed_kb(host, paths))) if pyz else (str(checkout),)
    return " ".join((python or find_root_python(), *words))


def ensure_installed_kb(host: Host, paths: Paths, *, pyz: Optional[Path]) -> bool:
    """Copy the running kb.pyz to where units find it; return whether that changed anything. A checkout is not copied, since it is
    not a single file. Raises HostError (folder-of-another-user)."""
    place = find_installed_kb(host, paths)
    if pyz is None:
        return False
    _require_root_s(host, place.parent)
    if pyz == place:
        return False
    return host.write_file(place, host.read_bytes(pyz), mode=0o755, owner=(0, 0))


def _require_root_s(host: Host, folder: Path) -> None:
    """Raise HostError if another user could replace what root's services run from this folder. A group with write access to a parent
    folder (Debian's staff, in /usr/local) is accepted: trusting it is the admin's decision."""
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
                f"{part} can be changed by users other than root",
                cause=f"user {found.uid} owns it" if found.uid else f"others can write to it (mode {found.mode:04o})",
                remedy=f"look at it, then: chown root:root {part} && chmod go-w {part}; root's services run from {folder}",
                code="folder-of-another-user",
            )
