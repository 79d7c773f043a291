"""What flannel leaves on a node, whose pods cannot clean up after themselves: links, rules, its CNI file.

It is the pod network that is most often applied by `podNetwork: {plugin: manifest}`. Its names are exact (pkg/trafficmngr, backend/vxlan and
the manifest of its releases 0.20 to 0.27), and nothing of it goes that was on the machine before kb. Other networks are not known here.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from kubeup.machine.host import Host
from kubeup.network import service_rules

CHAINS = frozenset(("FLANNEL-FWD", "FLANNEL-POSTRTG"))
_TABLES = frozenset(("flannel-ipv4", "flannel-ipv6"))
LINKS = ("cni0", "flannel.1", "flannel-v6.1")
_ALL_LINKS = Path("/proc/net/dev")
"""A line each. /sys/class/net may be mounted for another network namespace, as in a container of systemd-nspawn."""
PLACES = tuple(
    Path(name)
    for name in (
        "/etc/cni/net.d/10-flannel.conflist",
        "/opt/cni/bin/flannel",
        "/run/flannel",
        "/var/lib/cni/flannel",
        "/var/lib/cni/networks/cbr0",
    )
)


def list_links(host: Host) -> list[str]:
    rows = host.read_text(_ALL_LINKS).splitlines() if host.exists(_ALL_LINKS) else []
    known = {row.partition(":")[0].strip() for row in rows}
    return [name for name in LINKS if name in known]


def find(host: Host, *, places: Collection[str], links: Collection[str]) -> list[str]:
    """What is there, in words. places: those of PLACES that were not there before kb; links: those that were.

    [] if flannel was on the machine before: then all of it is somebody else's."""
    if links:
        return []
    return [
        *list_links(host),
        *(rules.describe() for rules in _read_rules(host)),
        *(name for _, name in service_rules.find_nft_tables(host, _TABLES)),
        *(str(path) for path in PLACES if str(path) in places and host.exists(path)),
    ]


def remove(host: Host, *, places: Collection[str]) -> list[str]:
    """Remove it; return what stays, in words. Raises HostError (rules-not-removed)."""
    left = [text for rules in _read_rules(host) for text in service_rules.remove_rules(host, rules)]
    for table in service_rules.find_nft_tables(host, _TABLES):
        service_rules.remove_nft_table(host, table)
    for link in list_links(host):
        host.run(["ip", "link", "delete", link])
    for path in PLACES:
        if str(path) in places and not host.remove_tree(path):
            host.remove(path)
    return left


def _read_rules(host: Host) -> list[service_rules.OwnRules]:
    found = service_rules.read_rules(host, is_own=CHAINS.__contains__)
    return [rules for rules in found if rules.chains or rules.jumps]
