"""The checks of a node: one table, CHECKS, that preflight and doctor share.

Owns what a fit node is: for every check its name (kubeadm's, as --ignore-preflight-errors takes it), what it looks
at, what is an error and what a warning, and the one thing to do. A check only looks; ImagePull alone changes the
node. Must not print: findings are handed back, judge_findings() sorts them. Mirrors
cmd/kubeadm/app/preflight/checks.go and k8s.io/system-validators.

kb is stricter than kubeadm where kubeadm warns of what then fails (Swap, a missing kubelet unit, a cgroup driver
mismatch), and forgiving towards what an unfinished run of its own left behind.
"""

from __future__ import annotations

import functools
import gzip
import ipaddress
import re
import threading
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

from kubeup.config import choose, kubelet_flags
from kubeup.config.types import ExternalEtcd, InitConfig, JoinConfig
from kubeup.errors import HostError, KbError, PreflightError, UsageError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.lazy_modules import lazy_import
from kubeup.machine import services
from kubeup.machine.host import CommandResult, Host
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from kubeup.machine.mounts import find_read_only_mount
from kubeup.node import crictl, image_pulls, images, runtime
from kubeup.paths import RESOLVED_CONF, Paths
from kubeup.releases import NEWEST_PROVEN, Release, Version, is_at_least, kubelet_refuses_cgroup_v1, parse_version
from kubeup.yaml_files import name_of

if TYPE_CHECKING:
    from kubeup.cluster import clock, etcd, probes
    from kubeup.network import pod_network, routes
    from kubeup.node import certificates, kubelet, static_pods
else:
    clock = lazy_import("kubeup.cluster.clock")
    etcd = lazy_import("kubeup.cluster.etcd")
    probes = lazy_import("kubeup.cluster.probes")
    kubelet = lazy_import("kubeup.node.kubelet")
    static_pods = lazy_import("kubeup.node.static_pods")
    certificates = lazy_import("kubeup.node.certificates")
    pod_network = lazy_import("kubeup.network.pod_network")
    routes = lazy_import("kubeup.network.routes")

ERROR, WARNING = "error", "warning"
ROOT, NODE, IMAGES = "root", "node", "images"
INIT, JOIN, JOIN_CONTROL_PLANE, UPGRADE, RESET, DOCTOR = (
    "init", "join", "join-control-plane", "upgrade", "reset", "doctor",
)  # fmt: skip
"""Workflows. join: the checks of every joining node; join-control-plane: those after discovery, on top."""

MIN_CPUS = 2
MIN_MEMORY_MB = 1700
MIN_FREE_BYTES = 2**30
MIN_ETCD_BYTES = 160 * 2**20
"""etcd sets two files of 64 MB aside before it serves: with less it ends at once."""
CAP_SYS_RESOURCE = 24


@frozen
class Finding:
    """One thing that is wrong: the object and its value, and what to do about it."""

    name: str
    level: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"[{self.level.upper()} {self.name}]: {self.text}. Remedy: {self.remedy}"


Findings = Iterable[Finding]


@frozen
class Node:
    """What a check looks at: the machine, what it is to become, and what kb made on it already.

    Slow looks are done once: look_ahead() does them side by side.
    """

    host: Host
    config: InitConfig
    release: Release
    paths: Paths = field(default_factory=Paths)
    owned: frozenset[str] = frozenset()
    """Paths that kb's state says kb made on this node."""
    workflow: str = INIT
    mends: frozenset[str] = frozenset()
    """Phases of this run that put right what some checks look at: their findings would be about nothing."""
    skipped: frozenset[str] = frozenset()
    """Phases that the user left out of the workflow."""
    tell: Callable[[str], None] = lambda text: None
    """Takes what is waited for right now."""

    @property
    def is_resuming(self) -> bool:
        """An earlier run of kb got somewhere on this node."""
        return bool(self.owned)

    @functools.cached_property
    def runtime(self) -> runtime.RuntimeStatus:
        return runtime.probe_runtime(self.host, self.config.node.cri_socket)

    @functools.cached_property
    def kubelet_answer(self) -> CommandResult:
        return self.host.query(["kubelet", "--version"], timeout_s=30)

    @property
    def kubelet_version(self) -> Optional[Version]:
        """Of the installed kubelet; None where there is none or it does not tell."""
        match = re.search(r"Kubernetes (v\S+)", self.kubelet_answer.stdout) if self.kubelet_answer.ok else None
        return parse_version(match.group(1)) if match else None

    @functools.cached_property
    def units(self) -> Mapping[str, Mapping[str, str]]:
        """systemd's view of kubelet, firewalld and systemd-resolved; {} where systemd does not run."""
        names = ("kubelet.service", "firewalld.service", "systemd-resolved.service")
        wanted = "LoadState,ActiveState,UnitFileState"
        answer = self.host.query(["systemctl", "show", "--property", wanted, *names], timeout_s=15)
        if not answer.ok:
            return {}
        blocks = [block for block in answer.stdout.split("\n\n") if block.strip()]
        return {name: parse_pairs(block) for name, block in zip(names, blocks)}

    @functools.cached_property
    def name_addresses(self) -> Sequence[str]:
        """What the node's name resolves to. A resolver without a server would hold kb for half a minute: two
        seconds are enough to know that the name is of no use."""
        found: list[str] = []
        look = threading.Thread(target=lambda: found.extend(self.host.resolve(self.config.node.name)), daemon=True)
        look.start()
        look.join(timeout=2)
        return tuple(found)

    @functools.cached_property
    def mounts(self) -> Sequence[tuple[str, str, tuple[str, ...]]]:
        """/proc/mounts: (mount point, type, options); of mounts upon each other the last one counts."""
        rows = [line.split() for line in read_or_empty(self.host, "/proc/mounts").splitlines()]
        last = {row[1]: (row[1], row[2], tuple(row[3].split(","))) for row in rows if len(row) >= 4}
        return tuple(last.values())

    def look_ahead(self) -> None:
        """Do the slow looks (programs, the resolver) side by side."""
        with ThreadPoolExecutor(4) as pool:
            for name in ("runtime", "kubelet_answer", "units", "name_addresses"):
                pool.submit(getattr, self, name)

    def owns(self, path: Path) -> bool:
        return str(path) in self.owned

    def has_unit(self, name: str, state: str, *values: str) -> bool:
        return self.units.get(name, {}).get(state) in values

    def kubelet_setting(self, field: str, flag: str) -> object:
        """What the user wants of the kubelet, by flag (which wins) or configuration; None for the default."""
        flags = [arg.value for arg in self.config.node.kubelet_extra_args if arg.name == flag]
        if not flags:
            return self.config.kubelet.get(field)
        return {"true": True, "false": False}.get(flags[-1], flags[-1])


def parse_pairs(text: str) -> dict[str, str]:
    """Lines `key=value`."""
    return {key: value for key, sign, value in (line.partition("=") for line in text.splitlines()) if sign}


def read_or_empty(host: Host, path: str) -> str:
    try:
        return host.read_text(Path(path))
    except HostError:
        return ""


# ---- the machine


