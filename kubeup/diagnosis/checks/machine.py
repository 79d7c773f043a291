"""Checks of the machine: its size, its name and addresses, its programs, and obstacles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kubeup.config import choose
from kubeup.diagnosis.checks.facts import (
    DOCTOR,
    ERROR,
    JOIN,
    WARNING,
    Finding,
    Findings,
    Node,
    address_or_none,
    network_or_none,
    read_or_empty,
)
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.machine.mounts import find_read_only_mount
from kubeup.node import crictl
from kubeup.releases import NEWEST_PROVEN
from kubeup.yaml_files import name_of

with lazily:
    from kubeup.cluster import clock, probes
    from kubeup.network import node_routes
    from kubeup.node import machine_before, static_pods


MIN_CPUS = 2
MIN_MEMORY_MB = 1700
MIN_FREE_BYTES = 2**30
MIN_ETCD_BYTES = 160 * 2**20
"""etcd preallocates two files of 64 MB before it serves: with less space it exits at once."""


def check_root_user(node: Node) -> Findings:
    return find_ordinary_user(node.host)


def find_ordinary_user(host: Host) -> Findings:
    """The finding if kb does not run as root."""
    if not host.is_root_user():
        yield Finding(
            "IsPrivilegedUser", ERROR, "kb runs as an ordinary user", "run it as root: sudo python3 kb.pyz ..."
        )


def check_cpus(node: Node) -> Findings:
    have = node.host.cpu_count()
    if have < MIN_CPUS:
        yield Finding(
            "NumCPU",
            ERROR,
            f"{have} CPU available; a control plane needs {MIN_CPUS}",
            "give the machine another CPU, or accept slowness: --ignore-preflight-errors=NumCPU",
        )


def check_memory(node: Node) -> Findings:
    match = re.search(r"^MemTotal:\s+(\d+) kB", read_or_empty(node.host, "/proc/meminfo"), re.MULTILINE)
    have_mb = int(match.group(1)) // 1024 if match else None
    if have_mb is not None and have_mb < MIN_MEMORY_MB:
        yield Finding(
            "Mem",
            ERROR,
            f"{have_mb} MB of memory; a control plane needs {MIN_MEMORY_MB} MB",
            "give the machine more memory, or risk out-of-memory kills: --ignore-preflight-errors=Mem",
        )


def check_kubernetes_version(node: Node) -> Findings:
    if not node.release.is_proven:
        yield Finding(
            "KubernetesVersion",
            WARNING,
            f"Kubernetes {node.config.cluster.kubernetes_version} is newer than {NEWEST_PROVEN}, the newest that this kb "
            "was tested with",
            f"use a newer kb, or --kubernetes-version {NEWEST_PROVEN}",
        )


def check_firewall(node: Node) -> Findings:
    if not node.has_unit("firewalld.service", "ActiveState", "active", "reloading"):
        return
    ports = [f"{node.config.local_api_endpoint.bind_port}/tcp", "10250/tcp"]
    open_ports = node.host.query(["firewall-cmd", "--list-ports"], timeout_s=15).stdout.split()
    closed = [port for port in ports if port not in open_ports]
    if closed:
        flags = " ".join(f"--add-port={port}" for port in closed)
        yield Finding(
            "Firewalld",
            WARNING,
            f"firewalld is active and does not let {' and '.join(closed)} through: other nodes will not reach this one",
            f"firewall-cmd --permanent {flags} && firewall-cmd --reload",
        )


def check_disk_space(node: Node) -> Findings:
    folders = [(Path(node.runtime.root_dir or crictl.data_folder(crictl.unit_of(node.config.node.cri_socket))), 0)]
    if node.config.cluster.local_etcd and node.workflow != JOIN:
        folders.insert(0, (Path(node.config.cluster.local_etcd.data_dir), MIN_ETCD_BYTES))
    for folder, needed in folders:
        free = node.host.free_bytes(folder)
        if free >= MIN_FREE_BYTES:
            continue
        is_enough = free >= needed or node.owns(node.paths.manifest("etcd"))
        least = needed if not is_enough else MIN_FREE_BYTES
        yield Finding(
            "DiskSpace",
            WARNING if is_enough else ERROR,
            f"{free // 2**20} MiB are free for {folder}, {least // 2**20} MiB is "
            + ("little already" if is_enough else "what etcd needs to start"),
            f"make space: df -h {folder}",
        )


def check_swap(node: Node) -> Findings:
    """kubeadm only warns, and the kubelet then refuses to start. So swap is an error unless the kubelet is told to
    tolerate it."""
    devices = [line.split()[0] for line in read_or_empty(node.host, "/proc/swaps").splitlines()[1:] if line.split()]
    if not devices or node.kubelet_setting("failSwapOn", "fail-swap-on") is False:
        return
    steps = ["swapoff -a"]
    fstab = read_or_empty(node.host, "/etc/fstab").splitlines()
    rows = [str(number) for number, row in enumerate(fstab, 1) if row.split("#")[0].split()[2:3] == ["swap"]]
    if rows:
        steps.append(f"comment out line {' and '.join(rows)} of /etc/fstab")
    steps += [
        f"systemctl mask --now systemd-zram-setup@{Path(device).name}.service" for device in devices if "zram" in device
    ]
    yield Finding(
        "Swap",
        ERROR,
        f"swap is on ({', '.join(devices)}): the kubelet does not start with it",
        ", then ".join(steps) + "; or allow it: failSwapOn: false in the KubeletConfiguration",
    )


def check_hostname(node: Node) -> Findings:
    name = node.config.node.name
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", name) or len(name) > 253:
        proposal = re.sub(r"[^-a-z0-9.]+", "-", name.lower()).strip("-.")[:63] or "node1"
        yield Finding(
            "Hostname",
            ERROR,
            f'"{name}" cannot be the name of a Node: lower-case letters, digits, - and . are allowed',
            f"--node-name {proposal}",
        )
        return
    if name.partition(".")[0] == "localhost":
        yield Finding(
            "Hostname",
            WARNING,
            f'the node is called "{name}", and a second node of that name cannot join',
            "give it another name: --node-name cp1",
        )
    elif not node.name_addresses:
        address = node.config.local_api_endpoint.advertise_address
        yield Finding(
            "Hostname",
            WARNING,
            f'the node\'s name "{name}" does not resolve (kb does not need it; other tools may)',
            f'echo "{address} {name}" >> /etc/hosts',
        )


PACKAGES = {
    "conntrack": ("conntrack", "conntrack-tools"),
    "ip": ("iproute2", "iproute"),
    "iptables": ("iptables", "iptables"),
    "mount": ("mount", "util-linux"),
    "losetup": ("mount", "util-linux"),
    "cp": ("coreutils", "coreutils"),
}
"""The package that contains a program: Debian's name, Fedora's name."""


def check_programs(node: Node) -> Findings:
    wanted = ["losetup", "mount", "cp"]
    if node.release.needs_ip_and_iptables:
        wanted = ["ip", "iptables", *wanted]
    if node.release.needs_conntrack:
        wanted = ["conntrack", *wanted]
    for program in wanted:
        if node.host.which(program) is None:
            yield Finding(
                f"FileExisting-{program}",
                ERROR,
                f"the program {program} is not in PATH",
                crictl.install_command(node.host, *PACKAGES[program]),
            )


def check_forwarding(node: Node) -> Findings:
    cluster = node.config.cluster
    texts = [*cluster.service_cidrs(), *cluster.pod_cidrs(), node.config.local_api_endpoint.advertise_address]
    families = {6 if ":" in text else 4 for text in texts if text}
    for family, path, key in (
        (4, "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        (6, "/proc/sys/net/ipv6/conf/default/forwarding", "net.ipv6.conf.default.forwarding"),
    ):
        if family not in families:
            continue
        name = f"FileContent-{name_of(Path(path))}"
        value = read_or_empty(node.host, path).strip()
        if not node.host.exists(Path(path)):
            yield Finding(name, ERROR, f"{path} does not exist", f"enable IPv{family} in this kernel")
        elif not value.startswith("1") and "install/sysctls" not in node.mends:
            setters = [str(file) for file, told in machine_before.find_setters(node.host, key) if told == value]
            again = f", and out of {' and '.join(setters)}, which sets it at every boot" if setters else ""
            yield Finding(name, ERROR, f"{path} is {value or 'empty'}, not 1", f"sysctl -w {key}=1{again}")


def check_service_route(node: Node) -> Findings:
    """The kernel looks up a route before kube-proxy's rules apply. kb's own network maintains one, and so does
    install/sysctls; on an existing node its absence is reported."""
    cluster, network = node.config.cluster, node.config.kb.pod_network
    if network.plugin == "bridge" or "install/sysctls" in node.mends:
        return
    advertised = node.config.local_api_endpoint.advertise_address
    cards = choose.read_interfaces(node.host) or []
    own = next((card.name for card in cards if address_or_none(advertised) in card.addresses), "eth0")
    for cidr in node_routes.read_unrouted(
        node.host, [text for text in cluster.service_cidrs() if network_or_none(text)]
    ):
        yield Finding(
            "ServiceRoute",
            WARNING,
            f"no route of this machine leads to {cidr}: its own programs, and pods in its network, will reach no Service",
            f"add a default route, or: ip route add {cidr} dev {own} (and keep it over a reboot)",
        )


FLEXVOLUME_REMEDY = (
    "set controllerManager.extraArgs flex-volume-plugin-dir: /opt/libexec/kubernetes/kubelet-plugins/volume/exec/ and, in the "
    "KubeletConfiguration, volumePluginDir to the same"
)
"""For systems with a read-only /usr (Flatcar, Fedora CoreOS): the kubelet cannot create the controller-manager's
folder."""


def check_host_paths(node: Node) -> Findings:
    """Check the host paths that the static pods mount: the kubelet never starts a pod if it can neither find nor create
    one. kubeadm waits in vain."""
    for origin, path, kind, remedy in _host_paths(node):
        found = node.host.stat(path)
        mount = "" if found else find_read_only_mount(node.host, path)
        wants_folder, wants_file = kind in ("Directory", "DirectoryOrCreate"), kind in ("File", "FileOrCreate")
        if mount and kind in ("", "DirectoryOrCreate", "FileOrCreate"):
            text = f"{origin}: {path} does not exist and cannot be created, because {mount} is mounted read-only"
            yield Finding("HostPath", ERROR, text, remedy)
        elif not found and kind not in ("", "DirectoryOrCreate", "FileOrCreate"):
            text = f"{origin}: {path} is not there, and its type {kind} makes the kubelet wait for it"
            yield Finding("HostPath", WARNING, text, f"make it, or {remedy}")
        elif found and ((wants_folder and not found.is_dir) or (wants_file and found.is_dir)):
            text = f"{origin}: {path} is {'a' if found.is_dir else 'no'} folder, and its type is {kind}"
            yield Finding("HostPath", ERROR, text, remedy)


def _host_paths(node: Node) -> Iterator[tuple[str, Path, str, str]]:
    """(the pod that mounts it, path, type, what to do about it)"""
    cluster = node.config.cluster
    if node.release.mounts_flexvolume_dir:
        told = cluster.controller_manager.last_arg("flex-volume-plugin-dir") or static_pods.FLEXVOLUME_DIR
        yield "the controller manager's FlexVolume plugins", Path(told), "DirectoryOrCreate", FLEXVOLUME_REMEDY
    components = (
        ("apiServer", cluster.api_server),
        ("controllerManager", cluster.controller_manager),
        ("scheduler", cluster.scheduler),
    )
    for name, component in components:
        for volume in component.extra_volumes:
            origin = f"{name}.extraVolumes {volume.name}"
            yield origin, Path(volume.host_path), volume.path_type, f"correct hostPath and pathType of {origin}"


def check_anonymous_auth(node: Node) -> Findings:
    """The API server's health endpoints must be open to the kubelet, which probes them without credentials."""
    closed = probes.describe_closed_probes((arg.name, arg.value) for arg in node.config.cluster.api_server.extra_args)
    if closed:
        yield Finding("AnonymousAuth", WARNING, f"apiServer.extraArgs: {closed}", probes.CLOSED_PROBES_REMEDY)


