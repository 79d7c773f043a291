"""This process: the Python that runs it, the descriptors it was given, how many files it may open.

Asks about kb's own process alone; other programs run through a Host.
"""

from __future__ import annotations

import functools
import os
import re
import resource
import sys
from pathlib import Path
from typing import Optional

from kubeup.errors import HostError
from kubeup.machine.files import (
    is_root_s_alone,
)


def given_descriptor(target: str) -> Optional[int]:
    """The number of the descriptor of this process that `-`, `/dev/stdout`, `/dev/fd/63` and their like name: to open such a
    name again would begin at the file's start, or ask for rights that the descriptor has already."""
    if target in ("-", "/dev/stdout", "/dev/stderr"):
        return 2 if target == "/dev/stderr" else 1
    found = re.fullmatch(r"(?:/dev/fd|/proc/self/fd)/([0-9]{1,9})", target)
    return int(found[1]) if found else None


def is_stream(target: str) -> bool:
    """Whether output to it goes into a descriptor or a device: no file system holds it, and nothing lies beside it."""
    return given_descriptor(target) is not None or target.startswith("/dev/")


@functools.lru_cache(maxsize=1)
def find_root_python() -> str:
    """The Python that a service of root's may run: this one, the one that a virtual environment was made of, or the system's;
    whichever nobody but root can change. Raises HostError (no-root-python)."""
    base = str(getattr(sys, "_base_executable", "") or "")
    for name in (sys.executable, base, "/usr/bin/python3", "/usr/local/bin/python3", "/usr/libexec/platform-python"):
        is_fit = bool(name) and os.access(name, os.X_OK) and is_root_s_alone(Path(name))
        version = re.search(r"python3\.(\d+)$", os.path.realpath(name)) if name else None
        if is_fit and (version is None or int(version[1]) >= 9) and not _is_virtual(Path(name)):
            return name
    raise HostError(
        "no Python here is root's alone",
        cause=f"a service that runs as root would run {sys.executable}, which somebody else can change",
        remedy="install the system's own: apt-get install python3, or dnf install python3; then run the command again",
        code="no-root-python",
    )


def _is_virtual(python: Path) -> bool:
    """Whether this is the Python of a virtual environment, which goes when that goes."""
    return (python.parent.parent / "pyvenv.cfg").exists()


def raise_descriptor_limit() -> int:
    """Allow this process as many open files as it may have; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
