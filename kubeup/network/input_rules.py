"""Judges whether this machine's own firewall keeps everybody else from a port: nftables' chains at input, and iptables' INPUT in each variant.

A rule may name a source, a rate or a set that cannot be read here, and lead to other chains. Each chain is walked with all that may become of a
first packet from another machine, and a port counts as closed only if nothing but a drop may. This module changes nothing.
Source: nft(8), libnftables-json(5), iptables-extensions(8)
"""

from __future__ import annotations

import ipaddress
import operator
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Optional

from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.machine.host import Host
from kubeup.network.forwarding import is_of_iptables

_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
_LEGACY = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}
"""The tables that the older variant has in the kernel: to ask it for one that is not there would make it."""
_DEEPEST = 12
_DROP, _ACCEPT, _ON, _RETURN, _UNKNOWN = "drop", "accept", "on", "return", "unknown"


@frozen
class Packet:
    """The first of a TCP connection from another machine to this one. inside: networks from which no other machine calls."""

    port: int
    version: int = 4
    inside: tuple[str, ...] = ()


@frozen
class Bar:
    """What closes a port. rule: as its program shows it. remedy: the command that removes it, or shows it."""

    rule: str
    remedy: str


@frozen
class _Rule:
    """fits: whether the packet meets its conditions; None if that cannot be told. verdict: drop | accept | return | jump | goto | on | unknown."""

    bar: Bar
    fits: Optional[bool]
    verdict: str
    target: str = ""


