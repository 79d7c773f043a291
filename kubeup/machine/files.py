"""How files are replaced, followed and removed: what LocalHost's verbs do to a disk.

Owns the rules. A link stays a link, and is followed only if nobody else could have laid it; a file is replaced whole, by one
beside its real place; below --root every link means what it means under chroot; nothing that is mounted is removed. A change goes
by descriptors, from folder to folder: what was looked at is what is changed, whatever others do to the path meanwhile. Works on
paths of this machine and raises OSError; LocalHost says what that means. Mirrors os.WriteFile and filepath.EvalSymlinks, where
kubeadm uses them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Optional

_MAX_LINKS = 40
"""As the kernel allows on the way to one file (path_resolution(7))."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_CONTENT = ("security.capability", "security.ima", "security.evm")
"""Attributes that speak of a file's content, and go with it."""
CHUNK = 1 << 20
"""Bytes of a stream that are held at a time."""


class UnsafeLink(OSError):
    """A link, or a file, that somebody else may have laid: kb would write where he wants. `strerror` says which."""


# ---- where a path leads


class Place(NamedTuple):
    """A name in a folder that is held open: whatever becomes of the folder's path, it is this folder."""

    folder: int
    name: str


@contextlib.contextmanager
def open_way(root: Path, path: Path, *, follows_last: bool, makes: Optional[int] = None) -> Iterator[Place]:
    """The place to which `path` leads on a machine whose root is the folder `root`, gone to folder by folder. Links and `..`
    mean what they mean under chroot. follows_last: also through a link in the last component. makes: the mode of folders
    that are made on the way where they are missing. Raises UnsafeLink, OSError.

    A link is followed if root or the caller owns it, or nobody else can write to its folder: in a folder like /tmp it could be
    anybody's, as the kernel's fs.protected_symlinks has it. Those below another root lead nowhere but below it.
    """
    way = [os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        _go(way, 1, left=[*root.parts[1:], "."], follows_last=True, makes=makes)
        yield Place(*_go(way, len(way), left=list(path.parts[1:]), follows_last=follows_last, makes=makes))
    finally:
        for descriptor in way:
            os.close(descriptor)


def _go(way: list[int], floor: int, *, left: list[str], follows_last: bool, makes: Optional[int]) -> tuple[int, str]:
    """Open the folders of `left` one after the other, onto `way`, of which the first `floor` stay. Returns the last folder,
    and the name in it. A last name "." is gone into."""
    links = 0
    while left:
        name = left.pop(0)
        if name == "..":
            if len(way) > floor:
                os.close(way.pop())
            continue
        if name == ".":
            continue
        try:
            inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=way[-1])
        except FileNotFoundError:
            if not left:
                return way[-1], name
            if makes is None:
                raise
            make_folder(Place(way[-1], name), makes)
            inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=way[-1])
        way.append(inner)
        found = os.fstat(inner)
        if stat.S_ISLNK(found.st_mode) and (left or follows_last):
            links += 1
            target = Path(os.readlink("", dir_fd=inner))
            os.close(way.pop())
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
            if floor == 1:
                _require_own(found, way[-1], name=name)
            if target.is_absolute():
                while len(way) > floor:
                    os.close(way.pop())
            left = [*target.parts[target.is_absolute() :], *left]
        elif not left:
            os.close(way.pop())
            return way[-1], name
    return way[-1], "."


def _require_own(found: os.stat_result, folder: int, *, name: str) -> None:
    """Raise UnsafeLink where another user owns it in a folder to which he, or others, can write."""
    own = (0, os.geteuid())
    around = os.fstat(folder)
    if found.st_uid not in own and (around.st_mode & 0o022 or around.st_uid not in own):
        where = os.path.join(path_of(folder), name)
        raise UnsafeLink(errno.EPERM, f"{where} is a link of user {found.st_uid}, who decides where it leads", where)


def require_unplanted(place: Place) -> None:
    """Raise UnsafeLink where the file, pipe or socket at `place` is another user's in a folder like /tmp: he would get what is
    written, as the kernel's fs.protected_regular and fs.protected_fifos have it."""
    try:
        found = os.lstat(place.name, dir_fd=place.folder)
    except FileNotFoundError:
        return
    around = os.fstat(place.folder)
    is_shared = around.st_mode & 0o002 or (around.st_mode & stat.S_ISVTX and around.st_mode & 0o020)
    if is_shared and found.st_uid not in (0, os.geteuid(), around.st_uid):
        where = os.path.join(path_of(place.folder), place.name)
        raise UnsafeLink(
            errno.EPERM,
            f"{where} is there already and user {found.st_uid}'s, in a folder that others can write to",
            where,
        )


