"""The three-way difference of a static pod: what a tool rendered, what is there, and what is to be.

Each field is looked at by itself: options of a command by their name, containers, volumes and variables by theirs, mounts by their path.
What the new rendering changes is changed; what others changed is kept or dropped as the caller says. Pure: reads and writes nothing.
kubeadm writes its own rendering over everything (kubernetes/kubeadm#541, #950).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Optional

from kubeup.engine.plan import Difference
from kubeup.node.patches import MERGE_KEYS

MISSING: Final = object()
"""A field that is not there. Null is a value."""
_COMMANDS = frozenset({"command", "args"})


@dataclass
class Merge:
    """One merge. explicit: the options that the stored configuration names (extraArgs), so that its word counts where the record shows
    that nobody else changed them. keeps: whether the changes of others are kept. asked: the options that somebody asks for now: they become
    as they are wanted, whoever changed them. prefers_new: the same for every field that the new rendering changes.

    After `run`, edits has what others changed: as it was written in `wanted`, as it is in `found`. conflicts has those of them where the
    new rendering differs too, or that cannot be kept: as it is to be in `wanted`, as it is in `found`."""

    name: str
    explicit: Collection[str] = ()
    keeps: bool = True
    asked: Collection[str] = ()
    prefers_new: bool = False
    edits: list[Difference] = field(default_factory=list)
    conflicts: list[Difference] = field(default_factory=list)

    def run(
        self,
        rendered: Mapping[str, Any],
        found: Mapping[str, Any],
        *,
        wanted: Mapping[str, Any],
        recorded: Optional[Mapping[str, Any]] = None,
    ) -> dict[str, Any]:
        """The pod that is to be. rendered: what the tool writes for the present version and configuration. recorded: what it wrote, if
        that is known."""
        known = MISSING if recorded is None else join_words(recorded)
        sides = _Sides(join_words(rendered), join_words(found), join_words(wanted), known, recorded is not None)
        merged: dict[str, Any] = self._merge(sides, "")
        return merged

    def _merge(self, sides: _Sides, at: str) -> Any:
        if sides.found == sides.wanted or sides.found == sides.rendered:
            return sides.wanted
        if isinstance(sides.found, Mapping) and isinstance(sides.wanted, Mapping):
            return self._merge_mappings(sides, at)
        key = at.rpartition(".")[2]
        if isinstance(sides.found, list) and isinstance(sides.wanted, list) and key in (*MERGE_KEYS, *_COMMANDS):
            return self._merge_lists(sides, at, key=key)
        return self._choose(sides, at)

    def _merge_mappings(self, sides: _Sides, at: str) -> dict[str, Any]:
        merged = {}
        for key in dict.fromkeys((*sides.wanted, *sides.found)):
            value = self._merge(sides.at(key), f"{at}.{key}" if at else str(key))
            if value is not MISSING:
                merged[key] = value
        return merged

    def _merge_lists(self, sides: _Sides, at: str, *, key: str) -> Any:
        """Lists whose items are known by a name. Lists with two of a name are taken as a whole."""
        by_name = sides.map(lambda value: _by_option(value) if key in _COMMANDS else _by_key(value, MERGE_KEYS[key]))
        if not (isinstance(by_name.found, Mapping) and isinstance(by_name.wanted, Mapping)):
            return self._choose(sides, at)
        merged: list[Any] = []
        for name in dict.fromkeys((*by_name.wanted, *by_name.found)):
            value = self._merge(by_name.at(name), f"{at} {name}" if key in _COMMANDS else f"{at}[{name}]")
            if value is not MISSING:
                merged += _as_words(name, value) if key in _COMMANDS else [value]
        return merged

    def _choose(self, sides: _Sides, at: str) -> Any:
        """One field that is neither as rendered nor as it is to be."""
        if at == f"spec.containers[{self.name}].image":
            return self._choose_image(sides, at)
        if self._is_asked_for(sides, at):
            return sides.wanted
        self._note(sides, at)
        if sides.rendered != sides.wanted:
            self.conflicts.append(Difference(self.name, at, _show(sides.wanted), _show(sides.found)))
        return sides.found if self.keeps else sides.wanted

    def _is_asked_for(self, sides: _Sides, at: str) -> bool:
        """Whether the difference comes from the stored configuration, which was changed since the manifest was written, or is what
        somebody asks for now."""
        option = at.rpartition(" ")[2]
        if option.startswith("--") and option[2:] in self.asked:
            return True
        if self.prefers_new and sides.rendered != sides.wanted:
            return True
        if sides.found is MISSING:
            return not sides.is_recorded or sides.recorded is MISSING
        is_explicit = option.startswith("--") and option[2:] in self.explicit
        return is_explicit and sides.is_recorded and sides.found == sides.recorded

    def _choose_image(self, sides: _Sides, at: str) -> Any:
        """The image that is to be; of another's change only the place that it is pulled from can be kept."""
        (place, tag), (own_place, _) = (_split_image(value) for value in (sides.wanted, sides.found))
        if own_place == _split_image(sides.rendered)[0]:
            return sides.wanted  # another tag: that is what changes now
        self._note(sides, at)
        if not tag or "@" in str(sides.found):
            self.conflicts.append(Difference(self.name, at, _show(sides.wanted), _show(sides.found)))
            return sides.wanted
        return f"{own_place}:{tag}" if self.keeps else f"{place}:{tag}"

    def _note(self, sides: _Sides, at: str) -> None:
        before = sides.recorded if sides.is_recorded and sides.recorded != sides.found else sides.rendered
        self.edits.append(Difference(self.name, at, _show(before), _show(sides.found)))


