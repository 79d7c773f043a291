"""The mounts of this machine, and the read-only ones that stop kb from writing."""

from __future__ import annotations

import re
from pathlib import Path

from kubeup.errors import HostError
from kubeup.machine.host import Host


def mounts_below(real: str) -> list[Path]:
    """The mount points strictly below a real path of this machine, deepest first."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        points = [line.split(" ")[4] for line in file]
    # a folder that is mounted twice is listed twice, and has to be unmounted twice
    plain = [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point) for point in points]
    below = [Path(point) for point in plain if point.startswith(f"{real.rstrip('/')}/")]
    return sorted(below, key=lambda place: len(place.parts), reverse=True)


def find_read_only_mount(host: Host, path: Path) -> str:
    """The read-only mount point on which `path` lies; "" if it is writable."""
    try:
        rows = [line.split() for line in host.read_text(Path("/proc/mounts")).splitlines()]
    except HostError:
        return ""
    options = {
        row[1]: row[3].split(",") for row in rows if len(row) > 3
    }  # of several mounts at one point, the last one counts
    above = [point for point in options if path == Path(point) or Path(point) in path.parents]
    nearest = max(above, key=len, default="")
    return nearest if "ro" in options.get(nearest, ()) else ""
