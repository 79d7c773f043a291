"""The swaps of the bench: one flag of each static pod, on one control plane and on one of three, by kb and by hand.

kubeadm has no counterpart. By hand the manifest is replaced in its place and waited for, and nothing is proven: kb's time includes
its trials before the stop, ten seconds of watching, and a look at the whole cluster.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.joins import IGNORED, make_machine
from tests.e2e.lab.config import lab_config
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.node import Node, wait_until
from tests.e2e.lab.static_pods import COMPONENTS, HARMLESS, Client, add_flag, manifest

KB, BY_HAND = "kb", "by hand"
GAP_GOAL_S = {1: 15.0, 3: 2.0}
"""For how long the API may be away for a client, by the number of control planes."""
BETWEEN_S = 15.0
"""More than a call of the client may last: its gap is over by then."""


@dataclass
class Swap:
    """What the swaps of one component by one tool cost, in seconds. failed: calls of the client that failed."""

    wall: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    failed: int = 0


Swaps = dict[tuple[int, str, str], Swap]
"""By the number of control planes, the component, and who did it."""


def run_swaps(lab: Lab, version: str, pyz: Path, rounds: int) -> Swaps:
    """Raises RuntimeError where a swap failed."""
    found: Swaps = {}
    for size in GAP_GOAL_S:
        nodes = make_control_planes(lab, version, pyz, size)
        number = 0
        for round_number in range(rounds):
            for component in COMPONENTS:
                for tool in (KB, BY_HAND) if round_number % 2 == 0 else (BY_HAND, KB):
                    number += 1
                    swap = found.setdefault((size, component, tool), Swap())
                    time_swap(nodes, component, tool, number, swap)
                    sys.stderr.write(
                        f"round {round_number + 1}: {size}: {component}: {tool} {swap.wall[-1]:.1f} s, "
                        f"the API away for {swap.gap[-1]:.1f} s\n"
                    )
    return found


def make_control_planes(lab: Lab, version: str, pyz: Path, size: int) -> list[Node]:
    """A cluster by kb; with several control planes, each has a load balancer of its own."""
    for old in list(lab.nodes.values()):
        lab.remove_node(old)
    nodes = [make_machine(lab, f"cp{number + 1}", version, pyz) for number in range(size)]
    first = nodes[0]
    kb = {"loadBalancer": {"mode": "local"}} if size > 1 else {}
    first.write("/root/init.yaml", lab_config(version, address=first.address, kb=kb))
    first.run(f"python3 kb.pyz init --config init.yaml {IGNORED}", timeout=900)
    add_control_planes(first, nodes[1:])
    for node in nodes:
        node.scp(Path(__file__).with_name("by_hand.py"), "/root/by_hand.py")
        first.wait_node_ready(node.name)
    return nodes


def add_control_planes(first: Node, others: Sequence[Node]) -> None:
    for node in others:
        key = first.run("python3 kb.pyz certs certificate-key").stdout.strip()
        line = first.run(f"python3 kb.pyz token create --print-join-command --certificate-key {key}").stdout.strip()
        node.run(f"{line} {IGNORED}", timeout=900)


def time_swap(nodes: list[Node], component: str, tool: str, number: int, swap: Swap) -> None:
    """One swap on the first node; a client reads and writes on the last one meanwhile, over a new connection each time."""
    node = nodes[0]
    flag = f"{HARMLESS[component]}{number:02}"  # another one each time: what was there before counts as crashing
    node.write("/root/wanted.yaml", add_flag(node.read(manifest(component)), flag))
    argv = "kb.pyz reconfigure static-pods /root/wanted.yaml --yes"
    if tool == BY_HAND:
        argv = f"by_hand.py {component} /root/wanted.yaml {probe_of(node, component)}"
    client = Client(nodes[-1], "new")
    client.start()
    answer = node.run(f"sleep 1; python3 measure.py python3 /root/{argv}", timeout=900)
    seen = json.loads(answer.stdout.splitlines()[-1])
    if seen["code"]:
        raise RuntimeError(f"{tool}: {argv} failed:\n{seen['end']}")
    wait_until(
        lambda: node.kubectl("get --raw /readyz") == "ok", what="the API", timeout_s=120
    )  # by hand etcd's restart takes it along
    node.run(f"sleep {BETWEEN_S}")
    calls = client.stop()
    swap.wall.append(seen["wall"])
    swap.gap.append(calls.longest_gap_s)
    swap.failed += len(calls.failed)


def probe_of(node: Node, component: str) -> str:
    return {
        "etcd": "http://127.0.0.1:2381/health",
        "kube-apiserver": f"https://{node.address}:6443/readyz",
        "kube-controller-manager": "https://127.0.0.1:10257/healthz",
        "kube-scheduler": "https://127.0.0.1:10259/healthz",
    }[component]


def render_swaps(found: Swaps) -> str:
    """The table of the swaps."""
    lines = [
        "",
        "## One flag of a running static pod",
        "",
        "By hand, the manifest is replaced in its place and its new pod waited for. kb tries the new one first, watches it for ten seconds,",
        "waits until a controller-manager or scheduler that is alone leads, and looks at the whole cluster. kubeadm has no such command. The API's",
        "gap is what a client sees that reads and writes every 100 ms over new connections: with three control planes through the load",
        "balancer of another one. Seconds: median (minimum to maximum).",
        "",
        "| control planes | component | kb | by hand | API away: kb | goal | API away: by hand | failed calls: kb | failed calls: by hand |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size, component in dict.fromkeys((size, component) for size, component, _ in found):
        kb, hand = found[size, component, KB], found[size, component, BY_HAND]
        cells = [_spread(kb.wall), _spread(hand.wall), _spread(kb.gap), f"<= {GAP_GOAL_S[size]:g} s", _spread(hand.gap),
                 str(kb.failed), str(hand.failed)]  # fmt: skip
        lines.append(f"| {size} | {component} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
