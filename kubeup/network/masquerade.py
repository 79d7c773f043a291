"""Masquerades what pods send out of the cluster: with nft, or with iptables if there is no nft.

The rule is in a table or chain of kb's own; no other is touched.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

from kubeup.machine.host import Host
from kubeup.network import forwarding
from kubeup.network.forwarding import describe_failure as _failure

TABLE = "kb_pods"
CHAIN = "KB-POSTROUTING"
MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


def select_cidrs(cidrs: Iterable[str], version: int) -> list[str]:
    """The CIDRs of one IP version, merged, because nft refuses a set with overlapping ranges."""
    networks = [ipaddress.ip_network(cidr, strict=False) for cidr in cidrs]
    same: list[Any] = [network for network in networks if network.version == version]
    return [str(network) for network in ipaddress.collapse_addresses(same)]


def render_nft_table(version: int, own: Sequence[str], *, cluster: Sequence[str]) -> tuple[str, str]:
    """The table that masquerades what this node's pods send out of the cluster, and the name of its chain. The name contains a hash of
    the rule, so it is enough to look for the name."""
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


def render_iptables_chain(version: int, own: Sequence[str], *, cluster: Sequence[str]) -> list[str]:
    """The same rule for a node that has only iptables, in the format of `iptables -t nat -S KB-POSTROUTING`."""
    inside = [f"-A {CHAIN} -d {cidr} -j RETURN" for cidr in sorted([*cluster, MULTICAST[version]])]
    return [f"-N {CHAIN}", *inside, *(f"-A {CHAIN} -s {cidr} -j MASQUERADE" for cidr in own)]


def read_masquerade_tool(host: Host) -> str:
    """ "nft" if the program is installed and the kernel supports it, else "iptables" if installed, else ""."""
    if host.query(["nft", "list", "tables"]).ok:
        return "nft"
    return "iptables" if host.which("iptables") else ""


def ensure_masquerade(host: Host, own: Sequence[str], *, cluster: Sequence[str]) -> list[str]:
    """Masquerade what this node's pods send out of the cluster, and accept their traffic in chains that drop it. Returns what failed,
    in words."""
    tool = read_masquerade_tool(host)
    if not tool:
        return ["neither nft nor iptables is there: pods cannot reach anything outside the cluster"]
    failures: list[str] = []
    for version in (4, 6):
        mine = select_cidrs(own, version)
        inside = select_cidrs([*cluster, *own], version)
        ensure = _ensure_nft if tool == "nft" else _ensure_iptables
        if mine:
            failures += ensure(host, version, own=mine, inside=inside)
            failures += forwarding.ensure_forwarding(host, version, cidrs=inside)
    return failures


def _ensure_nft(host: Host, version: int, *, own: Sequence[str], inside: Sequence[str]) -> list[str]:
    text, chain = render_nft_table(version, own, cluster=inside)
    found = host.query(["nft", "list", "table", "ip" if version == 4 else "ip6", TABLE])
    if found.ok and chain in found.stdout and "masquerade" in found.stdout:
        return []
    done = host.run(["nft", "-f", "-"], stdin=text)
    return [] if done.ok else [f"nft: {done.stderr.strip()}"]


def _ensure_iptables(host: Host, version: int, *, own: Sequence[str], inside: Sequence[str]) -> list[str]:
    program = "iptables" if version == 4 else "ip6tables"
    base = (program, "-w", "10", "-t", "nat")
    wanted = render_iptables_chain(version, own, cluster=inside)
    found = host.query([*base, "-S", CHAIN])
    jump = ("POSTROUTING", "-j", CHAIN)
    failures: list[str] = []
    if not found.ok or found.stdout.split("\n")[: len(wanted)] != wanted or found.stdout.count("\n") != len(wanted):
        # a single restore, so that the chain is never incomplete
        rules = "\n".join(["*nat", f":{CHAIN} - [0:0]", *wanted[1:], "COMMIT", ""])
        failures += _failure(host.run([f"{program}-restore", "-w", "10", "--noflush"], stdin=rules))
    if not host.query([*base, "-C", *jump]).ok:
        failures += _failure(host.run([*base, "-A", *jump]))
    return failures


def remove_masquerade(host: Host) -> None:
    """Remove kb's rules, whichever tool added them."""
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
