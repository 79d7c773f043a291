"""A Plan: what a step wants to be there, said once. Everything else follows from it.

Owns the shape of a plan and how two views of one thing are told apart, field by field. An item (engine/items.py, engine/cluster_items.py) knows how to
look at the node, to tell the difference, and to make it so. Must not decide when a plan is applied: the Runner does.

Three values of each item: *wanted* (the plan), *found* (the node), *recorded* (as found after it was last applied).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Protocol, Union

from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup import redact

if TYPE_CHECKING:
    from kubeup.cluster.api import Api
    from kubeup.engine.run import Promises, Results
    from kubeup.machine.host import Host
    from kubeup.paths import Paths
    from kubeup.report import Report

Fields = Mapping[str, Any]
"""What an item is, or is to be, as plain values: {"mode": "0600", "content": "apiVersion: v1..."}."""


class Ground(Protocol):
    """What an item looks at and changes: a Run."""

    @property
    def host(self) -> Host: ...
    @property
    def paths(self) -> Paths: ...
    @property
    def owned_paths(self) -> frozenset[str]: ...
    @property
    def promises(self) -> Promises: ...
    @property
    def report(self) -> Report: ...
    @property
    def api(self) -> Api: ...


@frozen
class Difference:
    """One field of one item: `/etc/kubernetes/manifests/etcd.yaml`, `spec.containers[etcd].image`, wanted, found. A value that is
    not there, or is not to be shown, is ""."""

    item: str
    field: str
    wanted: str = ""
    found: str = ""

    def __str__(self) -> str:
        if not self.field:
            return f"{self.item} is not there"
        if self.wanted or self.found:
            found, wanted = (_show(self.field, value) for value in (self.found, self.wanted))
            return f"{self.item}: {self.field} is {found or 'not set'}, not {wanted or 'unset'}"
        return f"{self.item}: {self.field}"


def _show(field: str, value: str) -> str:
    """A value as it may be told: a patch can put a token into a static pod."""
    if value and any(redact.is_private_name(name) for name in re.split(r"[.\[\] ]+", field) if name):
        return redact.MARK
    return redact.redact(value)


class Item(Protocol):
    """One thing that is to be there."""

    @property
    def name(self) -> str:
        """What it is called to people, once in a plan: a path, `ConfigMap kube-system/kubeadm-config`, `unit kubelet`."""

    @property
    def is_of_cluster(self) -> bool:
        """It belongs to the cluster, not to this node: it is compared with the cluster's configuration, and no node records it."""

    @property
    def is_blind(self) -> bool:
        """It cannot be looked at again: whether it is as wanted shows by the plan alone, which is another one or the same."""

    @property
    def is_judged(self) -> bool:
        """It is applied whenever its step is: what is found good is kept, and what may surprise about it is told."""

    @property
    def places(self) -> tuple[Path, ...]:
        """The files, folders and links on the node that making it so may make."""

    def wanted(self) -> Fields: ...

    def look(self, run: Ground) -> Optional[Fields]:
        """What is there; None for nothing."""

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]: ...

    def apply(self, run: Ground) -> Fields:
        """Make it so; returns what is there then. Repeated, it changes nothing."""

    def record(self, fields: Fields) -> Fields:
        """What of it may be kept on the disk: no secret."""


class Guard(Protocol):
    """The program that reads the items of a group when it starts."""

    @property
    def name(self) -> str: ...
    @property
    def places(self) -> tuple[Path, ...]: ...

    def is_running(self, run: Any) -> bool: ...

    def stop(self, run: Any) -> None:
        """Before the items change. One that does not have to be stopped for it does nothing."""

    def start(self, run: Any) -> None:
        """With the items as they are now, whether it runs or not. Raises HostError."""

    def settle(self, run: Any) -> None:
        """What is to be so while it runs, each time: started at boot."""


@frozen
class Group:
    """Items that a program reads when it starts: stop, write, start. That it runs from *these* contents is part of the group.

    once: items that it needs for its first start alone, and that may be gone afterwards: a bootstrap credential."""

    items: tuple[Item, ...]
    guard: Guard
    once: tuple[Item, ...] = ()

    @property
    def name(self) -> str:
        return f"unit {self.guard.name}"

    def content(self, run: Ground) -> str:
        """A digest of all that the program is started with. A certificate that is issued again is wanted as the one before was, so
        of what is judged its files count as they are now."""
        wanted: dict[str, Any] = {item.name: item.wanted() for item in self.items}
        files = [path for item in self.items if item.is_judged for path in item.places]
        found = {str(path): digest_of(run, path) if run.host.exists(path) else "" for path in files}
        return digest({**wanted, **found})


@frozen
class Later:
    """What can only be said when something else is known: name, `podCIDR`.

    read: its value, if it is known now; wait: its value, as soon as it is known (this one may last, and raise; it is called
    before the parts are made in any case, and may refuse); then: the parts of the plan that follow from it."""

    name: str
    read: Callable[[Any], Any]
    wait: Callable[[Any], Any]
    then: Callable[[Any], Sequence[Part]]


@frozen
class Proof:
    """What has to hold before the parts after it are made: that a program that was started really serves.

    wait: returns when it holds, and raises KbError where it does not come to hold; it may last. judge: "" where it holds, or why
    it does not, by a look; None: no look tells, so that it is no difference."""

    name: str
    wait: Callable[[Any], None]
    judge: Optional[Callable[[Any], str]] = None


