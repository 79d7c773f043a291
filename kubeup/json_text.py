"""Reads untrusted JSON: from servers that are not yet verified, from bundles, from possibly damaged files.

Python's reader fails on deep nesting with a RecursionError, accepts NaN, converts numbers of 5000 digits and creates
strings that cannot be printed. Here every such text raises a ValueError that says why, within limits of size, depth and
time. Knows no document's meaning. Follows Go's encoding/json, which refuses the same (and allows a depth of 10000).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn, Union

MAX_BYTES = 4 << 20
"""Kubernetes' own objects stay below 1.5 MiB (etcd's request limit); lists of them may be larger."""
MAX_DEPTH = 100
"""The maximum nesting. A PodTemplate is some 15 levels deep, a CustomResourceDefinition's schema some 60."""
_MAX_DIGITS = 400
"""A bit more than the digits of the largest float64 before its decimal point; int() takes quadratic time."""

_ESCAPES = re.compile(
    r"\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|\\u[dD][89a-fA-F][\da-fA-F]{2}|\\.", re.S
)


def parse_json(text: Union[str, bytes], what: str, *, max_bytes: int = MAX_BYTES) -> object:
    """The value of a JSON text. what: names the text in errors ("the answer of https://..."). max_bytes: of UTF-8.

    Raises ValueError: too long, not UTF-8, not JSON, deeper than MAX_DEPTH, a number that JSON does not allow or that
    does not fit a float64. A lone surrogate becomes U+FFFD, as in Go; the last value of a duplicate key counts.
    """
    if len(text) > max_bytes:
        raise ValueError(f"{what} has more than {max_bytes} bytes")
    try:
        plain = text.decode() if isinstance(text, bytes) else text
        if "\\u" in plain:
            plain = _ESCAPES.sub(_whole_escape, plain)
        value: object = json.loads(plain, parse_int=_parse_int, parse_float=_parse_float, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{what} is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from None
    _check_depth(value, what)
    return value


def parse_json_object(text: Union[str, bytes], what: str, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Like parse_json, for a text that must be an object. Raises ValueError for other values too."""
    value = parse_json(text, what, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value


def as_table(value: Any) -> dict[str, Any]:
    """A mapping, or the mapping in a JSON text; {} for anything else: missing fields are unknown."""
    if isinstance(value, str):
        try:
            value = parse_json(value, "it")
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _whole_escape(found: re.Match[str]) -> str:
    """An escape unchanged, unless it is a lone surrogate, which no text can contain."""
    escape = found[0]
    is_half = len(escape) == 6 and escape[1] == "u"
    return "\\ufffd" if is_half else escape


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} characters")
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits} is out of range")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_depth(value: object, what: str) -> None:
    """Raise ValueError if containers are nested deeper than MAX_DEPTH; works level by level, without recursion."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
    if level:
        raise ValueError(f"{what} is nested more than {MAX_DEPTH} deep")
