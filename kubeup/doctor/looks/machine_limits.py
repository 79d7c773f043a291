"""Checks of what a machine runs out of on a later day: disks, connections, files, processes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.doctor.node_files import Patient
from kubeup.frozen_values import frozen
from kubeup.machine import mounts
from kubeup.machine.host import Host
from kubeup.node import crictl

# ---- disks

_DISK, _INODES, _IMAGES, _IMAGE_INODES = (
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
)
_DEFAULTS = {_DISK: "10%", _INODES: "5%", _IMAGES: "15%", _IMAGE_INODES: "5%"}
"""What of its disks the kubelet keeps free by evicting pods. Source: pkg/kubelet/eviction/defaults_linux.go"""
_LITTLE_PERCENT, _NOTHING_PERCENT, _LITTLE_KIB = 5, 0.1, 2**20
"""Of a disk that no kubelet keeps free."""
_MARGIN_PERCENT = 2
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@frozen
class _Disk:
    """A row of df. total, free: KiB, or inodes."""

    total: int
    free: int
    point: str

    @property
    def percent(self) -> float:
        return 100 * self.free / self.total


def look_at_limits(patient: Patient) -> Findings:
    """What the machine runs out of."""
    yield from _look_at_mounts(patient)
    yield from _look_at_hidden_data(patient)
    yield from _look_at_locks(patient)
    yield from _look_at_disks(patient)
    yield from _look_at_tables(patient.host)
    yield from _look_at_losses(patient.host)


def _find_folders(patient: Patient) -> dict[str, tuple[str, str]]:
    """Folder -> the kubelet's signals for its bytes and inodes; none for one that the kubelet does not watch. The strictest comes first."""
    images = crictl.data_folder(crictl.unit_of(patient.config.node.cri_socket))
    folders = {
        images: (_IMAGES, _IMAGE_INODES),
        "/var/lib/kubelet": (_DISK, _INODES),
        "/var/log": ("", ""),
        "/run": ("", ""),
    }
    if "etcd" in patient.components:
        folders[str(patient.paths.etcd_data)] = ("", "")
    return {folder: signals for folder, signals in folders.items() if patient.host.exists(Path(folder))}


def _look_at_mounts(patient: Patient) -> Findings:
    """A disk that fails is mounted read-only by its kernel, and the node goes on for a while."""
    points: dict[str, list[str]] = {}
    for folder in (*_find_folders(patient), str(patient.paths.kubernetes)):
        point = mounts.find_read_only_mount(patient.host, Path(folder))
        if point:
            points.setdefault(point, []).append(folder)
    for point, folders in points.items():
        text = f"{point} is mounted read-only, and a node writes to {', '.join(folders)}"
        remedy = f"see why: dmesg --level=err,warn | tail; when its disk is well: mount -o remount,rw {point}"
        yield Finding("machine/mounts", ERROR, text, remedy)


def _look_at_hidden_data(patient: Patient) -> Findings:
    """A file system in memory that was mounted over etcd's data: what is beneath is whole, and a member that begins without it is refused."""
    data = str(patient.paths.etcd_data)
    rows = [line.split() for line in facts.read_or_empty(patient.host, "/proc/mounts").splitlines()]
    if "etcd" in patient.components and any(
        row[1:3] in ([data, "tmpfs"], [data, "ramfs"]) for row in rows if len(row) > 2
    ):
        text = f"a file system in memory is mounted at {data}: it hides what etcd kept there, and what etcd keeps in it is gone after a reboot"
        remedy = f"if the data are beneath it: umount {data} (see what mounted it: findmnt {data}; grep {data} /etc/fstab); then: systemctl restart kubelet"
        yield Finding("machine/mounts", ERROR, text, remedy)


