"""What a pod does not reach is walked back to the first broken link, which is named once with all that is lost by it."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from kubeup.machine.host import CommandResult
from kubeup.network import pod_walks
from kubeup.network.pod_questions import Question
from kubeup.network.pod_view import Way, Ways
from kubeup.network.pod_walks import Backend, Goal, Neighbour, Packet, Walk
from kubeup.trouble import Trouble
from tests.fake_host import FakeHost
from tests.unit.network.test_pod_view import API, DNS, HERE, NAME, PLACE, SERVER, THERE, make_host

# ---- what every wait and every doctor asks


@pytest.mark.parametrize(
    ("reached", "forward", "words", "remedy"),
    [
        (
            (API, SERVER),
            "DROP",
            "is dropped here (the chain FORWARD of iptables has the policy DROP",
            "iptables -S FORWARD",
        ),
        (
            (API, SERVER),
            "ACCEPT",
            "this node itself reaches it, so what pods send, or its answer, is dropped here",
            "iptables -S FORWARD",
        ),
        ((), "ACCEPT", "it reaches nothing that was asked, and this node does", "iptables -S INPUT"),
        (
            (HERE, SERVER),
            "ACCEPT",
            "kube-proxy's rules here do not lead there",
            "crictl logs $(crictl ps -q --name kube-proxy)",
        ),
        ((HERE, SERVER, API), "ACCEPT", "kube-proxy's rules", "kube-proxy"),
    ],
)
def test_the_link_that_broke_is_named(reached: tuple[Way, ...], forward: str, words: str, remedy: str) -> None:
    cut = pod_walks.find_cut(make_host(*reached, forward=forward), PLACE, ways=Ways(NAME, (DNS, API), (HERE, SERVER)))
    assert cut is not None
    assert cut.what.startswith("a pod on this node does not reach the cluster's DNS at 10.96.0.10:53")
    assert ("the API's Service at 10.96.0.1:443" in str(cut)) is (API not in reached)
    assert words in cut.cause and remedy in f"{cut.remedy} {cut.cause}"


def test_the_rule_that_drops_is_named() -> None:
    """An API server that only pods do not reach is no fault of kube-proxy's."""
    host = make_host(DNS, HERE)
    host.answers["iptables -w 10 -S INPUT"] = (
        "-P INPUT ACCEPT\n-A INPUT -p tcp -m tcp --dport 6443 -j REJECT --reject-with icmp-port-unreachable\n"
    )
    cut = pod_walks.find_cut(host, PLACE, ways=Ways(NAME, (DNS, API), (HERE, SERVER)))
    assert cut is not None
    assert "iptables: -A INPUT -p tcp -m tcp --dport 6443 -j REJECT" in cut.cause
    assert cut.remedy.startswith("if nothing needs that rule: iptables -D INPUT -p tcp -m tcp --dport 6443 -j REJECT")


def test_dns_pods_beyond_the_node_are_the_way_between_nodes() -> None:
    cut = pod_walks.find_cut(make_host(API, SERVER), PLACE, ways=Ways(NAME, (DNS, API), (THERE, SERVER)))
    assert cut is not None
    assert "here, on the way, or over there" in cut.cause and "kb doctor" in cut.remedy


def test_a_node_that_reaches_it_no_more_than_its_pods() -> None:
    """Then the pod's way is not what is broken."""
    host = make_host()
    host.answers[sys.executable] = lambda argv: CommandResult(argv, 0, json.dumps([""] * len(json.loads(argv[-1]))))
    cut = pod_walks.find_cut(host, PLACE, ways=Ways(NAME, (DNS,), (HERE, THERE)))
    assert cut is not None
    assert cut.cause.startswith("neither it nor this node reaches CoreDNS on cp1 at 10.244.0.5:53 nor CoreDNS on cp2")


def test_kube_proxy_s_own_trouble_is_the_cause() -> None:
    rules = Trouble("kube-proxy runs, but its rules are gone", "a flush", "crictl stop it")
    cut = pod_walks.find_cut(make_host(HERE), PLACE, ways=Ways(NAME, (DNS,), (HERE,)), find_lost_rules=lambda: rules)
    assert cut is not None and cut.cause == str(rules) and cut.remedy == "crictl stop it"


