"""state.json: what kb did on this node, so that it can continue, report and undo.

This module defines the file's schema and saves it atomically. The file holds no secrets. What a phase does is decided by the
Runner, not here.

    {"schema": 1, "kb": "0.1.0", "machine_id": "...", "node": "cp1", "cluster": "kubernetes",
     "phases": {"init/certs/ca": {"status": "done", "inputs": {"plan": "5f3c..."}, "started": "...", "ended": "...",
                                  "created": ["/etc/kubernetes/pki/ca.crt"], "backups": [{"path": ..., "copy": ...}],
                                  "outputs": {...}, "error": null}}}

`folders`, `marks` and `patches` are stored only if they are not empty.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from kubeup import __version__
from kubeup.errors import HostError
from kubeup.json_text import parse_json_object
from kubeup.machine.host import Host
from kubeup.paths import WORKPLACES, Paths

SCHEMA = 1
_MAX_BYTES = 16 << 20
STATUSES = ("running", "done", "failed")


@dataclass
class PhaseState:
    """The state of one phase of one workflow."""

    status: str
    started: str = ""
    ended: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    """The fingerprint: a short hash of the plan, or of an act's spec. Older versions of kb stored one hash for each value that a
    phase read."""
    created: list[str] = field(default_factory=list)
    """Files, folders and links that did not exist before; undo removes them."""
    backups: list[dict[str, str]] = field(default_factory=list)
    """Files that existed before: {"path": ..., "copy": ...}; undo restores the copy."""
    outputs: dict[str, Any] = field(default_factory=dict)
    error: Optional[dict[str, Any]] = None
    adopted: bool = False
    """Another tool did it, and kb found the result to be as its own would be."""
    compensations: list[dict[str, str]] = field(default_factory=list)
    """What an act has begun or done outside this node, and how to find it there: {"kind": "etcd-member", "peer_url": ...}.
    It is saved before the act makes the change, so that reset can undo it wherever the run was cut off."""


@dataclass
class State:
    """The state of this node. Change it through the Runner; save() writes the whole file."""

    host: Host
    paths: Paths
    node: str = ""
    cluster: str = ""
    machine_id: str = ""
    cri_socket: str = ""
    adopted: list[str] = field(default_factory=list)
    """Files that another tool or the admin made and kb uses; undo never touches them."""
    phases: dict[str, PhaseState] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    """Folders outside WORKPLACES in which kb made or changed files, because of a configured path or a link."""
    marks: dict[str, str] = field(default_factory=dict)
    """Files of others that contain lines of kb's, and the mark of those lines: {"/etc/hosts": "# kb: ..."}."""
    patches: str = ""
    """The folder of the patches with which kb made this node; "" if there were none."""
    is_kept: bool = True
    """False: the state lives only for this run, and save() writes nothing."""
    _saved: str = ""

    def created_paths(self) -> frozenset[str]:
        """Every path that kb made on this node."""
        return frozenset(path for phase in self.phases.values() for path in phase.created)

    def known_paths(self) -> frozenset[str]:
        """Every path that kb made or adopted on this node."""
        return self.created_paths() | frozenset(self.adopted)

    def remember_folder(self, path: Path, *, is_folder: bool = False) -> None:
        """Remember the folder of a `path` that kb is about to create or change. Undo touches nothing outside kb's workplaces and
        these folders."""
        if not self.is_workplace(path):
            self.folders.append(str(path if is_folder or path.parent == Path("/") else path.parent))

    def is_workplace(self, path: Path) -> bool:
        """Whether `path` is in one of kb's workplaces, or is a parent of one."""
        places = (*WORKPLACES, *(Path(text) for text in self.folders))
        return any(place == path or place in path.parents or path in place.parents for place in places)

    def compensations(self, kind: str) -> list[dict[str, str]]:
        """The registered compensations of one kind."""
        found = (entry for phase in self.phases.values() for entry in phase.compensations)
        return [entry for entry in found if entry.get("kind") == kind]

    def has_changed_files(self) -> bool:
        """Whether there is a file to remove or restore. A run that preflight checks stopped left none."""
        return any(phase.created or phase.backups for phase in self.phases.values())

    def has_run(self, workflow: str) -> bool:
        """Whether a workflow (`init`, `join`) made or changed files on this node, or its result was adopted."""
        entries = [phase for key, phase in self.phases.items() if key.startswith(f"{workflow}/")]
        return any(phase.created or phase.backups or phase.adopted for phase in entries)

    def save(self) -> None:
        """Write the file atomically, with mode 0600, if it changed."""
        text = _render(self.as_dict())
        if text == self._saved or not self.is_kept:
            return
        self.host.make_dir(self.paths.state_dir, mode=0o700)
        self.host.write_file(self.paths.state, text, mode=0o600)
        self._saved = text

    def as_dict(self) -> dict[str, Any]:
        value = {
            "schema": SCHEMA,
            "kb": __version__,
            "machine_id": self.machine_id,
            "node": self.node,
            "cluster": self.cluster,
            "cri_socket": self.cri_socket,
            "adopted": self.adopted,
            "phases": {key: _describe_phase(phase) for key, phase in self.phases.items()},
        }
        more = {"folders": self.folders, "marks": self.marks, "patches": self.patches}  # older states have none of them
        return {**value, **{name: found for name, found in more.items() if found}}


