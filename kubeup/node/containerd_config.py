"""Reads containerd's configuration as containerd does.

This module finds the file that the running containerd uses, and the files that it imports. It knows the names of the CRI plugin's
tables, which depend on the version of the file and of containerd, and finds the handler of pods without a runtime class. It also
contains a TOML parser. It writes nothing (runtime_fix.py does) and does not use the CRI (runtime.py does). kubeadm has no counterpart.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine.host import Host
from kubeup.yaml_files import flags_of

CONFIG = Path("/etc/containerd/config.toml")
OLD_CRI = ("plugins", "io.containerd.grpc.v1.cri")
"""For containerd 1, and for files of version 2 with containerd 2."""
SHORT_CRI = ("plugins", "cri")
"""For files of version 1, or without a version."""
RUNTIME = ("plugins", "io.containerd.cri.v1.runtime")
IMAGES = ("plugins", "io.containerd.cri.v1.images")
CRI_IDS = ("cri", OLD_CRI[1], IMAGES[1], RUNTIME[1])
RUNC_TYPE = "io.containerd.runc.v2"
_RUNC_TYPES = ("io.containerd.runc.v1", RUNC_TYPE)
_LINUX_V1 = "io.containerd.runtime.v1.linux"


# ---- the default handler


@frozen
class Handler:
    """The runtime handler in containerd's configuration that starts pods without a runtime class."""

    name: str = "runc"
    table: tuple[str, ...] = ("containerd", "runtimes", "runc")
    """Its table, relative to the CRI plugin's."""
    type: str = ""
    cgroup_driver: Optional[str] = None
    """None if the handler decides itself (kata, gVisor), or if it is unknown."""


def find_default_handler(cri: Mapping[str, Any]) -> Optional[Handler]:
    """The default handler in the CRI plugin's effective settings; None if there is none. The older table `default_runtime` takes
    precedence."""
    containerd = as_table(cri.get("containerd"))
    found, name = as_table(containerd.get("default_runtime")), "default"
    table: tuple[str, ...] = ("containerd", "default_runtime")
    if not found.get("runtime_type"):
        name = str(containerd.get("default_runtime_name") or "runc")
        found, table = as_table(as_table(containerd.get("runtimes")).get(name)), ("containerd", "runtimes", name)
    if not found:
        return None
    kind, options = str(found.get("runtime_type") or ""), as_table(found.get("options"))
    is_systemd = options.get("SystemdCgroup") if options or kind != _LINUX_V1 else cri.get("systemd_cgroup")
    is_runc = kind in ("", _LINUX_V1, *_RUNC_TYPES)
    return Handler(name, table, kind, ("systemd" if is_systemd else "cgroupfs") if is_runc else None)


def breaks_cri(cri: Mapping[str, Any]) -> bool:
    """Whether `systemd_cgroup = true` stops the CRI plugin of containerd 1 from loading. It works only with a runtime that no longer
    exists."""
    handler = find_default_handler(cri)
    return bool(cri.get("systemd_cgroup")) and handler is not None and handler.type != _LINUX_V1


# ---- files


def find_config(host: Host) -> Path:
    """The configuration file of the running containerd; the default path if that is unknown."""
    pid = host.query(
        ["systemctl", "show", "containerd", "--property", "MainPID", "--value"], timeout_s=15
    ).stdout.strip()
    if not pid.isdigit() or pid == "0":
        return CONFIG
    try:
        words = host.read_text(Path("/proc", pid, "cmdline")).split("\0")
    except HostError:
        return CONFIG
    flags = flags_of(words)
    path = flags.get("config") or flags.get("c", "")
    return Path(path) if path.startswith("/") else CONFIG


