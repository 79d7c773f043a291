"""kubeup/network/input_rules.py: a firewall of this machine that keeps everybody else from a port, and those of which that cannot be said."""

from __future__ import annotations

import json
from typing import Any, Optional

import pytest

from kubeup.network.input_rules import Packet, find_bars
from tests.fake_host import FakeHost

POLICY = "has the policy"


def tables(*lines: str) -> FakeHost:
    """A machine with these rules of iptables."""
    host = FakeHost(programs={"iptables"})
    host.answers["iptables -w 10 -S"] = "\n".join(lines) + "\n"
    return host


def nft(*rules: list[Any], policy: str = "accept", family: str = "inet", **others: list[list[Any]]) -> FakeHost:
    """A machine whose chain input has these rules, by their expressions; others: further chains of its table."""
    host = FakeHost()
    base = {"family": family, "table": "own", "name": "input", "type": "filter", "hook": "input", "policy": policy}
    chains: dict[str, Any] = {"input": (base, rules)}
    for name, rows in others.items():
        chains[name] = ({"family": family, "table": "own", "name": name}, rows)
    host.answers["nft -j list chains"] = json.dumps({"nftables": [{"chain": row} for row, _ in chains.values()]})
    for name, (row, listed) in chains.items():
        ruled = [{"rule": {"chain": name, "handle": n, "expr": expr}} for n, expr in enumerate(listed, 2)]
        host.answers[f"nft -j list chain {family} own {name}"] = json.dumps({"nftables": [{"chain": row}, *ruled]})
        lines = [f"    rule {n} of {name} # handle {n}" for n in range(2, len(listed) + 2)]
        host.answers[f"nft -a list chain {family} own {name}"] = "\n".join(lines)
    return host


def find(host: FakeHost, port: int = 10250, *, version: int = 4, inside: tuple[str, ...] = ()) -> Optional[str]:
    packet = Packet(port, version, inside)
    bar = find_bars(host, [packet]).get(packet)
    assert not host.changes
    return f"{bar.rule} | {bar.remedy}" if bar else None


def test_a_rule_of_iptables_that_drops_it() -> None:
    drop = "-A INPUT -p tcp -m tcp --dport 10250 -j DROP"
    host = tables("-P INPUT ACCEPT", "-A INPUT -i lo -j ACCEPT", drop)
    assert find(host) == f"iptables: {drop} | iptables -D INPUT -p tcp -m tcp --dport 10250 -j DROP"
    assert find(host, 6443) is None and find(host, version=6) is None


@pytest.mark.parametrize(
    "rule",
    [
        "! -i lo -p tcp -m multiport --dports 80,10250:10255 -j REJECT --reject-with icmp-port-unreachable",
        "-p tcp -m conntrack --ctstate NEW -m comment --comment 'no -j here' -m tcp --dport 10250 -j DROP",
        "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP",
        "-p tcp -m tcp ! --dport 22 -j DROP",
        "-j DROP",
        "-g own",
    ],
)
def test_what_leaves_nobody_in(rule: str) -> None:
    assert find(tables("-P INPUT ACCEPT", "-N own", f"-A INPUT {rule}", "-A own -j DROP"))


@pytest.mark.parametrize(
    "rule",
    [
        "-s 192.0.2.0/24 -p tcp -m tcp --dport 10250 -j DROP",
        "! -s 10.77.0.0/24 -p tcp -m tcp --dport 10250 -j DROP",
        "-i eth1 -p tcp -m tcp --dport 10250 -j DROP",
        "-d 192.0.2.1/32 -j DROP",
        "-p udp -m udp --dport 10250 -j DROP",
        "-p tcp -m conntrack --ctstate INVALID -j DROP",
        "-p tcp -m tcp --sport 10250 -j DROP",
        "-p tcp -m limit --limit 3/min -m tcp --dport 10250 -j DROP",
        "-m set --match-set bad src -j DROP",
        "-p tcp -m tcp --dport 10250 -j LOG --log-prefix drop",
        "-p tcp -m tcp --dport kubelet -j DROP",
        "-p tcp -m tcp --dport 10250 -j NFQUEUE --queue-num 1",
    ],
)
def test_what_lets_somebody_in(rule: str) -> None:
    assert find(tables("-P INPUT ACCEPT", f"-A INPUT {rule}")) is None


