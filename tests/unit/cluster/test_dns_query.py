"""DNS questions and answers as bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeup.cluster.dns_query import parse_answer, render_query


def answer_to(query: bytes, *records: bytes, code: int = 0) -> bytes:
    return query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(records), 0, 0) + query[12:] + b"".join(records)


def record(data: bytes, record_type: int = 1) -> bytes:
    return b"\xc0\x0c" + struct.pack(">HHIH", record_type, 1, 30, len(data)) + data


QUERY = render_query("kubernetes.default.svc.cluster.local", query_id=7)


def test_a_query_has_the_form_of_rfc_1035() -> None:
    assert render_query("a.bc", query_id=0x1234) == b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0\x01a\x02bc\0\0\x01\0\x01"


def test_addresses_are_found_behind_other_records() -> None:
    found = parse_answer(answer_to(QUERY, record(b"\x01a\0", 5), record(bytes([10, 96, 0, 1]))), query_id=7)
    assert found == ["10.96.0.1"]


def test_no_such_name_is_an_empty_answer_and_a_failure_is_none() -> None:
    assert parse_answer(answer_to(QUERY, code=3), query_id=7) == []
    assert parse_answer(answer_to(QUERY, code=2), query_id=7) is None
    assert parse_answer(answer_to(QUERY), query_id=8) is None
    assert parse_answer(None, query_id=7) is None


@given(st.binary(max_size=200))
def test_garbage_is_no_answer(data: bytes) -> None:
    assert parse_answer(data, query_id=7) is None or data[:2] == b"\0\x07"


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a domain name"):
        render_query(name, query_id=1)
