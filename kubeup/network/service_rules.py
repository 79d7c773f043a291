"""What kube-proxy and the kubelet leave in the kernel when they have ended: chains, sets, tables, virtual servers, a link.

All of it is known by exact names, those of Kubernetes 1.33 to 1.36 (pkg/proxy/*, pkg/kubelet/kubelet_network_linux.go). Other programs
have similar names (kube-router: KUBE-ROUTER-*, KUBE-POD-FW-*, KUBE-NWPLCY-*): a prefix proves nothing. Rules of others are neither
moved nor rewritten: one transaction a table names only what goes. kubeadm leaves all of this, and `kube-proxy --cleanup` is no
substitute (docs/adr/0026-reset-takes-rules.md).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.network.step_aside import parse_addresses, parse_ip_output

CHAINS = frozenset(
    f"KUBE-{name}"
    for name in (
        "EXTERNAL-SERVICES", "FIREWALL", "FORWARD", "IPTABLES-HINT", "IPVS-FILTER", "IPVS-OUT-FILTER", "KUBELET-CANARY",
        "LOAD-BALANCER", "MARK-MASQ", "NODE-PORT", "NODEPORTS", "POSTROUTING", "PROXY-CANARY", "PROXY-FIREWALL", "SERVICES",
        "SOURCE-RANGES-FIREWALL",
    )
)  # fmt: skip
_OF_A_SERVICE = re.compile(r"KUBE-(SVC|SVL|FW|EXT|SEP)-[A-Z2-7]{16}")
"""The chains of a Service's port and of its endpoints: a prefix, and 16 characters of a hash in base32."""
PORT_MAPPINGS = frozenset(f"CNI-HOSTPORT-{name}" for name in ("DNAT", "MASQ", "SETMARK"))
"""The chains of the CNI plugin portmap, which it leaves when the last pod with a hostPort is gone. podman and nerdctl use the plugin
too: the chains go only while they map nothing, and the plugin makes them again."""
SETS = frozenset(
    f"KUBE-{version}{name}"
    for version in ("", "6-")
    for name in (
        "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "HEALTH-CHECK-NODE-PORT", "IPVS-IPS", "LOAD-BALANCER",
        "LOAD-BALANCER-FW", "LOAD-BALANCER-LOCAL", "LOAD-BALANCER-SOURCE-CIDR", "LOAD-BALANCER-SOURCE-IP", "LOOP-BACK",
        "NODE-PORT-LOCAL-SCTP-HASH", "NODE-PORT-LOCAL-TCP", "NODE-PORT-LOCAL-UDP", "NODE-PORT-SCTP-HASH", "NODE-PORT-TCP",
        "NODE-PORT-UDP",
    )
)  # fmt: skip
NFT_TABLE = "kube-proxy"
MAPPINGS_TABLE = "cni_hostport"
"""The table of the same plugin where it finds no iptables, or was told so: the same holds for it. Source: containernetworking/plugins,
plugins/meta/portmap/portmap_nftables.go"""
DUMMY = "kube-ipvs0"
"""The link that holds the addresses of Services in the mode ipvs."""
_TABLES = ("mangle", "nat", "filter")
_FAMILIES = {"iptables": Path("/proc/net/ip_tables_names"), "ip6tables": Path("/proc/net/ip6_tables_names")}
_OWN_JUMP = re.compile(
    r"-A (INPUT|FORWARD|OUTPUT|PREROUTING|POSTROUTING)"
    r'( -m conntrack --ctstate NEW| -m addrtype --dst-type LOCAL| -m comment --comment "(kubernetes|kube-proxy|CNI portfwd|flanneld) [^"]*")*'
    r" -j \S+"
)
_TARGET = re.compile(r" -[jg] (\S+)")
_VIRTUAL_SERVERS = Path("/proc/net/ip_vs")


@frozen
class OwnRules:
    """What goes from one table of one variant of iptables.

    chains: the chains; jumps: the rules of the kernel's chains that lead to them, as `-S` prints them; held: rules of others that lead
    to such a chain, which therefore stays."""

    program: str
    table: str
    chains: tuple[str, ...]
    jumps: tuple[str, ...]
    held: tuple[str, ...]

    def describe(self) -> str:
        count = len(self.chains)
        return f"{count} {'chain' if count == 1 else 'chains'} of {self.program}'s table {self.table}"

    def render_removal(self) -> str:
        """The input of `iptables-restore --noflush`: one transaction, which names nothing of others."""
        lines = [
            f"*{self.table}",
            *(f":{chain} - [0:0]" for chain in self.chains),
            *(f"-D {jump[len('-A ') :]}" for jump in self.jumps),
            *(f"-X {chain}" for chain in self.chains),
            "COMMIT",
        ]
        return "\n".join(lines) + "\n"