def path_of(descriptor: int) -> str:
    """The real path of what is held open. Raises OSError where /proc is not mounted."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


def resolve_below(root: Path, path: Path, *, follows_last: bool) -> Path:
    """Where `path` of a machine whose root is the folder `root` lies, to be read: as open_way has it. Raises OSError (ELOOP)."""
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


# ---- making and replacing


def temporary_name(name: str) -> str:
    return f".{name[:200]}.kb-{os.getpid()}-{threading.get_ident():x}"


def is_leftover(name: str) -> bool:
    """Whether a file of this name is half-written: what a kb that was killed leaves beside the file it meant."""
    return re.fullmatch(r"\..+\.kb-\d+-[0-9a-f]+", name) is not None


def saved_name(name: str) -> str:
    """Under which what a mounted file held lies beside it while it is written."""
    return f".{name[:200]}.kb-saved"


def is_saved(name: str) -> bool:
    return name.startswith(".") and name.endswith(".kb-saved")


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: int) -> None:
    descriptor = os.open(".", _FOLDER, dir_fd=folder)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_THERE:  # a share (CIFS, FUSE) may have no such thing for folders
            raise
    finally:
        os.close(descriptor)


_NOT_THERE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def _set_mode(descriptor: int, mode: int) -> None:
    """A stick's file system (FAT) has no modes: what is to be private cannot lie there, all else can. Raises OSError."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        is_private = not mode & 0o077 and os.fstat(descriptor).st_mode & 0o077
        if is_private or error.errno not in (errno.EPERM, *_NOT_THERE):
            raise


def make_folder(place: Place, mode: int) -> None:
    """With its mode at once: a run killed before the chmod leaves a folder that later runs take as it is. Raises OSError."""
    os.mkdir(place.name, mode, dir_fd=place.folder)
    descriptor = os.open(place.name, _FOLDER, dir_fd=place.folder)
    try:
        _set_mode(descriptor, mode)
    finally:
        os.close(descriptor)
    sync_folder(place.folder)


def replace_file(
    place: Place, chunks: Iterable[bytes], *, mode: int, owner: Optional[tuple[int, int]] = None, keeps: bool = False
) -> None:
    """Have `place`, which is no link, hold the chunks. The new content is whole on disk, private from its first byte, before it
    takes the name. Extended attributes (SELinux' label, an ACL) of what is there stay; keeps: mode and owner too, and mode is
    for a new file. Where a rename cannot be, since `place` is a mount point, or would part it from its other names (hard links),
    the content is written into it. Raises OSError."""
    folder, name = place
    try:
        found = os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        found = None
    kept = found if keeps else None
    temporary = temporary_name(name)
    try:
        descriptor = _create(Place(folder, temporary))
        try:
            for piece in chunks:
                write_all(descriptor, piece)
            wanted = (kept.st_uid, kept.st_gid) if kept else owner
            if wanted is not None:
                os.fchown(descriptor, *wanted)
            if found is not None and stat.S_ISREG(found.st_mode):
                _copy_attributes(place, descriptor)
            _set_mode(descriptor, stat.S_IMODE(kept.st_mode) if kept else mode)
            os.fsync(descriptor)
            if kept and kept.st_nlink > 1 and not os.fstat(folder).st_mode & 0o022:
                _write_into(place, descriptor)
                return
            try:
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                _write_into(place, descriptor)
        finally:
            os.close(descriptor)
        sync_folder(folder)
    finally:
        # there only where the rename was not reached: a full disk, or a signal
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)


def _create(place: Place) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(place.name, flags, 0o600, dir_fd=place.folder)


def _copy_attributes(place: Place, descriptor: int) -> None:
    """Those that are no part of the content. An ACL's mask is the mode's to say, which is set afterwards."""
    with contextlib.suppress(OSError):  # a file system without them
        source = os.open(place.name, _LOOK, dir_fd=place.folder)
        try:
            for name in set(os.listxattr(source)) - set(_NO_CONTENT):
                with contextlib.suppress(OSError):
                    os.setxattr(descriptor, name, os.getxattr(source, name))
        finally:
            os.close(source)


