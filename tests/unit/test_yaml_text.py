"""YAML as Go reads it, and writing what Go reads back. tests/components/test_yaml_text.py has kubectl decide."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeup.yaml_text import FILE, MANIFEST, YAMLError, compose, dump_yaml, load_all_yaml, load_yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000), ("129e6", 129_000_000), ("716064e0", 716064), ("0o17", 15), ("017", 15), ("09", 9), ("1_000", 1000),
        ("13:30", "13:30"), ("=", "="), ("y", True), ("N", False), ("Off", False), ("yEs", "yEs"), ("1e400", "1e400"),
        ("2001-01-01", "2001-01-01"), ("~", None), ("''", ""), ("!!str 5", "5"), ("!foo 5", "5"), ("!!float 5", 5),
        ("!!binary aGk=", "hi"), ("1.5", 1.5), ("1.0", 1), (".5", 0.5), ("18446744073709551615", 2**64 - 1),
        ("{1: a, true: b, 1.5: c, y: d}", {"1": "a", "true": "d", "1.5": "c"}),
        ("{a: &x {k: 1}, b: {k: 2, <<: *x}}", {"a": {"k": 1}, "b": {"k": 1}}),
        ("a:\t1\t# one", {"a": 1}),
    ],
)  # fmt: skip
def test_what_go_reads(text: str, value: object) -> None:
    found = load_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (".inf", "infinite"),
        ("!!int a", "!!int"),
        ("{[a]: 1}", "a key that is no plain word"),
        ("{~: 1}", "a key that is null"),
        ("a: &a {b: *a}", "an alias of something that contains it"),
        ("*a", "an alias of an anchor"),
        ('"\\ud83d"', "lone surrogate"),
        ("[" * 100_000, "nested more than 40 deep"),
        ("- " * 100_000, "nested more than 40 deep"),
        ("{a: " * 5000, "nested more than 40 deep"),
        ("[" + "a," * 30_000 + "]", "more than 20000 values"),
        ("x" * 2**21, "bytes"),
        ("a: 'b", "line [12]: found unexpected end of stream"),
        ("a\0b", "a character that YAML does not allow"),
    ],
    ids=lambda text: repr(text[:40]),
)
def test_what_is_refused_at_once(text: str, problem: str) -> None:
    begin = time.process_time()
    for read in (load_yaml, load_all_yaml):
        with pytest.raises(YAMLError, match=problem):
            read(text)
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("document", ["---\n", "---\n#\n", "---\n...\n"])
def test_very_many_empty_documents_are_refused_in_time(document: str) -> None:
    begin = time.process_time()
    for limits in (FILE, MANIFEST):
        with pytest.raises(YAMLError, match="more than 10000 documents"):
            load_all_yaml(document * (limits.size // len(document)), limits)
    assert time.process_time() - begin < 10


def test_aliases_count_as_what_they_stand_for() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{one}: &{one} [{', '.join([f'*{before}'] * 10)}]\n" for before, one in zip("abcdefg", "bcdefgh")
    )
    begin = time.process_time()
    for limits in (FILE, MANIFEST):
        with pytest.raises(YAMLError, match="the aliases stand for more than"):
            load_yaml(bomb, limits)
    assert time.process_time() - begin < 5


def test_what_an_alias_stands_for_is_a_copy() -> None:
    found = load_yaml("a: &a {list: []}\nb: *a\n")
    found["a"]["list"].append(1)
    assert found["b"] == {"list": []}


def test_documents_are_cut_at_lines_of_dashes() -> None:
    assert load_all_yaml("---\na: 1\n---  # next\n\n---\nb: |\n  ---\n  c\n---\n# none\n") == [
        {"a": 1},
        {"b": "---\nc\n"},
    ]
    assert load_all_yaml("a: 1\n...\n]]]\n---\r\nb: 2\r\n") == [{"a": 1}, {"b": 2}]
    with pytest.raises(YAMLError, match="line 2: only a comment may follow ---"):
        load_all_yaml("a: 1\n--- b: 1\n")
    with pytest.raises(YAMLError, match="line 5"):
        load_all_yaml("a: 1\n---\nb: 1\nc: 'd\n")


def test_lines_count_from_the_start_of_the_file() -> None:
    node = compose("a: 1\nb:\n- c\n", line=10)
    assert [key.start_mark.line for key, _ in node.value] == [10, 11]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_of_the_byte_order(encoding: str) -> None:
    assert load_yaml("a: é\n".encode(encoding)) == {"a": "é"}
    with pytest.raises(YAMLError, match="line 2: byte 5 is not UTF-8 text"):
        load_yaml(b"a: 1\n\xff\n")


@given(st.text() | st.text("0123456789+-.eExXoObB_:aAyYnN~=<>#{}[],&*!|'\"%@` \t\n\r\x85\u2028\ufeff", max_size=8))
def test_every_text_is_read_back(text: str) -> None:
    assert load_yaml(dump_yaml({"k": [text, {text: text}]})) == {"k": [text, {text: text}]}


def test_half_a_character_is_replaced() -> None:
    assert load_yaml(dump_yaml("a\udcffb")) == "a\ufffdb"


@pytest.mark.parametrize("text", ["a " * 700_000, "a, b: c " * 200_000], ids=["plain", "quoted"])
def test_no_line_is_folded(text: str) -> None:
    assert dump_yaml({"k": text}).count("\n") == 1


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "fd00::1", "v1.35.6", "0s", "4m0s", "100m", "2Gi", "no-thing", "10.96.0.0/12", "1.35.6"]
)
def test_a_text_that_no_reader_mistakes_stays_plain(text: str) -> None:
    assert dump_yaml(text).splitlines()[0] == text


def test_one_module_knows_pyyaml() -> None:
    users = set()
    for path in [ROOT / "kb.py", ROOT / "build_zipapp.py", *(ROOT / "kubeup").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "yaml" for name in imported):
                users.add(path.relative_to(ROOT).as_posix())
    assert users == {"kubeup/yaml_text.py"}
