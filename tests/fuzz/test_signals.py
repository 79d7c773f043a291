"""A signal at any moment: kb says by what it was interrupted, ends with 128 + its number, and the same command goes on."""

from __future__ import annotations

import random
import signal
from typing import Any

import pytest

from tests.fuzz import cases
from tests.fuzz.node import Ended, Node, Site, call
from tests.fuzz.test_answers import COMMANDS

WHAT = {
    # what is interrupted, and how it may end when it is done again after that
    "init": (0,), "init again": (0,), "join": (0,), "join again": (0,), "join --control-plane": (0,), "reset": (0, 4), "reset of a worker": (0, 4),
    "reconfigure with a balancer": (0,), "adopt": (0, 4), "certs renew": (0,), "doctor": (3,), "token create": (0,), "support-bundle": (0,), "init as kubeadm": (0, 1),
    "reset as kubeadm": (0,),
}  # fmt: skip
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalledNode(Node):
    """A node that sends a signal while kb asks it for the n-th time."""

    count = 0
    fatal = 0
    signal = signal.SIGTERM

    def __getattribute__(self, name: str) -> Any:
        if name in _VERBS:
            self.count += 1
            if self.count == self.fatal:
                signal.raise_signal(self.signal)
        return super().__getattribute__(name)


_VERBS = frozenset(
    ("query", "run", "http_get", "http_send", "http_ask", "read_text", "read_bytes", "write_file", "exists", "make_dir", "remove", "remove_tree", "symlink", "sleep")
)  # fmt: skip


def run(site: Site, node: Node, what: str) -> Ended:
    words = [f"--discovery-token-ca-cert-hash={site.pin}" if word == "PIN" else word for word in COMMANDS[what][1]]
    return call(words, lambda: node, site.folder)


@pytest.mark.parametrize("what", WHAT)
def test_a_signal_at_any_moment(site: Site, what: str) -> None:
    well = site.clone(COMMANDS[what][0], make=SignalledNode)
    first = run(site, well, what)
    assert first.status in WHAT[what], first
    for chance in cases(f"signals to {what}", 3):
        strike(site, what, well.count, chance)


def strike(site: Site, what: str, total: int, chance: random.Random) -> None:
    node = site.clone(COMMANDS[what][0], make=SignalledNode)
    node.fatal, node.signal = chance.randrange(1, total + 1), chance.choice(SIGNALS)
    ended = run(site, node, what)
    told = (what, node.fatal, node.signal, ended)
    assert not ended.bug, told
    assert ended.status == 128 + node.signal, told
    assert f"interrupted by {node.signal.name}" in ended.err, told
    again = run(site, node, what)
    assert not again.bug and again.status in WHAT[what], (told, again)
    site.drop(node)
