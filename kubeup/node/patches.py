"""Reads the user's patches (--patches, patches.directory) and applies them to what kb generates.

There are three kinds of patch: strategic merge, JSON merge (RFC 7386), JSON patch (RFC 6902). This module knows no phase, and never
changes the object that it is given. Mirrors cmd/kubeadm/app/util/patches/patches.go.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional

from kubeup import yaml_files
from kubeup.errors import UsageError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.machine.local_host import LocalHost

TARGETS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubeletconfiguration",
    "corednsdeployment",
    "kubeproxydaemonset",
)
KINDS = ("strategic", "merge", "json")

MERGE_KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "schedulingGates": "name",
    "resourceClaims": "name",
    "topologySpreadConstraints": "topologyKey",
    "conditions": "type",
    "podIPs": "ip",
    "hostIPs": "ip",
    "ownerReferences": "uid",
}
"""The lists in Pod, Deployment and DaemonSet whose items are merged individually, with the merge key that identifies an item. Every
other list (command, args, tolerations, ...) is replaced as a whole."""

MERGED_PRIMITIVE_LISTS = frozenset({"finalizers"})
"""Lists of plain values that a strategic patch adds to."""

_EXTENSION = re.compile(r".+\.(json|yaml)", re.DOTALL)
_FILE_NAME = re.compile(rf"(?P<target>{'|'.join(TARGETS)})[^.+\n]*(?P<plus>\+)?(?P<kind>json|merge|strategic)?")
"""As in kubeadm's parseFilename, only the beginning of a name counts: `etcd.prod.yaml` is a strategic patch for etcd, and
`etcd0+json-audit.yaml` a JSON patch."""

MAX_VALUES = 20_000
MAX_DEPTH = 100
"""Limits of an object with its patches applied, because copies of copies could grow without end."""


@frozen
class Patch:
    """One document of a patch file."""

    path: Path
    target: str
    kind: str
    body: Any


@frozen
class Patches:
    """All patches of a directory, in the order in which they apply."""

    patches: tuple[Patch, ...] = ()
    ignored: tuple[str, ...] = ()
    """For each file that is no patch, a sentence that says why."""

    def for_target(self, target: str) -> tuple[Patch, ...]:
        return tuple(patch for patch in self.patches if patch.target == target)

    def apply(self, target: str, obj: Mapping[str, Any]) -> dict[str, Any]:
        """`obj` with all patches for `target` applied. Raises UsageError (patch-failed), which names the file and place."""
        patched: Any = copy.deepcopy(dict(obj))
        for patch in self.for_target(target):
            patched = _APPLY[patch.kind](patched, copy.deepcopy(patch.body), patch)
            if not isinstance(patched, dict):
                _fail(patch, "", cause="its result is not an object")
            _check_size(patched, patch, place="")
        result: dict[str, Any] = patched
        return result


# ---- reading


def read_patches(host: Host, directory: str) -> Patches:
    """The patches below `directory` ("" for none), including subfolders, sorted by name.

    Raises UsageError: patches-directory-missing, patch-invalid.
    """
    if not directory:
        return Patches()
    root = Path(directory)
    host = _find_reader(host, root)
    if not host.is_dir(root):
        raise UsageError(
            f"patches directory {directory}",
            cause="it is not a directory" if host.exists(root) else "there is no such directory",
            remedy="give --patches (or patches.directory) the folder that holds your patch files",
            code="patches-directory-missing",
        )
    patches: list[Patch] = []
    ignored: list[str] = []
    for path in _walk(host, root):
        match = _FILE_NAME.match(path.name)
        if match is None or not _EXTENSION.fullmatch(path.name):
            ignored.append(f"{path} is not a patch: {_why_no_patch(path.name)}")
            continue
        if match["plus"] and not match["kind"]:
            _refuse(path, "no kind of patch follows the + of its name", remedy=f"call it +{', +'.join(KINDS)}")
        data = host.read_bytes(path)
        if not data:
            ignored.append(f"{path} is not a patch: it is empty")
        kind = match["kind"] or "strategic"
        patches.extend(Patch(path, match["target"], kind, body) for body in _parse_documents(path, data, kind=kind))
    return Patches(tuple(patches), tuple(ignored))


def _find_reader(host: Host, root: Path) -> Host:
    """The host on which to read the folder. With --root, the folder is first looked for below the root, as kubeadm does with --rootfs.
    Otherwise it is on the operator's machine, like the configuration file that names it."""
    if host.mode != "root" or (root.is_absolute() and host.is_dir(root)):
        return host
    return LocalHost()