def check_root_user(node: Node) -> Findings:
    if not node.host.is_root_user():
        yield Finding(
            "IsPrivilegedUser", ERROR, "kb runs as an ordinary user", "run it as root: sudo python3 kb.pyz ..."
        )


def check_cpus(node: Node) -> Findings:
    have = node.host.cpu_count()
    if have < MIN_CPUS:
        yield Finding(
            "NumCPU",
            ERROR,
            f"{have} CPU may be used, a control plane wants {MIN_CPUS}",
            "give the machine another CPU, or accept slowness: --ignore-preflight-errors=NumCPU",
        )


def check_memory(node: Node) -> Findings:
    match = re.search(r"^MemTotal:\s+(\d+) kB", read_or_empty(node.host, "/proc/meminfo"), re.MULTILINE)
    have_mb = int(match.group(1)) // 1024 if match else None
    if have_mb is not None and have_mb < MIN_MEMORY_MB:
        yield Finding(
            "Mem",
            ERROR,
            f"{have_mb} MB of memory, a control plane wants {MIN_MEMORY_MB} MB",
            "give the machine more memory, or accept being killed for it: --ignore-preflight-errors=Mem",
        )


def check_kubernetes_version(node: Node) -> Findings:
    if not node.release.is_proven:
        yield Finding(
            "KubernetesVersion",
            WARNING,
            f"Kubernetes {node.config.cluster.kubernetes_version} is newer than {NEWEST_PROVEN}, the newest that this kb "
            "was proven with",
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
    folders = [(Path(node.runtime.root_dir or "/var/lib/containerd"), 0)]
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
    """kubeadm warns, and the kubelet then refuses to start: an error, unless the kubelet was told to bear swap."""
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
        ", then ".join(steps) + "; or bear it: failSwapOn: false in the KubeletConfiguration",
    )


