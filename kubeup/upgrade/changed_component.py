"""A change of a component's configuration (KubeletConfiguration, KubeProxyConfiguration): the document after it, checked.

Pure. The fields and their types are those of kubeup/config/schema.py. A component silently ignores a field that it does not know, so such a
field is refused here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from kubeup.config import kubelet_values, schema
from kubeup.config.documents import parse_documents
from kubeup.config.problems import Problems, shorten, suggest
from kubeup.errors import UsageError
from kubeup.frozen_values import frozen
from kubeup.trouble import Trouble
from kubeup.upgrade import changed_config
from kubeup.yaml_files import YAMLError, dump_yaml, load_mapping, load_yaml

Document = Mapping[str, Any]


@frozen
class Kind:
    """A component's configuration. word: its name on the command line; kind: of the document; struct: its fields; fixed: field -> why a
    running cluster cannot change it, and the way."""

    word: str
    kind: str
    struct: schema.Struct
    fixed: Mapping[str, tuple[str, str]]

    @property
    def api_version(self) -> str:
        return schema.COMPONENT_GROUPS[self.kind]


_OF_A_NODE = "each node has its own"
KINDS: Mapping[str, Kind] = {
    one.word: one
    for one in (
        Kind(
            "kubelet",
            "KubeletConfiguration",
            schema.KUBELET,
            {
                "staticPodPath": ("the control plane's manifests are there", "leave it as it is"),
                "clusterDomain": ("certificates, CoreDNS and running pods have it", "make a new cluster with it"),
                "containerRuntimeEndpoint": (_OF_A_NODE, "reset the node, and join it with --cri-socket"),
                "cgroupDriver": ("it has to be the runtime's, and running pods have groups of the present one",
                                 "drain and reset one node after the other, change its runtime, and join it again"),
            },
        ),
        Kind(
            "kube-proxy",
            "KubeProxyConfiguration",
            schema.KUBE_PROXY,
            {
                "clusterCIDR": ("every node has its part of it", "make a new cluster with another pod subnet"),
                "hostnameOverride": (_OF_A_NODE, "leave it as it is"),
            },
        ),
    )
}  # fmt: skip


# ---- the document after it


def change(document: Document, kind: Kind, *, sets: Sequence[tuple[str, str]], unsets: Sequence[str]) -> dict[str, Any]:
    """The document with these fields set, by (path, text), and those without. A path has dots between fields; of a map, what follows is the
    key: `evictionHard.memory.available`. Raises UsageError (bad-setting)."""
    changed = copy.deepcopy(dict(document))
    for path in unsets:
        keys, _ = _find(kind, path, shown=f"--unset {shorten(path)}")
        _remove(changed, keys)
    for path, text in sets:
        shown = f"--set {shorten(f'{path}={text}')}"
        keys, wanted = _find(kind, path, shown=shown)
        place = changed
        for key in keys[:-1]:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        place[keys[-1]] = _parse(text, wanted, shown=shown)
    return changed


def lay_over(document: Document, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the fields of a file in place of its own. A field that is null there is taken away."""
    laid = {**copy.deepcopy(dict(document)), **fields}
    return {name: value for name, value in laid.items() if value is not None}


def _find(kind: Kind, path: str, *, shown: str) -> tuple[list[str], schema.Type]:
    """The keys of a path, and the type of what is there."""
    keys: list[str] = []
    found: schema.Type = kind.struct
    rest = path
    while True:
        if isinstance(found, schema.MapOf) and rest:
            keys.append(rest)
            return keys, found.item
        name, _, rest = rest.partition(".")
        if not isinstance(found, schema.Struct) or name not in found.fields:
            at = ".".join(keys)
            where = f"{kind.kind} has no field {shorten('.'.join((*keys, name)))}"
            known = list(found.fields) if isinstance(found, schema.Struct) else []
            remedy = suggest(name, known) if known else f"{at} holds no fields: write --set {at}=VALUE"
            raise UsageError(shown, cause=where, remedy=remedy, code="bad-setting")
        keys.append(name)
        found = found.fields[name]
        if not rest:
            return keys, found


def _remove(document: dict[str, Any], keys: Sequence[str]) -> None:
    place: Any = document
    for key in keys[:-1]:
        place = place.get(key) if isinstance(place, dict) else None
    if isinstance(place, dict):
        place.pop(keys[-1], None)
        if not place and len(keys) > 1:
            _remove(document, keys[:-1])


def _parse(text: str, wanted: schema.Type, *, shown: str) -> Any:
    """The value that a text stands for; a text stays one where the field is a text."""
    if isinstance(wanted, schema.Scalar) and wanted not in (schema.BOOL, schema.FLOAT) and wanted.bounds is None:
        return text
    try:
        return load_yaml(text)
    except YAMLError as error:
        raise UsageError(
            shown,
            cause=f"its value is not YAML: {error}",
            remedy="write it as in a YAML file: '[a, b]'",
            code="bad-setting",
        ) from error


# ---- what is wrong with it


def check(before: Document, after: Document, *, kind: Kind, minor: int) -> None:
    """Raises UsageError: not-changeable, invalid-config with the mistakes that the change makes. minor: of the Kubernetes that runs."""
    fixed = [
        Trouble(f"{name} of {kind.kind} cannot be changed", why, way)
        for name, (why, way) in kind.fixed.items()
        if before.get(name) != after.get(name)
    ]
    changed_config.refuse(fixed)
    known = {(one.path, one.message) for one in _find_problems(before, kind=kind, minor=minor).items}
    found = _find_problems(after, kind=kind, minor=minor)
    found.items = [one for one in found.items if (one.path, one.message) not in known]
    found.raise_if_any()


def _find_problems(document: Document, *, kind: Kind, minor: int) -> Problems:
    found = Problems()
    head = {"apiVersion": kind.api_version, "kind": kind.kind}
    parse_documents(dump_yaml({**document, **head}), "", problems=found)
    found.origins.clear()  # lines of a text that nobody has seen
    found.items = [type(one)("", 0, one.path, one.message, one.remedy, one.is_unknown) for one in found.items]
    for name in (name for name in document if name not in kind.struct.fields and name not in head):
        found.fail(kind.kind, name, message=f"unknown field {shorten(name)}", remedy=suggest(name, kind.struct.fields))
    for path, since in schema.find_newer_fields(kind.kind, document, minor=minor):
        found.fail(kind.kind, path, message=f"Kubernetes 1.{minor} has no such field", remedy=f"it came with 1.{since}")
    for path, what, remedy in kubelet_values.find_faults(document) if kind.word == "kubelet" else ():
        found.fail(kind.kind, path, message=f"{what}, and the kubelet does not start with it", remedy=remedy)
    return found


def split(text: str, place: str) -> dict[str, Any]:
    """The fields of a stored document, without apiVersion and kind. Raises HostError (not-a-yaml-mapping)."""
    return {name: value for name, value in load_mapping(text, place).items() if name not in ("apiVersion", "kind")}


def render(fields: Document, kind: Kind) -> str:
    """The document as its ConfigMap has it: without a line break at its end, as kubeadm writes kube-proxy's."""
    return dump_yaml({"apiVersion": kind.api_version, "kind": kind.kind, **fields}).rstrip("\n")


def changed_fields(before: Optional[Document], after: Document) -> set[str]:
    """The outermost fields that differ."""
    former = before or {}
    return {name for name in {*former, *after} if former.get(name) != after.get(name)}
