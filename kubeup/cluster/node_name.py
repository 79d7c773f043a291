"""Decides whether a joining machine may take the name of an existing node."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from kubeup.errors import ClusterError


def check_node_name(node: Optional[Mapping[str, Any]], own_addresses: Sequence[str], *, now: datetime.datetime) -> str:
    """Check that this machine may have the name of `node`. Returns a note if it takes over an existing node, else "".

    Raises ClusterError (node-name-taken) if the node is Ready on another machine: two kubelets with the same name would take
    each other's pods away.
    """
    if node is None:
        return ""
    name = str(node["metadata"]["name"])
    status = node.get("status") or {}
    addresses = [
        str(entry.get("address")) for entry in status.get("addresses") or () if entry.get("type") == "InternalIP"
    ]
    is_ready = any(
        entry.get("type") == "Ready" and entry.get("status") == "True" for entry in status.get("conditions") or ()
    )
    if set(addresses) & set(own_addresses):
        return f"node {name} is this machine's, from before: it is used again"
    age = describe_age(str(node["metadata"].get("creationTimestamp", "")), now)
    if not is_ready:
        return f"node {name} ({', '.join(addresses) or 'no address'}, {age} old) exists but is not Ready: this machine takes its place"
    raise ClusterError(
        f"the cluster has a node {name} already, and it is Ready",
        cause=f"it has the address {', '.join(addresses) or 'none'} and is {age} old; this machine has "
        f"{', '.join(own_addresses) or 'no address'}",
        remedy=f"give this one another name (--node-name), or remove the other, on a control plane: kb node remove {name}",
        code="node-name-taken",
    )


def describe_age(created: str, now: datetime.datetime) -> str:
    """`3 d`, `5 h`, `12 min`, `40 s`."""
    try:
        born = datetime.datetime.strptime(created[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return "?"
    seconds = max(0, int((now - born).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