def check_hostname(node: Node) -> Findings:
    name = node.config.node.name
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", name) or len(name) > 253:
        proposal = re.sub(r"[^-a-z0-9.]+", "-", name.lower()).strip("-.")[:63] or "node1"
        yield Finding(
            "Hostname",
            ERROR,
            f'"{name}" cannot be the name of a Node: small letters, digits, - and . are allowed',
            f"--node-name {proposal}",
        )
        return
    if name.partition(".")[0] == "localhost":
        yield Finding(
            "Hostname",
            WARNING,
            f'the node is called "{name}", and a second node of that name cannot join',
            "give it a name of its own: --node-name cp1",
        )
    elif not node.name_addresses:
        address = node.config.local_api_endpoint.advertise_address
        yield Finding(
            "Hostname",
            WARNING,
            f'the node\'s name "{name}" does not resolve (kb needs that not, other tools may)',
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
"""The package that brings a program: Debian's name, Fedora's name."""


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
            yield Finding(name, ERROR, f"{path} is {value or 'empty'}, not 1", f"sysctl -w {key}=1")


def check_service_route(node: Node) -> Findings:
    """The kernel looks for a route before kube-proxy's rules come in. kb's own network keeps one, and so does
    install/sysctls; of a node that is there already it is said."""
    cluster, network = node.config.cluster, node.config.kb.pod_network
    if network.plugin == "bridge" or "install/sysctls" in node.mends:
        return
    advertised = node.config.local_api_endpoint.advertise_address
    cards = choose.read_interfaces(node.host) or []
    own = next((card.name for card in cards if _address(advertised) in card.addresses), "eth0")
    for cidr in routes.read_unrouted(node.host, [text for text in cluster.service_cidrs() if _network(text)]):
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
"""For systems with a read-only /usr (Flatcar, Fedora CoreOS): the kubelet cannot make the folder for the controller manager."""


def check_host_paths(node: Node) -> Findings:
    """Folders and files of this machine that the static pods mount: where the kubelet can neither find nor make one, it never
    starts the pod. kubeadm waits in vain."""
    for origin, path, kind, remedy in _host_paths(node):
        found = node.host.stat(path)
        mount = "" if found else find_read_only_mount(node.host, path)
        wants_folder, wants_file = kind in ("Directory", "DirectoryOrCreate"), kind in ("File", "FileOrCreate")
        if mount and kind in ("", "DirectoryOrCreate", "FileOrCreate"):
            text = f"{origin}: {path} is not there and cannot be made, since {mount} is mounted read-only"
            yield Finding("HostPath", ERROR, text, remedy)
        elif not found and kind not in ("", "DirectoryOrCreate", "FileOrCreate"):
            text = f"{origin}: {path} is not there, and its type {kind} has the kubelet wait for it"
            yield Finding("HostPath", WARNING, text, f"make it, or {remedy}")
        elif found and ((wants_folder and not found.is_dir) or (wants_file and found.is_dir)):
            text = f"{origin}: {path} is {'a' if found.is_dir else 'no'} folder, and its type is {kind}"
            yield Finding("HostPath", ERROR, text, remedy)


def _host_paths(node: Node) -> Iterator[tuple[str, Path, str, str]]:
    """(who mounts it, path, type, what to do about it)"""
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
    """The API server's health endpoints have to be open to the kubelet, which probes them without credentials."""
    closed = probes.describe_closed_probes((arg.name, arg.value) for arg in node.config.cluster.api_server.extra_args)
    if closed:
        yield Finding("AnonymousAuth", WARNING, f"apiServer.extraArgs: {closed}", probes.CLOSED_PROBES_REMEDY)


def check_advertise_address(node: Node) -> Findings:
    """etcd listens on it: an address that this machine does not have ends it at once, every time."""
    advertised = node.config.local_api_endpoint.advertise_address
    interfaces = choose.read_interfaces(node.host)
    address = _address(advertised)
    if address is None or not interfaces or any(address in interface.addresses for interface in interfaces):
        return
    path = f"/proc/sys/net/ipv{address.version}/ip_nonlocal_bind"
    if read_or_empty(node.host, path).strip() == "1":
        return  # an address that moves between machines (keepalived) may be listened on before it is here
    have = ", ".join(f"{item} ({interface.name})" for interface in interfaces for item in interface.addresses)
    is_fatal = node.config.cluster.local_etcd is not None
    yield Finding(
        "AdvertiseAddress",
        ERROR if is_fatal else WARNING,
        f"this machine does not have the advertise address {advertised}; it has {have or 'none'}"
        + (": etcd could not listen on it" if is_fatal else ""),
        "set localAPIEndpoint.advertiseAddress (--apiserver-advertise-address) to one of them; a public address in front "
        "of this machine belongs into apiServer.certSANs",
    )


# ---- ports, files and folders


@frozen
class Port:
    """A port of a control-plane node. The program holds it rightly if kb made `made_by`."""

    number: int
    program: str
    address: str
    made_by: Path


def control_plane_ports(node: Node) -> tuple[Port, ...]:
    config, paths = node.config, node.paths
    advertised = config.local_api_endpoint.advertise_address
    cluster = config.cluster
    ports = [
        Port(
            config.local_api_endpoint.bind_port,
            "kube-apiserver",
            cluster.api_server.last_arg("bind-address") or advertised,
            paths.manifest("kube-apiserver"),
        ),
        Port(
            10259,
            "kube-scheduler",
            cluster.scheduler.last_arg("bind-address") or "127.0.0.1",
            paths.manifest("kube-scheduler"),
        ),
        Port(
            10257,
            "kube-controller-manager",
            cluster.controller_manager.last_arg("bind-address") or "127.0.0.1",
            paths.manifest("kube-controller-manager"),
        ),
    ]
    return tuple(ports)


def check_control_plane_ports(node: Node) -> Findings:
    return _check_ports(node, control_plane_ports(node))


def check_kubelet_port(node: Node) -> Findings:
    address = str(node.kubelet_setting("address", "address") or "")
    return _check_ports(node, (Port(10250, "kubelet", address, node.paths.kubelet_config),))


def check_etcd_ports(node: Node) -> Findings:
    if node.config.cluster.local_etcd is None:
        return ()
    advertised = node.config.local_api_endpoint.advertise_address
    manifest = node.paths.manifest("etcd")
    return _check_ports(node, (Port(2379, "etcd", advertised, manifest), Port(2380, "etcd", advertised, manifest)))


def check_balancer_ports(node: Node) -> Findings:
    """The load balancer's two ports on the loopback, where one is asked for."""
    balancer, endpoint = node.config.kb.load_balancer, node.config.cluster.control_plane_endpoint
    if not balancer.is_local:
        return ()
    manifest = node.paths.manifest("kb-load-balancer")
    numbers = (int(endpoint.rpartition(":")[2]), balancer.health_port)
    found = _check_ports(node, [Port(number, "haproxy", "127.0.0.1", manifest) for number in numbers])
    return [replace(finding, name=f"LoadBalancer{finding.name}") for finding in found]


def _check_ports(node: Node, ports: Iterable[Port]) -> Findings:
    for port in ports:
        holder = node.host.port_holder(port.number, "" if node.release.probe_ports_bind_all else port.address)
        if holder is None or _is_own_process(node, port, holder):
            continue
        pid = re.search(r"pid (\d+)", holder)
        remedy = (
            f"see it with: ps -fp {pid.group(1)}; then stop it" if pid else f"find it: ss -ltnp sport = :{port.number}"
        )
        if holder.startswith(port.program[:15]):
            remedy = f"if nothing of the cluster that it belongs to is wanted: {_plan_removal(node)[1]}"
        yield Finding(
            f"Port-{port.number}",
            ERROR,
            f"port {port.number}, which {port.program} needs, is in use by {holder}",
            remedy,
        )


def _is_own_process(node: Node, port: Port, holder: str) -> bool:
    """Whether an unfinished run of kb started it. The kernel keeps 15 characters of a program's name."""
    return node.owns(port.made_by) and holder.partition(" (pid ")[0] == port.program[:15]


def check_manifests(node: Node) -> Findings:
    names = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd")
    return _check_available(node, [node.paths.manifest(name) for name in names])


def check_joined(node: Node) -> Findings:
    """A node that has joined a cluster has these."""
    names = ("kubelet.conf", "bootstrap-kubelet.conf")
    files = [node.paths.kubeconfig(name) for name in names]
    if isinstance(node.config, JoinConfig) and node.config.join.control_plane is None:
        files.append(Path(node.config.join.ca_cert_path))  # a control plane may have been given it, with its key
    return _check_available(node, files)


def _check_available(node: Node, files: Iterable[Path]) -> Findings:
    for path in files:
        if node.host.exists(path) and not node.owns(path):
            maker, removal = _plan_removal(node, path)
            yield Finding(
                f"FileAvailable-{name_of(path)}",
                ERROR,
                f"{path} already exists: {maker}",
                f"if nothing of it is wanted: {removal}",
            )


_OTHER_PRODUCTS = (
    ("/etc/rancher/k3s", "k3s", "k3s-uninstall.sh"),
    ("/etc/rancher/rke2", "rke2", "rke2-uninstall.sh"),
    ("/etc/k0s", "k0s", "k0s reset"),
)


def _plan_removal(node: Node, path: Optional[Path] = None) -> tuple[str, str]:
    """Whose cluster this node is part of, as far as its files tell, and what takes it away: kb reset would refuse.

    With a path: who made that file.
    """
    for folder, product, removal in _OTHER_PRODUCTS:
        if node.host.exists(Path(folder)):
            return f"this node belongs to {product} ({folder} exists)", removal
    text = read_or_empty(node.host, str(path or node.paths.manifest("kube-apiserver")))
    if node.host.exists(node.paths.kubelet_flags_env) or "kubeadm.kubernetes.io/" in text:
        maker = "kubeadm made this node part of a cluster (or a kb whose state.json is gone)"
        return (
            maker,
            "kubeadm reset (it removes that cluster's data from this node); to go on with it as it is: kb adopt",
        )
    # not beside it: the kubelet runs every file of that folder, whatever its name ends with
    removal = f"mv {path} /root/" if path else "stop it with the tools of the cluster that it belongs to"
    return "neither kb nor kubeadm made it", removal


def check_etcd_folder(node: Node) -> Findings:
    etcd = node.config.cluster.local_etcd
    if etcd is None or node.owns(node.paths.manifest("etcd")):
        return
    folder = Path(etcd.data_dir)
    name = f"DirAvailable-{name_of(folder)}"
    try:
        inside = [name for name in node.host.list_dir(folder) if name != "lost+found"]  # of a file system of its own
    except HostError as error:
        yield Finding(name, ERROR, f"{folder} cannot be opened ({error.cause})", error.remedy)
        return
    if inside:
        what = "the data of an etcd" if "member" in inside else ", ".join(inside[:3])
        yield Finding(
            name, ERROR, f"{folder} is not empty: it holds {what}", f"keep it elsewhere: mv {folder} {folder}.old"
        )


# ---- proxies


def uses_proxy(env: Mapping[str, str], host: str, port: int = 443) -> str:
    """The proxy through which Go's programs would reach https://host, "" for none (net/http.ProxyFromEnvironment)."""
    proxy = env.get("HTTPS_PROXY") or env.get("https_proxy") or ""
    host = host.strip("[]").lower().rstrip(".")
    address = _address(host)
    if not proxy or host == "localhost" or (address is not None and address.is_loopback):
        return ""
    excluded = (env.get("NO_PROXY") or env.get("no_proxy") or "").split(",")
    return "" if any(_is_excluded(entry.strip().lower(), host, port) for entry in excluded) else proxy


def _is_excluded(entry: str, host: str, port: int) -> bool:
    if entry in ("", "*"):
        return entry == "*"
    address = _address(host)
    if "/" in entry:
        network = _network(entry)
        return address is not None and network is not None and address in network
    match = re.fullmatch(r"(\[[^]]+\](?=:\d)|[^:]+|[0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:.]*)(?::(\d+))?", entry)
    name, wanted_port = (match.group(1), match.group(2)) if match else (entry, None)
    name = name.strip("[]") if wanted_port else name
    if wanted_port and int(wanted_port) != port:
        return False
    if _address(name) is not None:
        return address == _address(name)
    name = name[1:] if name.startswith("*.") else name
    if name.startswith("."):
        return host.endswith(name)
    return host == name or host.endswith(f".{name}")


def _address(text: str) -> Optional[Union[ipaddress.IPv4Address, ipaddress.IPv6Address]]:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> Optional[Union[ipaddress.IPv4Network, ipaddress.IPv6Network]]:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def complete_no_proxy(env: Mapping[str, str], config: InitConfig) -> str:
    """NO_PROXY with everything that must not go through a proxy: what is there, and this cluster's addresses."""
    told = (entry.strip() for entry in (env.get("NO_PROXY") or env.get("no_proxy") or "").split(","))
    have = [entry for entry in told if re.fullmatch(r"[A-Za-z0-9_.:/*\[\]-]+", entry)]
    cluster = config.cluster
    # without brackets: Go's httpproxy takes those before a port alone
    endpoint = cluster.control_plane_endpoint.rpartition(":")[0].strip("[]")
    wanted = [
        "localhost",
        "127.0.0.1",
        config.local_api_endpoint.advertise_address,
        *([endpoint] if endpoint else []),
        *cluster.service_cidrs(),
        *cluster.pod_cidrs(),
        ".svc",
        f".{cluster.networking.dns_domain}",
    ]
    return ",".join(dict.fromkeys([*have, *wanted]))


def check_proxy(node: Node) -> Findings:
    advertised = node.config.local_api_endpoint.advertise_address
    env = node.host.environ()
    proxy = uses_proxy(env, advertised)
    if proxy:
        yield Finding(
            "HTTPProxy",
            ERROR,
            f"the proxy {_without_password(proxy)} would be used for this node's own API server {advertised}: the control "
            "plane, which gets these variables, would not find it",
            f"export NO_PROXY={complete_no_proxy(env, node.config)}",
        )


def check_kubelet_proxy(node: Node) -> Findings:
    """A proxy in the service manager's environment is the kubelet's too."""
    shown = node.host.query(["systemctl", "show-environment"], timeout_s=15).stdout
    own = node.host.query(["systemctl", "show", "kubelet", "--property", "Environment", "--value"], timeout_s=15).stdout
    env = {**parse_pairs(shown), **parse_pairs("\n".join(own.replace('"', "").split()))}
    advertised = node.config.local_api_endpoint.advertise_address
    proxy = uses_proxy(env, advertised)
    if proxy:
        yield Finding(
            "KubeletProxy",
            ERROR,
            f"systemd gives the kubelet the proxy {_without_password(proxy)}, which would be used for the API server "
            f"{advertised}: the node would never register",
            f"systemctl edit kubelet, and write: [Service] Environment=NO_PROXY={complete_no_proxy(env, node.config)}",
        )


def check_join_proxy(node: Node) -> Findings:
    """The kubelet reaches the API server by Go's rules for proxies."""
    server = node.config.server if isinstance(node.config, JoinConfig) else ""
    parts = urllib.parse.urlsplit(server)
    env = node.host.environ()
    proxy = uses_proxy(env, parts.hostname or "", parts.port or 443) if server else ""
    if proxy:
        yield Finding(
            "HTTPProxy",
            WARNING,
            f"the proxy {_without_password(proxy)} would be used for the cluster's API server {server}",
            f"export NO_PROXY={','.join(filter(None, (env.get('NO_PROXY') or env.get('no_proxy'), parts.hostname)))}",
        )


def check_clock(node: Node) -> Findings:
    """What the cluster signs is not valid yet for a clock that is behind. One that is ahead works, and confuses."""
    skew_s = node.config.clock_skew_s if isinstance(node.config, JoinConfig) else 0.0
    if abs(skew_s) > clock.MAX_SKEW_S:
        yield Finding(
            "ClockSkew",
            ERROR if skew_s > 0 else WARNING,
            f"this node's clock is {clock.describe_skew(skew_s)}",
            clock.skew_remedy(skew_s, node.host.now()),
        )


def check_proxy_cidrs(node: Node) -> Findings:
    env = node.host.environ()
    for kind, cidrs in (("Service", node.config.cluster.service_cidrs()), ("Pod", node.config.cluster.pod_cidrs())):
        for cidr in filter(None, cidrs):
            network = _network(cidr)
            if network is None:
                yield Finding("HTTPProxyCIDR", ERROR, f"{cidr} is no CIDR", "correct it: 10.96.0.0/12, fd00:10::/112")
                continue
            proxy = uses_proxy(env, str(network[1] if network.num_addresses > 1 else network[0]))
            if proxy:
                yield Finding(
                    "HTTPProxyCIDR",
                    WARNING,
                    f"the proxy {_without_password(proxy)} would be used for addresses of {kind}s ({cidr})",
                    f"export NO_PROXY={complete_no_proxy(env, node.config)}",
                )


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


# ---- the runtime


def check_runtime(node: Node) -> Findings:
    status = node.runtime
    if not status.is_ready:
        yield Finding("CRI", ERROR, f"{status.label} does not serve this node: {status.cause}", status.remedy)


def check_runtime_version(node: Node) -> Findings:
    status, release = node.runtime, node.release
    if status.has_runtime_config is not False:
        return
    text = f"{status.label} has no RuntimeConfig call (containerd has it from 2.0, CRI-O from 1.28)"
    if release.needs_runtime_config:
        yield Finding(
            "ContainerRuntimeVersion",
            ERROR,
            f"{text}, and a kubelet {release.name} does not run without it",
            "install containerd 2",
        )
    elif release.warns_without_runtime_config:
        yield Finding(
            "ContainerRuntimeVersion",
            WARNING,
            f"{text}: the kubelet of a coming Kubernetes will not run with it",
            "install containerd 2 before the next upgrade",
        )


def check_cgroup_driver(node: Node) -> Findings:
    """A kubelet asks a runtime that has the RuntimeConfig call; otherwise both must be told the same."""
    status = node.runtime
    wanted = node.kubelet_setting("cgroupDriver", "cgroup-driver") or "systemd"
    if status.has_runtime_config or status.cgroup_driver in (None, wanted):
        return
    if status.cgroup_driver == "systemd":
        remedy = "set cgroupDriver: systemd in the KubeletConfiguration"
    else:
        remedy = runtime.describe_setting(status, "SystemdCgroup", "true", host=node.host)
        on_disk = runtime.read_containerd_config(node.host, status.socket) if status.name == "containerd" else None
        if runtime.read_cgroup_driver(on_disk) == wanted:
            restart = services.spoken_of(node.host).say("restart", "containerd")
            remedy = f"{restart} (its file says so already, it has not read it yet)"
    yield Finding(
        "CgroupDriver",
        ERROR,
        f"{status.label} has the cgroup driver {status.cgroup_driver}, the kubelet {wanted}: Pods would die again and again",
        remedy,
    )


def may_lower_oom_score(host: Host) -> bool:
    """Whether this machine has CAP_SYS_RESOURCE; taken to have it where it does not tell."""
    match = re.search(r"^CapBnd:\s*([0-9a-f]+)", read_or_empty(host, "/proc/self/status"), re.MULTILINE)
    return not match or bool(int(match.group(1), 16) >> CAP_SYS_RESOURCE & 1)


def check_oom_score(node: Node) -> Findings:
    """In a container or a small virtual machine the kernel may forbid what runc does for every sandbox."""
    if may_lower_oom_score(node.host) or node.runtime.restricts_oom_score is not False:
        return
    yield Finding(
        "OOMScoreAdj",
        ERROR,
        f"this machine has no CAP_SYS_RESOURCE, so {node.runtime.label} cannot lower oom_score_adj and no Pod starts "
        "(\"can't get final child's PID from pipe: EOF\")",
        runtime.describe_setting(node.runtime, "restrict_oom_score_adj", "true", host=node.host),
    )


def check_sandbox_image(node: Node) -> Findings:
    status = node.runtime
    wanted = images.image_of("pause", node.config.cluster, node.release).ref
    if status.sandbox_image and status.sandbox_image != wanted:
        yield Finding(
            "SandboxImage",
            WARNING,
            f"{status.label} starts Pods with the image {status.sandbox_image}, this release goes with {wanted}",
            runtime.describe_setting(status, "sandbox_image", f'"{wanted}"', host=node.host),
        )


def check_registry_config(node: Node) -> Findings:
    """A hosts.toml that nothing reads: the mirror or the CA that somebody set up is not used, and nothing says so."""
    told = node.runtime.registry_config_path
    if told is None or str(runtime.CERTS_D) in told.split(":"):
        return
    names = [name for name in node.host.list_dir(runtime.CERTS_D) if _has_hosts_toml(node.host, name)]
    if names:
        yield Finding(
            "RegistryConfig",
            WARNING,
            f"{runtime.CERTS_D} has a hosts.toml for {', '.join(names[:3])}{', ...' * (len(names) > 3)}, and "
            f"{node.runtime.label} does not read that folder (its config_path is {told or 'not set'})",
            runtime.describe_setting(node.runtime, "config_path", f'"{runtime.CERTS_D}"', host=node.host),
        )


def _has_hosts_toml(host: Host, registry: str) -> bool:
    return host.exists(runtime.CERTS_D / registry / "hosts.toml")


def check_cni_plugins(node: Node) -> Findings:
    if node.config.kb.pod_network.plugin != "bridge" or not node.runtime.is_ready:
        return
    try:
        pod_network.check_cni_plugins(node.host, node.runtime.cni_bin_dirs, node.runtime.label)
    except HostError as error:
        yield Finding("CNIPlugins", ERROR, f"{error.what}: {error.cause}", error.remedy)


def check_pod_network(node: Node) -> Findings:
    """What the phase pod-network would stumble over at the end, when the cluster is made."""
    network = node.config.kb.pod_network
    if "pod-network" in node.skipped:
        return
    try:
        if network.plugin == "bridge":
            pod_network.check_foreign_cni_config(node.host, node.paths)
        elif network.plugin == "manifest":
            pod_network.read_manifest(node.host, network.manifest)
    except KbError as error:
        name = "CNIConfig" if network.plugin == "bridge" else "PodNetworkManifest"
        yield Finding(name, ERROR, f"{error.what}: {error.cause}", error.remedy)


def check_join_network(node: Node) -> Findings:
    """The file of a network of before, which would hide the cluster's. Once the kubelet of a node that joins has run, such
    a file is the cluster's own."""
    has_bridge = node.config.kb.pod_network.plugin == "bridge" and "pod-network" not in node.skipped
    if not has_bridge or node.host.exists(node.paths.kubeconfig("kubelet.conf")):
        return
    keep = "and join: a network that was applied to the cluster since writes its file anew"
    try:
        pod_network.check_foreign_cni_config(node.host, node.paths, keep)
    except HostError as error:
        yield Finding("CNIConfig", ERROR, f"{error.what}: {error.cause}", error.remedy)


# ---- the kernel


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
"""Options that a kernel must have, built in or as a module; of several names one suffices."""
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
    """What k8s.io/system-validators looks at: kernel, its options, cgroups."""
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
    yield from _check_controllers(node, version, mount)


def find_cgroups(node: Node) -> tuple[int, str]:
    """The cgroup version (0: none) and where it is mounted."""
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
            f"kernel {release} is none that Kubernetes is tested with (5.4, 5.10, 5.15, 6 and later)",
            "boot a newer kernel",
        )
    options = read_kernel_options(node.host, release)
    if options is None:
        yield Finding(
            SYSTEM,
            WARNING if node.workflow == DOCTOR else ERROR,  # a node at work shows that its kernel will do
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
    """CONFIG_ options without the prefix: {"NAMESPACES": "y"}; None where no file tells."""
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
    """A kubelet from 1.35 on does not start here unless it is told to; then it works."""
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
            "this machine has cgroup version 1, which Kubernetes gives up",
            "boot with systemd.unified_cgroup_hierarchy=1 (version 2) before an upgrade",
        )


