"""Events of a node that kb writes, so that who looks at the node in the cluster learns what a program on it did by itself."""

from __future__ import annotations

import datetime
from typing import Any

from kubeup import moments

MAX_MESSAGE = 1000
"""An Event's message may have 1024 characters (pkg/apis/core/validation/events.go)."""


def render_event(node: str, now: datetime.datetime, *, reason: str, message: str, kind: str, by: str) -> dict[str, Any]:
    """The Event. by: the unit that writes it, which its name begins with. Source: the kubelet's own events of its node, whose
    involvedObject has the node's name as its uid; without a namespace of its own, the API server accepts it in `default` alone."""
    moment = moments.show(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{node}.{by}.{now:%Y%m%d%H%M%S}.{reason.lower()}", "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "type": kind,
        "source": {"component": "kb", "host": node},
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