def _look_at_locks(patient: Patient) -> Findings:
    """Folders whose files nobody can replace, root neither, as hardening scripts make them. Source: chattr(1)"""
    paths = patient.paths
    folders = (paths.manifests, paths.pki, paths.kubernetes, paths.kubelet_client_pem.parent, paths.cni_conf)
    some = [str(folder) for folder in folders if patient.host.exists(folder)]
    answer = patient.host.query(["lsattr", "-d", *some], timeout_s=10)
    rows = [line.split(None, 1) for line in answer.stdout.splitlines()]
    locked = [row[1] for row in rows if len(row) == 2 and "i" in row[0]]
    if locked:
        text = f"nothing can be written to {' and '.join(locked)}: certificates are not renewed, and no change goes through"
        yield Finding(
            "machine/locks", WARNING, f"{text} (lsattr -d shows the attribute i)", f"chattr -i {' '.join(locked)}"
        )


def _look_at_disks(patient: Patient) -> Findings:
    """Bytes and inodes of the disks of the folders that matter, against what makes the kubelet evict pods."""
    folders = _find_folders(patient)
    for index, (what, flag) in enumerate((("space", "-Pk"), ("inodes", "-Pi"))):
        told = set[str]()
        for folder, disk in zip(folders, _read_disks(patient.host, list(folders), flag=flag)):
            finding = _judge_disk(patient, folder, disk=disk, signal=folders[folder][index], what=what)
            if finding and disk.point not in told:
                told.add(disk.point)
                yield finding


def _read_disks(host: Host, folders: Sequence[str], *, flag: str) -> list[_Disk]:
    """The rows of df for these folders; [] if it does not answer for each of them. Source: POSIX, df -P"""
    answer = host.query(["df", flag, *folders], timeout_s=10)
    rows = [line.split(None, 5) for line in answer.stdout.splitlines()[1:]]
    disks = [
        _Disk(int(row[1]), int(row[3]), row[5])
        for row in rows
        if len(row) == 6 and row[1].isdigit() and row[3].isdigit()
    ]
    return disks if len(disks) == len(folders) else []


def _judge_disk(patient: Patient, folder: str, *, disk: _Disk, signal: str, what: str) -> Optional[Finding]:
    if not disk.total:  # a file system that makes inodes as it needs them
        return None
    is_space = what == "space"
    amount = f"{disk.free / 2**20:.1f} GiB" if is_space else f"{disk.free} inodes"
    left = f"{disk.point} has {amount} ({disk.percent:.0f} %) left"
    find = f"du -xh {disk.point} | sort -h | tail" if is_space else f"du -x --inodes {disk.point} | sort -n | tail"
    remedy = f"make space; what takes it: {find}"
    if not signal:
        is_little = disk.percent < _LITTLE_PERCENT or (is_space and disk.free < _LITTLE_KIB and disk.percent < 50)
        level = ERROR if disk.percent < _NOTHING_PERCENT else WARNING
        return Finding(f"machine/{what}", level, f"{left}, and {folder} needs it", remedy) if is_little else None
    least = _read_threshold(patient, signal, disk=disk)
    if disk.percent >= least + _MARGIN_PERCENT:
        return None
    does = "evicts pods, and starts no new ones," if disk.percent < least else "will evict pods, and start no new ones,"
    text = f"{left}: the kubelet {does} below {least:.0f} % ({signal})"
    usual = float(_DEFAULTS[signal].rstrip("%"))
    if least > usual:
        told = f"or correct evictionHard in {patient.paths.kubelet_config} ({signal} is {usual:.0f} % by default) and restart the kubelet"
        remedy = f"make space, {told}; what takes it: {find}"
    return Finding(f"machine/{what}", ERROR if disk.percent < least else WARNING, text, remedy)


def _read_threshold(patient: Patient, signal: str, *, disk: _Disk) -> float:
    """The percentage below which the kubelet evicts pods. Its configuration replaces all defaults once it names one. Source: KubeletConfiguration
    evictionHard, mergeDefaultEvictionSettings"""
    told = patient.config.kubelet.get("evictionHard")
    wanted = {str(name): str(value) for name, value in told.items()} if isinstance(told, dict) and told else {}
    if not wanted or patient.config.kubelet.get("mergeDefaultEvictionSettings"):
        wanted = {**_DEFAULTS, **wanted}
    text = wanted.get(signal, "0%")
    if text.endswith("%"):
        number = text[:-1]
        return float(number) if re.fullmatch(r"\d+(\.\d+)?", number) else 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]i|[kMGT]?)", text)
    if not match:
        return 0.0
    amount = float(match[1]) * _UNITS[match[2]]
    return 100 * amount / (disk.total * (1024 if signal.endswith("available") else 1))


