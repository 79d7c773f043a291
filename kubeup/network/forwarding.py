"""Accepts pod traffic on machines whose firewall drops forwarded packets.

Docker and ufw set the policy of iptables' FORWARD chain to DROP, and hardened machines do so with an nftables chain. An accept rule
in a table of kb's own would not help, because a packet must be accepted by every base chain of a hook. So kb adds its rules to the
chain that drops, at its end and marked as kb's. This module reads, maintains and removes these rules. It never touches a rule without
the mark, and never changes a policy. flannel does the same for its subnets; kubeadm leaves it to the pod network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.machine.host import Host

CHAIN = "KB-FORWARD"
MARK = "kb pods"
_CATCH_ALL = re.compile(r"-A FORWARD -j (DROP|REJECT)( .*)?")
_NFT_CATCH_ALL = re.compile(r"(counter packets \d+ bytes \d+ )?(drop|reject)\b")
"""A rule that matches every packet. kb's rules must stand before it, and after all other rules, such as those of kube-proxy's
load balancer firewall."""
_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}


@frozen
class DroppingChain:
    """An nftables base chain at the forward hook that drops what no rule accepts."""

    family: str
    table: str
    name: str


# ---- looks


def read_dropping_chains(host: Host, hook: str = "forward") -> list[DroppingChain]:
    """The chains of nftables at that hook whose policy is drop, without those that iptables manages."""
    found = host.query(["nft", "-j", "list", "chains"])
    try:
        entries = parse_json_object(found.stdout, "nft's answer").get("nftables") or [] if found.ok else []
    except ValueError:
        return []
    chains = [entry["chain"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("chain"), dict)]
    return [
        DroppingChain(str(chain.get("family")), str(chain.get("table")), str(chain.get("name")))
        for chain in chains
        if chain.get("hook") == hook and chain.get("policy") == "drop" and not is_of_iptables(host, chain)
    ]


def describe_drops(host: Host) -> str:
    """The chains of this machine that drop forwarded packets by default, and whether kb's rule is missing there; "" if there are
    none. With kb's rules, such a chain does no harm."""
    found = [
        f"{' '.join((chain.family, chain.table, chain.name))} has the policy drop"
        for chain in read_dropping_chains(host)
    ]
    for program in _PROGRAMS.values():
        if "-P FORWARD DROP" in host.query([program, "-S", "FORWARD"]).stdout:
            has_own = host.query([program, "-S", CHAIN]).ok
            found.append(
                f"the chain FORWARD of {program} has the policy DROP{'' if has_own else f', and no rule {CHAIN}'}"
            )
    return "; ".join(found)


def describe_input_drops(host: Host, version: int = 4) -> str:
    """The chains of this machine that by default drop what is sent to itself; "" if there are none."""
    return _describe_policies(host, "input", version=version)


def describe_output_drops(host: Host, version: int = 4) -> str:
    """The chains of this machine that by default drop what it sends; "" if there are none."""
    return _describe_policies(host, "output", version=version)


def _describe_policies(host: Host, hook: str, *, version: int) -> str:
    found = [
        f"{' '.join((chain.family, chain.table, chain.name))} has the policy drop"
        for chain in read_dropping_chains(host, hook)
    ]
    program, chain_name = _PROGRAMS[version], hook.upper()
    if f"-P {chain_name} DROP" in host.query([program, "-S", chain_name]).stdout:
        found.append(f"the chain {chain_name} of {program} has the policy DROP")
    return "; ".join(found)


def find_missing_rules(host: Host) -> str:
    """Which of iptables' chains drop what pods forward, since kb's rules are not in them; "" if none does."""
    found = []
    for program in _PROGRAMS.values():
        rules = host.query([program, "-w", "10", "-S", "FORWARD"]).stdout.splitlines()
        own = host.query([program, "-w", "10", "-S", CHAIN])
        lets_pods_through = own.ok and "-A " in own.stdout and f"-A FORWARD -j {CHAIN}" in rules
        if "-P FORWARD DROP" in rules and not lets_pods_through:
            found.append(
                f"the chain FORWARD of {program} drops what pods send and get: its policy is DROP, and kb's rules are gone"
            )
    return "; ".join(found)


def is_of_iptables(host: Host, chain: dict[str, Any]) -> bool:
    """Whether a chain that nft lists is one that iptables shows too."""
    is_like = (
        chain.get("family") in ("ip", "ip6")
        and chain.get("table") == "filter"
        and chain.get("name") in ("FORWARD", "INPUT")
    )
    return is_like and host.which(_PROGRAMS[4 if chain["family"] == "ip" else 6]) is not None


def render_iptables_chain(cidrs: Sequence[str]) -> list[str]:
    """kb's chain, in the format of `iptables -S KB-FORWARD`."""
    return [f"-N {CHAIN}", *(f"-A {CHAIN} {way} {cidr} -j ACCEPT" for cidr in cidrs for way in ("-s", "-d"))]


