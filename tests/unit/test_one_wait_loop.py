"""Who waits until something holds does so with kubeup/machine/waiting.py: one place tells how far it is, and when patience ends."""

from __future__ import annotations

import ast
from pathlib import Path

import kubeup

PACKAGE = Path(kubeup.__file__).resolve().parent
SLEEPERS = {
    "machine/waiting.py": "the loop itself",
    "machine/local_host.py": "what a host's sleep is",
    "machine/dry_run.py": "what it is for a command that only looks",
    "airgap/mirror_server.py": "a service: it looks at its files for ever, and accepts again when it has no descriptor",
    "airgap/registry_client.py": "asks a registry again, with pauses that grow",
    "backup/making.py": "takes time between the pieces of a snapshot, so that etcd has some for others",
    "commands/doctor.py": "goes on examining the node until the user ends it",
    "cluster/api.py": "asks an API server again, whose last answer is the result",
    "cluster/etcd.py": "asks etcd again for a change, whose last refusal is the error",
    "cluster/find_cluster.py": "asks for the cluster again, with pauses that grow and a patience for each trouble",
    "diagnosis/checks/etcd.py": "asks an external etcd again, as often as kubeadm",
    "diagnosis/container_trouble.py": "one pause: a container's last words come before its end is seen",
    "network/keeper.py": "a service: its rounds go on for ever",
    "node/containers.py": "removes pods again, and pauses only where that failed",
    "node/image_pulls.py": "pulls again, with pauses that grow",
}


def is_sleep(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sleep"


def test_nobody_else_sleeps() -> None:
    sources = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
    found = {name for name, source in sources.items() if any(map(is_sleep, ast.walk(ast.parse(source))))}
    assert found == set(SLEEPERS)
