"""Validates untrusted data: values from JSON, as far as kb reads them, get the types that kb relies on.

A server, a program or a file may contain anything. The code that reads it states the shape once, at the entry point;
after that no other code has to expect a list instead of a mapping. Knows no document's meaning. Follows Go's
encoding/json: null means absent, fields that the shape does not name stay, a wrong type is an error.

A shape is one of:
- `str`, `int`, `bool`, `float` (an int is accepted) or `object` (anything)
- a function that raises ValueError for an invalid text (an empty text counts as absent)
- `[shape]`, a list
- `{str: shape}`, a mapping with any keys
- `{"name": shape, "other!": shape}`, a mapping with these known keys; keys with "!" are always present, and empty if
  absent
"""

from __future__ import annotations

from typing import Any, Callable, Union

from kubeup.json_text import parse_json

Shape = Any
_MAX_INT = 1 << 63
_NOTHING = object()


def fit(value: object, shape: Shape, *, what: str) -> Any:
    """`value` with the shape's types. what: names it in errors. Raises ValueError that says where a type is wrong."""
    found = _fit(value, shape, what=what, is_strict=True)
    return _empty(shape) if found is _NOTHING else found


def fit_what_does(value: object, shape: Shape) -> Any:
    """Like fit, but a value of a wrong type counts as absent. For the output of programs, which exist in many versions:
    half an answer is better than none."""
    found = _fit(value, shape, what="", is_strict=False)
    return _empty(shape) if found is _NOTHING else found


def read_rows(text: Union[str, bytes], shape: Shape) -> list[Any]:
    """The list that a program printed as JSON. Each row has the types of `shape`, without values of other types; [] if
    the program printed something else, or nothing."""
    try:
        return list(fit_what_does(parse_json(text, "it") if text else [], [shape]))
    except ValueError:
        return []


def _fit(value: Any, shape: Shape, *, what: str, is_strict: bool) -> Any:
    if shape is object:
        return value
    if value is None:
        return _empty(shape)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _misfit(value, shape, what=what, is_strict=is_strict)
        if callable(shape[0]) and not isinstance(shape[0], type):
            value = [item for item in value if item not in (None, "")]
        fitting = (
            _fit(item, shape[0], what=f"{what}[{index}]", is_strict=is_strict) for index, item in enumerate(value)
        )
        return [item for item in fitting if item is not _NOTHING]
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _misfit(value, shape, what=what, is_strict=is_strict)
        return _fit_mapping(value, shape, what=what, is_strict=is_strict)
    if isinstance(shape, type):
        allowed = (int, float) if shape is float else shape
        is_right = isinstance(value, allowed) and (shape is bool or not isinstance(value, bool))
        is_huge = isinstance(value, int) and not -_MAX_INT <= value < _MAX_INT
        return value if is_right and not is_huge else _misfit(value, shape, what=what, is_strict=is_strict)
    return _fit_text(value, shape, what=what, is_strict=is_strict)


def _fit_mapping(value: dict[str, Any], shape: dict[Any, Shape], *, what: str, is_strict: bool) -> dict[str, Any]:
    if str in shape:
        known = dict.fromkeys(value, shape[str])
    else:
        known = {name.rstrip("!"): item for name, item in shape.items()}
    found = {}
    for key, item in value.items():
        if key in known:
            if item is None and str not in shape:
                continue
            item = _fit(item, known[key], what=f"{what}.{key}" if what else str(key), is_strict=is_strict)
        if item is not _NOTHING:
            found[key] = item
    for name in shape:
        if name is not str and name.endswith("!") and name[:-1] not in found:
            found[name[:-1]] = _empty(shape[name])
    return found


def _fit_text(value: object, check: Callable[[str], object], *, what: str, is_strict: bool) -> object:
    if not isinstance(value, str):
        return _misfit(value, check, what=what, is_strict=is_strict)
    if not value:
        return _NOTHING
    try:
        check(value)
    except ValueError as error:
        if is_strict:
            raise ValueError(f"{what}: {error}") from None
        return _NOTHING
    return value


def _empty(shape: Shape) -> Any:
    """The zero value that Go's decoder leaves for an absent field."""
    if isinstance(shape, dict):
        return _fit_mapping({}, shape, what="", is_strict=True)
    if isinstance(shape, list):
        return []
    return None if shape is object else shape() if isinstance(shape, type) else ""


def _misfit(value: object, shape: Union[Shape, type], *, what: str, is_strict: bool) -> object:
    if is_strict:
        wanted = (
            "a list"
            if isinstance(shape, list)
            else "a mapping"
            if isinstance(shape, dict)
            else _NAMES.get(shape, "a text")
        )
        found = next((name for kind, name in _KINDS if isinstance(value, kind)), "something else")
        raise ValueError(f"{what} is {found}, not {wanted}" if found != wanted else f"{what} is out of range")
    return _NOTHING


_KINDS = (
    (bool, "true or false"),
    (int, "a number"),
    (float, "a number"),
    (str, "a text"),
    (list, "a list"),
    (dict, "a mapping"),
)
_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
