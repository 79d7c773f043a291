"""Values that come from the machine: node name, address, runtime socket, version, a free pod network, proxies.

Only reads. Every choice comes with a sentence that gives the reason (`note`), or with what is wrong and what to do
(`message`, `remedy`). With --root there is no running system to query, and each choice says so. Source:
cmd/kubeadm/app/util/version.go, cmd/kubeadm/app/util/runtime/runtime.go,
staging/src/k8s.io/apimachinery/pkg/util/net/interface.go
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Optional, Union

from kubeup import releases
from kubeup.config.types import NodeRegistration
from kubeup.errors import KbError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.host import Host
from kubeup.machine.redirects import get_page
from kubeup.shapes import fit_what_does

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

PLACEHOLDER_ADDRESSES = {4: "192.0.2.10", 6: "2001:db8::10"}
"""Documentation addresses by IP version, used where there is no running system to query."""


@frozen
class Choice:
    """A value and the reason for it; or, with `message`, why there is none."""

    value: str
    note: str = ""
    warning: str = ""
    message: str = ""
    remedy: str = ""


# ---- addresses


@frozen
class Interface:
    name: str
    addresses: tuple[Address, ...]
    """The global unicast addresses, in the kernel's order."""
    is_up: bool = True


_NOT_CANDIDATES = (
    "lo", "docker", "podman", "cni", "cbr", "veth", "virbr", "lxc", "br-", "nodelocaldns", "kube-",
    "flannel", "cilium", "cali", "tunl", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali",
    "antrea", "ovn", "weave",
)  # fmt: skip
"""Name prefixes of interfaces that hold addresses of containers and virtual machines; kb's own begin with cbr. A node
gets such interfaces with its pod network, and they must not change the result of a second run."""


def parse_address(text: str) -> Optional[Address]:
    """An IP address without zone or prefix; None for anything else."""
    if "%" in text or len(text) > 45:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def normalize_address(text: str) -> str:
    """An address as Go's net.ParseIP prints it: lower case, IPv4 addresses in IPv6 form as IPv4, without leading zeros
    (k8s.io/utils/net.ParseIPSloppy). Anything else is returned unchanged."""
    plain = text.strip()
    if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){3}", plain):
        plain = ".".join(str(int(part)) for part in plain.split("."))
    address = parse_address(plain)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address) if address is not None else text


def normalize_cidrs(text: str) -> str:
    """Subnets without the leading zeros that k8s.io/utils/net.ParseCIDRSloppy ignores; anything else is returned
    unchanged."""
    octets = r"(?<![\w.:])[0-9]{1,4}(?:\.[0-9]{1,4}){3}(?=/)"
    return re.sub(octets, lambda match: ".".join(str(int(part)) for part in match[0].split(".")), text)


def normalize_socket(text: str) -> str:
    """`unix:///run/x.sock`, from every form of it that kubeadm, the kubelet and gRPC accept: `unix:/run/x.sock`, a
    scheme in another case, only a path (ValidateSocketPath in cmd/kubeadm/app/apis/kubeadm/validation). Anything else
    is returned unchanged."""
    match = re.fullmatch(r"(?i:unix):(?://)?(/.*)", text.strip())
    if match:
        return f"unix:///{match[1].lstrip('/')}"
    return f"unix://{text.strip()}" if text.strip().startswith("/") else text


def is_global_unicast(address: Address) -> bool:
    """Go's IsGlobalUnicast: true for private addresses; false for link-local, loopback, multicast and broadcast."""
    return not (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or str(address) == "255.255.255.255"
    )


def _query_json(host: Host, *argv: str) -> Optional[list[Any]]:
    result = host.query(argv, timeout_s=10)
    if not result.ok:
        return None
    try:
        found = parse_json(result.stdout or "[]", "it")
    except ValueError:
        return None
    shape = {"ifname": str, "flags": [str], "addr_info": [{"local": str}], "dst": str}
    return fit_what_does(found, [shape]) if isinstance(found, list) else None


