"""kubeup/cluster/field_owners.py: what kb applied once and names no more is found by the server's own word."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kubeup.cluster.field_owners import find_left_over
from tests import fake_fields
from tests.fake_cluster import Object

POD = {
    "containers": [
        {"name": "a", "ports": [{"containerPort": 53, "protocol": "UDP"}], "env": [{"name": "X", "value": "1"}]}
    ]
}
WANTED: Object = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "x", "labels": {"team": "dns"}},
    "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"nodeSelector": {"disk": "ssd"}, **POD}}},
}


def applied(obj: Object, manager: str = "kb", operation: str = "Apply") -> Object:
    fields = fake_fields.nest(fake_fields.lay_out(obj))
    entry = {
        "manager": manager,
        "operation": operation,
        "fieldsV1": {**fields, "f:spec": {".": {}, **fields["f:spec"]}},
    }
    return {**obj, "metadata": {**obj["metadata"], "managedFields": [entry]}}


def without(*path: Any) -> Object:
    wanted = copy.deepcopy(WANTED)
    place: Any = wanted
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return wanted


SPEC = ("spec", "template", "spec")


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (WANTED, []),
        (without("metadata", "labels", "team"), ["metadata.labels.team"]),
        (without(*SPEC, "nodeSelector"), ["spec.template.spec.nodeSelector"]),
        (without(*SPEC, "containers", 0, "env", 0), ["spec.template.spec.containers[a].env[X]"]),
        (without(*SPEC, "containers", 0, "ports"), ["spec.template.spec.containers[a].ports"]),
        (
            without(*SPEC, "containers", 0, "ports", 0, "protocol"),
            ["spec.template.spec.containers[a].ports[53,UDP].protocol"],
        ),
        (without("spec"), ["spec"]),
    ],
)
def test_what_is_named_no_more(wanted: Object, left: list[str]) -> None:
    assert find_left_over(applied(WANTED), wanted) == left


def test_what_others_own_is_theirs() -> None:
    wanted = without("metadata", "labels", "team")
    assert find_left_over(applied(WANTED, "kubectl"), wanted) == []
    assert find_left_over(applied(WANTED, operation="Update"), wanted) == []
    assert find_left_over(WANTED, wanted) == []
