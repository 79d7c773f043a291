"""The pure part of the route keeper: the wanted routes between nodes, and the commands that create them.

Nodes in the same layer 2 network are reached by a direct route, others by VXLAN. A node without a default route also gets a route for
Services, since otherwise its own programs could reach none. `plan_network` returns what is wanted, and `plan_changes` turns the
difference into commands, so that a round without changes runs none. Only routes with protocol 199 and the link cbr-vxlan are touched.
This module reads and runs nothing. kubeadm has no counterpart.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, Optional, Union

from kubeup.frozen_values import frozen
from kubeup.network.step_aside import BRIDGE, parse_addresses
from kubeup.network.step_aside import parse_ip_output as _json_list

PROTOCOL = 199
VXLAN = "cbr-vxlan"
VXLAN_ID = 4097
VXLAN_PORT = 4789
"""The standard port (RFC 7348), which can be shared with Calico's tunnel. 8472, the port of flannel and the kernel's default, would
conflict with Cilium: its tunnel takes the whole port before its CNI file makes kb step aside."""
VXLAN_OVERHEAD = {4: 50, 6: 70}
"""The bytes that VXLAN adds to a packet, by IP version of the nodes' network."""

Command = tuple[str, ...]
Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
_Cidr = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


# ---- values


@frozen
class Peer:
    """A node as the cluster knows it: its InternalIPs and podCIDRs."""

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
    """A route to a CIDR of pods or Services. gateway "": packets are sent directly through the device."""

    pod_cidr: str
    gateway: str
    device: str


@frozen
class Vxlan:
    """The link cbr-vxlan: this node's end of the tunnel, with its own addresses (`10.244.0.0/32`)."""

    local: str
    mac: str
    mtu: int
    addresses: frozenset[str] = frozenset()


@frozen
class Network:
    """Routes, the VXLAN link, and its peers: neighbours (pod network address -> MAC), forwards (MAC -> node)."""

    routes: frozenset[Route] = frozenset()
    vxlan: Optional[Vxlan] = None
    neighbours: frozenset[tuple[str, str]] = frozenset()
    forwards: frozenset[tuple[str, str]] = frozenset()
    problems: tuple[str, ...] = field(default=(), compare=False)
    """Nodes that cannot be reached, in words."""


# ---- parsing


def parse_peers(nodes: Iterable[Mapping[str, Any]]) -> list[Peer]:
    """The peers from the cluster's Node objects, sorted by name."""
    peers = []
    for node in nodes:
        spec, status = node.get("spec") or {}, node.get("status") or {}
        cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
        addresses = [entry["address"] for entry in status.get("addresses") or [] if entry.get("type") == "InternalIP"]
        addresses = [address for address in addresses if _is_address(address)]
        peers.append(Peer(str(node["metadata"]["name"]), tuple(addresses), tuple(cidrs)))
    return sorted(peers, key=lambda peer: peer.name)


def parse_interfaces(text: str) -> list[Interface]:
    """Parse `ip -json address show`, without the pod network's own links and the loopback."""
    found = []
    for link in _json_list(text):
        addresses = parse_addresses(link)
        if addresses and link.get("ifname", "lo") not in (BRIDGE, VXLAN, "lo"):
            found.append(Interface(link["ifname"], link.get("mtu", 1500), tuple(addresses)))
    return found


def parse_routes(text: str, version: int) -> frozenset[Route]:
    """Parse `ip -json -4|-6 route show proto 199`; `version` is 4 or 6."""
    routes = set()
    for entry in _json_list(text):
        cidr = entry.get("dst", "")
        if "/" not in cidr:
            cidr = f"{cidr}/{32 if version == 4 else 128}"
        if entry.get("dst"):
            routes.add(Route(cidr, entry.get("gateway", ""), entry.get("dev", "")))
    return frozenset(routes)


def parse_vxlan(text: str, addresses: Iterable[str]) -> Optional[Vxlan]:
    """Parse `ip -json -details link show dev cbr-vxlan`; None if there is no link, or it is not kb's VXLAN."""
    for link in _json_list(text):
        info = link.get("linkinfo") or {}
        data = info.get("info_data") or {}
        if info.get("info_kind") == "vxlan" and data.get("id") == VXLAN_ID and data.get("port") == VXLAN_PORT:
            local = str(data.get("local") or data.get("local6") or "")
            return Vxlan(local, link.get("address", ""), link.get("mtu", 0), frozenset(addresses))
    return None


