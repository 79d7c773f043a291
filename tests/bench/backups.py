"""The backup of the bench: a control plane with 10,000 objects, and what a client of its API server notices.

kubeadm has no counterpart. The client reads and writes every 100 ms over one connection, for a while without a backup, and then while
one backup follows the other.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.swaps import make_control_planes
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.node import Node
from tests.e2e.lab.static_pods import Client

OBJECTS, PAYLOAD, BATCH = 10_000, 1000, 500
QUIET_S = 30.0
GOAL_S, GOAL_RATIO = 5.0, 2.0


@dataclass
class Backups:
    """wall: seconds of each backup; size: MiB of the last; before, meanwhile: the client's calls, in milliseconds."""

    wall: list[float] = field(default_factory=list)
    size: float = 0.0
    before: list[float] = field(default_factory=list)
    meanwhile: list[float] = field(default_factory=list)
    failed: int = 0


def run_backups(lab: Lab, version: str, pyz: Path, rounds: int) -> Backups:
    """Raises RuntimeError where a backup failed."""
    (node,) = make_control_planes(lab, version, pyz, 1)
    fill(node)
    found = Backups()
    found.before = watch(node, f"sleep {QUIET_S}", found)
    for number in range(rounds):
        line = "python3 measure.py python3 kb.pyz backup -o /root/b.tar"
        found.meanwhile += watch(node, line, found, is_backup=True)
        sys.stderr.write(f"round {number + 1}: backup {found.wall[-1]:.2f} s\n")
    found.size = int(node.run("stat -c %s /root/b.tar").stdout) / 2**20
    return found


def fill(node: Node) -> None:
    """ConfigMaps of a kilobyte."""
    for start in range(0, OBJECTS, BATCH):
        items = [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": f"filler-{number}"},
                "data": {"text": f"{number:010}" * (PAYLOAD // 10)},
            }
            for number in range(start, start + BATCH)
        ]
        node.write("/root/filler.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        node.kubectl("create --validate=false -f /root/filler.json", timeout=600)


def watch(node: Node, line: str, found: Backups, *, is_backup: bool = False) -> list[float]:
    """The client's calls, in milliseconds, that overlap the command."""
    client = Client(node, "keep")
    client.start()
    shown = node.run(f"sleep 1; date +%s.%N; {line}; date +%s.%N", timeout=600).stdout.splitlines()
    calls = client.stop()
    begin, end = float(shown[0]), float(shown[-1])
    found.failed += len(calls.failed)
    if is_backup:
        seen = json.loads(shown[-2])
        if seen["code"]:
            raise RuntimeError(f"the backup failed:\n{seen['end']}")
        found.wall.append(seen["wall"])
    return [took * 1000 for began, took, *_ in calls.rows if began + took >= begin and began <= end]


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def render_backups(found: Backups) -> str:
    before, meanwhile = (percentile(values, 0.99) for values in (found.before, found.meanwhile))
    cells = [
        f"{statistics.median(found.wall):.2f} ({min(found.wall):.2f} to {max(found.wall):.2f})",
        f"<= {GOAL_S:g} s",
        f"{found.size:.0f} MiB",
        f"{before:.0f} ms",
        f"{meanwhile:.0f} ms",
        f"{meanwhile / before:.2f}",
        f"<= {GOAL_RATIO:g}",
        str(found.failed),
    ]
    return "\n".join([
        "",
        f"## A backup of {OBJECTS:,} objects",
        "",
        "One control plane; a client reads and writes every 100 ms, before and during the backups. kubeadm has no such command.",
        "",
        "| seconds | goal | size | 99th percentile of the calls before | during | ratio | goal | failed calls |",
        "|---|---|---|---|---|---|---|---|",
        f"| {' | '.join(cells)} |",
        "",
    ])  # fmt: skip
