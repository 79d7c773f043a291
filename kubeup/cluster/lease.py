"""A Lease in the cluster as a mutex: its holder works, the others wait and can say for whom.

This module acquires, renews and releases the Lease. It never waits, and knows no phase. The clocks of two nodes are never compared:
a holder counts as gone if, by the observer's own clock, its Lease was not renewed for leaseDurationSeconds.
Source: k8s.io/client-go/tools/leaderelection, coordination.k8s.io/v1
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional

from kubeup import moments
from kubeup.cluster import api as kubeapi

NAMESPACE = "kube-system"
DURATION_S = 15
"""How long the others have to wait after the holder was killed."""
RENEW_EVERY_S = 4
MOMENT = "%Y-%m-%dT%H:%M:%S.%fZ"
"""The form of renewTime."""


def read_written(found: dict[str, Any], *, manager: str = "") -> Optional[datetime.datetime]:
    """When the object was written last, by `manager` if that is named, by the clock of the API server that noted it; None if it did not.
    Source: apimachinery, meta/v1 ManagedFieldsEntry"""
    owners = found["metadata"].get("managedFields") or []
    named = (owner for owner in owners if manager in ("", owner.get("manager")))
    times = [moments.find(str(owner.get("time"))) for owner in named]
    return max((moment for moment in times if moment is not None), default=None)


def _never(_: dict[str, Any]) -> bool:
    return False


@dataclass
class Lease:
    """This node's view of the Lease `name`. `identity` is the node's own. lasts_s: how long it lasts without being renewed."""

    api: kubeapi.Api
    name: str
    identity: str
    lasts_s: int = DURATION_S
    _seen: str = ""
    _seen_at: float = 0.0
    _renewed_at: float = 0.0
    _held: Optional[dict[str, Any]] = field(default=None)

    @property
    def path(self) -> str:
        return kubeapi.path_of("Lease", self.name, namespace=NAMESPACE)

    def try_take(
        self, now: datetime.datetime, monotonic: float, *, has_lapsed: Callable[[dict[str, Any]], bool] = _never
    ) -> str:
        """Try to acquire the Lease. Returns "" if this node holds it now, else the identity of the holder. has_lapsed: whether a Lease
        is over for another reason than that nobody has renewed it while this object looked."""
        found = self.api.get(self.path)
        if found is None:
            with contextlib.suppress(kubeapi.AlreadyExists):
                self._held = self.api.create(self._render(now, None))
                self._renewed_at = monotonic
                return ""
            found = self.api.get(self.path) or self._render(now, None)
        holder = str(found["spec"].get("holderIdentity") or "")
        is_free = holder in ("", self.identity) or self._has_lapsed(found, monotonic) or has_lapsed(found)
        if not is_free:
            return holder
        try:
            self._held = self.api.replace(self._render(now, found))
        except kubeapi.ApiRefused as error:
            if error.http_status not in (404, 409):
                raise
            return holder or "another node"  # the other node was faster
        self._renewed_at = monotonic
        return ""

    def _has_lapsed(self, found: dict[str, Any], monotonic: float) -> bool:
        stamp = f"{found['spec'].get('holderIdentity')} {found['spec'].get('renewTime')}"
        if stamp != self._seen:
            self._seen, self._seen_at = stamp, monotonic
        return monotonic - self._seen_at > float(found["spec"].get("leaseDurationSeconds") or DURATION_S)

    def keep(self, now: datetime.datetime, monotonic: float) -> None:
        """Renew the Lease if it is due. If another node has acquired it meanwhile, give it up."""
        if self._held is None or monotonic - self._renewed_at < RENEW_EVERY_S:
            return
        self._renewed_at = monotonic
        try:
            self._held = self.api.replace(self._render(now, self._held))
        except kubeapi.ApiRefused as error:
            if error.http_status not in (404, 409):
                raise
            self._held = None

    def give_back(self) -> None:
        """Release the Lease, so that the next node can continue at once."""
        if self._held is not None:
            self._held = None
            self.api.delete(self.path)

    def _render(self, now: datetime.datetime, before: Optional[dict[str, Any]]) -> dict[str, Any]:
        stamp = now.strftime(MOMENT)
        meta: dict[str, Any] = {"name": self.name, "namespace": NAMESPACE}
        spec: dict[str, Any] = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.lasts_s,
            "renewTime": stamp,
            "acquireTime": stamp,
        }
        if before is not None:
            meta["resourceVersion"] = before["metadata"].get("resourceVersion")
            if before["spec"].get("holderIdentity") == self.identity:
                spec["acquireTime"] = before["spec"].get("acquireTime", stamp)
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
