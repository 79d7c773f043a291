"""What a machine is besides its files: mounts, links, routes, packet filter rules, kernel settings, namespaces, units, control groups.

Read as one mapping, so that two moments can be compared. Must not: know kb.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .node import Node

State = dict[str, list[str]]
RULES = tuple(f"{family}-{variant}" for variant in ("nft", "legacy") for family in ("iptables", "ip6tables"))
"""Both variants of iptables, for both families. What one sees the other does not."""
_OF_IPTABLES = re.compile(r"table ip6? (filter|nat|mangle|raw|security) ")
_LOOKS = {
    "mounts": r"awk '{print $5}' /proc/self/mountinfo | sort",
    "links": r"ip -d -o link show | sed -E 's/^[0-9]+: ([^:@]+).*link\/(\S+).*/\1 \2/' | sort",
    "addresses": "ip -o address show scope global | awk '{print $2, $4}' | sort",
    # a link gets its own IPv6 address some seconds after it came up
    "routes": r"(ip route show table all; ip -6 route show table all) | grep -v -e fe80:: -e ff00:: | sed -E 's/ expires [0-9]+sec//; s/ pref medium//' | sort",
    "policies": "ip rule; ip -6 rule",
    "namespaces": "ls -A /run/netns 2>/dev/null; true",
    "tables": "nft list tables",
    "sets": "ipset list -name 2>/dev/null; true",
    "virtual servers": "cat /proc/net/ip_vs 2>/dev/null; true",
    "settings": r"""sysctl -a 2>/dev/null | grep -E '^(net\.ipv[46]\.(ip_forward|conf\.(all|default)\.)|net\.ipv4\.vs|net\.bridge|net\.netfilter|vm\.(overcommit|panic)|kernel\.(panic|keys))' \
      | grep -v -e nf_conntrack_count -e stable_secret | sort""",
    "units": "systemctl list-units --all --plain --no-legend | awk '{print $1}' | grep -E 'kube|kb-|etcd' | grep -v '^sys-' | sort; true",
    "control groups": "find /sys/fs/cgroup -type d -name '*kube*' | sort",
    "run": r"cd /run && find . -maxdepth 2 -xdev \( -name systemd -o -name log -o -name user -o -name containerd -o -name udev -o -name lock \) -prune -o -type d -print | sort",
    "logs": "find /var/log/pods /var/log/containers 2>/dev/null | sort; true",
}


def read_state(node: Node) -> State:
    """The state now. Each rule with its place, since their order counts."""
    state = {name: node.run(look).stdout.splitlines() for name, look in _LOOKS.items()}
    state["tables"] = [line for line in state["tables"] if not _OF_IPTABLES.match(f"{line} ")]
    for program in RULES:
        state[program] = _without_empty_tables(node.run(f"{program}-save 2>/dev/null").stdout)
    for line in state["tables"]:
        state[line] = node.run(f"nft --stateless list {line}").stdout.splitlines()
    return state


def _without_empty_tables(text: str) -> list[str]:
    """The rules without counters, and without tables that let everything through: iptables makes those for whoever looks."""
    found: list[str] = []
    for block in re.split(r"^(?=\*)", re.sub(r"^#.*\n|\[\d+:\d+\]", "", text, flags=re.MULTILINE), flags=re.MULTILINE):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if any(not re.fullmatch(r"\*\w+|:[A-Z]+ ACCEPT|COMMIT", line) for line in lines):
            found += lines
    return found


def compare_states(before: State, after: State) -> list[str]:
    """What differs: `links: - eth1`, `links: + cni0`. A kernel setting that was not there before has no value to go back to."""
    told = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, []), after.get(name, [])
        if name == "settings":
            known = {line.partition(" = ")[0] for line in old}
            new = [line for line in new if line.partition(" = ")[0] in known]
        told += [f"{name}: - {line}" for line in old if line not in new]
        told += [f"{name}: + {line}" for line in new if line not in old]
        if sorted(old) == sorted(new) and old != new:
            told.append(f"{name}: in another order")
    return told
