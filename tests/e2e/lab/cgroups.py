"""A cgroup of its own for each node, so that kubelets do not take each other's pods for their own.

Owns: making, entering, emptying and removing the groups named after a node, in every hierarchy of cgroup version 1 (or in the one
of version 2). They lie below the group of the process that makes them, which is all an unprivileged corner may be given.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

CGROUPFS = Path("/sys/fs/cgroup")


def list_own_groups() -> list[Path]:
    """The folder of this process's cgroup in every hierarchy that is mounted."""
    folders = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            unified = CGROUPFS / "unified"
            top = unified if unified.is_dir() else CGROUPFS
        else:
            top = CGROUPFS / controllers.replace("name=", "")
        folder = top / path.lstrip("/")
        if (folder / "cgroup.procs").exists():
            folders.append(folder)
    return folders


def make_groups(name: str) -> list[Path]:
    """Make the group `name` in every hierarchy, ready to take processes."""
    groups = []
    for own in list_own_groups():
        # A process of version 2 may not have both processes and children with controllers: use the top there.
        group = (CGROUPFS if (own / "cgroup.controllers").exists() and own.is_relative_to(CGROUPFS)
                 and not (CGROUPFS / "unified").is_dir() else own) / name  # fmt: skip
        group.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # A new cpuset of version 1 is empty, and an empty one takes nobody.
            if (group / setting).exists() and (own / setting).exists() and not (group / setting).read_text().strip():
                (group / setting).write_text((own / setting).read_text())
        groups.append(group)
    return groups


def _walk_up(group: Path) -> list[Path]:
    """A group and all below it, the deepest first."""
    return [Path(top) for top, _, _ in os.walk(group, topdown=False)]


def list_processes(groups: list[Path]) -> set[int]:
    """The processes in these groups and below."""
    found: set[int] = set()
    for group in groups:
        for folder in _walk_up(group):
            with contextlib.suppress(OSError):
                found.update(int(word) for word in (folder / "cgroup.procs").read_text().split())
    return found


def remove_groups(groups: list[Path], *, timeout_s: float = 15) -> None:
    """Kill what is left in these groups (all of it was started by the node they belong to) and remove them."""
    deadline = time.monotonic() + timeout_s
    while (left := list_processes(groups)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    for group in groups:
        for folder in _walk_up(group):
            for _ in range(20):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.05)
