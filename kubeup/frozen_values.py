"""`@frozen`: dataclass(frozen=True), for a program that starts again for every command.

dataclasses generates and compiles six methods for each class, which takes half a millisecond; kb has a hundred such
classes. Here all classes share the same methods, which read the fields found by dataclasses; fields(), replace() and
asdict() work as usual. The price is slower creation of values, and kb creates only dozens of them.

Owns: the shared methods. Must not: gain features that dataclass(frozen=True) lacks. Mirrors nothing of kubeadm.
"""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        return lambda decorator: decorator


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make `cls` a dataclass whose instances are immutable, compare by their fields, and can be hashed.

    Its constructor raises TypeError for a missing, unknown or duplicate argument; setting or deleting an attribute
    raises dataclasses.FrozenInstanceError.
    """
    dataclass(init=False, repr=False, eq=False)(cls)
    for method in (_init, _repr, _eq, _hash, _setattr, _delattr):
        name = f"__{method.__name__[1:]}__"
        if name not in vars(cls):
            setattr(cls, name, method)
    return cls


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def frozen_by_name(cls: type[T]) -> type[T]:
    """Like `frozen`, for a value whose fields are passed only by name: mypy checks this, and a subclass may add
    required fields."""
    return frozen(cls)


def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    cls, values = type(self), vars(self)
    specs = fields(cls)
    if len(args) > len(specs):
        raise TypeError(f"{cls.__name__}() takes {len(specs)} arguments, and {len(args)} were given")
    for spec, value in zip(specs, args):
        if spec.name in kwargs:
            raise TypeError(f"{cls.__name__}() got two values for {spec.name!r}")
        values[spec.name] = value
    for spec in specs[len(args) :]:
        if spec.name in kwargs:
            values[spec.name] = kwargs.pop(spec.name)
        elif spec.default is not MISSING:
            values[spec.name] = spec.default
        elif spec.default_factory is not MISSING:
            values[spec.name] = spec.default_factory()
        else:
            raise TypeError(f"{cls.__name__}() lacks {spec.name!r}")
    if kwargs:
        raise TypeError(f"{cls.__name__}() knows no {', '.join(map(repr, kwargs))}")


def _repr(self: Any) -> str:
    shown = (f"{spec.name}={getattr(self, spec.name)!r}" for spec in fields(self) if spec.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _compared(value: Any) -> tuple[Any, ...]:
    return tuple(getattr(value, spec.name) for spec in fields(value) if spec.compare)


def _eq(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _setattr(self: Any, name: str, value: Any) -> None:  # noqa: PLR0917
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")
