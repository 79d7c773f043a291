"""Which commands are given a start, and what becomes of the keys that were made early."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from kubeup.node import private_keys
from kubeup.startup import head_start

OF_A_WORKER = (
    "kb", "kubeup.cluster.find_cluster", "kubeup.cluster.join_documents", "kubeup.cluster.membership", "kubeup.commands.join",
    "kubeup.config.load_join", "kubeup.diagnosis.chain", "kubeup.diagnosis.checks.machine", "kubeup.engine.runner",
    "kubeup.network.load_balancer", "kubeup.network.node_routes", "kubeup.network.pod_network", "kubeup.node.ca_pins",
    "kubeup.node.containers", "kubeup.node.kubelet", "kubeup.phases.join_worker", "kubeup.phases.wait_node",
)  # fmt: skip
"""What a worker's join loads, and what that loads with it."""


@pytest.fixture(autouse=True)
def no_keys_left() -> Iterator[None]:
    yield
    for key in head_start.take_keys(head_start.EARLY):
        key.result()


@pytest.mark.parametrize(
    "words",
    [(), ("version",), ("init", "--list"), ("join", "--help"), ("reset", "-f"), ("join", "10.0.0.1:6443"), ("certs",)],
)
def test_no_keys_are_made_for(words: tuple[str, ...], tmp_path: Path) -> None:
    head_start.begin(words, str(tmp_path))
    assert head_start.take_keys(head_start.EARLY) == []


@pytest.mark.parametrize("words", [("init",), ("init", "phase", "certs"), ("join", "h:1", "--control-plane")])
def test_a_new_control_plane_gets_keys_and_each_once(words: tuple[str, ...], tmp_path: Path) -> None:
    head_start.begin(words, str(tmp_path))
    first, rest = head_start.take_keys(1), head_start.take_keys(100)
    assert (len(first), len(rest), head_start.take_keys(1)) == (1, head_start.EARLY - 1, [])
    keys = [made.result() for made in first + rest]
    assert all(isinstance(key, RSAPrivateKey) and key.key_size == 2048 for key in keys)
    assert len({key.public_key().public_numbers().n for key in keys}) == head_start.EARLY


@pytest.mark.parametrize(
    ("words", "is_begun"),
    [
        ("join 10.0.0.11:6443 --token t", False),
        ("join phase preflight 10.0.0.11:6443", False),
        ("join 10.0.0.11:6443 --control-plane", True),
        ("join --config /root/join.yaml", True),
        ("join --config=/root/join.yaml", True),
    ],
)
def test_a_worker_s_join_does_not_load_cryptography(
    words: str, is_begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sa.key").touch()
    monkeypatch.setattr(head_start, "_second", None)
    head_start.begin(words.split(), str(tmp_path))
    assert (head_start._second is not None) == is_begun


@pytest.mark.parametrize("module", OF_A_WORKER)
def test_nothing_that_a_worker_s_join_loads_imports_cryptography(module: str) -> None:
    """A quarter of its CPU time would go there."""
    program = f"import sys, {module}; print([name for name in sys.modules if name.startswith('cryptography')])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_a_node_that_has_its_keys_makes_none(tmp_path: Path) -> None:
    (tmp_path / "sa.key").touch()
    head_start.begin(("init",), str(tmp_path))
    assert head_start.take_keys(head_start.EARLY) == []


def test_early_keys_are_taken_first_where_they_are_of_the_kind(tmp_path: Path) -> None:
    head_start.begin(("init",), str(tmp_path))
    assert private_keys.KeyMaker("RSA-3072", wanted=0).take().key_size == 3072
    early = head_start._keys[:]
    maker = private_keys.KeyMaker("RSA-2048", wanted=2)
    assert [maker.take(), maker.take()] == [made.result() for made in early[:2]]
    assert len(head_start.take_keys(100)) == head_start.EARLY - 2, "no more than wanted"
    assert maker.take() not in [made.result() for made in early]


def test_values_are_made_in_their_order_by_two_threads_that_stand_back() -> None:
    begun: list[int] = []
    nice: list[int] = []

    def make(number: int) -> int:
        begun.append(number)
        nice.append(os.nice(0))
        if number == 3:
            raise ValueError("three")
        return number * 10

    values = [head_start.Making(make, number) for number in range(6)]
    head_start.make_in_threads(values)
    assert [value.result() for value in values[:3]] == [0, 10, 20]
    with pytest.raises(ValueError, match="three"):
        values[3].result()
    assert [value.result() for value in values[4:]] == [40, 50], "one that fails does not end the others"
    assert sorted(begun) == list(range(6))
    assert all(found >= min(19, os.nice(0) + head_start.KEYS_NICE) for found in nice) and os.nice(0) < 19