def _check_controllers(node: Node, version: int, mount: str) -> Findings:
    have = _read_controllers_v1(node.host) if version == 1 else _read_controllers_v2(node, mount)
    missing = [name for name in CONTROLLERS[version] if name not in have]
    if missing:
        yield Finding(
            SYSTEM,
            ERROR,
            f"missing required cgroups: {' '.join(missing)}",
            "enable them in the kernel's command line (cgroup_enable=memory, say) and reboot",
        )
    unmet = [name for name in OPTIONAL_CONTROLLERS[version] if name not in have]
    if unmet:
        yield Finding(
            SYSTEM,
            WARNING,
            f"missing optional cgroups: {' '.join(unmet)}",
            "none is needed unless Pods are to be limited by them",
        )


def _read_controllers_v1(host: Host) -> set[str]:
    rows = [line.split() for line in read_or_empty(host, "/proc/cgroups").splitlines() if not line.startswith("#")]
    return {row[0] for row in rows if len(row) == 4 and row[3] == "1"}


def _read_controllers_v2(node: Node, mount: str) -> set[str]:
    found = set(read_or_empty(node.host, f"{mount}/cgroup.controllers").split())
    # version 2 has no controller of these names: eBPF stands for one, a file in every cgroup for the other
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
    # nothing but the root cgroup, which has no such file: look into a new one
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
            f"{', '.join(closed)} {'is' if len(closed) == 1 else 'are'} mounted read-only: the kubelet cannot make cgroups "
            "for Pods",
            remount,
        )


