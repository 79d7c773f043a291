"""Reading JSON that others wrote: servers that have not proven who they are, bundles, files that may be damaged.

Python's reader ends deep texts with a RecursionError, takes NaN, turns 5000 digits into a number and makes texts that
cannot be printed. Here every such text is a ValueError that says why, within a bound of size, depth and time. Knows no
document's meaning. Follows Go's encoding/json, which refuses the same (and allows a depth of 10000).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn, Union

MAX_BYTES = 4 << 20
"""Kubernetes' own objects stay below 1.5 MiB (etcd's limit of a request); lists of them may be larger."""
MAX_DEPTH = 100
"""Containers within containers. A PodTemplate goes some 15 deep, a CustomResourceDefinition's schema some 60."""
_MAX_DIGITS = 400
"""As many as the largest float64 has before its point, and some; int() is quadratic."""

_ESCAPES = re.compile(
    r"\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|\\u[dD][89a-fA-F][\da-fA-F]{2}|\\.", re.S
)


def parse_json(text: Union[str, bytes], what: str, *, max_bytes: int = MAX_BYTES) -> object:
    """The value of a JSON text. what: names the text in errors ("the answer of https://..."). max_bytes: of UTF-8.

    Raises ValueError: too long, not UTF-8, no JSON, deeper than MAX_DEPTH, a number that is none of JSON's or that no
    float64 can hold. Half a surrogate pair becomes U+FFFD, as in Go; of a key given twice the last counts.
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
    """The same, of a text that has to be an object. Raises ValueError also where it is another value."""
    value = parse_json(text, what, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value


def as_table(value: Any) -> dict[str, Any]:
    """A mapping, or the mapping in a JSON text; {} for everything else: what is left out is not known."""
    if isinstance(value, str):
        try:
            value = parse_json(value, "it")
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _whole_escape(found: re.Match[str]) -> str:
    """An escape as it is, but for one half of a surrogate pair, which no text can hold."""
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
    raise ValueError(f"{name} is no number of JSON")


def _check_depth(value: object, what: str) -> None:
    """Raise ValueError where containers lie deeper than MAX_DEPTH; level by level, so without recursion."""
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
