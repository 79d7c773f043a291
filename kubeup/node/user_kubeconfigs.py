"""The kubeconfigs on this machine that are not the node's own: those that its users keep, and what else lies in /etc/kubernetes.

What lies in a home is its user's, and may be anything: nothing is read that is no file of a kubeconfig's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kubeup.errors import KbError
from kubeup.machine.host import Host
from kubeup.paths import Paths

OWN_FILES = ("admin.conf", "super-admin.conf", "kubelet.conf", "controller-manager.conf", "scheduler.conf")
_MAX_BYTES = 1 << 20
"""More than any kubeconfig has."""
_PASSWD = Path("/etc/passwd")
_USERS = range(1000, 65534)
"""The ids of people, and not of services. Source: login.defs, UID_MIN; nobody is 65534"""
_ENDS = (".conf", ".kubeconfig")


def list_homes(host: Host) -> list[Path]:
    """Those of root and of the users that /etc/passwd or /home knows; others are not on this machine, or not looked at."""
    found = [Path("/root"), *(Path("/home") / name for name in host.list_dir(Path("/home")))]
    rows = [line.split(":") for line in read(host, _PASSWD).splitlines()]
    found += [Path(row[5]) for row in rows if len(row) == 7 and row[2].isdigit() and int(row[2]) in (0, *_USERS)]
    return [home for home in dict.fromkeys(found) if home.is_absolute() and home != Path("/")]


def list_files(host: Host, paths: Paths) -> Iterator[Path]:
    """The files that may be kubeconfigs: ~/.kube/config and those beside it, *.conf and *.kubeconfig in a home, and others' in
    /etc/kubernetes."""
    for home in list_homes(host):
        yield home / ".kube/config"
        yield from (home / ".kube" / name for name in _names(host, home / ".kube") if name != "config")
        yield from (home / name for name in _names(host, home) if name.endswith(_ENDS) or name == "kubeconfig")
    folder = paths.kubeconfigs
    yield from (folder / name for name in _names(host, folder) if name.endswith(".conf") and name not in OWN_FILES)


def _names(host: Host, folder: Path) -> list[str]:
    try:
        return sorted(host.list_dir(folder)) if host.is_dir(folder) else []
    except KbError:
        return []


def read(host: Host, path: Path) -> str:
    """The text of a file; "" unless it is one of a kubeconfig's size."""
    try:
        real = host.real_path(path)
        found = host.stat(real)
        if found is None or found.is_dir or not 0 < found.size <= _MAX_BYTES:
            return ""
        return host.read_bytes(real).decode(errors="replace")
    except KbError:
        return ""
