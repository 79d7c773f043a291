"""Finds fields of an object that kb applied before and no longer wants, and those that others set.

It reads managedFields, in which the API server records who set which field. Comparing the wanted fields with the object would not
find leftovers: they stay until the object is applied again, and then the server removes them.
Source: the Kubernetes documentation of server-side apply; sigs.k8s.io/structured-merge-diff
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from kubeup.cluster.api import FIELD_MANAGER, Object
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object

_MAX_KEYS = 64 << 10
_TOOLS = frozenset({FIELD_MANAGER, "kubeadm"})
"""The managers whose fields are no edit of somebody's."""
_NOBODY_KNOWS = "before-first-apply"
"""The manager of what an object had before it was first applied, if nobody had recorded who set it."""

Owned = Sequence[Mapping[str, Any]]
"""The fields of some managers below one place of an object, one FieldsV1 each."""


def find_left_over(found: Object, wanted: Object) -> list[str]:
    """The fields that kb applied before and `wanted` does not name: `data.config.conf`."""
    entries = found["metadata"].get("managedFields") or ()
    own = [one for one in entries if (one.get("manager"), one.get("operation")) == (FIELD_MANAGER, "Apply")]
    return [at for one in own for at in _walk(one.get("fieldsV1"), wanted, at="")]


def read_others(found: Object) -> Optional[Owned]:
    """The fields that somebody set who is neither kb nor kubeadm; None if the object does not say who set what."""
    entries = found["metadata"].get("managedFields") or ()
    if not entries or any(one.get("manager") == _NOBODY_KNOWS for one in entries):
        return None
    return [one.get("fieldsV1") or {} for one in entries if one.get("manager") not in _TOOLS]


@frozen
class Owner:
    """Somebody who is neither kb nor kubeadm. since: when they wrote last: `2026-11-30T10:00:00Z`, "" if that is not told."""

    manager: str
    since: str


def find_owners(found: Object, fields: Sequence[str]) -> list[Owner]:
    """Who of these others set something in a field, by its path: ("data", "Corefile"). What was there before anybody recorded it is
    nobody's. The status of an object does not count."""
    told = []
    for one in found["metadata"].get("managedFields") or ():
        place: Any = one.get("fieldsV1") or {}
        for field in fields:
            place = place.get(f"f:{field}") if isinstance(place, Mapping) else None
        if place is not None and one.get("manager") not in (*_TOOLS, _NOBODY_KNOWS) and not one.get("subresource"):
            told.append(Owner(str(one.get("manager") or ""), str(one.get("time") or "")))
    return told


def below(owned: Optional[Owned], field: str) -> Optional[Owned]:
    """What is owned in this field."""
    return None if owned is None else [one[f"f:{field}"] for one in owned if f"f:{field}" in one]


def below_item(owned: Optional[Owned], item: Mapping[str, Any]) -> Optional[Owned]:
    """What is owned in this item of a list that is merged by keys."""
    if owned is None:
        return None
    found = []
    for one in owned:
        for step, inner in one.items():
            keys = parse_json_object(step[2:], "it", max_bytes=_MAX_KEYS) if step.startswith("k:") else {}
            if keys and all(item.get(key, value) == value for key, value in keys.items()):
                found.append(inner)
    return found


def _walk(owned: object, wanted: object, *, at: str) -> Iterator[str]:
    """owned: FieldsV1, in which `f:` is a field, `k:` a list item by its keys, `v:` an item of a set, and `.` the element itself."""
    for step, below in owned.items() if isinstance(owned, Mapping) else ():
        kind, _, text = str(step).partition(":")
        if kind == "f":
            here, fields = f"{at}.{text}" if at else text, wanted if isinstance(wanted, Mapping) else {}
            is_named, inner = text in fields, fields.get(text)
        elif kind == "k":
            keys = parse_json_object(text, "it", max_bytes=_MAX_KEYS)
            here, inner = f"{at}[{','.join(map(str, keys.values()))}]", _find(wanted, keys)
            is_named = inner is not None
        else:
            continue
        if not is_named:
            yield here
        else:
            yield from _walk(below, inner, at=here)


def _find(items: object, keys: Mapping[str, Any]) -> object:
    """The wanted item with these keys. A key that the server defaulted may be missing in it."""
    listed: Sequence[object] = items if isinstance(items, list) else ()
    alike = (one for one in listed if isinstance(one, Mapping) and all(one.get(k, v) == v for k, v in keys.items()))
    return next(alike, None)
