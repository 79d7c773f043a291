"""The route keeper: what `kb routes` does on every node of a cluster with the bridge pod network.

Owns this node's ways to the pods of the other nodes: a route where a node shares a layer 2 network with this one,
else VXLAN; on a node without a default route, a route for Services, without which its own programs reach none; and the
rule that masks pods' addresses where they leave the cluster. Steps aside for another CNI. Must
not touch a route, rule or link that is not its own: routes carry protocol 199, the link is cbr-vxlan, the rule lies
in a table (or chain) of its own. kubeadm has nothing of the kind.

Everything that decides is pure: `plan_network` says what should be, `plan_changes` turns the difference into
commands, so that a round in which nothing changed runs none.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Optional, Union

from kubeup.cluster import dns_spread
from kubeup.cluster.api import Api, path_of, read_identity
from kubeup.errors import HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.host import Host
from kubeup.network import forwarding, step_aside
from kubeup.network.forwarding import describe_failure as _failure
from kubeup.network.step_aside import BRIDGE, parse_addresses
from kubeup.network.step_aside import parse_ip_output as _json_list
from kubeup.paths import Paths
from kubeup.shapes import fit

CNI_FILE = "99-kb-bridge.conflist"
"""Sorts behind the files of Calico, Cilium, flannel and the others: the runtime takes the first."""
PROTOCOL = 199
VXLAN = "cbr-vxlan"
VXLAN_ID = 4097
VXLAN_PORT = 4789
"""The standard's (RFC 7348), which Calico's tunnel shares. 8472, flannel's and the kernel's own, would be in Cilium's way:
its tunnel takes the whole port, before its CNI file tells kb to step aside."""
VXLAN_OVERHEAD = {4: 50, 6: 70}
"""Bytes that VXLAN puts around a packet, by the IP version of the nodes' network."""
TABLE = "kb_pods"
CHAIN = "KB-POSTROUTING"
MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
POLL_S = 10.0
NODES_PER_POLL_S = 10
"""A large cluster is asked less often: a list of a thousand nodes is a matter of megabytes."""
RETRY_S = 5.0

Command = tuple[str, ...]
Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
_CNI_SUFFIXES = (".conf", ".conflist", ".json")


# ---- values


@frozen
class Peer:
    """A node as the cluster knows it: its InternalIPs and the pod addresses it hands out."""

    name: str
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]


@frozen
class Interface:
    """A network interface of this node with its global addresses (`10.0.0.11/24`)."""

    name: str
    mtu: int
    addresses: tuple[str, ...]


@frozen
class Route:
    """gateway "": what is sent there leaves by the device as it is."""

    pod_cidr: str
    gateway: str
    device: str


@frozen
class Vxlan:
    """The link cbr-vxlan: this node's end of the tunnel, and its own addresses on it (`10.244.0.0/32`)."""

    local: str
    mac: str
    mtu: int
    addresses: frozenset[str] = frozenset()


@frozen
class Network:
    """Routes, link, and who answers behind it: neighbours (pod network address -> MAC), forwards (MAC -> node)."""

    routes: frozenset[Route] = frozenset()
    vxlan: Optional[Vxlan] = None
    neighbours: frozenset[tuple[str, str]] = frozenset()
    forwards: frozenset[tuple[str, str]] = frozenset()
    problems: tuple[str, ...] = field(default=(), compare=False)
    """Nodes that cannot be reached, in words."""


@frozen
class RouteSettings:
    """What the phase pod-network tells the keeper, in /var/lib/kb/pod-network.json."""

    node_name: str
    pod_cidrs: tuple[str, ...]
    """networking.podSubnet: traffic of pods to these stays as it is."""
    backend: str = "auto"
    """auto | route | vxlan"""
    service_cidrs: tuple[str, ...] = ()
    """networking.serviceSubnet: a node must have some route to these."""


# ---- parsing what the cluster and the machine say


