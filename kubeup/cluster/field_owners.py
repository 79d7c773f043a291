"""Which fields of an object kb applied once and does not name any more.

Owns the reading of managedFields, in which the API server says who set which field by server-side apply. To look whether all that
is wanted is there does not show it: what is too much stays until the object is applied again, and then the server takes it away.
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
    """owned: FieldsV1. `f:` stands for a field, `k:` for an item of a list by its keys, `v:` for one of a set, `.` for the thing itself."""
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
    """The item of these keys. A key that the server filled in is not in it."""
    listed: Sequence[object] = items if isinstance(items, list) else ()
    alike = (one for one in listed if isinstance(one, Mapping) and all(one.get(k, v) == v for k, v in keys.items()))
    return next(alike, None)
