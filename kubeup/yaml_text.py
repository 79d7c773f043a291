"""Reads and writes YAML the way Kubernetes' own programs do.

Go's reader (sigs.k8s.io/yaml on go-yaml v2) and PyYAML disagree in many cases: for Go `1e3`, `0o17` and `y` are not
texts, but `13:30` and `=` are; a merged key overrides one above it; tabs may separate tokens. If kb read a file
differently from the kubelet, the result would be silently wrong. So everything that kb reads goes through this module,
and what it writes means the same to both. PyYAML's scanner and emitter do only the lexical work.

Source: go-yaml v2 resolve.go and decode.go, sigs.k8s.io/yaml yaml.go (how YAML becomes JSON),
k8s.io/apimachinery/pkg/util/yaml/decoder.go (how a file is split into documents)
"""

from __future__ import annotations

import base64
import binascii
import datetime
import functools
import math
import re
import struct
from collections.abc import Iterator
from typing import Any, NoReturn, Optional, Union

from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily

with lazily:
    import yaml

    from kubeup import yaml_scanner

_TAG = "tag:yaml.org,2002:"


class YAMLError(ValueError):
    """The text is not YAML that Kubernetes' programs accept, or is larger than any such file. line and column count
    from 1, 0 if unknown; `problem` quotes nothing from the text, which may contain secrets."""

    def __init__(self, problem: str, *, line: int = 0, column: int = 0, is_too_large: bool = False) -> None:
        where = f"line {line}: " if line else ""
        super().__init__(f"{where}{problem}")
        self.problem = problem
        self.line = line
        self.column = column
        self.is_too_large = is_too_large


@frozen
class Limits:
    """Limits for a file, so that no file, however odd, takes long or exhausts the memory."""

    size: int = 2**20
    values: int = 20_000
    """Keys and values; an alias counts as everything that it refers to."""
    depth: int = 40


FILE = Limits()
"""A configuration, a kubeconfig, a patch, a manifest of a node."""
MANIFEST = Limits(size=2**23, values=200_000, depth=120)
"""Other people's objects and their definitions, whose schemas are long and deep."""


_MAX_DOCUMENTS = 10_000
"""The maximum number of documents in one file, including empty ones: examining each takes time."""


class Mark:
    """Where a node begins; line counts from 0."""

    __slots__ = ("line",)

    def __init__(self, line: int) -> None:
        self.line = line


class _Node:
    __slots__ = ("start_mark", "tag")

    def __init__(self, tag: str, line: int) -> None:
        self.tag = _TAG + tag
        self.start_mark = Mark(line)


class ScalarNode(_Node):
    """value: the text as written. found: what Go makes of it; problem: why it cannot be converted."""

    __slots__ = ("found", "problem", "value")

    def __init__(self, text: str, line: int, *, tag: str, is_plain: bool) -> None:
        self.value = text
        self.problem = ""
        self.found: Any = None
        kind = "str"
        try:
            kind, self.found = _resolve(text, tag, is_plain=is_plain)
        except ValueError as error:
            self.problem = str(error)
        super().__init__(kind, line)


class SequenceNode(_Node):
    __slots__ = ("value",)

    def __init__(self, line: int) -> None:
        super().__init__("seq", line)
        self.value: list[Any] = []


class MappingNode(_Node):
    """value: the (key, value) nodes in file order; a duplicate key appears twice, `<<` has the tag merge."""

    __slots__ = ("value",)

    def __init__(self, line: int) -> None:
        super().__init__("map", line)
        self.value: list[tuple[Any, Any]] = []


# ---- reading


def load_yaml(data: Union[str, bytes], limits: Limits = FILE) -> Any:
    """The first document in `data` as JSON values (None, bool, int, float, str, list, dict with text keys); None for an
    empty one. The last value of a duplicate key counts. Raises YAMLError."""
    node = compose(_decode(data, limits), limits)
    return None if node is None else _Constructor(limits).construct(node)


