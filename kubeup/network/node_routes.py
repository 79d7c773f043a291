"""Reads the routes, addresses and links of this node, and changes them as planned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kubeup.errors import HostError
from kubeup.machine.host import Host
from kubeup.network.forwarding import describe_failure as _failure
from kubeup.network.masquerade import remove_masquerade
from kubeup.network.route_plan import (
    PROTOCOL,
    VXLAN,
    Command,
    Diversion,
    Interface,
    Network,
    Route,
    find_diversion,
    find_holes,
    find_unrouted,
    list_samples,
    parse_forwards,
    parse_interfaces,
    parse_neighbours,
    parse_own_addresses,
    parse_routes,
    parse_vxlan,
    plan_changes,
)
from kubeup.node.crictl import split_json
from kubeup.paths import Paths

CNI_FILE = "99-kb-bridge.conflist"
"""Sorts after the files of Calico, Cilium, flannel and others, because the runtime uses the first file."""
_CNI_SUFFIXES = (".conf", ".conflist", ".json")


# ---- looks


def read_interfaces(host: Host) -> list[Interface]:
    return parse_interfaces(query(host, "ip", "-json", "address", "show"))


def read_network(host: Host) -> Network:
    """kb's current routes, link and neighbours."""
    routes = frozenset[Route]()
    for version in (4, 6):
        text = query(host, "ip", "-json", f"-{version}", "route", "show", "proto", str(PROTOCOL))
        routes |= parse_routes(text, version)
    addresses = parse_own_addresses(query(host, "ip", "-json", "address", "show"), VXLAN)
    vxlan = parse_vxlan(query(host, "ip", "-json", "-details", "link", "show", "dev", VXLAN), addresses)
    if vxlan is None:
        return Network(routes)
    neighbours = query(host, "ip", "-json", "neighbour", "show", "dev", VXLAN, "nud", "permanent")
    forwards = query(host, "bridge", "-json", "fdb", "show", "dev", VXLAN)
    return Network(routes, vxlan, parse_neighbours(neighbours), parse_forwards(forwards))


def read_unrouted(host: Host, cidrs: Sequence[str], *, counts_own: bool = False) -> list[str]:
    """Those of `cidrs` to which this machine has no route; [] if its routes cannot be read."""
    found: list[str] = []
    for version in (4, 6):
        same = [cidr for cidr in cidrs if (6 if ":" in cidr else 4) == version]
        answer = host.query(["ip", "-json", f"-{version}", "route", "show", "table", "all"]) if same else None
        if answer and answer.ok and answer.stdout.strip():
            found += find_unrouted(answer.stdout, same, counts_own=counts_own)
    return found


def read_diverted(host: Host, routes: Iterable[Route]) -> list[tuple[Route, Diversion]]:
    """Those of `routes` whose packets, or some of them, the kernel sends elsewhere: by a route that is more specific, or by a rule of policy
    routing, as VPN clients set them. [] if the routes cannot be read."""
    found = []
    for version in (4, 6):
        same = [route for route in routes if (6 if ":" in route.pod_cidr else 4) == version]
        listed = host.query(["ip", "-json", f"-{version}", "route", "show", "table", "all"]) if same else None
        if listed is None or not listed.ok:
            continue
        asked = list_samples(listed.stdout, same)
        lines = "".join(f"route get fibmatch {address}\n" for _, address in asked)
        answer = host.query(["ip", "-json", f"-{version}", "-force", "-batch", "-"], stdin=lines)
        # an address without any way has no line, and then nobody knows whose line is whose
        rows = split_json(answer.stdout)
        ways = zip(asked, rows) if len(rows) == len(asked) else ()
        found += [(route, way) for (route, _), row in ways if (way := find_diversion(route, row)) is not None]
        found += find_holes(listed.stdout, same)
    return list(dict.fromkeys(found))


def query(host: Host, *argv: str) -> str:
    """The output of a command; "" if it failed, as `ip` does for a missing link. Raises HostError (iproute2-missing)."""
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
    """Whether pods on this node get their addresses from kb's network."""
    return find_first_cni_config(host, paths) == CNI_FILE


def find_first_cni_config(host: Host, paths: Paths) -> str:
    """The file in /etc/cni/net.d that the runtime uses: the first by name; "" if there is none."""
    return min(list_cni_configs(host, paths.cni_conf), default="")


def list_cni_configs(host: Host, folder: Path) -> list[str]:
    """The files of a folder that a runtime reads as CNI configurations."""
    return [name for name in host.list_dir(folder) if name.endswith(_CNI_SUFFIXES)]


# ---- changes


def ensure_network(host: Host, wanted: Network) -> list[str]:
    """Change the node's routes and link to match `wanted`; return what failed, in words."""
    return _run_all(host, plan_changes(wanted, read_network(host)))


def withdraw(host: Host) -> bool:
    """Remove kb's routes, link and rules; return whether there was any route or link. The bridge stays, because pods may still be
    attached to it."""
    commands = plan_changes(Network(), read_network(host))
    _run_all(host, commands)
    remove_masquerade(host)
    return bool(commands)


def _run_all(host: Host, commands: Iterable[Command]) -> list[str]:
    failures = []
    for command in commands:
        failures += _failure(host.run(command))
    return failures