def test_a_policy_that_kb_s_rules_make_up_for_is_no_cut() -> None:
    host = make_host(DNS, API, HERE, SERVER, forward="DROP")
    assert pod_walks.find_cut(host, PLACE, ways=Ways(NAME, (DNS, API), (HERE, SERVER))) is None


def test_a_missing_rule_of_kb_s_is_told() -> None:
    cut = pod_walks.find_cut(make_host(forward="DROP", has_chain=False), PLACE, ways=Ways(NAME, (DNS,), (HERE,)))
    assert cut is not None and "and no rule KB-FORWARD" in cut.cause


def test_a_pod_that_ended_meanwhile_tells_nothing() -> None:
    host = make_host()
    host.answers["nsenter"] = CommandResult((), 1, stderr="cannot open /run/netns/x")
    assert pod_walks.find_cut(host, PLACE, ways=Ways(NAME, (DNS,))) is None


# ---- what a new pod gets

POD, OTHER = "10.244.0.9", "10.244.1.9"
W1 = Neighbour("w1", ("10.0.0.12",), OTHER, ("10.244.1.0/24",))
ECHO, TOUCH, KUBELET = W1.echo, W1.touch, W1.kubelets[0]
UDP, TCP = Question("udp", "10.96.0.10", 53), Question("dns-tcp", "10.96.0.10", 53)
UDP_HERE, TCP_HERE = Question("udp", "10.244.0.5", 53), Question("dns-tcp", "10.244.0.5", 53)
GOALS = (
    Goal("the DNS by UDP", UDP, (Backend("CoreDNS by UDP", UDP_HERE, "cp1", is_here=True),)),
    Goal("the DNS by TCP", TCP, (Backend("CoreDNS by TCP", TCP_HERE, "cp1", is_here=True),)),
)
WELL = {ECHO: "1500 1500", TOUCH: "refused", UDP: "00", TCP: "00", UDP_HERE: "00", TCP_HERE: "00"}
AT_HOME = {**WELL, KUBELET: "open", Question("echo", POD): "1500 1500"}


def make_walk(*silent: Question, host: FakeHost, unseen: tuple[Question, ...] = (), **more: object) -> Walk:
    """silent: what does not answer the pod; unseen: what does not answer this node."""
    from_pod = {**WELL, **dict.fromkeys(silent, "")}
    from_node = {**AT_HOME, **dict.fromkeys(unseen, "")}
    walk = Walk(host, (POD,), GOALS, (W1,), from_pod, from_node, is_own_network=True)
    return dataclasses.replace(walk, **more)  # type: ignore[arg-type]


@pytest.fixture
def host() -> FakeHost:
    host = FakeHost(programs={"iptables"})
    host.answers["iptables"] = host.answers["nft"] = ""
    host.answers["ip -json -4 route show match"] = json.dumps([{"dst": "default"}, {"dst": "10.244.1.0/24"}])
    return host


def only(walk: Walk) -> Trouble:
    (trouble,), unproven = walk.judge()
    assert unproven == []
    return trouble


def test_nothing_is_told_of_a_pod_that_is_well(host: FakeHost) -> None:
    assert make_walk(host=host).judge() == ([], [])


def test_dns_by_tcp_alone(host: FakeHost) -> None:
    host.answers["iptables -w 10 -S FORWARD"] = "-P FORWARD ACCEPT\n-A FORWARD -p tcp -m tcp --dport 53 -j DROP\n"
    found = only(make_walk(TCP, TCP_HERE, host=host))
    assert found.what == "a pod on this node does not reach the DNS by TCP"
    assert found.cause == "this node drops it (iptables: -A FORWARD -p tcp -m tcp --dport 53 -j DROP)"


def test_what_is_lost_by_one_cause_is_one_trouble(host: FakeHost) -> None:
    host.answers["iptables -w 10 -S FORWARD"] = "-A FORWARD -j DROP\n"
    found = only(make_walk(UDP, UDP_HERE, TCP, TCP_HERE, ECHO, TOUCH, host=host))
    assert found.what == "a pod on this node does not reach pods of node w1 nor the DNS by UDP nor the DNS by TCP"