def parse_own_addresses(text: str, device: str) -> list[str]:
    """The global addresses of `device`, parsed from `ip -json address show`."""
    links = [link for link in _json_list(text) if link.get("ifname") == device]
    return [address for link in links for address in parse_addresses(link)]


def parse_neighbours(text: str) -> frozenset[tuple[str, str]]:
    """Parse `ip -json neighbour show dev cbr-vxlan nud permanent`, without multicast entries, which are the kernel's."""
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
    """Parse `bridge -json fdb show dev cbr-vxlan`."""
    return frozenset((row["mac"], row["dst"]) for row in _json_list(text) if {"mac", "dst"} <= set(row))


# ---- planning


def vtep_mac(address: str) -> str:
    """The MAC of a node's end of the tunnel. It is derived from the node's address, so that it need not be announced. It is locally
    administered, and unique per IPv4 address."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        octets = b"\x0a\x6b" + parsed.packed
    else:
        octets = b"\x0e" + hashlib.sha256(parsed.packed).digest()[:5]
    return ":".join(f"{octet:02x}" for octet in octets)


def vtep_address(pod_cidr: str) -> str:
    """The pod network's address of the node itself: the first one, which no pod gets."""
    return str(ipaddress.ip_network(pod_cidr, strict=False).network_address)


def find_interface(address: str, interfaces: Sequence[Interface], *, own: Sequence[str]) -> Optional[Interface]:
    """The interface on whose network `address` is; None if it is on no connected network. The narrowest network wins; among equals, the
    one with this node's own address."""
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
    """The interface with this node's address; the first interface if none has it (NAT in a cloud)."""
    for interface in interfaces:
        if any(text.partition("/")[0] in me.addresses for text in interface.addresses):
            return interface
    return interfaces[0] if interfaces else None


def plan_network(nodes: Sequence[Peer], me: Peer, *, interfaces: Sequence[Interface], backend: str = "auto") -> Network:
    """The routes, link and neighbours that this node needs to reach the pods of other nodes."""
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
            direct = _direct_route(cidr, peer, interfaces=interfaces, me=me) if backend != "vxlan" else None
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
    vxlan = _plan_vxlan(me, local, underlay=underlay) if forwards and underlay else None
    return Network(frozenset(routes), vxlan, frozenset(neighbours), frozenset(forwards), tuple(problems))


def _direct_route(cidr: str, peer: Peer, *, interfaces: Sequence[Interface], me: Peer) -> Optional[Route]:
    network = ipaddress.ip_network(cidr, strict=False)
    if me.addresses and not _same_version_of(network.version, me.addresses):
        return None  # the peer has no address of that family to answer to, so both ends use the tunnel
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
    """The first address with the IP version of `local`, since both ends of the tunnel need the same version."""
    if not local:
        return ""
    version = ipaddress.ip_address(local).version
    return next((address for address in addresses if ipaddress.ip_address(address).version == version), "")


def _plan_vxlan(me: Peer, local: str, *, underlay: Interface) -> Vxlan:
    overhead = VXLAN_OVERHEAD[ipaddress.ip_address(local).version]
    networks = [ipaddress.ip_network(cidr, strict=False) for cidr in me.pod_cidrs]
    own = frozenset(f"{network.network_address}/{network.max_prefixlen}" for network in networks)
    return Vxlan(local, vtep_mac(local), underlay.mtu - overhead, own)


def find_unrouted(text: str, cidrs: Iterable[str], *, counts_own: bool = False) -> list[str]:
    """The networks to which this machine has no route, from `ip -json route show table all` for their IP version. counts_own: whether
    kb's own routes count.

    The kernel looks up a route before kube-proxy's rules translate a Service's address to a pod's. So without a route, programs on the
    node itself reach no Service."""
    counted = [entry for entry in _json_list(text) if counts_own or str(entry.get("protocol")) != str(PROTOCOL)]
    ways = [str(entry.get("dst", "")) for entry in counted if entry.get("type", "unicast") == "unicast"]
    return [cidr for cidr in cidrs if not any(_leads_to(way, cidr) for way in ways)]


@frozen
class Diversion:
    """A route of somebody else's that takes packets. destination: `10.244.0.0/25`, or `default`; device "": it drops them. table: "" for main."""

    destination: str
    device: str
    gateway: str = ""
    table: str = ""
    kind: str = ""

    def __str__(self) -> str:
        """As `ip route` writes it."""
        via, dev = f" via {self.gateway}" * bool(self.gateway), f" dev {self.device}" * bool(self.device)
        return f"{self.kind} {self.destination}".strip() + via + dev + f" table {self.table}" * bool(self.table)


