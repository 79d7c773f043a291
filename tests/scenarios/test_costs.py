"""What a run costs: how often it asks the API server, by verb, and how many programs it starts.

Comparing a plan with the node must not ask for more than the probes did that were there before plans. FORMER has what init asked
then; MOST was counted when the test was written. All of them are upper bounds: fewer is better. Where a second run may start no
program, nothing is restarted either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.fake_cluster import ClusterHost
from tests.fake_join import Machine, Site

from .scenario import run_control_plane_join, run_init, run_join, run_kb

# Of a control plane's programs two queries (whether it runs, and whether systemd holds its files as they are) and two runs (systemd
# enables and starts it) are those of the timer that renews certificates, which kubeadm does not have. A further query of a node is that
# for the unit of the pod network. Each spares the node a daemon-reload. Two of init's GETs find which accounts the controllers need.
FORMER: Mapping[str, Mapping[str, int]] = {
    "init": {"GET": 75, "PATCH": 34, "POST": 1, "query": 14, "run": 11},
    "init again": {"GET": 49, "query": 7},
}
# Of a joining control plane's GETs eight are looks of the soak: it is over a fixed time after the static pods came up, so the sooner
# the steps before it end, the more often it looks. One is for a rotation of a shared key, amid which it might not start. One query of a worker is for the bridges that were there before kb, which reset needs.
MOST: Mapping[str, Mapping[str, int]] = {
    "join": {"GET": 13, "query": 25, "run": 11},
    "join again": {"GET": 9, "query": 6},
    "join --control-plane": {"GET": 34, "PATCH": 1, "POST": 5, "DELETE": 1, "query": 35, "run": 20},
    "join --control-plane again": {"GET": 15, "query": 7},
}


@contextmanager
def counted(kind: type[ClusterHost]) -> Iterator[Counter[str]]:
    """What all machines of that kind are asked."""
    asked: Counter[str] = Counter()
    verbs = {name: getattr(kind, name) for name in ("query", "run", "http_get", "http_send")}

    def count(name: str) -> Any:
        def verb(host: ClusterHost, *words: Any, **more: Any) -> Any:
            asked[{"http_get": "GET", "http_send": str(words[0])}.get(name, name)] += 1
            return verbs[name](host, *words, **more)

        return verb

    with mock.patch.multiple(kind, **{name: count(name) for name in verbs}):
        yield asked


def check(asked: Counter[str], most: Mapping[str, int]) -> None:
    more = {verb: (number, most.get(verb, 0)) for verb, number in asked.items() if number > most.get(verb, 0)}
    assert not more, f"it asks more often than it did (now, most): {more}; all: {dict(asked)}"


def test_init(tmp_path: Path) -> None:
    host = ClusterHost(tmp_path)
    for run in FORMER:
        with counted(ClusterHost) as asked:
            run_init(host)
        check(asked, FORMER[run])


@pytest.mark.parametrize("name", ["w1", "cp2"])
def test_join(founded: Site, tmp_path: Path, name: str) -> None:
    machine = founded.clone(tmp_path, name).machine(name)
    first = "join" if name == "w1" else "join --control-plane"
    with counted(Machine) as asked:
        ended = run_join(machine) if name == "w1" else run_control_plane_join(machine)
    assert ended.status == 0, ended.err
    check(asked, MOST[first])
    with counted(Machine) as asked:
        again = run_kb(machine, *first.split(), *(() if name == "w1" else ("--soak=1s",)))
    assert "nothing to do" in again.err, again.err
    check(asked, MOST[f"{first} again"])
