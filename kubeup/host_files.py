"""How files are replaced, followed and removed: what LocalHost's verbs do to a disk.

Owns the rules. A link stays a link, and is followed only if nobody else could have laid it; a file is replaced whole, by one
beside its real place; below --root every link means what it means under chroot; nothing that is mounted is removed. Works on paths
of this machine and raises OSError; LocalHost says what that means. Mirrors os.WriteFile and filepath.EvalSymlinks, where kubeadm
uses them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Optional

_MAX_LINKS = 40
"""As the kernel allows on the way to one file (path_resolution(7))."""


class UnsafeLink(OSError):
    """A link that somebody else may have laid: kb would write where he wants. `strerror` says which."""


# ---- where a path leads


def resolve_below(root: Path, path: Path, *, follows_last: bool) -> Path:
    """Where `path` of a machine whose root is the folder `root` lies: links and `..` mean what they mean under chroot.
    follows_last: also through the last component. Raises OSError (ELOOP)."""
    left, found, links = list(path.parts[1:]), root, 0
    while left:
        name = left.pop(0)
        if name == "..":
            found = found.parent if found != root else root
            continue
        place = found / name
        if (left or follows_last) and place.is_symlink():
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = Path(os.readlink(place))
            found, left = (root if target.is_absolute() else found), [*target.parts[target.is_absolute() :], *left]
            continue
        found = place
    return found


def follow_safely(place: Path) -> Path:
    """The file that `place` leads to, links followed one by one. Raises UnsafeLink, OSError (ELOOP).

    A link is followed if root or the caller owns it, or nobody else can write to its folder: in a folder like /tmp it could be
    anybody's, as the kernel's fs.protected_symlinks has it.
    """
    for _ in range(_MAX_LINKS):
        try:
            found = os.lstat(place)
        except FileNotFoundError:
            return place
        if not stat.S_ISLNK(found.st_mode):
            return place
        folder = os.stat(place.parent)
        if found.st_uid not in (0, os.geteuid()) and (folder.st_mode & 0o022 or folder.st_uid not in (0, os.geteuid())):
            raise UnsafeLink(
                errno.EPERM, f"{place} is a link of user {found.st_uid}, who decides where it leads", str(place)
            )
        place = Path(os.path.normpath(place.parent.resolve() / os.readlink(place)))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(place))


# ---- whose a file is


def is_root_s_alone(path: Path) -> bool:
    """Whether nobody but root can change what `path` is: root owns every component on the way, links included, and nobody
    else can write to one (a folder like /tmp, where only an entry's owner can, is taken on the way)."""
    for place in (path, Path(os.path.realpath(path))):
        for part in (place, *place.parents):
            try:
                found = os.lstat(part)
            except OSError:
                return False
            is_link = stat.S_ISLNK(found.st_mode)
            is_sticky = stat.S_ISDIR(found.st_mode) and bool(found.st_mode & stat.S_ISVTX)
            if found.st_uid != 0 or (found.st_mode & 0o022 and not is_link and not is_sticky):
                return False
    return True


# ---- replacing


def temporary_name(name: str) -> str:
    return f".{name[:200]}.kb-{os.getpid()}-{threading.get_ident():x}"


def is_leftover(name: str) -> bool:
    """Whether a file of this name is half-written: what a kb that was killed leaves beside the file it meant."""
    return re.fullmatch(r"\..+\.kb-\d+-[0-9a-f]+", name) is not None


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(
    place: Path, chunks: Iterable[bytes], *, mode: int, owner: Optional[tuple[int, int]] = None, keeps: bool = False
) -> None:
    """Have `place`, which is no link, hold the chunks. The new content is whole on disk, private from its first byte, before it
    takes the name. keeps: mode, owner and extended attributes (SELinux' label, an ACL) of what is there stay; mode is for a new
    file. Where a rename cannot be, since `place` is a mount point, the content is written into it. Raises OSError."""
    kept = os.lstat(place) if keeps and os.path.lexists(place) else None
    temporary = place.with_name(temporary_name(place.name))
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            for piece in chunks:
                write_all(descriptor, piece)
            if kept:
                _copy_attributes(place, descriptor)
            wanted = (kept.st_uid, kept.st_gid) if kept else owner
            if wanted is not None:
                os.fchown(descriptor, *wanted)
            os.fchmod(descriptor, stat.S_IMODE(kept.st_mode) if kept else mode)
            os.fsync(descriptor)
            try:
                os.rename(temporary, place)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                _write_into(place, descriptor)
        finally:
            os.close(descriptor)
        sync_folder(place.parent)
    finally:
        # there only where the rename was not reached: a full disk, or a signal
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _copy_attributes(place: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system without them
        for name in os.listxattr(place):
            with contextlib.suppress(OSError):
                os.setxattr(descriptor, name, os.getxattr(place, name))


def _write_into(place: Path, source: int) -> None:
    """Write into a mounted file; where that fails half way, what was there comes back. Raises OSError."""
    target = os.open(place, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        before = _read_all(target)
        try:
            _overwrite(target, _read_all(source))
        except OSError:
            _overwrite(target, before)
            raise
    finally:
        os.close(target)


def _read_all(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _overwrite(descriptor: int, data: bytes) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    write_all(descriptor, data)
    os.ftruncate(descriptor, len(data))
    os.fsync(descriptor)


# ---- removing


def remove_below(place: Path, is_mounted: Callable[[Path], bool]) -> None:
    """Remove what is in a folder, never across a device or a mount. `place` is a real path. Raises OSError (EBUSY where
    something is mounted)."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _remove_entries(descriptor, place, os.fstat(descriptor).st_dev, is_mounted)
    finally:
        os.close(descriptor)


def _remove_entries(folder: int, place: Path, device: int, is_mounted: Callable[[Path], bool]) -> None:
    for name in os.listdir(folder):
        found = os.lstat(name, dir_fd=folder)
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=folder)
            continue
        inner = place / name
        # looked at right before: what was mounted meanwhile is not the folder's to lose
        if found.st_dev != device or is_mounted(inner):
            raise OSError(errno.EBUSY, "something is mounted there", str(inner))
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            _remove_entries(descriptor, inner, device, is_mounted)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=folder)
