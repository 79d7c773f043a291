"""Checks of what the kernel and systemd say went wrong on this machine, and of a reboot that is due."""

from __future__ import annotations

import re

from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.doctor.node_files import Patient
from kubeup.frozen_values import frozen
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.network import load_balancer, pod_network
from kubeup.node import crictl
from kubeup.phases import node_reboot


@frozen
class _KernelSign:
    pattern: str
    level: str
    text: str
    remedy: str


_LOOK = "journalctl -k --since -1d"
_KERNEL_SIGNS = (
    _KernelSign(
        r"(I/O error, dev \S+?),|(EXT4-fs error \(device \S+?\))|(Buffer I/O error on dev\S* \S+?),|(BTRFS (?:error|critical) \(device \S+?)[ )]"
        r"|(XFS \(\S+?\): (?:Corruption|Metadata corruption|Log I/O Error|Filesystem has been shut down))",
        ERROR,
        "the kernel reports that a disk fails: {line}",
        f"{_LOOK} | grep -i error; then save what is on it, and replace it",
    ),
    _KernelSign(
        r"(?:^|: )Out of memory: Killed process \d+ \(([^)]*)\)",
        WARNING,
        "this machine had no memory left, and the kernel killed {seen} ({times})",
        "give its pods memory limits, or reserve some for the system (systemReserved in the kubelet's configuration)",
    ),
    _KernelSign(
        r"nf_conntrack: (?:nf_conntrack: )?table full, dropping packet",
        WARNING,
        "the kernel dropped packets because its table of connections was full ({times})",
        "raise conntrack.maxPerCore in kube-proxy's configuration, or: sysctl net.netfilter.nf_conntrack_max",
    ),
    _KernelSign(
        r"neighbou?r(?:: | table: )(?:arp_cache|ndisc_cache)\S* (?:neighbor )?table overflow",
        WARNING,
        "the kernel's table of neighbours is too small for this network: {line}",
        "sysctl -w net.ipv4.neigh.default.gc_thresh3=8192 (ipv6 too, and gc_thresh2 half of it), and in /etc/sysctl.d",
    ),
    _KernelSign(
        r"task (\S+?):\d+ blocked for more than|watchdog: BUG: soft lockup",
        WARNING,
        "the kernel reports that this machine stood still: {line}",
        "see what it waited for (most often a disk or a network file system): " + _LOOK,
    ),
    _KernelSign(
        r"cgroup: fork rejected by pids controller in (\S+)",
        WARNING,
        "{seen} has as many processes as it may have, and gets no more",
        "raise podPidsLimit in the kubelet's configuration, or see why it starts so many: systemd-cgtop",
    ),
    _KernelSign(
        r"mce: \[Hardware Error\]|EDAC MC\d+: \d+ UE ",
        ERROR,
        "the kernel reports broken hardware: {line}",
        f"{_LOOK} | grep -iE 'hardware error|edac', and replace what it names",
    ),
)
"""What a kernel says when a machine is about to fail a cluster. Sources: mm/oom_kill.c, net/netfilter/nf_conntrack_core.c, net/core/neighbour.c,
kernel/hung_task.c, kernel/cgroup/pids.c, block/blk-core.c, fs/ext4/super.c, fs/xfs"""
_MOST_LINES = 5000


def look_at_events(patient: Patient) -> Findings:
    """What the machine itself has reported."""
    if services.spoken_of(patient.host) is services.SYSTEMD:
        yield from _look_at_kernel_log(patient.host)
        yield from _look_at_units(patient.host)
        yield from _look_at_next_boot(patient)
    due = next(filter(patient.host.exists, node_reboot.MARKS), None)
    if due is not None:
        packages = facts.read_or_empty(patient.host, f"{due}.pkgs").split()
        of = f" ({', '.join(dict.fromkeys(packages))})" if packages else ""
        text = f"packages were upgraded that only a reboot brings into use{of}"
        yield Finding("events/reboot", WARNING, text, f"on a control plane: kb node reboot {patient.config.node.name}")


def _look_at_kernel_log(host: Host) -> Findings:
    """The kernel's messages of the last day, since this boot. In a container the journal has none: its kernel is also others'."""
    argv = ["journalctl", "-k", "-q", "--since", "-1d", "-n", str(_MOST_LINES), "-o", "cat", "--no-pager"]
    lines = host.query(argv, timeout_s=15).stdout.splitlines()
    for sign in _KERNEL_SIGNS:
        hits = [match for match in (re.search(sign.pattern, line) for line in lines) if match]
        if hits:
            seen = dict.fromkeys(next(filter(None, hit.groups()), "") for hit in hits)
            named = ", ".join(filter(None, seen))
            text = sign.text.format(line=hits[-1].string.strip(), seen=named, times=_say_times(len(hits)))
            yield Finding("events/kernel", sign.level, text, sign.remedy)


def _say_times(count: int) -> str:
    return "once since yesterday" if count == 1 else f"{count} times since yesterday"


_WATCHED = re.compile(
    r"(kb-(?!certs|backup|try|reboot|load-balancer|routes)\S*|systemd-timesyncd|chronyd?|ntpd?|ntpsec|systemd-networkd|systemd-resolved|"
    r"NetworkManager|iscsid|multipathd|rpc-statd|remote-fs\S*)\.(service|timer|target)"
)
"""Units without which a node does not stay well. Those that kb's other looks judge are left to them."""


def _look_at_units(host: Host) -> Findings:
    answer = host.query(["systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager"], timeout_s=10)
    for unit in (word for line in answer.stdout.splitlines() for word in line.split()[:1]):
        if _WATCHED.fullmatch(unit):
            remedy = f"see why: systemctl status {unit}; then: systemctl restart {unit}"
            yield Finding("events/units", WARNING, f"{unit} has failed", remedy)


def _look_at_next_boot(patient: Patient) -> Findings:
    """Units that run and that nobody starts at the next boot; the kubelet's is preflight's to tell. Nothing shows until then."""
    host, paths = patient.host, patient.paths
    wanted = {
        crictl.unit_of(patient.config.node.cri_socket): "this node has no container runtime",
        pod_network.UNIT: "pods have no routes to other nodes" if pod_network.is_kept(host, paths) else "",
        load_balancer.UNIT: "API servers that come or go are not followed"
        if load_balancer.is_installed(host, paths)
        else "",
    }
    for unit, loses in wanted.items():
        state = host.query(["systemctl", "is-enabled", unit], timeout_s=10).stdout.strip() if loses else ""
        if state in ("disabled", "masked"):
            text = f"{unit} is {'masked' if state == 'masked' else 'not enabled'}: after the next boot {loses}"
            again = f"systemctl unmask {unit}; " * (state == "masked") + f"systemctl enable {unit}"
            yield Finding("events/units", WARNING, text, again)
