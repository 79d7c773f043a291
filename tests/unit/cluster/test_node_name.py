"""kubeup/cluster/node_name.py: a node of the same name."""

from __future__ import annotations

from typing import Any

import pytest

from kubeup.cluster import node_name
from kubeup.errors import KbError
from tests.unit.cluster.discovery_case import NOW

# ---- the name


def node_object(address: str, ready: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "w1", "creationTimestamp": "2025-12-29T00:00:00Z"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


def test_a_name_that_is_taken() -> None:
    with pytest.raises(KbError) as caught:
        node_name.check_node_name(node_object("10.0.0.9", "True"), ["10.0.0.12"], now=NOW)
    assert caught.value.code == "node-name-taken"
    assert "10.0.0.9" in caught.value.cause and "3 d old" in caught.value.cause


def test_names_that_may_be_taken_over() -> None:
    assert node_name.check_node_name(None, [], now=NOW) == ""
    assert "not Ready" in node_name.check_node_name(node_object("10.0.0.9", "Unknown"), ["10.0.0.12"], now=NOW)
    assert "from before" in node_name.check_node_name(node_object("10.0.0.12", "True"), ["10.0.0.12"], now=NOW)


@pytest.mark.parametrize(("created", "age"), [("2025-12-31T23:59:20Z", "40 s"), ("2025-12-31T19:00:00Z", "5 h"), ("", "?")])  # fmt: skip
def test_ages(created: str, age: str) -> None:
    assert node_name.describe_age(created, NOW) == age
