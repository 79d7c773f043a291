"""A kubeconfig that was renewed under a component which reads it only when it starts: it goes on with the former certificate, and stands
still on the day that this one ends.

That is what a renewal leaves which was cut off before the restart, and one of kubeadm's whose last line nobody followed. No server shows
a client's certificate, so the time of the file is compared with that of the container. Knows neither commands nor phases. kubeadm has no
counterpart.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path

from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node import containers, renewal
from kubeup.node.renewal import Row
from kubeup.paths import Paths


@frozen
class Unread:
    """The kubeconfig of a row, and since when its reader has run, which is before the file was written."""

    row: Row
    file: Path
    since: datetime.datetime

    def describe(self) -> str:
        """What is wrong, in a sentence."""
        return (
            f"{self.row.reader} has run since {self.since:%Y-%m-%d %H:%M:%S} UTC, and {self.file} was written after that: it goes on with "
            "the former certificate, and stops working when that ends"
        )


def find_unread(host: Host, paths: Paths, *, socket: str, rows: Iterable[Row]) -> list[Unread]:
    """Those of these rows. Whatever does not run, and a runtime that does not answer, is another matter, and left out."""
    wanted = {row.reader: row for row in rows if row.reader}
    started: dict[str, int] = {}
    for item in containers.list_containers(host, socket) if wanted else ():
        if item.state == "running" and item.name in wanted and item.namespace in ("kube-system", ""):
            started[item.name] = max(started.get(item.name, 0), item.created_ns)
    found = []
    for name, row in wanted.items():
        began_ns, file = started.get(name, 0), renewal.files_of(paths, row)[-1]
        seen = host.stat(host.real_path(file)) if host.exists(file) else None
        if seen is not None and began_ns and seen.mtime * 1e9 > began_ns:
            since = datetime.datetime.fromtimestamp(began_ns / 1e9, datetime.timezone.utc)
            found.append(Unread(row, file, since))
    return found
