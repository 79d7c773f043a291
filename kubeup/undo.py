"""What kb made on this node, and how it is taken back.

Owns the reading of the journal: which files go, which backups come back, in which order. Touches no path that is
not in the journal, and none that was adopted. Must not know phases.
"""

from __future__ import annotations

from pathlib import Path

from kubeup.frozen import frozen
from kubeup.host import Host
from kubeup.state import State, parse_owner

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
    """Files to put back, files and folders to remove (deepest first)."""

    restores: tuple[Restore, ...]
    removals: tuple[Path, ...]

    @property
    def is_empty(self) -> bool:
        return not self.restores and not self.removals


def plan_undo(state: State) -> UndoPlan:
    """The journal, read backwards."""
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
    own = {str(state.paths.state_dir), str(state.paths.state), str(state.paths.lock)}
    made = state.created_paths() - kept - own
    removals = sorted((Path(text) for text in made), key=lambda path: (len(path.parts), str(path)), reverse=True)
    return UndoPlan(tuple(restores.values()), tuple(removals))


def restore_and_remove(host: Host, plan: UndoPlan) -> list[str]:
    """Do it; returns what was left where it is, in words: folders that hold files of others."""
    left = []
    for entry in plan.restores:
        if entry.link:
            host.symlink(entry.path, entry.link)
        elif host.exists(entry.copy):
            if host.read_link(entry.path) is not None:
                host.remove(entry.path)  # kb's own: what it leads to is none of this file's
            host.write_file(entry.path, host.read_bytes(entry.copy), mode=entry.mode, owner=entry.owner)
    for path in plan.removals:
        if not host.exists(path):
            continue
        if host.is_dir(path) and host.list_dir(path):
            left.append(f"{path} holds files that kb did not make: {', '.join(host.list_dir(path)[:3])}")
            continue
        host.remove(path)
    return left