# ---- tables of the kernel


@frozen
class _Table:
    """Something of which the kernel has a limited number: the file with the count, the one with the limit, both with the field that counts."""

    what: str
    count: tuple[str, int]
    limit: tuple[str, int]
    happens: str
    remedy: str


_TABLES = (
    _Table(
        "connections are tracked",
        ("/proc/sys/net/netfilter/nf_conntrack_count", 0),
        ("/proc/sys/net/netfilter/nf_conntrack_max", 0),
        "packets of new connections are dropped",
        "see whose they are: conntrack -L -o extended | awk '{print $7}' | sort | uniq -c | sort -n | tail; or raise conntrack.maxPerCore in "
        "kube-proxy's configuration",
    ),
    _Table(
        "files are open",
        ("/proc/sys/fs/file-nr", 0),
        ("/proc/sys/fs/file-nr", 2),
        "no program can open a file or take a connection",
        "raise it: sysctl -w fs.file-max=NUMBER, and in /etc/sysctl.d",
    ),
    _Table(
        "threads run",
        ("/proc/loadavg", 4),
        ("/proc/sys/kernel/pid_max", 0),
        "no program can start another one",
        "see whose they are: ps -eLo comm= | sort | uniq -c | sort -n | tail; or raise it: sysctl -w kernel.pid_max=NUMBER",
    ),
)
_MUCH, _ALL = 0.9, 0.99


_AGAIN_PERCENT, _AGAIN_LEAST = 10, 20
"""Of the segments to one machine, in connections that last. A network that is well loses less than one of a hundred."""


def _look_at_losses(host: Host) -> Findings:
    """Machines to which TCP had to send much again: a bad cable, a full link, a rule that drops some. Source: ss(8), tcp_info"""
    lines = host.query(["ss", "-tinHO", "state", "established"], timeout_s=5).stdout.splitlines()
    sent: dict[str, list[int]] = {}
    for words, line in ((line.split(), line) for line in lines):
        again, out = re.search(r"\bretrans:\d+/(\d+)", line), re.search(r"\bsegs_out:(\d+)", line)
        if len(words) > 3 and again and out:
            peer = words[3].rpartition(":")[0].strip("[]").removeprefix("::ffff:")
            counts = sent.setdefault(peer, [0, 0])
            counts[0], counts[1] = counts[0] + int(again[1]), counts[1] + int(out[1])
    for peer, (again_count, out_count) in sent.items():
        if again_count >= _AGAIN_LEAST and 100 * again_count > _AGAIN_PERCENT * out_count:
            text = f"packets to {peer}, or its answers, are lost: TCP had to send {again_count} of {out_count} segments again"
            remedy = f"see where: ping -c 100 -i 0.02 {peer}; ip -s link; nft list ruleset (rules that drop some)"
            yield Finding("machine/losses", WARNING, text, remedy)


def _look_at_tables(host: Host) -> Findings:
    for row in _TABLES:
        count, limit = _read_number(host, row.count), _read_number(host, row.limit)
        if not count or not limit or count < limit * _MUCH:
            continue
        name = row.limit[0].removeprefix("/proc/sys/").replace("/", ".")
        level, happens = (ERROR, row.happens) if count >= limit * _ALL else (WARNING, f"at the limit {row.happens}")
        yield Finding("machine/limits", level, f"{count} {row.what} of {limit} ({name}): {happens}", row.remedy)


def _read_number(host: Host, place: tuple[str, int]) -> int:
    path, field = place
    words = re.split(r"[\s/]+", facts.read_or_empty(host, path).strip())
    return int(words[field]) if len(words) > field and words[field].isdigit() else 0
