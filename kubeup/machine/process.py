"""kb's own process: the Python that runs it, the descriptors it inherited, how many files it may open.

Other programs run through a Host.
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
    """The descriptor that `-`, `/dev/stdout`, `/dev/fd/63` and the like refer to. Opening such a path again would start at the
    beginning of the file, or require rights that the descriptor already has."""
    if target in ("-", "/dev/stdout", "/dev/stderr"):
        return 2 if target == "/dev/stderr" else 1
    found = re.fullmatch(r"(?:/dev/fd|/proc/self/fd)/([0-9]{1,9})", target)
    return int(found[1]) if found else None


def is_stream(target: str) -> bool:
    """Whether `target` is a descriptor or a device rather than a file, so that no temporary file can be put beside it."""
    return given_descriptor(target) is not None or target.startswith("/dev/")


@functools.lru_cache(maxsize=1)
def find_root_python() -> str:
    """A Python that root's services may run, because only root can change it: this one, the one that the virtual environment is based
    on, or the system's. Raises HostError (no-root-python)."""
    base = str(getattr(sys, "_base_executable", "") or "")
    for name in (sys.executable, base, "/usr/bin/python3", "/usr/local/bin/python3", "/usr/libexec/platform-python"):
        is_fit = bool(name) and os.access(name, os.X_OK) and is_root_s_alone(Path(name))
        version = re.search(r"python3\.(\d+)$", os.path.realpath(name)) if name else None
        if is_fit and (version is None or int(version[1]) >= 9) and not _is_virtual(Path(name)):
            return name
    raise HostError(
        "no Python on this machine is safe to run as root",
        cause=f"a service that runs as root would run {sys.executable}, which somebody else can change",
        remedy="install the system's own: apt-get install python3, or dnf install python3; then run the command again",
        code="no-root-python",
    )


def _is_virtual(python: Path) -> bool:
    """Whether this is the Python of a virtual environment, which disappears with it."""
    return (python.parent.parent / "pyvenv.cfg").exists()


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open files as far as allowed, up to 65536, and return that number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
