"""Speed of kb, side by side with kubeadm on the same kind of node in the same run.

    KB_E2E_BIN=/path/to/binaries python3 -m tests.bench [--version 1.35] [--rounds 5] [--write]

Each round takes one fresh node for each tool, in turn, so that a slow moment of the machine hits both. --write puts the
table into docs/benchmarks.md. Ratios of medians are what counts; seconds are this machine's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from tests.bench import backups, departures, document, joins, recoveries, rotations, swaps, upgrades
from tests.e2e.lab import settings
from tests.e2e.lab.config import lab_config, list_ignored_checks
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.node import Node

REPO = Path(__file__).resolve().parent.parent.parent
DOCS = REPO / "docs/benchmarks.md"
IGNORED = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())


@dataclass(frozen=True)
class Job:
    """One comparison: the same work in the words of both tools ("" where kubeadm has no such work). goal: the ratio to kubeadm that kb
    is to reach, or the seconds where kubeadm is no measure."""

    name: str
    kb: str
    kubeadm: str
    goal: float
    needs_fresh_node: bool = False
    repeats: int = 1


WHOLE, VERSION = "init with pod network, soak and DNS", "version"
JOBS = (
    Job(
        "init, images at hand",
        f"python3 /root/kb.pyz init --config /root/init.yaml --pod-network none --soak 0 {IGNORED}",
        f"kubeadm init --config /root/init.yaml {IGNORED}",
        goal=0.7,
        needs_fresh_node=True,
    ),
    Job(
        "certs all",
        "python3 /root/kb.pyz init phase certs all --cert-dir /tmp/pki-kb --apiserver-advertise-address 10.0.0.1",
        "kubeadm init phase certs all --cert-dir /tmp/pki-kubeadm --apiserver-advertise-address 10.0.0.1",
        goal=0.55,
        repeats=10,
    ),
    Job(
        WHOLE,
        f"python3 /root/kb.pyz init --config /root/init.yaml {IGNORED}",
        "",
        goal=14.0,
        needs_fresh_node=True,
    ),
    Job(VERSION, "python3 /root/kb.pyz version", "kubeadm version", goal=0.03, repeats=5),
)
IN_SECONDS = (WHOLE, VERSION)
"""The goals that are seconds of kb's."""


@dataclass
class Samples:
    """What one tool's runs of one job cost."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def add(self, seen: dict[str, float]) -> None:
        self.wall.append(seen["wall"])
        self.cpu.append(seen["cpu"])
        self.memory.append(seen["memory"] / 1024)


def measure(node: Node, command: str) -> dict[str, float]:
    """Run one command on the node and read what it cost. Raises RuntimeError where it failed."""
    answer = node.run(f"rm -rf /tmp/pki-*; python3 /root/measure.py {command}", timeout=600)
    seen: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    if seen["code"]:
        raise RuntimeError(f"{command} failed:\n{seen['end']}")
    return seen


def make_node(lab: Lab, version: str, pyz: Path) -> Node:
    """A fresh node that both tools can work on, with kubeadm's preparations done."""
    for old in list(lab.nodes.values()):
        lab.remove_node(old)
    node = lab.add_node("bench", version=version, prepared=True, kubeadm=True)
    node.scp(pyz, "/root/kb.pyz")
    node.scp(Path(__file__).with_name("measure.py"), "/root/measure.py")
    node.write("/root/init.yaml", lab_config(version, address=node.address))
    return node


def run_jobs(lab: Lab, version: str, pyz: Path, rounds: int) -> dict[tuple[str, str], Samples]:
    """(job, tool) -> samples."""
    found: dict[tuple[str, str], Samples] = {}
    for round_number in range(rounds):
        for job in JOBS:
            tools = [(tool, command) for tool, command in (("kb", job.kb), ("kubeadm", job.kubeadm)) if command]
            node = None if job.needs_fresh_node else make_node(lab, version, pyz)
            # one after the other each time: a node that has just booted is slower for whoever comes first
            turns = (tools if round_number % 2 == 0 else tools[::-1]) * job.repeats
            for tool, command in turns:
                target = node or make_node(lab, version, pyz)
                found.setdefault((job.name, tool), Samples()).add(measure(target, command))
                sys.stderr.write(
                    f"round {round_number + 1}: {job.name}: {tool} {found[job.name, tool].wall[-1]:.2f} s\n"
                )
    return found