def read_interfaces(host: Host) -> Optional[list[Interface]]:
    """The machine's interfaces; None if the program `ip` cannot list them."""
    rows = _query_json(host, "ip", "-json", "addr")
    if rows is None:
        return None
    found = []
    for row in rows:
        parsed = (parse_address(str(info.get("local", ""))) for info in row.get("addr_info", ()))
        addresses = tuple(address for address in parsed if address and is_global_unicast(address))
        found.append(Interface(str(row.get("ifname", "")), addresses, "UP" in row.get("flags", ["UP"])))
    return found


def read_default_interfaces(host: Host) -> dict[int, list[str]]:
    """IP version -> interfaces of its default routes, in the kernel's order."""
    found: dict[int, list[str]] = {4: [], 6: []}
    for line in _read_lines(host, "/proc/net/route")[1:]:
        words = line.split()
        if len(words) >= 8 and words[1] == "00000000" and words[7] == "00000000":
            found[4].append(words[0])
    for line in _read_lines(host, "/proc/net/ipv6_route"):
        words = line.split()
        if len(words) >= 10 and words[0] == "0" * 32 and words[1] == "00" and words[4] != "0" * 32:
            found[6].append(words[9])
    return found


def _read_lines(host: Host, path: str) -> list[str]:
    try:
        return host.read_text(Path(path)).splitlines() if host.exists(Path(path)) else []
    except KbError:
        return []


def is_open_address(given: str) -> bool:
    """Whether the machine has to be queried: the address is empty, unspecified or loopback."""
    wanted = parse_address(given)
    return not given or (wanted is not None and (wanted.is_unspecified or wanted.is_loopback))


def choose_advertise_address(host: Host, given: str, *, prefer: int, is_sure: bool = False) -> Choice:
    """The address at which this API server is reached. `prefer` is the IP version to take if there are both, and the
    only acceptable one if the cluster's subnets are known (`is_sure`). A given address that names one machine is the
    answer itself."""
    if not is_open_address(given):
        return Choice(given)
    if host.mode == "root":
        return Choice(
            PLACEHOLDER_ADDRESSES[prefer],
            note=f"no running system below --root: advertise address {PLACEHOLDER_ADDRESSES[prefer]} is a "
            "placeholder, give --apiserver-advertise-address",
        )
    wanted = parse_address(given)
    interfaces = read_interfaces(host)
    if interfaces is None:
        return Choice(
            "",
            message="the addresses of this machine cannot be listed: the program ip (package iproute2) is missing or failed",
            remedy="give the address: --apiserver-advertise-address, or localAPIEndpoint.advertiseAddress",
        )
    if wanted is not None and wanted.is_loopback:
        return _choose_on_loopback(interfaces, given)
    return _choose_by_routes(host, interfaces, versions=(prefer,) if is_sure else (prefer, 10 - prefer))


def _choose_on_loopback(interfaces: list[Interface], given: str) -> Choice:
    for interface in interfaces:
        if interface.name == "lo" and interface.addresses:
            return Choice(
                str(interface.addresses[0]), note=f"advertise address {interface.addresses[0]}, which lo holds"
            )
    return Choice(
        "",
        message=f"nobody else can reach the loopback address {given}, and lo holds no other address",
        remedy="give an address of one of this machine's networks",
    )


def _routed_addresses(
    host: Host, interfaces: list[Interface], *, versions: tuple[int, ...]
) -> Iterator[tuple[Address, str]]:
    """Addresses on default routes, with the route's interface: first the interface's own, then those on lo."""
    held = {interface.name: interface.addresses for interface in interfaces if interface.is_up}
    defaults = read_default_interfaces(host)
    for version in versions:
        for name in defaults[version]:
            found = (*held.get(name, ()), *held.get("lo", ()))
            yield from ((address, name) for address in found if address.version == version)


