"""load_yaml: a value of JSON or a YAMLError, and a value that is read back from what is written of it."""

from __future__ import annotations

import json

from kubeup.yaml_files import read_resource
from kubeup.yaml_text import YAMLError, dump_yaml, load_all_yaml, load_yaml
from tests.fuzz import alter_bytes, alter_value, cases

SAMPLES = [
    read_resource("addons/coredns.yaml").encode(),
    read_resource("manifests/etcd.yaml").encode(),
    b"a: &a {x: [1, 2.5, ~, 'b'], \"c\\n\": |\n  d\n}\nb:\n  <<: *a\n  ? e\n  : >-\n   f\n---\n!!str 1: {y: 0o17}\n",
    "a: é\nb: [1e3]\n".encode("utf-16"),
]


def test_altered_bytes() -> None:
    taken = 0
    for chance in cases("yaml bytes", 1500):
        data = alter_bytes(chance, chance.choice(SAMPLES))
        for read in (load_yaml, load_all_yaml):
            try:
                value = read(data)
            except YAMLError:
                continue
            taken += 1
            assert load_yaml(dump_yaml(value)) == json.loads(json.dumps(value)) == value
    assert taken > 10


def test_any_value_is_read_back() -> None:
    samples = [document for data in SAMPLES[:2] for document in load_all_yaml(data)]
    for chance in cases("yaml values", 1500):
        value = json.loads(json.dumps(alter_value(chance, chance.choice(samples))))
        if "1180591620717411303424" not in (text := dump_yaml(value)):  # no integer of Go's
            assert load_yaml(text) == value
