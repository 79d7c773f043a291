"""Checks of the kernel: its version, its options, and the cgroups. Mirrors k8s.io/system-validators."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Optional

from kubeup.diagnosis.checks.facts import DOCTOR, ERROR, WARNING, Finding, Findings, Node, read_or_empty
from kubeup.errors import HostError
from kubeup.machine.host import Host
from kubeup.releases import kubelet_refuses_cgroup_v1

KERNEL_CONFIGS = (
    "/proc/config.gz",
    "/boot/config-{release}",
    "/usr/src/linux-{release}/.config",
    "/usr/src/linux/.config",
    "/usr/lib/modules/{release}/config",
    "/usr/lib/ostree-boot/config-{release}",
    "/usr/lib/kernel/config-{release}",
    "/usr/src/linux-headers-{release}/.config",
    "/lib/modules/{release}/build/.config",
)
KERNEL_OPTIONS = (
    ("NAMESPACES",), ("NET_NS",), ("PID_NS",), ("IPC_NS",), ("UTS_NS",), ("CPUSETS",), ("MEMCG",), ("INET",),
    ("EXT4_FS",), ("PROC_FS",), ("NETFILTER_XT_TARGET_REDIRECT", "IP_NF_TARGET_REDIRECT"),
    ("NETFILTER_XT_MATCH_COMMENT",), ("FAIR_GROUP_SCHED",),
)  # fmt: skip
"""Options that a kernel must have, built in or as a module; one of several names is enough."""
CGROUP_OPTIONS = {
    1: ("CGROUPS", "CGROUP_CPUACCT", "CGROUP_DEVICE", "CGROUP_FREEZER", "CGROUP_PIDS", "CGROUP_SCHED"),
    2: ("CGROUPS", "CGROUP_BPF", "CGROUP_PIDS", "CGROUP_SCHED"),
}
CONTROLLERS = {
    1: ("cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"),
    2: ("cpu", "cpuset", "devices", "freezer", "memory", "pids"),
}
OPTIONAL_CONTROLLERS = {1: ("hugetlb", "blkio"), 2: ("hugetlb", "io")}
SYSTEM = "SystemVerification"


def check_system(node: Node) -> Findings:
    """The checks of k8s.io/system-validators: kernel version, kernel options, cgroups."""
    kind = read_or_empty(node.host, "/proc/sys/kernel/ostype").strip()
    if kind and kind != "Linux":
        yield Finding(SYSTEM, ERROR, f"the operating system is {kind}", "use Linux")
    version, mount = find_cgroups(node)
    yield from _check_kernel(node, version)
    if version == 0:
        yield Finding(SYSTEM, ERROR, "no cgroup file system is mounted", "mount -t cgroup2 none /sys/fs/cgroup")
        return
    if version == 1:
        yield from _check_cgroup_v1(node)
    yield from _check_controllers(node, version, mount=mount)


def find_cgroups(node: Node) -> tuple[int, str]:
    """The cgroup version (0: none) and its mount point."""
    by_point = {point: kind for point, kind, _ in node.mounts}
    kind = by_point.get("/sys/fs/cgroup")
    if kind == "cgroup2":
        return 2, "/sys/fs/cgroup"
    if kind == "tmpfs" and node.host.is_dir(Path("/sys/fs/cgroup/memory")):
        return 1, "/sys/fs/cgroup"
    first = next(((point, kind) for point, kind, _ in node.mounts if kind in ("cgroup", "cgroup2")), None)
    if first is None:
        return 0, ""
    return (2, first[0]) if first[1] == "cgroup2" else (1, str(Path(first[0]).parent))


def _check_kernel(node: Node, cgroup_version: int) -> Findings:
    release = read_or_empty(node.host, "/proc/sys/kernel/osrelease").strip()
    if release and not re.match(r"5\.4|5\.10|5\.15|([6-9]|\d\d)\.", release):
        yield Finding(
            SYSTEM,
            ERROR if node.release.kernel_mismatch_is_error else WARNING,
            f"kernel {release} is not one that Kubernetes is tested with (5.4, 5.10, 5.15, 6 and later)",
            "boot a newer kernel",
        )
    options = read_kernel_options(node.host, release)
    if options is None:
        yield Finding(
            SYSTEM,
            WARNING if node.workflow == DOCTOR else ERROR,  # a working node proves that its kernel is good enough
            f"the options of kernel {release} cannot be read: there is no /proc/config.gz and no /boot/config-{release}",
            f"install the kernel's package, or go without: --ignore-preflight-errors={SYSTEM}",
        )
        return
    wanted = [*KERNEL_OPTIONS, *((name,) for name in CGROUP_OPTIONS.get(cgroup_version, ()))]
    missing = [names[0] for names in wanted if not any(options.get(name) in ("y", "m") for name in names)]
    if missing:
        listed = ", ".join(f"CONFIG_{name}" for name in missing)
        yield Finding(SYSTEM, ERROR, f"kernel {release} lacks {listed}", "boot your distribution's standard kernel")


def read_kernel_options(host: Host, release: str) -> Optional[dict[str, str]]:
    """CONFIG_ options without the prefix: {"NAMESPACES": "y"}; None if no file lists them."""
    for attempt in (1, 2):
        for pattern in KERNEL_CONFIGS:
            path = Path(pattern.format(release=release))
            if not host.exists(path):
                continue
            try:
                data = host.read_bytes(path)
                text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode(errors="replace")
            except (HostError, OSError, EOFError, zlib.error):
                continue
            return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.MULTILINE))
        if attempt == 1 and not host.run(["modprobe", "configs"], timeout_s=15).ok:
            break
    return None


def _check_cgroup_v1(node: Node) -> Findings:
    """From 1.35 on the kubelet does not start on cgroup v1 unless it is told to; then it works."""
    kubelet = node.kubelet_version
    refuses = kubelet_refuses_cgroup_v1(kubelet) if kubelet else node.release.refuses_cgroup_v1
    name = f"kubelet {kubelet}" if kubelet else f"a kubelet {node.release.name}"
    if refuses and node.kubelet_setting("failCgroupV1", "fail-cgroupv1") is not False:
        yield Finding(
            SYSTEM,
            ERROR,
            f"this machine has cgroup version 1, on which {name} does not start",
            "boot with systemd.unified_cgroup_hierarchy=1 (version 2), or set failCgroupV1: false in the "
            "KubeletConfiguration",
        )
    else:
        yield Finding(
            SYSTEM,
            WARNING,
            "this machine has cgroup version 1, which Kubernetes is dropping",
            "boot with systemd.unified_cgroup_hierarchy=1 (version 2) before an upgrade",
        )


def _check_controllers(node: Node, version: int, *, mount: str) -> Findings:
    have = _read_controllers_v1(node.host) if version == 1 else _read_controllers_v2(node, mount)
    missing = [name for name in CONTROLLERS[version] if name not in have]
    if missing:
        yield Finding(
            SYSTEM,
            ERROR,
            f"missing required cgroups: {' '.join(missing)}",
            "enable them on the kernel's command line (for example cgroup_enable=memory) and reboot",
        )
    unmet = [name for name in OPTIONAL_CONTROLLERS[version] if name not in have]
    if unmet:
        yield Finding(
            SYSTEM,
            WARNING,
            f"missing optional cgroups: {' '.join(unmet)}",
            "they are only needed to limit Pods with them",
        )


def _read_controllers_v1(host: Host) -> set[str]:
    rows = [line.split() for line in read_or_empty(host, "/proc/cgroups").splitlines() if not line.startswith("#")]
    return {row[0] for row in rows if len(row) == 4 and row[3] == "1"}


def _read_controllers_v2(node: Node, mount: str) -> set[str]:
    found = set(read_or_empty(node.host, f"{mount}/cgroup.controllers").split())
    # version 2 has no controllers with these names: eBPF replaces one, a file in every cgroup the other
    found.add("devices")
    if _has_freezer(node.host, Path(mount)):
        found.add("freezer")
    return found


def _has_freezer(host: Host, mount: Path) -> bool:
    children = [mount / name for name in host.list_dir(mount)]
    if any(host.exists(child / "cgroup.freeze") for child in children):
        return True
    if not host.is_live or any(host.exists(child / "cgroup.procs") for child in children):
        return not host.is_live
    # there is only the root cgroup, which lacks this file: look into a new cgroup
    probe = mount / "freezer-test-kb"
    try:
        host.make_dir(probe)
        found = host.exists(probe / "cgroup.freeze")
        host.remove(probe)
    except HostError:
        return False
    return found


def check_cgroup_writable(node: Node) -> Findings:
    version, mount = find_cgroups(node)
    if version == 0:
        return
    points = [f"{mount}/{name}" for name in (*CONTROLLERS[1], "systemd")] if version == 1 else [mount]
    closed = [point for point, _, options in node.mounts if point in points and "ro" in options]
    if closed:
        remount = "; ".join(f"mount -o remount,bind,rw {point}" for point in closed)
        yield Finding(
            "CgroupWritable",
            ERROR,
            f"{', '.join(closed)} {'is' if len(closed) == 1 else 'are'} mounted read-only: the kubelet cannot create cgroups "
            "for Pods",
            remount,
        )