def _choose_by_routes(host: Host, interfaces: list[Interface], *, versions: tuple[int, ...]) -> Choice:
    routed = next(_routed_addresses(host, interfaces, versions=versions), None)
    if routed is not None:
        return _judge_address(*routed, interfaces)
    candidates = [(address, name) for address, name in _candidates(interfaces) if address.version in versions]
    if len(candidates) == 1:
        address, name = candidates[0]
        return Choice(
            str(address), note=f"advertise address {address}: no default route, {name} holds the only address"
        )
    if not candidates and len(versions) == 1 and _candidates(interfaces):
        return Choice(
            "",
            message=f"this machine has no IPv{versions[0]} address, and the first subnet of the cluster is IPv{versions[0]}",
            remedy="give the machine one, or give subnets of the family that it has (serviceSubnet, podSubnet)",
        )
    shown = ", ".join(f"{address} ({name})" for address, name in candidates)
    return Choice(
        "",
        message="no default route tells which address others reach this machine at"
        + (f"; it has {shown}" if shown else ", and no interface holds an address"),
        remedy="give one: --apiserver-advertise-address, or localAPIEndpoint.advertiseAddress",
    )


_NAT_ADDRESS = ipaddress.ip_address("10.0.2.15")
"""The address that VirtualBox gives the first interface of every machine (Vagrant's NAT), so it is not unique."""


def _judge_address(address: Address, name: str, interfaces: list[Interface]) -> Choice:  # noqa: PLR0917
    """The default route's address, unless it cannot distinguish this machine from others."""
    holders = [interface.name for interface in interfaces if interface.is_up and address in interface.addresses]
    if len(holders) > 1:
        return Choice(
            "",
            message=f"{' and '.join(holders)} both hold {address}: answers would go out by either",
            remedy="take the address from one of them, or give another one: --apiserver-advertise-address",
        )
    if address != _NAT_ADDRESS:
        return Choice(str(address), note=_address_note(address, name, interfaces=interfaces))
    nat = f"{address} ({name}, the default route) is the NAT address that every VirtualBox machine has"
    others = [(other, at) for other, at in _candidates(interfaces) if other.version == 4 and other != address]
    if len(others) == 1:
        other, at = others[0]
        return Choice(str(other), note=f"advertise address {other} ({at}): {nat}")
    if others:
        shown = ", ".join(f"{other} ({at})" for other, at in others)
        return Choice(
            "",
            message=f"{nat}, so no other machine reaches this one there; it also has {shown}",
            remedy="give one: --apiserver-advertise-address, or localAPIEndpoint.advertiseAddress",
        )
    return Choice(str(address), warning=f"{nat}: no other machine can join this one there")


NO_DEFAULT_ROUTE, SEVERAL_CARDS = "this machine has no default route", "this machine has several network interfaces"


def find_doubt_of_address(host: Host, advertised: str) -> str:
    """Why the kubelet's own choice might be another address than the advertised one, or none (NO_DEFAULT_ROUTE,
    SEVERAL_CARDS); "" if it will not, or if this machine does not hold the address."""
    address, interfaces = parse_address(advertised), read_interfaces(host) or []
    if address is None:
        return ""
    held = [(item, name) for item, name in _candidates(interfaces) if item.version == address.version]
    own = [name for item, name in held if item == address]
    if len(own) != 1:
        return ""
    if not read_default_interfaces(host)[address.version]:
        return NO_DEFAULT_ROUTE
    return SEVERAL_CARDS if any(name != own[0] for _, name in held) else ""


def choose_dual_addresses(host: Host, advertised: str) -> tuple[str, ...]:
    """The advertised address, and one of the other family: from the same interface if it has one, else from the
    interface with that family's default route. () if the machine has none, or several with no way to choose."""
    first, interfaces = parse_address(advertised), read_interfaces(host) or []
    if first is None:
        return ()
    other = 10 - first.version
    near = [
        address
        for interface in interfaces
        if interface.is_up and first in interface.addresses
        for address in interface.addresses
        if address.version == other
    ]
    if near:
        return str(first), str(near[0])
    chosen = choose_advertise_address(host, "", prefer=other, is_sure=True).value
    return (str(first), chosen) if chosen else ()


def _candidates(interfaces: list[Interface]) -> list[tuple[Address, str]]:
    return [
        (address, interface.name)
        for interface in interfaces
        if interface.is_up and not interface.name.startswith(_NOT_CANDIDATES)
        for address in interface.addresses
    ]


