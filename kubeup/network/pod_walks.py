"""Judges what a new pod on this node reaches, and walks back from each way that is cut to its first broken link.

The same is asked from the pod and from this node, all at once; where the two differ is where the link is broken. Each verdict names the cause
once, with everything that is lost by it. This module only looks, and makes no pod (doctor/looks/pod_ways.py does).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Optional, Union

from kubeup.addresses import join_host_port
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.network import forwarding, pod_network
from kubeup.network.pod_questions import Question, ask
from kubeup.network.pod_view import Way, Ways
from kubeup.network.step_aside import parse_ip_output
from kubeup.trouble import Trouble

Answers = Mapping[Question, str]
KUBELET_PORT = 10250
CLOSED_PORT = 9
"""Nothing listens there in a pod that only waits: its refusal is an answer."""
_UNREACHED = "a pod on this node does not reach {}"
_SEE_RULES = "iptables -S FORWARD, iptables -S INPUT and nft list ruleset show the rule"


@frozen
class Backend:
    """What a Service leads to. node: where it runs; "" if unknown. is_here: on this node."""

    what: str
    question: Question
    node: str = ""
    is_here: bool = False


@frozen
class Goal:
    """A Service that every pod needs."""

    what: str
    question: Question
    behind: tuple[Backend, ...]
    if_none: tuple[str, str] = (
        "what is behind it is not known here",
        "see whether it runs (kubectl -n kube-system get pods -o wide), and what kube-proxy says: crictl logs $(crictl ps -q --name kube-proxy)",
    )
    """(cause, remedy) if there is no backend."""
    explain: Callable[[], Optional[Trouble]] = lambda: None
    """Why nothing can be at that address, if there is a reason."""


@frozen
class Neighbour:
    """Another node and the address of the pod made on it. cidrs: of the pods on it."""

    name: str
    addresses: tuple[str, ...]
    pod: str
    cidrs: tuple[str, ...] = ()

    @property
    def echo(self) -> Question:
        return Question("echo", self.pod)

    @property
    def touch(self) -> Question:
        return Question("touch", self.pod, CLOSED_PORT)

    @property
    def kubelets(self) -> tuple[Question, ...]:
        return tuple(Question("touch", address, KUBELET_PORT) for address in self.addresses)


@frozen
class Lost:
    """A way that is cut. saying: the sentence, with {} for the places that are lost by the same cause."""

    saying: str
    place: str
    cause: str
    remedy: str


@frozen
class Walk:
    """Everything that was asked, and what tells why something has not answered.

    pods: the addresses of the pod on this node. from_pod, from_node: the answers. find_lost_rules: kube-proxy's trouble on this node."""

    host: Host
    pods: tuple[str, ...]
    goals: tuple[Goal, ...]
    neighbours: tuple[Neighbour, ...]
    from_pod: Answers
    from_node: Answers
    find_lost_rules: Callable[[], Optional[Trouble]] = lambda: None
    is_own_network: bool = False
    fates: Mapping[str, str] = field(default_factory=dict)
    """Address of a neighbour's pod that did not answer -> what became of the packets on this machine: stayed | left | answered."""

    def judge(self) -> tuple[list[Trouble], list[str]]:
        """What is cut, each cause once, and what could not be proven."""
        lost: list[Lost] = []
        unproven: list[str] = []
        for neighbour in self.neighbours:
            verdict = self._judge_neighbour(neighbour)
            if isinstance(verdict, str):
                unproven.append(verdict)
            else:
                lost += verdict
        cut_off = {one.place.removeprefix("pods of node "): one for one in lost if one.saying == _UNREACHED}
        for goal in self.goals:
            lost += self._judge_goal(goal, cut_off)
        lost += [found for pod in self.pods if (found := self._judge_way_in(pod))]
        return merge(lost), unproven

    # ---- Services

    def _judge_goal(self, goal: Goal, cut_off: Mapping[str, Lost]) -> Iterator[Lost]:
        if self.from_pod.get(goal.question):
            yield from self._judge_silent_backends(goal, cut_off)
            return
        silent = [one for one in goal.behind if not self.from_pod.get(one.question)]
        by_node = [one for one in silent if self.from_node.get(one.question)]
        same = next((cut_off[one.node] for one in silent if one.node in cut_off), None)
        if not any(self.from_pod.values()) and any(self.from_node.values()):
            cause, remedy = self._explain_nothing()
        elif rule := self._find_rule(goal.question):
            cause, remedy = _say_dropped(rule), _say_removal(rule)
        elif (why := goal.explain()) is not None:
            cause, remedy = str(why), why.remedy
        elif not goal.behind:
            drops = forwarding.describe_drops(self.host)
            cause, remedy = self._say_stays("what pods send is dropped here", drops) if drops else goal.if_none
        elif not silent:
            cause, remedy = self._explain_service()
        elif same is not None:
            cause, remedy = same.cause, same.remedy
        elif by_node:
            cause, remedy = self._explain_drop(by_node[0].question, is_here=by_node[0].is_here)
        else:
            names = " nor ".join(one.what for one in silent)
            cause = f"neither it nor this node reaches {names}"
            remedy = "on a control plane: kb doctor, and kubectl -n kube-system get pods -o wide"
        yield Lost(_UNREACHED, goal.what, cause, remedy)

    def _judge_silent_backends(self, goal: Goal, cut_off: Mapping[str, Lost]) -> Iterator[Lost]:
        """A Service that answered, but leads to a place that does not: as many questions get lost as there are such places."""
        for one in goal.behind:
            if not self.from_pod.get(one.question) and self.from_node.get(one.question) and one.node not in cut_off:
                cause, remedy = self._explain_drop(one.question, is_here=one.is_here)
                share = f", to which one of {len(goal.behind)} questions to {goal.what} goes"
                yield Lost(_UNREACHED, one.what + share, cause, remedy)

    def _explain_nothing(self) -> tuple[str, str]:
        rules = (self._find_rule(question) for question, answer in self.from_node.items() if answer)
        rule = next(filter(None, rules), "")
        if rule:
            return _say_dropped(rule), _say_removal(rule)
        cause = "it reaches nothing that was asked, and this node does: what pods send, or its answer, is dropped here"
        return self._say_stays(cause, forwarding.describe_drops(self.host))

    def _explain_service(self) -> tuple[str, str]:
        rules = self.find_lost_rules()
        if rules is not None:
            return str(rules), rules.remedy
        cause = "it reaches what is behind that Service: kube-proxy's rules here do not lead there"
        return cause, "see what kube-proxy says: crictl logs $(crictl ps -q --name kube-proxy)"

    def _explain_drop(self, question: Question, *, is_here: bool) -> tuple[str, str]:
        """This node reaches what the pod does not."""
        rule = self._find_rule(question)
        if rule:
            return _say_dropped(rule), _say_removal(rule)
        barred = self._explain_input(question)
        if barred:
            return barred
        drops = forwarding.describe_drops(self.host)
        if drops or is_here:
            return self._say_stays(
                "this node itself reaches it, so what pods send, or its answer, is dropped here", drops
            )
        return (
            "this node itself reaches it, so what is sent with pods' addresses is lost: here, on the way, or over there",
            f"{_SEE_RULES}; on that machine: kb doctor; between the two, let packets with pods' addresses pass",
        )

    def _explain_input(self, question: Question) -> Optional[tuple[str, str]]:
        """A firewall that takes in nothing but what it is told to: this machine's own packets come by another way."""
        version = 6 if ":" in question.address else 4
        own = self.host.query(["ip", "-o", "addr", "show", "scope", "global"], timeout_s=5).stdout
        drops = forwarding.describe_input_drops(self.host, version) if f" {question.address}/" in own else ""
        if not drops:
            return None
        source = next((pod for pod in self.pods if (":" in pod) == (version == 6)), "")
        cause = f"it is on this machine, which takes in only what its firewall names, and not pods' addresses{f' ({source})' if source else ''}: {drops}"
        return (
            cause,
            f"let the pods' subnet in, as your firewall does it (ufw allow from SUBNET; nft or iptables -I INPUT -s SUBNET -j ACCEPT); {_SEE_RULES}",
        )

    def _say_stays(self, cause: str, drops: str) -> tuple[str, str]:
        return cause + (
            f" ({drops})" if drops else ""
        ), f"let it pass: {_SEE_RULES}; sysctl net.ipv4.ip_forward has to be 1"

    def _find_rule(self, question: Question) -> str:
        """The rule of this node that drops what a pod sends there, or the answer; "" if none is seen to."""
        source = next((pod for pod in self.pods if (":" in pod) == (":" in question.address)), "")
        protocol = {"udp": "udp", "echo": "icmp"}.get(question.kind, "tcp")
        packet = Packet(source, question.address, protocol, question.port)
        there = find_rule(self.host, *_BEFORE, "FORWARD", "INPUT", packet=packet)
        return there or find_rule(self.host, *_BEFORE, "FORWARD", "OUTPUT", packet=packet.back())

    # ---- other nodes

    def _judge_neighbour(self, neighbour: Neighbour) -> Union[str, list[Lost]]:
        """What is cut; a text if it could not be proven."""
        came_back = self.from_pod.get(neighbour.echo, "")
        if came_back:
            best, wanted = map(int, came_back.split())
            return [self._explain_size(neighbour, best, wanted=wanted)] if best < wanted else []
        place = f"pods of node {neighbour.name}"
        cause, remedy = self._explain_neighbour(neighbour)
        if self.from_pod.get(neighbour.touch) and not self._find_rule(neighbour.echo):
            return f"whether full-size packets pass between pods here and {place}: they answer TCP, and no ICMP echo"
        return [Lost(_UNREACHED, place, cause, remedy)]

    def _explain_neighbour(self, neighbour: Neighbour) -> tuple[str, str]:
        rule = self._find_rule(neighbour.echo)
        if rule:
            return _say_dropped(rule), _say_removal(rule)
        if self.is_own_network and not self._has_route(neighbour):
            cidrs = " and ".join(neighbour.cidrs) or neighbour.pod
            keeper = pod_network.UNIT
            return (
                f"this node has no route to {cidrs}, which {keeper} keeps",
                f"systemctl restart {keeper}; what it says: journalctl -u {keeper} -n 20",
            )
        if not any(self.from_node.get(one) for one in neighbour.kubelets):
            where = " nor ".join(join_host_port(one.address, one.port) for one in neighbour.kubelets)
            return (
                f"this node does not reach that machine either, at {where}",
                f"see whether it runs and what is between: ping {neighbour.addresses[0] if neighbour.addresses else neighbour.name}",
            )
        fate = self.fates.get(neighbour.pod, "")
        drops = forwarding.describe_drops(self.host) if fate != "left" else ""
        if fate == "answered":
            return self._say_stays("the answer comes back to this machine, and is dropped here", drops)
        if fate == "stayed" or drops:
            return self._say_stays("what pods send there does not leave this machine", drops)
        return (
            f"what pods send there {'leaves this machine, and nothing comes back: it' if fate else ''} is lost on the way, where only "
            "machines' addresses pass, or over there",
            "on that machine: kb doctor --probe-pods; between the two, let packets with pods' addresses pass, or the tunnel's UDP port "
            "(security group, source and destination check, firewall)",
        )

    def _has_route(self, neighbour: Neighbour) -> bool:
        """Whether a route other than the default one leads to the pod; True if that cannot be told."""
        version = "-6" if ":" in neighbour.pod else "-4"
        answer = self.host.query(["ip", "-json", version, "route", "show", "match", neighbour.pod])
        ways = [str(row.get("dst", "")) for row in parse_ip_output(answer.stdout)] if answer.ok else ["?"]
        return any(way != "default" for way in ways)

    def _explain_size(self, neighbour: Neighbour, best: int, *, wanted: int) -> Lost:
        source = next((pod for pod in self.pods if (":" in pod) == (":" in neighbour.pod)), "")
        packet = Packet(source, neighbour.pod, "icmp", size=wanted)
        rule = find_rule(self.host, "FORWARD", packet=packet) or find_rule(self.host, "FORWARD", packet=packet.back())
        cause = (
            _say_dropped(rule)
            if rule
            else "what is between the machines carries less than the pods' interfaces, and says nothing"
        )
        remedy = (
            _say_removal(rule)
            if rule
            else f"let packets of {wanted} bytes pass between the machines, or give pods a smaller mtu in /etc/cni/net.d on every node (at most "
            "what passes), and make the pods again"
        )
        saying = f"packets of {wanted} bytes are lost between a pod on this node and {{}}, and those of {best} pass"
        return Lost(saying, f"pods of node {neighbour.name}", cause, remedy)

    # ---- into the pod

    def _judge_way_in(self, pod: str) -> Optional[Lost]:
        if self.from_node.get(Question("echo", pod)):
            return None
        packet = Packet("", pod, "icmp")
        rule = find_rule(self.host, "OUTPUT", packet=packet) or find_rule(self.host, "INPUT", packet=packet.back())
        if not rule and self.from_node.get(Question("touch", pod, CLOSED_PORT)):
            return None  # it answers TCP, which is what the kubelet's probes use
        saying = "this node does not reach its own pod {}, so the kubelet's probes of pods fail"
        if rule:
            return Lost(saying, f"at {pod}", _say_dropped(rule), _say_removal(rule))
        return Lost(
            saying,
            f"at {pod}",
            "nothing comes back from it",
            f"see where it is sent, and what drops it: ip route get {pod}; iptables -S OUTPUT; nft list ruleset",
        )


