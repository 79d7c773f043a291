"""The files in configs/, value formats, and the comparison of objects. YAML itself is in kubeup/yaml_text.py."""

from __future__ import annotations

import functools
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kubeup.errors import HostError
from kubeup.yaml_text import YAMLError, dump_yaml, load_all_yaml, load_yaml

__all__ = [
    "YAMLError",
    "commands_of_pod",
    "containers_of_pod",
    "covers",
    "dump_yaml",
    "fill_template",
    "format_duration",
    "is_same_yaml",
    "load_all_yaml",
    "load_mapping",
    "load_yaml",
    "name_of",
    "pick_like",
    "read_resource",
]

_CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")


@functools.cache
def read_resource(name: str) -> str:
    """A file in configs/ ("manifests/etcd.yaml"), from a checkout or from kb.pyz. Read only once: a keeper that runs
    for months outlives the kb.pyz that started it."""
    data = __loader__.get_data(os.path.join(_CONFIGS, *name.split("/")))  # type: ignore[name-defined]
    return bytes(data).decode()


def fill_template(name: str, values: Mapping[str, object]) -> str:
    """The file `name` in configs/ with each ${word} replaced by a scalar. Raises KeyError for a word without a value,
    so that a template and its caller cannot drift apart."""
    return string.Template(read_resource(name)).substitute({key: str(value) for key, value in values.items()})


def load_mapping(text: str, place: str) -> dict[str, Any]:
    """The first document in `text`, which must be a mapping; {} for an empty one. place: names it in messages. Raises
    HostError (not-a-yaml-mapping)."""
    try:
        found = load_yaml(text)
        cause = "" if found is None or isinstance(found, dict) else "it does not contain a mapping of fields to values"
    except YAMLError as error:
        found, cause = None, f"it is not YAML: {error}"
    if cause:
        raise HostError(
            f"{place} cannot be read",
            cause=cause,
            remedy=f"correct {place}, or put a whole copy in its place, then run the command again",
            code="not-a-yaml-mapping",
        )
    return dict(found or {})


def containers_of_pod(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The containers, first the one with the pod's own name: a sidecar of somebody's may come before it in the file. Anything without a pod's
    shape counts as empty."""
    spec, metadata = pod.get("spec"), pod.get("metadata")
    listed = spec.get("containers") if isinstance(spec, Mapping) else None
    found = [one if isinstance(one, dict) else {} for one in listed] if isinstance(listed, list) else []
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return sorted(found, key=lambda one: one.get("name") != name)


def commands_of_pod(pod: Mapping[str, Any]) -> list[list[str]]:
    """The words of each container's command and args, first those of the one with the pod's own name."""
    found = []
    for container in containers_of_pod(pod):
        parts = [container.get(name) for name in ("command", "args")]
        found.append([str(word) for part in parts if isinstance(part, list) for word in part])
    return found


def flags_of(command: Sequence[str]) -> dict[str, str]:
    """The flags of a command line, by name without dashes; the last one of a name counts. `--flag value` is read like
    `--flag=value`, as in Go."""
    found = {}
    for word, following in zip(command, (*command[1:], "")):
        name, has_value, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name:
            found[name] = value if has_value or following.startswith("-") else following
    return found


def format_duration(seconds: int) -> str:
    """A duration in whole seconds in Go's form: `8760h0m0s`, `4m0s`, `10s`, `0s`."""
    sign, rest = ("-", -seconds) if seconds < 0 else ("", seconds)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if hours:
        return f"{sign}{hours}h{minutes}m{secs}s"
    return f"{sign}{minutes}m{secs}s" if minutes else f"{sign}{secs}s"


def name_of(path: Path) -> str:
    """A path in the form that kubeadm's check names use: `/a/b` -> `-a-b`."""
    return str(path).replace("/", "-")


def is_same_yaml(text: str, other: str) -> bool:
    """Whether two texts contain the same document: other tools order and quote it differently."""
    if text == other:
        return True
    try:
        return bool(load_yaml(text) == load_yaml(other))
    except YAMLError:
        return False


def covers(found: Any, wanted: Any) -> bool:
    """Whether `found` has everything that `wanted` names, with the same values. The server adds its defaults to an
    applied object, and others add fields, so the objects are never fully equal."""
    if found is None:
        return wanted in (None, {}, [], "", 0, False)  # the server omits empty values
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(covers(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            return False
        return all(covers(one, other) for one, other in zip(found, wanted))
    return bool(found == wanted)


def pick_like(found: Any, wanted: Any) -> Any:
    """The parts of `found` that `wanted` names, without what the server and others added, so that both can be
    compared."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return {key: pick_like(found[key], value) for key, value in wanted.items() if key in found}
    if isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        return [pick_like(one, other) for one, other in zip(found, wanted)]
    return found
