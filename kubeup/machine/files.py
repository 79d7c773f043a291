"""How LocalHost replaces, follows and removes files on disk.

The rules:
- A symbolic link stays a link, and is followed only if nobody else could have created it.
- A file is replaced as a whole, by a temporary file beside its real path.
- Below --root, links resolve as under chroot.
- Nothing that is mounted is removed.
- Changes walk from folder to folder by descriptors. So the file that was checked is the one that is changed, whatever others do to
  the path meanwhile.

The functions take paths of this machine and raise OSError, which LocalHost translates. Mirrors os.WriteFile and
filepath.EvalSymlinks, where kubeadm uses them.
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
"""The kernel's limit of links in one path (path_resolution(7))."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_CONTENT = ("security.capability", "security.ima", "security.evm")
"""Extended attributes that describe a file's content, and so are not copied to new content."""
_STEADY_BYTES = 2 << 20
CHUNK = 1 << 20
"""The size, in bytes, of the pieces in which streams are read."""


class UnsafeLink(OSError):
    """A link or file that another user may have planted, to make kb write to a place of their choice. `strerror` says which."""


# ---- resolving paths


class Place(NamedTuple):
    """A name in an open folder. The descriptor keeps referring to this folder, whatever happens to its path."""

    folder: int
    name: str


@contextlib.contextmanager
def open_way(root: Path, path: Path, *, follows_last: bool, makes: Optional[int] = None) -> Iterator[Place]:
    """Resolve `path` on a machine whose root is the folder `root`, folder by folder. Links and `..` resolve as under chroot.

    follows_last: also follow a link in the last component. makes: create missing folders with this mode. Raises UnsafeLink,
    OSError.

    A link is followed only if root or the caller owns it, or nobody else can write to its folder: in a folder like /tmp anybody
    could have created it (compare the kernel's fs.protected_symlinks). Below another root, links never lead outside of it.
    """
    way = [os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        _go(way, 1, left=[*root.parts[1:], "."], follows_last=True, makes=makes)
        yield Place(*_go(way, len(way), left=list(path.parts[1:]), follows_last=follows_last, makes=makes))
    finally:
        for descriptor in way:
            os.close(descriptor)


def _go(way: list[int], floor: int, *, left: list[str], follows_last: bool, makes: Optional[int]) -> tuple[int, str]:
    """Open the folders in `left` one after another and push them onto `way`; its first `floor` entries always stay. Returns the
    last folder and the name in it. If the last name is ".", that folder is opened too."""
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
    """Raise UnsafeLink if another user owns the link, in a folder that this user or others can write to."""
    own = (0, os.geteuid())
    around = os.fstat(folder)
    if found.st_uid not in own and (around.st_mode & 0o022 or around.st_uid not in own):
        where = os.path.join(path_of(folder), name)
        raise UnsafeLink(errno.EPERM, f"{where} is a link of user {found.st_uid}, who decides where it leads", where)


def require_unplanted(place: Place) -> None:
    """Raise UnsafeLink if the file, pipe or socket at `place` belongs to another user in a folder like /tmp, who would get
    what is written (compare the kernel's fs.protected_regular and fs.protected_fifos)."""
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
            f"{where} already exists and belongs to user {found.st_uid}, in a folder that others can write to",
            where,
        )


def path_of(descriptor: int) -> str:
    """The real path of an open file or folder. Raises OSError if /proc is not mounted."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


def resolve_below(root: Path, path: Path, *, follows_last: bool) -> Path:
    """The real path, for reading, of `path` on a machine whose root is the folder `root`. Links resolve as in open_way. Raises
    OSError (ELOOP)."""
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


# ---- ownership


def is_root_s_alone(path: Path) -> bool:
    """Whether only root can change what is at `path`: root owns every component of the path, including links, and nobody else can
    write to any of them. A sticky folder like /tmp is accepted, since there only an entry's owner can change it."""
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


# ---- creating and replacing


def temporary_name(name: str) -> str:
    return f".{name[:200]}.kb-{os.getpid()}-{threading.get_ident():x}"


def is_leftover(name: str) -> bool:
    """Whether this is the name of a half-written file, which a killed kb leaves beside the file that it was writing."""
    return re.fullmatch(r"\..+\.kb-\d+-[0-9a-f]+", name) is not None


def saved_name(name: str) -> str:
    """The name of the copy that is kept beside a mounted file while it is written."""
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
        if error.errno not in _NOT_THERE:  # some file systems (CIFS, FUSE) cannot sync folders
            raise
    finally:
        os.close(descriptor)


