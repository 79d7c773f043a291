"""The loop of kb's keepers: services that adapt this node's network to the cluster.

This module decides when the next round begins and what is logged. It does not know what a round does.
"""

from __future__ import annotations

from collections.abc import Callable

from kubeup.cluster import dns_spread
from kubeup.errors import KbError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.paths import Paths

POLL_S = 10.0
RETRY_S = 3.0


@frozen
class Round:
    """The result of a round: what to log, and how long to wait for the next."""

    text: str
    wait_s: float = POLL_S


@frozen
class Keeper:
    """A keeper service.

    name: its name in the log, `kb routes`; keep_round: does one round. It reads its settings and kubeconfig in each round, since
    certificates are renewed from time to time; stays: what a failed round leaves unchanged, in words; watch: watches what the next round
    shall see early, for so many seconds at most, and returns how many of them are left to sleep."""

    name: str
    keep_round: Callable[[], Round]
    stays: str
    watch: Callable[[float], float] = lambda wait_s: wait_s


def run(keeper: Keeper, host: Host, *, paths: Paths, log: Callable[[str], None], once: bool) -> None:
    """Run rounds forever, or once, and log what changed. If the cluster does not answer, nothing is changed."""
    said = ""
    while True:
        try:
            done = keeper.keep_round()
        except KbError as error:
            done = Round(f"{error}; {keeper.stays}. {error.remedy}", RETRY_S)
        if done.text != said:
            log(f"{keeper.name}: {done.text}")
            said = done.text
        dns_spread.keep_spread(host, paths=paths, log=log)
        if once:
            return
        host.sleep(keeper.watch(done.wait_s))
