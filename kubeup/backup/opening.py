"""Opens a backup wherever it is: a file, standard input, encrypted or not.

What cannot be read twice is copied to a file without a name first, which is gone when the backup is closed. Whoever gets a Backup has a
whole one (archive.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kubeup.backup import archive, encryption
from kubeup.errors import HostError
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths

_CHUNK = 1 << 20
_BEGIN = 512
_MARGIN = 16 << 20
_SPARE_FOLDER = Path("/var/tmp")  # noqa: S108


def scratch_folder(local: LocalHost, paths: Paths) -> Path:
    """Where files without a name may be large: not a file system in memory."""
    return paths.state_dir if local.is_dir(paths.state_dir) else _SPARE_FOLDER


@contextlib.contextmanager
def open_backup(local: LocalHost, target: str, *, identity: str = "") -> Iterator[archive.Backup]:
    """The backup in a file, or for `-` on standard input. identity: the file of age's key, if it is encrypted with age.

    Raises HostError: file-unreadable, not-a-backup, backup-encrypted, backup-key-wrong, encryption-missing, backup-too-new,
    backup-truncated, backup-damaged, disk-full.
    """
    path = Path("/dev/stdin") if target == "-" else Path(target).absolute()
    what = "standard input" if target == "-" else str(path)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(local.open_read(path))
        begin = _read_begin(file)
        by = archive.find_encryption(begin)
        if by and (identity or by != "age"):
            plain = encryption.decrypt(local, by, identity=identity, chunks=_rest(file, begin=begin), what=what)
            file = stack.enter_context(_keep(local, plain, size=_size(local, path), what=what))
        elif not file.seekable():
            file = stack.enter_context(_keep(local, _rest(file, begin=begin), size=0, what=what))
        else:
            file.seek(0)
        yield archive.Backup(file, what=what)


def _read_begin(file: BinaryIO) -> bytes:
    begin = b""
    while len(begin) < _BEGIN and (piece := file.read(_BEGIN - len(begin))):
        begin += piece
    return begin


def _rest(file: BinaryIO, *, begin: bytes) -> Iterator[bytes]:
    yield begin
    while piece := file.read(_CHUNK):
        yield piece


def _size(local: LocalHost, path: Path) -> int:
    found = local.stat(path)
    return found.size if found and found.is_regular else 0


def _keep(local: LocalHost, chunks: Iterator[bytes], *, size: int, what: str) -> BinaryIO:
    """A file without a name that holds the chunks."""
    folder = scratch_folder(local, Paths())
    free = local.free_bytes(folder)
    if free < size + _MARGIN:
        raise HostError(
            f"there is no room to open {what}",
            cause=f"it needs {(size + _MARGIN) >> 20} MiB, and the file system of {folder} has {free >> 20} MiB free",
            remedy=f"make space there: df -h {folder}",
            code="disk-full",
        )
    file = local.open_scratch(folder)
    try:
        for piece in chunks:
            file.write(piece)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
