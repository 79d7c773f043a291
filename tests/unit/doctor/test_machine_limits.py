"""kubeup/doctor/looks/machine_limits.py: what a machine runs out of, against the limits that count."""

from __future__ import annotations

import pytest

from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import make_host, notes, remedies

GIB = 2**20
"""In df's KiB."""


def df(*rows: tuple[int, int, str]) -> str:
    head = "Filesystem 1024-blocks Used Available Capacity Mounted on\n"
    return head + "".join(f"/dev/vda {total} {total - free} {free} 1% {point}\n" for total, free, point in rows)


def host_with(space: tuple[int, int], inodes: tuple[int, int] = (1000, 900), *, point: str = "/") -> FakeHost:
    """A machine with one disk for everything: (total, free)."""
    host = make_host()
    host.dirs.update({"/var/lib/containerd", "/var/log", "/data/etcd"})
    host.answers["df -Pk"] = df(*[(*space, point)] * 5)
    host.answers["df -Pi"] = df(*[(*inodes, point)] * 5)
    return host


def test_room_enough_needs_no_word() -> None:
    assert notes(host_with((100 * GIB, 40 * GIB)), "machine") == []
    assert notes(make_host(), "machine") == []  # no df that answers


@pytest.mark.parametrize(
    ("free", "level", "says"),
    [
        (17, "ok", ""),
        (16, "warning", "/ has 16.0 GiB (16 %) left: the kubelet will evict pods, and start no new ones, below 15 % (imagefs.available)"),
        (14, "error", "/ has 14.0 GiB (14 %) left: the kubelet evicts pods, and starts no new ones, below 15 % (imagefs.available)"),
    ],
)  # fmt: skip
def test_a_disk_that_makes_the_kubelet_evict_pods_is_told_once(free: int, level: str, says: str) -> None:
    host = host_with((100 * GIB, free * GIB))
    assert notes(host, "machine") == ([(level, says)] if says else [])


def test_what_the_kubelet_s_configuration_says_replaces_the_defaults() -> None:
    host = host_with((100 * GIB, 9 * GIB))
    config = host.files["/var/lib/kubelet/config.yaml"]
    host.files["/var/lib/kubelet/config.yaml"] = config + b"evictionHard: {nodefs.available: 4Gi}\n"
    assert notes(host, "machine") == []
    host.files["/var/lib/kubelet/config.yaml"] += b"mergeDefaultEvictionSettings: true\n"
    assert [level for level, _ in notes(host, "machine")] == ["error"]
    host.files["/var/lib/kubelet/config.yaml"] = config + b"evictionHard: {nodefs.available: 20Gi}\n"
    ((level, text),) = notes(host, "machine")
    assert level == "error" and "below 20 % (nodefs.available)" in text


def test_inodes_and_disks_that_no_kubelet_keeps_free() -> None:
    ((level, text),) = notes(host_with((100 * GIB, 40 * GIB), (1000, 30)), "machine")
    assert (level, text) == (
        "error",
        "/ has 30 inodes (3 %) left: the kubelet evicts pods, and starts no new ones, below 5 % (imagefs.inodesFree)",
    )
    assert notes(host_with((100 * GIB, 40 * GIB), (0, 0)), "machine") == []  # btrfs has no number of inodes
    host = host_with((100 * GIB, 40 * GIB))
    host.answers["df -Pk"] = df(
        *[(100 * GIB, 40 * GIB, "/")] * 2, (10 * GIB, 0, "/var/log"), (GIB, GIB, "/run"), (8 * GIB, 4 * GIB, "/data")
    )
    assert notes(host, "machine") == [("error", "/var/log has 0.0 GiB (0 %) left, and /var/log needs it")]
    assert remedies(host, "machine") == ["make space; what takes it: du -xh /var/log | sort -h | tail"]


def test_folders_that_nobody_can_write_to() -> None:
    host = host_with((100 * GIB, 40 * GIB))
    host.answers["lsattr -d"] = (
        "--------------e------- /etc/kubernetes/manifests\n----i---------e------- /etc/kubernetes/pki\n"
    )
    ((level, text),) = notes(host, "machine")
    assert level == "warning" and text.startswith(
        "nothing can be written to /etc/kubernetes/pki: certificates are not renewed"
    )
    assert remedies(host, "machine") == ["chattr -i /etc/kubernetes/pki"]


def test_a_disk_that_became_read_only() -> None:
    host = host_with((100 * GIB, 40 * GIB))
    host.files["/proc/mounts"] = b"/dev/vda / ext4 rw 0 0\n/dev/vdb /data ext4 ro,relatime 0 0\n"
    assert notes(host, "machine") == [("error", "/data is mounted read-only, and a node writes to /data/etcd")]


@pytest.mark.parametrize(
    ("files", "level", "says"),
    [
        (
            {"net/netfilter/nf_conntrack_count": "262000\n", "net/netfilter/nf_conntrack_max": "262144\n"},
            "error",
            "262000 connections are tracked of 262144 (net.netfilter.nf_conntrack_max): packets of new connections are dropped",
        ),
        (
            {"net/netfilter/nf_conntrack_count": "240000\n", "net/netfilter/nf_conntrack_max": "262144\n"},
            "warning",
            "at the limit packets of new connections are dropped",
        ),
        ({"net/netfilter/nf_conntrack_count": "2400\n", "net/netfilter/nf_conntrack_max": "262144\n"}, "ok", ""),
        ({"fs/file-nr": "1000\t0\t1000\n"}, "error", "1000 files are open of 1000 (fs.file-nr)"),
        ({"kernel/pid_max": "32768\n"}, "error", "32767 threads run of 32768 (kernel.pid_max)"),
    ],
)
def test_tables_of_the_kernel_that_are_full(files: dict[str, str], level: str, says: str) -> None:
    host = make_host()
    host.files.update({f"/proc/sys/{name}": text.encode() for name, text in files.items()})
    host.files["/proc/loadavg"] = b"0.10 0.20 0.30 2/32767 12345\n"
    found = notes(host, "machine")
    assert [one for one, _ in found] == ([level] if says else [])
    assert all(says in text for _, text in found)


def test_a_machine_on_whose_way_packets_are_lost() -> None:
    host = host_with((100 * GIB, 40 * GIB))
    line = "0 0 10.77.0.14:42000 {}:6443 cubic wscale:7,7 rto:204 segs_out:{} segs_in:9{}\n"
    well = line.format("10.77.0.12", 9000, " retrans:0/30") + line.format("10.77.0.13", 400, "")
    host.answers["ss -tinHO"] = well
    assert notes(host, "machine") == []
    host.answers["ss -tinHO"] = well + line.format("[::ffff:10.77.0.11]", 100, " retrans:1/45")
    ((level, text),) = notes(host, "machine")
    assert (level, text) == (
        "warning",
        "packets to 10.77.0.11, or its answers, are lost: TCP had to send 45 of 100 segments again",
    )


def test_a_file_system_over_etcd_s_data() -> None:
    host = host_with((100 * GIB, 40 * GIB))
    host.files["/proc/mounts"] = b"/dev/vda / ext4 rw 0 0\n/dev/vdb /data/etcd ext4 rw 0 0\n"
    assert notes(host, "machine") == []
    host.files["/proc/mounts"] += b"tmpfs /data/etcd tmpfs rw 0 0\n"
    ((level, text),) = notes(host, "machine")
    assert level == "error" and text.startswith(
        "a file system in memory is mounted at /data/etcd: it hides what etcd kept there"
    )