# ---- changes


def ensure_forwarding(host: Host, version: int, *, cidrs: Sequence[str]) -> list[str]:
    """Accept packets from and to these pod networks, which have the same IP version; return what failed, in words."""
    failures = _ensure_in_iptables(host, version, cidrs=cidrs) if host.which(_PROGRAMS[version]) else []
    for chain in read_dropping_chains(host):
        if chain.family in _FAMILIES[version]:
            failures += _ensure_in_nft(host, chain, version=version, cidrs=cidrs)
    return failures


def _ensure_in_iptables(host: Host, version: int, *, cidrs: Sequence[str]) -> list[str]:
    program = _PROGRAMS[version]
    base = (program, "-w", "10", "-t", "filter")
    wanted = render_iptables_chain(cidrs)
    found = host.query([*base, "-S", CHAIN])
    failures: list[str] = []
    if not found.ok or found.stdout.split("\n")[:-1] != wanted:
        # a single restore, so that the chain is never incomplete
        rules = "\n".join(["*filter", f":{CHAIN} - [0:0]", *wanted[1:], "COMMIT", ""])
        failures += describe_failure(host.run([f"{program}-restore", "-w", "10", "--noflush"], stdin=rules))
    rules_now = [line for line in host.query([*base, "-S", "FORWARD"]).stdout.splitlines() if line.startswith("-A ")]
    jump = f"-A FORWARD -j {CHAIN}"
    wall = next((place for place, line in enumerate(rules_now) if _CATCH_ALL.fullmatch(line)), len(rules_now))
    if jump not in rules_now[:wall]:
        _remove_jumps(host, base)
        wall -= rules_now[:wall].count(jump)
        failures += describe_failure(host.run([*base, "-I", "FORWARD", str(wall + 1), "-j", CHAIN]))
    return failures


def _remove_jumps(host: Host, base: Sequence[str]) -> None:
    while host.query([*base, "-C", "FORWARD", "-j", CHAIN]).ok:
        if not host.run([*base, "-D", "FORWARD", "-j", CHAIN]).ok:
            return


def _ensure_in_nft(host: Host, chain: DroppingChain, *, version: int, cidrs: Sequence[str]) -> list[str]:
    place = (chain.family, chain.table, chain.name)
    family = "ip" if version == 4 else "ip6"
    ranges = ", ".join(cidrs)
    wanted = [f'{family} {way} {{ {ranges} }} accept comment "{MARK} {family} {way}"' for way in ("saddr", "daddr")]
    found = host.query(["nft", "-a", "list", "chain", *place])
    if not found.ok:
        return []
    own = [line for line in found.stdout.splitlines() if f'comment "{MARK} {family} ' in line]
    texts = [line.strip().partition(" # handle")[0] for line in own]
    if sorted(map(_plain, texts)) == sorted(map(_plain, wanted)):
        return []
    where = " ".join(place)
    removals = [f"delete rule {where} handle {_handle_of(line)}" for line in own]
    wall = next((line for line in found.stdout.splitlines() if _NFT_CATCH_ALL.match(line.strip())), "")
    verb = f"insert rule {where} handle {_handle_of(wall)}" if wall else f"add rule {where}"
    script = "\n".join([*removals, *(f"{verb} {rule}" for rule in wanted), ""])
    return describe_failure(host.run(["nft", "-f", "-"], stdin=script))


def _handle_of(line: str) -> str:
    return line.rpartition("# handle ")[2].strip()


def _plain(rule: str) -> str:
    """The rule without the braces that nft omits around a set of one element."""
    return rule.replace("{ ", "").replace(" }", "")


def remove_forwarding(host: Host) -> None:
    """Remove kb's rules from all chains."""
    for program in _PROGRAMS.values():
        base = (program, "-w", "10", "-t", "filter")
        if host.which(program) and host.query([*base, "-S", CHAIN]).ok:
            _remove_jumps(host, base)
            host.run([*base, "-F", CHAIN])
            host.run([*base, "-X", CHAIN])
    found = host.query(["nft", "-a", "list", "ruleset"])
    if found.ok and f'comment "{MARK} ' in found.stdout:
        host.run(["nft", "-f", "-"], stdin="\n".join([*_find_rules(found.stdout), ""]))


def _find_rules(ruleset: str) -> Iterable[str]:
    """The commands that delete kb's rules in a ruleset, by their handles."""
    table = chain = ""
    for line in ruleset.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"]:
            chain = words[1]
        elif f'comment "{MARK} ' in line:
            yield f"delete rule {table} {chain} handle {_handle_of(line)}"


def describe_failure(done: Any) -> list[str]:
    return [] if done.ok else [f"{' '.join(done.argv)}: {(done.stderr or done.stdout).strip()}"]