def parse_peers(nodes: Iterable[Mapping[str, Any]]) -> list[Peer]:
    """The Node objects of the cluster, in the order of their names."""
    peers = []
    for node in nodes:
        spec, status = node.get("spec") or {}, node.get("status") or {}
        cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
        addresses = [entry["address"] for entry in status.get("addresses") or [] if entry.get("type") == "InternalIP"]
        addresses = [address for address in addresses if _is_address(address)]
        peers.append(Peer(str(node["metadata"]["name"]), tuple(addresses), tuple(cidrs)))
    return sorted(peers, key=lambda peer: peer.name)


def parse_interfaces(text: str) -> list[Interface]:
    """From `ip -json address show`. The pod network's own links are left out, and so is the loopback."""
    found = []
    for link in _json_list(text):
        addresses = parse_addresses(link)
        if addresses and link.get("ifname", "lo") not in (BRIDGE, VXLAN, "lo"):
            found.append(Interface(link["ifname"], link.get("mtu", 1500), tuple(addresses)))
    return found


def parse_routes(text: str, version: int) -> frozenset[Route]:
    """From `ip -json -4|-6 route show proto 199`; `version` 4 or 6."""
    routes = set()
    for entry in _json_list(text):
        cidr = entry.get("dst", "")
        if "/" not in cidr:
            cidr = f"{cidr}/{32 if version == 4 else 128}"
        if entry.get("dst"):
            routes.add(Route(cidr, entry.get("gateway", ""), entry.get("dev", "")))
    return frozenset(routes)


def parse_vxlan(text: str, addresses: Iterable[str]) -> Optional[Vxlan]:
    """From `ip -json -details link show dev cbr-vxlan`; None for no link, or one that is not kb's VXLAN."""
    for link in _json_list(text):
        info = link.get("linkinfo") or {}
        data = info.get("info_data") or {}
        if info.get("info_kind") == "vxlan" and data.get("id") == VXLAN_ID and data.get("port") == VXLAN_PORT:
            local = str(data.get("local") or data.get("local6") or "")
            return Vxlan(local, link.get("address", ""), link.get("mtu", 0), frozenset(addresses))
    return None


def parse_own_addresses(text: str, device: str) -> list[str]:
    """The global addresses of `device`, from `ip -json address show`."""
    links = [link for link in _json_list(text) if link.get("ifname") == device]
    return [address for link in links for address in parse_addresses(link)]


