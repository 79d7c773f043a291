"""Runs on a node: says in JSON what kb left there, as far as two runs have to agree on it.

    python3 end_state.py /etc/kubernetes/kubelet.conf

tree: what lies where kb works, with the contents that no key and no moment is in; records: what kb's record has of each step;
statuses: what its state says of each phase; stale: the files that a program read before they became what they are now, those of
UNITS and the ones named, which the kubelet reads. Only the standard library, for this is copied to the node.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

PROGRAM = Path(__file__)
FOLDERS = (
    "etc/kubernetes",
    "etc/cni",
    "etc/systemd/system",
    "etc/sysctl.d",
    "usr/local/lib/kb",
    "var/lib/kb",
    "var/lib/kubelet",
)
FILES = ("etc/hosts",)
OF_OTHERS = ("kubelet-client-2", "var/lib/kubelet/pods", "_state", "device-plugins", "plugins", "checkpoints", "pod-resources",
             "var/lib/kubelet/.", "var/lib/kb/records/0", "memory_manager", "cpu_manager")  # fmt: skip
COMPARED = ("etc/systemd/system/", "etc/kubernetes/manifests/", "etc/kubernetes/kb-", "etc/cni/", "etc/sysctl.d/",
            "var/lib/kubelet/config.yaml", "var/lib/kubelet/instance-config.yaml", "var/lib/kubelet/kubeadm-flags.env",
            "etc/hosts", "usr/local/lib/kb/")  # fmt: skip
UNITS = {
    "kubelet": ("/var/lib/kubelet/config.yaml", "/var/lib/kubelet/instance-config.yaml", "/var/lib/kubelet/kubeadm-flags.env",
                "/etc/systemd/system/kubelet.service", "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf"),
    "kb-routes": ("/etc/systemd/system/kb-routes.service", "/var/lib/kb/pod-network.json", "/usr/local/lib/kb/kb.pyz"),
    "kb-load-balancer": ("/etc/systemd/system/kb-load-balancer.service", "/var/lib/kb/load-balancer.json",
                         "/usr/local/lib/kb/kb.pyz"),
}  # fmt: skip
"""What each program reads when it starts."""
TOLERANCE_S = 0.03


def read_tree() -> list[str]:
    lines = []
    for path in (*walk(), *(Path("/") / name for name in FILES)):
        text = str(path)[1:]
        if any(word in text for word in OF_OTHERS):
            continue
        found = path.lstat()
        line = f"/{text} {found.st_mode:o} {found.st_uid}:{found.st_gid}"
        if path.is_symlink():
            line += " -> " + re.sub(r"client-2.*", "client-DATE.pem", os.readlink(path))
        elif path.is_file() and text.startswith(COMPARED):
            line += f" {digest(path)}"
        lines.append(line)
    return sorted(lines)


def walk() -> Iterator[Path]:
    for folder in FOLDERS:
        for top, folders, files in os.walk(f"/{folder}"):
            yield from (Path(top) / name for name in (*folders, *files))


def digest(path: Path) -> str:
    """Without what differs from one registration of a node to the next: its pods' addresses; and in etcd.yaml the members that it was
    told, whose order follows their numbers."""
    lines = [re.sub(rb"10\.244\.\d+\.", b"10.244.N.", line) for line in path.read_bytes().splitlines()]
    if path.name == "etcd.yaml":
        lines = [b",".join(sorted(line.split(b"initial-cluster=")[-1].split(b","))) for line in lines]
    return hashlib.sha256(b"\n".join(lines)).hexdigest()[:16]


def read_records() -> dict[str, list[str]]:
    newest = max(Path("/var/lib/kb/records").glob("*.json"), default=None)
    steps = json.loads(newest.read_text())["steps"] if newest else {}
    return {key: sorted(items) for key, items in steps.items()}


def read_statuses() -> dict[str, str]:
    phases = json.loads(Path("/var/lib/kb/state.json").read_text())["phases"]
    return {name: entry["status"] for name, entry in phases.items()}


def find_stale(more: list[str]) -> list[str]:
    found = []
    for unit, names in UNITS.items():
        started = read_start(unit)
        for path in map(Path, (*names, *(more if unit == "kubelet" else ()))):
            if started is not None and path.exists() and path.stat().st_mtime > started + TOLERANCE_S:
                found.append(f"{unit} runs {path.stat().st_mtime - started:.2f} s longer than {path} is there")
    return found


def read_start(unit: str) -> Optional[float]:
    """When the program of a unit was started; None where it does not run."""
    argv = ["systemctl", "show", unit, "--property", "MainPID", "--value"]
    pid = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    if pid in ("", "0"):
        return None
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    end: dict[str, Any] = {
        "tree": read_tree(),
        "records": read_records(),
        "statuses": read_statuses(),
        "stale": find_stale(sys.argv[1:]),
    }
    print(json.dumps(end))
