"""The types of what others say: kept, emptied, refused by name, or left out."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from kubeup.shapes import fit, fit_what_does, read_rows

SHAPE = {
    "name!": str, "labels": {str: str}, "count": int, "is_on": bool, "share": float, "any": object, "address": ipaddress.ip_address,
    "rows": [{"id": str, "tags!": [str]}], "inner!": {"deep!": {}},
}  # fmt: skip
FILLED = {"name": "", "inner": {"deep": {}}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, FILLED),
        (None, FILLED),
        ({"name": "x", "other": [1]}, {**FILLED, "name": "x", "other": [1]}),
        ({"labels": None, "count": None, "rows": None}, FILLED),
        ({"labels": {"a": None, "b": "c"}}, {**FILLED, "labels": {"a": "", "b": "c"}}),
        ({"rows": [None, {"id": "i"}]}, {**FILLED, "rows": [{"tags": []}, {"id": "i", "tags": []}]}),
        ({"share": 1, "any": {"x": 5}, "address": ""}, {**FILLED, "share": 1, "any": {"x": 5}}),
    ],
)
def test_what_fits_stays_and_null_is_the_same_as_left_out(value: Any, expected: Any) -> None:
    assert fit(value, SHAPE, what="it") == expected
    assert fit_what_does(value, SHAPE) == expected


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ([], "it is a list, not a mapping"),
        ({"name": 5}, "it.name is a number, not a text"),
        ({"labels": {"a": ["b"]}}, "it.labels.a is a list, not a text"),
        ({"count": True}, "it.count is true or false, not a whole number"),
        ({"count": 1.5}, "it.count is a number, not a whole number"),
        ({"count": 1 << 70}, "it.count is"),
        ({"is_on": 1}, "it.is_on is a number, not true or false"),
        ({"rows": {}}, "it.rows is a mapping, not a list"),
        ({"rows": [{}, 5]}, r"it.rows\[1\] is a number, not a mapping"),
        ({"address": "x"}, "it.address: 'x' does not"),
        ({"address": 5}, "it.address is a number, not a text"),
    ],
)
def test_another_type_is_named_or_left_out(value: Any, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        fit(value, SHAPE, what="it")
    left = fit_what_does(value, SHAPE)
    assert {key: item for key, item in left.items() if item not in ({}, [], [{"tags": []}])} == FILLED


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", []),
        ("null", []),
        ("{}", []),
        ("x", []),
        ("[" * 100_000, []),
        ('[{"id": 5}, {"id": "a"}, 7]', [{}, {"id": "a"}]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_rows_that_a_program_prints(text: str, rows: list[Any]) -> None:
    assert read_rows(text, {"id": str}) == rows


def test_of_a_list_the_rest_stays() -> None:
    assert fit_what_does([1, "a", None, {}], [str]) == ["a", ""]
    assert fit(["", None, "::1"], [ipaddress.ip_address], what="it") == ["::1"]
    assert fit_what_does("x", [str]) == [] and fit_what_does(5, str) == "" and fit_what_does("x", object) == "x"
