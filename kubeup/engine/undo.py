"""What kb made on this node, and how it is taken back.

Owns the reading of the journal: which files go, which backups come back, in which order. Touches no path that is
not in the journal, and none that was adopted. Must not know phases.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from kubeup.engine.state import State, parse_owner
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.files import is_leftover
from kubeup.machine.host import Host
from kubeup.paths import Paths

# Folders that kb never takes away even where it made them: other programs lie in them too.
_SHARED = tuple(
    Path(name)
    for name in (
        "/",
        "/etc",
        "/var",
        "/var/lib",
        "/usr",
        "/usr/local",
        "/usr/local/lib",
        "/usr/local/bin",
        "/usr/local/sbin",
        "/etc/systemd",
        "/etc/systemd/system",
        "/opt",
    )
)


@frozen
class Restore:
    """A file that was there before kb: its content comes back from `copy`; or a link, which said `link`."""

    path: Path
    copy: Path
    mode: int
    owner: tuple[int, int]
    link: str = ""


@frozen
class UndoPlan:
    """Files to put back, files and folders to remove (deepest first), and what is left where it is, in words."""

    restores: tuple[Restore, ...]
    removals: tuple[Path, ...]
    left: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.restores and not self.removals


def plan_undo(state: State, *, apart: frozenset[Path] = frozenset()) -> UndoPlan:
    """The journal, read backwards. What lies where kb never works stays: no slip in the state costs a file of others. apart:
    files out of which kb's part was taken already."""
    restores = {
        entry["path"]: Restore(
            Path(entry["path"]),
            Path(entry.get("copy", "")),  # A link has no copy: its text is the backup.
            int(entry.get("mode", "0644"), 8),
            parse_owner(entry.get("owner", "0:0")),
            entry.get("link", ""),
        )
        for phase in state.phases.values()
        for entry in reversed(phase.backups)
    }
    kept = {*state.adopted, *restores, *(str(path) for path in _SHARED)}
    made = {Path(text) for text in state.created_paths() - kept}
    made = {path for path in made if path != state.paths.state_dir and state.paths.state_dir not in path.parents}
    strays = sorted(path for path in {*made, *map(Path, restores)} if not state.is_workplace(path))
    removals = sorted(made.difference(strays, apart), key=lambda path: (len(path.parts), str(path)), reverse=True)
    return UndoPlan(
        tuple(entry for entry in restores.values() if entry.path not in {*strays, *apart}),
        tuple(removals),
        tuple(f"{path} stays as it is: {state.paths.state} names it, but kb does not work there" for path in strays),
    )


def restore_and_remove(host: Host, plan: UndoPlan) -> list[str]:
    """Do it, all that can be done; returns what was left where it is, in words: folders that hold files of others, files
    whose copy is lost. Raises HostError (undo-incomplete) where the machine refused something."""
    left, refused = list(plan.left), []
    for entry in plan.restores:
        try:
            left.extend(_restore(host, entry))
        except HostError as error:
            refused.append(str(error))
    for path in plan.removals:
        try:
            left.extend(_remove(host, path))
        except HostError as error:
            refused.append(str(error))
    if refused:
        raise HostError(
            f"{len(refused)} files could not be taken back",
            cause=refused[0],
            remedy="see to it, then run the command again (what came back already stays so)",
            code="undo-incomplete",
            details=refused,
        )
    return left


def _restore(host: Host, entry: Restore) -> list[str]:
    if entry.link:
        host.symlink(entry.path, entry.link)
        return []
    if not host.exists(entry.copy):
        return [f"{entry.path} stays as kb left it: the copy of what was there is lost ({entry.copy})"]
    if host.read_link(entry.path) is not None:
        host.remove(entry.path)  # kb's own: what it leads to is none of this file's
    host.write_file(entry.path, host.read_bytes(entry.copy), mode=entry.mode, owner=entry.owner)
    host.copy_attributes(entry.copy, entry.path)
    return []


def _remove(host: Host, path: Path) -> list[str]:
    if not host.exists(path):
        return []
    if host.is_dir(path) and host.read_link(path) is None and host.list_dir(path):
        return [f"{path} holds files that kb did not make: {', '.join(host.list_dir(path)[:3])}"]
    host.remove(path)
    return []


_OWN = frozenset(
    (
        "adopted-init.yaml",
        "adopted-join.yaml",
        "backups",
        "downloads",
        "load-balancer.json",
        "mirror",
        "pod-network.json",
        "records",
        "staging",
    )
)
"""What kb keeps in its own folder, beside the state and the lock, which go last: until then reset can be run again."""


def take_away(host: Host, paths: Paths) -> list[str]:
    """Remove kb's own folder, but for what others put there; a link or a mount in its place stays. Returns what was left, in
    words."""
    folder = paths.state_dir
    last = [paths.state.name, paths.lock.name]
    names = host.list_dir(folder)
    own = [name for name in names if name in _OWN or is_leftover(name)]
    for path in [folder / name for name in (*own, *(name for name in last if name in names))]:
        if not host.remove_tree(path):
            host.remove(path)
    others = sorted(set(names) - {*own, *last})
    if others:
        return [f"{folder} holds files that kb did not make: {', '.join(others[:3])}"]
    if host.is_dir(folder) and host.read_link(folder) is None:
        with contextlib.suppress(HostError):  # a disk of its own is mounted there
            host.remove(folder)
    return []