def list_questions(
    pods: Sequence[str], *, goals: Sequence[Goal], neighbours: Sequence[Neighbour]
) -> tuple[list[Question], list[Question]]:
    """What to ask from the pod, and from this node."""
    behind = [one.question for goal in goals for one in goal.behind]
    others = [question for one in neighbours for question in (one.echo, one.touch)]
    from_pod = [*(goal.question for goal in goals), *behind, *others]
    kubelets = [question for one in neighbours for question in one.kubelets]
    own = [question for pod in pods for question in (Question("echo", pod), Question("touch", pod, CLOSED_PORT))]
    return list(dict.fromkeys(from_pod)), list(dict.fromkeys((*behind, *others, *kubelets, *own)))


def find_cut(
    host: Host, namespace: Path, *, ways: Ways, find_lost_rules: Callable[[], Optional[Trouble]] = lambda: None
) -> Optional[Trouble]:
    """Why a Service that every pod needs is not reached from a namespace; None if each is, or if nothing can be asked there. From this node
    more is asked only then."""
    goals = tuple(_make_goal(way, ways.behind) for way in ways.services)
    inside, outside = list_questions((), goals=goals, neighbours=())
    from_pod = ask(host, namespace, questions=inside, name=ways.name)
    missing = tuple(goal for goal in goals if from_pod is not None and not from_pod[goal.question])
    if from_pod is None or not missing:
        return None
    from_node = ask(host, None, questions=outside, name=ways.name) if outside else {}
    known = from_node if from_node is not None else dict.fromkeys(outside, "as far as is known")
    first, *rest = Walk(host, (), missing, (), from_pod, known, find_lost_rules).judge()[0]
    return dataclasses.replace(first, cause="; ".join([first.cause, *map(str, rest)]))


