"""The joins of the bench: a worker, a further control plane, and many workers at one moment, by both tools.

The cluster is one that kubeadm made, for both. What kubeadm's join does not do (kb's pod network, and looking whether the
node is Ready) is left out of kb's here; the checks are not.
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.lab.config import lab_config, list_ignored_checks
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.node import Node, wait_until

IGNORED = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
PROGRAMS = {"kb": "python3 /root/kb.pyz", "kubeadm": "kubeadm"}
ONLY_KBS = {"kb": "--skip-phases pod-network,verify", "kubeadm": ""}
RESET = {"kb": "reset --force", "kubeadm": "reset --force"}
KEY = "ab" * 32
GOALS = {"join, worker": 0.75, "join, control plane": 0.4}
KUBEADM_CONTROL_PLANE = ("join, control plane", "kubeadm")


@dataclass
class Crowd:
    """What came of workers that joined at one moment: seconds until each was through, and kb's phases of all."""

    seconds: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)


def make_machine(lab: Lab, name: str, version: str, pyz: Path) -> Node:
    node = lab.add_node(name, version=version, prepared=True, kubeadm=True)
    node.scp(pyz, "/root/kb.pyz")
    node.scp(Path(__file__).with_name("measure.py"), "/root/measure.py")
    return node


def make_cluster(lab: Lab, version: str, pyz: Path) -> Node:
    """A first control plane by kubeadm, with an endpoint, and nothing else."""
    for old in list(lab.nodes.values()):
        lab.remove_node(old)
    cp1 = make_machine(lab, "cp1", version, pyz)
    cp1.write("/root/init.yaml", lab_config(version, address=cp1.address, endpoint=f"{cp1.address}:6443"))
    cp1.run(f"kubeadm init --config /root/init.yaml {IGNORED}", timeout=900)
    # at rest: a controller-manager that has just begun signs tokens and certificates seconds later, for either tool
    token = cp1.run("kubeadm token create").stdout.strip()
    signed = f"jws-kubeconfig-{token.partition('.')[0]}"
    wait_until(
        lambda: signed in cp1.get("configmap -n kube-public cluster-info")["data"],
        what="the signature of a token",
        timeout_s=60,
    )
    time.sleep(10)
    return cp1


def print_join(cp1: Node, *, control_plane: bool) -> str:
    """The words of a fresh join command, without the program."""
    if control_plane:
        cp1.run(f"python3 /root/kb.pyz token create --print-join-command --certificate-key {KEY}")
        words = f"--certificate-key {KEY}"
    else:
        words = ""
    line = cp1.run(f"kubeadm token create --print-join-command {words}").stdout.strip()
    return line.partition("kubeadm ")[2]


def time_join(lab: Lab, cp1: Node, tool: str, *, control_plane: bool, pyz: Path, version: str) -> dict[str, float]:
    """One join of a fresh machine, which leaves the cluster again. Raises RuntimeError where it failed."""
    node = make_machine(lab, "joins", version, pyz)
    words = f"{print_join(cp1, control_plane=control_plane)} {IGNORED} {ONLY_KBS[tool]}"
    answer = node.run(f"python3 /root/measure.py {PROGRAMS[tool]} {words}", timeout=900)
    seen: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    if seen["code"]:
        raise RuntimeError(f"{tool} {words} failed:\n{seen['end']}")
    listed = json.loads(node.run("crictl ps -a -o json").stdout)["containers"]
    seen["backed_off"] = sum(int(one["metadata"].get("attempt", 0)) for one in listed)
    # etcd's member must go in order: killed with its machine it would take the quorum with it
    node.run(f"{PROGRAMS[tool]} {RESET[tool]}", timeout=600)
    cp1.kubectl("delete node joins", check=False)
    lab.remove_node(node)
    return seen


def run_joins(lab: Lab, version: str, pyz: Path, rounds: int) -> dict[tuple[str, str], list[dict[str, float]]]:
    """(job, tool) -> what each run cost."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    cp1 = make_cluster(lab, version, pyz)
    for round_number in range(rounds):
        for job, control_plane, repeats in (("join, worker", False, 3), ("join, control plane", True, 1)):
            for tool in (list(PROGRAMS) if round_number % 2 == 0 else list(reversed(PROGRAMS))) * repeats:
                seen = time_join(lab, cp1, tool, control_plane=control_plane, pyz=pyz, version=version)
                found.setdefault((job, tool), []).append(seen)
                sys.stderr.write(f"round {round_number + 1}: {job}: {tool} {seen['wall']:.2f} s\n")
    return found


def run_crowd(lab: Lab, version: str, pyz: Path, size: int) -> dict[str, Crowd]:
    """tool -> how `size` workers that were started at one moment fared, in a cluster of their own."""
    found = {}
    for tool in PROGRAMS:
        cp1 = make_cluster(lab, version, pyz)
        nodes = [make_machine(lab, f"w{number}", version, pyz) for number in range(1, size + 1)]
        words = f"{print_join(cp1, control_plane=False)} {IGNORED} {ONLY_KBS[tool]}"
        crowd = found[tool] = Crowd()
        began = time.monotonic()
        threads = [threading.Thread(target=_join_one, args=(node, tool, words, began, crowd)) for node in nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(crowd.seconds) != size:
            raise RuntimeError(f"{tool}: {size - len(crowd.seconds)} of {size} workers did not join")
        sys.stderr.write(f"{size} workers: {tool}: the last after {max(crowd.seconds):.1f} s\n")
    return found


def _join_one(node: Node, tool: str, words: str, began: float, crowd: Crowd) -> None:
    done = node.run(shlex.join(["sh", "-c", f"{PROGRAMS[tool]} {words}"]), check=False, timeout=900)
    if done.code:
        sys.stderr.write(f"{node.name}: {done.output[-800:]}\n")
        return
    crowd.seconds.append(time.monotonic() - began)
    for name, seconds in re.findall(r"^\[ *\d+/\d+\] (\S+)  .*  ([\d.]+)s$", done.stderr, re.MULTILINE):
        crowd.phases.setdefault(name, []).append(float(seconds))


def render_crowd(found: dict[str, Crowd], size: int) -> str:
    """The table of a crowd, and where kb's time goes (medians of the phases)."""
    lines = [
        "",
        f"## {size} workers joining at the same time",
        "",
        "| | first | median | last |",
        "|---|---|---|---|",
    ]
    for tool, crowd in found.items():
        cells = [min(crowd.seconds), statistics.median(crowd.seconds), max(crowd.seconds)]
        lines.append(f"| {tool} | {' | '.join(f'{cell:.1f} s' for cell in cells)} |")
    shares = {name: statistics.median(seconds) for name, seconds in found["kb"].phases.items()}
    top: Sequence[tuple[str, float]] = sorted(shares.items(), key=lambda item: -item[1])[:4]
    lines += [
        "",
        "Where kb's time goes (medians): " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in top) + ".",
    ]
    return "\n".join(lines) + "\n"
