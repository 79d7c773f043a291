"""Every change that kb makes in a phase, as moments to kill it at: what the tests need that leave none out.

The moments are counted in a run that is not disturbed. Must not: know what a phase does.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Callable, Optional

from . import change_killer
from .node import Node


def run_watched(node: Node, argv: Sequence[str], *, phase: str = "", at: int = -1) -> list[tuple[str, str]]:
    """Run kb (`kb.pyz`, `join`, ...), killed after change `at` of the phase; (phase, change) for every change that it made.
    The last one is ("killed", change) where it was killed; else the command ended with 0."""
    wish = json.dumps({"argv": list(argv), "phase": phase, "at": at})
    line = shlex.join(["python3", "change_killer.py", wish])
    ended = node.run(f"{line}; echo ended with $?", timeout=900)
    found = [tuple(json.loads(line)) for line in node.read(change_killer.CHANGES_LOG).splitlines()]
    if not found or found[-1][0] != "killed":
        assert "ended with 0" in ended.stdout, ended.output
    return found


def kill_at_every_change(
    node: Node,
    argv: Sequence[str],
    phase: str,
    *,
    check: Callable[[str], None],
    restore: Callable[[], None],
    only: Optional[range] = None,
) -> list[str]:
    """Kill the command after each change of one phase (`join/etcd-join`), and run it again: it ends with 0 and passes `check`,
    which is told the moment. `restore` brings the node back to before the command. Returns the changes it was killed after."""
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    made = [what for name, what in run_watched(node, argv) if name == phase]
    assert made, f"{phase} changed nothing"
    check("not killed")
    restore()
    killed = []
    for number in only or range(len(made)):
        found = run_watched(node, argv, phase=phase, at=number)
        if found[-1][0] != "killed":
            break  # this time it had fewer to make: a wait that asked less often
        killed.append(found[-1][1])
        moment = f"killed after change {number} of {phase}: {killed[-1]}"
        again = node.run(["python3", *argv], check=False, timeout=900)
        assert again.ok, f"{moment}\n{again.output}"
        check(moment)
        restore()
    return killed
