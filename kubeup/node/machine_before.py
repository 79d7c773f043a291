"""What a machine was like before kb: the kernel settings and folders that the kubelet, kube-proxy and pods change without a word.

kb looks before they run, and keeps what it found in its state; reset puts it back. A setting that has another value than theirs by
now, or that a file of the admin's sets, is somebody else's wish and stays. So is packet forwarding once another program has made a bridge,
for containers or machines that need it. kubeadm leaves all of this as it is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from kubeup.errors import HostError
from kubeup.json_text import parse_json
from kubeup.machine.host import Host
from kubeup.shapes import fit_what_does

KIND = "machine-before"
"""The kind of compensation (state.json): {"kind": KIND, "found": JSON of _FOUND}."""
_FORWARDING = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv6.conf.default.forwarding": "1",
    "net.bridge.bridge-nf-call-iptables": "1",
}
"""What kb sets itself (kubeup/phases/kernel.py)."""
SETTINGS = {
    **_FORWARDING,
    # the kubelet: setupKernelTunables in pkg/kubelet/cm/container_manager_linux.go
    "vm.overcommit_memory": "1",
    "vm.panic_on_oom": "0",
    "kernel.panic": "10",
    "kernel.panic_on_oops": "1",
    "kernel.keys.root_maxkeys": "1000000",
    "kernel.keys.root_maxbytes": "25000000",
    # kube-proxy: cmd/kube-proxy/app/conntrack.go, pkg/proxy/iptables and pkg/proxy/ipvs
    "net.netfilter.nf_conntrack_max": "",
    "net.netfilter.nf_conntrack_tcp_timeout_established": "",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait": "",
    "net.ipv4.conf.all.route_localnet": "1",
    "net.ipv4.conf.all.arp_ignore": "1",
    "net.ipv4.conf.all.arp_announce": "2",
    "net.ipv4.vs.conntrack": "1",
    "net.ipv4.vs.expire_nodest_conn": "1",
    "net.ipv4.vs.expire_quiescent_template": "1",
}
"""The settings, and the value that they get; "" if that depends on the configuration."""
FOLDERS = tuple(
    Path(name)
    for name in (
        "/run/kb",
        "/run/netns",
        "/usr/lib/modules",
        "/usr/libexec",
        "/usr/libexec/kubernetes",
        "/usr/libexec/kubernetes/kubelet-plugins",
        "/usr/libexec/kubernetes/kubelet-plugins/volume",
        "/usr/libexec/kubernetes/kubelet-plugins/volume/exec",
        "/var/lib/cni",
        "/var/lib/cni/networks",
        "/var/lib/cni/results",
        "/var/log/containers",
        "/var/log/pods",
    )
)
"""Folders that are made for pods: by the kubelet (logs, hostPath volumes of static pods and kube-proxy), the runtime, CNI plugins."""
LOGS = (Path("/var/log/containers"), Path("/var/log/pods"))
"""Those that the kubelet fills."""
_SYSCTL_FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
_FOUND = {"settings!": {str: str}, "absent!": [str], "bridges!": [str], "links!": [str], "logs!": {str: [str]}}


def read(host: Host, *, places: Sequence[Path] = (), links: Sequence[str] = ()) -> dict[str, str]:
    """The machine as it is now, as a compensation. places, links: what another caller wants to know of: which of these places are not
    there, and the links that are."""
    found = {
        "settings": {key: value for key in SETTINGS if (value := read_setting(host, key)) is not None},
        "absent": [str(path) for path in (*FOLDERS, *places) if not host.exists(path)],
        "bridges": list_bridges(host),
        "links": list(links),
        "logs": {str(path): host.list_dir(path) for path in LOGS if host.exists(path)},
    }
    return {"kind": KIND, "found": json.dumps(found, sort_keys=True)}


def parse(compensations: list[dict[str, str]]) -> Optional[dict[str, Any]]:
    """What was found before kb: {"settings": {key: value}, "absent": [path], "bridges": [name], "links": [name], "logs": {folder: [name]}}; None if
    it is not known."""
    if not compensations:
        return None
    with contextlib.suppress(ValueError):
        found: dict[str, Any] = fit_what_does(parse_json(compensations[0].get("found", ""), "it"), _FOUND)
        return found
    return None


def read_setting(host: Host, key: str) -> Optional[str]:
    """The value of a kernel setting; None if this kernel has none of that name, or shows none to a container."""
    path = Path("/proc/sys") / key.replace(".", "/")
    with contextlib.suppress(HostError):
        return " ".join(host.read_text(path).split())
    return None


# ---- kernel settings


def find_changed_settings(host: Host, before: Mapping[str, str], *, own_file: Path) -> dict[str, str]:
    """The settings that have kb's, the kubelet's or kube-proxy's value now, and had another one before: that one.

    own_file: kb's own sysctl file, which says nothing of others."""
    found = {}
    for key, value in before.items():
        now = read_setting(host, key)
        if key in SETTINGS and now not in (None, value) and SETTINGS[key] in ("", now):
            found[key] = value
    told = dict(_read_sysctl_files(host, own_file)) if found else {}
    return {key: value for key, value in found.items() if told.get(key) != read_setting(host, key)}


