"""Patches: any folder of any files, and any body on any object, ends in an object that can be written or in a KbError."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

from kubeup.errors import KbError
from kubeup.node.patches import KINDS, TARGETS, read_patches
from kubeup.yaml_text import dump_yaml, load_yaml
from tests.fake_host import FakeHost
from tests.fuzz import ODD_TEXTS, alter_bytes, alter_value, cases

POD: dict[str, Any] = {
    "kind": "Pod",
    "metadata": {"labels": {"tier": "control-plane"}, "finalizers": ["a", "b"]},
    "spec": {
        "containers": [
            {
                "name": "etcd",
                "command": ["etcd", "--a=1"],
                "env": [{"name": "A", "value": "1"}],
                "ports": [{"containerPort": 2381}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }
        ],
        "volumes": [{"name": "data", "hostPath": {"path": "/data"}}],
    },
}
BODIES: dict[str, list[Any]] = {
    "strategic": [
        {"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"], "labels": {"$patch": "replace"}}},
        {"spec": {"volumes": [{"name": "data", "$patch": "delete"}, {"name": "x"}], "$retainKeys": ["volumes"]}},
        {"spec": {"$setElementOrder/containers": [{"name": "etcd"}], "containers": [{"name": "etcd", "env": [{"name": "B"}]}]}},
        {"spec": {"containers": [{"$patch": "replace"}, {"name": "z", "ports": [{"containerPort": 1}]}]}},
    ],
    "merge": [{"spec": {"volumes": None, "hostNetwork": True}}, {"metadata": {"labels": {"tier": None}}}],
    "json": [
        [{"op": "add", "path": "/spec/volumes/-", "value": {"name": "y"}}, {"op": "remove", "path": "/metadata/labels"}],
        [{"op": "move", "from": "/spec/volumes/0", "path": "/spec/x"}, {"op": "test", "path": "/kind", "value": "Pod"}],
        [{"op": "copy", "from": "", "path": "/spec/y"}, {"op": "replace", "path": "/spec/containers/0/name", "value": 1}],
    ],
}  # fmt: skip


def file_name(chance: random.Random) -> str:
    parts = (*TARGETS, *KINDS, "+", "+", ".", ".yaml", ".yaml", ".json", ".yml", "0", *ODD_TEXTS[:12])
    odd = "".join(chance.choices(parts, k=chance.randint(1, 6))).replace("/", "").replace("\0", "")
    return odd if odd not in ("", ".", "..") else "etcd.yaml"


def patch_and_write(name: str, data: bytes, pod: Any, target: str) -> None:
    with contextlib.suppress(KbError):
        patched = read_patches(FakeHost(files={f"/p/{name}": data}), "/p").apply(target, pod)
        assert load_yaml(dump_yaml(patched)) == json.loads(json.dumps(patched))


def test_any_body_on_any_object() -> None:
    for chance in cases("patches", 3000):
        kind = chance.choice(KINDS)
        body, pod = alter_value(chance, chance.choice(BODIES[kind])), alter_value(chance, POD)
        if isinstance(pod, dict):
            text = json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")
            patch_and_write(f"etcd+{kind}.{chance.choice(('yaml', 'json'))}", text, pod, "etcd")


def test_any_file() -> None:
    for chance in cases("patch files", 1500):
        kind = chance.choice(KINDS)
        data = alter_bytes(chance, dump_yaml(chance.choice(BODIES[kind])).encode())
        name = file_name(chance) if chance.random() < 0.5 else f"etcd+{kind}.yaml"
        patch_and_write(name, data, POD, chance.choice(TARGETS))
