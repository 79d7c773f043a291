"""Plan: what a step wants to exist, stated once. The engine derives everything else from it.

This module defines the shape of a plan and the field-by-field comparison of two views of one item. The items themselves
(engine/items.py, engine/cluster_items.py) know how to look at the node, find differences and apply changes. When a plan is
applied is decided by the Runner, not here.

Each item has three values: *wanted* (from the plan), *found* (on the node) and *recorded* (found after the last apply).
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
"""The actual or desired value of an item, as plain values: {"mode": "0600", "content": "apiVersion: v1..."}."""


class Ground(Protocol):
    """What an item looks at and changes. Run implements it."""

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
    """One field of one item that differs: `/etc/kubernetes/manifests/etcd.yaml`, `spec.containers[etcd].image`, wanted, found.
    A value that is missing, or must not be shown, is ""."""

    item: str
    field: str
    wanted: str = ""
    found: str = ""

    def __str__(self) -> str:
        if not self.field:
            return f"{self.item} is not there"
        if self.wanted or self.found:
            found, wanted = (show_value(self.field, value) for value in (self.found, self.wanted))
            return f"{self.item}: {self.field} is {found or 'not set'}, not {wanted or 'unset'}"
        return f"{self.item}: {self.field}"

    def as_change(self) -> str:
        """What it is to become: "etcd: spec.containers[etcd].command --v: (not set) -> 2"."""
        found, wanted = (show_value(self.field, value) or "(not set)" for value in (self.found, self.wanted))
        return f"{self.item}: {self.field}: {found} -> {wanted}"


def show_value(field: str, value: str) -> str:
    """The value with secrets redacted: a patch can put a token into a static pod."""
    if value and any(redact.is_private_name(name) for name in re.split(r"[.\[\] ]+", field) if name):
        return redact.MARK
    return redact.redact(value)


class Item(Protocol):
    """One thing that should exist."""

    @property
    def name(self) -> str:
        """Its name in messages, unique within a plan: a path, `ConfigMap kube-system/kubeadm-config`, `unit kubelet`."""

    @property
    def is_of_cluster(self) -> bool:
        """It belongs to the cluster: it is compared with the cluster's configuration, and no node records it."""

    @property
    def is_blind(self) -> bool:
        """It cannot be inspected after it was applied. It is due if the plan's fingerprint changed."""

    @property
    def is_judged(self) -> bool:
        """It is applied whenever its step runs: apply keeps what is good, and reports what may surprise the user."""

    @property
    def places(self) -> tuple[Path, ...]:
        """The files, folders and links on the node that `apply` may create."""

    def wanted(self) -> Fields: ...

    def look(self, run: Ground) -> Optional[Fields]:
        """What is there now; None if there is nothing."""

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]: ...

    def apply(self, run: Ground) -> Fields:
        """Create or change the item, and return what is there afterwards. Applying it again changes nothing."""

    def record(self, fields: Fields) -> Fields:
        """The fields that may be stored on disk: no secrets."""


class Guard(Protocol):
    """The program that reads a group's items when it starts."""

    @property
    def name(self) -> str: ...
    @property
    def places(self) -> tuple[Path, ...]: ...

    def is_running(self, run: Any) -> bool: ...

    def stop(self, run: Any) -> None:
        """Stop the program before its items change. Does nothing if the program may keep running meanwhile."""

    def start(self, run: Any) -> None:
        """Start the program with the current items; restart it if it is running. Raises HostError."""

    def settle(self, run: Any) -> None:
        """Ensure, on every apply, what has to hold while the program runs, such as that it starts at boot."""


@frozen
class Group:
    """Items that a program reads when it starts: stop it, write them, start it. The program must have been started with the
    current contents.

    once: items needed only for the first start, such as a bootstrap credential; they may be gone afterwards."""

    items: tuple[Item, ...]
    guard: Guard
    once: tuple[Item, ...] = ()

    @property
    def name(self) -> str:
        return f"unit {self.guard.name}"

    def content(self, run: Ground) -> str:
        """A digest of everything that the program reads when it starts. A reissued certificate has the same wanted fields as its
        predecessor, so for judged items the current files count."""
        wanted: dict[str, Any] = {item.name: item.wanted() for item in self.items}
        files = [path for item in self.items if item.is_judged for path in item.places]
        found = {str(path): digest_of(run, path) if run.host.exists(path) else "" for path in files}
        return digest({**wanted, **found})


