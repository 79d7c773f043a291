"""The mark of a change that one control plane is trying: who joins or upgrades meanwhile would build on what may be gone in a minute.

It is an annotation of ConfigMap kubeadm-config, which every joining node reads, since it says what a new control plane is to be like:
`cp1 2026-11-30T08:35:00Z`. It does not last: some minutes after its end it counts no more, since whoever wrote it may be gone.
"""

from __future__ import annotations

import datetime
from typing import Any, Optional

from kubeup import moments
from kubeup.cluster.api import Api, ApiRefused, path_of
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen

ANNOTATION = "kb/tried-change"
LAPSE = datetime.timedelta(minutes=30)
"""For how long after its end a mark counts: the way back may have failed, and is tried again. Clocks of nodes differ, too."""
_PATH = path_of("ConfigMap", "kubeadm-config", namespace="kube-system")


@frozen
class Mark:
    """node: who tries a change. ends: until when, by its clock."""

    node: str
    ends: datetime.datetime


def parse_mark(found: Optional[dict[str, Any]]) -> Optional[Mark]:
    """The mark on ConfigMap kubeadm-config; None if it has none, or one that nobody understands."""
    text = str((((found or {}).get("metadata") or {}).get("annotations") or {}).get(ANNOTATION) or "")
    if not text:
        return None
    node, _, moment = text.partition(" ")
    ends = moments.find(moment)
    return Mark(node, ends) if ends is not None else None


def put(api: Api, node: str, *, ends: str) -> None:
    """Raises ApiRefused, Unreachable. ends: as in the record, `2026-11-30T08:35:00Z`."""
    api.patch(_PATH, {"metadata": {"annotations": {ANNOTATION: f"{node} {ends}"}}})


def remove(api: Api, node: str) -> None:
    """Remove the mark if it is this node's. Raises ApiRefused, Unreachable."""
    mark = parse_mark(api.get(_PATH))
    if mark is not None and mark.node == node:
        api.patch(_PATH, {"metadata": {"annotations": {ANNOTATION: None}}})


def refuse_elsewhere(api: Api, *, node: str) -> None:
    """Raises ClusterError (try-elsewhere) if a control plane other than `node` tries a change; ApiRefused but for 403, Unreachable."""
    try:
        refuse_marked(api.get(_PATH), now=api.host.now(), node=node)
    except ApiRefused as error:
        if error.http_status != 403:
            raise


def refuse_marked(config_map: Optional[dict[str, Any]], *, now: datetime.datetime, node: str) -> None:
    """The same for who has read ConfigMap kubeadm-config."""
    mark = parse_mark(config_map)
    if mark is None or mark.node == node or now > mark.ends + LAPSE:
        return
    raise ClusterError(
        f"control plane {mark.node} is trying a change",
        cause=f"unless it is confirmed, {mark.node} goes back by itself at {moments.show(mark.ends)}, and what is made meanwhile would not fit",
        remedy=f"on {mark.node}: kb reconfigure confirm, or kb reconfigure back; if that node is gone: "
        f"kubectl -n kube-system annotate configmap kubeadm-config {ANNOTATION}-",
        code="try-elsewhere",
    )