def load_all_yaml(data: Union[str, bytes], limits: Limits = FILE) -> list[Any]:
    """Every non-empty document in `data`, split at `---` lines. Raises YAMLError."""
    found = []
    left = limits.values
    for line, text in split_documents(_decode(data, limits)):
        constructor = _Constructor(Limits(limits.size, left, limits.depth))
        node = compose(text, constructor.limits, line=line)
        value = None if node is None else constructor.construct(node)
        left -= constructor.count
        if value is not None:
            found.append(value)
    return found


def _decode(data: Union[str, bytes], limits: Limits) -> str:
    if len(data) > limits.size:
        raise YAMLError(f"it has {len(data)} bytes, at most {limits.size} are read", is_too_large=True)
    return decode_text(data)


def decode_text(data: Union[str, bytes]) -> str:
    """The text of a file: UTF-8 with or without a byte order mark, UTF-16 with one. Raises YAMLError."""
    if isinstance(data, str):
        return data[1:] if data[:1] == "\ufeff" else data
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise YAMLError(
            f"byte {error.start} is not {encoding[:-4].upper() if 'sig' in encoding else 'UTF-16'} text", line=line
        ) from None


def split_documents(text: str) -> Iterator[tuple[int, str]]:
    """(line from 0, text) of each document, split as Kubernetes' programs do it: at every line that begins with `---`,
    even inside a text, and only a comment may follow it. Raises YAMLError, also for more than _MAX_DOCUMENTS."""
    if text.count("\n---") > _MAX_DOCUMENTS:
        raise YAMLError(f"it holds more than {_MAX_DOCUMENTS} documents", is_too_large=True)
    start, lines = 0, []
    for number, line in enumerate(text.removesuffix("\n").split("\n")):
        if not line.startswith("---"):
            lines.append(line.removesuffix("\r") + "\n")
            continue
        after = line[3:].strip()
        if after and not after.startswith("#"):
            raise YAMLError("only a comment may follow --- on its line", line=number + 1, column=4)
        yield start, "".join(lines)
        start, lines = number + 1, []
    yield start, "".join(lines)


def compose(text: str, limits: Limits = FILE, *, line: int = 0) -> Any:
    """The nodes of the first document in `text`, which begins in `line` of its file; None for an empty one.

    An alias is the very node that it refers to (never one that contains it). Raises YAMLError.
    """
    try:
        parser = yaml_scanner.GoParser(text)
        try:
            return _Composer(parser, limits, line=line).compose()
        finally:
            parser.dispose()
    except yaml.YAMLError as error:
        raise _explain(error, text, line=line) from None
    except (ValueError, OverflowError, RecursionError, IndexError) as error:
        if isinstance(error, YAMLError):
            raise
        raise YAMLError("it cannot be read", line=line + 1) from None


def _explain(error: Any, text: str, *, line: int) -> YAMLError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return YAMLError(
            getattr(error, "problem", None) or "it cannot be read", line=line + mark.line + 1, column=mark.column + 1
        )
    position = getattr(error, "position", None)
    if isinstance(position, int):
        return YAMLError("a character that YAML does not allow", line=line + text[:position].count("\n") + 1)
    return YAMLError("it cannot be read", line=line + 1)


