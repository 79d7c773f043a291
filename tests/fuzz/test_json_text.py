"""parse_json: a value or a ValueError, and a value that can be written again."""

from __future__ import annotations

import json
import math

from kubeup.json_text import parse_json
from tests.fuzz import alter_bytes, alter_value, cases

SAMPLE = {
    "kind": "ConfigMap",
    "metadata": {"name": "cluster-info", "labels": {"é": "\U0001f600"}, "generation": 3},
    "data": {"kubeconfig": "apiVersion: v1\n", "list": [1, 2.5, None, True, [], {}]},
}


def test_altered_bytes() -> None:
    good = json.dumps(SAMPLE).encode()
    taken = 0
    for chance in cases("json bytes", 3000):
        try:
            value = parse_json(alter_bytes(chance, good), "it")
        except ValueError:
            continue
        taken += 1
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    assert taken


def test_altered_values() -> None:
    for chance in cases("json values", 1000):
        value = alter_value(chance, SAMPLE)
        assert _is_same(parse_json(json.dumps(value), "it"), value)


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other)
    return one == other
