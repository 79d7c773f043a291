"""One swap in a cluster at a time: a Lease that the node holds meanwhile.

Two swaps that begin in the same second both see all members of etcd, and stop two of three. The Lease is not renewed, because the API
may be away during a swap; so it lasts for longer than a swap takes with its way back, and is removed at its end. What a machine leaves
behind that died in the middle lapses by the clock of whoever looks: a clock that is off makes it lapse early or late, and whether etcd
would lose its quorum is looked at in any case.
"""

from __future__ import annotations

import datetime
from typing import Any, Optional

from kubeup.cluster import lease
from kubeup.cluster.api import Api
from kubeup.engine.run import Run
from kubeup.frozen_values import frozen

NAME = "kb-static-pods"
LASTS_S = 600
"""More than a swap takes with its way back."""
PATIENCE_S = 10.0
"""How long an API server may take to answer, before the swap begins and after its end."""


@frozen
class Held:
    """Who swaps now, and for how long, in seconds by this machine's clock."""

    node: str
    for_s: float


def find_holder(run: Run) -> Optional[Held]:
    """The other node that swaps now; None if there is none. Raises ApiRefused, Unreachable."""
    mine = _lease(run, patience_s=0)
    found = mine.api.get(mine.path)
    return None if found is None or _is_over(run, found) else _held(run, found)


def take(run: Run, *, patience_s: float = PATIENCE_S) -> Optional[Held]:
    """Hold the Lease, or go on to hold it; returns the other node that does instead. Raises ApiRefused, Unreachable."""
    mine = _lease(run, patience_s)
    if not mine.try_take(run.host.now(), run.host.monotonic(), has_lapsed=lambda found: _is_over(run, found)):
        return None
    found = mine.api.get(mine.path)
    return Held("another control plane", 0.0) if found is None else _held(run, found)


def give_back(run: Run) -> None:
    """Remove the Lease if it is this node's, from an earlier run too. Raises ApiRefused, Unreachable."""
    mine = _lease(run)
    found = mine.api.get(mine.path)
    if found is not None and _spec(found).get("holderIdentity") == mine.identity:
        mine.api.delete(mine.path)


def _lease(run: Run, patience_s: float = PATIENCE_S) -> lease.Lease:
    api = Api(run.host, run.api.identity, retry_s=patience_s)
    return lease.Lease(api, NAME, run.config.node.name, lasts_s=LASTS_S)


def _held(run: Run, found: dict[str, Any]) -> Optional[Held]:
    node = str(_spec(found).get("holderIdentity") or "")
    return None if node in ("", run.config.node.name) else Held(node, _age_of(run, found))


def _is_over(run: Run, found: dict[str, Any]) -> bool:
    return _age_of(run, found) > LASTS_S


def _age_of(run: Run, found: dict[str, Any]) -> float:
    try:
        moment = datetime.datetime.strptime(str(_spec(found).get("renewTime")), lease.MOMENT)
    except ValueError:
        return 0.0
    return (run.host.now() - moment.replace(tzinfo=datetime.timezone.utc)).total_seconds()


def _spec(found: dict[str, Any]) -> dict[str, Any]:
    return found.get("spec") or {}