@frozen
class Yielded:
    """Something of kb's that gave way to another's: it is neither made nor missed. why: `/etc/cni/net.d/05-cilium.conflist came`."""

    name: str
    why: str


@frozen
class Waiting:
    """Something that other nodes have to make possible first: neither done nor failed, and looked at again by the next run."""

    name: str
    why: str


Part = Union[Item, Group, Later, Proof, Yielded, Waiting]


class Plan:
    """What a step wants: its parts in the order in which they are made; with what is told when they are made.

    details: told with -v; notes, warnings: told once; hands_on: what later steps take from this one, once it is applied."""

    def __init__(
        self,
        *parts: Part,
        details: Sequence[str] = (),
        notes: Sequence[str] = (),
        warnings: Sequence[str] = (),
        hands_on: Optional[Results] = None,
    ) -> None:
        self.parts = parts
        self.details = tuple(details)
        self.notes = tuple(notes)
        self.warnings = tuple(warnings)
        self.hands_on = hands_on

    def __add__(self, other: Plan) -> Plan:
        return self._with((*self.parts, *other.parts), other)

    def _with(self, parts: Sequence[Part], other: Optional[Plan] = None) -> Plan:
        details = (*self.details, *(other.details if other else ()))
        notes = (*self.notes, *(other.notes if other else ()))
        warnings = (*self.warnings, *(other.warnings if other else ()))
        return Plan(*parts, details=details, notes=notes, warnings=warnings, hands_on=self.hands_on)

    def items(self) -> Iterator[Item]:
        """Each item that is known now, those of groups included."""
        for part in self.parts:
            if isinstance(part, Group):
                yield from (*part.once, *part.items)
            elif not isinstance(part, (Later, Proof, Yielded, Waiting)):
                yield part

    @property
    def waits(self) -> tuple[Waiting, ...]:
        return tuple(part for part in self.parts if isinstance(part, Waiting))

    @property
    def is_open(self) -> bool:
        """Whether something in it is not known yet."""
        return any(isinstance(part, (Later, Waiting)) for part in self.parts)

    def places(self) -> list[Path]:
        found = [path for item in self.items() for path in item.places]
        return found + [path for part in self.parts if isinstance(part, Group) for path in part.guard.places]

    def fingerprint(self) -> str:
        """A digest of all that is wanted; "" while something is not known yet."""
        wanted = {item.name: item.wanted() for item in self.items()}
        return "" if self.is_open else digest({name: fields for name, fields in wanted.items() if fields})

    def resolve(self, run: Ground) -> Plan:
        """With what is known by now in the place of what was not. A look: it never waits."""
        parts: list[Part] = []
        for part in self.parts:
            value = part.read(run) if isinstance(part, Later) else None
            if isinstance(part, Later) and value is not None:
                parts.extend(Plan(*part.then(value)).resolve(run).parts)
            else:
                parts.append(part)
        return self._with(parts)


def digest_of(run: Ground, path: Path) -> str:
    """Of a file's content, sha256."""
    return hashlib.sha256(run.host.read_bytes(path)).hexdigest()


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


# ---- differences


def flatten(value: Any, at: str = "") -> dict[str, str]:
    """A document as one text a field: `spec.containers[etcd].command --name`. What has a name is named by it, an option by its own."""
    if isinstance(value, Mapping):
        found: dict[str, str] = {}
        for key, item in value.items():
            found.update(flatten(item, f"{at}.{key}" if at else str(key)))
        return found or {at: "{}"}
    if isinstance(value, list):
        return _flatten_list(value, at)
    return {at: "" if value is None else str(value)}


def _flatten_list(value: list[Any], at: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for index, item in enumerate(value):
        if isinstance(item, str) and item.startswith("--"):
            option, _, text = item.partition("=")
            found[f"{at} {option}"] = f"{found[f'{at} {option}']},{text}" if f"{at} {option}" in found else text
        elif isinstance(item, Mapping) and isinstance(item.get("name"), str):
            found.update(flatten(item, f"{at}[{item['name']}]"))
        else:
            found.update(flatten(item, f"{at}[{index}]"))
    return found or {at: "[]"}


def compare_documents(item: str, wanted: Any, *, found: Any, is_whole: bool = True) -> tuple[Difference, ...]:
    """Field by field. is_whole: what is found and not wanted is a difference too."""
    one, other = flatten(wanted), flatten(found)
    names = [*one, *(name for name in other if name not in one)] if is_whole else list(one)
    return tuple(
        Difference(item, name, one.get(name, ""), other.get(name, ""))
        for name in names
        if one.get(name) != other.get(name)
    )


def compare_lines(item: str, wanted: str, *, found: str) -> tuple[Difference, ...]:
    """The first line that differs stands for the text."""
    one, other = wanted.splitlines(), found.splitlines()
    for number in range(max(len(one), len(other))):
        left = one[number] if number < len(one) else ""
        right = other[number] if number < len(other) else ""
        if left != right or (number >= min(len(one), len(other))):
            return (Difference(item, f"line {number + 1}", left, right),)
    return () if wanted == found else (Difference(item, "its last line"),)
