"""What others changed in an addon's object stays when the object of the next version is applied.

Three values are compared, field by field: what kb or kubeadm writes (of any version that kb knows), what is there, and what the new
version wants. A field that differs from all that these tools write, and that somebody else set, is an edit. It is left out of what kb
applies, so it stays, and stays its owner's. This module talks to no cluster. kubeadm replaces the whole object, and keeps the number
of CoreDNS' replicas.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from kubeup.cluster import field_owners
from kubeup.cluster.api import Object
from kubeup.frozen_values import frozen
from kubeup.yaml_files import covers

_KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "ports": ("containerPort", "port", "protocol"),
}
"""Lists that are merged by these keys of their items; every other list is one value. Source: x-kubernetes-list-map-keys of the
OpenAPI schemas"""
_ALWAYS = ("containers", "initContainers")
"""Lists whose items stay wanted even if somebody removed them: without its container, the addon would not be upgraded."""
_WHOLE = ("nodeSelector",)
"""Maps that are one value. Source: x-kubernetes-map-type of the OpenAPI schemas"""
_DEFAULTS = {"protocol": "TCP"}


@frozen
class Edit:
    """A field that others set, or removed (`found` is ""). is_kept: False if the new version wants something else there than the former
    one, so that it cannot be kept."""

    field: str
    found: str
    wanted: str
    is_kept: bool


class _Gone:
    """Stands for a field that is left out."""


_GONE = _Gone()


def keep_edits(wanted: Object, found: Optional[Object], *, bases: Sequence[Object]) -> tuple[Object, tuple[Edit, ...]]:
    """`wanted` without the fields that others changed in `found`, and these fields.

    bases: the same object as kb and kubeadm write it for other versions."""
    if found is None:
        return wanted, ()
    edits: list[Edit] = []
    others = field_owners.read_others(found)
    made = dict(wanted)
    for part in ("metadata", "spec"):
        if part not in wanted:
            continue
        here = _Place([base.get(part) for base in bases], field_owners.below(others, part), part)
        kept = _merge(wanted[part], found.get(part), here=here, edits=edits)
        made[part] = wanted[part] if isinstance(kept, _Gone) else kept
    return made, tuple(edits)


@frozen
class _Place:
    """A place in the object: what the other versions have there (None: nothing), what others own there, and its name."""

    bases: Sequence[Any]
    others: Optional[field_owners.Owned]
    name: str

    def field(self, key: str) -> _Place:
        bases = [base.get(key) if isinstance(base, Mapping) else None for base in self.bases]
        return _Place(bases, field_owners.below(self.others, key), f"{self.name}.{key}")

    def item(self, keys: tuple[str, ...], item: Mapping[str, Any]) -> _Place:
        bases = [_find(base, keys, item=item) for base in self.bases]
        told = ",".join(str(item[key]) for key in keys if key in item)
        return _Place(bases, field_owners.below_item(self.others, item), f"{self.name}[{told}]")

    def has_always_been(self) -> bool:
        return bool(self.bases) and all(base is not None for base in self.bases)


def _merge(wanted: Any, found: Any, *, here: _Place, edits: list[Edit]) -> Any:
    name = here.name.rpartition(".")[2]
    if isinstance(wanted, Mapping) and isinstance(found, Mapping) and name not in _WHOLE:
        if here.name == "spec.selector":
            return wanted
        parts = {key: _part(value, found.get(key), here=here.field(key), edits=edits) for key, value in wanted.items()}
        left = {key: value for key, value in parts.items() if not isinstance(value, _Gone)}
        return left if left or not wanted else _GONE
    keys = _KEYS.get(name, ())
    if keys and isinstance(wanted, list) and isinstance(found, list):
        return _merge_list(wanted, found, here=here, keys=keys, edits=edits)
    return _judge(wanted, found, here=here, edits=edits)


def _part(wanted: Any, found: Any, *, here: _Place, edits: list[Edit]) -> Any:
    """One field, or item of a list; `found` is None where it is missing."""
    if found is not None:
        return _merge(wanted, found, here=here, edits=edits)
    if covers(None, wanted) or not here.has_always_been():
        return wanted
    edits.append(Edit(here.name, "", _show(wanted), is_kept=True))
    return _GONE


def _merge_list(
    wanted: Sequence[Mapping[str, Any]], found: object, *, here: _Place, keys: tuple[str, ...], edits: list[Edit]
) -> Any:
    left = []
    for item in wanted:
        there, place = _find(found, keys, item=item), here.item(keys, item)
        if there is None and place.name.rpartition("[")[0].rpartition(".")[2] in _ALWAYS:
            left.append(item)
            continue
        kept = _part(item, there, here=place, edits=edits)
        if not isinstance(kept, _Gone):
            left.append({**{key: item[key] for key in keys if key in item}, **kept})
    return left or _GONE


def _find(items: object, keys: Sequence[str], *, item: Mapping[str, Any]) -> Optional[Mapping[str, Any]]:
    def name_of(one: Mapping[str, Any]) -> list[Any]:
        return [one.get(key, _DEFAULTS.get(key)) for key in keys]

    listed = items if isinstance(items, list) else ()
    return next((one for one in listed if isinstance(one, Mapping) and name_of(one) == name_of(item)), None)


def _judge(wanted: Any, found: Any, *, here: _Place, edits: list[Edit]) -> Any:
    """A value that is owned as a whole."""
    is_same = operator.eq if isinstance(wanted, Mapping) else covers
    if is_same(found, wanted) or any(base is not None and is_same(found, base) for base in here.bases):
        return wanted
    if here.others is not None and not here.others:
        return wanted  # kb or kubeadm set it: a version that this kb does not know
    is_kept = here.has_always_been() and all(is_same(base, wanted) for base in here.bases)
    edits.append(Edit(here.name, _show(found), _show(wanted), is_kept=is_kept))
    return _GONE if is_kept else wanted


def _show(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (Mapping, list)) else str(value)
