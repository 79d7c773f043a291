"""What people said is as they want it: drift that is not told again, until something else is found there.

A node's own is in its record, and the cluster's is in a ConfigMap, so that every control plane knows it. Only digests of what was found
are kept. A static pod's record stays as kb wrote it: an upgrade still tells the edit from kb's own, and keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from kubeup.cluster.api import Api, path_of
from kubeup.cluster.objects import apply_objects, render_config_map
from kubeup.drift.drifted import Drift
from kubeup.engine.records import Records
from kubeup.json_text import parse_json_object

STEP = "drift/accepted"
"""The step of the record."""
CONFIG_MAP = "kb-accepted-drift"
KEY = "accepted"
_MAX_BYTES = 1 << 20

Accepted = Mapping[str, frozenset[str]]
"""Name -> the digests of what was accepted of it (Drift.seen)."""


def read_accepted(records: Records, api: Optional[Api]) -> Accepted:
    """Of this node, and of the cluster if it can be asked. Raises what the API raises."""
    own = records.of(STEP) or {}
    return {**_parse_cluster(api), **{name: frozenset(fields) for name, fields in own.items()}}


def drop_accepted(found: Iterable[Drift], accepted: Accepted) -> tuple[Drift, ...]:
    return tuple(one for one in found if one.seen not in accepted.get(one.name, frozenset()))


def accept(found: Iterable[Drift], *, records: Records, api: Optional[Api], now: str) -> None:
    """Remember what was found of these. now: `2026-11-30T10:00:00Z`. Raises HostError, and what the API raises."""
    listed = list(found)
    for one in listed:
        if not one.is_of_cluster:
            before = records.of(STEP) or {}
            records.put(STEP, {**before, one.name: {**before.get(one.name, {}), one.seen: now}})
    records.save()
    of_cluster = [one for one in listed if one.is_of_cluster]
    if of_cluster and api is not None:
        known = {name: set(seen) for name, seen in _parse_cluster(api).items()}
        for one in of_cluster:
            known.setdefault(one.name, set()).add(one.seen)
        text = json.dumps({name: sorted(seen) for name, seen in sorted(known.items())}, indent=1)
        apply_objects(api, [render_config_map(CONFIG_MAP, {KEY: text})])


def _parse_cluster(api: Optional[Api]) -> dict[str, frozenset[str]]:
    """What the cluster has; {} if there is none, or if somebody damaged it."""
    found = api.get(path_of("ConfigMap", CONFIG_MAP, namespace="kube-system")) if api is not None else None
    text = str(((found or {}).get("data") or {}).get(KEY, "{}"))
    try:
        data: Mapping[str, Any] = parse_json_object(text, "it", max_bytes=_MAX_BYTES)
    except ValueError:
        return {}
    return {name: frozenset(map(str, seen)) for name, seen in data.items() if isinstance(seen, list)}