def _address_note(chosen: Address, name: str, *, interfaces: list[Interface]) -> str:
    """Why this address was chosen; "" if there was no choice."""
    rivals = [(address, other) for address, other in _candidates(interfaces) if address.version == chosen.version]
    others = [f"{address} ({other})" for address, other in rivals if address != chosen]
    if not others:
        return ""
    return f"advertise address {chosen}: {name} holds the default route; this machine also has {', '.join(others)}"


# ---- runtime


_SOCKETS = ("/var/run/containerd/containerd.sock", "/var/run/crio/crio.sock", "/var/run/cri-dockerd.sock")


def choose_cri_socket(host: Host) -> Choice:
    """The only runtime socket on the machine; containerd's if there is none."""
    if host.mode == "root":
        return Choice(NodeRegistration.cri_socket)
    found = [path for path in _SOCKETS if host.exists(Path(path)) or host.exists(Path(path[len("/var") :]))]
    if len(found) > 1:
        return Choice(
            NodeRegistration.cri_socket,
            message=f"there are several container runtimes: {', '.join(f'unix://{path}' for path in found)}",
            remedy="name the one to use: nodeRegistration.criSocket, or --cri-socket",
        )
    return Choice(f"unix://{found[0]}" if found else NodeRegistration.cri_socket)


# ---- version


_LABEL = re.compile(r"(?:release/)?((?:ci/)?(?:stable|latest)(?:-1(?:\.(\d{1,3}))?)?)")
_RELEASES_URL = "https://dl.k8s.io/release/{}.txt"
_BUILDS_URL = "https://storage.googleapis.com/k8s-release-dev/{}.txt"
_GIVE_VERSION = f"give a full version such as {releases.NEWEST_PROVEN}"


def is_version_label(text: str) -> bool:
    return _LABEL.fullmatch(text.strip()) is not None


def choose_version(host: Host, wanted: str) -> Choice:
    """The full version that `wanted` stands for: a version, a label (looked up on the network), or "" (the installed
    kubelet's version, without using the network)."""
    plain = wanted.strip()
    parsed = releases.parse_version(plain[len("release/") :] if plain.startswith("release/") else plain)
    if parsed:
        return Choice(parsed.text)
    if not plain:
        return _choose_local_version(host)
    match = _LABEL.fullmatch(plain)
    if not match:
        return Choice(
            "",
            message=f"{plain[:60]!r} is neither a version nor a label such as stable-1 or latest-1.35",
            remedy=_GIVE_VERSION,
        )
    return _look_up_label(host, match.group(1), minor=match.group(2))


def _choose_local_version(host: Host) -> Choice:
    kubelet = host.which("kubelet")
    if kubelet is not None:
        text = host.query([kubelet, "--version"], timeout_s=10).stdout.strip()
        parsed = releases.parse_version(text[len("Kubernetes ") :]) if text.startswith("Kubernetes ") else None
        if parsed:
            return Choice(parsed.text, note=f"Kubernetes {parsed.text}, the version of {kubelet}")
    newest = releases.NEWEST_PROVEN
    return Choice(newest, note=f"Kubernetes {newest}: no version was given and no kubelet is installed")


def _look_up_label(host: Host, label: str, *, minor: Optional[str]) -> Choice:
    version, trouble = _fetch_label(host, label)
    newest = max(releases.RELEASES)
    if version and version.minor > newest and not label.startswith("ci/"):
        label = f"stable-1.{newest}"
        version, trouble = _fetch_label(host, label)
    if version:
        return Choice(version.text, note=f"Kubernetes {version.text}, which {label} stands for now")
    local = _choose_local_version(host)
    chosen = releases.parse_version(local.value)
    if (minor and chosen and chosen.minor != int(minor)) or label.startswith("ci/"):
        return Choice("", message=f"the version label {label} could not be looked up: {trouble}", remedy=_GIVE_VERSION)
    return Choice(
        local.value,
        note=local.note,
        warning=f"the version label {label} could not be looked up ({trouble}): taking {local.value}",
    )


