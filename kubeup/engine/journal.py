"""JournalHost: registers the undo before each change.

It wraps the host that a phase works on. Each path that the phase creates or overwrites is written to the state first, with a
copy of what was there. Undoing is the job of reset, not of this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, Union

from kubeup.engine.state import PhaseState, State
from kubeup.machine.files import CHUNK, is_leftover, is_saved
from kubeup.machine.host import Argv, CommandResult, Host, encode_text

_CHANGES = frozenset(
    (
        "append",
        "rename",
        "lock",
        "listen",
        "http_upload",
        "write_output",
        "make_private_dir",
        "put_back",
        "copy_attributes",
    )
)
"""Changes that a phase makes through another host, if at all."""


class JournalHost:
    """A host that records, in `entry` of `state`, each file that it is about to create or change."""

    def __init__(self, inner: Host, state: State, *, key: str, entry: PhaseState) -> None:
        self._inner = inner
        self._state = state
        self._key = key
        self._entry = entry
        self.changed_files: list[str] = []
        self.commands: list[str] = []
        self._tried: set[Path] = set()
        """Files that were not there before this phase wrote them."""
        self.is_live = inner.is_live
        self.mode = inner.mode

    def __getattr__(self, verb: str) -> Any:
        """Pass looks on to the inner host. Changes must be methods of this class, which know how to undo them."""
        if verb in _CHANGES:
            raise AttributeError(f"{verb} would change the machine without a word in the journal")
        return getattr(self._inner, verb)

    def expect(self, paths: Iterable[Path]) -> None:
        """Register all files that the phase, or a program on its behalf, will create, in one write of the state."""
        fresh = [str(path) for path in paths if not self._inner.exists(path)]
        for text in fresh:
            self._state.remember_folder(Path(text))
        new = [path for path in fresh if path not in self._entry.created]
        if new:
            self._entry.created.extend(new)
            self._state.save()

    def forget_unmade(self) -> None:
        """Drop registered paths that do not exist: what appears there later is not kb's to undo. Paths that a command of the phase
        created, such as a unit's link, do exist and stay registered."""
        self._entry.created[:] = [path for path in self._entry.created if self._inner.exists(Path(path))]

    def write_file(
        self,
        path: Path,
        data: Union[bytes, str],
        *,
        mode: int = 0o644,
        owner: Optional[tuple[int, int]] = None,
        keeps: bool = False,
    ) -> bool:
        wanted = encode_text(data, path) if isinstance(data, str) else data
        self._register(path, wanted, rights=None if keeps else (mode, owner))
        return self._count(path, self._inner.write_file(path, wanted, mode=mode, owner=owner, keeps=keeps))

    def write_stream(self, path: Path, chunks: Iterable[bytes], *, mode: int = 0o644) -> None:
        """Files in kb's own folder need no journal: reset removes the whole folder."""
        if self._state.paths.state_dir in path.parents:
            self._inner.write_stream(path, chunks, mode=mode)
            return
        self._register_over(self._inner.real_path(path))
        self._inner.write_stream(path, chunks, mode=mode)
        self._count(path, True)

    def move_file(self, source: Path, path: Path) -> None:
        if self._state.paths.state_dir in path.parents:
            self._inner.move_file(source, path)
            return
        self._register_over(path)
        self._inner.move_file(source, path)
        self._count(path, True)

    def make_dir(self, path: Path, *, mode: int = 0o755) -> bool:
        self._register(path, None, is_folder=True)
        return self._inner.make_dir(path, mode=mode)

    def symlink(self, path: Path, target: str) -> bool:
        if self._inner.read_link(path) != target:
            self._register_over(path)
        return self._count(path, self._inner.symlink(path, target))

    def remove(self, path: Path) -> bool:
        if self._state.paths.state_dir in path.parents:
            return self._inner.remove(path)
        self._back_up(path)
        is_removed = self._inner.remove(path)
        if is_removed and path in self._tried:
            # created and removed by the same phase: it was a trial, so nothing has changed
            self.changed_files = [name for name in self.changed_files if name != str(path)]
            return True
        return self._count(path, is_removed)

    def remove_tree(self, path: Path) -> bool:
        """Remove what programs wrote on kb's behalf (data of etcd or a kubelet). It is not backed up."""
        return self._count(path, self._inner.remove_tree(path))

    def run(
        self, argv: Argv, *, timeout_s: float = 300, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult:
        done = self._inner.run(argv, timeout_s=timeout_s, env=env, stdin=stdin)
        self.commands.append(" ".join(done.argv))
        return done

    # ---- the journal

    def register(self, compensation: Mapping[str, str]) -> None:
        """Register how to undo a change outside this node, before an act makes it."""
        if dict(compensation) not in self._entry.compensations:
            self._entry.compensations.append(dict(compensation))
            self._state.save()

    def withdraw(self, compensation: Mapping[str, str]) -> None:
        """Drop a compensation whose change was undone, or was never made."""
        if dict(compensation) in self._entry.compensations:
            self._entry.compensations.remove(dict(compensation))
            self._state.save()

    def mark_lines(self, path: Path, mark: str) -> None:
        """Register the mark of kb's lines in a file of others, before the first one is added."""
        real = str(self._inner.real_path(path) if self._inner.read_link(path) is not None else path)
        if self._state.marks.get(real) != mark:
            self._state.marks[real] = mark
            self._state.save()

    def tell_changed(self, paths: Iterable[Path]) -> None:
        self.changed_files.extend(str(path) for path in paths)

    def _register_over(self, path: Path) -> None:
        """Register that `path` itself is about to be replaced."""
        if self._inner.exists(path) and not self._inner.is_dir(path):
            self._back_up(path)
        else:
            self._register(path, None)

    def _register(
        self,
        path: Path,
        wanted: Optional[bytes],
        *,
        rights: Optional[tuple[int, Optional[tuple[int, int]]]] = None,
        is_folder: bool = False,
    ) -> None:
        """Register or back up a path before it changes. rights: the mode and owner that the file will get; None if they stay."""
        if self._inner.exists(path):
            # a link stays; its target changes
            real = self._inner.real_path(path) if self._inner.read_link(path) is not None else path
            if wanted is not None and self._inner.exists(real):
                if self._differs(real, wanted, rights=rights):
                    self._back_up(real)
                return
            path = real
            if self._inner.exists(path):
                return
        self._tried.add(path)
        made = [parent for parent in (path, *path.parents) if not self._inner.exists(parent)]
        fresh = [str(place) for place in reversed(made) if str(place) not in self._entry.created]
        if fresh:
            self._state.remember_folder(path, is_folder=is_folder)
            self._entry.created.extend(fresh)
            self._state.save()

    def _differs(self, path: Path, wanted: bytes, *, rights: Optional[tuple[int, Optional[tuple[int, int]]]]) -> bool:
        found = self._inner.stat(path)
        if found is None or found.is_dir:
            return False
        if rights is not None and (found.mode != rights[0] or rights[1] not in (None, (found.uid, found.gid))):
            return True
        return self._inner.read_bytes(path) != wanted

    def _back_up(self, path: Path) -> None:
        """Copy a file that kb did not create, before its first change."""
        text = str(path)
        is_known = any(text == backup["path"] for phase in self._state.phases.values() for backup in phase.backups)
        found = self._inner.stat(path)
        if is_known or found is None or (found.is_dir and not found.is_symlink) or text in self._state.created_paths():
            return
        self._state.remember_folder(path)
        link = self._inner.read_link(path)
        if link is not None:
            self._entry.backups.append({"path": text, "copy": "", "link": link})
            self._state.save()
            return
        folder = self._state.paths.backups / self._key.replace("/", "-")
        copy = folder / f"{len(self._entry.backups)}-{path.name}"
        self._inner.make_dir(self._state.paths.backups, mode=0o700)
        self._inner.make_dir(folder, mode=0o700)
        with self._inner.open_read(path) as file:  # as large as a kubelet
            self._inner.write_stream(copy, iter(lambda: file.read(CHUNK), b""), mode=0o600)
        self._inner.copy_attributes(path, copy)
        self._entry.backups.append(
            {"path": text, "copy": str(copy), "mode": f"{found.mode:04o}", "owner": f"{found.uid}:{found.gid}"}
        )
        self._state.save()

    def _count(self, path: Path, is_changed: bool) -> bool:
        if is_changed:
            self.changed_files.append(str(path))
        return is_changed


def remove_leftovers(host: Host, state: State) -> list[Path]:
    """Remove the half-written files, perhaps private keys, that a killed kb left behind, and return their paths.

    A mounted file that was being written gets its content back. All folders that the journal names are searched. Call this only
    with the lock held, or the files of another kb that is still running would go too."""
    folders = {state.paths.state_dir, state.paths.records}
    for key, phase in state.phases.items():
        folders.add(state.paths.backups / key.replace("/", "-"))
        folders.update(Path(text).parent for text in phase.created)
        folders.update(Path(entry["path"]).parent for entry in phase.backups)
    found = [folder / name for folder in sorted(folders) for name in host.list_dir(folder)]
    for path in found:
        if is_saved(path.name):
            host.put_back(path)
    return [path for path in found if is_leftover(path.name) and host.remove(path)]
