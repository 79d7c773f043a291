"""One swap in a cluster at a time, and one upkeep of etcd: a Lease that the node holds meanwhile.

Two swaps that begin in the same second both see all members of etcd, and stop two of three. The Lease is not renewed, because the API
may be away during a swap; so it lasts for longer than a swap takes with its way back, and is removed at its end. What a machine leaves
behind that died in the middle lapses by the API server's clock: that says when the Lease was written, and what time it is now. The
nodes' own clocks do not matter.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

from kubeup.cluster import clock, lease
from kubeup.cluster.api import Api
from kubeup.engine.run import Run
from kubeup.errors import ClusterError, KbError
from kubeup.frozen_values import frozen

NAME = "kb-static-pods"
LASTS_S = 600
"""More than a swap takes with its way back."""
UPKEEP_PATIENCE_S = 3.0
"""How long an API server may take to answer whoever works on etcd alone."""
PATIENCE_S = 10.0
"""How long an API server may take to answer, before the swap begins and after its end."""


@frozen
class Held:
    """Who swaps now, and for how long, in seconds."""

    node: str
    for_s: float


def find_holder(run: Run) -> Optional[Held]:
    """The other node that swaps now; None if there is none. Raises ApiRefused, Unreachable."""
    mine = _lease(run, patience_s=0)
    found = mine.api.get(mine.path)
    return None if found is None or _is_over(mine, found) else _held(mine, found)


def take(run: Run, *, patience_s: float = PATIENCE_S) -> Optional[Held]:
    """Hold the Lease, or go on to hold it; returns the other node that does instead. Raises ApiRefused, Unreachable."""
    mine = _lease(run, patience_s)
    if not mine.try_take(run.host.now(), run.host.monotonic(), has_lapsed=lambda found: _is_over(mine, found)):
        return None
    found = mine.api.get(mine.path)
    return Held("another control plane", 0.0) if found is None else _held(mine, found)


def give_back(run: Run) -> None:
    """Remove the Lease if it is this node's, from an earlier run too. Raises ApiRefused, Unreachable."""
    mine = _lease(run)
    found = mine.api.get(mine.path)
    if found is not None and _spec(found).get("holderIdentity") == mine.identity:
        mine.api.delete(mine.path)


def end_of(run: Run, node: str) -> None:
    """Remove the Lease if it is that node's, which is known not to work any more. Raises ApiRefused, Unreachable."""
    path = _lease(run).path
    found = run.api.get(path)
    if found is not None and _spec(found).get("holderIdentity") == node:
        run.api.delete(path)


@contextlib.contextmanager
def hold(runs: Sequence[Run], *, work: str) -> Iterator[Callable[[], None]]:
    """Hold the Lease meanwhile; yields what goes on to hold it, to be called between steps that take long. An API that is away hinders
    nothing, since etcd may need this to serve again: that is said.

    runs: the ways to an API server, the first one that answers is taken. work: what is done, for the words. Raises ClusterError
    (swap-elsewhere), at the beginning and from what is yielded.
    """
    taken = next((one for one in runs if _try_take(one, work=work, is_last=one is runs[-1])), None)

    def hold_on() -> None:
        if taken is not None:
            _try_take(taken, work=work, is_last=True)

    try:
        yield hold_on
    finally:
        if taken is not None:
            end(taken, tell=taken.report.note)


def end(run: Run, *, tell: Callable[[str], None]) -> None:
    """Give the Lease back. What keeps that from being done is told: it lapses then."""
    try:
        give_back(run)
    except KbError as error:
        tell(f"Lease kube-system/{NAME} was not given back, and lapses in {LASTS_S} s: {error}")


def _try_take(run: Run, *, work: str, is_last: bool) -> bool:
    """Whether the Lease is held. Raises ClusterError (swap-elsewhere)."""
    try:
        held = take(run, patience_s=UPKEEP_PATIENCE_S)
    except KbError as error:
        if is_last:
            run.report.note(f"other control planes are not kept from {work} meanwhile: {error}")
        return False
    if held is None:
        return True
    raise refusal(held)


def refusal(held: Held) -> ClusterError:
    """Why nothing is done now."""
    return ClusterError(
        f"control plane {held.node} works on etcd or on its static pods",
        cause=f"it has held Lease kube-system/{NAME} for {held.for_s:.0f} s; two at once may cost etcd its quorum",
        remedy=f"wait until it has finished; if nothing is under way there: kubectl -n kube-system delete lease {NAME}",
        code="swap-elsewhere",
    )


def _lease(run: Run, patience_s: float = PATIENCE_S) -> lease.Lease:
    api = Api(run.host, run.api.identity, retry_s=patience_s)
    return lease.Lease(api, NAME, run.config.node.name, lasts_s=LASTS_S)


def _held(mine: lease.Lease, found: dict[str, Any]) -> Optional[Held]:
    node = str(_spec(found).get("holderIdentity") or "")
    return None if node in ("", mine.identity) else Held(node, _age_of(mine, found))


def _is_over(mine: lease.Lease, found: dict[str, Any]) -> bool:
    return _age_of(mine, found) > LASTS_S


def _age_of(mine: lease.Lease, found: dict[str, Any]) -> float:
    """How long ago the Lease was written, in seconds by the API server's clock; 0 if nothing says so. Raises Unreachable."""
    written = lease.read_written(found) or _parse_renewal(str(_spec(found).get("renewTime")))
    if written is None:
        return 0.0
    answer = mine.api.probe_health()
    now = mine.api.host.now()
    return (now - written).total_seconds() + clock.measure_skew(answer, now)


def _parse_renewal(text: str) -> Optional[datetime.datetime]:
    try:
        return datetime.datetime.strptime(text, lease.MOMENT).replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return None


def _spec(found: dict[str, Any]) -> dict[str, Any]:
    return found.get("spec") or {}
