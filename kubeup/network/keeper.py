"""The loop of kb's keepers: services that make this node's network follow the cluster.

Owns when a round follows another and what is told of it. Must not know what a round does.
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
    """How a round ended: what to say, and how long to wait for the next."""

    text: str
    wait_s: float = POLL_S


@frozen
class Keeper:
    """name: `kb routes`, as its log calls it; keep_round: does one round, from settings and a kubeconfig that are read in it, since
    certificates are renewed now and then; stays: what a round that fails leaves as it is."""

    name: str
    keep_round: Callable[[], Round]
    stays: str


def run(keeper: Keeper, host: Host, *, paths: Paths, log: Callable[[str], None], once: bool) -> None:
    """Go on for ever, or once, and say what changed. A cluster that does not answer changes nothing."""
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
        host.sleep(done.wait_s)