def is_own_chain(name: str) -> bool:
    return name in CHAINS or _OF_A_SERVICE.fullmatch(name) is not None


# ---- looks


def parse_rules(text: str, program: str, *, table: str, is_own: Callable[[str], bool] = is_own_chain) -> OwnRules:
    """Find the own chains, which are kube-proxy's and the kubelet's, in the output of `iptables -t TABLE -S`."""
    lines = text.splitlines()
    chains = {line[3:].strip() for line in lines if line.startswith("-N ")}
    own = {chain for chain in chains if is_own(chain)}
    if is_own is is_own_chain and not any(line.startswith("-A CNI-HOSTPORT-DNAT ") for line in lines):
        own |= chains & PORT_MAPPINGS
    ways = [(line, line.split()[1], _target_of(line)) for line in lines if line.startswith("-A ")]
    to_own = [(line, target) for line, chain, target in ways if chain not in own and target in own]
    held = [(line, target) for line, target in to_own if not _OWN_JUMP.fullmatch(line)]
    kept = {target for _, target in held}
    while True:  # a chain that stays needs those that it leads to
        more = {target for _, chain, target in ways if chain in kept and target in own} - kept
        if not more:
            break
        kept |= more
    jumps = tuple(line for line, _ in to_own if _OWN_JUMP.fullmatch(line))
    return OwnRules(program, table, tuple(sorted(own - kept)), jumps, tuple(line for line, _ in held))


def _target_of(rule: str) -> str:
    """The chain that a rule leads to. A comment may hold anything, so the last match counts, outside of quotes."""
    found = _TARGET.findall(re.sub(r'"(\\.|[^"\\])*"', '""', rule))
    return found[-1] if found else ""


def read_rules(host: Host, *, is_own: Callable[[str], bool] = is_own_chain) -> list[OwnRules]:
    """All that goes from iptables, in both variants and for both IP versions; none of the tables is created by looking at it."""
    found = []
    for program, tables in _list_programs(host):
        for table in tables:
            rules = host.query([program, "-w", "10", "-t", table, "-S"])
            if rules.ok:
                found.append(parse_rules(rules.stdout, program, table=table, is_own=is_own))
    return [rules for rules in found if rules.chains or rules.jumps or rules.held]


def _list_programs(host: Host) -> Iterator[tuple[str, list[str]]]:
    """The variants that are installed, and the tables to look at. A legacy program creates each table that it is asked for, so it is
    asked only for those that the kernel has already."""
    for family, names in _FAMILIES.items():
        loaded = host.read_text(names).split() if host.exists(names) else []
        variants = [f"{family}-{variant}" for variant in ("nft", "legacy")]
        known = [program for program in variants if host.which(program)]
        if len(known) < len(variants) and host.which(family):
            is_nft = "nf_tables" in host.query([family, "--version"]).stdout
            if (variants[0] if is_nft else variants[1]) not in known:
                yield family, [table for table in _TABLES if is_nft or table in loaded]
        for program in known:
            yield program, [table for table in _TABLES if program.endswith("-nft") or table in loaded]


def find_nft_tables(host: Host, names: Collection[str] = (NFT_TABLE,)) -> list[tuple[str, str]]:
    """The tables with these names, which are kube-proxy's in its mode nftables: [("ip", "kube-proxy")]."""
    found = host.query(["nft", "list", "tables"])
    words = [line.split() for line in found.stdout.splitlines()] if found.ok else []
    return [(line[1], line[2]) for line in words if line[:1] == ["table"] and len(line) == 3 and line[2] in names]


def find_own_tables(host: Host) -> list[tuple[str, str]]:
    """Those that go: kube-proxy's, and portmap's while it maps nothing."""
    found = find_nft_tables(host, (NFT_TABLE, MAPPINGS_TABLE))
    return [table for table in found if table[1] == NFT_TABLE or _is_without_mappings(host, table)]


def _is_without_mappings(host: Host, table: tuple[str, str]) -> bool:
    shown = host.query(["nft", "list", "table", *table])
    return shown.ok and " dnat to " not in shown.stdout


def find_sets(host: Host) -> list[str]:
    found = host.query(["ipset", "list", "-name"])
    return [name for name in found.stdout.split() if name in SETS] if found.ok else []


