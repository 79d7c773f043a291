"""YAML in and out, and the whole files below configs/.

The output has the shape of Kubernetes' own serialiser: keys sorted, two spaces, list items not indented deeper
than their key, a text that YAML 1.1 would read as something else in double quotes.
"""

from __future__ import annotations

import functools
import os
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubeup.lazy import lazy_import

yaml: Any = lazy_import("yaml")

_LINE_MARKS = ("\x85", "\u2028", "\u2029", "\ufeff", "\r")
"""What YAML takes for the end of a line, or drops: only double quotes keep it."""
_CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")


@functools.cache
def read_resource(name: str) -> str:
    """A file below configs/ ("manifests/etcd.yaml"), from a checkout or from inside kb.pyz. Read once: a keeper that
    runs for months outlives the kb.pyz that it was started from."""
    data = __loader__.get_data(os.path.join(_CONFIGS, *name.split("/")))  # type: ignore[name-defined]
    return bytes(data).decode()


def fill_template(name: str, values: Mapping[str, object]) -> str:
    """The file `name` below configs/ with each ${word} replaced by a scalar. Raises KeyError for a word that has
    no value, so that a template and its caller cannot drift apart."""
    return string.Template(read_resource(name)).substitute({key: str(value) for key, value in values.items()})


@functools.cache
def _dumper() -> Any:
    class KubernetesDumper(yaml.SafeDumper):  # type: ignore[misc, name-defined, unused-ignore]
        def ignore_aliases(self, data: object) -> bool:
            return True

    def represent_str(dumper: Any, text: str) -> Any:
        if any(mark in text for mark in _LINE_MARKS):
            return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
        if "\n" in text and not any(line.endswith((" ", "\t")) for line in text.split("\n")):
            return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
        plain = dumper.resolve(yaml.ScalarNode, text, (True, False)) == "tag:yaml.org,2002:str"
        style = None if plain and text not in ("y", "Y", "n", "N") else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    KubernetesDumper.add_representer(str, represent_str)
    return KubernetesDumper


@functools.cache
def _loader() -> Any:
    class TextLoader(yaml.SafeLoader):  # type: ignore[misc, name-defined, unused-ignore]
        """A date stays the text that it is: Kubernetes' objects know no YAML timestamps."""

    TextLoader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return TextLoader


def dump_yaml(value: object) -> str:
    """One document, keys sorted."""
    text: str = yaml.dump(
        value, Dumper=_dumper(), sort_keys=True, default_flow_style=False, allow_unicode=True, width=2**20
    )
    return text


def load_yaml(text: str) -> Any:
    """The one document in `text`. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_loader())


def load_all_yaml(text: str) -> list[Any]:
    """Every document in `text` that is not empty. Raises yaml.YAMLError."""
    return [document for document in yaml.load_all(text, Loader=_loader()) if document is not None]


def format_duration(seconds: int) -> str:
    """Go's form of a duration of whole seconds: `8760h0m0s`, `4m0s`, `10s`, `0s`."""
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
    """Whether two texts hold the same document: another tool orders and quotes it in its own way."""
    if text == other:
        return True
    try:
        return bool(load_yaml(text) == load_yaml(other))
    except yaml.YAMLError:
        return False


def covers(found: Any, wanted: Any) -> bool:
    """Whether everything that `wanted` names is in `found` with the same value: the server adds defaults of its
    own to what was applied, and others add fields, so an equal object is not to be had."""
    if found is None:
        return wanted in (None, {}, [], "", 0, False)  # the server leaves empty values out
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(covers(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            return False
        return all(covers(one, other) for one, other in zip(found, wanted))
    return bool(found == wanted)


def pick_like(found: Any, wanted: Any) -> Any:
    """Of `found` what `wanted` names: what the server and others added is left out, so that both can be compared."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return {key: pick_like(found[key], value) for key, value in wanted.items() if key in found}
    if isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        return [pick_like(one, other) for one, other in zip(found, wanted)]
    return found