def test_a_backend_that_does_not_answer_behind_a_service_that_does(host: FakeHost) -> None:
    found = only(make_walk(UDP_HERE, host=host))
    assert "CoreDNS by UDP, to which one of 1 questions to the DNS by UDP goes" in found.what


@pytest.mark.parametrize(
    ("fate", "unseen", "says", "remedy"),
    [
        ("stayed", (), "does not leave this machine", "iptables -S FORWARD"),
        ("answered", (), "the answer comes back to this machine, and is dropped here", "iptables -S FORWARD"),
        ("left", (), "leaves this machine, and nothing comes back", "on that machine: kb doctor --probe-pods"),
        ("", (), "is lost on the way, where only machines' addresses pass, or over there", "on that machine"),
        ("left", (KUBELET, ECHO), "this node does not reach that machine either, at 10.0.0.12:10250", "ping 10.0.0.12"),
    ],
)
def test_the_way_to_another_node(
    host: FakeHost, fate: str, unseen: tuple[Question, ...], says: str, remedy: str
) -> None:
    found = only(make_walk(ECHO, TOUCH, host=host, unseen=unseen, fates={OTHER: fate} if fate else {}))
    assert found.what == "a pod on this node does not reach pods of node w1"
    assert says in found.cause and remedy in found.remedy


def test_a_route_that_is_gone(host: FakeHost) -> None:
    """In kb's network each node has one to the pods of every other."""
    host.answers["ip -json -4 route show match"] = json.dumps([{"dst": "default"}])
    found = only(make_walk(ECHO, TOUCH, host=host, unseen=(ECHO, TOUCH), fates={OTHER: "left"}))
    assert found.cause == "this node has no route to 10.244.1.0/24, which kb-routes.service keeps"
    assert "no route" not in only(make_walk(ECHO, TOUCH, host=host, is_own_network=False)).cause


def test_large_packets_that_get_lost(host: FakeHost) -> None:
    found = only(make_walk(host=host, from_pod={**WELL, ECHO: "1400 1500"}))
    assert (
        found.what
        == "packets of 1500 bytes are lost between a pod on this node and pods of node w1, and those of 1400 pass"
    )
    assert "smaller mtu" in found.remedy
    host.answers["iptables -w 10 -S FORWARD"] = "-A FORWARD -m length --length 1401:65535 -j DROP\n"
    found = only(make_walk(host=host, from_pod={**WELL, ECHO: "1400 1500"}))
    assert "--length 1401:65535" in found.cause and found.remedy.startswith(
        "if nothing needs that rule: iptables -D FORWARD"
    )


def test_icmp_that_is_not_answered_proves_nothing(host: FakeHost) -> None:
    troubles, unproven = make_walk(ECHO, host=host).judge()
    assert troubles == []
    assert unproven == [
        "whether full-size packets pass between pods here and pods of node w1: they answer TCP, and no ICMP echo"
    ]


def test_a_refusal_may_be_the_firewall_s_own(host: FakeHost) -> None:
    host.answers["iptables -w 10 -S FORWARD"] = (
        "-A FORWARD -d 10.244.1.0/24 -j REJECT --reject-with icmp-port-unreachable\n"
    )
    assert "pods of node w1" in only(make_walk(ECHO, host=host)).what


def test_a_pod_that_its_own_node_does_not_reach(host: FakeHost) -> None:
    own = Question("echo", POD)
    found = only(make_walk(host=host, unseen=(own,)))
    assert found.what == f"this node does not reach its own pod at {POD}, so the kubelet's probes of pods fail"
    assert f"ip route get {POD}" in found.remedy
    touched = {**AT_HOME, own: "", Question("touch", POD, 9): "refused"}
    assert make_walk(host=host, from_node=touched).judge() == ([], [])
    host.answers["iptables -w 10 -S OUTPUT"] = "-A OUTPUT -d 10.244.0.0/24 -j DROP\n"
    assert "this node drops it" in only(make_walk(host=host, from_node=touched)).cause