def has_dummy(host: Host) -> bool:
    return host.query(["ip", "link", "show", "dev", DUMMY]).ok


def find_virtual_servers(host: Host) -> list[list[str]]:
    """The words with which ipvsadm names kube-proxy's virtual servers: those whose address is on its link, or whose port is in its sets
    of node ports. Others, as keepalived's, stay."""
    shown = host.query(["ip", "-json", "address", "show", "dev", DUMMY])
    links = parse_ip_output(shown.stdout) if shown.ok else []
    addresses = {pair.partition("/")[0] for link in links for pair in parse_addresses(link)}
    ports = {protocol: set(_list_node_ports(host, protocol)) for protocol in ("TCP", "UDP")}
    saved = host.query(["ipvsadm", "-Sn"])
    rows = [line.split() for line in saved.stdout.splitlines() if line.startswith("-A -")] if saved.ok else []
    return [row[1:3] for row in rows if len(row) > 2 and _is_own_server(row, addresses=addresses, ports=ports)]


def _is_own_server(row: list[str], *, addresses: set[str], ports: dict[str, set[str]]) -> bool:
    address, _, port = row[2].rpartition(":")
    return address.strip("[]") in addresses or port in ports.get({"-t": "TCP", "-u": "UDP"}.get(row[1], ""), set())


def _list_node_ports(host: Host, protocol: str) -> Iterator[str]:
    for version in ("", "6-"):
        found = host.query(["ipset", "list", f"KUBE-{version}NODE-PORT-{protocol}"])
        yield from found.stdout.partition("Members:")[2].split() if found.ok else ()


def find_all(host: Host) -> list[str]:
    """What is there, in words."""
    return [
        *(rules.describe() for rules in read_rules(host) if rules.chains or rules.jumps),
        *(f"nft's table {family} {name}" for family, name in find_own_tables(host)),
        *([f"the link {DUMMY} and its virtual servers"] if has_dummy(host) else []),
        *(f"the set {name}" for name in find_sets(host)),
    ]


# ---- changes


def remove_all(host: Host) -> list[str]:
    """Remove all of it; return what stays, in words. Raises HostError (rules-not-removed)."""
    left = [text for rules in read_rules(host) for text in remove_rules(host, rules)]
    for table in find_own_tables(host):
        remove_nft_table(host, table)
    left += _remove_ipvs(host)
    for name in find_sets(host):
        if not host.run(["ipset", "destroy", name]).ok:
            left.append(f"the set {name}: a rule of others uses it")
    return left


def remove_rules(host: Host, rules: OwnRules) -> list[str]:
    """Remove them from their table; return the rules of others for which a chain stays. Raises HostError (rules-not-removed)."""
    if rules.chains or rules.jumps:
        _check(host, [f"{rules.program}-restore", "-w", "10", "--noflush"], stdin=rules.render_removal())
    return [
        f"{rules.program} -t {rules.table} {rule}: others made this rule, so the chain that it leads to stays"
        for rule in rules.held
    ]


def remove_nft_table(host: Host, table: tuple[str, str]) -> None:
    """table: its family and name. Raises HostError (rules-not-removed)."""
    _check(host, ["nft", "delete", "table", *table])


def _remove_ipvs(host: Host) -> Iterable[str]:
    """The virtual servers go before the link whose addresses tell which ones they are."""
    if not has_dummy(host):
        return []
    for words in find_virtual_servers(host):
        _check(host, ["ipvsadm", "-D", *words])
    is_listed = host.which("ipvsadm") is not None or not host.exists(_VIRTUAL_SERVERS)
    rows = [] if is_listed else host.read_text(_VIRTUAL_SERVERS).splitlines()
    _check(host, ["ip", "link", "delete", DUMMY])
    has_servers = any(row.startswith(("TCP", "UDP", "SCTP")) for row in rows)
    return ["IPVS's virtual servers, until a reboot: there is no ipvsadm here to remove them"] if has_servers else []


def _check(host: Host, argv: list[str], *, stdin: str = "") -> None:
    done = host.run(argv, stdin=stdin)
    if not done.ok:
        raise HostError(
            "rules of kube-proxy could not be removed",
            cause=f"{shlex.join(argv)}: {(done.stderr or done.stdout).strip()}",
            remedy="run the command again; or let them stay until a reboot: kb reset --skip-phases cleanup-node/remove-service-rules",
            code="rules-not-removed",
        )
