"""LocalFiles: the files of this machine, or of a folder that stands for one.

Owns what LocalHost says of a file that cannot be read or written. How files are replaced, followed and removed is in
kubeup/machine/files.py.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import stat as stat_module
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Optional, Union

from kubeup.errors import HostError
from kubeup.machine.files import (
    CHUNK,
    Place,
    UnsafeLink,
    copy_attributes,
    make_folder,
    mount_of,
    open_way,
    path_of,
    put_back,
    remove_below,
    replace_file,
    require_unplanted,
    resolve_below,
    sync_folder,
    temporary_name,
    write_all,
)
from kubeup.machine.host import FileStat, encode_text
from kubeup.machine.mounts import mounts_below
from kubeup.machine.process import given_descriptor

_MAX_TEXT = 64 << 20
"""Bytes of a file that is read whole as a text: the largest there are, applied manifests, have a tenth of it."""


class LocalFiles:
    """The files below `root`: whoever names one names it as the node sees it."""

    def __init__(self, root: Path) -> None:
        # `//` and `/tmp/..` are this machine too
        self.root = Path("/") if os.path.realpath(root).strip("/") == "" else root.absolute()
        self.is_live = self._is_whole = self.root == Path("/")

    def at(self, path: Path) -> Path:
        """Where the node's `path` itself lies on this machine, a link not followed. Raises HostError."""
        return self._place(path, follows_last=False)

    def target(self, path: Path) -> Path:
        """Where what `path` leads to lies on this machine. Raises HostError."""
        return self._place(path, follows_last=True)

    def _place(self, path: Path, *, follows_last: bool) -> Path:
        _check_path(path)
        if self._is_whole:
            return path
        try:
            return resolve_below(self.root, path, follows_last=follows_last)
        except OSError as error:
            raise _file_error(path, "read", error=error) from error

    @contextlib.contextmanager
    def _way(
        self, path: Path, verb: str, *, follows_last: bool = False, makes: Optional[int] = None
    ) -> Iterator[Place]:
        """Where a change of `path` is made: open_way's. Whatever OSError comes of it is told as a HostError."""
        _check_path(path)
        try:
            with open_way(self.root, path, follows_last=follows_last, makes=makes) as place:
                yield place
        except BrokenPipeError:
            raise  # whoever read it has seen enough
        except UnsafeLink as error:
            raise _unsafe_link(path, error) from error
        except OSError as error:
            raise _file_error(path, verb, error=error) from error

    def exists(self, path: Path) -> bool:
        """Whether there is something, a dangling link included. Raises HostError (file-unreadable) where that cannot be
        seen: what an ordinary user may not look at is not missing."""
        return self.stat(path) is not None

    def is_dir(self, path: Path) -> bool:
        try:
            return stat_module.S_ISDIR(os.stat(self.target(path)).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _file_error(path, "read", error=error) from error

    def stat(self, path: Path) -> Optional[FileStat]:
        try:
            found = os.lstat(self.at(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _file_error(path, "read", error=error) from error
        return FileStat(
            mode=stat_module.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            size=found.st_size,
            is_dir=stat_module.S_ISDIR(found.st_mode),
            is_symlink=stat_module.S_ISLNK(found.st_mode),
            mtime=found.st_mtime,
            is_regular=stat_module.S_ISREG(found.st_mode),
        )

    def _open(self, path: Path, *, follows: bool = True) -> int:
        """A descriptor of a file. Below another root it is gone to folder by folder: no link that is laid meanwhile leads out
        of it. Raises OSError, HostError."""
        _check_path(path)
        if self._is_whole:
            return _open_for_reading(path, 0 if follows else os.O_NOFOLLOW)
        with open_way(self.root, path, follows_last=follows) as place:
            return _open_for_reading(Path(place.name), os.O_NOFOLLOW, folder=place.folder)

    def read_bytes(self, path: Path) -> bytes:
        """The file's content. Raises HostError (file-unreadable) where it cannot be read or is not there."""
        try:
            with open(self._open(path), "rb") as file:
                return file.read()
        except OSError as error:
            raise _file_error(path, "read", error=error) from error

    def read_text(self, path: Path) -> str:
        """A file's text; what is no UTF-8 in it is replaced. Raises HostError (file-unreadable), also for one that is larger
        than any text of a node."""
        try:
            with open(self._open(path), "rb") as file:
                # in pieces: a file of /proc/sys gives none to a reader who asks for more than a few MiB at once
                data = b""
                while len(data) <= _MAX_TEXT and (piece := file.read(CHUNK)):
                    data += piece
        except OSError as error:
            raise _file_error(path, "read", error=error) from error
        if len(data) > _MAX_TEXT:
            raise _file_error(path, "read", error=OSError(errno.EFBIG, f"it has more than {_MAX_TEXT >> 20} MiB"))
        return data.decode("utf-8", errors="replace")

    def open_read(self, path: Path, *, follows: bool = True) -> BinaryIO:
        """A file to be read piece by piece; whoever opens it closes it. follows: a link, too. Raises HostError
        (file-unreadable), its read and seek too."""
        try:
            return _OpenFile(self._open(path, follows=follows), path)  # type: ignore[return-value]
        except OSError as error:
            raise _file_error(path, "read", error=error) from error

    def list_dir(self, path: Path) -> list[str]:
        """The names in a folder, sorted; [] where there is no such folder."""
        try:
            return sorted(os.listdir(self.target(path)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _file_error(path, "read", error=error) from error

    def real_path(self, path: Path) -> Path:
        """Where `path` leads to through links, as the node sees it."""
        if self._is_whole:
            _check_path(path)
            return Path(os.path.realpath(path))
        return Path("/") / self.target(path).relative_to(self.root)

    def read_link(self, path: Path) -> Optional[str]:
        """What a symbolic link says; None where `path` is none."""
        try:
            return os.readlink(self.at(path))
        except OSError:
            return None

    def free_bytes(self, path: Path) -> int:
        """Free space on the file system that holds `path` or its nearest existing parent, for an ordinary user."""
        place = self.target(path)
        while not place.exists() and place != place.parent:
            place = place.parent
        found = os.statvfs(place)
        return found.f_bavail * found.f_frsize

    def mounts_below(self, path: Path) -> list[Path]:
        """The mount points strictly below `path`, whatever links lead there, deepest first, by their real paths, as
        /proc/self/mountinfo has them."""
        if not self.is_live:
            return []
        return mounts_below(os.path.realpath(path))

    def write_file(
        self,
        path: Path,
        data: Union[bytes, str],
        *,
        mode: int = 0o644,
        owner: Optional[tuple[int, int]] = None,
        keeps: bool = False,
    ) -> bool:
        """Make `path` hold `data` with `mode` and owner (uid, gid); return whether anything changed.

        keeps: it is somebody else's file, which keeps its mode, owner and attributes; `mode` is for one that is new.
        Compares first. A link stays, and what it leads to is written. The new content is whole on disk before it takes the
        name (temporary file, fsync, rename, fsync of the folder), and a private file is private from its first byte. The
        parent must exist or is made 0755. Raises HostError (disk-full, file-unwritable, link-not-followed); the old
        content is then intact.
        """
        wanted = encode_text(data, path) if isinstance(data, str) else data
        uid_gid = owner if owner is not None and (self.is_live or os.geteuid() == 0) else None
        if self._holds(path, wanted, mode=None if keeps else mode, owner=None if keeps else uid_gid):
            return False
        self._replace(path, (wanted,), mode=mode, owner=uid_gid, keeps=keeps)
        return True

    def write_stream(self, path: Path, chunks: Iterable[bytes], *, mode: int = 0o644) -> None:
        """Like write_file, for what is too large to hold. Where `chunks` raises, `path` is as it was before.
        Raises HostError (disk-full, file-unwritable)."""
        self._replace(path, chunks, mode=mode)

    def _replace(
        self,
        path: Path,
        chunks: Iterable[bytes],
        *,
        mode: int,
        owner: Optional[tuple[int, int]] = None,
        keeps: bool = False,
    ) -> None:
        """Put the new content whole on disk, private, and only then under its name."""
        with self._way(path, "write", follows_last=True, makes=0o755) as place:
            replace_file(place, chunks, mode=mode, owner=owner, keeps=keeps)

    def append(self, path: Path, chunks: Iterable[bytes]) -> int:
        """Add to a file, whatever came before a failure included; returns its size. A link is not followed: the files that
        grow are kb's own. Raises HostError as write_stream."""
        with self._way(path, "write", makes=0o755) as place:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(place.name, flags, 0o644, dir_fd=place.folder)
            try:
                for piece in chunks:
                    write_all(descriptor, piece)
                os.fsync(descriptor)
                return os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name on the same file system. Raises HostError."""
        with self._way(path, "write") as source, self._way(target, "write") as place:
            os.rename(source.name, place.name, src_dir_fd=source.folder, dst_dir_fd=place.folder)
            sync_folder(place.folder)

    def copy_attributes(self, source: Path, path: Path) -> None:
        """Give a file the extended attributes (SELinux' label, an ACL) of another. Raises HostError."""
        with self._way(source, "read") as found, self._way(path, "write") as place:
            copy_attributes(found, place)

    def put_back(self, path: Path) -> bool:
        """Give a mounted file back what it held: `path` is what lay beside it while kb wrote into it, and was killed. Returns
        whether it was. Raises HostError."""
        with self._way(path, "write") as place:
            return put_back(place)

    def write_output(self, target: str, chunks: Iterable[bytes], *, mode: int = 0o644, is_secret: bool = False) -> None:
        """Write what a user asked for to where he said: "-" is standard output; a device, a pipe or a socket is written into; a
        file is replaced whole, with its mode and owner kept. The folder must exist. is_secret: nobody else may read the file,
        whatever its mode was. Raises HostError (output-folder-missing, file-unwritable, disk-full, link-not-followed)."""
        number = given_descriptor(target)
        path = Path(target).absolute()
        if number is not None:
            _write_to(number, chunks)
            return
        try:
            has_folder = self.is_dir(path.parent)
        except HostError:
            has_folder = True  # what keeps kb from looking is told on the way
        if not has_folder:
            raise HostError(
                f"cannot write {path}",
                cause=f"there is no folder {path.parent}",
                remedy=f"make it: mkdir -p {path.parent}",
                code="output-folder-missing",
            )
        with self._way(path, "write", follows_last=True) as place:
            require_unplanted(place)
            try:
                found: Optional[os.stat_result] = os.lstat(place.name, dir_fd=place.folder)
            except FileNotFoundError:
                found = None
            if found is not None and stat_module.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            if found is not None and not stat_module.S_ISREG(found.st_mode):
                _write_through(place, found.st_mode, chunks=chunks)
                return
            owner = (found.st_uid, found.st_gid) if found and is_secret else None
            replace_file(place, chunks, mode=0o600 if is_secret else mode, owner=owner, keeps=not is_secret)

    def make_private_dir(self, path: Path) -> None:
        """A folder for what must be kb's own while it grows. Raises HostError (spool-not-private) where the folder is there
        already and another user could have made it, or can write to it."""
        with self._way(path, "make") as place:
            with contextlib.suppress(FileExistsError):
                os.mkdir(place.name, 0o700, dir_fd=place.folder)
            found = os.lstat(place.name, dir_fd=place.folder)
        # what a stick's file system makes of the mode is fine, as long as nobody else can write
        is_own = stat_module.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        if not is_own:
            raise HostError(
                f"{path} is not this user's alone",
                cause="it is there already, and somebody else made it, or can write to it: what lies in it cannot be trusted",
                remedy=f"look at it (ls -ld {path}), remove it, or write to a folder that is yours",
                code="spool-not-private",
            )

    def move_file(self, source: Path, path: Path) -> None:
        """Give a finished file its place, over what lies there, on whichever file system. Raises HostError."""
        with self._way(source, "read") as found, self._way(path, "write", makes=0o755) as place:
            try:
                os.rename(found.name, place.name, src_dir_fd=found.folder, dst_dir_fd=place.folder)
                sync_folder(place.folder)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                mode = stat_module.S_IMODE(os.lstat(found.name, dir_fd=found.folder).st_mode)
                with self.open_read(source) as file:
                    replace_file(place, iter(lambda: file.read(CHUNK), b""), mode=mode)
                os.unlink(found.name, dir_fd=found.folder)

    def _holds(self, path: Path, wanted: bytes, *, mode: Optional[int], owner: Optional[tuple[int, int]]) -> bool:
        try:
            found = os.stat(self.target(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _file_error(path, "read", error=error) from error
        if not stat_module.S_ISREG(found.st_mode) or found.st_size != len(wanted):
            return False
        if mode is not None and mode != stat_module.S_IMODE(found.st_mode):
            return False
        if owner is not None and owner != (found.st_uid, found.st_gid):
            return False
        return self.read_bytes(path) == wanted

    def make_dir(self, path: Path, *, mode: int = 0o755) -> bool:
        """Make a folder and its parents (those 0755); an existing one keeps its mode. Returns whether it was made."""
        if self.is_dir(path):
            return False
        with self._way(path, "make", follows_last=True, makes=0o755) as place:
            try:
                make_folder(place, mode)
            except FileExistsError:
                if not self.is_dir(path):
                    raise
                return False
        return True

    def remove(self, path: Path) -> bool:
        """Remove a file, a link, or an empty folder; return whether there was one."""
        if self.stat(path) is None:
            return False
        with self._way(path, "remove") as place:
            try:
                os.unlink(place.name, dir_fd=place.folder)
            except FileNotFoundError:
                return False
            except (IsADirectoryError, PermissionError):
                os.rmdir(place.name, dir_fd=place.folder)
            sync_folder(place.folder)
        return True

    def remove_tree(self, path: Path) -> bool:
        """Remove a folder with all that is in it; return whether there was one. A mount point (the folder itself)
        is emptied and stays. Raises HostError (mount-in-the-way) where anything is mounted below it: what is
        mounted is not the folder's to lose."""
        found = self.stat(path)
        if found is None or not found.is_dir:
            return False
        with self._way(path, "remove") as place:
            if place.name == ".":
                raise OSError(errno.EINVAL, "it is the root of this machine", str(path))
            descriptor = os.open(place.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place.folder)
            try:
                real = path_of(descriptor)
                mounts = mounts_below(real)
                if mounts:
                    raise _mounted(path, mounts)
                try:
                    remove_below(descriptor)
                except OSError as error:
                    if error.errno == errno.EBUSY and error.filename:
                        raise _mounted(path, [Path(real, error.filename)]) from error
                    raise
                if mount_of(descriptor) == mount_of(place.folder):
                    os.rmdir(place.name, dir_fd=place.folder)
                    sync_folder(place.folder)
            finally:
                os.close(descriptor)
        return True

    def symlink(self, path: Path, target: str) -> bool:
        """Make `path` a symbolic link to `target`, over a file or a link that lies there; return whether anything changed."""
        if self.read_link(path) == target:
            return False
        with self._way(path, "link", makes=0o755) as place:
            temporary = temporary_name(place.name)
            try:
                os.symlink(target, temporary, dir_fd=place.folder)
                os.rename(temporary, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
                sync_folder(place.folder)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=place.folder)
        return True


class _OpenFile(io.FileIO):
    """A file whose disk may fail while it is read."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "rb")
        self._path = path

    def read(self, size: Optional[int] = -1, /) -> bytes:
        try:
            return super().read(size) or b""
        except OSError as error:
            raise _file_error(self._path, "read", error=error) from error

    def seek(self, place: int, whence: int = 0, /) -> int:
        try:
            return super().seek(place, whence)
        except OSError as error:
            raise _file_error(self._path, "read", error=error) from error


def _open_for_reading(place: Path, more: int = 0, *, folder: Optional[int] = None) -> int:
    """A descriptor of a file that does not wait for whoever writes into a pipe. What a process substitution or standard input
    gives (/dev/fd/63, /dev/stdin) is waited for. Raises OSError."""
    descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | more, dir_fd=folder)
    found = os.fstat(descriptor)
    is_given = str(place).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/"))
    if stat_module.S_ISDIR(found.st_mode) or (not stat_module.S_ISREG(found.st_mode) and not is_given):
        os.close(descriptor)
        code = errno.EISDIR if stat_module.S_ISDIR(found.st_mode) else errno.EINVAL
        text = os.strerror(code) if code == errno.EISDIR else "it is no regular file, but a pipe, a socket or a device"
        raise OSError(code, text, str(place))
    os.set_blocking(descriptor, True)
    return descriptor


def _write_to(number: int, chunks: Iterable[bytes]) -> None:
    """Into a descriptor that was given to this process. Raises BrokenPipeError where nobody reads it any more, HostError."""
    try:
        if sys.stdout:
            sys.stdout.flush()
        for piece in chunks:
            write_all(number, piece)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError(
            "standard output takes no more" if number == 1 else f"descriptor {number} cannot be written",
            cause=str(error.strerror),
            remedy="make space where it leads to, or name a file, then run the command again",
            code="disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "file-unwritable",
        ) from error


def _write_through(place: Place, mode: int, *, chunks: Iterable[bytes]) -> None:
    """Into a device, a pipe or a socket."""
    if stat_module.S_ISSOCK(mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.connect(f"/proc/self/fd/{place.folder}/{place.name}")
            for piece in chunks:
                peer.sendall(piece)
        return
    descriptor = os.open(place.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.folder)
    try:
        for piece in chunks:
            write_all(descriptor, piece)
    finally:
        os.close(descriptor)


def _mounted(path: Path, mounts: Sequence[Path]) -> HostError:
    return HostError(
        f"{path} is not removed",
        cause=f"something is mounted below it: {', '.join(str(mount) for mount in mounts[:3])}",
        remedy=f"find out what uses it and unmount it: umount {mounts[0]}",
        code="mount-in-the-way",
    )


def _check_path(path: Path) -> None:
    """Raise HostError (path-impossible) where no file can have that path."""
    text = str(path)
    try:
        os.fsencode(text)
        is_whole = True
    except UnicodeEncodeError:
        is_whole = False
    if is_whole and "\0" not in text:
        return
    raise HostError(
        f"{text!a} cannot be a path",
        cause="it holds a NUL character" if is_whole else "half a character stands in it",
        remedy="correct the path",
        code="path-impossible",
    )


def _unsafe_link(path: Path, error: OSError) -> HostError:
    return HostError(
        f"cannot write {path}",
        cause=str(error.strerror),
        remedy=f"name the file itself, or one in a folder that nobody else can write to: ls -l {error.filename}",
        code="link-not-followed",
    )


def _file_error(path: Path, verb: str, *, error: OSError) -> HostError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostError(
            f"cannot {verb} {path}",
            cause="the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up",
            remedy=f"make space on the file system of {path.parent} (df -h {path.parent}), then run the command again",
            code="disk-full",
        )
    lacks_rights = error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0
    return HostError(
        f"cannot {verb} {path}",
        cause=error.strerror or str(error),
        remedy="run the command as root: sudo"
        if lacks_rights
        else f"look at it and its folder: ls -ld {path} {path.parent}",
        code="file-unreadable" if verb == "read" else "file-unwritable",
    )