# ---- the kubelet


def check_kubelet_version(node: Node) -> Findings:
    answer, version = node.kubelet_answer, node.kubelet_version
    wanted = node.config.cluster.kubernetes_version
    if answer.missing:
        yield Finding("KubeletVersion", ERROR, "there is no kubelet in PATH", f"install kubelet {wanted}")
    elif version is None:
        told = crictl.last_words(answer.stderr or answer.stdout)
        yield Finding(
            "KubeletVersion", ERROR, f"the kubelet does not tell its version: {told}", f"install kubelet {wanted}"
        )
    elif version.minor < node.release.oldest_kubelet_minor:
        yield Finding(
            "KubeletVersion",
            ERROR,
            f"kubelet {version} is too old for a control plane {wanted} (1.{node.release.oldest_kubelet_minor} is the oldest)",
            f"install kubelet {wanted}",
        )
    elif version.minor > node.release.minor and node.workflow in (INIT, JOIN):
        yield Finding(
            "KubeletVersion",
            ERROR,
            f"kubelet {version} is newer than the control plane {wanted}",
            f"install kubelet {wanted}, or "
            + (f"--kubernetes-version {version}" if node.workflow == INIT else "upgrade the control plane first"),
        )


KUBELET_ENV_FILES = (Path("/etc/default/kubelet"), Path("/etc/sysconfig/kubelet"))
"""Where an admin's own flags stand (KUBELET_EXTRA_ARGS), as the packages' drop-in reads them."""
_NOT_PARSED = re.compile(
    r"unknown flag: --(?P<unknown>[\w-]+)|invalid argument \\*\".*?\\*\" for \\*\"(?:-\w, )?--(?P<invalid>[\w-]+)"
)