@frozen
class Later:
    """Parts of a plan that depend on a value which may not be known yet. name: of that value, such as `podCIDR`.

    read: returns the value if it is known now, else None.
    wait: waits for the value and returns it. It is called before the parts are applied even if the value is known, and may raise
        in order to refuse them.
    then: returns the parts that follow from the value."""

    name: str
    read: Callable[[Any], Any]
    wait: Callable[[Any], Any]
    then: Callable[[Any], Sequence[Part]]


@frozen
class Proof:
    """A condition that must hold before the parts after it are applied, such as that a started program really serves.

    wait: blocks until the condition holds; raises KbError if it does not.
    judge: looks once; returns "" if the condition holds, else the reason why not. None: a look cannot tell, so the condition
        never counts as a difference."""

    name: str
    wait: Callable[[Any], None]
    judge: Optional[Callable[[Any], str]] = None


@frozen
class Yielded:
    """Something of kb's that gave way to another tool's: it is neither created nor reported as missing.

    why: `/etc/cni/net.d/05-cilium.conflist came`."""

    name: str
    why: str


@frozen
class Waiting:
    """Something that other nodes must make possible first: neither done nor failed. The next run looks again."""

    name: str
    why: str


Part = Union[Item, Group, Later, Proof, Yielded, Waiting]


class Plan:
    """What a step wants: its parts, in the order in which they are applied, and the messages to print when they are.

    details: printed with -v; notes, warnings: printed once; hands_on: the Results for later steps, once this plan is applied."""

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
        """Every item that is known now, including those of groups."""
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
        """Whether some part of the plan is not known yet, or waits for other nodes."""
        return any(isinstance(part, (Later, Waiting)) for part in self.parts)

    def places(self) -> list[Path]:
        found = [path for item in self.items() for path in item.places]
        return found + [path for part in self.parts if isinstance(part, Group) for path in part.guard.places]

    def fingerprint(self) -> str:
        """A digest of everything that the plan wants; "" while the plan is open."""
        wanted = {item.name: item.wanted() for item in self.items()}
        return "" if self.is_open else digest({name: fields for name, fields in wanted.items() if fields})

    def resolve(self, run: Ground) -> Plan:
        """The plan with every Later whose value is known by now replaced by its parts. Never waits."""
        parts: list[Part] = []
        for part in self.parts:
            value = part.read(run) if isinstance(part, Later) else None
            if isinstance(part, Later) and value is not None:
                parts.extend(Plan(*part.then(value)).resolve(run).parts)
            else:
                parts.append(part)
        return self._with(parts)


def digest_of(run: Ground, path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    return hashlib.sha256(run.host.read_bytes(path)).hexdigest()


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


# ---- differences


def flatten(value: Any, at: str = "") -> dict[str, str]:
    """A document as a mapping of field to text: `spec.containers[etcd].command --name`. List items are addressed by their `name`
    if they have one, and options by their flag."""
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
    """Compare two documents field by field. is_whole: a field that is found but not wanted is a difference too."""
    one, other = flatten(wanted), flatten(found)
    names = [*one, *(name for name in other if name not in one)] if is_whole else list(one)
    return tuple(
        Difference(item, name, one.get(name, ""), other.get(name, ""))
        for name in names
        if one.get(name) != other.get(name)
    )


def compare_lines(item: str, wanted: str, *, found: str) -> tuple[Difference, ...]:
    """The first line that differs, as the only Difference."""
    one, other = wanted.splitlines(), found.splitlines()
    for number in range(max(len(one), len(other))):
        left = one[number] if number < len(one) else ""
        right = other[number] if number < len(other) else ""
        if left != right or (number >= min(len(one), len(other))):
            return (Difference(item, f"line {number + 1}", left, right),)
    return () if wanted == found else (Difference(item, "its last line"),)
