"""The upgrades of the bench: one control plane by both tools, a whole cluster by kb, and one flag on three control planes.

Both tools go to the next minor, on nodes that kb made, with the images there before. kubeadm's upgrade leaves the kubelet to the admin;
kb's replaces it too, with its configuration, and watches it: its seconds include that, a backup, and the former programs that it keeps.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from tests.bench.joins import IGNORED
from tests.bench.recoveries import time_line
from tests.bench.swaps import make_control_planes
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.node import Node
from tests.e2e.lab.settings import find_release

ONE = "`upgrade apply`, one control plane"
WHOLE = "`kb upgrade apply` and `node`, three control planes"
FLAG = "`kb reconfigure apiserver --set` and `node`, three control planes"
GOALS = {ONE: "<= 0.3 of kubeadm", WHOLE: "<= 300 s", FLAG: "<= 60 s"}
NEXT = {"1.33": "1.34", "1.34": "1.35", "1.35": "1.36"}

Upgrades = dict[tuple[str, str], list[float]]
"""(what, tool) -> seconds of each run."""


def run_upgrades(lab: Lab, version: str, pyz: Path, rounds: int) -> Upgrades:
    """Raises RuntimeError where an upgrade failed."""
    found: Upgrades = {}
    target = find_release(NEXT[version]).version
    for _ in range(rounds):
        for tool in ("kb", "kubeadm"):
            (node,) = make_control_planes(lab, version, pyz, 1)
            _offer(node, version)
            words = f"kb.pyz upgrade apply {target} --yes --no-drain"
            line = f"python3 {words}" if tool == "kb" else f"kubeadm upgrade apply {target} --yes {IGNORED}"
            _note(found, ONE, tool=tool, seconds=time_line(node, line))
    for _ in range(rounds):
        nodes = make_control_planes(lab, version, pyz, 3)
        flag = "apiserver --set max-requests-inflight=401"
        _note(found, FLAG, seconds=sum(_each(nodes, f"reconfigure {flag} --yes", "reconfigure node --yes")))
        for node in nodes:
            _offer(node, version)
        rest = "--yes --no-drain"
        _note(found, WHOLE, seconds=sum(_each(nodes, f"upgrade apply {target} {rest}", f"upgrade node {rest}")))
    return found


def _each(nodes: list[Node], first: str, other: str) -> list[float]:
    return [time_line(node, f"python3 kb.pyz {other if index else first}") for index, node in enumerate(nodes)]


def _offer(node: Node, version: str) -> None:
    """The next release's images and programs, as packages would leave them."""
    folder = node.offer_release(NEXT[version])
    for name in ("kubelet", "kubectl", "kubeadm"):
        node.run(f"p=$(command -v {name}); cp {folder}/{name} $p.new && mv $p.new $p")


def _note(found: Upgrades, name: str, *, seconds: float, tool: str = "kb") -> None:
    found.setdefault((name, tool), []).append(seconds)
    sys.stderr.write(f"round {len(found[name, tool])}: {name}: {tool} {seconds:.1f} s\n")


def render_upgrades(found: Upgrades, version: str) -> str:
    lines = [
        "",
        "## Upgrades, and one flag everywhere",
        "",
        f"From {version} to {NEXT[version]}, on nodes that kb made, with the images there before, and nothing drained. kb's seconds include the kubelet, which",
        "kubeadm leaves to the admin, a backup, and ten seconds of watching; those of three control planes are the sum of their commands.",
        "",
        "| job | kb | kubeadm | ratio | goal |",
        "|---|---|---|---|---|",
    ]
    for name, goal in GOALS.items():
        kb, kubeadm = found[name, "kb"], found.get((name, "kubeadm"), [])
        ratio = f"{statistics.median(kb) / statistics.median(kubeadm):.2f}" if kubeadm else ""
        lines.append(f"| {name} | {_spread(kb)} | {_spread(kubeadm)} | {ratio} | {goal} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else ""