def find_setters(host: Host, key: str) -> list[tuple[Path, str]]:
    """The files that set a kernel setting at the next boot, and to what."""
    return [(path, value) for path, name, value in _read_setters(host) if name == key]


def _read_sysctl_files(host: Host, own_file: Path) -> Iterator[tuple[str, str]]:
    yield from ((key, value) for path, key, value in _read_setters(host) if path != own_file)


def _read_setters(host: Host) -> Iterator[tuple[Path, str, str]]:
    paths = [Path(folder) / name for folder in _SYSCTL_FOLDERS for name in host.list_dir(Path(folder))]
    for path in [*(path for path in paths if path.suffix == ".conf"), Path("/etc/sysctl.conf")]:
        if not host.exists(path) or host.is_dir(path):
            continue
        for line in host.read_text(path).splitlines():
            key, sign, value = line.partition("=")
            if sign and not line.lstrip().startswith(("#", ";")):
                yield path, key.strip().lstrip("-").replace("/", "."), " ".join(value.split())


def list_bridges(host: Host) -> list[str]:
    """The bridges of this machine: kb's, Docker's, a hypervisor's."""
    shown = host.query(["ip", "-brief", "link", "show", "type", "bridge"])
    return [line.split()[0] for line in shown.stdout.splitlines() if line.strip()] if shown.ok else []


def restore_settings(host: Host, changed: Mapping[str, str], *, bridges: list[str]) -> list[str]:
    """Set the values of before; return what stays, in words. bridges: those that others made since."""
    left = []
    for key, value in changed.items():
        if key in _FORWARDING and bridges:
            left.append(f"{key} stays {read_setting(host, key)}, since {', '.join(bridges)} may need it")
            continue
        done = host.run(["sysctl", "-w", f"{key}={value}"])
        if not done.ok:
            left.append(f"{key} stays {read_setting(host, key)}: {done.stderr.strip()}")
    return left


# ---- folders


def find_left_folders(host: Host, before: Mapping[str, Any]) -> list[Path]:
    """What is there of the kubelet's logs, and the empty folders that were not there before, the deepest first."""
    known = before["logs"]
    logs = [path / name for path in LOGS for name in host.list_dir(path) if name not in known.get(str(path), ())]
    made = [path for path in reversed(FOLDERS) if str(path) in before["absent"] and host.is_dir(path)]
    return [*logs, *(path for path in made if path in LOGS or _is_empty_but_for(host, path, others=made))]


def _is_empty_but_for(host: Host, path: Path, *, others: list[Path]) -> bool:
    """Whether a folder holds nothing but others that go too."""
    below = [path / name for name in host.list_dir(path)]
    return all(child in others and _is_empty_but_for(host, child, others=others) for child in below)


def remove_folders(host: Host, paths: list[Path]) -> None:
    for path in paths:
        if path.parent in LOGS or path in LOGS:
            if not host.remove_tree(path):
                host.remove(path)
            continue
        if path in host.mounts_below(path.parent):  # `ip netns` mounts the folder onto itself
            host.run(["umount", str(path)])
        with contextlib.suppress(HostError):  # somebody has put something there
            host.remove(path)
