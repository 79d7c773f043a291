"""The rotations of the bench: each key that three control planes share is replaced, under a client that reads and writes meanwhile.

kubeadm has no counterpart, and its documentation none for these keys. Measured are the commands of all nodes together, in the order in which their
output names them; between them nobody waits.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.recoveries import time_line
from tests.bench.swaps import BETWEEN_S, GAP_GOAL_S, make_control_planes
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.node import Node
from tests.e2e.lab.static_pods import Client

SA = "rotate-sa"
GOALS_S: Mapping[str, float] = {"rotate-ca front-proxy": 120.0, "rotate-ca etcd": 300.0, SA: 300.0}
"""By the words of the command."""
TURNS = ((0, ""), (1, "--continue"), (2, "--continue"), (0, "--continue"), (1, "--continue"),
         (0, "--finish"), (1, "--continue"), (2, "--continue"))  # fmt: skip
"""Which control plane runs it with which word: the first stage on all; the second, which the third one has begun; the last one."""


@dataclass
class Rotation:
    """What rotations of one key cost, in seconds. failed: calls of the client that failed."""

    wall: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    failed: int = 0


Rotations = dict[str, Rotation]
"""By the words of the command."""


def run_rotations(lab: Lab, version: str, pyz: Path, rounds: int) -> Rotations:
    """Raises RuntimeError where a rotation failed, or did not end."""
    found: Rotations = {}
    for number in range(rounds):
        nodes = make_control_planes(lab, version, pyz, 3)
        for words in GOALS_S:
            one = found.setdefault(words, Rotation())
            time_rotation(nodes, words, one)
            sys.stderr.write(
                f"round {number + 1}: {words}: {one.wall[-1]:.1f} s, the API away for {one.gap[-1]:.2f} s\n"
            )
    return found


def time_rotation(nodes: list[Node], words: str, one: Rotation) -> None:
    client = Client(nodes[0], "new")
    client.start()
    took = 0.0
    for index, word in TURNS:
        more = f"{word} --restart-workloads" if words == SA and word == "--finish" else word
        took += time_line(nodes[index], f"python3 kb.pyz certs {words} {more}".rstrip())
    left = nodes[0].kubectl("-n kube-system get configmap,secret -o name")
    if "/kb-rotation" in left:
        raise RuntimeError(f"{words} has not ended: {left}")
    nodes[0].run(f"sleep {BETWEEN_S:g}")
    calls = client.stop()
    one.wall.append(took)
    one.gap.append(calls.longest_gap_s)
    one.failed += len(calls.failed)


def render_rotations(found: Rotations) -> str:
    lines = [
        "",
        "## Shared keys that are replaced",
        "",
        "Three control planes, each with a load balancer of its own; all three stages on all three, eight runs of the command together. A client reads",
        "and writes every 100 ms through the load balancer of the first one. `rotate-sa` restarts the workloads that hold a former token. The cluster's",
        "authority is not among them, since its client has to change with it: docs/adr/0027-rotation.md has what was measured.",
        "",
        f"| command | seconds | goal | longest gap of the client (goal <= {GAP_GOAL_S[3]:g} s) | failed calls (goal 0) |",
        "|---|---|---|---|---|",
    ]
    for words, one in found.items():
        seconds = f"{statistics.median(one.wall):.0f} ({min(one.wall):.0f} to {max(one.wall):.0f})"
        lines.append(
            f"| `kb certs {words}` | {seconds} | <= {GOALS_S[words]:g} | {max(one.gap):.2f} s | {one.failed} |"
        )
    return "\n".join(lines) + "\n"
