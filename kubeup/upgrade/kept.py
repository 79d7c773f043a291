"""What is kept of a node as it was before an upgrade, so that it can be taken back: programs, the kubelet's files, manifests.

The folder /var/lib/kb/upgrade holds copies of the former files below `former`, the new programs until they are in place below
`programs`, and what was upgraded in upgrade.json. It stays until `finish` or for seven days; the next upgrade begins a new one. Manifests
may hold a user's secrets, so only root may read any of it, and a reset removes it with everything else that is kb's own. This module
copies and puts back. It does not know which files an upgrade changes, nor when going back is safe. Below `after` are the manifests as the
upgrade left them: what differs from them later is somebody's.

    {"schema": 1, "former": "v1.35.6", "wanted": "v1.36.3", "status": "running", "began": "2026-11-29T10:00:00Z",
     "files": {"/usr/local/bin/kubelet": true, "/var/lib/kubelet/instance-config.yaml": false}, "steps": ["programs"], "notes": {}}
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Optional

from kubeup import moments
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine import record_file
from kubeup.machine.files import CHUNK
from kubeup.machine.host import Host
from kubeup.node import kept_images
from kubeup.paths import Paths

RUNNING, DONE, TAKEN_BACK = "running", "done", "taken back"
LASTS = datetime.timedelta(days=7)
ABANDONED = datetime.timedelta(days=30)
"""How long after its begin an upgrade that never ended counts as given up."""
ROOM = 64 << 20
"""Free space, in bytes, that stays free beside the copies."""
_IMAGES_AT = "images_at"
"""The note with the runtime's socket, where images are kept too."""


@frozen
class Kept:
    """One upgrade of this node. former, wanted: the versions, `v1.35.6`. files: the path of a file that the upgrade may change -> whether
    there was one, so that its copy is kept. steps: what is done of the upgrade. notes: facts that going back needs, by name."""

    former: str
    wanted: str
    status: str = RUNNING
    began: str = ""
    ended: str = ""
    files: Mapping[str, bool] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    def has_done(self, step: str) -> bool:
        return step in self.steps

    @property
    def expires(self) -> Optional[datetime.datetime]:
        """When it is no longer kept; None if that is not known."""
        if self.ended:
            return moments.parse(self.ended) + LASTS
        return moments.parse(self.began) + ABANDONED if self.began else None


def folder(paths: Paths) -> Path:
    return paths.upgrade


def programs_folder(paths: Paths) -> Path:
    """Where new programs wait until they are put in place: on the same machine, verified."""
    return folder(paths) / "programs"


def copy_of(paths: Paths, path: Path) -> Path:
    """Where the copy of a former file is."""
    return folder(paths) / "former" / path.relative_to("/")


def after_of(paths: Paths, path: Path) -> Path:
    """Where the copy of a file as the upgrade left it is."""
    return folder(paths) / "after" / path.relative_to("/")


def _file(paths: Paths) -> Path:
    return folder(paths) / "upgrade.json"


# ---- the record


_SHAPE = {
    "former!": str,
    "wanted!": str,
    "status!": str,
    "began!": str,
    "ended": str,
    "files": {str: bool},
    "steps": [str],
    "notes": {str: str},
}


def load(host: Host, paths: Paths) -> Optional[Kept]:
    """The last upgrade of this node, finished or not; None if nothing is kept of one. Raises HostError (upgrade-unreadable)."""
    path = _file(paths)
    if not host.exists(path):
        return None
    try:
        return _parse(record_file.read(host, path, shape=_SHAPE))
    except (ValueError, TypeError, KeyError) as error:
        raise HostError(
            f"{path} cannot be read",
            cause=f"it does not describe an upgrade of this node: {error}",
            remedy=f"see which version the node runs (kubelet --version), then: mv {path} {path}.damaged",
            code="upgrade-unreadable",
        ) from error


def _parse(found: dict[str, Any]) -> Kept:
    names = {item.name for item in dataclasses.fields(Kept)}
    kept = Kept(**{name: value for name, value in found.items() if name in names and value is not None})
    if kept.status not in (RUNNING, DONE, TAKEN_BACK) or not all(path.startswith("/") for path in kept.files):
        raise ValueError(f"its status is {kept.status!r}")
    for text in filter(None, (kept.began, kept.ended)):
        moments.parse(text)
    return dataclasses.replace(kept, steps=tuple(kept.steps))