class _Composer:
    """Builds nodes from the parser's events, and stops if there are too many."""

    def __init__(self, parser: Any, limits: Limits, *, line: int) -> None:
        self.parser = parser
        self.limits = limits
        self.line = line
        self.count = 0
        self.anchors: dict[str, Any] = {}
        self.open: set[int] = set()

    def compose(self) -> Any:
        self.parser.get_event()
        if self.parser.check_event(yaml.StreamEndEvent):
            return None
        self.parser.get_event()
        node = self.compose_node(1)
        self.parser.get_event()
        return node

    def fail(self, problem: str, line: int, *, is_too_large: bool = False) -> NoReturn:
        raise YAMLError(problem, line=line + 1, is_too_large=is_too_large)

    def compose_node(self, depth: int) -> Any:
        event: Any = self.parser.get_event()
        line = self.line + event.start_mark.line
        self.count += 1
        if self.count > self.limits.values:
            self.fail(f"the file holds more than {self.limits.values} values", line, is_too_large=True)
        if depth > self.limits.depth:
            self.fail(f"the values are nested more than {self.limits.depth} deep", line, is_too_large=True)
        if isinstance(event, yaml.AliasEvent):
            return self.find_anchor(event.anchor, line)
        node: Any
        if isinstance(event, yaml.ScalarEvent):
            node = self.scalar(event, line)
            if event.anchor:
                self.anchors[event.anchor] = node
            return node
        node = MappingNode(line) if isinstance(event, yaml.MappingStartEvent) else SequenceNode(line)
        if event.anchor:
            self.anchors[event.anchor] = node
        self.open.add(id(node))
        self.fill(node, depth)
        self.open.discard(id(node))
        return node

    def fill(self, node: Any, depth: int) -> None:
        end = yaml.MappingEndEvent if isinstance(node, MappingNode) else yaml.SequenceEndEvent
        while not self.parser.check_event(end):
            if isinstance(node, MappingNode):
                key = self.compose_node(depth + 1)
                is_alias = self.parser.check_event(yaml.AliasEvent)
                value = self.compose_node(depth + 1)
                if is_alias and is_merge(key) and not isinstance(value, MappingNode):
                    self.fail("<< must be followed by an alias of a mapping", value.start_mark.line)
                node.value.append((key, value))
            else:
                node.value.append(self.compose_node(depth + 1))
        self.parser.get_event()

    def find_anchor(self, name: Any, line: int) -> Any:
        node = self.anchors.get(name)
        if node is None:
            self.fail("an alias of an anchor that is not above it", line)
        if id(node) in self.open:
            self.fail("an alias of something that contains it", line)
        return node

    def scalar(self, event: Any, line: int) -> ScalarNode:
        tag = event.tag or ""
        is_plain = bool(event.implicit[0]) and tag != "!"
        return ScalarNode(event.value, line, tag=tag, is_plain=is_plain)


class _Constructor:
    """Builds values from nodes. Everything that an alias refers to is built again: a change never affects two places,
    and what is counted is what will be written."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.count = 0

    def construct(self, node: Any, depth: int = 1) -> Any:
        self.count += 1
        line = node.start_mark.line + 1
        if self.count > self.limits.values:
            raise YAMLError(
                f"the aliases stand for more than {self.limits.values} values", line=line, is_too_large=True
            )
        if depth > self.limits.depth:
            raise YAMLError(f"the values are nested more than {self.limits.depth} deep", line=line, is_too_large=True)
        if isinstance(node, ScalarNode):
            if node.problem:
                raise YAMLError(node.problem, line=line)
            return node.found
        if isinstance(node, SequenceNode):
            return [self.construct(item, depth + 1) for item in node.value]
        found: dict[str, Any] = {}
        for key, value in node.value:
            if is_merge(key):
                for source in merge_sources(value):
                    found.update(self.construct(source, depth + 1))
            else:
                self.count += 1
                found[key_text(key)] = self.construct(value, depth + 1)
        return found


def is_merge(key: Any) -> bool:
    """Whether a key node is `<<`, which merges the entries of other mappings."""
    return bool(key.tag == _TAG + "merge")


def merge_sources(value: Any) -> list[Any]:
    """The mappings named by the value of a `<<` key; the last one wins. Raises YAMLError."""
    sources = list(reversed(value.value)) if isinstance(value, SequenceNode) else [value]
    if not all(isinstance(source, MappingNode) for source in sources):
        raise YAMLError("<< must be followed by a mapping or a list of mappings", line=value.start_mark.line + 1)
    return sources


def key_text(key: Any) -> str:
    """The text of a key in JSON: `1: a` and `true: b` have the keys "1" and "true". Raises YAMLError."""
    line = key.start_mark.line + 1
    if not isinstance(key, ScalarNode):
        raise YAMLError("a key that is no plain word", line=line)
    if key.problem == _NO_NUMBER:
        return _format_float32(float(_resolve_plain(key.value)[1]))
    if key.problem:
        raise YAMLError(key.problem, line=line)
    if isinstance(key.found, str):
        return key.found
    if key.found is None:
        raise YAMLError("a key that is null", line=line)
    if isinstance(key.found, bool):
        return "true" if key.found else "false"
    if key.tag == _TAG + "float":
        return _format_float32(float(_resolve_plain(key.value)[1]))
    if key.found >= 2**63:
        raise YAMLError("a key that is a number of more than 63 bits", line=line)
    return str(key.found)


def _format_float32(number: float) -> str:
    """Go's shortest form of a 32-bit number (FormatFloat with 'g')."""
    if math.isinf(number) or math.isnan(number):
        return ".nan" if math.isnan(number) else ".inf" if number > 0 else "-.inf"
    try:
        single = struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        return ".inf" if number > 0 else "-.inf"
    shortest = f"{single:.8e}"
    for precision in range(8):
        shown = f"{single:.{precision}e}"
        if abs(float(shown)) <= _LARGEST_FLOAT32 and struct.unpack("<f", struct.pack("<f", float(shown)))[0] == single:
            shortest = shown
            break
    mantissa, _, exponent = shortest.partition("e")
    power = int(exponent)
    if -4 <= power < 6:
        return f"{float(shortest):.{max(0, len(mantissa.lstrip('-').replace('.', '')) - 1 - power)}f}"
    return f"{mantissa}e{'-' if power < 0 else '+'}{abs(power):02d}"


