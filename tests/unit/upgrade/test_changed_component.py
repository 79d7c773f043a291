"""kubeup/upgrade/changed_component.py: a component's configuration after a change, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from kubeup.errors import UsageError
from kubeup.upgrade.changed_component import KINDS, change, changed_fields, check, lay_over

KUBELET = KINDS["kubelet"]
BEFORE: dict[str, Any] = {"maxPods": 110, "evictionHard": {"memory.available": "100Mi"}, "logging": {"verbosity": 0}}


@pytest.mark.parametrize(
    ("path", "text", "field", "value"),
    [
        ("maxPods", "200", "maxPods", 200),
        ("evictionHard.memory.available", "5%", "evictionHard", {"memory.available": "5%"}),
        ("evictionHard.nodefs.available", "5%", "evictionHard", {"memory.available": "100Mi", "nodefs.available": "5%"}),
        ("logging.verbosity", "4", "logging", {"verbosity": 4}),
        ("featureGates.NodeSwap", "true", "featureGates", {"NodeSwap": True}),
        ("allowedUnsafeSysctls", "[a, b]", "allowedUnsafeSysctls", ["a", "b"]),
        ("syncFrequency", "2m0s", "syncFrequency", "2m0s"),
        ("resolvConf", "123", "resolvConf", "123"),
        ("memorySwap.swapBehavior", "LimitedSwap", "memorySwap", {"swapBehavior": "LimitedSwap"}),
    ],
)  # fmt: skip
def test_a_field_is_found_by_its_path_and_has_its_type(path: str, text: str, field: str, value: Any) -> None:
    changed = change(BEFORE, KUBELET, sets=[(path, text)], unsets=[])
    assert changed[field] == value
    check(BEFORE, changed, kind=KUBELET, minor=35)
    assert changed_fields(BEFORE, changed) == {field}


def test_what_is_unset_goes_and_takes_an_empty_map_along() -> None:
    changed = change(
        BEFORE, KUBELET, sets=[], unsets=["evictionHard.memory.available", "maxPods", "nodeStatusMaxImages"]
    )
    assert changed == {"logging": {"verbosity": 0}}


@pytest.mark.parametrize(
    ("path", "text", "remedy"),
    [
        ("maxPod", "200", 'did you mean "maxPods"?'),
        ("logging.verbose", "4", 'did you mean "verbosity"?'),
        ("maxPods.high", "200", "write --set maxPods=VALUE"),
        ("allowedUnsafeSysctls", "[a", "write it as in a YAML file"),
    ],
)
def test_a_path_or_text_that_is_none(path: str, text: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        change(BEFORE, KUBELET, sets=[(path, text)], unsets=[])
    assert caught.value.code == "bad-setting"
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("path", "text", "cause"),
    [
        ("maxPods", "many", "maxPods: must be a whole number"),
        ("maxPods", "-1", "out of range"),
        ("evictionHard.memory.available", "lots", "is no quantity"),
        ("syncFrequency", "5", "must be a duration"),
    ],
)
def test_a_value_with_which_a_kubelet_does_not_start(path: str, text: str, cause: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(BEFORE, change(BEFORE, KUBELET, sets=[(path, text)], unsets=[]), kind=KUBELET, minor=35)
    assert caught.value.code == "invalid-config"
    assert cause in caught.value.cause


def test_what_was_wrong_before_is_not_this_changes_mistake() -> None:
    before = {**BEFORE, "ofTheFuture": 1}
    check(before, change(before, KUBELET, sets=[("maxPods", "5")], unsets=[]), kind=KUBELET, minor=35)


def test_a_field_of_a_newer_minor() -> None:
    with pytest.raises(UsageError, match="has a problem") as caught:
        check(BEFORE, {**BEFORE, "imagePullCredentialsVerificationPolicy": "NeverVerify"}, kind=KUBELET, minor=31)
    assert "Kubernetes 1.31 has no such field" in caught.value.cause


@pytest.mark.parametrize(
    ("word", "name"), [("kubelet", "staticPodPath"), ("kubelet", "cgroupDriver"), ("kube-proxy", "clusterCIDR")]
)
def test_what_a_running_cluster_cannot_follow(word: str, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check({}, {name: "x"}, kind=KINDS[word], minor=35)
    assert caught.value.code == "not-changeable"


def test_the_fields_of_a_file() -> None:
    assert lay_over(BEFORE, {"maxPods": 5, "logging": None}) == {
        "maxPods": 5,
        "evictionHard": {"memory.available": "100Mi"},
    }
