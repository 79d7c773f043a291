"""Finds fields of an object that kb applied before and no longer wants.

It reads managedFields, in which the API server records who set which field by server-side apply. Comparing the wanted fields with
the object would not find such leftovers: they stay until the object is applied again, and then the server removes them.
Source: the Kubernetes documentation of server-side apply; sigs.k8s.io/structured-merge-diff
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kubeup.cluster.api import FIELD_MANAGER, Object
from kubeup.json_text import parse_json_object

_MAX_KEYS = 64 << 10


def find_left_over(found: Object, wanted: Object) -> list[str]:
    """The fields that kb applied before and `wanted` does not name: `data.config.conf`."""
    entries = found["metadata"].get("managedFields") or ()
    own = [one for one in entries if (one.get("manager"), one.get("operation")) == (FIELD_MANAGER, "Apply")]
    return [at for one in own for at in _walk(one.get("fieldsV1"), wanted, at="")]


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
