"""What comes back, of the bench: a control plane from its backup, the last of three members of etcd, and a node whose certificates are over.

kubeadm has no counterpart: its documentation has pages of steps. Measured is the command, which ends when the API server serves again, and
for the certificates when the node is Ready.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench import backups
from tests.bench.joins import IGNORED, make_machine
from tests.bench.swaps import add_control_planes, make_control_planes
from tests.e2e.lab.config import lab_config
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.node import Node, wait_until
from tests.e2e.test_certs_recover import short, stop_kubelets, wait_until_over

VERIFY = f"`kb backup verify`, {backups.OBJECTS:,} objects"
RESTORE = f"`kb restore`, the same machine, {backups.OBJECTS:,} objects"
ELSEWHERE = f"`kb restore` on a new machine, and two more that join, {backups.OBJECTS:,} objects"
ETCD = "`kb etcd recover`, the last of three"
CERTS = "`kb certs recover`, one control plane"
GOALS_S = {VERIFY: 30.0, RESTORE: 180.0, ELSEWHERE: 180.0, ETCD: 120.0, CERTS: 120.0}
MINUTES = 3
"""For how long the certificates of the third one live."""

Recoveries = dict[str, list[float]]
"""Seconds of each run, by what was brought back."""


def run_recoveries(lab: Lab, version: str, pyz: Path, rounds: int) -> Recoveries:
    """Raises RuntimeError where a recovery failed."""
    found: Recoveries = {name: [] for name in GOALS_S}
    (node,) = make_control_planes(lab, version, pyz, 1)
    backups.fill(node)
    node.run("python3 kb.pyz backup -o /root/b.tar", timeout=120)
    for _ in range(rounds):
        _note(found, VERIFY, time_line(node, "python3 kb.pyz backup verify /root/b.tar"))
    for _ in range(rounds):
        _note(found, RESTORE, time_line(node, f"python3 kb.pyz restore /root/b.tar --force {IGNORED}"))
    backup = node.disk_path("/root/b.tar").read_bytes()
    for _ in range(rounds):
        _note(found, ELSEWHERE, restore_elsewhere(lab, version, pyz, backup))
    for _ in range(rounds):
        first, *lost = make_control_planes(lab, version, pyz, 3)
        for node in lost:
            node.kill()
        wait_until(
            lambda at=first: "0 of 3" in at.run("python3 kb.pyz etcd members").stdout,  # type: ignore[misc]
            what="etcd knows of no leader",
            timeout_s=60,
        )
        _note(
            found,
            ETCD,
            time_line(first, "python3 kb.pyz etcd recover --yes " + " ".join(f"--lost {node.name}" for node in lost)),
        )
    node = make_mortal(lab, version, pyz)
    for _ in range(rounds):  # what is issued anew lives for as long as what it replaces
        stop_kubelets([node])
        wait_until_over(node)
        if not json.loads(node.run("python3 kb.pyz certs recover --dry-run -o json").stdout)["expired"]:
            raise RuntimeError("nothing has expired, so there is nothing to measure")
        _note(found, CERTS, time_line(node, "python3 kb.pyz certs recover"))
    return found


def restore_elsewhere(lab: Lab, version: str, pyz: Path, backup: bytes) -> float:
    """Seconds until three machines of other names and addresses are the cluster's control planes, and Ready. The former one is gone."""
    for old in list(lab.nodes.values()):
        lab.remove_node(old)
    first, *others = (make_machine(lab, f"new{number}", version, pyz) for number in (1, 2, 3))
    first.disk_path("/root/b.tar").write_bytes(backup)
    began = time.monotonic()
    words = f"--control-plane-endpoint {first.address}:6443 {IGNORED}"
    first.run(f"python3 kb.pyz restore /root/b.tar {words}", timeout=900)
    add_control_planes(first, others)
    for node in (first, *others):
        first.wait_node_ready(node.name)
    return time.monotonic() - began


def make_mortal(lab: Lab, version: str, pyz: Path) -> Node:
    """A control plane whose certificates, the kubelet's too, live for minutes."""
    for old in list(lab.nodes.values()):
        lab.remove_node(old)
    node = make_machine(lab, "cp1", version, pyz)
    node.write("/root/init.yaml", lab_config(version, address=node.address, cluster=short(MINUTES)))
    node.run(f"python3 kb.pyz init --config init.yaml {IGNORED}", timeout=900)
    return node


def time_line(node: Node, line: str) -> float:
    """The seconds of a command. Raises RuntimeError where it failed."""
    answer = node.run(f"python3 measure.py {line}", timeout=900)
    seen = json.loads(answer.stdout.splitlines()[-1])
    if seen["code"]:
        raise RuntimeError(f"{line} failed:\n{seen['end']}")
    return float(seen["wall"])


def _note(found: Recoveries, name: str, seconds: float) -> None:
    found[name].append(seconds)
    sys.stderr.write(f"round {len(found[name])}: {name}: {seconds:.1f} s\n")


def render_recoveries(found: Recoveries) -> str:
    lines = [
        "",
        "## What comes back",
        "",
        "The command from its first second until the API server serves again, and with `kb certs recover` until the node is Ready; a rehearsal until",
        "all is counted; of three new machines until all are Ready, with the joins of two, one after the other. The two lost",
        f"machines have lost their power. The certificates lived for {MINUTES} minutes, and the kubelet was stopped meanwhile. kubeadm has no such commands.",
        "",
        "| command | seconds | goal |",
        "|---|---|---|",
    ]  # fmt: skip
    return "\n".join([*lines, *render_rows(found, GOALS_S)]) + "\n"


def render_rows(found: Mapping[str, Sequence[float]], goals: Mapping[str, float]) -> list[str]:
    """The rows of a table: what was done, how many seconds it took, and how many it may take."""
    return [
        f"| {name} | {statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | <= {goals[name]:g} s |"
        for name, seconds in found.items()
    ]