def copy_attributes(source: Place, place: Place) -> None:
    """Extended attributes from one file to another, whose mode stays. Raises OSError."""
    descriptor = os.open(place.name, _LOOK, dir_fd=place.folder)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        _copy_attributes(source, descriptor)
        _set_mode(descriptor, mode)
    finally:
        os.close(descriptor)


def _write_into(place: Place, source: int) -> None:
    """Write into a mounted file. What was there lies beside it until the new content is on disk, and comes back where that
    fails half way, or by put_back where the machine stops. Raises OSError."""
    folder, name = place
    target = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        before = _read_all(target)
        _save(place, before)
        try:
            _overwrite(target, _read_all(source))
        except OSError:
            _overwrite(target, before)
            os.unlink(saved_name(name), dir_fd=folder)
            raise
        os.unlink(saved_name(name), dir_fd=folder)
    finally:
        os.close(target)


def _save(place: Place, data: bytes) -> None:
    folder, temporary = place.folder, temporary_name(saved_name(place.name))
    descriptor = _create(Place(folder, temporary))
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, saved_name(place.name), src_dir_fd=folder, dst_dir_fd=folder)
    sync_folder(folder)


_IN_PLACE_S = 60
"""Longer than a file is written in place: one that changed later was changed by somebody else."""


def put_back(place: Place) -> bool:
    """Give a mounted file back what it held, where the machine stopped while kb wrote into it; place: of what was saved beside
    it. Returns whether it was; a file that somebody wrote since then keeps what it has. Raises OSError."""
    folder, saved = place
    name = saved[1 : -len(".kb-saved")]
    source = os.open(saved, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        target = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            before = _read_all(source)
            saved_as = os.fstat(source)
            is_ours = os.fstat(target).st_mtime <= saved_as.st_mtime + _IN_PLACE_S
            # nobody else laid it there
            is_ours = is_ours and saved_as.st_uid == os.geteuid() and saved_as.st_nlink == 1
            is_torn = is_ours and _read_all(target) != before
            if is_torn:
                _overwrite(target, before)
        finally:
            os.close(target)
    finally:
        os.close(source)
    if is_ours:
        os.unlink(saved, dir_fd=folder)
    return is_torn


def _read_all(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _overwrite(descriptor: int, data: bytes) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    write_all(descriptor, data)
    os.ftruncate(descriptor, len(data))
    os.fsync(descriptor)


# ---- removing


def mount_of(descriptor: int) -> int:
    """The number of the mount on which something that is held open lies: a bind mount of the same device has another one.
    Raises OSError where /proc is not mounted."""
    with open(f"/proc/self/fdinfo/{descriptor}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def remove_below(folder: int) -> None:
    """Remove what is in a folder, of any depth, never across a device or a mount, and never through a link. Each folder is
    gone to from the one above it and left by `..`, which has to be where it came from: three descriptors at a time. Raises
    OSError (EBUSY where something is mounted; filename: what, from this folder on)."""
    around = _Around(os.fstat(folder).st_dev, mount_of(folder))
    here = os.dup(folder)
    came: list[tuple[str, tuple[int, int]]] = []  # the name of each folder on the way, and which one holds it
    try:
        left = [_remove_files(here)]
        while True:
            if left[-1]:
                name = left[-1].pop()
                inner = os.open(name, _FOLDER, dir_fd=here)
                came.append((name, _identity(here)))
                os.close(here)
                here = inner
                # looked at right before: what was mounted meanwhile is not the folder's to lose
                if _Around(os.fstat(here).st_dev, mount_of(here)) != around:
                    raise OSError(errno.EBUSY, "something is mounted there")
                left.append(_remove_files(here))
                continue
            left.pop()
            if not came:
                return
            name, above = came.pop()
            outer = os.open("..", _FOLDER, dir_fd=here)
            os.close(here)
            here = outer
            if _identity(here) != above:
                raise OSError(errno.ESTALE, "it was moved while it was removed", name)
            os.rmdir(name, dir_fd=here)
    except OSError as error:
        steps = [*(step for step, _ in came), str(error.filename or "")]
        raise OSError(error.errno, error.strerror, "/".join(filter(None, steps))) from error
    finally:
        os.close(here)


class _Around(NamedTuple):
    """Where a tree lies: nothing of another device or mount is part of it."""

    device: int
    mount: int


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _remove_files(folder: int) -> list[str]:
    """Remove all but the folders in it, and return those."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
    return [name for name, is_folder in found if is_folder]