def render_table(found: dict[tuple[str, str], Samples], version: str) -> str:
    """The markdown table: medians with their spread, kb's ratio to kubeadm, and its worst in any pair of runs, which is what is
    promised: a machine of somebody else's has its bad moments too."""
    lines = [
        f"Kubernetes {version}. Seconds: median (minimum to maximum); peak memory in MiB; ratio = kb / kubeadm, of the medians;",
        "worst: the highest ratio of two consecutive runs.",
        "",
        "| job | wall kb | wall kubeadm | ratio | worst | goal | CPU kb | CPU kubeadm | memory kb | memory kubeadm |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    goals = {**{job.name: job.goal for job in JOBS}, **joins.GOALS}
    for name in dict.fromkeys(name for name, _ in found):
        kb, kubeadm = found[name, "kb"], found.get((name, "kubeadm"), Samples())
        ratio = statistics.median(kb.wall) / statistics.median(kubeadm.wall) if kubeadm.wall else None
        worst = max((one / other for one, other in zip(kb.wall, kubeadm.wall)), default=None)
        goal = f"{goals[name]} s" if name in IN_SECONDS else f"{goals[name]}"
        cells = [
            *(_spread(values) for values in (kb.wall, kubeadm.wall)),
            *(f"{value:.2f}" if value is not None else "" for value in (ratio, worst)),
            f"<= {goal}",
            *(f"{statistics.median(values):.2f}" if values else "" for values in (kb.cpu, kubeadm.cpu)),
            *(f"{statistics.median(values):.0f}" if values else "" for values in (kb.memory, kubeadm.memory)),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


PARTS = ("init", "joins", "crowd", "swaps", "backups", "recoveries", "departures", "rotations", "upgrades")
HEAD = """\
# Speed compared with kubeadm

Both tools do the same job in turn, on fresh nodes of the same kind, in one run on a machine with two processors. Generating an RSA
key takes a random time, about 40 ms of CPU, and `certs all` generates eleven. Each round therefore runs `certs all` ten times per
tool, in turn on one node, to get stable medians, and a worker's join, which is as short, three times. The comparison leaves out kb's
pod network, soak and check of the Ready node, since kubeadm has none of them; no other check is left out. To repeat it
(tests/e2e/README.md says what a node needs):

    KB_E2E_BIN=/path/to/binaries make bench

"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench", description=__doc__)
    parser.add_argument("--version", default="1.35", help="Kubernetes minor (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=10, help="how many join at one moment (default: %(default)s)")
    parser.add_argument("--only", choices=PARTS, help="a part of it")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md; with --only, its part of it")
    options = parser.parse_args()
    why = settings.explain_why_not()
    if why:
        raise SystemExit(f"no bench here: {why}")
    pyz = REPO / "dist/kb.pyz"
    subprocess.run([sys.executable, "build_zipapp.py"], cwd=REPO, check=True)
    lab = Lab(settings.lab_name("bench"))
    met: list[float] = []
    with lab.hold():
        lab.remove_leftovers()
        lab.create()
        try:
            found = run_jobs(lab, options.version, pyz, options.rounds) if options.only in (None, "init") else {}
            if options.only in (None, "joins"):
                for key, seen in joins.run_joins(lab, options.version, pyz, options.rounds).items():
                    for one in seen:
                        found.setdefault(key, Samples()).add(one)
                    met += [one["backed_off"] for one in seen if key == joins.KUBEADM_CONTROL_PLANE]
            crowd: dict[str, joins.Crowd] = {}
            if options.only in (None, "crowd"):
                crowd = joins.run_crowd(lab, options.version, pyz, options.workers)
            swapped: swaps.Swaps = {}
            backed_up: Optional[backups.Backups] = None
            came_back: recoveries.Recoveries = {}
            left: departures.Departures = {}
            rotated: rotations.Rotations = {}
            upgraded: upgrades.Upgrades = {}
            if options.only in (None, "swaps"):
                swapped = swaps.run_swaps(lab, options.version, pyz, options.rounds)
            if options.only in (None, "backups"):
                backed_up = backups.run_backups(lab, options.version, pyz, options.rounds)
            if options.only in (None, "recoveries"):
                came_back = recoveries.run_recoveries(lab, options.version, pyz, options.rounds)
            if options.only in (None, "departures"):
                left = departures.run_departures(lab, options.version, pyz, options.rounds)
            if options.only in (None, "rotations"):
                rotated = rotations.run_rotations(lab, options.version, pyz, options.rounds)
            if options.only in (None, "upgrades"):
                upgraded = upgrades.run_upgrades(lab, options.version, pyz, options.rounds)
        finally:
            lab.destroy()
    table = render_table(found, options.version) if found else ""
    if met:
        table += f"\nIn {sum(map(bool, met))} of kubeadm's {len(met)} control-plane joins a static pod ended once and sat out the kubelet's back-off.\n"
    if crowd:
        table += joins.render_crowd(crowd, options.workers)
    if swapped:
        table += swaps.render_swaps(swapped)
    if backed_up:
        table += backups.render_backups(backed_up)
    if came_back:
        table += recoveries.render_recoveries(came_back)
    if left:
        table += departures.render_departures(left)
    if rotated:
        table += rotations.render_rotations(rotated)
    if upgraded:
        table += upgrades.render_upgrades(upgraded, options.version)
    sys.stdout.write(table)
    if options.write:
        whole = HEAD + table if options.only is None else document.merge(DOCS.read_text(), table)
        DOCS.write_text(f"{whole.rstrip()}\n")


if __name__ == "__main__":
    main()