def _make_goal(way: Way, behind: Sequence[Way]) -> Goal:
    same = [one for one in behind if one.kind == way.kind]
    backends = tuple(Backend(str(one), Question(one.kind, one.address, one.port), is_here=one.is_here) for one in same)
    return Goal(str(way), Question(way.kind, way.address, way.port), backends)


def merge(lost: Iterable[Lost]) -> list[Trouble]:
    """One trouble for each cause, with all that is lost by it."""
    causes: dict[tuple[str, str], dict[str, dict[str, None]]] = {}
    for one in lost:
        causes.setdefault((one.cause, one.remedy), {}).setdefault(one.saying, {})[one.place] = None
    return [
        Trouble(", and ".join(saying.format(" nor ".join(places)) for saying, places in found.items()), cause, remedy)
        for (cause, remedy), found in causes.items()
    ]


# ---- rules


@frozen
class Packet:
    """source: "" for an address of this node's. protocol: tcp | udp | icmp. port, size: 0 if any."""

    source: str
    destination: str
    protocol: str
    port: int = 0
    size: int = 0
    is_answer: bool = False

    def back(self) -> Packet:
        return dataclasses.replace(self, source=self.destination, destination=self.source, is_answer=True)


def find_rule(host: Host, *chains: str, packet: Packet) -> str:
    """`iptables: -A FORWARD -p tcp -j DROP`: the rule in one of these chains that drops such a packet, as far as its words tell; "" if there
    is none. Chains to which these lead are not followed. chains: of the table filter, or `raw/PREROUTING`."""
    program = "ip6tables" if ":" in packet.destination + packet.source else "iptables"
    for table, _, chain in (name.rpartition("/") for name in chains):
        words = ["-t", table] if table else []
        for line in host.query([program, "-w", "10", *words, "-S", chain]).stdout.splitlines():
            if line.startswith("-A ") and _drops(line, packet):
                return f"{program}: {' '.join([*words, line])}"
    return ""


