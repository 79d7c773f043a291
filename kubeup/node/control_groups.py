"""The control groups that the kubelet makes for pods, and leaves when it ends. Mirrors pkg/kubelet/cm (cgroupRoot /, both drivers)."""

from __future__ import annotations

from pathlib import Path

from kubeup.machine import services
from kubeup.machine.host import Host

ROOT = Path("/sys/fs/cgroup")
SLICE = "kubepods.slice"
_NAMES = (SLICE, "kubepods")
"""The group of all pods: with the driver systemd, and with cgroupfs."""


def find(host: Host) -> list[Path]:
    """The groups of all pods: one, or with cgroup version 1 one in each hierarchy."""
    is_unified = host.exists(ROOT / "cgroup.controllers")
    names = () if is_unified else host.list_dir(ROOT)
    hierarchies = [ROOT, *(ROOT / name for name in names if host.read_link(ROOT / name) is None)]
    return [folder / name for folder in hierarchies for name in _NAMES if host.is_dir(folder / name)]


def remove(host: Host) -> list[str]:
    """Remove them, unless processes run in one: another kubelet's. Returns what stays, in words."""
    tops = find(host)
    groups = [group for top in tops for group in _list_groups(host, top)]
    busy = [group for group in groups if host.read_text(group / "cgroup.procs").strip()]
    if busy:
        return [f"{busy[0]} stays: processes run in it"]
    if services.find(host) is services.SYSTEMD and any(top.name == SLICE for top in tops):
        host.run(["systemctl", "stop", SLICE])  # it removes those that it knows
    left = [str(group) for group in groups if host.is_dir(group)]
    if left:
        host.run(["rmdir", *left])
    return [f"{path} stays" for path in left if host.is_dir(Path(path))]


def _list_groups(host: Host, top: Path) -> list[Path]:
    """A group and those below it, the deepest first."""
    below = [path for path in (top / name for name in host.list_dir(top)) if host.exists(path / "cgroup.procs")]
    return [*(group for path in below for group in _list_groups(host, path)), top]