_LARGEST_FLOAT32 = 3.4028234663852886e38


# ---- resolving scalars

_NO_NUMBER = "a number that is infinite, or none (.inf, .nan)"
"""Allowed as a key, which is a text in JSON, but not as a value."""
_NO_BREAKS = str.maketrans("", "", "\r\n")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOOLS = {"y": True, "yes": True, "true": True, "on": True, "n": False, "no": False, "false": False, "off": False}
_NULLS = ("", "~", "null", "Null", "NULL")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<binary>[01]+)|0[oO]?(?P<octal>[0-7]+)|(?P<decimal>0|[1-9][0-9]*))"
)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_DOT_FLOAT = re.compile(r"\.[0-9](_?[0-9])*([eE][-+]?[0-9](_?[0-9])*)?")
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}([Tt ].*)?")
_CLOCK = r"(\d\d?):(\d\d?):(\d\d?)(?:\.\d+)?"
_TIME = re.compile(rf"(\d{{4}})-(\d\d?)-(\d\d?)(?:[Tt]{_CLOCK}(?:Z|[-+]\d\d:\d\d)| {_CLOCK})?")
"""The forms of resolve.go's allowedTimestampFormats."""
_RESOLVED = ("str", "bool", "int", "float", "null", "timestamp")
_BASES = {"hex": 16, "binary": 2, "octal": 8, "decimal": 10}


def _resolve(text: str, tag: str, *, is_plain: bool) -> tuple[str, Any]:
    """(short tag, value) of a scalar. Raises ValueError with a message for the user if its tag does not fit."""
    wanted = tag[len(_TAG) :] if tag.startswith(_TAG) else tag
    if text == "<<" and (is_plain or wanted in ("merge", "!")):
        return "merge", text
    if wanted == "binary":
        try:
            # only line breaks are allowed in it
            return "str", base64.b64decode(text.translate(_NO_BREAKS), validate=True).decode(errors="replace")
        except (binascii.Error, ValueError):
            raise ValueError("!!binary on what is not base64") from None
    if wanted == "str" or (wanted and wanted not in _RESOLVED) or (not wanted and not is_plain):
        return "str", text
    kind, value = _resolve_plain(text)
    if wanted == "timestamp" and kind == "str" and _is_time(text):
        return kind, value
    if wanted == "float" and kind == "int":
        kind = "float"
    if wanted and kind != wanted:
        raise ValueError(f"the tag !!{wanted} on what is none")
    if kind == "float":
        return kind, _as_json_number(value)
    return kind, value


def _is_time(text: str) -> bool:
    match = _TIME.fullmatch(text)
    if match is None:
        return False
    year, month, day, *clock = match.groups()
    hour, minute, second = (int(part) for part in (clock[:3] if clock[0] else clock[3:] if clock[3] else (0, 0, 0)))
    try:
        datetime.datetime(int(year), int(month), int(day), hour, minute, second)
    except ValueError:
        return False
    return True