_BEFORE = ("raw/PREROUTING", "mangle/PREROUTING", "mangle/FORWARD")
"""Chains that a packet meets before kube-proxy's rules give it another destination, or beside them."""


def _say_dropped(rule: str) -> str:
    return f"this node drops it ({rule})"


def _say_removal(rule: str) -> str:
    return f"if nothing needs that rule: {rule.replace(': ', ' ', 1).replace('-A ', '-D ', 1)}; else let pods' packets pass before it"


_WORDS_OF_NO_MATTER = ("-m", "--comment", "--reject-with", "-i", "-o")


def _drops(rule: str, packet: Packet) -> bool:
    try:
        words = shlex.split(rule)[2:]
    except ValueError:
        return False
    told = dict(zip(words[::2], words[1::2]))
    if "!" in words or len(words) % 2 or told.pop("-j", "") not in ("DROP", "REJECT"):
        return False
    return all(_fits(name, value, packet=packet) for name, value in told.items() if name not in _WORDS_OF_NO_MATTER)


def _fits(name: str, value: str, *, packet: Packet) -> bool:
    """Whether such a packet meets one condition of a rule. What is not known here is not met."""
    if name in ("-s", "-d"):
        address = packet.source if name == "-s" else packet.destination
        return not address or ipaddress.ip_address(address) in ipaddress.ip_network(value, strict=False)
    if name == "-p":
        return value in (packet.protocol, "all") or (value == "ipv6-icmp" and packet.protocol == "icmp")
    if name in ("--dport", "--sport"):
        is_own = (name == "--sport") == packet.is_answer
        return is_own and bool(packet.port) and _is_within(packet.port, value)
    if name == "--length":
        return bool(packet.size) and _is_within(packet.size, value)
    if name in ("--ctstate", "--state"):
        return ("ESTABLISHED" if packet.is_answer else "NEW") in value.split(",")
    return False


def _is_within(number: int, value: str) -> bool:
    first, _, last = value.partition(":")
    return int(first or 0) <= number <= int(last or first if ":" not in value else last or 65535)
