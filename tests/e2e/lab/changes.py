"""Every change that kb makes in a phase, as moments to kill it at: what the tests need that leave none out.

The moments are counted in a run that is not disturbed. Must not: know what a phase does.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Callable

from . import change_killer
from .node import Node


def run_watched(
    node: Node, argv: Sequence[str], *, phase: str = "", change: str = "", nth: int = 0
) -> list[tuple[str, str]]:
    """Run kb (`kb.pyz`, `join`, ...), killed after the nth such change of the phase; (phase, change) for every change that it
    made. The last one is ("killed", change) where it was killed; else the command ended with 0."""
    wish = json.dumps({"argv": list(argv), "phase": phase, "change": change, "nth": nth})
    line = shlex.join(["python3", "change_killer.py", wish])
    ended = node.run(f"{line}; echo ended with $?", timeout=900)
    found = [tuple(json.loads(line)) for line in node.read(change_killer.CHANGES_LOG).splitlines()]
    if not found or found[-1][0] != "killed":
        assert "ended with 0" in ended.stdout, ended.output
    return found


def list_moments(made: Sequence[tuple[str, str]], phase: str) -> list[tuple[str, int]]:
    """(change, its how-many-eth) for every change of the phase: a run with more or fewer polls has the same ones."""
    changes = [what for name, what in made if name == phase]
    return [(what, changes[: place + 1].count(what)) for place, what in enumerate(changes)]


def kill_at_every_change(
    node: Node,
    argv: Sequence[str],
    phase: str,
    *,
    check: Callable[[str], None],
    restore: Callable[[], None],
    first: int = 0,
) -> list[str]:
    """Kill the command after each change of one phase (`join/etcd-join`), and run it again: it ends with 0 and passes `check`,
    which is told the moment. `restore` brings the node back to before the command. Returns the moments at which it was killed:
    the caller says which ones there must be, since a few depend on how long a wait takes."""
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    moments = list_moments(run_watched(node, argv), phase)
    assert moments, f"{phase} changed nothing"
    check("not killed")
    restore()
    killed = []
    for change, nth in moments[first:]:
        found = run_watched(node, argv, phase=phase, change=change, nth=nth)
        moment = f"{phase}: {change} ({nth})"
        if found[-1][0] == "killed":  # else it had no such change to make this time: a lease to renew, a pod to push
            killed.append(moment)
            again = node.run(["python3", *argv], check=False, timeout=900)
            assert again.ok, f"killed after {moment}\n{again.output}"
            check(f"killed after {moment}")
        restore()
    return killed
