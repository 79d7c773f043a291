"""The recovery of etcd from its last member, on disk: written before the first change, so that one that was cut off can be continued or
taken back. The file holds whole manifests, which may hold a user's secrets: only root may read it.

    {"schema": 1, "status": "running", "stage": "copied", "member": "cp1", "lost": ["cp2", "cp3"], "copy": "/var/lib/etcd.kb-before-recover",
     "data_dir": "/var/lib/etcd", "etcd": "apiVersion: v1...", "server": "apiVersion: v1..."}
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Optional

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine import record_file
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.swap import store

RUNNING, GOING_BACK, DONE, TAKEN_BACK = "running", "going back", "done", "taken back"
BEGUN, COPIED, ALONE, SERVED = "begun", "copied", "alone", "served"
"""The stages: nothing was changed but the pods; there is a copy of the data; the member is the only one in its list; an API server may
have written since."""


@frozen
class Record:
    """member: this node's name in etcd. lost: the names of the others. etcd, server: the former manifests; server may be ""."""

    member: str
    lost: tuple[str, ...]
    data_dir: str
    copy: str
    etcd: str
    server: str
    status: str = RUNNING
    stage: str = BEGUN


def _file(paths: Paths) -> Path:
    return store.folder(paths) / "recovery.json"


def save(host: Host, paths: Paths, *, record: Record) -> None:
    record_file.write(host, _file(paths), values=dataclasses.asdict(record))


_SHAPE = {
    "status!": str, "stage!": str, "member!": str, "lost!": [str], "data_dir!": str, "copy!": str, "etcd!": str,
    "server!": str,
}  # fmt: skip


def load(host: Host, paths: Paths) -> Optional[Record]:
    """The last recovery, finished or not; None if there was none. Raises HostError (recovery-unreadable)."""
    path = _file(paths)
    if not host.exists(path):
        return None
    try:
        found = record_file.read(host, path, shape=_SHAPE)
        places = [Path(found[name]) for name in ("data_dir", "copy")]
        if not found["etcd"] or not all(place.is_absolute() for place in places):
            raise ValueError("it lacks its manifest or its folders")
        return Record(**{**found, "lost": tuple(found["lost"])})
    except (ValueError, TypeError, KeyError) as error:
        raise HostError(
            f"{path} cannot be read",
            cause=f"it does not describe a recovery of etcd: {error}",
            remedy=f"check the files in {paths.manifests} (they must be the ones that are to run), then: mv {path} {path}.damaged",
            code="recovery-unreadable",
        ) from error


def load_cut_off(host: Host, paths: Paths) -> Optional[Record]:
    """The recovery that was begun and has not ended; None if there is none. Raises HostError (recovery-unreadable)."""
    found = load(host, paths)
    return found if found is not None and found.status in (RUNNING, GOING_BACK) else None
