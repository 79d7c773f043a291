"""LocalFiles: the files of this machine, or of a folder that represents one.

This module defines the errors for files that cannot be read or written. How files are replaced, followed and removed is in
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
from typing import Any, BinaryIO, Optional, Union

from kubeup.errors import HostError
from kubeup.machine.files import (
    CHUNK,
    Place,
    UnsafeLink,
    copy_attributes,
    create_file,
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
"""The limit, in bytes, of a file that is read whole as text. The largest ones, applied manifests, have a tenth of it."""


class LocalFiles:
    """The files below `root`. All paths are as the node sees them."""

    def __init__(self, root: Path) -> None:
        # `//` and `/tmp/..` mean this machine too
        self.root = Path("/") if os.path.realpath(root).strip("/") == "" else root.absolute()
        self.is_live = self._is_whole = self.root == Path("/")

    def at(self, path: Path) -> Path:
        """The path on this machine of the node's `path` itself; a link is not followed. Raises HostError."""
        return self._place(path, follows_last=False)

    def target(self, path: Path) -> Path:
        """The path on this machine of what the node's `path` resolves to. Raises HostError."""
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
        """The place where `path` is changed, from open_way. Translates every OSError into a HostError."""
        _check_path(path)
        try:
            with open_way(self.root, path, follows_last=follows_last, makes=makes) as place:
                yield place
        except BrokenPipeError:
            raise  # the reader has seen enough
        except UnsafeLink as error:
            raise _unsafe_link(path, error) from error
        except OSError as error:
            raise _file_error(path, verb, error=error) from error

    def exists(self, path: Path) -> bool:
        """Whether anything is at `path`, including a dangling link. Raises HostError (file-unreadable) if that cannot be determined:
        what an ordinary user may not look at is not missing."""
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
            ctime=found.st_ctime,
        )

    def _open(self, path: Path, *, follows: bool = True) -> int:
        """Open a file for reading. Below another root, the path is walked folder by folder, so that no link created meanwhile leads
        out of it. Raises OSError, HostError."""
        _check_path(path)
        if self._is_whole:
            return _open_for_reading(path, 0 if follows else os.O_NOFOLLOW)
        with open_way(self.root, path, follows_last=follows) as place:
            return _open_for_reading(Path(place.name), os.O_NOFOLLOW, folder=place.folder)

    def read_bytes(self, path: Path) -> bytes:
        """The file's content. Raises HostError (file-unreadable) if it cannot be read or does not exist."""
        try:
            with open(self._open(path), "rb") as file:
                return file.read()
        except OSError as error:
            raise _file_error(path, "read", error=error) from error

    def read_text(self, path: Path) -> str:
        """The file's text; invalid UTF-8 is replaced. Raises HostError (file-unreadable), also if the file is larger than any text
        file of a node."""
        try:
            with open(self._open(path), "rb") as file:
                # in pieces, because a file in /proc/sys returns nothing if more than a few MiB are requested at once
                data = b""
                while len(data) <= _MAX_TEXT and (piece := file.read(CHUNK)):
                    data += piece
        except OSError as error:
            raise _file_error(path, "read", error=error) from error
        if len(data) > _MAX_TEXT:
            raise _file_error(path, "read", error=OSError(errno.EFBIG, f"it has more than {_MAX_TEXT >> 20} MiB"))
        return data.decode("utf-8", errors="replace")

    def open_read(self, path: Path, *, follows: bool = True) -> BinaryIO:
        """Open a file for reading in pieces; the caller closes it. follows: follow a link. Raises HostError (file-unreadable), and so
        do its read and seek."""
        try:
            return _OpenFile(self._open(path, follows=follows), path)  # type: ignore[return-value]
        except OSError as error:
            raise _file_error(path, "read", error=error) from error

    def open_scratch(self, folder: Path) -> BinaryIO:
        """A private file without a name on the disk of `folder`, to be written and read again. It is gone when it is closed, also if
        kb is killed. Raises HostError (file-unwritable, disk-full), and so do its read, write and seek."""
        with self._way(folder / temporary_name("scratch"), "write") as place:
            try:
                flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
                descriptor = os.open(".", flags, 0o600, dir_fd=place.folder)
            except OSError as error:
                if error.errno not in (errno.EISDIR, errno.EINVAL, errno.ENOTSUP, errno.ENOENT):
                    raise
                descriptor = create_file(place)  # a file system that knows no such files (NFS, FAT)
                os.unlink(place.name, dir_fd=place.folder)
        return _OpenFile(descriptor, folder / "(a file without a name)", mode="r+b")  # type: ignore[return-value]

    def list_dir(self, path: Path) -> list[str]:
        """The names in a folder, sorted; [] if there is no such folder."""
        try:
            return sorted(os.listdir(self.target(path)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _file_error(path, "read", error=error) from error

    def real_path(self, path: Path) -> Path:
        """The path, as the node sees it, that `path` resolves to through links."""
        if self._is_whole:
            _check_path(path)
            return Path(os.path.realpath(path))
        return Path("/") / self.target(path).relative_to(self.root)

    def read_link(self, path: Path) -> Optional[str]:
        """The target of a symbolic link; None if `path` is no link."""
        try:
            return os.readlink(self.at(path))
        except OSError:
            return None

    def free_bytes(self, path: Path) -> int:
        """The free bytes, for an ordinary user, on the file system of `path` or its nearest existing parent."""
        place = self.target(path)
        while not place.exists() and place != place.parent:
            place = place.parent
        found = os.statvfs(place)
        return found.f_bavail * found.f_frsize

    def mounts_below(self, path: Path) -> list[Path]:
        """The mount points strictly below the real path of `path`, from /proc/self/mountinfo: real paths, deepest first."""
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
        """Write `data` to `path` with `mode` and owner (uid, gid); return whether anything changed.

        keeps: the file is somebody else's, so an existing one keeps its mode, owner and attributes; `mode` is for a new one.
        The file is compared first. If `path` is a link, its target is written. The new content is completely on disk before it gets
        the name (temporary file, fsync, rename, fsync of the folder), and a private file is private from its first byte. A missing
        parent is created with mode 0755. Raises HostError (disk-full, file-unwritable, link-not-followed); the old content is then
        intact.
        """
        wanted = encode_text(data, path) if isinstance(data, str) else data
        uid_gid = owner if owner is not None and (self.is_live or os.geteuid() == 0) else None
        if self._holds(path, wanted, mode=None if keeps else mode, owner=None if keeps else uid_gid):
            return False
        self._replace(path, (wanted,), mode=mode, owner=uid_gid, keeps=keeps)
        return True

    def write_stream(self, path: Path, chunks: Iterable[bytes], *, mode: int = 0o644) -> None:
        """Like write_file, for content that is too large for memory. If `chunks` raises, `path` is unchanged. Raises HostError
        (disk-full, file-unwritable)."""
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
        """Write the new content completely to disk, privately, before it gets its name."""
        with self._way(path, "write", follows_last=True, makes=0o755) as place:
            replace_file(place, chunks, mode=mode, owner=owner, keeps=keeps)

    def append(self, path: Path, chunks: Iterable[bytes]) -> int:
        """Append to a file and return its size. On an error, what was written before stays. A link is not followed, because only
        kb's own files are appended to. Raises HostError, as write_stream."""
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
        """Rename a file within its file system. Raises HostError."""
        with self._way(path, "write") as source, self._way(target, "write") as place:
            os.rename(source.name, place.name, src_dir_fd=source.folder, dst_dir_fd=place.folder)
            sync_folder(place.folder)

    def copy_attributes(self, source: Path, path: Path) -> None:
        """Copy the extended attributes (SELinux label, ACL) of `source` to `path`. Raises HostError."""
        with self._way(source, "read") as found, self._way(path, "write") as place:
            copy_attributes(found, place)

    def put_back(self, path: Path) -> bool:
        """Restore a mounted file that kb was overwriting when it was killed. `path` is the copy that was saved beside it. Returns
        whether the file was restored. Raises HostError."""
        with self._way(path, "write") as place:
            return put_back(place)

    def write_output(
        self,
        target: str,
        chunks: Iterable[bytes],
        *,
        mode: int = 0o644,
        is_secret: bool = False,
        is_steady: bool = False,
        has_to_be_whole: bool = False,
    ) -> None:
        """Write output to the target that the user named: "-" is standard output; a device, pipe or socket is written to; a file is
        replaced, and keeps its mode and owner. The folder must exist.

        is_secret: make the file private, whatever its mode was. is_steady: as for replace_file. has_to_be_whole: a
        reader that ends early has not seen enough. Raises HostError (output-folder-missing, file-unwritable, disk-full,
        link-not-followed, output-cut-off)."""
        try:
            self._write_output(target, chunks, mode=mode, is_secret=is_secret, is_steady=is_steady)
        except BrokenPipeError as error:
            if not has_to_be_whole:
                raise
            raise HostError(
                "the output is not whole",
                cause=f"the program that reads {'standard output' if target == '-' else target} ended before it had everything",
                remedy="see what that program says, then run the command again",
                code="output-cut-off",
            ) from error

    def _write_output(
        self, target: str, chunks: Iterable[bytes], *, mode: int, is_secret: bool, is_steady: bool
    ) -> None:
        number = given_descriptor(target)
        path = Path(target).absolute()
        if number is not None:
            _write_to(number, chunks)
            return
        self._require_output_folder(path)
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
            wanted = 0o600 if is_secret else mode
            owner = (found.st_uid, found.st_gid) if found and is_secret else None
            replace_file(place, chunks, mode=wanted, owner=owner, keeps=not is_secret, is_steady=is_steady)

    def _require_output_folder(self, path: Path) -> None:
        """Raises HostError (output-folder-missing)."""
        try:
            has_folder = self.is_dir(path.parent)
        except HostError:
            has_folder = True  # the write below reports why the folder cannot be looked at
        if not has_folder:
            raise HostError(
                f"cannot write {path}",
                cause=f"there is no folder {path.parent}",
                remedy=f"make it: mkdir -p {path.parent}",
                code="output-folder-missing",
            )

    def make_private_dir(self, path: Path) -> None:
        """Create a private folder for files that grow. Raises HostError (spool-not-private) if the folder exists and another user
        may have created it, or can write to it."""
        with self._way(path, "make") as place:
            with contextlib.suppress(FileExistsError):
                os.mkdir(place.name, 0o700, dir_fd=place.folder)
            found = os.lstat(place.name, dir_fd=place.folder)
        # whatever mode the file system of a USB stick reports is fine, as long as nobody else can write
        is_own = stat_module.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        if not is_own:
            raise HostError(
                f"{path} is not private to this user",
                cause="it already exists, and another user made it or can write to it, so its content cannot be trusted",
                remedy=f"look at it (ls -ld {path}), remove it, or write to a folder that is yours",
                code="spool-not-private",
            )

    def move_file(self, source: Path, path: Path) -> None:
        """Move a finished file to `path`, replacing what is there, even across file systems. Raises HostError."""
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
        """Create a folder and its parents (these with mode 0755); an existing folder keeps its mode. Returns whether it was
        created."""
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
        """Remove a folder with everything in it; return whether there was one. If the folder itself is a mount point, it is only
        emptied. Raises HostError (mount-in-the-way) if anything is mounted below it, since that must not be removed."""
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
        """Make `path` a symbolic link to `target`, replacing an existing file or link; return whether anything changed."""
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
    """An open file that raises HostError if its disk fails, or is full."""

    def __init__(self, descriptor: int, path: Path, *, mode: str = "rb") -> None:
        super().__init__(descriptor, mode)
        self._path = path

    def write(self, data: Any, /) -> int:
        """Write all of it."""
        try:
            write_all(self.fileno(), data)
        except OSError as error:
            raise _file_error(self._path, "write", error=error) from error
        return len(data)

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
    """Open a regular file for reading. Pipes are refused, so that kb never blocks on a missing writer, except those that it was
    given: a process substitution or standard input (/dev/fd/63, /dev/stdin). Raises OSError."""
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
    """Write to a descriptor that this process inherited. Raises BrokenPipeError if the reader is gone, HostError otherwise."""
    try:
        if sys.stdout:
            sys.stdout.flush()
        for piece in chunks:
            write_all(number, piece)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError(
            "cannot write to standard output" if number == 1 else f"descriptor {number} cannot be written",
            cause=str(error.strerror),
            remedy="make space where it leads to, or name a file, then run the command again",
            code="disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "file-unwritable",
        ) from error


def _write_through(place: Place, mode: int, *, chunks: Iterable[bytes]) -> None:
    """Write to a device, a pipe or a socket."""
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
    """Raise HostError (path-impossible) if no file can have this path."""
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
        cause="it holds a NUL character" if is_whole else "it holds half a character",
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
