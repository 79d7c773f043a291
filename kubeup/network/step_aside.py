"""Retires kb's bridge on a node whose pods now get their addresses from another network.

After the route keeper has stepped aside, older pods are still attached to cbr0. The bridge stays up as long as it does no harm. It is
set down if it conflicts with the new network: if both use the node's podCIDR, the kernel would send the new pods' packets into the old
bridge. It is deleted once the last pod has left. Other networks' links are never touched, and no pod is ended. kubeadm has no
counterpart, since it has no network.
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
"""Calico takes the last link's address for the node's own, unless the link has the name of a pod link. So both links of kb begin with
cbr."""
POD_ADDRESSES = Path("/run/kb/pod-addresses")
"""Where host-local records the addresses that it assigned. It is below /run, so that no assignment outlives a reboot."""
LEASES = POD_ADDRESSES / "kb-bridge"


@frozen
class Bridge:
    """The state of cbr0: the ports of living pods, and the pod networks that it leads to."""

    is_up: bool
    ports: tuple[str, ...]
    networks: tuple[str, ...]


# ---- parsing the output of `ip`


_IP_ROW: Shape = {
    # links
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
    # routes, neighbours and forwards
    "dst": str,
    "gateway": str,
    "dev": str,
    "type": str,
    "lladdr": str,
    "mac": str,
    # namespaces
    "id": int,
    "name": str,
}


def parse_ip_output(text: str) -> list[dict[str, Any]]:
    """Parse the output of `ip -json` or `bridge -json`: links, routes, neighbours, forwards, namespaces. Without results the output is
    empty, and for filtered entries it contains empty objects."""
    return [row for row in read_rows(text.strip(), _IP_ROW) if row]


def parse_addresses(link: dict[str, Any]) -> list[str]:
    """The global addresses of a link with their prefix length: `10.0.0.11/24`."""
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
    """Whether cbr0 exists and is down, from `ip -json address show`."""
    found = [link for link in parse_ip_output(links) if link.get("ifname") == BRIDGE]
    return any("UP" not in (link.get("flags") or ["UP"]) for link in found)


def parse_bridge(links: str, ports: str, *, namespaces: str) -> Optional[Bridge]:
    """Parse `ip -json address show`, `ip -json link show master cbr0` and `ip -json netns list`; None if there is no cbr0.

    The port of an ended pod stays for a minute or two, until the kernel gives up its open connections. Such a pod's namespace has no
    name any more. If the runtime names no namespace at all, ended pods cannot be recognized.
    """
    mine = next((link for link in parse_ip_output(links) if link.get("ifname") == BRIDGE), None)
    if mine is None:
        return None
    networks = (str(ipaddress.ip_interface(text).network) for text in parse_addresses(mine))
    named = {entry["id"] for entry in parse_ip_output(namespaces) if "id" in entry}
    alive = [link for link in parse_ip_output(ports) if not named or link.get("link_netnsid") in {None, *named}]
    return Bridge(not is_down(links), tuple(link["ifname"] for link in alive if "ifname" in link), tuple(networks))


def has_rival(bridge: Bridge, links: str, *, routes: str) -> bool:
    """Whether another link leads to cbr0's network too: by its own address in it (flannel's cni0), or by a route to the whole network
    (cilium_host). A single host address, as on a tunnel end, does no harm, nor does a route to a part of the network, which the kernel
    prefers anyway."""
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
    """Set cbr0 down or delete it, as far as possible while another network assigns the addresses. Returns what is left for people to do,
    in words, or ""."""
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


def end_ports(host: Host) -> None:
    """Remove the links of ended pods from cbr0, and their namespaces. The kernel keeps both while a connection waits for its end, and
    the runtime may have been killed between the two."""
    ports = parse_ip_output(_look(host, "link", "show", "master", BRIDGE))
    ended = {port.get("link_netnsid") for port in ports} - {None}
    for entry in parse_ip_output(_look(host, "netns", "list")) if ended else ():
        name = entry.get("name", "")
        if name and entry.get("id") in ended and not host.query(["ip", "netns", "pids", name]).stdout.strip():
            host.run(["ip", "netns", "delete", name])
    for port in ports:
        if "ifname" in port and host.query(["ip", "link", "show", "dev", port["ifname"]]).ok:
            host.run(["ip", "link", "delete", port["ifname"]])


def describe_left(bridge: Bridge) -> str:
    pods = "1 pod" if len(bridge.ports) == 1 else f"{len(bridge.ports)} pods"
    why = "cut off from other nodes" if bridge.is_up else "cut off, since both networks have the same addresses"
    return f"{pods} still on {BRIDGE}, {why}, until they are restarted"


def list_leases(host: Host) -> list[Path]:
    """host-local's records, then their folders. They mean nothing without the bridge. When a pod ends, the runtime only calls the new
    network, so nobody else removes them."""
    notes = [LEASES / name for name in host.list_dir(LEASES)]
    return [*notes, *(folder for folder in (LEASES, POD_ADDRESSES) if host.exists(folder))]


def read_sandboxes(host: Host) -> set[str]:
    """The IDs of the pod sandboxes that have an address of kb's network."""
    names = [name for name in host.list_dir(LEASES) if _is_address(name)]
    return {host.read_text(LEASES / name).partition("\r")[0].partition("\n")[0].strip() for name in names}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def raise_bridge(host: Host) -> Iterable[str]:
    """Set cbr0 up again once kb's network is used again, so that its pods have their gateway. Returns what failed, in words."""
    done = host.run(["ip", "link", "set", BRIDGE, "up"])
    return [] if done.ok else [f"ip link set {BRIDGE} up: {done.stderr.strip()}"]


def _look(host: Host, *words: str) -> str:
    found = host.query(["ip", "-json", *words])
    return found.stdout if found.ok else ""
