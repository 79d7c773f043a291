"""@frozen beside dataclass(frozen=True), whose ways it must have."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

import pytest

from kubeup.frozen_values import frozen


@dataclass(frozen=True)
class Before:
    name: str
    port: int = 6443
    tags: list[str] = field(default_factory=list, compare=False)
    note: str = field(default="", repr=False)


@frozen
class Now:
    name: str
    port: int = 6443
    tags: list[str] = field(default_factory=list, compare=False)
    note: str = field(default="", repr=False)


@frozen
class Child(Now):
    port: int = 2379
    more: bool = False


BOTH = pytest.mark.parametrize("kind", [Before, Now])


@BOTH
def test_made_by_place_and_by_name(kind: Any) -> None:
    made = kind("a", 1, note="n")
    assert (made.name, made.port, made.tags, made.note) == ("a", 1, [], "n")
    assert kind("a").tags is not kind("a").tags
    assert repr(made) == f"{kind.__name__}(name='a', port=1, tags=[])"


@BOTH
@pytest.mark.parametrize(
    "arguments", [((), {}), (("a", 1, [], "", 5), {}), (("a",), {"name": "b"}), (("a",), {"z": 1})]
)
def test_what_does_not_fit_is_a_type_error(kind: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    with pytest.raises(TypeError, match=r"__init__\(\) |Now"):
        kind(*arguments[0], **arguments[1])


@BOTH
def test_equal_and_hashed_by_its_compared_fields(kind: Any) -> None:
    assert kind("a", tags=["x"]) == kind("a", tags=["y"]) and hash(kind("a")) == hash(kind("a", tags=["y"]))
    assert kind("a") != kind("b") and kind("a") != ("a", 6443)
    assert len({kind("a"), kind("a"), kind("a", 1)}) == 2


@BOTH
def test_nothing_can_be_set_or_deleted(kind: Any) -> None:
    made = kind("a")
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'port'"):
        made.port = 1
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'new'"):
        made.new = 1
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'port'"):
        del made.port
    assert made.port == 6443


@BOTH
def test_the_functions_of_dataclasses(kind: Any) -> None:
    made: Any = kind("a", tags=["x"])
    assert is_dataclass(kind("a"))
    assert [found.name for found in fields(kind)] == ["name", "port", "tags", "note"]
    assert replace(made, port=1) == kind("a", 1) and made.port == 6443
    assert asdict(made) == {"name": "a", "port": 6443, "tags": ["x"], "note": ""}
    assert copy.deepcopy(made) == made and pickle.loads(pickle.dumps(made)) == made


def test_a_child_has_the_fields_of_its_parent() -> None:
    assert (Child("a").port, Child("a", more=True).more, Now("a").port) == (2379, True, 6443)
    assert Child("a") != Now("a", 2379)


def test_a_method_of_the_class_stays() -> None:
    @frozen
    class Shy:
        secret: str

        def __repr__(self) -> str:
            return "***"

    assert repr(Shy("s")) == "***"
