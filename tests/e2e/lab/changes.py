"""Every change that kb makes in a phase, as moments to kill it at: what the tests need that leave none out.

The moments are counted in a run that is not disturbed. Must not: know what a phase does.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Callable

from . import change_killer
from .node import Node


@dataclass(frozen=True)
class Moment:
    """After the nth change of a phase that is told in these words."""

    phase: str
    change: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.phase}: {self.change} ({self.nth})"


NEVER = Moment("", "", 0)


def run_watched(node: Node, argv: Sequence[str], moment: Moment = NEVER) -> list[tuple[str, str]]:
    """Run kb (`kb.pyz`, `join`, ...), killed at the moment; (phase, change) for every change that it made. The last one is
    ("killed", change) where it was killed; else the command ended with 0."""
    return _run(node, {"argv": list(argv), **asdict(moment)})


def _run(node: Node, wish: Mapping[str, Any], *, ends: str = "ended with 0") -> list[tuple[str, str]]:
    node.write("/root/wish.json", json.dumps(wish))
    line = 'python3 -I change_killer.py "$(cat wish.json)"'
    ended = node.run(f"{line}; echo ended with $?", timeout=900)
    found = [tuple(json.loads(line)) for line in node.read(change_killer.CHANGES_LOG).splitlines()]
    if not found or found[-1][0] != "killed":
        assert ends in ended.output, ended.output
    return found


def list_moments(made: Sequence[tuple[str, str]], phase: str) -> list[Moment]:
    """Every change of the phase: a run with more or fewer polls has the same ones."""
    changes = [what for name, what in made if name == phase]
    return [Moment(phase, what, changes[: place + 1].count(what)) for place, what in enumerate(changes)]


def kill_at_every_change(
    node: Node,
    argv: Sequence[str],
    phases: Sequence[str],
    *,
    check: Callable[[str], None],
    restore: Callable[[], None],
    first: int = 0,
    wanted: Callable[[Moment], bool] = lambda _: True,
) -> list[Moment]:
    """Kill the command after each change of these phases (`join/etcd-join`, in their order; none: of all that it goes through), and
    run it again until it comes to its end: that has to pass `check`, which is told the moments. `restore` brings the node back to
    before the command. wanted: which of the changes, if not each.

    A round kills it once in each phase, after the first change of each, then after the second: the phases share their
    restores; `first` is the round to begin with, from 0, for a sweep that was broken off. Returns the moments at which it was killed: the caller says which ones there must be, since a few depend on how
    long a wait takes."""
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    made = run_watched(node, argv)
    phases = phases or list(dict.fromkeys(name for name, _ in made))
    moments = [list_moments(made, phase) for phase in phases]
    assert all(moments), [phase for phase, found in zip(phases, moments) if not found]
    check("not killed")
    restore()
    moments = [list(filter(wanted, found)) for found in moments]
    killed: list[Moment] = []
    rounds = list(itertools.zip_longest(*moments))

    def end_round(struck: list[Moment]) -> None:
        told = f"killed after {', then '.join(map(str, struck)) or 'nothing'}"
        print(told, flush=True)
        again = node.run(["python3", *argv], check=False, timeout=900)
        assert again.ok, f"{told}\n{again.output}"
        check(told)
        killed.extend(struck)
        struck.clear()
        restore()

    for number, row in itertools.islice(enumerate(rounds), first, None):
        print(f"round {number} of {len(rounds)}", flush=True)
        struck: list[Moment] = []
        for moment in filter(None, row):
            found = run_watched(node, argv, moment)
            if found[-1][0] == "killed":
                struck.append(moment)
            else:  # it had no such change to make this time, and came to its end: a lease to renew, a pod to push
                print(f"not met: {moment}", flush=True)
                if struck:
                    end_round(struck)
                else:
                    check(f"not met: {moment}")
                    restore()
        if struck:
            end_round(struck)
    return killed


def kill_after_each_change_in_turn(
    node: Node,
    argv: Sequence[str],
    *,
    phases: str = "",
    most: int = 500,
    for_s: float = float("inf"),
    ends: str = "ended with 0",
) -> list[tuple[str, str]]:
    """Run the command again and again, and kill it each time after the first change after which it was not killed before, until it comes to
    its end. Each run goes on from where the one before was killed, so nothing has to be restored: a whole sweep takes about as many starts of
    kb as there are changes. phases: a pattern that only those have. for_s: after so many seconds it is left in peace. ends: what the last
    run says. Returns (phase, change) of all of them."""
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    killed: list[tuple[str, str]] = []
    start = time.monotonic()
    for number in range(most):
        began = time.monotonic()
        if began - start > for_s:
            run_watched(node, argv)
            return killed
        found = _run(node, {"argv": list(argv), "known": killed, "phase": phases}, ends=ends)
        if not found or found[-1][0] != "killed":  # it came to its end, or had nothing left to do
            return killed
        killed.append(found[-2])
        print(f"kill {number}: {': '.join(found[-2])} ({time.monotonic() - began:.0f} s)", flush=True)
    raise AssertionError(f"it does not come to its end after {most} kills")
