"""The fields of objects and who owns them, as server-side apply has it.

An object is laid out flat: a path to each value that is owned as a whole. What a list or a map is (merged by its items'
keys, a set, or owned as a whole) comes from the schemas that the API server publishes. Left out: server-side defaults,
subresources and the times of managedFields.
Source: the Kubernetes documentation of server-side apply; sigs.k8s.io/structured-merge-diff
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate

Object = dict[str, Any]
Field = tuple[str, ...]
"""`f:name` for a field, `k:{"name":"x"}` for an item of a list with keys, `v:"x"` for one of a set."""
Owners = dict[str, set[Field]]
"""A manager as `name Apply` or `name Update` -> the fields that are its own."""

BEFORE = "before-first-apply Update"
"""Owns what an object had of which nobody knows who wrote it."""
_SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema/v1.34.0-local/_definitions.json"
_ITEM = ("an item of a list",)
_NOBODYS = {"name", "namespace", "uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"}


class Conflict(Exception):
    """An apply without force would change a field that is another manager's."""


@functools.cache
def _definitions() -> dict[str, Any]:
    return dict(json.loads(_SCHEMAS.read_text())["$defs"])


@functools.cache
def _kinds() -> dict[tuple[str, str], Any]:
    found = {}
    for schema in _definitions().values():
        own = schema.get("properties", {})
        for version in own.get("apiVersion", {}).get("enum", ()):
            found.update({(version, kind): schema for kind in own.get("kind", {}).get("enum", ())})
    return found


def _resolve(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    target = _definitions()[schema["$ref"].rpartition("/")[2]]
    return {**target, **{name: value for name, value in schema.items() if name != "$ref"}}


def _walk(value: Any, schema: Mapping[str, Any], path: Field) -> Iterator[tuple[Field, Any]]:
    schema = _resolve(schema)
    keys, kind = schema.get("x-kubernetes-list-map-keys"), schema.get("x-kubernetes-list-type")
    if isinstance(value, dict) and value and schema.get("x-kubernetes-map-type") != "atomic":
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        for name, inner in value.items():
            known = properties.get(name, others if isinstance(others, dict) else {})
            yield from _walk(inner, known, (*path, f"f:{name}"))
    elif isinstance(value, list) and value and kind == "map" and keys:
        for item in value:
            mine = (*path, "k:" + json.dumps({key: item.get(key, "TCP" if key == "protocol" else "") for key in keys}))
            yield mine, _ITEM
            yield from _walk(item, schema.get("items", {}), mine)
    elif isinstance(value, list) and value and kind == "set":
        yield from (((*path, "v:" + json.dumps(item)), item) for item in value)
    else:
        yield path, value


def lay_out(obj: Object) -> dict[Field, Any]:
    """Every field of the object that somebody can own."""
    schema = _kinds().get((str(obj.get("apiVersion")), str(obj.get("kind"))), {})
    return {
        path: value
        for path, value in _walk(obj, schema, ())
        if path
        and path[0] not in ("f:apiVersion", "f:kind")
        and not (path[0] == "f:metadata" and (len(path) == 1 or path[1][2:] in _NOBODYS))
    }


def put_together(head: Object, flat: Mapping[Field, Any]) -> Object:
    """The object of these fields, with apiVersion, kind and the nameless metadata of `head`."""
    made: Object = {name: head[name] for name in ("apiVersion", "kind") if name in head}
    made["metadata"] = {name: value for name, value in head.get("metadata", {}).items() if name in _NOBODYS}
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for step in path[:-1]:
            if not isinstance(node.get(step), dict):  # nothing yet, or an empty map that somebody fills
                node[step] = {}
            node = node[step]
        if value is _ITEM:
            node.setdefault(path[-1], {})
        elif not (value in ({}, []) and node.get(path[-1])):
            node[path[-1]] = _Leaf(value)
    for name, value in tree.items():
        built = _build(value)
        made[name[2:]] = {**made["metadata"], **built} if name == "f:metadata" else built
    return made


class _Leaf:
    def __init__(self, value: Any) -> None:
        self.value = value


def _build(node: Any) -> Any:
    if isinstance(node, _Leaf):
        return copy.deepcopy(node.value)
    if any(step.startswith(("k:", "v:")) for step in node):
        return [_build(below) for below in node.values()]
    return {step[2:]: _build(below) for step, below in node.items()}


def _is_below(path: Field, folder: Field) -> bool:
    return path[: len(folder)] == folder


def _is_key(path: Field) -> bool:
    return len(path) > 1 and path[-2].startswith("k:") and path[-1][2:] in json.loads(path[-2][2:])


def apply(before: Object, wanted: Object, owners: Owners, *, manager: str, force: bool) -> Object:
    """The object after `manager` applied `wanted`; `owners` is brought up to date. Raises Conflict."""
    me = f"{manager} Apply"
    flat, new = lay_out(before), lay_out(wanted)
    others = {name: fields for name, fields in owners.items() if name != me}
    changed = {path for path, value in new.items() if path in flat and flat[path] != value}
    lost = {name: fields & changed for name, fields in others.items() if fields & changed}
    if lost and not force:
        told = [
            f'conflict with "{name}": {show(path)}' for name, paths in sorted(lost.items()) for path in sorted(paths)
        ]
        raise Conflict(f"Apply failed with {len(told)} conflict{'s' * (len(told) > 1)}: {'; '.join(told)}")
    for name, paths in lost.items():
        owners[name] = owners[name] - paths
    for path in sorted(owners.get(me, set()) - set(new), key=len):
        _give_up(flat, path, [fields for name, fields in owners.items() if name != me], new)
    for path, value in new.items():
        for above in (path[:length] for length in range(1, len(path))):
            if above in flat and flat[above] is not _ITEM:
                del flat[above]
        flat[path] = value
    flat = {
        path: flat[path] for path in (*new, *flat)
    }  # the items of a list come in the order in which they are applied
    owners[me] = set(new)
    return put_together({**before, **wanted, "metadata": {**wanted["metadata"], **before.get("metadata", {})}}, flat)


def _give_up(flat: dict[Field, Any], path: Field, others: Iterable[set[Field]], new: Iterable[Field]) -> None:
    """Take a field away that is no longer applied, unless it is somebody else's as well. An item of a list goes with all
    that nobody owns below it, and stays with its keys where somebody owns a field of it."""
    theirs = [*(field for fields in others for field in fields), *new]
    if any(_is_below(field, path[:-1] if _is_key(path) else path) for field in theirs):
        return
    for found in [found for found in flat if _is_below(found, path)]:
        del flat[found]


def update(before: Object, after: Object, owners: Owners, *, manager: str) -> None:
    """Bring `owners` up to date after a change that was no apply: who changes a field owns it alone."""
    old, new = lay_out(before), lay_out(after)
    changed = {path for path, value in new.items() if path not in old or old[path] != value}
    for name in owners:
        owners[name] = owners[name] - changed - (set(old) - set(new))
    owners[f"{manager} Update"] = owners.get(f"{manager} Update", set()) | changed


def nest(fields: Iterable[Field]) -> Object:
    """As managedFields has them: fieldsV1."""
    tree: Object = {}
    for path in fields:
        node = tree
        for step in path:
            node = node.setdefault(step, {})
    return tree


def show(path: Field) -> str:
    """`.spec.template.spec.containers[name="x"].image`"""
    text = ""
    for step in path:
        keys = (
            ",".join(f"{key}={json.dumps(value)}" for key, value in json.loads(step[2:]).items())
            if step[:2] == "k:"
            else ""
        )
        text += f"[{keys}]" if keys else f".{step[2:]}"
    return text