def check_kubelet_flags(node: Node) -> Findings:
    """The installed kubelet is asked whether it takes its flags: it reads them all before it tells its version. kubeadm does
    not look, and waits for a kubelet that ends at once, again and again."""
    for source, flags in _kubelet_flags(node):
        for name, value, is_known in _find_unparsed(node.host, flags):
            gone = kubelet_flags.find_gone(name)
            what = f"does not take --{name}={value}" if is_known else f"has no flag --{name}"
            yield Finding(
                "KubeletFlags",
                ERROR,
                f"this kubelet ({node.kubelet_version}) {what}, which {source} gives",
                gone.remedy if gone and not is_known else f"correct it in {source}",
            )
        for refusal in (
            refusal
            for name, value in flags
            if name == kubelet_flags.LABELS_FLAG
            for refusal in kubelet_flags.find_refused_labels(value)
        ):
            yield Finding("KubeletFlags", ERROR, f"{refusal.message} ({source})", refusal.remedy)


def _kubelet_flags(node: Node) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(where they stand, (name, value) of each) of the flags with which the kubelet will be started."""
    if node.workflow == DOCTOR:
        path = node.paths.kubelet_flags_env
        args = kubelet.parse_flags_env(read_or_empty(node.host, str(path)))
        yield str(path), [(arg.name, arg.value) for arg in args]
    else:
        args = node.config.node.kubelet_extra_args
        yield "nodeRegistration.kubeletExtraArgs", [(arg.name, arg.value) for arg in args]
    for path in KUBELET_ENV_FILES:
        text = read_or_empty(node.host, str(path))
        yield str(path), [(arg.name, arg.value) for arg in kubelet.parse_flags_env(text, "KUBELET_EXTRA_ARGS")]


def _find_unparsed(host: Host, flags: list[tuple[str, str]]) -> Iterator[tuple[str, str, bool]]:
    """(name, value, whether it is a flag at all) of those that the kubelet does not take: it names the first, so the others
    are asked about without it."""
    left = list(flags)
    while left:
        words = [f"--{name}={value}" if value else f"--{name}" for name, value in left]
        answer = host.query(["kubelet", *words, "--version"], timeout_s=30)
        found = None if answer.ok or answer.missing else _NOT_PARSED.search(answer.stderr or answer.stdout)
        name = (found["unknown"] or found["invalid"]) if found else ""
        culprits = [flag for flag in left if kubelet_flags.normal_name(flag[0]) == kubelet_flags.normal_name(name)]
        if not found or not culprits:
            return  # well, or something that is not about a flag: other checks look at it
        yield culprits[0][0], culprits[0][1], found["unknown"] is None
        left = [flag for flag in left if flag not in culprits]


def check_kubelet_unit(node: Node) -> Findings:
    """kubeadm warns of a missing unit and then waits four minutes for a kubelet that nobody starts."""
    if services.find(node.host) is services.OPENRC:
        yield from _check_openrc_kubelet(node)
    elif not node.units:
        yield Finding(
            "Service-kubelet",
            WARNING,
            "neither systemd nor OpenRC answers, so kb cannot start the kubelet",
            "start it yourself when kb waits for it, and at every boot",
        )
    elif node.has_unit("kubelet.service", "LoadState", "not-found", "masked"):
        state = node.units["kubelet.service"]["LoadState"]
        if state == "not-found" and "kubelet-start" in node.mends and node.host.which("kubelet"):
            return  # kb writes the unit itself
        yield Finding(
            "Service-kubelet",
            ERROR,
            f"the unit kubelet.service is {'masked' if state == 'masked' else 'not there'}",
            "systemctl unmask kubelet"
            if state == "masked"
            else f"install it: {crictl.install_command(node.host, 'kubelet')}",
        )
    elif "kubelet-start" not in node.mends and not node.has_unit(
        "kubelet.service", "UnitFileState", "enabled", "enabled-runtime", "static", "generated"
    ):
        yield Finding(
            "Service-kubelet",
            WARNING,
            "the unit kubelet.service is not enabled: after a reboot this node stays down",
            "systemctl enable kubelet.service",
        )


def _check_openrc_kubelet(node: Node) -> Findings:
    """OpenRC goes by a script, which the kubelet's package brings."""
    if not node.host.exists(Path("/etc/init.d/kubelet")):
        text = f"{services.OPENRC.name_unit('kubelet')} is not there"
        remedy = f"install it: {crictl.install_command(node.host, 'kubelet', apk='kubelet-openrc')}"
        yield Finding("Service-kubelet", ERROR, text, remedy)
    elif "kubelet-start" not in node.mends and not node.host.exists(Path("/etc/runlevels/default/kubelet")):
        yield Finding(
            "Service-kubelet",
            WARNING,
            "the kubelet is in no runlevel of OpenRC: after a reboot this node stays down",
            services.OPENRC.say("enable", "kubelet"),
        )


OTHER_RESOLV_CONFS = (Path(RESOLVED_CONF), Path("/run/NetworkManager/no-stub-resolv.conf"))


def check_resolver(node: Node) -> Findings:
    """CoreDNS forwards to the name servers in the kubelet's resolv.conf: a loopback address there is CoreDNS itself."""
    chosen = node.kubelet_setting("resolvConf", "resolv-conf")
    if chosen == "" or node.config.cluster.dns.disabled:
        return
    is_resolved = node.has_unit("systemd-resolved.service", "ActiveState", "active")
    path = Path(str(chosen)) if chosen else Path(RESOLVED_CONF) if is_resolved else Path("/etc/resolv.conf")
    servers = _read_nameservers(node.host, path)
    loops = [server for server in servers if (address := _address(server.partition("%")[0])) and address.is_loopback]
    if servers and not loops:
        return
    other = next((item for item in OTHER_RESOLV_CONFS if item != path and _is_good_resolv_conf(node.host, item)), None)
    remedy = f"resolvConf: {other} in the KubeletConfiguration" if other else f"put a real name server into {path}"
    text = (
        f"{path} names the loopback address {loops[0]}: CoreDNS would ask itself"
        if loops
        else f"{path} names no name server"
    )
    yield Finding("Resolver", ERROR if loops else WARNING, f"{text}, and stop", remedy)


