"""Nodes that leave, of the bench: a control plane of three, alive and without power, behind load balancers of kb's own.

kubeadm has no counterpart: its documentation has kubectl drain, etcdctl member remove and kubectl delete node. Measured is the command, which
ends when no load balancer and no API server names the one that is gone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.bench.recoveries import render_rows, time_line
from tests.bench.swaps import add_control_planes, make_control_planes
from tests.e2e.lab.control_planes import is_lost
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.node import wait_until

LIVING = "`kb node remove`, a control plane of three that lives"
DEAD = "`kb node remove`, a control plane of three that has lost its power"
GOALS_S = {LIVING: 40.0, DEAD: 20.0}

Departures = dict[str, list[float]]
"""Seconds of each run, by what left."""


def run_departures(lab: Lab, version: str, pyz: Path, rounds: int) -> Departures:
    """Raises RuntimeError where a removal failed."""
    found: Departures = {name: [] for name in GOALS_S}
    for number in range(rounds):
        first, _, gone = make_control_planes(lab, version, pyz, 3)
        line = f"python3 kb.pyz node remove {gone.name} --yes"
        found[LIVING].append(time_line(first, line))
        gone.run("python3 kb.pyz reset --force", timeout=300)
        add_control_planes(first, [gone])
        first.wait_node_ready(gone.name)
        gone.kill()
        wait_until(lambda at=first, name=gone.name: is_lost(at, name), what="the cluster to miss it", timeout_s=120)  # type: ignore[misc]
        found[DEAD].append(time_line(first, line))
        for name, seconds in found.items():
            sys.stderr.write(f"round {number + 1}: {name}: {seconds[-1]:.1f} s\n")
    return found


def render_departures(found: Departures) -> str:
    lines = [
        "",
        "## Nodes that leave",
        "",
        "The command from its first second until no load balancer and no list of API servers names the one that is gone. An API server that lives",
        "on without its etcd is listed for up to 25 s; nothing is sent to it meanwhile. A dead one has lost its power, and the cluster has noticed.",
        "",
        "| command | seconds | goal |",
        "|---|---|---|",
    ]  # fmt: skip
    return "\n".join([*lines, *render_rows(found, GOALS_S)]) + "\n"