def _resolve_plain(text: str) -> tuple[str, Any]:
    """(short tag, value) of a plain scalar without a tag."""
    if text in _NULLS:
        return "null", None
    first = text[0]
    if first in "yYnNtTfFoO":
        value = _BOOLS.get(text.lower())
        is_bool = value is not None and text in (text.lower(), text.upper(), text.capitalize())
        return ("bool", value) if is_bool else ("str", text)
    if first in ".+-" and _INFINITE.fullmatch(text):
        return "float", float(text.lower().replace(".", ""))
    if first == ".":
        number = float(text) if _DOT_FLOAT.fullmatch(text) else math.inf
        return ("str", text) if math.isinf(number) else ("float", number)
    if first not in "+-0123456789":
        return "str", text
    plain = text.replace("_", "")
    whole = _parse_integer(plain)
    if whole is not None:
        return "int", whole
    if _FLOAT.fullmatch(plain) and not math.isinf(float(plain)):
        return "float", float(plain)
    return "str", text


def _parse_integer(plain: str) -> Optional[int]:
    """The 64-bit integer that Go reads there; None if it reads none."""
    if plain[:3] in ("0b-", "0b+"):  # Go reads the part after 0b separately, including its sign
        plain = f"{plain[2]}0b{plain[3:]}"
    match = _INTEGER.fullmatch(plain)
    if match is None or len(plain) > 1000:
        return None
    name = next(name for name in _BASES if match[name] is not None)
    number = int(match[name], _BASES[name])
    if match["sign"] == "-":
        return -number if number <= 2**63 else None
    return number if number < (2**63 if match["sign"] else 2**64) else None


def _as_json_number(number: float) -> Union[int, float]:
    """The number after a round trip through JSON: `1.0` and `1e3` are whole numbers."""
    if math.isinf(number) or math.isnan(number):
        raise ValueError(_NO_NUMBER)
    return int(number) if number == int(number) and abs(number) < 2**63 else number


# ---- writing

_LINE_MARKS = ("\x85", "\u2028", "\u2029", "\ufeff", "\r")
"""Characters that YAML treats as line ends, or drops: only double quotes preserve them."""
_OTHER_READERS = re.compile(
    r"[-+]?0[xXoObB][-+]?[0-9a-fA-F_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[-+]?(?=[0-9_.]*[0-9])[0-9_]*\.?[0-9_]*([eE][-+]?[0-9_]+)?|=|<<"
)
"""What some YAML reader does not take for a text: numbers of any size and base, including base 60."""


def dump_yaml(value: object) -> str:
    """One document in the style of Kubernetes' own: sorted keys, two spaces, list items not indented deeper than their
    key, no folded lines; a text that any reader could take for something else is in double quotes."""
    text: str = yaml.dump(
        value, Dumper=_dumper(), sort_keys=True, default_flow_style=False, allow_unicode=True, width=2**62
    )
    return text


def is_plain_text(text: str) -> bool:
    """Whether `text` without quotes is still that text for Go's readers (v2 and v3) and PyYAML's."""
    if text[:1] in "0123456789+-.=<" and (_OTHER_READERS.fullmatch(text) or _DATE.fullmatch(text)):
        return False
    return _resolve_plain(text)[0] == "str" and not _INFINITE.fullmatch(text) and text.lower() not in _BOOLS


@functools.cache
def _dumper() -> Any:
    class KubernetesDumper(yaml.SafeDumper):  # type: ignore[misc, name-defined, unused-ignore]
        def ignore_aliases(self, data: object) -> bool:
            return True

    def represent_str(dumper: Any, text: str) -> Any:
        if not text.isascii() and _SURROGATE.search(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return dumper.represent_scalar(_TAG + "str", text, style=_style_of(text))

    KubernetesDumper.add_representer(str, represent_str)
    return KubernetesDumper


def _style_of(text: str) -> Optional[str]:
    if any(mark in text for mark in _LINE_MARKS):
        return '"'
    if "\n" in text:
        is_literal = text[0] not in " \t\n" and not any(line.endswith((" ", "\t")) for line in text.split("\n"))
        return "|" if is_literal else '"'
    return None if is_plain_text(text) else '"'
