"""The record store: every item of this node as found after its last apply, or at adoption.

Each generation is one file below /var/lib/kb/records, beside state.json. It holds contents by digest, and the items of each step.
A run that changes something starts a new generation; the last few are kept, so that there is something to go back to. The
store holds no secret of kb's, but it does hold what a user's patch puts into a static pod. So only root may read it, and no support
bundle includes it. A lost record costs only knowledge: kb can no longer tell who changed what.

    {"schema": 1, "kb": "0.1.0", "made": "2026-11-29T10:00:00Z",
     "contents": {"5f3c...": "apiVersion: v1..."},
     "steps": {"init/etcd/local": {"/etc/kubernetes/manifests/etcd.yaml": {"content": "sha256:5f3c...", "mode": "0600"}}}}
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, Optional

from kubeup import __version__, moments
from kubeup.engine.plan import Fields, digest
from kubeup.errors import HostError
from kubeup.json_text import parse_json_object
from kubeup.machine.host import Host

SCHEMA = 1
KEPT = 5
"""How many generations are kept."""
PROGRAMS = "programs/placed"
"""The step under which the programs are that kb placed."""
_DIGEST = "sha256:"
_MAX_BYTES = 32 << 20

StepRecord = dict[str, Fields]
"""Item name -> its fields, with contents in full."""


class Records:
    """The record of this node. Change it through `put`, `rename` and `forget`. The first `save` that finds a change begins a new
    generation, and later saves go into the same one: each run makes at most one generation. An act of the run that has saved something
    itself meanwhile, with Records of its own, does not lose it."""

    def __init__(self, host: Host, folder: Path, *, steps: Mapping[str, StepRecord], generation: int) -> None:
        self.host = host
        self.folder = folder
        self.generation = generation
        self.steps = {key: dict(items) for key, items in steps.items()}
        self._saved = _digests(self.steps)
        self._is_begun = False

    def of(self, step: str) -> Optional[StepRecord]:
        """The record of a step; None if there is none, so that what was there is unknown."""
        return self.steps.get(step)

    def put(self, step: str, items: Mapping[str, Fields]) -> None:
        self.steps[step] = dict(items)

    def rename(self, step: str, former: str) -> None:
        """Move the record of a renamed step to its new name."""
        if former in self.steps and step not in self.steps:
            self.steps[step] = self.steps.pop(former)

    def forget(self, phases: Container[str]) -> None:
        """Drop the records of phases with these names, in any workflow: what they made is gone."""
        for step in [step for step in self.steps if step.partition("/")[2] in phases]:
            del self.steps[step]

    def save(self) -> None:
        """Write the record if it changed. Raises HostError."""
        now = _digests(self.steps)
        if now == self._saved:
            return
        self._take_in(now)
        now = _digests(self.steps)
        self.generation += not self._is_begun
        self._is_begun = True
        self.host.make_dir(self.folder.parent, mode=0o700)
        self.host.make_dir(self.folder, mode=0o700)
        text = _render(self.steps, moments.show(self.host.now()))
        self.host.write_file(self.folder / f"{self.generation:06d}.json", text, mode=0o600)
        self._saved = now
        for number in _list_generations(self.host, self.folder)[:-KEPT]:
            self.host.remove(self.folder / f"{number:06d}.json")

    def _take_in(self, now: Mapping[str, str]) -> None:
        """What somebody else has saved since: their steps, but for those that were changed here."""
        numbers = _list_generations(self.host, self.folder)
        if not numbers or numbers[-1] <= self.generation:
            return
        own = {step for step in {*now, *self._saved} if now.get(step) != self._saved.get(step)}
        theirs = load_records(self.host, self.folder)
        kept = {step: items for step, items in theirs.steps.items() if step not in own}
        self.steps = {**kept, **{step: items for step, items in self.steps.items() if step in own}}
        self.generation, self._is_begun = theirs.generation, True


def load_records(host: Host, folder: Path) -> Records:
    """The newest generation that can be read, or an empty record. Never raises, because kb can work without a record."""
    try:
        numbers = _list_generations(host, folder)
    except HostError:
        numbers = []
    for number in reversed(numbers):
        steps = _read(host, folder / f"{number:06d}.json")
        if steps is not None:
            return Records(host, folder, steps=steps, generation=numbers[-1])
    return Records(host, folder, steps={}, generation=numbers[-1] if numbers else 0)


def _list_generations(host: Host, folder: Path) -> list[int]:
    stems = (Path(name).stem for name in host.list_dir(folder) if name.endswith(".json"))
    return sorted(int(stem) for stem in stems if len(stem) == 6 and stem.isdecimal() and stem.isascii())


def record_programs(host: Host, folder: Path, *, paths: Iterable[Path]) -> None:
    """Record that these programs are as kb placed them. They are too large to be read for that: their size and the moment of their last
    change stand for them. Raises HostError."""
    kept = load_records(host, folder)
    found = {str(path): describe_program(host, path) for path in paths}
    kept.put(PROGRAMS, {**(kept.of(PROGRAMS) or {}), **{name: fields for name, fields in found.items() if fields}})
    kept.save()


def describe_program(host: Host, path: Path) -> Fields:
    """{"size": "57000000", "changed": "1796025600.000000"}; {} if there is no such file."""
    found = host.stat(path)
    return {"size": str(found.size), "changed": f"{found.ctime:.6f}"} if found is not None else {}


def _digests(steps: Mapping[str, StepRecord]) -> dict[str, str]:
    return {step: digest(items) for step, items in steps.items()}


def _render(steps: Mapping[str, StepRecord], made: str) -> str:
    contents: dict[str, str] = {}
    shown = {key: {name: _fold(fields, contents) for name, fields in items.items()} for key, items in steps.items()}
    value = {"schema": SCHEMA, "kb": __version__, "made": made, "contents": contents, "steps": shown}
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _fold(fields: Fields, contents: dict[str, str]) -> dict[str, Any]:
    """The fields with the content replaced by its digest; the content itself is added to `contents`."""
    if "content" not in fields:
        return dict(fields)
    key = digest(fields["content"])
    contents[key] = str(fields["content"])
    return {**fields, "content": _DIGEST + key}


def _read(host: Host, path: Path) -> Optional[dict[str, StepRecord]]:
    """The steps in a record file; None if it is damaged or has another schema, since kb can work without it."""
    try:
        data = parse_json_object(host.read_text(path), "it", max_bytes=_MAX_BYTES)
        if data.get("schema") != SCHEMA:
            return None
        contents = data["contents"]
        return {
            str(key): {str(name): _unfold(fields, contents) for name, fields in items.items()}
            for key, items in data["steps"].items()
        }
    except (HostError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _unfold(fields: Mapping[str, Any], contents: Mapping[str, Any]) -> Fields:
    """The fields with the digest replaced by its content. Raises KeyError, TypeError or ValueError if the content is missing or
    does not match its digest."""
    text = fields.get("content")
    if text is None:
        return dict(fields)
    content = str(contents[str(text)[len(_DIGEST) :]])
    if _DIGEST + digest(content) != text:
        raise ValueError("a content is not what its digest says")
    return {**fields, "content": content}