_HOLES = frozenset({"blackhole", "unreachable", "prohibit"})


def list_samples(text: str, routes: Sequence[Route]) -> list[tuple[Route, str]]:
    """(route, an address that it is for): of each route one, and one of each route within it, from `ip -json route show table all`."""
    inside = [
        (route, network)
        for entry in _json_list(text)
        if entry.get("type", "unicast") == "unicast"
        for route, network in _within(entry, routes)
    ]
    networks = [*((route, ipaddress.ip_network(route.pod_cidr, strict=False)) for route in routes), *inside]
    return list(dict.fromkeys((route, str(one[min(1, one.num_addresses - 1)])) for route, one in networks))


def find_holes(text: str, routes: Sequence[Route]) -> list[tuple[Route, Diversion]]:
    """The routes of `routes` within which another one of the main table drops packets."""
    entries = [entry for entry in _json_list(text) if entry.get("type") in _HOLES and not entry.get("table")]
    return [(route, _read_diversion(entry)) for entry in entries for route, _ in _within(entry, routes)]


def _within(entry: Mapping[str, Any], routes: Sequence[Route]) -> list[tuple[Route, _Cidr]]:
    """The routes that contain the one of this entry, which is not kb's and is more specific."""
    try:
        one = ipaddress.ip_network(str(entry.get("dst", "")), strict=False)
    except ValueError:
        return []
    pairs = [(route, ipaddress.ip_network(route.pod_cidr, strict=False)) for route in routes]
    return [
        (route, one)
        for route, cidr in pairs
        if cidr.version == one.version and cidr.prefixlen < one.prefixlen and one.overlaps(cidr)
    ]


def find_diversion(route: Route, entry: Mapping[str, Any]) -> Optional[Diversion]:
    """What takes the packets of `route`, if it is another one; entry: of `ip -json route get fibmatch`. A node's own address is in any of
    the networks that its machine is connected to."""
    device, gateway = str(entry.get("dev", "")), str(entry.get("gateway", ""))
    is_same = device == route.device and (not route.gateway or gateway in ("", route.gateway))
    is_connected = (
        ipaddress.ip_network(route.pod_cidr, strict=False).num_addresses == 1 and entry.get("protocol") == "kernel"
    )
    return None if not device or is_same or is_connected else _read_diversion(entry)


def _read_diversion(entry: Mapping[str, Any]) -> Diversion:
    kind = str(entry.get("type", ""))
    destination, device, gateway, table = (str(entry.get(key, "")) for key in ("dst", "dev", "gateway", "table"))
    return Diversion(destination, device, gateway, table, kind=kind if kind in _HOLES else "")


def _leads_to(destination: str, cidr: str) -> bool:
    if destination == "default":
        return True
    wanted = ipaddress.ip_network(cidr, strict=False)
    try:
        network = ipaddress.ip_network(destination, strict=False)
    except ValueError:
        return False
    # the first address is the Service of the API server
    return network.version == wanted.version and wanted[min(1, wanted.num_addresses - 1)] in network


def plan_service_routes(unrouted: Iterable[str], me: Peer, *, interfaces: Sequence[Interface]) -> frozenset[Route]:
    """Routes through the interface with this node's address, so that programs send from that address."""
    underlay = find_underlay(me, interfaces)
    if underlay is None:
        return frozenset()
    networks = [ipaddress.ip_network(cidr, strict=False) for cidr in unrouted]
    versions = {ipaddress.ip_interface(address).version for address in underlay.addresses}
    return frozenset(Route(str(network), "", underlay.name) for network in networks if network.version in versions)


# ---- commands


def plan_changes(wanted: Network, existing: Network) -> list[Command]:
    """The commands that turn `existing` into `wanted`: first the link, then neighbours, routes and removals, so that no packet is sent
    where nothing answers yet."""
    commands: list[Command] = []
    have = existing
    is_same_link = (
        wanted.vxlan is not None
        and have.vxlan is not None
        and (wanted.vxlan.local, wanted.vxlan.mac, wanted.vxlan.mtu)
        == (have.vxlan.local, have.vxlan.mac, have.vxlan.mtu)
    )
    if have.vxlan is not None and not is_same_link:
        # everything attached to the link is removed with it
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
            # IPv6 refuses a gateway that is routed through another device
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