def _render(state: dict[str, Any]) -> str:
    """JSON with one line per entry and per phase, so that people can read it too. json's own indentation is implemented in Python
    and ten times slower, and a run saves its state twice per phase."""
    phases = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(phase, sort_keys=True)}" for name, phase in sorted(state["phases"].items())
    )
    entries = (f" {json.dumps(name)}: {json.dumps(state[name])}" for name in sorted(state) if name != "phases")
    return "{\n" + ",\n".join((*entries, f' "phases": {{\n{phases}\n }}' if phases else ' "phases": {}')) + "\n}\n"


def _describe_phase(phase: PhaseState) -> dict[str, Any]:
    """The phase as it is stored. Fields that older states lack are stored only if they are set."""
    return {name: value for name, value in vars(phase).items() if name not in ("adopted", "compensations") or value}


def load_state(host: Host, paths: Paths) -> State:
    """Read the state of this node; return an empty one if kb never ran here.

    Raises HostError: state-damaged (not JSON, or not kb's), state-too-new (another schema), state-foreign (the disk
    was cloned from another machine).
    """
    machine_id = _read_machine_id(host)
    if not host.exists(paths.state):
        return State(host, paths, machine_id=machine_id)
    text = host.read_text(paths.state)
    try:
        data = parse_json_object(text, "it", max_bytes=_MAX_BYTES)
        schema = data["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(paths.state, str(error)) from error
    if type(schema) is not int or schema < 1:
        raise _damaged(paths.state, f"its schema is {schema!a}")
    if schema != SCHEMA:
        raise HostError(
            f"{paths.state} has schema {schema!r}",
            cause=f"kb {data.get('kb', 'of another version')} wrote it; this is kb {__version__}, which knows schema {SCHEMA}",
            remedy="run the newer kb that wrote it",
            code="state-too-new",
        )
    written_on = data.get("machine_id", "")
    if written_on and machine_id and written_on != machine_id:
        raise HostError(
            f"{paths.state} belongs to another machine",
            cause=f"it was written on machine {written_on}, this one is {machine_id}: the disk was cloned",
            remedy=f"if nothing of the other node is wanted here, remove /etc/kubernetes, /var/lib/kubelet, /var/lib/etcd and {paths.state}",
            code="state-foreign",
        )
    try:
        state = _parse_state(host, paths, data=data, machine_id=machine_id)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(paths.state, " ".join(str(error).split())) from error
    state._saved = _render(data)
    return state


def _parse_state(host: Host, paths: Paths, *, data: dict[str, Any], machine_id: str) -> State:
    """Check everything that undo and the Runner rely on. Raises ValueError, which names the field."""
    for name in ("node", "cluster", "cri_socket"):
        if not isinstance(data.get(name), str):
            raise ValueError(f"{name} is not text")
    for name in ("adopted", "folders"):
        default: Optional[list[str]] = [] if name == "folders" else None  # older states have no folders
        for index, path in enumerate(_require(data.get(name, default), list, name=name)):
            _check_path(path, f"{name}[{index}]")
    for path, mark in _require(data.get("marks", {}), dict, name="marks").items():
        _check_path(path, "marks")
        if not re.fullmatch(r"[^\n]+", _require(mark, str, name=f"marks[{json.dumps(path)}]")):
            raise ValueError(f"marks[{json.dumps(path)}] is not a line of text")
    phases = {
        key: _parse_phase(value, f"phases[{json.dumps(key)}]", paths=paths)
        for key, value in _require(data.get("phases"), dict, name="phases").items()
    }
    return State(
        host, paths, data["node"], data["cluster"], machine_id, data["cri_socket"], list(data["adopted"]), phases,
        list(data.get("folders", [])), dict(data.get("marks", {})), _require(data.get("patches", ""), str, name="patches"),
    )  # fmt: skip


_KINDS: dict[type, str] = {dict: "mapping", list: "list", str: "text"}


def _require(value: Any, kind: type, *, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is no {_KINDS[kind]}")
    return value


def _parse_phase(value: Any, name: str, *, paths: Paths) -> PhaseState:
    """Raises ValueError."""
    unknown = set(_require(value, dict, name=name)) - set(PhaseState.__dataclass_fields__)
    if unknown or "status" not in value:
        raise ValueError(f"{name} has no status" if not unknown else f"{name} has an unknown field {min(unknown)!a}")
    phase = PhaseState(**value)
    if phase.status not in STATUSES:
        raise ValueError(f"{name}.status is {phase.status!a}")
    for index, path in enumerate(_require(phase.created, list, name=f"{name}.created")):
        _check_path(path, f"{name}.created[{index}]")
    for index, entry in enumerate(_require(phase.backups, list, name=f"{name}.backups")):
        _check_backup(entry, f"{name}.backups[{index}]", paths=paths)
    for index, entry in enumerate(_require(phase.compensations, list, name=f"{name}.compensations")):
        for key, text in _require(entry, dict, name=f"{name}.compensations[{index}]").items():
            _require(text, str, name=f"{name}.compensations[{index}].{key}")
    for field_name in ("inputs", "outputs"):
        _require(getattr(phase, field_name), dict, name=f"{name}.{field_name}")
    if phase.error is not None:
        _require(phase.error, dict, name=f"{name}.error")
    for field_name in ("started", "ended"):
        _require(getattr(phase, field_name), str, name=f"{name}.{field_name}")
    return phase


def _check_path(path: Any, name: str) -> None:
    """Raise ValueError unless this is a path as kb writes it: undo removes and overwrites such paths."""
    if not isinstance(path, str) or not path.startswith("/") or path.startswith("//") or "\0" in path:
        raise ValueError(f"{name}, {path!a}, is not an absolute path")
    if ".." in path.split("/") or os.path.normpath(path) != path:
        raise ValueError(f"{name}, {path!a}, is not a plain path")


def _check_backup(entry: Any, name: str, *, paths: Paths) -> None:
    """Raise ValueError unless this names a file and its copy in kb's own backup folder, or the target of a link."""
    for key, value in _require(entry, dict, name=name).items():
        _require(value, str, name=f"{name}.{key}")
    _check_path(entry.get("path"), f"{name}.path")
    if entry.get("link"):
        if "\0" in entry["link"]:
            raise ValueError(f"{name}.link holds a NUL character")
        return
    _check_path(entry.get("copy"), f"{name}.copy")
    if paths.backups not in Path(entry["copy"]).parents:
        raise ValueError(f"{name}.copy, {entry['copy']!a}, does not lie below {paths.backups}")
    if not re.fullmatch("[0-7]{1,4}", entry.get("mode", "0644")):
        raise ValueError(f"{name}.mode, {entry['mode']!a}, is none")
    try:
        parse_owner(entry.get("owner", "0:0"))
    except ValueError as error:
        raise ValueError(f"{name}.owner, {entry['owner']!a}, is none") from error


def parse_owner(text: str) -> tuple[int, int]:
    """`0:0` as (uid, gid). Raises ValueError."""
    found = re.fullmatch("([0-9]{1,10})(?::([0-9]{1,10}))?", text)
    if found is None:
        raise ValueError(f"{text!a} is no owner")
    uid, gid = int(found[1]), int(found[2] or found[1])
    if max(uid, gid) >= (1 << 32) - 1:  # to the kernel, this ID means "leave unchanged"
        raise ValueError(f"{text!a} is no owner")
    return uid, gid


def _damaged(path: Path, text: str) -> HostError:
    return HostError(
        f"{path} cannot be read as kb's state",
        cause=f"it is damaged ({text})",
        remedy=f"move it away (mv {path} {path}.damaged) and run the command again: kb inspects the node itself and continues",
        code="state-damaged",
    )


def _read_machine_id(host: Host) -> str:
    path = Path("/etc/machine-id")
    return host.read_text(path).strip() if host.exists(path) else ""