@pytest.mark.parametrize(
    ("rules", "is_barred"),
    [
        ((), True),
        (("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A INPUT -i lo -j ACCEPT", "-A INPUT -p icmp -j ACCEPT"), True),
        (("-A INPUT -s 127.0.0.0/8 -j ACCEPT", "-A INPUT -s 10.244.1.0/24 -j ACCEPT"), True),
        (("-A INPUT -s 10.77.0.0/24 -p tcp -m multiport --dports 2379,2380,6443,7443,10250 -j ACCEPT",), False),
        (("-A INPUT -m set --match-set nodes src -j ACCEPT",), False),
        (("-A INPUT -p tcp -m tcp --dport 10250 -m recent --set -j ACCEPT",), False),
        (("-N ufw", "-A INPUT -j ufw", "-A ufw -p tcp -m tcp --dport 22 -j ACCEPT", "-A ufw -m addrtype --dst-type LOCAL -j RETURN", "-A ufw -j DROP"), True),
        (("-N ufw", "-A INPUT -j ufw", "-A ufw -p tcp -m tcp --dport 10250 -j ACCEPT"), False),
        (("-A INPUT -j elsewhere",), False),
        (("-N a", "-A INPUT -j a", "-A a -j a"), False),
    ],
)  # fmt: skip
def test_a_policy_of_iptables(rules: tuple[str, ...], is_barred: bool) -> None:
    said = find(tables("-P INPUT DROP", *rules), inside=("10.244.0.0/16",))
    assert bool(said) is is_barred, said


TO_KUBELET = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 10250}}
DROP, ACCEPT = {"drop": None}, {"accept": None}