def read_files(host: Host, config: Path = CONFIG) -> dict[Path, str]:
    """The text of the configuration file (empty if it does not exist), then those of the files that it imports, in the order in which
    containerd reads them. Raises HostError (file-unreadable)."""
    files = {config: _read(host, config) if host.exists(config) else ""}
    pending = _imports_of(host, config, text=files[config])
    while pending:
        path = pending.pop(0)
        if path not in files and host.exists(path) and not host.is_dir(path):
            files[path] = _read(host, path)
            pending += _imports_of(host, path, text=files[path])
    return files


def keep_loaded(files: Mapping[Path, str], dump: Mapping[str, Any]) -> dict[Path, str]:
    """The files without those that containerd did not load. containerd 1 names the loaded files in its dump. (1.6 looks for patterns
    without a leading / elsewhere.)"""
    told = dump.get("imports")
    if dump.get("version") != 2 or not isinstance(told, list):
        return dict(files)
    first = next(iter(files))
    return {path: text for path, text in files.items() if path == first or str(path) in told}


def _read(host: Host, path: Path) -> str:
    """Read a file byte for byte: comments may be in any encoding."""
    return host.read_bytes(path).decode(errors="surrogateescape")


def _imports_of(host: Host, parent: Path, *, text: str) -> list[Path]:
    found: list[Path] = []
    for word in read_list(text, "imports"):
        path = parent.parent / word
        if "*" in path.name:
            found += [path.parent / name for name in host.list_dir(path.parent) if fnmatch.fnmatchcase(name, path.name)]
        else:
            found.append(path)
    return found


def head_of(text: str) -> str:
    """The text above the first table: the settings of containerd itself."""
    first = re.search(r"^[ \t]*\[", text, re.MULTILINE)
    return text[: first.start()] if first else text


def match_list(text: str, key: str) -> Optional[re.Match[str]]:
    """Match a list above the first table, even over several lines. The group `items` is the text in the brackets."""
    return re.search(rf"^\ufeff?[ \t]*{key}[ \t]*=[ \t]*\[(?P<items>[^\]]*)\]", head_of(text), re.MULTILINE)


def read_list(text: str, key: str) -> list[str]:
    found = match_list(text, key)
    plain = re.sub(r"#.*", "", found["items"]) if found else ""
    return [first or second for first, second in re.findall(r"""\"([^"]*)\"|'([^']*)'""", plain)]


def read_schema(text: str) -> int:
    """The version of a configuration file; 1 if it names none."""
    match = re.search(r"^\ufeff?[ \t]*[\"']?version[\"']?[ \t]*=[ \t]*(\d+)", head_of(text), re.MULTILINE)
    return int(match.group(1)) if match and len(match.group(1)) < 5 else 1


def table_names(text: str) -> list[tuple[str, ...]]:
    return [name for name in map(table_name, text.splitlines()) if name]


_PART = r"""\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)\s*"""


def table_name(line: str) -> Optional[tuple[str, ...]]:
    """The table name in a line like `[plugins."a.b".c]`, however it is quoted; None for other lines."""
    match = re.fullmatch(rf"\ufeff?\s*\[({_PART}(?:\.{_PART})*)\]\s*(?:#.*)?", line)
    if not match:
        return None
    return tuple(part.strip().strip("\"'") for part in re.findall(_PART, match.group(1)))


def show_table(table: Sequence[str]) -> str:
    """A table name as written in a file: `plugins.'io.containerd.grpc.v1.cri'.containerd`."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f"'{part}'" for part in table)


def find_disabled_cri(host: Host) -> Optional[tuple[str, int, str]]:
    """Where containerd's CRI plugin is disabled: (file, line number, line); None if nowhere."""
    try:
        files = read_files(host, find_config(host))
    except HostError:
        return None
    for path, text in files.items():
        is_inside = False
        for number, line in enumerate(text.splitlines(), start=1):
            code = line.partition("#")[0]
            is_inside = is_inside or bool(re.match(r"\ufeff?\s*disabled_plugins\s*=", code))
            if is_inside and re.search(rf"""["'](?:{"|".join(map(re.escape, CRI_IDS))})["']""", code):
                return str(path), number, line.strip()
            is_inside = is_inside and "]" not in code
    return None