_NOT_THERE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def _set_mode(descriptor: int, mode: int) -> None:
    """Set the mode, if the file system has modes. Without them (FAT on a USB stick) only private files are refused. Raises
    OSError."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        is_private = not mode & 0o077 and os.fstat(descriptor).st_mode & 0o077
        if is_private or error.errno not in (errno.EPERM, *_NOT_THERE):
            raise


def make_folder(place: Place, mode: int) -> None:
    """Create a folder with its mode at once: if a run were killed before a chmod, later runs would take the folder as it is. Raises
    OSError."""
    os.mkdir(place.name, mode, dir_fd=place.folder)
    descriptor = os.open(place.name, _FOLDER, dir_fd=place.folder)
    try:
        _set_mode(descriptor, mode)
    finally:
        os.close(descriptor)
    sync_folder(place.folder)


def replace_file(
    place: Place,
    chunks: Iterable[bytes],
    *,
    mode: int,
    owner: Optional[tuple[int, int]] = None,
    keeps: bool = False,
    is_steady: bool = False,
) -> None:
    """Write the chunks to `place`, which must not be a link. The new content is completely on disk, and private from its first
    byte, before it gets the name. Extended attributes of an existing file (SELinux label, ACL) stay.

    is_steady: bring it to the disk bit by bit, so that other writers never wait for all of it.
    keeps: an existing file keeps its mode and owner too, and `mode` is only for a new file. If a rename is impossible because
    `place` is a mount point, or would separate it from its other hard links, the content is written in place. Raises OSError."""
    folder, name = place
    found, temporary = _stat_if_there(place), temporary_name(name)
    kept = found if keeps else None
    try:
        descriptor = create_file(Place(folder, temporary))
        try:
            _write_chunks(descriptor, chunks, is_steady=is_steady)
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
        # still there if it was not renamed: the file was written in place, the disk is full, or a signal came
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)


def _stat_if_there(place: Place) -> Optional[os.stat_result]:
    try:
        return os.lstat(place.name, dir_fd=place.folder)
    except FileNotFoundError:
        return None


def _write_chunks(descriptor: int, chunks: Iterable[bytes], *, is_steady: bool) -> None:
    fresh = 0
    for piece in chunks:
        write_all(descriptor, piece)
        fresh += len(piece)
        if is_steady and fresh >= _STEADY_BYTES:
            os.fdatasync(descriptor)
            fresh = 0


def create_file(place: Place) -> int:
    """Create a private file that must not exist, and open it to write and read. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(place.name, flags, 0o600, dir_fd=place.folder)


def _copy_attributes(place: Place, descriptor: int) -> None:
    """Copy the extended attributes that do not describe the content. This can change the mode (by an ACL's mask), so the mode is set
    afterwards."""
    with contextlib.suppress(OSError):  # a file system without them
        source = os.open(place.name, _LOOK, dir_fd=place.folder)
        try:
            for name in set(os.listxattr(source)) - set(_NO_CONTENT):
                with contextlib.suppress(OSError):
                    os.setxattr(descriptor, name, os.getxattr(source, name))
        finally:
            os.close(source)


def copy_attributes(source: Place, place: Place) -> None:
    """Copy extended attributes from one file to another, which keeps its mode. Raises OSError."""
    descriptor = os.open(place.name, _LOOK, dir_fd=place.folder)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        _copy_attributes(source, descriptor)
        _set_mode(descriptor, mode)
    finally:
        os.close(descriptor)


def _write_into(place: Place, source: int) -> None:
    """Overwrite a file in place, such as a mounted one. Until the new content is on disk, a copy of the old one is kept beside it.
    It is restored if the write fails, or by put_back if the machine stops. Raises OSError."""
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
    descriptor = create_file(Place(folder, temporary))
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, saved_name(place.name), src_dir_fd=folder, dst_dir_fd=folder)
    sync_folder(folder)


_IN_PLACE_S = 60
"""More than the time that writing a file in place takes: a later change was made by somebody else."""


def put_back(place: Place) -> bool:
    """Restore a file that kb was overwriting in place when the machine stopped. place: the copy that was saved beside it. Returns
    whether it was restored; a file that somebody else changed since then stays as it is. Raises OSError."""
    folder, saved = place
    name = saved[1 : -len(".kb-saved")]
    source = os.open(saved, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        target = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            before = _read_all(source)
            saved_as = os.fstat(source)
            is_ours = os.fstat(target).st_mtime <= saved_as.st_mtime + _IN_PLACE_S
            # make sure that nobody else planted the copy
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
    """The mount ID of an open file or folder. A bind mount of the same device has a different one. Raises OSError if /proc is not
    mounted."""
    with open(f"/proc/self/fdinfo/{descriptor}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def remove_below(folder: int) -> None:
    """Remove the content of a folder, to any depth, but never across a device or mount, and never through a link.

    Each folder is entered from its parent and left by `..`, which must be that parent again, so only three descriptors are open at
    a time. Raises OSError (EBUSY if something is mounted there; `filename` is the path relative to this folder)."""
    around = _Around(os.fstat(folder).st_dev, mount_of(folder))
    here = os.dup(folder)
    came: list[tuple[str, tuple[int, int]]] = []  # the name of each folder on the way, and the identity of its parent
    try:
        left = [_remove_files(here)]
        while True:
            if left[-1]:
                name = left[-1].pop()
                inner = os.open(name, _FOLDER, dir_fd=here)
                came.append((name, _identity(here)))
                os.close(here)
                here = inner
                # checked right before, since what was mounted meanwhile must not be removed
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
    """The device and mount of a tree. Anything on another device or mount is not part of it."""

    device: int
    mount: int


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _remove_files(folder: int) -> list[str]:
    """Remove everything in a folder except its subfolders, and return their names."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
    return [name for name, is_folder in found if is_folder]