def _read_nameservers(host: Host, path: Path) -> list[str]:
    rows = [line.split() for line in read_or_empty(host, str(path)).splitlines()]
    return [row[1] for row in rows if len(row) > 1 and row[0] == "nameserver"]


def _is_good_resolv_conf(host: Host, path: Path) -> bool:
    servers = [_address(server.partition("%")[0]) for server in _read_nameservers(host, path)]
    return bool(servers) and not any(server is None or server.is_loopback for server in servers)


# ---- external etcd


ETCD_ATTEMPTS = 3
ETCD_PAUSE_S = 2.0


def check_external_etcd_version(node: Node) -> Findings:
    external = node.config.cluster.external_etcd
    if external is None:
        return
    try:
        tls = etcd.read_external_tls(node.host, external)
    except HostError as error:
        yield Finding("ExternalEtcdVersion", ERROR, str(error), error.remedy)
        return
    floor = node.release.min_external_etcd_tag
    attempts = 1 if node.workflow == DOCTOR else ETCD_ATTEMPTS  # doctor tells what it sees now
    for endpoint in external.http_endpoints or external.endpoints:
        url = f"{endpoint.rstrip('/')}/version"
        try:
            answer = _ask(node.host, url, tls, attempts=attempts)
        except Unreachable as error:
            if node.workflow != DOCTOR:  # whose own look at etcd tells it, and whether the others are enough
                yield Finding("ExternalEtcdVersion", ERROR, str(error), error.remedy)
            continue
        version = _etcd_version(answer)
        if answer.status != 200 or not version:
            yield Finding(
                "ExternalEtcdVersion",
                ERROR,
                f"{url} answers with status {answer.status} and no version",
                f"see what answers there: curl -vk {url}",
            )
        elif not is_at_least(version, floor):
            yield Finding(
                "ExternalEtcdVersion",
                ERROR,
                f"etcd at {endpoint} is {version}, the oldest that Kubernetes {node.release.name} works with is "
                f"{floor.partition('-')[0]}",
                f"upgrade etcd to {node.release.etcd_tag.partition('-')[0]}",
            )


def _ask(host: Host, url: str, tls: Tls, *, attempts: int) -> HttpResponse:
    for attempt in range(1, attempts + 1):
        try:
            answer = host.http_get(url, tls=tls, timeout_s=10)
            if answer.status < 500 or attempt == attempts:
                return answer
        except Unreachable:
            if attempt == attempts:
                raise
        host.sleep(ETCD_PAUSE_S)
    raise AssertionError("unreachable")


def _etcd_version(answer: HttpResponse) -> str:
    try:
        return str(parse_json_object(answer.body, "it").get("etcdserver", ""))
    except ValueError:
        return ""


def check_external_etcd_files(node: Node) -> Findings:
    external = node.config.cluster.external_etcd
    is_brought = node.workflow == JOIN_CONTROL_PLANE and bool(node.config.certificate_key)
    if external is None or is_brought:  # the Secret of the shared certificates has them
        return
    files = {"caFile": external.ca_file, "certFile": external.cert_file, "keyFile": external.key_file}
    missing = {entry: name for entry, name in files.items() if name and not node.host.exists(Path(name))}
    for entry, name in missing.items():
        yield Finding(
            "ExternalEtcdClientCertificates",
            ERROR,
            f"etcd.external.{entry} {name} does not exist",
            f"copy it from the etcd cluster to {name}",
        )
    for entry, fault in () if missing else _find_etcd_faults(node.host, external):
        name = files[entry]
        text = f"etcd.external.{entry} {name} cannot be used: {fault}"
        yield Finding("ExternalEtcdClientCertificates", ERROR, text, f"copy a good one from the etcd cluster to {name}")


def _find_etcd_faults(host: Host, external: ExternalEtcd) -> Iterator[tuple[str, str]]:
    """(entry, what is wrong): the API server would not start with it."""
    try:
        if external.ca_file:
            certificates.parse_certs(host.read_text(Path(external.ca_file)))
    except ValueError as error:
        yield "caFile", str(error)
    if external.cert_file and external.key_file:
        texts = (host.read_text(Path(external.cert_file)), host.read_text(Path(external.key_file)))
        fault = certificates.describe_pair(*texts, host.now())
        if fault:
            yield "certFile", f"with {external.key_file}, {fault}"


# ---- images


def check_images(node: Node) -> Findings:
    """Pull what is missing. The runtime's own sandbox image is among them: without it no Pod starts at all."""
    wanted = list(images.list_node_images(node.config, node.release))
    sandbox = node.runtime.sandbox_image
    if sandbox and sandbox not in wanted:
        wanted.append(sandbox)
    return _pull(node, wanted, sandbox)


def check_balancer_image(node: Node) -> Findings:
    """A worker's kubelet pulls its images itself, but this one is needed before it can ask for anything else."""
    if not node.config.kb.load_balancer.is_local:
        return ()
    return _pull(node, [images.load_balancer_image(node.config.kb)], "")


def _pull(node: Node, wanted: list[str], sandbox: Optional[str]) -> Findings:
    registration = node.config.node
    try:
        result = image_pulls.ensure_images(
            node.host,
            registration.cri_socket,
            wanted,
            policy=registration.image_pull_policy,
            is_serial=registration.image_pull_serial,
            tell=node.tell,
        )
    except HostError as error:
        yield Finding("ImagePull", ERROR, str(error), error.remedy)
        return
    plain = [failure for failure in result.failed if failure.image != sandbox]
    for failure in image_pulls.group_failures(plain):
        yield Finding("ImagePull", ERROR, f"{failure.what}: {failure.cause}", failure.remedy)
    for failure in result.failed:
        if failure.image == sandbox:
            yield _describe_missing_sandbox(node, failure)


def _describe_missing_sandbox(node: Node, error: image_pulls.ImagePullError) -> Finding:
    wanted = images.image_of("pause", node.config.cluster, node.release).ref
    if error.image == wanted:
        return Finding("ImagePull", ERROR, f"{error.what}: {error.cause}", error.remedy)
    return Finding(
        "ImagePull",
        ERROR,
        f"{node.runtime.label} starts every Pod with the image {error.image}, which cannot be pulled: {error.cause}",
        runtime.describe_setting(node.runtime, "sandbox_image", f'"{wanted}"', host=node.host),
    )


# ---- the table


@frozen
class Check:
    """names: what its findings are called (`*`: a port, a program, a path with - for /)."""

    names: str
    batch: str
    workflows: frozenset[str]
    look: Callable[[Node], Findings]


def _in(*workflows: str) -> frozenset[str]:
    return frozenset(workflows)


_EVERY_NODE = _in(INIT, JOIN, DOCTOR)
_CONTROL_PLANE = _in(INIT, JOIN_CONTROL_PLANE)

