"""kubeup/doctor/looks/machine_events.py: what the kernel and systemd say went wrong."""

from __future__ import annotations

import pytest

from tests.unit.doctor.doctor_case import make_host, notes, remedies


@pytest.mark.parametrize(
    ("lines", "level", "says"),
    [
        (["blk_update_request: I/O error, dev sda, sector 1234 op 0x0:(READ)"], "error", "a disk fails: blk_update_request: I/O error, dev sda"),
        (["EXT4-fs error (device vdb1): ext4_find_entry:1455: inode #2: comm ls: reading directory lblock 0"], "error", "a disk fails: EXT4-fs error"),
        (["XFS (sdb1): Corruption of in-memory data detected.  Shutting down filesystem"], "error", "a disk fails: XFS (sdb1)"),
        (["Out of memory: Killed process 71 (java) total-vm:1kB", "Out of memory: Killed process 72 (etcd) total-vm:1kB"], "warning",
         "no memory left, and the kernel killed java, etcd (2 times since yesterday)"),
        (["nf_conntrack: nf_conntrack: table full, dropping packet"], "warning", "its table of connections was full (once since yesterday)"),
        (["neighbour: arp_cache: neighbor table overflow!"], "warning", "table of neighbours is too small"),
        (["INFO: task etcd:4242 blocked for more than 120 seconds."], "warning", "stood still"),
        (["cgroup: fork rejected by pids controller in /kubepods.slice/x"], "warning", "/kubepods.slice/x has as many processes"),
        (["mce: [Hardware Error]: Machine check events logged"], "error", "broken hardware"),
        (["Memory cgroup out of memory: Killed process 71 (java) total-vm:1kB"], "", ""),
        (["audit: I/O of nothing", "EXT4-fs (vda1): mounted filesystem with ordered data mode"], "", ""),
    ],
)  # fmt: skip
def test_what_the_kernel_reports(lines: list[str], level: str, says: str) -> None:
    """A pod that reaches its own limit is its owner's concern."""
    host = make_host()
    host.answers["journalctl -k"] = "\n".join(lines)
    found = notes(host, "events")
    assert [one for one, _ in found] == ([level] if level else [])
    assert all(says in text for _, text in found)


def test_services_that_failed_are_told_once() -> None:
    """kb's own that another look judges, and those that no node needs, are left out."""
    host = make_host()
    names = ("kb-mirror.service", "kb-certs.service", "kb-backup.service", "chronyd.service", "man-db.service")
    host.answers["systemctl list-units"] = "".join(f"{name} loaded failed failed Some words\n" for name in names)
    assert notes(host, "events") == [
        ("warning", "kb-mirror.service has failed"),
        ("warning", "chronyd.service has failed"),
    ]


def test_a_reboot_that_is_due() -> None:
    host = make_host()
    host.files["/run/reboot-required"] = b"*** System restart required ***\n"
    host.files["/run/reboot-required.pkgs"] = b"linux-image-amd64\nlibc6\nlinux-image-amd64\n"
    told = "packages were upgraded that only a reboot brings into use (linux-image-amd64, libc6)"
    assert notes(host, "events") == [("warning", told)]
    assert remedies(host, "events") == ["on a control plane: kb node reboot cp1"]


@pytest.mark.parametrize(("state", "told"), [("disabled", True), ("enabled", False), ("static", False), ("", False)])
def test_a_runtime_that_nobody_starts_at_the_next_boot(state: str, told: bool) -> None:
    host = make_host()
    host.answers["systemctl is-enabled"] = state
    found = notes(host, "events")
    wanted = ("warning", "containerd is not enabled: after the next boot this node has no container runtime")
    assert found == ([wanted] if told else [])  # kb's own units are not here
    assert not told or remedies(host, "events") == ["systemctl enable containerd"]


def test_a_runtime_that_is_masked() -> None:
    host = make_host()
    host.answers["systemctl is-enabled"] = "masked"
    ((_, told),) = notes(host, "events")
    assert told.startswith("containerd is masked: after the next boot")
    assert remedies(host, "events") == ["systemctl unmask containerd; systemctl enable containerd"]