@dataclass
class _Sides:
    """One field on each side."""

    rendered: Any
    found: Any
    wanted: Any
    recorded: Any
    is_recorded: bool

    def map(self, change: Any) -> _Sides:
        return _Sides(
            change(self.rendered), change(self.found), change(self.wanted), change(self.recorded), self.is_recorded
        )

    def at(self, key: str) -> _Sides:
        return self.map(lambda value: value.get(key, MISSING) if isinstance(value, Mapping) else MISSING)


def join_words(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The pod with the options of each container in one list: `command` and `args` are one command line, and nobody's division of it counts.
    A command that is no program with options, a shell's, stays as it is."""
    spec = pod.get("spec")
    if not isinstance(spec, Mapping) or not isinstance(spec.get("containers"), list):
        return dict(pod)
    return {**pod, "spec": {**spec, "containers": [_join_own(one) for one in spec["containers"]]}}


def _join_own(container: Any) -> Any:
    if not isinstance(container, Mapping):
        return container
    command, args = container.get("command"), container.get("args")
    if not (isinstance(command, list) and command and isinstance(args, list)):
        return container
    joined = [*command, *args]
    if _by_option(joined) is MISSING:
        return container
    return {name: joined if name == "command" else value for name, value in container.items() if name != "args"}


def _by_key(value: Any, key: str) -> Any:
    """A list of mappings by their merge key; MISSING if there is none, or one has no key of its own."""
    if not isinstance(value, list):
        return MISSING
    found = {str(item.get(key)): item for item in value if isinstance(item, Mapping) and key in item}
    return found if len(found) == len(value) else MISSING


def _by_option(value: Any) -> Any:
    """A command by its options: {"": "etcd", "--name": ["cp1"]}. An option may be given several times. MISSING if there are other words
    than the program and its options, a shell's for example."""
    if not isinstance(value, list):
        return MISSING
    found: dict[str, Any] = {}
    for index, word in enumerate(map(str, value)):
        option, sign, text = word.partition("=")
        if word.startswith("--"):
            found.setdefault(option, []).append(text if sign else None)
        elif index == 0:
            found[""] = word
        else:
            return MISSING
    return found


def _as_words(name: str, value: Any) -> list[str]:
    if not name:
        return [value]
    return [name if text is None else f"{name}={text}" for text in value]


def _split_image(value: Any) -> tuple[str, str]:
    """Repository and tag: ("registry.k8s.io/etcd", "3.6.6-0")."""
    whole = str(value).partition("@")[0]
    place, sign, tag = whole.rpartition(":")
    return (whole, "") if not sign or "/" in tag else (place, tag)


def _show(value: Any) -> str:
    if value is MISSING:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, str) for one in value):
        return ",".join(value) or "(empty)"
    return value if isinstance(value, str) else json.dumps(value, default=str)