CHECKS: tuple[Check, ...] = (
    Check("IsPrivilegedUser", ROOT, _in(INIT, JOIN, UPGRADE, RESET, DOCTOR), check_root_user),
    Check("NumCPU", NODE, _in(INIT, JOIN_CONTROL_PLANE, DOCTOR), check_cpus),
    Check("Mem", NODE, _in(INIT, JOIN_CONTROL_PLANE, DOCTOR), check_memory),
    Check("KubernetesVersion", NODE, _CONTROL_PLANE, check_kubernetes_version),
    Check("Firewalld", NODE, _in(INIT, JOIN_CONTROL_PLANE, DOCTOR), check_firewall),
    Check("Port-*", NODE, _CONTROL_PLANE, check_control_plane_ports),
    Check("FileAvailable-*", NODE, _CONTROL_PLANE, check_manifests),
    Check("FileAvailable-*", NODE, _in(JOIN), check_joined),
    Check("AdvertiseAddress", NODE, _in(INIT, JOIN_CONTROL_PLANE, DOCTOR), check_advertise_address),
    Check("HostPath", NODE, _CONTROL_PLANE, check_host_paths),
    Check("AnonymousAuth", NODE, _CONTROL_PLANE, check_anonymous_auth),
    Check("ServiceRoute", NODE, _EVERY_NODE, check_service_route),
    Check("HTTPProxy", NODE, _CONTROL_PLANE, check_proxy),
    Check("KubeletProxy", NODE, _in(INIT, JOIN_CONTROL_PLANE, DOCTOR), check_kubelet_proxy),
    Check("HTTPProxyCIDR", NODE, _CONTROL_PLANE, check_proxy_cidrs),
    Check("HTTPProxy", NODE, _in(JOIN), check_join_proxy),
    Check("ClockSkew", NODE, _in(JOIN), check_clock),
    Check("CRI", NODE, _EVERY_NODE, check_runtime),
    Check("ContainerRuntimeVersion", NODE, _in(INIT, JOIN, UPGRADE, DOCTOR), check_runtime_version),
    Check("CgroupDriver", NODE, _EVERY_NODE, check_cgroup_driver),
    Check("OOMScoreAdj", NODE, _EVERY_NODE, check_oom_score),
    Check("SandboxImage", NODE, _EVERY_NODE, check_sandbox_image),
    Check("RegistryConfig", NODE, _EVERY_NODE, check_registry_config),
    Check("CNIPlugins", NODE, _EVERY_NODE, check_cni_plugins),
    Check("CNIConfig", NODE, _in(INIT), check_pod_network),
    Check("CNIConfig", NODE, _in(JOIN), check_join_network),
    Check("Swap", NODE, _EVERY_NODE, check_swap),
    Check("FileExisting-*", NODE, _EVERY_NODE, check_programs),
    Check(SYSTEM, NODE, _in(INIT, JOIN, UPGRADE, DOCTOR), check_system),
    Check("CgroupWritable", NODE, _EVERY_NODE, check_cgroup_writable),
    Check("DiskSpace", NODE, _EVERY_NODE, check_disk_space),
    Check("Hostname", NODE, _in(INIT, JOIN), check_hostname),
    Check("Resolver", NODE, _EVERY_NODE, check_resolver),
    Check("KubeletVersion", NODE, _EVERY_NODE, check_kubelet_version),
    Check("KubeletFlags", NODE, _EVERY_NODE, check_kubelet_flags),
    Check("Service-kubelet", NODE, _EVERY_NODE, check_kubelet_unit),
    Check("Port-10250", NODE, _in(INIT, JOIN), check_kubelet_port),
    Check("FileContent-*", NODE, _EVERY_NODE, check_forwarding),
    Check("ExternalEtcdVersion", NODE, _in(INIT, DOCTOR), check_external_etcd_version),
    Check("Port-*", NODE, _CONTROL_PLANE, check_etcd_ports),
    Check("DirAvailable-*", NODE, _CONTROL_PLANE, check_etcd_folder),
    Check("ExternalEtcdClientCertificates", NODE, _CONTROL_PLANE, check_external_etcd_files),
    Check("LoadBalancerPort-*", NODE, _in(INIT, JOIN, JOIN_CONTROL_PLANE), check_balancer_ports),
    Check("ImagePull", IMAGES, _in(INIT, JOIN_CONTROL_PLANE, UPGRADE), check_images),
    Check("ImagePull", IMAGES, _in(JOIN), check_balancer_image),
)
"""In kubeadm's order; kb's own (AdvertiseAddress, HostPath, AnonymousAuth, KubeletFlags, ServiceRoute, KubeletProxy, CgroupDriver, OOMScoreAdj, SandboxImage, RegistryConfig, CNIPlugins,
CNIConfig or PodNetworkManifest, CgroupWritable, DiskSpace, Resolver) stand by their kin. A batch is run whole before its errors count: first root, then node, then images."""


# ---- running them


def run_batch(node: Node, batch: str) -> list[Finding]:
    """All findings of the batch's checks for the node's workflow, in the table's order."""
    if batch == NODE:
        node.look_ahead()
    found: list[Finding] = []
    for check in CHECKS:
        if check.batch == batch and node.workflow in check.workflows:
            found.extend(_look(check, node))
    return found


def _look(check: Check, node: Node) -> Iterator[Finding]:
    """A look that fails is a finding too, and must not keep the others from being told."""
    try:
        yield from check.look(node)
    except KbError as error:
        yield Finding(check.names.rstrip("*-"), ERROR, str(error), error.remedy)


def parse_ignored(names: Iterable[str]) -> frozenset[str]:
    """The names in --ignore-preflight-errors, in small letters. Raises UsageError (ignore-all-alone)."""
    ignored = frozenset(name.strip().lower() for name in names if name.strip())
    if "all" in ignored and len(ignored) > 1:
        raise UsageError(
            f"--ignore-preflight-errors {','.join(sorted(ignored))}",
            cause='"all" stands for every check already',
            remedy='give "all" alone, or the names alone',
            code="ignore-all-alone",
        )
    return ignored


def judge_findings(findings: Iterable[Finding], ignored: frozenset[str]) -> tuple[list[Finding], list[Finding]]:
    """(errors, warnings): an ignored error is a warning."""
    errors, warnings = [], []
    for finding in findings:
        if finding.level == ERROR and not ignored & {"all", finding.name.lower()}:
            errors.append(finding)
        else:
            warnings.append(Finding(finding.name, WARNING, finding.text, finding.remedy))
    return errors, warnings


def _is_fixable(node: Node, errors: Sequence[Finding]) -> bool:
    """Whether --fix would mend one of them: a setting of containerd's that is wrong."""
    is_setting = any(f"{runtime.CONTAINERD_CONFIG}" in finding.remedy for finding in errors)
    return node.workflow == INIT and is_setting and not node.config.kb.runtime.fix


def make_error(node: Node, errors: Sequence[Finding]) -> PreflightError:
    """One error for a batch: all that is wrong, a line each."""
    names = list(dict.fromkeys(finding.name for finding in errors))
    count = f"{len(errors)} check{'s' * (len(errors) != 1)} failed"
    return PreflightError(
        f"this node is not fit for kb {node.workflow}",
        cause=f"{count}: {', '.join(names)}",
        remedy=f"fix what is listed, then run the command again (to accept it: --ignore-preflight-errors={','.join(names)})"
        + ("; with --fix kb corrects containerd's settings itself" if _is_fixable(node, errors) else ""),
        code="preflight",
        details=[str(finding) for finding in errors],
    )
