"""Undoes what kb did on this node.

This module reads the journal: which files to remove, which backups to restore, which lines to remove from files of others, and in
which order. It touches only paths in the journal, and none that was adopted. It knows nothing of phases.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from kubeup.engine.state import State, parse_owner
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.files import is_leftover
from kubeup.machine.host import Host
from kubeup.paths import Paths

# Folders that kb never removes, even if it created them: other programs use them too.
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
    """A file that existed before kb, to be restored from `copy`; or a link, to be restored with the target `link`."""

    path: Path
    copy: Path
    mode: int
    owner: tuple[int, int]
    link: str = ""


@frozen
class OwnLines:
    """A file of others in which the lines with this mark are kb's. before: its backup; None if it did not exist."""

    path: Path
    mark: str
    before: Optional[Restore]


@frozen
class UndoPlan:
    """Files to restore, files and folders to remove (deepest first), files of others with lines of kb's, and sentences about what is
    left in place."""

    restores: tuple[Restore, ...]
    removals: tuple[Path, ...]
    lines: tuple[OwnLines, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.restores or self.removals or self.lines)


_MARKS_OF_BEFORE = {Path("/etc/hosts"): "# kb: the API servers, through this node's load balancer"}
"""The only file of others that contained a line of kb's before kb stored marks in the state."""


def plan_undo(state: State) -> UndoPlan:
    """Plan the undo from the journal, read backwards. Files outside kb's workplaces stay, so that a faulty state never costs
    anybody else's file."""
    restores = {
        entry["path"]: Restore(
            Path(entry["path"]),
            Path(entry.get("copy", "")),  # A link has no copy: its target is the backup.
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
    lines = [
        OwnLines(path, mark, restores.get(str(path)))
        for path, mark in _find_marks(state).items()
        if path not in strays and (path in made or (str(path) in restores and not restores[str(path)].link))
    ]
    others = {*strays, *(entry.path for entry in lines)}
    removals = sorted(made - others, key=lambda path: (len(path.parts), str(path)), reverse=True)
    return UndoPlan(
        tuple(entry for entry in restores.values() if entry.path not in others),
        tuple(removals),
        tuple(lines),
        tuple(f"{path} stays as it is: {state.paths.state} names it, but kb does not work there" for path in strays),
    )


def _find_marks(state: State) -> dict[Path, str]:
    before = {place: mark for path, mark in _MARKS_OF_BEFORE.items() for place in (path, state.host.real_path(path))}
    return {**before, **{Path(text): mark for text, mark in state.marks.items()}}


def restore_and_remove(host: Host, plan: UndoPlan) -> list[str]:
    """Carry out the plan as far as possible. Returns sentences about what was left in place: folders that hold files of others,
    files whose backup is lost. Raises HostError (undo-incomplete) if some files could not be changed."""
    left, refused = list(plan.left), []
    steps: list[Callable[[], list[str]]] = [
        *(functools.partial(_restore, host, entry) for entry in plan.restores),
        *(functools.partial(_take_out, host, entry) for entry in plan.lines),
        *(functools.partial(_remove, host, path) for path in plan.removals),
    ]
    for take_back in steps:
        try:
            left.extend(take_back())
        except HostError as error:
            refused.append(str(error))
    if refused:
        raise HostError(
            f"{len(refused)} files could not be restored or removed",
            cause=refused[0],
            remedy="fix that, then run the command again (files that were restored stay restored)",
            code="undo-incomplete",
            details=refused,
        )
    return left


def _restore(host: Host, entry: Restore) -> list[str]:
    if entry.link:
        host.symlink(entry.path, entry.link)
        return []
    if not host.exists(entry.copy):
        return [f"{entry.path} stays as kb left it: its backup is lost ({entry.copy})"]
    if host.read_link(entry.path) is not None:
        host.remove(entry.path)  # kb's own link: writing through it would change its target
    host.write_file(entry.path, host.read_bytes(entry.copy), mode=entry.mode, owner=entry.owner)
    host.copy_attributes(entry.copy, entry.path)
    return []


def _take_out(host: Host, entry: OwnLines) -> list[str]:
    """Remove kb's lines and keep what others have written since. If they wrote nothing, restore the file byte for byte: kb may have
    added a newline to its last line."""
    if host.read_link(entry.path) is not None and not host.exists(host.real_path(entry.path)):
        return (
            _restore(host, entry.before) if entry.before else _remove(host, entry.path)
        )  # it leads nowhere: kb's lines are gone
    found = host.read_bytes(entry.path) if host.exists(entry.path) else b""
    rest = b"".join(line for line in found.splitlines(keepends=True) if entry.mark.encode() not in line)
    if entry.before is None:
        before: Optional[bytes] = b""
    else:
        before = host.read_bytes(entry.before.copy) if host.exists(entry.before.copy) else None
    if before is not None and before.rstrip(b"\n") == rest.rstrip(b"\n"):
        return _restore(host, entry.before) if entry.before else _remove(host, entry.path)
    if rest != found:
        host.write_file(entry.path, rest, keeps=True)
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
        "drift",
        "former-certs",
        "load-balancer.json",
        "mirror",
        "pod-network.json",
        "readdress",
        "reboot",
        "records",
        "restore",
        "staging",
        "swap",
        "try",
        "upgrade",
    )
)
"""What kb keeps in its own folder besides the state and the lock. Those two are removed last, so that until then reset can be
run again."""


def remove_remains(host: Host, paths: Paths) -> None:
    """Remove what is left of kb's own folder if a reset was killed after it had removed the state: the lock, and the folder."""
    if host.list_dir(paths.state_dir) in ([], [paths.lock.name]):
        take_away(host, paths)


def take_away(host: Host, paths: Paths) -> list[str]:
    """Remove kb's own folder, except for files of others. If the folder itself is a link or a mount, it stays. Returns sentences
    about what was left."""
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
        with contextlib.suppress(HostError):  # a separate disk is mounted there
            host.remove(folder)
    return []