def when(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


IIFNAME, STATE = {"meta": {"key": "iifname"}}, {"ct": {"key": "state"}}
SADDR, DPORT = ({"payload": {"protocol": p, "field": f}} for p, f in (("ip", "saddr"), ("tcp", "dport")))
NODES = when(SADDR, {"prefix": {"addr": "10.77.0.0", "len": 24}})
PODS = when(SADDR, {"prefix": {"addr": "10.244.0.0", "len": 16}})
STATES = {"vmap": {"key": STATE, "data": {"set": [["invalid", DROP], ["established", ACCEPT], ["new", {"jump": {"target": "own"}}]]}}}  # fmt: skip


def test_a_rule_of_nftables_that_drops_it() -> None:
    host = nft([when(IIFNAME, "lo", "!="), TO_KUBELET, {"counter": {"packets": 1}}, DROP])
    assert find(host) == "nft: inet own input: rule 2 of input | nft delete rule inet own input handle 2"
    assert find(host, 6443) is None
    assert find(nft([TO_KUBELET, DROP], family="ip6")) is None
    assert find(nft([TO_KUBELET, DROP], family="ip6"), version=6)


def test_a_chain_that_iptables_shows_too_is_judged_once() -> None:
    """And a chain of its name is nftables' own where there is no iptables."""
    host = nft([TO_KUBELET, DROP], family="ip")
    for key, answer in list(host.answers.items()):
        host.answers[key.replace(" own input", " filter INPUT")] = str(answer).replace('"own"', '"filter"').replace('"input", "type"', '"INPUT", "type"')  # fmt: skip
    assert find(host)
    host.programs.add("iptables")
    host.answers["iptables -w 10 -S"] = "-P INPUT ACCEPT\n"
    assert find(host) is None


@pytest.mark.parametrize(
    ("rules", "is_barred"),
    [
        ([], True),
        ([[when(STATE, ["established", "related"], "in"), ACCEPT], [when({"meta": {"key": "iif"}}, "lo"), ACCEPT]], True),
        ([[when({"meta": {"key": "l4proto"}}, {"set": ["icmp", "ipv6-icmp"]}), ACCEPT], [PODS, ACCEPT]], True),
        ([[NODES, when(DPORT, {"set": [{"range": [2379, 2380]}, 6443, 10250]}), ACCEPT]], False),
        ([[when(DPORT, {"set": [22, {"range": [30000, 32767]}]}), ACCEPT]], True),
        ([[when(DPORT, 1024, ">"), ACCEPT]], False),
        ([[when(DPORT, "@allowed"), ACCEPT]], False),
        ([[when(SADDR, "@nodes"), ACCEPT]], False),
        ([[STATES]], False),
        ([[{"xt": {"type": "match", "name": "conntrack"}}, ACCEPT]], False),
        ([[{"jump": {"target": "gone"}}]], False),
        ([[{"vmap": {"key": STATE, "data": "@verdicts"}}]], False),
        ([["odd"]], False),
    ],
)  # fmt: skip
def test_a_policy_of_nftables(rules: list[list[Any]], is_barred: bool) -> None:
    said = find(nft(*rules, policy="drop", own=[[NODES, ACCEPT]]), inside=("10.244.0.0/16",))
    assert bool(said) is is_barred, said
    if said:
        assert POLICY in said


@pytest.mark.parametrize(
    ("rule", "is_barred"),
    [
        ([NODES, TO_KUBELET, DROP], False),
        ([when(SADDR, {"prefix": {"addr": "10.77.0.0", "len": 24}}, "!="), TO_KUBELET, DROP], False),
        ([when(IIFNAME, "eth0"), TO_KUBELET, DROP], False),
        ([{"limit": {"rate": 3}}, TO_KUBELET, DROP], False),
        ([when(STATE, "invalid"), DROP], False),
        ([when({"payload": {"protocol": "udp", "field": "dport"}}, 10250), DROP], False),
        ([when(STATE, {"set": ["established", "related"]}, "!="), DROP], True),
        ([{"vmap": {"key": DPORT, "data": {"set": [[22, ACCEPT], [10250, DROP]]}}}], True),
        ([{"vmap": {"key": DPORT, "data": "@verdicts"}}], False),
        ([{"vmap": {"key": STATE, "data": "@verdicts"}}], False),
        ([{"reject": {"type": "tcp reset"}}], True),
        ([{"goto": {"target": "own"}}], True),
    ],
)
def test_one_rule_of_nftables(rule: list[Any], is_barred: bool) -> None:
    assert bool(find(nft(rule, own=[[TO_KUBELET, DROP]]))) is is_barred


def test_both_variants_of_iptables() -> None:
    """The older one's tables are asked for only where the kernel has them: the question alone would make them."""
    host = tables("-P INPUT ACCEPT")
    host.programs |= {"iptables-legacy", "iptables-nft"}
    host.answers["iptables-legacy -w 10 -S"] = "-P INPUT DROP\n"
    assert find(host) is None
    host.files["/proc/net/ip_tables_names"] = b"nat\nfilter\n"
    assert "iptables-legacy" in (find(host) or "")
    host.answers["iptables-nft -w 10 -S"] = "-P INPUT DROP\n"
    assert "the chain INPUT of iptables-nft has the policy DROP" in (find(host) or "")


def test_what_is_named_is_what_ends_them_all() -> None:
    """Rules before it drop some packets too, as kube-proxy's and ufw's do."""
    some = "-A own ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP"
    jump = ("-N own", "-A INPUT -j own", some)
    assert "policy DROP" in (find(tables("-P INPUT DROP", *jump)) or "")
    assert "-A INPUT -j REJECT |" in (find(tables("-P INPUT ACCEPT", *jump, "-A INPUT -j REJECT")) or "")
    assert "-A own -j DROP |" in (find(tables("-P INPUT DROP", *jump, "-A own -j DROP")) or "")
    is_local = ("-A own -m addrtype --dst-type LOCAL -j RETURN", "-A own -j DROP")
    assert "policy DROP" in (find(tables("-P INPUT DROP", *jump, *is_local)) or "")