def save(host: Host, paths: Paths, kept: Kept) -> Kept:  # noqa: PLR0917
    record_file.write(host, _file(paths), values=dataclasses.asdict(kept))
    return kept


def begin(host: Host, paths: Paths, *, former: str, wanted: str, has_programs: bool = False) -> Kept:
    """The record of the upgrade to `wanted`: that of an earlier run of it, or a new one. What was kept of an earlier upgrade is removed
    then. former: what the node runs now. has_programs: the new programs wait already, and stay."""
    found = load(host, paths)
    if found is not None and found.wanted == wanted and found.status != TAKEN_BACK:
        return found
    if has_programs:
        host.remove(_file(paths))
        host.remove_tree(folder(paths) / "former")
    else:
        _remove(host, paths)
    return save(host, paths, Kept(former, wanted, began=moments.show(host.now())))


def note_done(host: Host, paths: Paths, *, step: str, **notes: str) -> None:
    """Note that a step of the running upgrade is done. Does nothing if none is recorded."""
    found = load(host, paths)
    if found is not None and not (found.has_done(step) and dict(found.notes) == {**found.notes, **notes}):
        steps = found.steps if found.has_done(step) else (*found.steps, step)
        save(host, paths, dataclasses.replace(found, steps=steps, notes={**found.notes, **notes}))


def end(host: Host, paths: Paths, *, status: str) -> None:
    """Note how the upgrade of this node ended: from here on, what is kept is kept for LASTS. RUNNING: a part of the node went back, so the
    upgrade has neither ended nor been taken back. The new programs that were not put in place are removed; the images of a node that went
    back are in use again, and are no longer kept."""
    found = load(host, paths)
    if found is not None and found.status != status:
        if status == TAKEN_BACK:
            release_images(host, paths)
        host.remove_tree(programs_folder(paths))
        ended = "" if status == RUNNING else moments.show(host.now())
        save(host, paths, dataclasses.replace(found, status=status, ended=ended))


def finish(host: Host, paths: Paths) -> bool:
    """Remove everything that is kept; returns whether there was anything."""
    is_there = host.exists(folder(paths))
    _remove(host, paths)
    return is_there


def _remove(host: Host, paths: Paths) -> None:
    """The record first: one that was cut off in the middle would promise copies that are gone."""
    release_images(host, paths)
    host.remove(_file(paths))
    host.remove_tree(folder(paths))


def find_lost(host: Host, paths: Paths, kept: Kept) -> list[Path]:  # noqa: PLR0917
    """The copies that the record has and that are not there any more."""
    copies = (copy_of(paths, Path(name)) for name, was_there in kept.files.items() if was_there)
    return [copy for copy in copies if not host.exists(copy)]


def drop_expired(host: Host, paths: Paths) -> bool:
    """Remove what has been kept for long enough; returns whether that was so. Raises HostError (upgrade-unreadable)."""
    found = load(host, paths)
    expires = found.expires if found is not None else None
    return expires is not None and host.now() > expires and finish(host, paths)


# ---- the images


def keep_images(host: Host, paths: Paths, *, socket: str, images: Iterable[str]) -> str:
    """Have the runtime keep these images while the record is there. Does nothing if no upgrade is recorded. Returns why the kubelet may
    delete them; "" if it will not."""
    if load(host, paths) is None:
        return ""
    note_done(host, paths, step="images", **{_IMAGES_AT: socket})
    return kept_images.keep(host, socket, images=images)


def release_images(host: Host, paths: Paths) -> None:
    """Let the kubelet delete them again."""
    with contextlib.suppress(HostError):  # a damaged record
        found = load(host, paths)
        if found is not None and found.notes.get(_IMAGES_AT):
            kept_images.release(host, found.notes[_IMAGES_AT])


def list_images(host: Host, paths: Paths) -> tuple[str, ...]:
    """The images that are kept, in the runtime's names."""
    with contextlib.suppress(HostError):
        found = load(host, paths)
        if found is not None and found.notes.get(_IMAGES_AT):
            return kept_images.list_kept(host, found.notes[_IMAGES_AT])
    return ()


# ---- the files


