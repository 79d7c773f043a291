"""kb's YAML beside Go's, which kubectl reads files with: both make the same of every scalar and document, and Go reads
what kb wrote as the value that was meant."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.yaml_text import MANIFEST, YAMLError, dump_yaml, load_all_yaml, load_yaml

pytestmark = pytest.mark.component

KUBECTL = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
HEAD = "apiVersion: example.org/v1\nkind: Example\nmetadata: {name: it}\n"

STEMS = [
    "y",
    "n",
    "yes",
    "no",
    "on",
    "off",
    "true",
    "false",
    "null",
    "~",
    "t",
    "f",
    "o",
    "yep",
    "NaN",
    "inf",
    "Infinity",
    "=",
    "<<",
    "-",
    ".",
    "..",
    "...",
    "--",
    "---",
    "+",
    "0",
    "1",
    "9",
    "00",
    "01",
    "07",
    "08",
    "09",
    "017",
    "019",
    "0o17",
    "0o18",
    "0O17",
    "0x1F",
    "0X1f",
    "0xg",
    "0x",
    "0b",
    "0b11",
    "0b12",
    "0B11",
    "0o",
    "1_000",
    "1__0",
    "_1",
    "1_",
    "0_1",
    "0x1_0",
    "0b_1",
    "0x_1",
    "1e3",
    "1E3",
    "1e+3",
    "1e-3",
    "1.e3",
    ".e3",
    "e3",
    "1e",
    "1e+",
    "716064e0",
    "129e6",
    "1e8",
    "0e0",
    "01e2",
    "1e400",
    "1e-400",
    "1e21",
    "1e20",
    "1.5e3",
    "1.5",
    "1.",
    ".5",
    ".5e3",
    "._5",
    ".5_0",
    ".5_",
    ".5e1_0",
    "1_0.5",
    "1.0",
    "0.0",
    "100.50",
    "123456789.123456789",
    "0.1e-7",
    "13:30",
    "13:30:45",
    "1:2.5",
    "190:20:30",
    "99:99",
    "12:5",
    ":30",
    "2001-01-01",
    "2001-1-2",
    "20010101",
    "2001-01",
    "2001-01-01T00:00:00Z",
    "2001-13-45",
    ".inf",
    ".Inf",
    ".INF",
    ".iNF",
    ".nan",
    ".NaN",
    ".Nan",
    "0x1p4",
    "0x1.8",
    "1.2.3",
    "10.0.0.1",
    "fd00::1",
    "v1.35.6",
    "100m",
    "2Gi",
    "4m0s",
    "0s",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999",
    "0777777777777777777777",
    "07777777777777777777777",
    "0xFFFFFFFFFFFFFFFF",
    "0x1FFFFFFFFFFFFFFFF",
    "12345678901234567",
    "1e1_0",
    "a:b",
    "a#",
    "http://a:80/",
    "a,b",
    "a?b",
    "%a",
    "@a",
    "é",
    "日本",
    "😀",
    "a\tb",
    "0.30000000000000004",
    "5e-324",
    "0b+1",
    "0b-11",
    "0o+7",
    "0x-1",
    "0b1_0",
    "0b_-1",
    "1e400:",
    "0b2:",
    ".inf0",
    "12e03",
    "0_8",
    "0_17",
    "00x1",
    "1.e",
    "1..2",
    "1e5e5",
    ".e1",
    "+.5",
    "-.inf",
    "0.0e0",
    "1:",
    "a:b:c",
    "2001-01-01 00:00:00",
    "2001-01-01t00:00:00+1",
    "9007199254740993",
    "1e19",
    "123456789e-5",
    "true:",
    "nan",
    "1.7976931348623157e308",
    "!!str",
]
TAGGED = [
    "!!str 1",
    "!!str yes",
    "!!str ~",
    "!!str",
    "!!int 5",
    "!!int '5'",
    "!!int a",
    "!!int 1.5",
    "!!int 1e3",
    "!!float 5",
    "!!float 1.5",
    "!!float a",
    "!!float '.5'",
    "!!bool yes",
    "!!bool y",
    "!!bool 'true'",
    "!!bool 1",
    "!!null ''",
    "!!null ~",
    "!!null a",
    "!!null null",
    "!!timestamp 2001-01-01",
    "!!timestamp 5",
    "!!binary aGk=",
    "!!binary '?'",
    "!foo bar",
    "!foo 5",
    "! 5",
    "! x",
    "! '5'",
    "!!merge x",
    "!!value =",
    "!<tag:yaml.org,2002:int> 5",
    "!!set {a: null}",
    "!!omap [a: 1]",
    "!!map {a: 1}",
    "!!seq [a]",
    "!!str [a]",
    "!!int {a: 1}",
    "&a 5",
    "&a",
    "*a",
    "!!python/none x",
    "!!foo x",
    "!!str\t5",
    "!!int\t5",
    "!\tx",
    "!t\t",
    "! <<",
    "!!binary aG k=",
    '!!binary "aG\\nk="',
    "!!timestamp 2001-13-45",
    "!!timestamp 2001-1-2T3:4:5Z",
    "!!timestamp 2001-1-2t3:4:5.678+01:00",
    "!!timestamp 2001-1-2 3:4:5.6",
    "!!timestamp 2001-1-2 3:4:5Z",
    "!!timestamp 2001-1-2T3:4:5",
    "!!timestamp 2001-02-30",
    "!!float .inf",
    "!!str .inf",
]
QUOTED = [
    "'5'",
    '"5"',
    "'it''s'",
    '"\\x41\\u00e9\\U0001F600"',
    '"\\ud83d\\ude00"',
    '"\\0\\a\\b\\t\\n\\v\\f\\r\\e\\N\\_\\L\\P"',
    '"\\q"',
    "'a\n\n  b'",
    '"a\n  b\\\n  c"',
    "'~'",
    "'='",
    "'<<'",
    '"a: b # c"',
    "''",
    '""',
    "'a\tb'",
    '"\\uFEFF"',
    '"it\\\'s"',
    '"a\\/b"',
    '"\\ud83d"',
    '"\\UFFFFFFFF"',
    '"\\x4"',
    '"\\\tb"',
    '"a\\\n  b"',
    "'a\n\tb'",
    '"\\N\\L"',
    '"\\uD800"',
    '"\\x7f"',
]


def scalars() -> list[str]:
    signed = [
        sign + stem
        for stem in STEMS
        for sign in ("", "-", "+")
        if not (sign and not stem[:1].isalnum() and stem[:1] != ".")
    ]
    cased = [text for stem in STEMS[:10] for text in (stem.upper(), stem.capitalize())]
    return list(dict.fromkeys(signed + cased))


def ask_go(text: bytes) -> Optional[list[dict[str, Any]]]:
    """The objects that kubectl reads in `text`; None where it refuses it."""
    if KUBECTL is None:
        pytest.skip("there is no kubectl")
    done = subprocess.run(
        [KUBECTL, "annotate", "--local", "-f", "-", "kb-test=1", "-o", "json"],
        input=text, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode:
        return None
    found: list[dict[str, Any]] = []
    decoder, rest = json.JSONDecoder(), done.stdout.decode().strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        found += value["items"] if value["kind"] == "List" else [value]
        rest = rest[end:].strip()
    for one in found:
        del one["metadata"]["annotations"]["kb-test"]
        if not one["metadata"]["annotations"]:
            del one["metadata"]["annotations"]
    return found


def ask_kb(text: bytes) -> Optional[list[Any]]:
    try:
        return load_all_yaml(text)
    except YAMLError:
        return None


def as_float(value: Any) -> Any:
    """`value` with its numbers beyond 64 bits as kubectl prints them: floats."""
    if isinstance(value, dict):
        return {key: as_float(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_float(item) for item in value]
    is_large = isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63
    return float(value) if is_large else value


def assert_same(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    assert json.dumps(as_float(ask_kb(data)), sort_keys=True) == json.dumps(as_float(ask_go(data)), sort_keys=True), (
        text[:200]
    )


def with_list(texts: list[str]) -> str:
    return HEAD + "spec:\n" + "".join(f"- {text}\n" for text in texts)


def test_scalars_are_read_alike() -> None:
    texts = scalars()
    readable = [text for text in texts if ask_kb(with_list([text]).encode()) is not None]
    for text in sorted(set(texts) - set(readable)):
        assert_same(with_list([text]))
    assert_same(with_list(readable))
    assert_same(
        HEAD
        + "spec:\n"
        + "".join(
            f"  {number}: [{text}]\n" for number, text in enumerate(readable) if not set("?,:[]{}<%@!=.-\t") & set(text)
        )
    )
    keys = [text for text in readable if text != "<<"]
    good = [text for text in keys if ask_kb(with_list([f"{text}: 1"]).encode()) is not None]
    assert_same(with_list([f"{text}: 1" for text in good]))
    for text in sorted(set(keys) - set(good)):
        assert_same(with_list([f"{text}: 1"]))


def random_scalars() -> list[str]:
    """What nobody would write, of the parts that readers look at."""
    chance = random.Random(11)
    signs = "0123456789_.eE+-xobXB:nyitaf~=<"
    parts = ["0x", "0b", "0o", "1e", ".inf", "nan", "yes", "null", "2001-01-01", "12:30", "é", ":", "+", "-", "_", "."]
    made = ["".join(chance.choices(signs, k=chance.randint(1, 7))) for _ in range(3000)]
    return list(dict.fromkeys(made + ["".join(chance.choices(parts, k=chance.randint(1, 4))) for _ in range(3000)]))


def test_random_scalars_are_read_alike() -> None:
    texts = random_scalars()
    readable = [text for text in texts if ask_kb(with_list([text]).encode()) is not None]
    assert len(readable) > 4000
    for start in range(0, len(readable), 1500):
        part = readable[start : start + 1500]
        assert_same(with_list(part))
        assert_same(HEAD + "spec:\n" + "".join(f"- [{text}]\n" for text in part if not set("?,[]{}") & set(text)))
    for text in sorted(set(texts) - set(readable))[:40]:
        assert_same(with_list([text]))


@pytest.mark.parametrize("text", TAGGED + QUOTED)
def test_tags_and_quotes_are_read_alike(text: str) -> None:
    assert_same(with_list([text]))
    assert_same(HEAD + f"spec: {{a: {text}, b: 1}}\n")


DOCUMENTS = {
    "tab after the colon": "spec:\ta\n",
    "tab in a flow mapping": "spec: {\ta:\t1,\n\tb: 2}\n",
    "tab for indentation": "spec:\n\ta: 1\n",
    "tab after blanks": "spec:\n  \ta: 1\n",
    "tab before a comment": "spec: 1\t# one\n",
    "tab at a line's end": "spec: a\t\nother: b\n",
    "tab in a second line": "spec: a\n \tb\n",
    "tab in a second line, alone": "spec: a\n\tb\n",
    "tab after a dash": "spec:\n-\ta\n-\tb: 1\n",
    "tab in a literal": "spec: |\n  a\tb\n  \tc\n",
    "an empty line of tabs": "spec: a\n\t\nb: c\n",
    "doubled key": "spec: 1\nspec: 2\n",
    "merge below": "a: &a {x: 1, y: 2}\nspec: {x: 5, <<: *a}\n",
    "merge above": "a: &a {x: 1, y: 2}\nspec:\n  <<: *a\n  x: 5\n",
    "merge of two": "a: &a {x: 1}\nb: &b {x: 2, z: 3}\nspec: {<<: [*a, *b]}\n",
    "merge of a text": "spec: {<<: a}\n",
    "merge of a list's alias": "a: &a [{x: 1}]\nspec: {<<: *a}\n",
    "merge in quotes": "spec: {'<<': {a: 1}}\n",
    "merge of nothing": "spec: {<<: }\n",
    "alias of itself": "spec: &a {b: *a}\n",
    "alias of an alias": "a: &a {x: 1}\nb: &b {y: *a}\nspec: [*a, *b]\n",
    "alias without an anchor": "spec: *nowhere\n",
    "anchor given twice": "a: &a 1\nb: &a 2\nspec: *a\n",
    "alias as a key": "a: &a key\nspec: {*a : 1}\n",
    "null key": "spec: {~: 1}\n",
    "list as a key": "spec: {[a]: 1}\n",
    "question mark": "spec:\n  ? a\n  : 1\n  ? b\n",
    "flow set": "spec: {a, b: 1, c}\n",
    "flow without blanks": 'spec: {"a":1,"b":[1,2]}\n',
    "flow, no blank after a plain key": "spec: {a:1}\n",
    "pairs in a list": "spec: [a: 1, b]\n",
    "flow with question marks": "spec: [a?b, ?c]\n",
    "flow with an url": "spec: {a: http://b:80/c?d}\n",
    "flow, comma at the end": "spec: [a, b,]\n",
    "flow, two commas": "spec: [a,, b]\n",
    "flow, not closed": "spec: [a, b\n",
    "flow at the left edge": "spec: [\na,\nb\n]\n",
    "folded": "spec: >\n  a\n  b\n\n  c\n   d\n  e\n",
    "folded, kept": "spec: >+\n  a\n\n\nother: 1\n",
    "literal, stripped": "spec: |-\n  a\n\n\n",
    "literal with a number": "spec: |2\n    a\n  b\n",
    "literal, more blanks first": "spec: |\n\n   \n  a\n",
    "literal without text": "spec: |\nother: 1\n",
    "literal with dashes": "spec: |\n  ---\n  a\n",
    "literal at the document's edge": "spec: |\n a\n---\n" + HEAD + "b: 1\n",
    "long plain text": "spec: a\n  b\n\n  c\n",
    "plain text with a colon at the end": "spec: a:\n",
    "colon twice": "spec: a: b\n",
    "comment without a blank": "spec: 'a'#c\n",
    "comment after a plain one": "spec: a #c\nother: b#c\n",
    "carriage returns": "spec: a\r\nother:\r\n- 1\r\n- |\r\n  x\r\n  y\r\n",
    "old Mac": "spec: a\rother: b\r",
    "next line": "spec: a\x85other: b\n",
    "line separator": "spec: 'a\u2028 b'\n",
    "indentation wrong": "spec:\n   a: 1\n  b: 2\n",
    "list not indented": "spec:\n- a\n- b\nother: 1\n",
    "list in a list": "spec:\n- - a\n  - b\n- c\n",
    "mapping in a list": "spec:\n- a: 1\n  b: 2\n-\n  c: 3\n",
    "empty values": "spec:\n  a:\n  b: ''\n  c: {}\n  d: []\n  - \n",
    "empty items": "spec:\n-\n- \n- a\n",
    "second document": "spec: 1\n...\nspec: 2\n",
    "end and rubbish": "spec: 1\n...\n]]]\n",
    "comment document": "spec: 1\n---\n# nothing\n---\n",
    "text after the marker": "spec: 1\n--- a: 1\n",
    "marker with a comment": "spec: 1\n--- # next\n" + HEAD + "spec: 2\n",
    "marker with more dashes": "spec: 1\n----\n",
    "directive": "spec: 1\n---\n%YAML 1.2\n",
    "null character": "spec: a\0b\n",
    "escape character": "spec: a\x1bb\n",
    "delete character": "spec: a\x7fb\n",
    "mark of the byte order within": "spec: a\ufeffb\n",
    "not a character": "spec: a\uffffb\n",
    "reserved": "spec: `a`\n",
    "percent": "spec: %a\n",
    "key without a value": "spec\n",
    "key over two lines": "spec: {a\n b: 1}\n",
    "long key": "spec: {" + "k" * 1100 + ": 1}\n",
    "long key in a block": "spec:\n  " + "k" * 1100 + ": 1\n",
    "unclosed quote": "spec: 'a\n",
    "quote over a marker": "spec: 'a\n---\nb'\n",
    "anchor without a value": "spec: &a\nother: *a\n",
    "tag without a value": "spec: !!str\nother: !!null\n",
    "odd anchor": "spec: &a.b 1\n",
    "handle": "spec: !e!x 1\n",
    "flow, colon at a text's end": "spec: [a:, {b:}, {c:, d: 1}, 5:]\n",
    "flow, colon before a bracket": "spec: {a:[b]}\n",
    "flow, colon before a quote": 'spec: {a:"b"}\n',
    "flow, quoted key before a bracket": 'spec: {"a":[b],"c":{"d":1}}\n',
    "flow, question mark within": "spec: [a?, b]\n",
    "infinite keys": "spec:\n  .inf: 1\n  -.inf: 2\n  .nan: 3\n",
    # Two keys that JSON would write alike are apart: which of them Go keeps is chance.
    "infinite key in quotes": "spec: [{'.inf': 1}, {.Inf: 2}]\n",
    "literal with a comment at its sign": "spec: |#c\n  a\n",
    "literal with a tab after its sign": "spec: |\t\n  a\n",
    "literal, indicators both ways": "spec:\n- |2-\n    a\n- |-2\n    a\n- >1+\n  a\n",
    "literal, indicators twice": "spec: |--\n  a\n",
    "literal, indicator of two digits": "spec: |12\n  a\n",
    "literal, indicator 0": "spec: |0\n  a\n",
    "literal, a tab first": "spec: |\n\ta\n",
    "literal, a tab after a blank": "spec: |\n  \n \ta\n",
    "literal, a tab between its lines": "spec: |\n  a\n\t\n  b\n",
    "folded, a tab in front": "spec: >\n  a\n  \tb\n  c\n",
    "literal, more blank first lines": "spec: |\n     \n  a\n",
    "literal, ends without a newline": "spec: |+\n  a",
    "literal in a flow": "spec: [|\n a]\n",
    "directive of another name": "spec: 1\n%FOO\n",
    "two values in a line": "spec: 'a' b\n",
    "anchor on a key": "spec: {&a k: 1, b: *a}\n",
    "anchor and tag": "spec: [&a !!str 1, !!str &b 2, *a, *b]\n",
    "merge of an alias twice": "a: &a {x: 1}\nspec: {<<: *a, <<: {y: 2}}\n",
    "merge with a tag": "spec: {!!merge <<: {a: 1}}\n",
    "merge in a list": "spec: [<<, a]\n",
    "key without a blank after it": "spec:\n  a:1\n  b: 2\n",
    "question mark without a value": "spec:\n  ? a\n",
    "question mark with a list": "spec:\n  ? [a]\n  : 1\n",
    "boolean keys alike": "spec: {y: a, yes: b, true: c}\n",
    "long number keys": "spec: {123456789: a, 1e10: b, 0.1: c, 1.5e-7: d, 16777217: e, 1234567.5: f}\n",
    "negative zero": "spec: [-0, -0.0, +0, {-0: 1}]\n",
    "deep flow": "spec: " + "[" * 30 + "]" * 30 + "\n",
    "dash alone": "spec:\n-\n",
    "dash and a tab": "spec:\n-\t-\ta\n",
    "dashes in a value": "spec: - a\n",
    "comment between": "spec:\n  # c\n  a: 1\n # d\n  b: 2\n",
    "comment before a value": "spec: # c\n  a\n",
    "plain over a comment": "spec: a\n  # c\n  b\n",
    "quoted over lines with tabs": "spec: 'a\n\t b\n\n  c'\n",
    "form feed": "spec: a\fb\n",
    "non-breaking blank": "spec: a\u00a0b\nother:\u00a0c\n",
    "paragraph separator": "spec: a\u2029b\n",
    "marker within quotes": "spec: '\n--- a\n'\n",
    "marker indented": "spec: a\n ---\nother: 1\n",
    "marker with a tab": "spec: 1\n---\t\n" + HEAD,
    "marker with a carriage return": "spec: 1\r\n---\r\n" + HEAD,
    "end marker and a document": "spec: 1\n...\n---\n" + HEAD,
    "bomb": "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e]\nspec: [*f, *f, *f, *f, *f]\n",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_read_alike(name: str) -> None:
    assert_same(HEAD + DOCUMENTS[name])


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEAD,
        "---\n" + HEAD,
        "---\n---\n" + HEAD,
        "# c\n\n" + HEAD,
        "%YAML 1.1\n---\n" + HEAD,
        HEAD.replace("\n", "\r\n"),
        json.dumps(load_yaml(HEAD), indent="\t"),
    ],
)
def test_heads_are_read_alike(text: str) -> None:
    assert_same(text)


def texts_to_write() -> list[str]:
    chance = random.Random(7)
    parts = [*scalars(), " ", "  ", "\n", "\n\n", "\t", "#", ": ", ":", "- ", "? ", "'", '"', "\\", "%", "&a", "*a", "!", "|", ">", "{", "[", "]", ",", "\r", "\x85", "\u2028", "\ufeff", "\0", "\x7f", "\x1b", "\uffff", "x" * 200, "a b " * 60]  # fmt: skip
    made = ["".join(chance.choices(parts[-60:], k=chance.randint(1, 4))) for _ in range(2000)]
    return list(dict.fromkeys([*scalars(), *parts, *TAGGED, *QUOTED, *DOCUMENTS.values(), *made]))


def test_go_reads_what_kb_wrote() -> None:
    texts = texts_to_write()
    spec: dict[str, list[Any]] = {
        "list": texts,
        "deep": [[text, {"key": text}, {"in": [text]}] for text in texts],
        "keys": [{text: 1} for text in texts if len(text) < 100],
    }
    text = dump_yaml({**load_yaml(HEAD), "spec": spec})
    [found] = ask_go(text.encode()) or [{}]
    for name, value in spec.items():
        for one, other in zip(value, found["spec"][name]):
            assert one == other
    assert found["spec"] == spec
    numbers: list[Any] = [
        0,
        -1,
        2**63 - 1,
        -(2**63),
        1.5,
        0.1,
        1e21,
        1e-7,
        1e300,
        True,
        False,
        None,
        {},
        [],
        [[]],
        [{}],
        {"a": {}},
    ]
    assert ask_go(dump_yaml({**load_yaml(HEAD), "spec": numbers}).encode()) == [{**load_yaml(HEAD), "spec": numbers}]


def test_kb_reads_what_kb_wrote() -> None:
    texts = texts_to_write()
    assert load_yaml(dump_yaml(texts), MANIFEST) == texts