def _walk(host: Host, folder: Path) -> list[Path]:
    files: list[Path] = []
    for name in host.list_dir(folder):
        path = folder / name
        found = host.stat(path)
        if found is not None and found.is_dir:
            files.extend(_walk(host, path))
        elif not host.is_dir(path):  # links to folders are not followed, because they could form a loop
            files.append(path)
    return files


def _why_no_patch(name: str) -> str:
    if not _EXTENSION.fullmatch(name):
        return "its name does not end in .yaml or .json"
    return f"its name does not begin with {', '.join(TARGETS[:-1])} or {TARGETS[-1]}"


def _parse_documents(path: Path, data: bytes, *, kind: str) -> list[Any]:
    try:
        bodies = yaml_files.load_all_yaml(data)
    except yaml_files.YAMLError as error:
        _refuse(path, f"it cannot be read: {error}", remedy=f"correct {path}")
    wanted, words = (list, "a list of operations") if kind == "json" else (dict, "an object")
    for body in bodies:
        if not isinstance(body, wanted):
            _refuse(
                path,
                f"a {kind} patch is {words}, this is not",
                remedy=f"correct {path}, or name its kind (+{KINDS[0]})",
            )
    return bodies


def _refuse(path: Path, cause: str, *, remedy: str) -> NoReturn:
    raise UsageError(f"patch {path}", cause=cause, remedy=f"{remedy}, then run the command again", code="patch-invalid")


def _fail(patch: Patch, place: str, *, cause: str) -> NoReturn:
    where = f" at {place}" if place else ""
    raise UsageError(
        f"patch {patch.path} ({patch.kind}) does not fit {patch.target}{where}",
        cause=cause,
        remedy=f"correct {patch.path}, then run the command again",
        code="patch-failed",
    )


def _check_size(obj: Any, patch: Patch, *, place: str) -> None:
    """Fail if the object is too large or too deep. It is walked level by level, without recursion."""
    level, count, depth = [obj], 0, 0
    while level:
        count, depth = count + len(level), depth + 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            _fail(
                patch,
                place,
                cause=f"the object would hold more than {MAX_VALUES} values, or be more than {MAX_DEPTH} deep",
            )
        level = [
            child
            for value in level
            if isinstance(value, (dict, list))
            for child in (value.values() if isinstance(value, dict) else value)
        ]


# ---- JSON merge patch, RFC 7386