def keep(host: Host, paths: Paths, *, files: Iterable[Path]) -> Kept:
    """Copy those of these files that are not kept yet, and note which did not exist. A file that an earlier run of this upgrade has kept
    may be a new one by now, so its copy stays. Raises HostError (disk-full, ...): nothing is lost then.

    An upgrade has to be recorded (begin)."""
    found = load(host, paths)
    if found is None:
        raise ValueError("no upgrade is recorded")
    fresh = [path for path in dict.fromkeys(files) if str(path) not in found.files]
    there = {path: stat for path in fresh if (stat := host.stat(host.real_path(path))) is not None}
    _require_room(host, paths, size=sum(stat.size for stat in there.values()))
    for path in there:
        _copy(host, path, copy_of(paths, path))
    if fresh:
        files_known = {**found.files, **{str(path): path in there for path in fresh}}
        found = save(host, paths, dataclasses.replace(found, files=files_known))
    return found


def keep_after(host: Host, paths: Paths, *, files: Iterable[Path]) -> None:
    """Copy these files as the upgrade left them. Does nothing if no upgrade is recorded."""
    if load(host, paths) is None:
        return
    for path in files:
        if host.exists(path):
            _copy(host, path, after_of(paths, path))


def _require_room(host: Host, paths: Paths, *, size: int) -> None:
    free = host.free_bytes(paths.state_dir)
    if free < size + ROOM:
        raise HostError(
            f"{paths.state_dir} has {free >> 20} MiB of free space",
            cause=f"the node's former programs and files take {size >> 20} MiB there, so that they can come back; nothing was changed",
            remedy=f"make space: du -xh {paths.state_dir} | sort -h | tail",
            code="disk-full",
        )


def _copy(host: Host, path: Path, copy: Path) -> None:  # noqa: PLR0917
    stat = host.stat(host.real_path(path))
    for parent in reversed([one for one in copy.parents if not host.exists(one)]):
        host.make_dir(parent, mode=0o700)
    with host.open_read(path) as file:
        host.write_stream(copy, iter(lambda: file.read(CHUNK), b""), mode=stat.mode if stat else 0o600)
    host.copy_attributes(host.real_path(path), copy)


def is_as_kept(host: Host, paths: Paths, path: Path) -> bool:  # noqa: PLR0917
    """Whether a small file is as it was kept; True for one that was not kept."""
    found = load(host, paths)
    was_there = found.files.get(str(path)) if found is not None else None
    if was_there is None:
        return True
    return was_there == host.exists(path) and (
        not was_there or host.read_bytes(path) == host.read_bytes(copy_of(paths, path))
    )


def put_back(host: Host, paths: Paths, *, files: Iterable[Path]) -> list[Path]:
    """Give these files the content that was kept, or remove those that did not exist; what was not kept stays, and so does what has that
    content, for which a disk that is full has no room. Each is whole at every moment, so a program that runs may be replaced. Returns the
    paths, in their order. Raises HostError."""
    found = load(host, paths)
    known = found.files if found is not None else {}
    done = []
    for path in files:
        if str(path) not in known:
            continue
        if known[str(path)]:
            _put_back_copy(host, paths, path)
        else:
            host.remove(path)
        done.append(path)
    return done


def _put_back_copy(host: Host, paths: Paths, path: Path) -> None:  # noqa: PLR0917
    """Where the disk has filled up meanwhile, the new programs make room, which can be fetched again."""
    copy = copy_of(paths, path)
    if _is_same(host, copy, path):
        return
    try:
        _write_back(host, copy, path)
    except HostError as error:
        if error.code != "disk-full" or not host.exists(programs_folder(paths)):
            raise
        host.remove_tree(programs_folder(paths))
        _write_back(host, copy, path)


def _write_back(host: Host, copy: Path, path: Path) -> None:  # noqa: PLR0917
    stat = host.stat(copy)
    with host.open_read(copy) as file:
        host.write_stream(path, iter(lambda: file.read(CHUNK), b""), mode=stat.mode if stat else 0o600)
    host.copy_attributes(copy, host.real_path(path))


def _is_same(host: Host, copy: Path, path: Path) -> bool:  # noqa: PLR0917
    one, other = host.stat(copy), host.stat(host.real_path(path))
    if one is None or other is None or (one.size, one.mode) != (other.size, other.mode):
        return False
    with host.open_read(copy) as first, host.open_read(path) as second:
        while piece := first.read(CHUNK):
            if piece != second.read(CHUNK):
                return False
    return True