# ---- names of settings


@frozen
class Naming:
    """The names that a file must use so that this containerd understands it."""

    schema: int
    """1: [plugins.cri]; 2: [plugins.'io.containerd.grpc.v1.cri']; 3 and above: the plugins of containerd 2."""
    version: Optional[int] = None
    """The N of the line `version = N` that must be added to the file; None if it needs none."""

    @property
    def runtime(self) -> tuple[str, ...]:
        return SHORT_CRI if self.schema < 2 else OLD_CRI if self.schema < 3 else RUNTIME

    @property
    def images(self) -> tuple[str, ...]:
        return IMAGES if self.schema > 2 else self.runtime

    def place(self, setting: str, handler: Handler) -> tuple[tuple[str, ...], str]:
        """The table and key of a setting: sandbox_image | SystemdCgroup | runtime_type | config_path | one of the plugin's own."""
        if setting == "sandbox_image" and self.schema > 2:
            return (*IMAGES, "pinned_images"), "sandbox"
        if setting == "config_path":
            return (*self.images, "registry"), setting
        if setting == "SystemdCgroup":
            return (*self.runtime, *handler.table, "options"), setting
        if setting == "runtime_type":
            return (*self.runtime, *handler.table), setting
        return (self.images if setting == "sandbox_image" else self.runtime), setting


def find_naming(text: str, own: int) -> Optional[Naming]:
    """The naming for a file and a containerd whose native file version is `own`; None if no single line would be enough.

    A file without `version` has version 1. Then containerd 1 knows only the short names, and both containerd 1 and 2 ignore tables
    with the names of version 2. Short names in a file with a version line are an error for both.
    """
    version = read_schema(text)
    if version > 1:
        return Naming(version) if version <= max(own, 2) else Naming(own, own)
    plugins = {name[1] for name in table_names(text) if name[0] == "plugins" and len(name) > 1}
    short = {name for name in plugins if "." not in name}
    lists = {word for key in ("disabled_plugins", "required_plugins") for word in read_list(text, key)}
    has_short = bool(short) or any("." not in word for word in lists - set(CRI_IDS))
    if has_short:
        return Naming(1) if own < 3 else None if short else Naming(own)
    return Naming(2, 2) if OLD_CRI[1] in plugins else Naming(own, own)


def find_owner(files: Mapping[Path, str], table: tuple[str, ...], *, naming: Naming) -> Path:
    """The file in which a line of this table takes effect. An imported file's settings of a plugin replace all earlier ones with
    containerd 1, and key by key with containerd 2."""
    paths = list(files)
    for path in reversed(paths[1:]):
        names = table_names(files[path])
        if table in names or (naming.schema < 3 and any(name[:2] == table[:2] for name in names)):
            return path
    return paths[0]


def names_type(text: str, table: tuple[str, ...]) -> bool:
    """Whether a file sets a handler's runtime_type. A handler's table replaces the built-in one entirely."""
    is_inside = False
    for line in text.splitlines():
        name = table_name(line)
        is_inside = name == table if name is not None else is_inside and not line.lstrip().startswith("[[")
        if is_inside and re.match(r"\s*runtime_type\s*=", line):
            return True
    return False


# ---- TOML


_MAX_LINE = 32 << 10
"""The maximum length of a line in characters. Both parsers take quadratic time for names with many parts, or nested lists, in one
line."""


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML as written by `containerd config dump`. Python 3.11 has a parser; older versions use the one below. Raises
    ValueError."""
    try:
        reader = importlib.import_module("tomllib").loads
    except ImportError:
        reader = parse_dumped_toml
    if any(len(line) > _MAX_LINE for line in text.split("\n")):
        raise ValueError(f"a line has more than {_MAX_LINE} characters")
    try:
        found: dict[str, Any] = reader(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return found


_TOML_TOKEN = re.compile(
    r"""\s*(?:(?P<basic>"(?:[^"\\]|\\.)*")|(?P<literal>'[^']*')|(?P<mark>[\[\]{},=.])|(?P<bare>[^\s\[\]{},=."'#]+))"""
)
_TOML_NUMBER = re.compile(r"[+-]?\d[\d_]*(\.\d+)?([eE][+-]?\d+)?")