def _fetch_label(host: Host, label: str) -> tuple[Optional[releases.Version], str]:
    url = (_BUILDS_URL if label.startswith("ci/") else _RELEASES_URL).format(label)
    try:
        _, answer = get_page(host, url, timeout_s=10)
    except KbError as error:
        return None, str(error)
    if answer.status != 200:
        return None, f"{url} answered with HTTP status {answer.status}"
    text = answer.body[:100].decode(errors="replace").strip()
    version = releases.parse_version(text)
    return version, "" if version else f"{url} answered {text[:40]!r}, which is not a version"


# ---- pod network


def choose_pod_subnet(host: Host, families: Iterable[int], *, taken: Iterable[str]) -> Choice:
    """A pod network for each IP version in `families` that overlaps neither `taken` (CIDRs, addresses) nor a route of
    this machine. An existing cluster keeps its own."""
    present = _present_pod_subnet(host)
    if present:
        return Choice(present, note=f"pod network {present}, the one of the existing cluster")
    used = [ipaddress.ip_network(cidr, strict=False) for cidr in taken]
    chosen, passed = [], []
    for family in families:
        routes = used + (read_routes(host, family) if host.mode != "root" else [])
        for candidate in _pod_candidates(family):
            clash = next((net for net in routes if net.version == family and net.overlaps(candidate)), None)
            if clash is None:
                chosen.append(str(candidate))
                break
            passed.append(f"{candidate} overlaps {clash}")
        else:
            return Choice(
                "",
                message="no pod network that kb tries is free on this machine: each overlaps one of its routes",
                remedy="give one: networking.podSubnet, or --pod-network-cidr",
            )
    value = ",".join(chosen)
    why = f" ({'; '.join(passed[:3])})" if passed else ""
    return Choice(value, note=f"pod network {value}: none was given, and no route of this machine overlaps it{why}")


def _pod_candidates(family: int) -> Iterator[Network]:
    if family == 6:
        yield from (ipaddress.ip_network(f"fd00:10:{number}::/56") for number in range(244, 256))
        return
    yield from (ipaddress.ip_network(f"10.{number}.0.0/16") for number in range(244, 256))
    yield from (ipaddress.ip_network(f"172.{number}.0.0/16") for number in range(20, 32))
    yield ipaddress.ip_network("192.168.128.0/17")


_MANIFEST = Path("/etc/kubernetes/manifests/kube-controller-manager.yaml")


def _present_pod_subnet(host: Host) -> str:
    match = re.search(r"--cluster-cidr=([0-9A-Fa-f.:/,]{1,100})", "\n".join(_read_lines(host, str(_MANIFEST))))
    return match.group(1) if match else ""


def read_routes(host: Host, family: int) -> list[Network]:
    """The destinations of all the machine's routes of one IP version, without default routes."""
    rows = _query_json(host, "ip", f"-{family}", "-json", "route", "show", "table", "all")
    if rows is None:
        return _read_kernel_routes(host) if family == 4 else []
    found = []
    for row in rows:
        with contextlib.suppress(ValueError):
            net = ipaddress.ip_network(str(row.get("dst", "")), strict=False)
            if net.prefixlen and not net.is_multicast and not net.is_loopback:
                found.append(net)
    return found


def _read_kernel_routes(host: Host) -> list[Network]:
    found: list[Network] = []
    for line in _read_lines(host, "/proc/net/route")[1:]:
        words = line.split()
        with contextlib.suppress(ValueError, IndexError):
            target, mask = (ipaddress.IPv4Address(bytes.fromhex(words[i])[::-1]) for i in (1, 7))
            net = ipaddress.IPv4Network(f"{target}/{mask}", strict=False)
            if net.prefixlen:
                found.append(net)
    return found


# ---- the rest


def read_node_name(host: Host) -> str:
    return host.hostname().strip().lower()


def read_proxy_env(host: Host) -> dict[str, str]:
    """The `*_proxy` variables of kb's own environment, any case, sorted by name."""
    return {name: value for name, value in sorted(host.environ().items()) if name.lower().endswith("_proxy") and value}
