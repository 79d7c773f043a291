"""JSON that others wrote: what is refused, how, and that what Kubernetes writes is not."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeup.json_text import MAX_DEPTH, parse_json, parse_json_object

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(values)
def test_what_is_written_is_read(value: object) -> None:
    assert parse_json(json.dumps(value), "it") == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "it") == value


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[" * 100_000, "nested"),
        ('{"a":' * 100_000, "nested"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested"),
        ("NaN", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("1e999", "out of range"),
        ("9" * 5000, "5000 digits"),
        ("0." + "9" * 5000, "5002 characters"),
        ("", "not JSON"),
        ("{} {}", "not JSON"),
        (b'"\xff"', "not JSON"),
        ("{}".encode("utf-16"), "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"[" + b" " * 200 + b"]", "more than 99 bytes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_text_is_a_value_error_that_says_why(text: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause) as caught:
        parse_json(text, "the answer", max_bytes=99 if "99" in cause else 1 << 20)
    assert str(caught.value).startswith("the answer ") and len(str(caught.value)) < 200


def test_the_deepest_that_is_taken() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(text, "it")) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"a\ud800b"', "a\ufffdb"),
        (r'"\udc00\ud800"', "\ufffd\ufffd"),
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\\ud800"', r"\ud800"),
        (r'"\\\ud800"', "\\\ufffd"),
        (r'"\u0000"', "\0"),
        (r'{"\ud800": 1}', {"\ufffd": 1}),
    ],
)
def test_half_a_surrogate_pair_becomes_a_text_that_can_be_written(text: str, value: object) -> None:
    assert parse_json(text, "it") == value


def test_an_object_is_wanted() -> None:
    assert parse_json_object('{"a": 1, "a": 2}', "it") == {"a": 2}
    for text in ("[]", "1", "null", '"x"'):
        with pytest.raises(ValueError, match="it is not a JSON object"):
            parse_json_object(text, "it")


def test_a_large_text_takes_no_long_time() -> None:
    started = time.process_time()
    for text in ('"' + "\\ud800" * 600_000 + '"', "[" + "[]," * 600_000 + "[]]", '"' + "\\" * 3_000_000 + '"'):
        parse_json(text, "it")
    assert time.process_time() - started < 20
