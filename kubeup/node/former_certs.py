"""The certificates, keys and kubeconfigs that a renewal replaced: copies for root alone in kb's own folder, the last few renewals'.

This module copies and puts back, and does not know which certificates there are. Reset removes the folder with everything that is
kb's own. Mirrors the backups that kubeadm's upgrade keeps in /etc/kubernetes/tmp; its renewal keeps none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Optional

from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.paths import Paths

KEPT = 3
"""How many renewals' copies stay."""


@frozen
class Former:
    """The copies of one renewal: the file /etc/kubernetes/x is at `folder`/etc/kubernetes/x."""

    folder: Path
    files: tuple[Path, ...]
    """The paths of the files that were copied, sorted."""

    def copy_of(self, path: Path) -> Path:
        return self.folder / path.relative_to("/")


def keep_former(host: Host, paths: Paths, *, files: Iterable[Path]) -> Former:
    """Copy those of these files that exist, and remove the copies of older renewals. Raises HostError (disk-full, ...): nothing is
    lost then, and nothing must be renewed."""
    folder = _new_folder(host, paths)
    former = Former(folder, tuple(sorted(path for path in set(files) if host.exists(path))))
    for path in former.files:
        copy = former.copy_of(path)
        for parent in reversed([one for one in copy.parents if folder in one.parents]):
            host.make_dir(parent, mode=0o700)
        host.write_file(copy, host.read_bytes(path), mode=0o600)
    for name in _list_folders(host, paths)[:-KEPT]:
        host.remove_tree(paths.former_certs / name)
    return former


def put_back(host: Host, former: Former, *, files: Iterable[Path]) -> list[Path]:
    """Write the former content of these files, if it was kept; a key before its certificate. Returns the paths that were written."""
    wanted = set(files)
    chosen = sorted((path for path in former.files if path in wanted), key=lambda path: path.suffix != ".key")
    for path in chosen:
        host.write_file(path, host.read_bytes(former.copy_of(path)), mode=0o600, keeps=True)
    return chosen


def find_former(host: Host, paths: Paths, *, files: Iterable[Path]) -> Optional[Former]:
    """The newest renewal that kept the first of these files, with those of them that it kept; None if none did."""
    first, *_ = wanted = tuple(files)
    for copy in find_copies(host, paths, path=first):
        former = Former(copy.parents[len(first.parts) - 2], wanted)
        return Former(former.folder, tuple(sorted(path for path in wanted if host.exists(former.copy_of(path)))))
    return None


def find_copies(host: Host, paths: Paths, *, path: Path) -> Iterator[Path]:
    """The copies of a file, the newest first."""
    for name in reversed(_list_folders(host, paths)):
        copy = paths.former_certs / name / path.relative_to("/")
        if host.exists(copy):
            yield copy


def _new_folder(host: Host, paths: Paths) -> Path:
    """A folder named by the time, `20260101T000000Z`; with a number if two renewals fall into one second."""
    for folder in (paths.state_dir, paths.former_certs):
        host.make_dir(folder, mode=0o700)
    stem = f"{host.now():%Y%m%dT%H%M%SZ}"
    taken = [name for name in _list_folders(host, paths) if name.startswith(stem)]
    name = f"{stem}.{_number_of(taken[-1]) + 1}" if taken else stem
    host.make_dir(paths.former_certs / name, mode=0o700)
    return paths.former_certs / name


def _list_folders(host: Host, paths: Paths) -> list[str]:
    """The names of the copies' folders, oldest first."""
    names = host.list_dir(paths.former_certs) if host.is_dir(paths.former_certs) else []
    found = [name for name in names if re.fullmatch(r"\d{8}T\d{6}Z(\.\d+)?", name)]
    return sorted(found, key=lambda name: (name[:16], _number_of(name)))


def _number_of(name: str) -> int:
    return int(name[17:] or 1)