def parse_neighbours(text: str) -> frozenset[tuple[str, str]]:
    """From `ip -json neighbour show dev cbr-vxlan nud permanent`; multicast entries are the kernel's."""
    rows = [(row["dst"], row["lladdr"]) for row in _json_list(text) if {"dst", "lladdr"} <= set(row)]
    return frozenset(
        (address, mac)
        for address, mac in rows
        if _is_address(address) and not ipaddress.ip_address(address).is_multicast
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def parse_forwards(text: str) -> frozenset[tuple[str, str]]:
    """From `bridge -json fdb show dev cbr-vxlan`."""
    return frozenset((row["mac"], row["dst"]) for row in _json_list(text) if {"mac", "dst"} <= set(row))


# ---- what should be


def vtep_mac(address: str) -> str:
    """The MAC of a node's end of the tunnel. Every node works it out from the node's address, so that nothing has
    to be announced: locally administered, and different for different IPv4 addresses."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        octets = b"\x0a\x6b" + parsed.packed
    else:
        octets = b"\x0e" + hashlib.sha256(parsed.packed).digest()[:5]
    return ":".join(f"{octet:02x}" for octet in octets)


def vtep_address(pod_cidr: str) -> str:
    """The pod network's address that stands for the node itself: the first, which no pod gets."""
    return str(ipaddress.ip_network(pod_cidr, strict=False).network_address)


def find_interface(address: str, interfaces: Sequence[Interface], *, own: Sequence[str]) -> Optional[Interface]:
    """The interface through which `address` is a direct neighbour; None where it is not on any connected network.
    The narrowest network counts, and among equals the one that carries this node's own address."""
    wanted = ipaddress.ip_address(address)
    best: Optional[tuple[tuple[int, bool], Interface]] = None
    for interface in interfaces:
        for text in interface.addresses:
            connected = ipaddress.ip_interface(text)
            if connected.version != wanted.version or wanted not in connected.network:
                continue
            rank = (connected.network.prefixlen, str(connected.ip) in own)
            if best is None or rank > best[0]:
                best = (rank, interface)
    return best[1] if best else None


def find_underlay(me: Peer, interfaces: Sequence[Interface]) -> Optional[Interface]:
    """The interface that carries this node's address; the first where the address is on none (a cloud's NAT)."""
    for interface in interfaces:
        if any(text.partition("/")[0] in me.addresses for text in interface.addresses):
            return interface
    return interfaces[0] if interfaces else None


def plan_network(nodes: Sequence[Peer], me: Peer, interfaces: Sequence[Interface], *, backend: str = "auto") -> Network:
    """What this node needs to reach the pods of the others."""
    routes: set[Route] = set()
    neighbours: set[tuple[str, str]] = set()
    forwards: set[tuple[str, str]] = set()
    problems: list[str] = []
    own_networks = [ipaddress.ip_network(cidr, strict=False) for cidr in me.pod_cidrs]
    own_versions = {network.version for network in own_networks}
    local = me.addresses[0] if me.addresses else ""
    for peer in nodes:
        if peer.name == me.name:
            continue
        for cidr in peer.pod_cidrs:
            network = ipaddress.ip_network(cidr, strict=False)
            if network.version not in own_versions:
                continue
            if any(network.version == own.version and network.overlaps(own) for own in own_networks):
                problems.append(f"node {peer.name} has the podCIDR {cidr}, which overlaps this node's own")
                continue
            direct = _direct_route(cidr, peer, interfaces, me) if backend != "vxlan" else None
            if direct is not None:
                routes.add(direct)
                continue
            remote = _same_version(local, peer.addresses)
            if backend == "route" or not remote:
                reason = "is on no network that this node is connected to" if peer.addresses else "has no InternalIP"
                problems.append(f"node {peer.name} ({', '.join(peer.addresses) or 'no address'}) {reason}")
                continue
            gateway, mac = vtep_address(cidr), vtep_mac(remote)
            routes.add(Route(str(network), gateway, VXLAN))
            neighbours.add((gateway, mac))
            forwards.add((mac, remote))
    underlay = find_underlay(me, interfaces)
    vxlan = _plan_vxlan(me, local, underlay) if forwards and underlay else None
    return Network(frozenset(routes), vxlan, frozenset(neighbours), frozenset(forwards), tuple(problems))


def _direct_route(cidr: str, peer: Peer, interfaces: Sequence[Interface], me: Peer) -> Optional[Route]:
    network = ipaddress.ip_network(cidr, strict=False)
    if me.addresses and not _same_version_of(network.version, me.addresses):
        return None  # the peer knows no address of that family to send back to: both ends take the tunnel
    for address in peer.addresses:
        if ipaddress.ip_address(address).version != network.version:
            continue
        interface = find_interface(address, interfaces, own=me.addresses)
        if interface is not None:
            return Route(str(network), address, interface.name)
    return None


def _same_version_of(version: int, addresses: Iterable[str]) -> bool:
    return any(ipaddress.ip_address(address).version == version for address in addresses)


def _same_version(local: str, addresses: Iterable[str]) -> str:
    """The first of `addresses` of local's IP version: both ends of the tunnel need the same."""
    if not local:
        return ""
    version = ipaddress.ip_address(local).version
    return next((address for address in addresses if ipaddress.ip_address(address).version == version), "")


def _plan_vxlan(me: Peer, local: str, underlay: Interface) -> Vxlan:
    overhead = VXLAN_OVERHEAD[ipaddress.ip_address(local).version]
    networks = [ipaddress.ip_network(cidr, strict=False) for cidr in me.pod_cidrs]
    own = frozenset(f"{network.network_address}/{network.max_prefixlen}" for network in networks)
    return Vxlan(local, vtep_mac(local), underlay.mtu - overhead, own)


def find_unrouted(text: str, cidrs: Iterable[str], *, counts_own: bool = False) -> list[str]:
    """The networks to which no route of this machine leads, by `ip -json route show table all` of their IP version;
    counts_own: whether kb's own routes are among those. The kernel looks for a route before kube-proxy's rules turn a Service's address into a
    pod's, so without one a program of the node itself reaches no Service."""
    counted = [entry for entry in _json_list(text) if counts_own or str(entry.get("protocol")) != str(PROTOCOL)]
    ways = [str(entry.get("dst", "")) for entry in counted if entry.get("type", "unicast") == "unicast"]
    return [cidr for cidr in cidrs if not any(_leads_to(way, cidr) for way in ways)]


def _leads_to(destination: str, cidr: str) -> bool:
    if destination == "default":
        return True
    wanted = ipaddress.ip_network(cidr, strict=False)
    try:
        network = ipaddress.ip_network(destination, strict=False)
    except ValueError:
        return False
    # the first address is the API's own Service
    return network.version == wanted.version and wanted[min(1, wanted.num_addresses - 1)] in network


def plan_service_routes(unrouted: Iterable[str], me: Peer, interfaces: Sequence[Interface]) -> frozenset[Route]:
    """A route by the card that carries this node's address: the address that a program then sends from is the node's."""
    underlay = find_underlay(me, interfaces)
    if underlay is None:
        return frozenset()
    networks = [ipaddress.ip_network(cidr, strict=False) for cidr in unrouted]
    versions = {ipaddress.ip_interface(address).version for address in underlay.addresses}
    return frozenset(Route(str(network), "", underlay.name) for network in networks if network.version in versions)


# ---- from what is to what should be


def plan_changes(wanted: Network, existing: Network) -> list[Command]:
    """The commands that lead from `existing` to `wanted`: link, then neighbours, then routes, then removals, so
    that no packet is sent where nothing answers yet."""
    commands: list[Command] = []
    have = existing
    is_same_link = (
        wanted.vxlan is not None
        and have.vxlan is not None
        and (wanted.vxlan.local, wanted.vxlan.mac, wanted.vxlan.mtu)
        == (have.vxlan.local, have.vxlan.mac, have.vxlan.mtu)
    )
    if have.vxlan is not None and not is_same_link:
        # whatever hangs on the link goes with it
        commands.append(("ip", "link", "delete", VXLAN))
        kept = frozenset(route for route in have.routes if route.device != VXLAN)
        have = Network(routes=kept)
    if wanted.vxlan is not None:
        commands += _link_commands(wanted.vxlan, have.vxlan)
    for mac, node in sorted(wanted.forwards - have.forwards):
        commands.append(("bridge", "fdb", "replace", mac, "dev", VXLAN, "dst", node))
    for address, mac in sorted(wanted.neighbours - have.neighbours):
        commands.append(("ip", "neighbour", "replace", address, "lladdr", mac, "dev", VXLAN, "nud", "permanent"))
    devices = {route.pod_cidr: route.device for route in have.routes}
    for route in _sorted(wanted.routes - have.routes):
        if route.device == VXLAN and devices.get(route.pod_cidr, VXLAN) != VXLAN:
            # IPv6 refuses a gateway to which a route by another device leads
            commands.append(_delete_route(route))
        onlink = ("onlink",) if route.device == VXLAN else ()
        via = ("via", route.gateway) if route.gateway else ()
        way = (*via, "dev", route.device, *onlink)
        commands.append(("ip", _flag(route), "route", "replace", route.pod_cidr, *way, "proto", str(PROTOCOL)))
    kept_cidrs = {route.pod_cidr for route in wanted.routes}
    for route in _sorted(have.routes - wanted.routes):
        if route.pod_cidr not in kept_cidrs:
            commands.append(_delete_route(route))
    if wanted.vxlan is not None:
        kept_addresses = {address for address, _ in wanted.neighbours}
        for address, _ in sorted(have.neighbours - wanted.neighbours):
            if address not in kept_addresses:
                commands.append(("ip", "neighbour", "delete", address, "dev", VXLAN))
        kept_macs = {mac for mac, _ in wanted.forwards}
        for mac, node in sorted(have.forwards - wanted.forwards):
            if mac not in kept_macs:
                commands.append(("bridge", "fdb", "delete", mac, "dev", VXLAN, "dst", node))
    return commands


def _delete_route(route: Route) -> Command:
    return ("ip", _flag(route), "route", "delete", route.pod_cidr, "proto", str(PROTOCOL))


def _link_commands(wanted: Vxlan, existing: Optional[Vxlan]) -> list[Command]:
    commands: list[Command] = []
    if existing is None:
        link = ("ip", "link", "add", VXLAN, "address", wanted.mac, "mtu", str(wanted.mtu), "type", "vxlan")
        options = ("id", str(VXLAN_ID), "dstport", str(VXLAN_PORT), "local", wanted.local, "nolearning")
        commands += [(*link, *options), ("ip", "link", "set", VXLAN, "up")]
    have = existing.addresses if existing else frozenset()
    for address in sorted(wanted.addresses - have):
        nodad = ("nodad",) if ":" in address else ()
        commands.append(("ip", "address", "replace", address, "dev", VXLAN, *nodad))
    for address in sorted(have - wanted.addresses):
        commands.append(("ip", "address", "delete", address, "dev", VXLAN))
    return commands


def _sorted(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda route: (":" in route.pod_cidr, route.pod_cidr, route.gateway))


def _flag(route: Route) -> str:
    return "-6" if ":" in route.pod_cidr else "-4"


# ---- masquerading


def select_cidrs(cidrs: Iterable[str], version: int) -> list[str]:
    """Those of one IP version, merged: nft refuses a set in which one range holds another."""
    networks = [ipaddress.ip_network(cidr, strict=False) for cidr in cidrs]
    same: list[Any] = [network for network in networks if network.version == version]
    return [str(network) for network in ipaddress.collapse_addresses(same)]


def render_nft_table(version: int, own: Sequence[str], cluster: Sequence[str]) -> tuple[str, str]:
    """The table that masks what pods of this node send out of the cluster, and the name of its chain, which
    changes with the rule: so a look at the names tells whether the rule is there."""
    family = "ip" if version == 4 else "ip6"
    inside = ", ".join(sorted([*cluster, MULTICAST[version]]))
    rule = f"{family} saddr {{ {', '.join(own)} }} {family} daddr != {{ {inside} }} masquerade fully-random"
    chain = f"masq_{hashlib.sha256(rule.encode()).hexdigest()[:10]}"
    text = (
        f"table {family} {TABLE} {{}}\n"
        f"delete table {family} {TABLE}\n"
        f"table {family} {TABLE} {{\n"
        f"  chain {chain} {{\n"
        f"    type nat hook postrouting priority 100; policy accept;\n"
        f"    {rule}\n"
        f"  }}\n"
        f"}}\n"
    )
    return text, chain


def render_iptables_chain(version: int, own: Sequence[str], cluster: Sequence[str]) -> list[str]:
    """The same rule for a node that has iptables alone, in the words of `iptables -t nat -S KB-POSTROUTING`."""
    inside = [f"-A {CHAIN} -d {cidr} -j RETURN" for cidr in sorted([*cluster, MULTICAST[version]])]
    return [f"-N {CHAIN}", *inside, *(f"-A {CHAIN} -s {cidr} -j MASQUERADE" for cidr in own)]


# ---- settings


def settings_path(paths: Paths) -> Path:
    return paths.state_dir / "pod-network.json"


def render_settings(settings: RouteSettings) -> str:
    stored = {
        "node": settings.node_name,
        "podCIDRs": list(settings.pod_cidrs),
        "serviceCIDRs": list(settings.service_cidrs),
        "backend": settings.backend,
    }
    return json.dumps(stored, indent=2) + "\n"


def read_settings(host: Host, paths: Paths) -> RouteSettings:
    """Raises HostError (pod-network-settings) where the file is not there or says nothing."""
    path = settings_path(paths)
    try:
        text = host.read_text(path) if host.exists(path) else "{}"
        shape = {"node": str, "podCIDRs": [_check_network], "serviceCIDRs": [_check_network], "backend": str}
        stored = fit(parse_json(text, "it"), shape, "it")
        services = tuple(stored.get("serviceCIDRs", ()))  # an older kb wrote none
        return RouteSettings(stored["node"], tuple(stored["podCIDRs"]), stored.get("backend", "auto"), services)
    except (ValueError, KeyError) as error:
        raise HostError(
            f"no settings for the route keeper in {path}",
            cause="the file is written by the phase pod-network of kb init and kb join, and is not there or damaged",
            remedy="write it: kb init phase pod-network, or on a worker: kb join phase pod-network",
            code="pod-network-settings",
        ) from error


def _check_network(text: str) -> None:
    ipaddress.ip_network(text, strict=False)


# ---- looks


def read_interfaces(host: Host) -> list[Interface]:
    return parse_interfaces(_query(host, "ip", "-json", "address", "show"))


def read_network(host: Host) -> Network:
    """What of kb's is there now."""
    routes = frozenset[Route]()
    for version in (4, 6):
        text = _query(host, "ip", "-json", f"-{version}", "route", "show", "proto", str(PROTOCOL))
        routes |= parse_routes(text, version)
    addresses = parse_own_addresses(_query(host, "ip", "-json", "address", "show"), VXLAN)
    vxlan = parse_vxlan(_query(host, "ip", "-json", "-details", "link", "show", "dev", VXLAN), addresses)
    if vxlan is None:
        return Network(routes)
    neighbours = _query(host, "ip", "-json", "neighbour", "show", "dev", VXLAN, "nud", "permanent")
    forwards = _query(host, "bridge", "-json", "fdb", "show", "dev", VXLAN)
    return Network(routes, vxlan, parse_neighbours(neighbours), parse_forwards(forwards))


def read_unrouted(host: Host, cidrs: Sequence[str], *, counts_own: bool = False) -> list[str]:
    """Those of `cidrs` to which no route of this machine leads; none where it does not tell."""
    found: list[str] = []
    for version in (4, 6):
        same = [cidr for cidr in cidrs if (6 if ":" in cidr else 4) == version]
        answer = host.query(["ip", "-json", f"-{version}", "route", "show", "table", "all"]) if same else None
        if answer and answer.ok and answer.stdout.strip():
            found += find_unrouted(answer.stdout, same, counts_own=counts_own)
    return found


def _query(host: Host, *argv: str) -> str:
    """The output; "" where the command failed, which `ip` does for a link that is not there."""
    found = host.query(argv)
    if found.missing:
        raise HostError(
            f"the program {argv[0]} is missing",
            cause="the pod network's routes are set with iproute2 (the programs ip and bridge)",
            remedy="install it: apt-get install iproute2, or dnf install iproute",
            code="iproute2-missing",
        )
    return found.stdout if found.ok else ""


def is_own_network(host: Host, paths: Paths) -> bool:
    """Whether pods get their addresses from kb's own network."""
    return find_first_cni_config(host, paths) == CNI_FILE


def find_first_cni_config(host: Host, paths: Paths) -> str:
    """The file in /etc/cni/net.d that the runtime takes: the first by name; "" for none."""
    names = [name for name in host.list_dir(paths.cni_conf) if name.endswith(_CNI_SUFFIXES)]
    return min(names, default="")


def read_masquerade_tool(host: Host) -> str:
    """ "nft" where the kernel and the program are there, else "iptables", else ""."""
    if host.query(["nft", "list", "tables"]).ok:
        return "nft"
    return "iptables" if host.which("iptables") else ""


# ---- changes


def ensure_network(host: Host, wanted: Network) -> list[str]:
    """Make the node's routes and link like `wanted`; return what failed, in words."""
    return _run_all(host, plan_changes(wanted, read_network(host)))


def ensure_masquerade(host: Host, own: Sequence[str], cluster: Sequence[str]) -> list[str]:
    """Mask what pods of this node send out of the cluster, and let what is theirs pass where forwarding is dropped; return
    what failed, in words."""
    tool = read_masquerade_tool(host)
    if not tool:
        return ["neither nft nor iptables is there: pods cannot reach anything outside the cluster"]
    failures: list[str] = []
    for version in (4, 6):
        mine = select_cidrs(own, version)
        inside = select_cidrs([*cluster, *own], version)
        ensure = _ensure_nft if tool == "nft" else _ensure_iptables
        if mine:
            failures += ensure(host, version, mine, inside)
            failures += forwarding.ensure_forwarding(host, version, inside)
    return failures


def _ensure_nft(host: Host, version: int, own: Sequence[str], inside: Sequence[str]) -> list[str]:
    text, chain = render_nft_table(version, own, inside)
    found = host.query(["nft", "list", "table", "ip" if version == 4 else "ip6", TABLE])
    if found.ok and chain in found.stdout and "masquerade" in found.stdout:
        return []
    done = host.run(["nft", "-f", "-"], stdin=text)
    return [] if done.ok else [f"nft: {done.stderr.strip()}"]


def _ensure_iptables(host: Host, version: int, own: Sequence[str], inside: Sequence[str]) -> list[str]:
    program = "iptables" if version == 4 else "ip6tables"
    base = (program, "-w", "10", "-t", "nat")
    wanted = render_iptables_chain(version, own, inside)
    found = host.query([*base, "-S", CHAIN])
    jump = ("POSTROUTING", "-j", CHAIN)
    failures: list[str] = []
    if not found.ok or found.stdout.split("\n")[: len(wanted)] != wanted or found.stdout.count("\n") != len(wanted):
        # one restore: no moment in which the chain is half there
        rules = "\n".join(["*nat", f":{CHAIN} - [0:0]", *wanted[1:], "COMMIT", ""])
        failures += _failure(host.run([f"{program}-restore", "-w", "10", "--noflush"], stdin=rules))
    if not host.query([*base, "-C", *jump]).ok:
        failures += _failure(host.run([*base, "-A", *jump]))
    return failures


def remove_masquerade(host: Host) -> None:
    """Take kb's own rules away, whichever tool set them."""
    forwarding.remove_forwarding(host)
    for family in ("ip", "ip6"):
        if host.query(["nft", "list", "table", family, TABLE]).ok:
            host.run(["nft", "delete", "table", family, TABLE])
    for program in ("iptables", "ip6tables"):
        base = (program, "-w", "10", "-t", "nat")
        if host.query([*base, "-S", CHAIN]).ok:
            host.run([*base, "-D", "POSTROUTING", "-j", CHAIN])
            host.run([*base, "-F", CHAIN])
            host.run([*base, "-X", CHAIN])


def withdraw(host: Host) -> bool:
    """Take kb's routes, link and rule away; return whether there were any routes or a link. The bridge stays: pods
    may still hang on it."""
    commands = plan_changes(Network(), read_network(host))
    _run_all(host, commands)
    remove_masquerade(host)
    return bool(commands)


def _run_all(host: Host, commands: Iterable[Command]) -> list[str]:
    failures = []
    for command in commands:
        failures += _failure(host.run(command))
    return failures


# ---- the loop


@frozen
class Round:
    """How a round ended: what to say, and how long to wait for the next."""

    text: str
    wait_s: float = POLL_S


def keep_round(host: Host, api: Callable[[], Api], settings: RouteSettings, *, paths: Paths) -> Round:
    """One round: look at the cluster and the node, and make the node right.

    Raises KbError where the cluster cannot be asked; what is there then stays.
    """
    first = find_first_cni_config(host, paths)
    if first != CNI_FILE:
        withdraw(host)
        return _step_aside(host, first, paths)
    # 0: any state that the API server has in its memory will do, which costs etcd nothing
    listed = api().get(f"{path_of('Node')}?resourceVersion=0") or {}
    nodes = parse_peers(listed.get("items") or [])
    me = next((node for node in nodes if node.name == settings.node_name), None)
    wait_s = max(POLL_S, len(nodes) / NODES_PER_POLL_S)
    if me is None or not me.pod_cidrs:
        what = "is not registered" if me is None else "has no podCIDR yet"
        return Round(f"node {settings.node_name} {what}: nothing was changed", POLL_S)
    links = _query(host, "ip", "-json", "address", "show")
    interfaces = parse_interfaces(links)
    wanted = plan_network(nodes, me, interfaces, backend=settings.backend)
    services = plan_service_routes(read_unrouted(host, settings.service_cidrs), me, interfaces)
    every_cidr = [*settings.pod_cidrs, *(cidr for node in nodes for cidr in node.pod_cidrs)]
    with_services = replace(wanted, routes=wanted.routes | services)
    failures = [
        *wanted.problems,
        *(step_aside.raise_bridge(host) if step_aside.is_down(links) else ()),
        *ensure_network(host, with_services),
        *ensure_masquerade(host, me.pod_cidrs, every_cidr),
    ]
    if failures:
        return Round("; ".join(failures), RETRY_S)
    tunnelled = sum(route.device == VXLAN for route in wanted.routes)
    text = f"{len(wanted.routes) - tunnelled} routes and {tunnelled} VXLAN ways to {len(nodes) - 1} nodes"
    if services:
        text += f"; a route to Services ({', '.join(sorted(route.pod_cidr for route in services))}), to which none led"
    return Round(text, wait_s)


def _step_aside(host: Host, first: str, paths: Paths) -> Round:
    """What is left to do beside another network. A node without cbr0 has nothing left, and its cluster is not asked."""
    taken = f"the runtime takes {paths.cni_conf / first}" if first else "no CNI configuration is there"
    text = f"stepped aside: {taken}, not {CNI_FILE}"
    bridge = step_aside.read_bridge(host) if first else None
    if bridge is None:
        return Round(text)
    try:
        # before the bridge goes: it is what tells that pods may still be in the network of before
        moved = dns_spread.follow_network(host, first, paths=paths)
    except KbError as error:
        return Round(f"{text}; CoreDNS was not restarted yet: {error}", RETRY_S)
    left = step_aside.retire_bridge(host, bridge)
    return Round("; ".join(filter(None, (text, moved, left))), RETRY_S)


def keep_routes(host: Host, *, log: Callable[[str], None], once: bool = False, paths: Optional[Paths] = None) -> None:
    """`kb routes`: go on for ever, or once, and say what changed. A cluster that does not answer changes nothing.
    The settings and the kubelet's kubeconfig are read anew each round: certificates are renewed now and then."""
    places = paths or Paths()
    said = ""
    while True:
        try:
            settings = read_settings(host, places)
            done = keep_round(host, lambda: connect(host, places.kubeconfig("kubelet.conf")), settings, paths=places)
        except KbError as error:
            done = Round(f"{error}; the routes stay as they are. {error.remedy}", RETRY_S)
        if done.text != said:
            log(f"kb routes: {done.text}")
            said = done.text
        dns_spread.keep_spread(host, paths=places, log=log)
        if once:
            return
        host.sleep(done.wait_s)


def connect(host: Host, kubeconfig: Path) -> Api:
    return Api(host, read_identity(host, kubeconfig), retry_s=2)
