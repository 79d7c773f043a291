"""Parses text into checked trees: multi-document YAML (or JSON), decoded strictly by the tables of schema.py.

A tree is the document as plain dicts and lists, with the document's own field names and durations as whole seconds. An
unknown, duplicate or wrongly typed field becomes a problem with its line. No content of a file raises an exception here
or takes long to parse. Fills in no defaults and validates no values. Source: cmd/kubeadm/app/util/marshal.go,
cmd/kubeadm/app/util/config/strict/strict.go (kb is always strict)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Optional, Union

from kubeup import yaml_text as yaml
from kubeup.config import schema
from kubeup.config.problems import Problem, Problems, shorten, suggest
from kubeup.config.schema import (
    BOOL,
    DURATION,
    DURATION_OR_NUMBER,
    FLOAT,
    NUMBER,
    QUANTITY,
    TEXT,
    TIME,
    Anything,
    ListOf,
    MapOf,
    Scalar,
    Struct,
)
from kubeup.frozen_values import frozen
from kubeup.secret import Secret

MAX_BYTES = 2**20
MAX_NODES = 20_000
"""The maximum number of values in a file; each alias counts as everything that it refers to."""
MAX_DEPTH = 40

_TAG = "tag:yaml.org,2002:"


@frozen
class Document:
    """One document. tree lacks apiVersion and kind, and every field that was found to be wrong."""

    file: str
    line: int
    api_version: str
    kind: str
    tree: Mapping[str, Any]


_LIMITS = yaml.Limits(MAX_BYTES, MAX_NODES, MAX_DEPTH)


def parse_documents(data: Union[bytes, str], file: str, *, problems: Problems) -> list[Document]:
    """Decode every document in `data` whose kind kb knows. Problems and warnings are added to `problems`."""
    text = _decode_text(data, file, problems=problems)
    documents: list[Document] = []
    seen: dict[str, int] = {}
    for node in _compose(text, file, problems=problems) if text is not None else ():
        decoder = _Decoder(file, problems)
        document = decoder.decode_document(node)
        if document is None:
            continue
        if document.kind in seen:
            problems.add(
                Problem(
                    file,
                    document.line,
                    "",
                    f"kind {document.kind} is given twice (first in line {seen[document.kind]})",
                    "merge the two documents into one",
                )
            )
            continue
        seen[document.kind] = document.line
        problems.origins.update(decoder.origins)
        documents.append(document)
    return documents


def _decode_text(data: Union[bytes, str], file: str, *, problems: Problems) -> Optional[str]:
    if len(data) > MAX_BYTES:
        remedy = f"a configuration has at most {MAX_BYTES}: give another file"
        problems.add(Problem(file, 0, "", f"the file has {len(data)} bytes", remedy))
        return None
    try:
        return yaml.decode_text(data)
    except yaml.YAMLError as error:
        problems.add(Problem(file, error.line, "", error.problem, "give a YAML or JSON file in UTF-8"))
        return None


def _compose(text: str, file: str, *, problems: Problems) -> Iterator[Any]:
    counted = [0]
    try:
        for line, document in yaml.split_documents(text):
            node = yaml.compose(document, _LIMITS, line=line)
            _require_one_value(document, line)
            if node is not None:
                _measure(node, 0, visited=counted)
                yield node
    except yaml.YAMLError as error:
        problems.add(_syntax_problem(error, file))


def _require_one_value(document: str, line: int) -> None:
    """Refuse consecutive JSON documents: a YAML reader sees only the first one."""
    text = document.lstrip()
    if text.startswith("{"):
        try:
            _, end = json.JSONDecoder(parse_int=str).raw_decode(text)  # int() of a million digits is slow
        except (ValueError, RecursionError):
            return  # YAML in braces
        rest = re.sub(r"(?m)^\s*(#.*|\.\.\.\s*)?$", "", text[end:]).strip()
        if rest and not rest.startswith("#"):
            at = line + document[: len(document) - len(text) + end].count("\n") + 2
            raise yaml.YAMLError("more text after the end of the document; write --- between two documents", line=at)


def _measure(node: Any, depth: int, *, visited: list[int]) -> None:
    """Count the values beforehand: an alias is cheap to read, but decoding it costs as much as everything it refers
    to."""
    visited[0] += 1
    line = node.start_mark.line + 1
    if visited[0] > MAX_NODES:
        raise yaml.YAMLError(f"the aliases stand for more than {MAX_NODES} values", line=line, is_too_large=True)
    if depth > MAX_DEPTH:
        raise yaml.YAMLError(f"the values are nested more than {MAX_DEPTH} deep", line=line, is_too_large=True)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _measure(key, depth + 1, visited=visited)
            _measure(value, depth + 1, visited=visited)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _measure(item, depth + 1, visited=visited)


def _syntax_problem(error: yaml.YAMLError, file: str) -> Problem:
    if error.is_too_large:
        return Problem(file, error.line, "", error.problem, "give a Kubernetes configuration file")
    column = f"column {error.column}: " if error.column else ""
    remedy = "correct the line (spaces, not tabs; quotes in pairs)"
    return Problem(file, error.line, "", f"not YAML: {column}{shorten(error.problem, 160)}", remedy)


# ---- decoding


class _Decoder:
    """Walks the nodes of one document along its schema."""

    def __init__(self, file: str, problems: Problems) -> None:
        self.file = file
        self.problems = problems
        self.kind = ""
        self.origins: dict[str, tuple[str, int]] = {}

    def fail(self, node: Any, path: str, *, message: str, remedy: str, is_unknown: bool = False) -> None:
        place = f"{self.kind}:{path}"
        self.origins.setdefault(place, (self.file, node.start_mark.line + 1))
        self.problems.add(Problem(self.file, node.start_mark.line + 1, path, message, remedy, is_unknown))
        self.problems.mark(place)

    def decode_document(self, node: Any) -> Optional[Document]:
        line = node.start_mark.line + 1
        if _is_null(node):
            return None
        if not isinstance(node, yaml.MappingNode):
            self.fail(
                node,
                "",
                message=f"a document is a mapping, this one is {_describe(node)}",
                remedy="start it with apiVersion and kind",
            )
            return None
        head = self._read_head(node)
        if head is None:
            return None
        api_version, self.kind = head
        self.origins[f"{self.kind}:"] = (self.file, line)
        tree = self._decode_struct(node, schema.SCHEMAS[head], path="")
        return Document(self.file, line, api_version, self.kind, tree)

    def _read_head(self, node: Any) -> Optional[tuple[str, str]]:
        """(apiVersion, kind) of a document that kb reads; otherwise None, after reporting why."""
        found: dict[str, str] = {}
        other: dict[str, tuple[Any, Any]] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in ("apiVersion", "kind"):
                found[key.value] = value.value if isinstance(value, yaml.ScalarNode) else ""
            elif isinstance(key, yaml.ScalarNode) and key.value.lower() in ("apiversion", "kind"):
                # Go's JSON falls back to a name in another case if there is no exact match
                other[{"kind": "kind"}.get(key.value.lower(), "apiVersion")] = (key, value)
        for name, (key, value) in other.items():
            if name not in found and self.problems.is_lenient:
                found[name] = value.value if isinstance(value, yaml.ScalarNode) else ""
            elif name not in found:
                self.fail(
                    key,
                    "",
                    message=f"{shorten(key.value)} is not a field name",
                    remedy=f"write {name}",
                    is_unknown=True,
                )
                return None
        for name in ("apiVersion", "kind"):
            if not found.get(name):
                remedy = (
                    f'add "{name}: {schema.V1BETA4 if name == "apiVersion" else "InitConfiguration"}" or what it is'
                )
                self.fail(node, "", message=f"a document without {name}", remedy=remedy)
                return None
        api_version, kind = found["apiVersion"], found["kind"]
        if (api_version, kind) in schema.SCHEMAS:
            return api_version, kind
        group, _, version = api_version.rpartition("/")
        is_own = any(known.rpartition("/")[0] == group and name == kind for known, name in schema.SCHEMAS)
        if self.problems.is_lenient and not is_own and version not in schema.LAST_READER:
            self._warn(
                node,
                f"Ignored configuration document with GroupVersionKind {shorten(api_version)}, Kind={shorten(kind)}",
            )
            return None
        self._explain_head(node, shorten(api_version), kind=shorten(kind))
        return None

    def _explain_head(self, node: Any, api_version: str, *, kind: str) -> None:
        group, _, version = api_version.rpartition("/")
        versions = [known for known, name in schema.SCHEMAS if name == kind]
        groups = {known.rpartition("/")[0] for known, _ in schema.SCHEMAS}
        if group == schema.KUBEADM_GROUP and version in schema.LAST_READER:
            old = schema.LAST_READER[version]
            self.fail(
                node,
                "apiVersion",
                message=f"{api_version} is no longer read",
                remedy=f"convert the file with kubeadm {old} and newer ones in turn: kubeadm config migrate --old-config {self.file}",
            )
        elif versions:
            self.fail(
                node,
                "apiVersion",
                message=f"kind {kind} has no version {api_version}",
                remedy=f"write apiVersion: {versions[0]}",
            )
        elif group in (schema.KUBEADM_GROUP, "kb"):
            names = {name for known, name in schema.SCHEMAS if known.startswith(group)}
            self.fail(
                node,
                "kind",
                message=f"unknown kind {kind} of {api_version}",
                remedy=suggest(kind, names),
                is_unknown=True,
            )
        elif group in groups and "did you mean" in suggest(kind, schema.COMPONENT_GROUPS):
            self.fail(
                node,
                "kind",
                message=f"unknown kind {kind} of {api_version}",
                remedy=suggest(kind, schema.COMPONENT_GROUPS),
            )
        elif self.problems.is_strict:
            self.fail(
                node,
                "",
                message=f"unknown configuration API {api_version}, kind {kind}",
                remedy="remove the document",
            )
        else:
            line = node.start_mark.line + 1
            self.problems.warnings.append(f"{self.file}:{line}: kind {kind} ({api_version}) is not for kb: ignored")

    def _decode(self, node: Any, wanted: schema.Type, *, path: str) -> Any:
        """The node's value; None if it is null or wrong."""
        if _is_null(node):
            return None
        if isinstance(wanted, Anything):
            return self._decode_anything(node, path)
        if isinstance(wanted, Scalar):
            return self._decode_scalar(node, wanted, path=path)
        if isinstance(wanted, ListOf):
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return self._decode_list(node, wanted, path=path)
            self._fail_type(node, path, wants="a list")
            return None
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._decode_struct(node, wanted, path=path)
        self._fail_type(node, path, wants="a mapping")
        return None

    def _fail_type(self, node: Any, path: str, *, wants: str) -> None:
        remedy = f"write {wants}: see kb config print init-defaults"
        if path.endswith("xtraArgs") and wants == "a list":
            remedy = "v1beta4 takes a list of {name: ..., value: ...}; a mapping is v1beta3's form"
        elif path.endswith("xtraArgs"):
            remedy = "v1beta3 takes a mapping of name: value; a list is v1beta4's form"
        self.fail(node, path, message=f"must be {wants}, not {_describe(node)}", remedy=remedy)

    def _decode_list(self, node: Any, wanted: ListOf, *, path: str) -> list[Any]:
        values = []
        for index, item in enumerate(node.value):
            place = f"{path}[{index}]"
            self.origins[f"{self.kind}:{place}"] = (self.file, item.start_mark.line + 1)
            before = len(self.problems.items)
            value = self._decode(item, wanted.item, path=place)
            if value is None and len(self.problems.items) == before and not isinstance(wanted.item, Anything):
                self.fail(item, place, message="an empty entry", remedy="give it a value or remove the line")
            if value is not None or isinstance(wanted.item, Anything):
                values.append(value)
        return values

    def _decode_struct(self, node: Any, wanted: Union[Struct, MapOf], *, path: str) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for name, key, value in self._entries(node, path):
            place = f"{path}.{name}" if path else name
            if not path and name in ("apiVersion", "kind") and self.kind:
                continue
            self.origins[f"{self.kind}:{place}"] = (self.file, key.start_mark.line + 1)
            item = wanted.item if isinstance(wanted, MapOf) else wanted.fields.get(name)
            if item is None:
                self._unknown_field(key, name, place=place, wanted=wanted)
                if self.kind in schema.COMPONENT_GROUPS:
                    tree[name] = self._decode_anything(value, place)
                continue
            found = self._decode(value, item, path=place)
            if found is None and not isinstance(item, Anything):
                if _is_null(value):  # null counts as an absent field
                    del self.origins[f"{self.kind}:{place}"]
                continue
            # A component config is passed through verbatim: decoding only checks it.
            tree[name] = self._decode_anything(value, place) if self.kind in schema.COMPONENT_GROUPS else found
        return tree

    def _entries(self, node: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
        """The mapping's (name, key node, value node), with merge keys resolved, each name once."""
        own: dict[str, Any] = {}
        entries: dict[str, tuple[Any, Any]] = {}
        for key, value in node.value:
            try:
                sources = yaml.merge_sources(value) if yaml.is_merge(key) else None
                name = yaml.key_text(key)
            except yaml.YAMLError as error:
                remedy = "name the alias of a mapping: <<: *name" if yaml.is_merge(key) else "write the key as a text"
                self.fail(key, path, message=error.problem, remedy=remedy)
                continue
            if sources is not None:  # as in Go, the later entry wins, whether merged or not
                for source in sources:
                    entries.update({merged: (a, b) for merged, a, b in self._entries(source, path)})
            elif name in own:
                first = own[name].start_mark.line + 1
                place = f"{path}.{shorten(name)}" if path else shorten(name)
                if self.problems.is_lenient:
                    self._warn(
                        key, f'key "{shorten(name)}" already set in map (first in line {first}): the last one counts'
                    )
                    entries[name] = (key, value)
                    continue
                self.fail(
                    key,
                    place,
                    message=f"the field is given twice (first in line {first})",
                    remedy="remove one of them",
                    is_unknown=True,
                )
            else:
                own[name] = key
                entries[name] = (key, value)
        for name, (key, value) in entries.items():
            yield name, key, value

    def _unknown_field(self, key: Any, name: str, *, place: str, wanted: Union[Struct, MapOf]) -> None:
        assert isinstance(wanted, Struct)
        shown = shorten(name)
        remedy = suggest(name, wanted.fields)
        if self.kind in schema.COMPONENT_GROUPS and not self.problems.is_strict:
            line = key.start_mark.line + 1
            known = remedy if remedy.startswith("did") else "it is passed on as it is"
            self.problems.warnings.append(f"{self.file}:{line}: {self.kind} has no field {shown} known to kb; {known}")
            return
        if self.problems.is_lenient:
            self._warn(key, f'unknown field "{place}" of {self.kind}: ignored')
            return
        if not remedy.startswith("did"):
            home = _find_home(name)
            remedy = f"it belongs to {home}" if home else remedy
        self.fail(
            key, place if shown == name else shown, message=f'unknown field "{shown}"', remedy=remedy, is_unknown=True
        )

    def _warn(self, node: Any, text: str) -> None:
        self.problems.warnings.append(f"{self.file}:{node.start_mark.line + 1}: {text}")

    def _decode_scalar(self, node: Any, wanted: Scalar, *, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            self._fail_type(node, path, wants=wanted.wants)
            return None
        value = _plain_scalar(node)
        if isinstance(value, _BadScalar):
            self.fail(node, path, message=value.message, remedy="write a plain text or number")
            return None
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if wanted.bounds is not None and is_whole and wanted.bounds[0] <= value <= wanted.bounds[1]:
            return value
        if wanted is FLOAT and (is_whole or isinstance(value, float)):
            return value
        if wanted is QUANTITY and (is_whole or isinstance(value, float) or QUANTITY_FORM.fullmatch(str(value).strip())):
            return value
        if wanted is DURATION_OR_NUMBER and (
            is_whole or (isinstance(value, str) and parse_duration(value) is not None)
        ):
            return value
        if wanted is BOOL and isinstance(value, bool):
            return value
        if wanted is TIME and isinstance(value, str) and _TIME.fullmatch(value):
            return value
        if wanted is DURATION and isinstance(value, str):
            seconds = parse_duration(value)
            if seconds is not None:
                return seconds
        if (wanted is TEXT or wanted.is_secret) and isinstance(value, str):
            return value
        has = "another value" if wanted.is_secret else _describe(node)
        self.fail(
            node, path, message=f"must be {wanted.wants}, not {has}", remedy=_mend_scalar(node, value, wanted=wanted)
        )
        return None

    def _decode_anything(self, node: Any, path: str) -> Any:
        if isinstance(node, yaml.MappingNode):
            return {
                name: self._decode_anything(value, f"{path}.{name}") for name, _, value in self._entries(node, path)
            }
        if isinstance(node, yaml.SequenceNode):
            return [self._decode_anything(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
        value = _plain_scalar(node)
        if isinstance(value, _BadScalar):
            self.fail(node, path, message=value.message, remedy="write a plain text or number")
            return None
        return value


def _is_null(node: Any) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "null"


@frozen
class _BadScalar:
    message: str


QUANTITY_FORM = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+|[numkMGTPE]|[KMGTPE]i)?")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


def _plain_scalar(node: Any) -> Any:
    return _BadScalar(node.problem) if node.problem else node.found


def _describe(node: Any) -> str:
    """A description of a node for messages."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    tag = node.tag[len(_TAG) :] if node.tag.startswith(_TAG) else ""
    if tag == "null":
        return "nothing"
    word = {"str": "the text", "int": "the number", "float": "the number", "bool": "the truth value"}.get(tag, "")
    shown = shorten(node.value)
    return f'{word} "{shown}"'.strip() if tag == "str" else f"{word} {shown}".strip()


def _mend_scalar(node: Any, value: Any, *, wanted: Scalar) -> str:
    if isinstance(value, str) and (
        (wanted is BOOL and value.lower() in ("true", "false"))
        or (wanted.bounds is not None and value.lstrip("-").isdigit())
    ):
        return f"write {value.lower()} without quotes"
    if (wanted is TEXT or wanted.is_secret) and not isinstance(value, str):
        return "put the value in quotes" if wanted.is_secret else f'put it in quotes: "{shorten(node.value)}"'
    if wanted is DURATION and isinstance(value, int) and not isinstance(value, bool):
        return f'give the unit: "{value}s"'
    return f"write {wanted.wants}"


def _find_home(name: str) -> str:
    """Where a misplaced field belongs, as `networking of ClusterConfiguration`; "" if no kind has it."""
    for (version, kind), struct in schema.SCHEMAS.items():
        if version in (schema.V1BETA4, schema.KB_V1ALPHA1) and kind not in ("UpgradeConfiguration",):
            path = _path_to(name, struct)
            if path is not None:
                return f"{path} of {kind}" if path else kind
    return ""


def _path_to(name: str, struct: Struct) -> Optional[str]:
    if name in struct.fields:
        return ""
    for field, inner in struct.fields.items():
        if isinstance(inner, Struct):
            path = _path_to(name, inner)
            if path is not None:
                return f"{field}.{path}" if path else field
    return None


# ---- durations

_DURATION_PART = re.compile(r"(\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_S = 2**63 // 10**9


def parse_duration(text: str) -> Optional[int]:
    """Whole seconds of a duration in Go's form (`1h30m0s`, `24h`, `0`); a fraction of a second is rounded up. None if
    the text is not a duration, or is longer than Go's maximum (292 years)."""
    sign, rest = (-1, text[1:]) if text[:1] == "-" else (1, text[1:] if text[:1] == "+" else text)
    if rest == "0":
        return 0
    if not rest or len(rest) > 100:
        return None
    total, position = 0.0, 0
    while position < len(rest):
        match = _DURATION_PART.match(rest, position)
        if match is None:
            return None
        total += float(match.group(1)) * _UNITS[match.group(2)]
        position = match.end()
    if total > _LONGEST_S:
        return None
    whole = int(total)
    return sign * (whole + (1 if total - whole > 1e-9 else 0))


# ---- values


def snake_case(name: str) -> str:
    """`localAPIEndpoint` -> `local_api_endpoint`, `certSANs` -> `cert_sans`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z](?!$))", "_", name)
    return spaced.lower()


def build(wanted: schema.Type, value: Any) -> Any:
    """Build the value that a decoded tree describes: dataclasses, tuples, Secrets.

    As in Go, an empty text, the number 0 and an empty list mean the default; except in taints, where [] means no
    taints.
    """
    if isinstance(wanted, Scalar):
        return Secret(value) if wanted.is_secret else value
    if isinstance(wanted, ListOf):
        return tuple(build(wanted.item, item) for item in value)
    if isinstance(wanted, MapOf):
        return {name: build(wanted.item, item) for name, item in value.items()}
    if isinstance(wanted, Anything) or wanted.make is None:
        return value
    attributes = {}
    for name, given in value.items():
        item = wanted.fields[name]
        is_unset = given == "" or (type(given) is int and given == 0 and item is NUMBER)
        if is_unset or (isinstance(given, list) and not given and name != "taints"):
            continue
        attribute = wanted.renames.get(name, snake_case(name) + ("_s" if item is DURATION else ""))
        attributes[attribute] = build(item, given)
    return wanted.make(**attributes)