@pytest.mark.parametrize(
    ("rule", "is_met"),
    [
        ("-A FORWARD -j DROP", True),
        ("-A FORWARD -s 10.244.0.0/16 -d 10.244.1.9/32 -p tcp -m tcp --dport 1:100 -m comment --comment \"a b\" -j REJECT --reject-with x", True),
        ("-A FORWARD -m conntrack --ctstate NEW,INVALID -j DROP", True),
        ("-A FORWARD -m conntrack --ctstate INVALID -j DROP", False),
        ("-A FORWARD -p udp -j DROP", False),
        ("-A FORWARD -p tcp -m tcp --dport 80 -j DROP", False),
        ("-A FORWARD -p tcp -m tcp --sport 53 -j DROP", False),
        ("-A FORWARD -s 10.99.0.0/16 -j DROP", False),
        ("-A FORWARD ! -s 10.99.0.0/16 -j DROP", False),
        ("-A FORWARD -m length --length 1400:65535 -j DROP", False),
        ("-A FORWARD -m mark --mark 0x1/0x1 -j DROP", False),
        ("-A FORWARD -j ACCEPT", False),
        ("-A FORWARD -j KUBE-FORWARD", False),
        ("-P FORWARD DROP", False),
        ("-A FORWARD \"-j DROP", False),
    ],
)  # fmt: skip
def test_only_a_rule_that_meets_the_packet_is_named(host: FakeHost, rule: str, is_met: bool) -> None:
    host.answers["iptables -w 10 -S FORWARD"] = f"{rule}\n"
    packet = Packet(POD, OTHER, "tcp", 53)
    assert pod_walks.find_rule(host, "FORWARD", packet=packet) == (f"iptables: {rule}" if is_met else "")


def test_each_family_has_its_own_rules(host: FakeHost) -> None:
    host.answers["ip6tables -w 10 -S FORWARD"] = "-A FORWARD -p ipv6-icmp -j DROP\n"
    host.answers["iptables -w 10 -t raw -S PREROUTING"] = (
        "-P PREROUTING ACCEPT\n-A PREROUTING -p udp -m udp --dport 53 -j DROP\n"
    )
    asks = Packet("10.244.0.9", "10.96.0.10", "udp", 53)
    assert pod_walks.find_rule(host, "raw/PREROUTING", packet=asks) == (
        "iptables: -t raw -A PREROUTING -p udp -m udp --dport 53 -j DROP"
    )
    found = pod_walks.find_rule(host, "FORWARD", packet=Packet("fd00::9", "fd00:1::9", "icmp"))
    assert found == "ip6tables: -A FORWARD -p ipv6-icmp -j DROP"


@pytest.mark.parametrize("program", ["iptables", "nft"])
def test_a_firewall_that_does_not_take_in_what_pods_send_to_this_machine(program: str) -> None:
    """ufw on a control plane: no rule drops them, the policy does; and the machine's own packets come by lo."""
    host = make_host(DNS, HERE)
    address = SERVER.address
    host.answers["ip -o addr show scope global"] = f"2: eth0    inet {address}/24 brd 10.0.0.255 scope global eth0\n"
    if program == "iptables":
        host.answers["iptables -S INPUT"] = "-P INPUT DROP\n-A INPUT -i lo -j ACCEPT\n"
        host.programs.add("iptables")  # which has its chains in nftables
        chain = {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "policy": "drop"}
        host.answers["nft -j list chains"] = json.dumps({"nftables": [{"chain": chain}]})
        says = "the chain INPUT of iptables has the policy DROP"
    else:
        chain = {"family": "inet", "table": "own", "name": "input", "hook": "input", "policy": "drop"}
        host.answers["nft -j list chains"] = json.dumps({"nftables": [{"chain": chain}]})
        says = "inet own input has the policy drop"
    cut = pod_walks.find_cut(host, PLACE, ways=Ways(NAME, (DNS, API), (HERE, SERVER)))
    assert cut is not None and cut.what.startswith("a pod on this node does not reach the API's Service")
    assert "it is on this machine, which takes in only what its firewall names" in cut.cause and cut.cause.endswith(
        f": {says}"
    )
    assert "ufw allow from" in cut.remedy
    host.answers["ip -o addr show scope global"] = ""
    cut = pod_walks.find_cut(host, PLACE, ways=Ways(NAME, (DNS, API), (HERE, SERVER)))
    assert cut is not None and "takes in" not in cut.cause