def parse_dumped_toml(text: str) -> dict[str, Any]:
    """Parse TOML with tables and one `key = value` per line: strings, numbers, booleans, lists and inline tables of these.

    Programs write no more than that. Raises ValueError for anything else (multi-line lists, triple-quoted strings, [[tables]]).
    """
    root: dict[str, Any] = {}
    table = root
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if line.startswith("["):
                if line.startswith("[["):
                    raise ValueError("a list of tables")
                keys, rest = _toml_keys(line[1:])
                if rest.partition("#")[0].strip() != "]":
                    raise ValueError("no end of the table's name")
                table = _toml_table(root, keys)
                continue
            keys, rest = _toml_keys(line)
            if not rest.startswith("="):
                raise ValueError("no =")
            value, rest = _toml_value(rest[1:])
            if rest.partition("#")[0].strip():
                raise ValueError("text after the value")
            _toml_table(table, keys[:-1])[keys[-1]] = value
        except ValueError as error:
            raise ValueError(f"line {number}: {error}: {line[:80]}") from error
        except RecursionError as error:
            raise ValueError(f"line {number}: it is nested too deeply") from error
    return root


def _toml_next(text: str) -> tuple[str, str, str]:
    match = _TOML_TOKEN.match(text)
    if not match or not match.lastgroup:
        raise ValueError("cannot be read")
    return match.lastgroup, match.group(match.lastgroup), text[match.end() :].lstrip()


def _toml_keys(text: str) -> tuple[list[str], str]:
    keys = []
    while True:
        kind, word, text = _toml_next(text)
        if kind == "mark":
            raise ValueError("no key")
        keys.append(str(json.loads(word)) if kind == "basic" else word[1:-1] if kind == "literal" else word)
        if not text.startswith("."):
            return keys, text
        text = text[1:]


def _toml_table(table: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    for key in keys:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ValueError(f"{key} is no table")
    return table


def _toml_value(text: str) -> tuple[Any, str]:
    kind, word, rest = _toml_next(text)
    if kind == "basic":
        return json.loads(word), rest
    if kind == "literal":
        return word[1:-1], rest
    if word == "[":
        return _toml_list(rest)
    if word == "{":
        return _toml_inline_table(rest)
    # the tokenizer treats the point in a number as a separate mark
    number = _TOML_NUMBER.match(text.lstrip())
    if number:
        digits = number.group().replace("_", "")
        value = float(digits) if number.group(1) or number.group(2) else int(digits)
        return value, text.lstrip()[number.end() :].lstrip()
    if word in ("true", "false"):
        return word == "true", rest
    raise ValueError(f"no value: {word}")


def _toml_list(text: str) -> tuple[list[Any], str]:
    items = []
    text = text.lstrip()
    while not text.startswith("]"):
        value, text = _toml_value(text)
        items.append(value)
        if text.startswith(","):
            text = text[1:].lstrip()
        elif not text.startswith("]"):
            raise ValueError("a list without end")
    return items, text[1:].lstrip()


def _toml_inline_table(text: str) -> tuple[dict[str, Any], str]:
    table: dict[str, Any] = {}
    text = text.lstrip()
    while not text.startswith("}"):
        keys, text = _toml_keys(text)
        if not text.startswith("="):
            raise ValueError("no =")
        value, text = _toml_value(text[1:])
        _toml_table(table, keys[:-1])[keys[-1]] = value
        if text.startswith(","):
            text = text[1:].lstrip()
        elif not text.startswith("}"):
            raise ValueError("an inline table without end")
    return table, text[1:].lstrip()