def merge_json(target: Any, patch: Any) -> Any:
    """`target` with a JSON merge patch applied: objects are merged, null removes, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_json(merged.get(key), value)
    return merged


# ---- JSON patch, RFC 6902


def _apply_json_patch(obj: Any, operations: Sequence[Any], patch: Patch) -> Any:  # noqa: PLR0917
    for index, operation in enumerate(operations):
        obj = _JsonOperation(patch, index, operation=operation).apply(obj)
        if operation["op"] == "copy":
            _check_size(obj, patch, place=f"operation {index + 1} (copy)")
    return obj


class _JsonOperation:
    """One operation of a JSON patch. It knows its position in the file, for error messages.

    Patches that work with kubeadm must work here, so this allows more than the RFC, as kubeadm's library does: replace may set a
    missing field, test treats a missing field as null, and negative indexes count from the end of a list.
    """

    def __init__(self, patch: Patch, index: int, *, operation: Any) -> None:
        self.patch = patch
        self.index = index
        if not isinstance(operation, dict):
            self.fail("an operation is an object")
        self.fields = operation
        self.op = str(self.take("op"))

    def apply(self, obj: Any) -> Any:
        path = str(self.take("path"))
        if self.op == "test":
            want = self.fields.get("value")
            have = None if want is None and self.is_absent(obj, path) else self.look_up(obj, path)
            if not _is_same(have, want):
                self.fail(f"test of {path!r} found {json.dumps(have)}, not {json.dumps(want)}")
            return obj
        if self.op == "remove":
            return self.remove(obj, path)
        if self.op == "replace":
            return self.put(obj, path, value=self.take("value"), is_replacing=True)
        if self.op == "add":
            return self.put(obj, path, value=self.take("value"))
        if self.op in ("move", "copy"):
            source = str(self.take("from"))
            value = copy.deepcopy(self.look_up(obj, source))
            if self.op == "move":
                if path.startswith(source + "/"):
                    self.fail(f"{source!r} cannot be moved into itself")
                obj = self.remove(obj, source)
            return self.put(obj, path, value=value)
        return self.fail(f"there is no operation {self.op!r}")

    def take(self, name: str) -> Any:
        if name not in self.fields:
            self.fail(f"it has no {name!r}")
        return self.fields[name]

    def fail(self, cause: str) -> NoReturn:
        op = f" ({self.op})" if hasattr(self, "op") else ""
        _fail(self.patch, f"operation {self.index + 1}{op}", cause=cause)

    def split(self, pointer: str) -> list[str]:
        if pointer and not pointer.startswith("/"):
            self.fail(f"path {pointer!r} does not begin with /")
        return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]

    def look_up(self, obj: Any, pointer: str) -> Any:
        for part in self.split(pointer):
            if isinstance(obj, dict):
                if part not in obj:
                    self.fail(f"there is nothing at {pointer!r}: no field {part!r}")
                obj = obj[part]
            elif isinstance(obj, list):
                obj = obj[self.item(obj, part, pointer=pointer)]
            else:
                self.fail(f"there is nothing at {pointer!r}: {part!r} is looked for in a plain value")
        return obj

    def is_absent(self, obj: Any, pointer: str) -> bool:
        """Whether `pointer` names a missing field of an object."""
        parts = self.split(pointer)
        owner = self.look_up(obj, pointer.rpartition("/")[0])
        return bool(parts) and isinstance(owner, dict) and parts[-1] not in owner

    def item(self, items: list[Any], part: str, *, pointer: str, limit: Optional[int] = None) -> int:
        """The index in a list that `part` means; `limit` is the first invalid one."""
        end = len(items) if limit is None else limit
        if not re.fullmatch(r"0|-?[1-9][0-9]*", part):
            self.fail(f"{part!r} in {pointer!r} is not an index of a list")
        place = int(part) if int(part) >= 0 else end + int(part)
        if not 0 <= place < end:
            self.fail(f"there is nothing at {pointer!r}: the list has {len(items)} items, counted from 0")
        return place

    def put(self, obj: Any, pointer: str, *, value: Any, is_replacing: bool = False) -> Any:
        parts = self.split(pointer)
        if not parts:
            return value
        owner = self.look_up(obj, pointer.rpartition("/")[0])
        if isinstance(owner, dict):
            owner[parts[-1]] = value
        elif isinstance(owner, list) and is_replacing:
            owner[self.item(owner, parts[-1], pointer=pointer)] = value
        elif isinstance(owner, list):
            end = len(owner)
            owner.insert(
                end if parts[-1] == "-" else self.item(owner, parts[-1], pointer=pointer, limit=end + 1), value
            )
        else:
            self.fail(f"{pointer!r} is inside a plain value")
        return obj

    def remove(self, obj: Any, pointer: str) -> Any:
        self.look_up(obj, pointer)
        parts = self.split(pointer)
        if not parts:
            self.fail("the whole object cannot be removed")
        owner = self.look_up(obj, pointer.rpartition("/")[0])
        del owner[parts[-1] if isinstance(owner, dict) else self.item(owner, parts[-1], pointer=pointer)]
        return obj


def _is_same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; true is not equal to 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# ---- strategic merge patch


def _apply_strategic(obj: Any, body: Any, patch: Patch) -> Any:  # noqa: PLR0917
    # KubeletConfiguration has no lists with a merge key
    keys = {} if patch.target == "kubeletconfiguration" else MERGE_KEYS
    return _StrategicMerge(patch, keys).merge_object(obj, body, place="")


_ORDER, _DELETE_FROM = "$setElementOrder/", "$deleteFromPrimitiveList/"


class _StrategicMerge:
    """Merges objects by Kubernetes' rules. `place` is the path in the patch, for error messages."""

    def __init__(self, patch: Patch, merge_keys: Mapping[str, str]) -> None:
        self.patch = patch
        self.merge_keys = merge_keys

    def merge_object(self, have: Mapping[str, Any], patch: Mapping[str, Any], *, place: str) -> dict[str, Any]:
        directive = patch.get("$patch")
        plain = {key: value for key, value in patch.items() if not key.startswith("$")}
        if directive == "replace":
            return plain
        if directive == "delete":
            return {}
        if directive not in (None, "merge"):
            _fail(self.patch, f"{place}/$patch", cause=f"{directive!r} is none of replace, delete, merge")
        merged = dict(have)
        if "$retainKeys" in patch:
            kept = self.list_of_directive(patch, "$retainKeys", place=place)
            merged = {key: value for key, value in merged.items() if key in kept}
        for key in [key for key in patch if key.startswith(_DELETE_FROM)]:
            field, gone = key[len(_DELETE_FROM) :], self.list_of_directive(patch, key, place=place)
            if isinstance(merged.get(field), list):
                merged[field] = [item for item in merged[field] if item not in gone]
        for key in [key for key in patch if key.startswith(_ORDER)]:
            plain.setdefault(key[len(_ORDER) :], [])
        for key, value in plain.items():
            order = self.list_of_directive(patch, _ORDER + key, place=place) if _ORDER + key in patch else None
            self.merge_field(merged, key, value=value, order=order, place=f"{place}/{key}")
        return merged

    def list_of_directive(self, patch: Mapping[str, Any], key: str, *, place: str) -> list[Any]:
        value = patch[key]
        if not isinstance(value, list):
            _fail(self.patch, f"{place}/{key}", cause="it is not a list")
        return list(value)

    def merge_field(
        self, merged: dict[str, Any], key: str, *, value: Any, order: Optional[list[Any]], place: str
    ) -> None:
        have = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = self.merge_object(have if isinstance(have, dict) else {}, value, place=place)
        elif isinstance(value, list) and (key in self.merge_keys or key in MERGED_PRIMITIVE_LISTS):
            items = have if isinstance(have, list) else []
            result = self.merge_list(items, value, merge_key=self.merge_keys.get(key, ""), order=order, place=place)
            if result or have is not None:
                merged[key] = result
        else:
            merged[key] = value

    def merge_list(
        self, have: list[Any], patch: list[Any], *, merge_key: str, order: Optional[list[Any]], place: str
    ) -> list[Any]:
        if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
            return [item for item in patch if not (isinstance(item, dict) and "$patch" in item)]
        deleted: list[tuple[Any, Any, str]] = []
        wanted: list[tuple[Any, Any, str]] = []
        for index, item in enumerate(patch):
            name = self.name_of_item(item, merge_key, place=f"{place}/{index}")
            is_deletion = isinstance(item, dict) and item.get("$patch") == "delete"
            (deleted if is_deletion else wanted).append((name, item, f"{place}/{index}"))
        merged = {
            name: item
            for index, item in enumerate(have)
            if (name := self.name_of_item(item, merge_key, place=f"{place} (generated) {index}"))
            not in [gone for gone, _, _ in deleted]
        }
        names_had = list(merged)
        for name, item, where in wanted:
            merged[name] = (
                self.merge_object(merged.get(name, {}), item, place=where) if isinstance(item, dict) else item
            )
        names_patched = [name for name, _, _ in wanted]
        if order is not None:
            names_patched = [
                name
                for entry in order
                if (name := self.name_of_item(entry, merge_key, place=f"{place} (order)")) in merged
            ]
        return [merged[name] for name in order_items(names_had, names_patched)]

    def name_of_item(self, item: Any, merge_key: str, *, place: str) -> Any:
        """What identifies an item of a merged list: the value of its merge key, or the item itself."""
        if not merge_key and isinstance(item, (str, int)):
            return item
        if not isinstance(item, dict) or not isinstance(item.get(merge_key), (str, int)):
            _fail(self.patch, place, cause=f"the item has no {merge_key!r}, which tells the items of this list apart")
        return item[merge_key]


def order_items(had: Sequence[Any], patched: Sequence[Any]) -> list[Any]:
    """The order of a merged list. The patch's items keep the patch's order, and the others keep theirs. An item that is only in the
    patch comes before the remaining others; an item that is in both keeps its old place among them."""
    others = [name for name in had if name not in patched]
    rest = list(dict.fromkeys(patched))
    ordered: list[Any] = []
    while others and rest:
        is_other_first = rest[0] in had and had.index(others[0]) < had.index(rest[0])
        ordered.append((others if is_other_first else rest).pop(0))
    return ordered + others + rest


def _apply_merge(obj: Any, body: Any, patch: Patch) -> Any:  # noqa: PLR0917
    return merge_json(obj, body)


_APPLY: Mapping[str, Callable[[Any, Any, Patch], Any]] = {
    "strategic": _apply_strategic,
    "merge": _apply_merge,
    "json": _apply_json_patch,
}
