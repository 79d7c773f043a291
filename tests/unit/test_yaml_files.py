"""YAML out and in, templates, durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeup.errors import HostError
from kubeup.yaml_files import (
    commands_of_pod,
    containers_of_pod,
    dump_yaml,
    fill_template,
    flags_of,
    format_duration,
    load_all_yaml,
    load_mapping,
    load_yaml,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_what_is_dumped_is_loaded(value: object) -> None:
    assert load_yaml(dump_yaml(value)) == value


def test_the_shape_is_kubernetes() -> None:
    text = dump_yaml({"b": ["x", {"c": "1"}], "a": {}, "t": "2026-01-01", "y": "y", "m": "one\ntwo\n"})
    assert text == 'a: {}\nb:\n- x\n- c: "1"\nm: |\n  one\n  two\nt: "2026-01-01"\n"y": "y"\n'


def test_a_date_stays_a_text_and_empty_documents_go() -> None:
    assert load_all_yaml("a: 2026-01-01\n---\n---\nb: 1\n") == [{"a": "2026-01-01"}, {"b": 1}]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (10, "10s"), (240, "4m0s"), (8760 * 3600, "8760h0m0s"), (5400, "1h30m0s"), (-5, "-5s")],
)
def test_durations_have_go_s_form(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_template_without_a_value_fails() -> None:
    with pytest.raises(KeyError):
        fill_template("manifests/etcd.yaml", {})


@pytest.mark.parametrize("text", ["- a", "5", "a: [1", "[" * 1000, "a: &a {b: *a}"])
def test_what_has_to_be_a_mapping_and_is_none_is_named(text: str) -> None:
    with pytest.raises(HostError) as caught:
        load_mapping(text, "/m/etcd.yaml")
    assert caught.value.code == "not-a-yaml-mapping"
    assert "/m/etcd.yaml" in caught.value.what


def test_a_mapping_or_nothing() -> None:
    assert load_mapping("a: 1\n", "x") == {"a": 1}
    assert load_mapping("", "x") == {}


@pytest.mark.parametrize(
    ("pod", "commands"),
    [
        ({}, []),
        ({"spec": []}, []),
        ({"spec": {"containers": "x"}}, []),
        (
            {"spec": {"containers": ["x", {"command": "x"}, {"command": ["a"], "args": ["b", 1]}]}},
            [[], [], ["a", "b", "1"]],
        ),
    ],
)
def test_the_commands_of_a_pod_of_any_shape(pod: dict[str, object], commands: list[list[str]]) -> None:
    assert commands_of_pod(pod) == commands


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (["etcd", "--a=b", "--c=d=e"], {"a": "b", "c": "d=e"}),
        (["etcd", "-a", "b", "--c"], {"a": "b", "c": ""}),
        (["etcd", "--a", "--c=1", "--a=2"], {"a": "2", "c": "1"}),
        (["etcd", "--", "-"], {}),
        ([], {}),
    ],
)
def test_the_flags_of_a_command(command: list[str], flags: dict[str, str]) -> None:
    assert flags_of(command) == flags


def test_the_container_of_the_pod_s_own_name_comes_first() -> None:
    """A mutating webhook, or somebody's patch, may have put a sidecar before it."""
    sidecar, own = {"name": "audit", "command": ["audit"]}, {"name": "etcd", "command": ["etcd", "--name=cp1"]}
    pod = {"metadata": {"name": "etcd"}, "spec": {"containers": [sidecar, own]}}
    assert containers_of_pod(pod) == [own, sidecar]
    assert commands_of_pod(pod)[0] == ["etcd", "--name=cp1"]
    assert containers_of_pod({"spec": {"containers": [sidecar]}}) == [sidecar]
    assert containers_of_pod({}) == []
