"""Which commands are given a start, and what becomes of the keys that were made early."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from kubeup import headstart, pki


@pytest.fixture(autouse=True)
def no_keys_left() -> Iterator[None]:
    yield
    for key in headstart.take_keys(headstart.EARLY):
        key.result()


@pytest.mark.parametrize(
    "words",
    [(), ("version",), ("init", "--list"), ("join", "--help"), ("reset", "-f"), ("join", "10.0.0.1:6443"), ("certs",)],
)
def test_no_keys_are_made_for(words: tuple[str, ...], tmp_path: Path) -> None:
    headstart.begin(words, str(tmp_path))
    assert headstart.take_keys(headstart.EARLY) == []


@pytest.mark.parametrize("words", [("init",), ("init", "phase", "certs"), ("join", "h:1", "--control-plane")])
def test_a_new_control_plane_gets_keys_and_each_once(words: tuple[str, ...], tmp_path: Path) -> None:
    headstart.begin(words, str(tmp_path))
    first, rest = headstart.take_keys(1), headstart.take_keys(100)
    assert (len(first), len(rest), headstart.take_keys(1)) == (1, headstart.EARLY - 1, [])
    keys = [future.result() for future in first + rest]
    assert all(isinstance(key, RSAPrivateKey) and key.key_size == 2048 for key in keys)
    assert len({key.public_key().public_numbers().n for key in keys}) == headstart.EARLY


def test_a_node_that_has_its_keys_makes_none(tmp_path: Path) -> None:
    (tmp_path / "sa.key").touch()
    headstart.begin(("init",), str(tmp_path))
    assert headstart.take_keys(headstart.EARLY) == []


def test_early_keys_are_taken_first_where_they_are_of_the_kind(tmp_path: Path) -> None:
    headstart.begin(("init",), str(tmp_path))
    assert pki.KeyMaker("RSA-3072", wanted=0).take().key_size == 3072
    early: list[Future[RSAPrivateKey]] = headstart._keys[:]
    maker = pki.KeyMaker("RSA-2048", wanted=2)
    assert [maker.take(), maker.take()] == [future.result() for future in early[:2]]
    assert len(headstart.take_keys(100)) == headstart.EARLY - 2, "no more than wanted"
    assert maker.take() not in [future.result() for future in early]