@frozen
class _Firewall:
    """What this machine's programs say of their rules, each of them once."""

    host: Host
    said: dict[tuple[str, ...], str] = field(default_factory=dict)

    def ask(self, *argv: str) -> str:
        """The output; "" if there is none."""
        if argv not in self.said:
            answer = self.host.query(list(argv))
            self.said[argv] = answer.stdout if answer.ok else ""
        return self.said[argv]

    def list_objects(self, kind: str, words: Sequence[str]) -> list[dict[str, Any]]:
        """What nft lists of one kind; [] if it does not answer."""
        try:
            entries = parse_json_object(self.ask("nft", "-j", "list", *words) or "{}", "nft's answer").get("nftables")
        except ValueError:
            return []
        rows = [entry.get(kind) for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        return [row for row in rows if isinstance(row, dict)]


def find_bars(host: Host, packets: Sequence[Packet]) -> dict[Packet, Bar]:
    """For each packet that is dropped whichever other machine sends it, the first rule or policy by which it is. One of which that cannot be told
    is left out."""
    firewall = _Firewall(host)
    found = {
        packet: next(filter(None, (*_ask_iptables(firewall, packet), *_ask_nft(firewall, packet))), None)
        for packet in packets
    }
    return {packet: bar for packet, bar in found.items() if bar}


# ---- what may become of a packet


_Read = Callable[[str], Optional[Sequence[_Rule]]]
"""The rules of a chain; None if they cannot be read."""


def _judge(rules: _Read, base: str, *, policy: Optional[Bar]) -> Optional[Bar]:
    """policy: the bar that it is, if it drops."""
    ends = _walk(rules, base, depth=0)
    goes_on = ends.keys() & {_ON, _RETURN}
    if (goes_on and policy is None) or ends.keys() - {_DROP, _ON, _RETURN}:
        return None
    return policy if goes_on else ends[_DROP]


def _walk(rules: _Read, chain: str, *, depth: int) -> dict[str, Optional[Bar]]:
    """drop | accept | on | return -> the rule that does it."""
    found: dict[str, Optional[Bar]] = {}
    listed = rules(chain) if depth < _DEEPEST else None
    if listed is None:
        return {_ACCEPT: None, _DROP: None, _ON: None}
    for rule in listed:
        if rule.fits is False:
            continue
        ends = _follow(rules, rule, depth=depth)
        if (
            _ON not in ends and rule.fits
        ):  # whatever the rules before make of some packets, this one ends those that come here
            found.pop(_ON, None)
            return {**found, **ends}
        found.update(ends)
    return {**found, _ON: None}


def _follow(rules: _Read, rule: _Rule, *, depth: int) -> dict[str, Optional[Bar]]:
    if rule.verdict == _UNKNOWN:
        return {_ACCEPT: None, _DROP: rule.bar, _ON: None}
    if rule.verdict not in ("jump", "goto"):
        return {rule.verdict: rule.bar}
    ends = _walk(rules, rule.target, depth=depth + 1)
    if ends.keys() & {_ON, _RETURN}:
        back = _ON if rule.verdict == "jump" else _RETURN
        ends = {**{end: bar for end, bar in ends.items() if end not in (_ON, _RETURN)}, back: None}
    return ends


def _both(left: Optional[bool], right: Optional[bool]) -> Optional[bool]:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def _turned(fits: Optional[bool], *, is_turned: bool) -> Optional[bool]:
    return fits if fits is None or not is_turned else not fits


def _comes_from(network: Any, packet: Packet) -> Optional[bool]:
    """Whether another machine's packet has such a source: it cannot be told which one it has, only which ones it has not."""
    try:
        told = ipaddress.ip_network(str(network), strict=False)
        return None if not any(told.subnet_of(one) for one in _list_inside(packet, told.version)) else False  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return None


def _list_inside(packet: Packet, version: int) -> Iterable[Any]:
    named = (ipaddress.ip_network(one, strict=False) for one in (*packet.inside, "127.0.0.0/8", "::1/128"))
    return (one for one in named if one.version == version)


# ---- iptables

_TARGETS = {"ACCEPT": _ACCEPT, "DROP": _DROP, "REJECT": _DROP, "RETURN": _RETURN} | dict.fromkeys(
    ("LOG", "NFLOG", "MARK", "CONNMARK", "CT", "NOTRACK", "AUDIT", "SET", "TRACE"), _ON
)
_MATCHES = frozenset({"tcp", "multiport", "comment", "conntrack", "state"})
"""Modules that have no condition but those of their options."""


def _ask_iptables(firewall: _Firewall, packet: Packet) -> Iterable[Optional[Bar]]:
    host, program = firewall.host, _PROGRAMS[packet.version]
    legacy = _LEGACY[packet.version]
    names = [program]
    if host.which(f"{program}-nft"):
        names.append(f"{program}-nft")
    if host.which(f"{program}-legacy") and host.exists(legacy) and "filter" in host.read_text(legacy).split():
        names.append(f"{program}-legacy")
    for name in names:
        lines = firewall.ask(name, "-w", "10", "-S").splitlines()
        chains: dict[str, list[_Rule]] = {line.split()[1]: [] for line in lines if line.startswith(("-N ", "-P "))}
        for line in lines:
            chain = line.split()[1] if line.startswith("-A ") else ""
            if chain in chains:
                chains[chain].append(_read_line(line, packet=packet, chains=chains, program=name))
        said = f"the chain INPUT of {name} has the policy DROP, and no rule that lets it in"
        policy = Bar(said, f"see {name} -S INPUT") if "-P INPUT DROP" in lines else None
        if "INPUT" in chains:
            yield _judge(chains.get, "INPUT", policy=policy)


def _read_line(line: str, *, packet: Packet, chains: Mapping[str, Any], program: str) -> _Rule:
    bar = Bar(f"{program}: {line}", f"{program} {line.replace('-A ', '-D ', 1)}")
    try:
        words = shlex.split(line)[2:]
    except ValueError:
        return _Rule(bar, None, _UNKNOWN)
    fits: Optional[bool] = True
    while words and words[0] not in ("-j", "-g"):
        is_turned = words[0] == "!"
        name, *words = words[1:] if is_turned else words
        values = []
        while words and not words[0].startswith("-") and words[0] != "!":
            values.append(words.pop(0))
        try:
            meets = _meets(name, values, packet=packet)
        except ValueError:  # a port that has a name
            meets = None
        fits = _both(fits, _turned(meets, is_turned=is_turned))
    if not words:
        return _Rule(bar, fits, _ON)
    way, target = words[0], (words[1:] or [""])[0]
    if target in chains:
        return _Rule(bar, fits, "jump" if way == "-j" else "goto", target)
    return _Rule(bar, fits, _TARGETS.get(target, _UNKNOWN))


def _meets(name: str, values: Sequence[str], *, packet: Packet) -> Optional[bool]:
    """Whether the packet meets one condition of a rule; None if that cannot be told."""
    value = values[0] if values else ""
    if name == "-m":
        return True if value in _MATCHES else None
    if name == "--comment":
        return True
    if name == "-p":
        return value in ("tcp", "6", "all")
    if name == "-i":
        return False if value == "lo" else None
    if name == "-s":
        return _comes_from(value, packet)
    if name in ("--dport", "--dports"):
        return any(_is_within(packet.port, one) for one in value.split(","))
    if name in ("--ctstate", "--state"):
        states = set(value.split(","))
        return True if "NEW" in states else False if states <= {"ESTABLISHED", "RELATED", "INVALID"} else None
    if name == "--tcp-flags" and len(values) == 2:
        return {"SYN"} & set(values[0].split(",")) == set(values[1].split(",")) - {"NONE"}
    return None


def _is_within(number: int, value: str) -> bool:
    first, colon, last = value.partition(":")
    return int(first or 0) <= number <= int((last or 65535) if colon else first)


# ---- nftables


def _ask_nft(firewall: _Firewall, packet: Packet) -> Iterable[Optional[Bar]]:
    for chain in firewall.list_objects("chain", ["chains"]):
        hook, family = chain.get("hook"), str(chain.get("family"))
        is_filter = chain.get("type") == "filter" and hook in ("prerouting", "input")
        if not is_filter or family not in _FAMILIES[packet.version] or is_of_iptables(firewall.host, chain):
            continue
        table, name = str(chain.get("table")), str(chain.get("name"))
        place = f"{family} {table} {name}"
        said = f"the chain {place} of nftables has the policy drop, and no rule that lets it in"
        policy = Bar(said, f"see nft list table {family} {table}") if chain.get("policy") == "drop" else None
        bar = _judge(_Table(firewall, family, table, packet).read_rules, name, policy=policy)
        yield bar if bar is None or bar is policy else _say_nft(firewall, bar)


def _say_nft(firewall: _Firewall, bar: Bar) -> Bar:
    """The rule in nft's own words, by its handle: what is asked for as JSON has none."""
    place, _, handle = bar.rule.partition(" handle ")
    lines = firewall.ask("nft", "-a", "list", "chain", *place.split()).splitlines()
    said = next((line.strip() for line in lines if line.endswith(f"# handle {handle}")), f"handle {handle}")
    return Bar(f"nft: {place}: {said.partition(' # handle ')[0]}", bar.remedy)


@frozen
class _Table:
    firewall: _Firewall
    family: str
    table: str
    packet: Packet

    def read_rules(self, chain: str) -> Optional[list[_Rule]]:
        words = ("chain", self.family, self.table, chain)
        if not self.firewall.list_objects("chain", words):
            return None
        return [self._read_rule(row) for row in self.firewall.list_objects("rule", words)]

    def _read_rule(self, row: Mapping[str, Any]) -> _Rule:
        place = f"{self.family} {self.table} {row.get('chain')} handle {row.get('handle')}"
        bar = Bar(place, f"nft delete rule {place}")
        fits: Optional[bool] = True
        try:
            for statement in row.get("expr") or ():
                ((name, value),) = statement.items()
                if name == "match":
                    fits = _both(fits, self._match(value))
                elif name == "limit":
                    fits = _both(fits, None)
                elif name == "vmap":
                    return self._look_up(bar, fits=fits, told=value)
                elif name not in ("counter", "log", "mangle", "notrack"):
                    return _Rule(bar, fits, *_read_verdict(name, value))
        except (AttributeError, KeyError, TypeError, ValueError):  # written as no nft that is known here does
            return _Rule(bar, None, _UNKNOWN)
        return _Rule(bar, fits, _ON)

    def _look_up(self, bar: Bar, *, fits: Optional[bool], told: Any) -> _Rule:
        """A map of verdicts."""
        if not isinstance(told["data"], dict):  # one that only has a name
            return _Rule(bar, fits, _UNKNOWN)
        for value, verdict in told["data"]["set"]:
            holds = self._holds(told["key"], "==", right=value)
            if holds is None:
                return _Rule(bar, fits, _UNKNOWN)
            if holds:
                ((name, target),) = verdict.items()
                return _Rule(bar, fits, *_read_verdict(name, target))
        return _Rule(bar, fits, _ON)

    def _match(self, match: Mapping[str, Any]) -> Optional[bool]:
        return self._holds(match["left"], match["op"], right=match["right"])

    def _holds(self, left: Any, sign: str, *, right: Any) -> Optional[bool]:
        ((kind, key),) = left.items()
        if kind == "meta":
            return self._compare_meta(key["key"], sign, right=right)
        if kind == "ct" and key.get("key") == "state":
            return None if sign == "!=" and isinstance(right, list) else _compare("new", sign, right=right)
        if kind == "payload" and "protocol" in key:
            return self._compare_field(key["protocol"], key["field"], sign=sign, right=right)
        return None

    def _compare_meta(self, key: str, sign: str, *, right: Any) -> Optional[bool]:
        if key in ("iif", "iifname"):
            only_lo = right == "lo" or right == {"set": ["lo"]}
            return sign == "!=" if only_lo and sign in ("==", "!=") else None
        own = {"l4proto": "tcp", "nfproto": f"ipv{self.packet.version}", "pkttype": "host"}.get(key)
        return None if own is None else _compare(own, sign, right=right)

    def _compare_field(self, protocol: str, field: str, *, sign: str, right: Any) -> Optional[bool]:
        own = "ip" if self.packet.version == 4 else "ip6"
        if protocol not in ("tcp", "th", "ip", "ip6"):
            return False if protocol in ("udp", "icmp", "icmpv6", "sctp", "dccp", "udplite", "igmp") else None
        if protocol in ("ip", "ip6") and protocol != own:
            return False
        if field == "dport":
            return _compare(self.packet.port, sign, right=right)
        if field in ("protocol", "nexthdr"):
            return _compare("tcp", sign, right=right)
        if field == "saddr" and sign == "==":
            prefix = right.get("prefix") if isinstance(right, dict) else None
            return _comes_from(f"{prefix['addr']}/{prefix['len']}" if prefix else right, self.packet)
        return None


def _read_verdict(name: str, value: Any) -> tuple[str, str]:
    if name in ("jump", "goto"):
        return name, str(value["target"])
    return {"accept": _ACCEPT, "drop": _DROP, "reject": _DROP, "return": _RETURN, "continue": _ON}.get(
        name, _UNKNOWN
    ), ""


_SIGNS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def _compare(own: Any, sign: str, *, right: Any) -> Optional[bool]:
    """own: what the packet has."""
    if sign in _SIGNS:
        return _SIGNS[sign](own, right) if isinstance(own, int) and isinstance(right, int) else None
    return _turned(_is_among(own, right), is_turned=sign == "!=") if sign in ("==", "!=", "in") else None


def _is_among(own: Any, right: Any) -> Optional[bool]:
    """Whether it is this value, in this range, or in this set that is written out; None of a set that only has a name."""
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    if isinstance(right, list):
        found = [_is_among(own, one) for one in right]
        return True if True in found else None if None in found else False
    if isinstance(right, dict) and "range" in right:
        first, last = right["range"]
        return first <= own <= last if isinstance(own, int) else None
    if isinstance(right, (dict, bool)) or str(right).startswith("@"):
        return None
    return type(own) is type(right) and own == right if isinstance(own, int) == isinstance(right, int) else None
