"""kb's own bridge on a node whose pods are given addresses by another network now.

Owns what becomes of cbr0 when the route keeper has stepped aside: pods that were started before still hang on it. It is
left to them as long as it does no harm, is taken down as soon as it holds the addresses of the network that came (both
have the node's podCIDR, and the kernel would send the new pods' packets into the older bridge), and goes when the last
pod has left it. Must not touch another network's links, nor end a pod. kubeadm has no network, and nothing of the kind.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.shapes import Shape, read_rows

BRIDGE = "cbr0"
"""Calico takes the address of the last link for the node's own, unless the link's name is one that pods' links have: kb's
two begin with cbr for that."""
POD_ADDRESSES = Path("/run/kb/pod-addresses")
"""Where host-local notes the addresses that it gave out; below /run, so that none is lost over a reboot."""
LEASES = POD_ADDRESSES / "kb-bridge"


@frozen
class Bridge:
    """cbr0 as it is: the ports of living pods, and the pods' networks that it is the way to."""

    is_up: bool
    ports: tuple[str, ...]
    networks: tuple[str, ...]


# ---- parsing what `ip` says


_IP_ROW: Shape = {
    # of links
    "ifname": str,
    "mtu": int,
    "address": str,
    "flags": [str],
    "link_netnsid": int,
    "linkinfo": {
        "info_kind": str,
        "info_data": {"id": int, "port": int, "local": ipaddress.ip_address, "local6": ipaddress.ip_address},
    },
    "addr_info": [{"local": ipaddress.ip_address, "prefixlen": int, "scope": str}],
    # of routes, neighbours and forwards
    "dst": str,
    "gateway": str,
    "dev": str,
    "type": str,
    "lladdr": str,
    "mac": str,
    # of namespaces
    "id": int,
}


def parse_ip_output(text: str) -> list[dict[str, Any]]:
    """What `ip -json` or `bridge -json` printed: links, routes, neighbours, forwards, namespaces. It prints nothing at all
    where there is nothing, and empty objects for what a filter left out."""
    return [row for row in read_rows(text.strip(), _IP_ROW) if row]


def parse_addresses(link: dict[str, Any]) -> list[str]:
    """The global addresses of a link, each with its network's length: `10.0.0.11/24`."""
    entries = (entry for entry in link.get("addr_info", ()) if entry.get("scope") == "global")
    pairs = (f"{entry['local']}/{entry['prefixlen']}" for entry in entries if {"local", "prefixlen"} <= set(entry))
    return [pair for pair in pairs if _is_interface(pair)]


def _is_interface(text: str) -> bool:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return True


def is_down(links: str) -> bool:
    """Whether cbr0 is there and was taken down, by `ip -json address show`."""
    found = [link for link in parse_ip_output(links) if link.get("ifname") == BRIDGE]
    return any("UP" not in (link.get("flags") or ["UP"]) for link in found)


def parse_bridge(links: str, ports: str, *, namespaces: str) -> Optional[Bridge]:
    """From `ip -json address show`, `ip -json link show master cbr0` and `ip -json netns list`; None where there is no
    cbr0.

    A pod that has ended leaves its port for a minute or two, until the kernel gives up on connections that nobody can
    close any more. Its namespace has lost its name by then. A runtime that gives none to any pod's cannot be told by it.
    """
    mine = next((link for link in parse_ip_output(links) if link.get("ifname") == BRIDGE), None)
    if mine is None:
        return None
    networks = (str(ipaddress.ip_interface(text).network) for text in parse_addresses(mine))
    named = {entry["id"] for entry in parse_ip_output(namespaces) if "id" in entry}
    alive = [link for link in parse_ip_output(ports) if not named or link.get("link_netnsid") in {None, *named}]
    return Bridge(not is_down(links), tuple(link["ifname"] for link in alive if "ifname" in link), tuple(networks))


def has_rival(bridge: Bridge, links: str, *, routes: str) -> bool:
    """Whether another link is a way to cbr0's network too: by an address of its own in it (flannel's cni0), or by a
    route to the whole of it (cilium_host). A host's address alone, as a tunnel's end has it, and a route to a part,
    which the kernel prefers anyway, are in nobody's way."""
    networks = [ipaddress.ip_network(text) for text in bridge.networks]
    for link in parse_ip_output(links):
        for text in parse_addresses(link) if link.get("ifname") != BRIDGE else ():
            found = ipaddress.ip_interface(text)
            if found.network.prefixlen < found.max_prefixlen and any(
                found.version == network.version and found.ip in network for network in networks
            ):
                return True
    ways = parse_ip_output(routes)
    return any(str(way.get("dst")) in bridge.networks and way.get("dev") != BRIDGE for way in ways)


# ---- changes


def read_bridge(host: Host) -> Optional[Bridge]:
    ports = _look(host, "link", "show", "master", BRIDGE)
    return parse_bridge(_look(host, "address", "show"), ports, namespaces=_look(host, "netns", "list"))


def retire_bridge(host: Host, bridge: Bridge) -> str:
    """One look while another network gives out the addresses; what is left to do for people, in words, or ""."""
    if not bridge.ports:
        host.run(["ip", "link", "delete", BRIDGE])
        for path in list_leases(host):
            host.remove(path)
        return ""
    if bridge.is_up:
        families = sorted({"-6" if ":" in network else "-4" for network in bridge.networks})
        routes = [entry for family in families for entry in parse_ip_output(_look(host, family, "route", "show"))]
        if has_rival(bridge, _look(host, "address", "show"), routes=json.dumps(routes)):
            host.run(["ip", "link", "set", BRIDGE, "down"])
            bridge = Bridge(False, bridge.ports, bridge.networks)
    return f"{describe_left(bridge)} (kb doctor names them)"


def describe_left(bridge: Bridge) -> str:
    pods = "1 pod" if len(bridge.ports) == 1 else f"{len(bridge.ports)} pods"
    why = "cut off from other nodes" if bridge.is_up else "cut off, since both networks have the same addresses"
    return f"{pods} of before on {BRIDGE}, {why}, until they are restarted"


def list_leases(host: Host) -> list[Path]:
    """host-local's notes, then their folders: none of them counts without the bridge. The runtime asks only the network
    that came when a pod ends, so nobody else removes them."""
    notes = [LEASES / name for name in host.list_dir(LEASES)]
    return [*notes, *(folder for folder in (LEASES, POD_ADDRESSES) if host.exists(folder))]


def read_sandboxes(host: Host) -> set[str]:
    """The ids of the pod sandboxes to which kb's network gave an address."""
    names = [name for name in host.list_dir(LEASES) if _is_address(name)]
    return {host.read_text(LEASES / name).partition("\r")[0].partition("\n")[0].strip() for name in names}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def raise_bridge(host: Host) -> Iterable[str]:
    """kb's network is the node's again: the pods on cbr0 get their gateway back. Returns what failed, in words."""
    done = host.run(["ip", "link", "set", BRIDGE, "up"])
    return [] if done.ok else [f"ip link set {BRIDGE} up: {done.stderr.strip()}"]


def _look(host: Host, *words: str) -> str:
    found = host.query(["ip", "-json", *words])
    return found.stdout if found.ok else ""
