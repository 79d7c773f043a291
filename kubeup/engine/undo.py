"""What kb made on this node, and how it is taken back.

Owns the reading of the journal: which files go, which backups come back, which lines are taken out of files of others, in which
order. Touches no path that is not in the journal, and none that was adopted. Must not know phases.
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
class OwnLines:
    """A file of others, of which the lines with this mark are kb's. before: what it was; None where it was not there."""

    path: Path
    mark: str
    before: Optional[Restore]


@frozen
class UndoPlan:
    """Files to put back, files and folders to remove (deepest first), files of others with lines of kb's, and what is left where it
    is, in words."""

    restores: tuple[Restore, ...]
    removals: tuple[Path, ...]
    lines: tuple[OwnLines, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.restores or self.removals or self.lines)


_MARKS_OF_BEFORE = {Path("/etc/hosts"): "# kb: the API servers, through this node's load balancer"}
"""The one file of others in which kb had a line when it did not write marks into the state."""


def plan_undo(state: State) -> UndoPlan:
    """The journal, read backwards. What lies where kb never works stays: no slip in the state costs a file of others."""
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
    """Do it, all that can be done; returns what was left where it is, in words: folders that hold files of others, files
    whose copy is lost. Raises HostError (undo-incomplete) where the machine refused something."""
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


def _take_out(host: Host, entry: OwnLines) -> list[str]:
    """What others wrote since stays. Where they wrote nothing, the file is as before, to the byte: a last line without its end may have
    got one from kb."""
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