def check_advertise_address(node: Node) -> Findings:
    """etcd listens on this address: if the machine does not have it, etcd exits at once, every time."""
    advertised = node.config.local_api_endpoint.advertise_address
    interfaces = choose.read_interfaces(node.host)
    address = address_or_none(advertised)
    if address is None or not interfaces or any(address in interface.addresses for interface in interfaces):
        return
    path = f"/proc/sys/net/ipv{address.version}/ip_nonlocal_bind"
    if read_or_empty(node.host, path).strip() == "1":
        return  # a virtual IP (keepalived) may be configured before it moves to this machine
    have = ", ".join(f"{item} ({interface.name})" for interface in interfaces for item in interface.addresses)
    is_fatal = node.config.cluster.local_etcd is not None
    yield Finding(
        "AdvertiseAddress",
        ERROR if is_fatal else WARNING,
        f"this machine does not have the advertise address {advertised}; it has {have or 'none'}"
        + (": etcd could not listen on it" if is_fatal else ""),
        _MOVED
        if node.workflow == DOCTOR
        else "set localAPIEndpoint.advertiseAddress (--apiserver-advertise-address) to one of them; a public address in front "
        "of this machine belongs in apiServer.certSANs",
    )


_MOVED = (
    "correct --advertise-address in /etc/kubernetes/manifests/kube-apiserver.yaml, or give this machine that address back; if it has another one for "
    "good: kb readdress"
)


def check_clock(node: Node) -> Findings:
    """If the clock is behind, the cluster's new certificates are not yet valid. A clock that is ahead works, but
    confuses."""
    skew_s = node.config.join.clock_skew_s if node.config.join else 0.0
    if abs(skew_s) > clock.MAX_SKEW_S:
        yield Finding(
            "ClockSkew",
            ERROR if skew_s > 0 else WARNING,
            f"this node's clock is {clock.describe_skew(skew_s)}",
            clock.skew_remedy(skew_s, node.host.now()),
        )
