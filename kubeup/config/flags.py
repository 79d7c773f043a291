"""The fields that flags set, and kubeadm's rules for mixing flags with a file.

Source: cmd/kubeadm/app/cmd/options/*.go, ValidateMixedArguments of
cmd/kubeadm/app/apis/kubeadm/validation/validation.go
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional

from kubeup.config import schema
from kubeup.config.documents import parse_duration
from kubeup.config.flag_table import FLAGS, WORDS
from kubeup.config.problems import Problem, Problems, shorten
from kubeup.errors import UsageError

Fields = Mapping[str, tuple[str, str]]
"""Flag name -> the kind of document, and the field in it that the flag sets."""


def _fields_of(*kinds: str) -> Fields:
    """The flags that set fields in documents of these kinds."""
    said = [(flag.name, *place.split(".", 1)) for flag in (*FLAGS, *WORDS) for place in flag.sets]
    return {name: (kind, path) for name, kind, path in said if kind in kinds}


_KB = "KbConfiguration"
INIT_FIELDS = _fields_of("InitConfiguration", "ClusterConfiguration", _KB)
JOIN_FIELDS = _fields_of("JoinConfiguration", _KB)
RESET_FIELDS = _fields_of("ResetConfiguration")
_BESIDE_CONFIG = frozenset(flag.name for flag in FLAGS if flag.beside_config)


def is_allowed_beside_config(name: str, fields: Fields = INIT_FIELDS) -> bool:
    """Whether a flag may be combined with --config. kb's own flags may, and override the file, as --node-name does;
    only a few of kubeadm's may."""
    return name not in fields or name in _BESIDE_CONFIG or fields[name][0] == _KB


def check_mixing(config_file: object, flags: Mapping[str, Any], *, fields: Fields = INIT_FIELDS) -> None:
    """Raise UsageError (mixed-flags) if a flag whose field belongs in the file is combined with --config."""
    mixed = sorted(name for name in flags if not is_allowed_beside_config(name, fields))
    if mixed:
        told = ", ".join(f"--{name} is {fields[name][1]} of {fields[name][0]}" for name in mixed)
        raise UsageError(
            f"can not mix '--config' with arguments [{' '.join(mixed)}]",
            cause=f"with a configuration file, the file says what these flags say: {told}",
            remedy=f"move them into {config_file}, or leave --config out",
            code="mixed-flags",
        )


def apply_flags(
    flags: Mapping[str, Any], trees: dict[str, dict[str, Any]], *, problems: Problems, fields: Fields = INIT_FIELDS
) -> None:
    """Write the given flags into the trees; they override the file."""
    for name, given in flags.items():
        if name not in fields or given is None:
            continue
        kind, path = fields[name]
        wanted, tree = _type_at(kind, path), trees.setdefault(kind, {})
        if isinstance(wanted, schema.Struct):  # the flag creates the struct, with its defaults
            if given:
                tree.setdefault(path, {})
            continue
        value = _decode_flag(name, given, wanted=wanted, problems=problems)
        if value is None:
            continue
        if name == "ignore-preflight-errors":
            value = [*tree.get("nodeRegistration", {}).get("ignorePreflightErrors", ()), *value]
        if name.endswith("-extra-args"):
            value = [{"name": key, "value": text} for key, text in value]
        problems.origins[f"{kind}:{path}"] = (f"--{name}", 0)
        _put(tree, path, value=value)
    if flags.get("pod-network-manifest") and "pod-network" not in flags:
        _put(trees[_KB], "podNetwork.plugin", value="manifest")


_API_VERSIONS = {_KB: schema.KB_V1ALPHA1}


def _type_at(kind: str, path: str) -> schema.Type:
    """The schema's type of a field. extraArgs are a list of pairs there, but a mapping for flags."""
    found: schema.Type = schema.SCHEMAS[_API_VERSIONS.get(kind, schema.V1BETA4), kind]
    if path.endswith(".extraArgs"):
        return schema.MapOf(schema.TEXT)
    for name in path.replace("[0]", ".[0]").split("."):
        if isinstance(found, schema.ListOf):
            found = found.item
        else:
            assert isinstance(found, schema.Struct), path
            found = found.fields[name]
    return found


def _put(tree: dict[str, Any], path: str, *, value: Any) -> None:
    if path.startswith("bootstrapTokens[0]."):
        tokens = tree.setdefault("bootstrapTokens", [{}])
        tokens[0][path.partition(".")[2]] = value
        return
    *parents, last = path.split(".")
    place = tree
    for name in parents:
        place[name] = place = dict(place.get(name) or {})
    place[last] = value


def _decode_flag(name: str, given: Any, *, wanted: schema.Type, problems: Problems) -> Any:
    """Convert argparse's value to the tree's value; None if it is wrong."""
    if isinstance(wanted, schema.ListOf):
        return _split(given)
    if isinstance(wanted, schema.MapOf):
        pairs = _decode_pairs(name, given, item=wanted.item, problems=problems)
        # every extra argument counts, even with the same name; a feature gate has one value
        return pairs if pairs is None or name.endswith("-extra-args") else dict(pairs)
    text = str(given)
    value: Any = text
    if wanted is schema.NUMBER:
        value = int(text) if text.lstrip("-").isdecimal() and len(text) < 12 else None
    elif wanted is schema.DURATION:
        value = parse_duration(text)
    elif wanted is schema.BOOL:
        value = parse_bool(text)
    if value is None:
        assert isinstance(wanted, schema.Scalar)
        problems.add(
            Problem(f"--{name}", 0, "", f"must be {wanted.wants}, not {shorten(text)!r}", f"write {wanted.wants}")
        )
    return value


def parse_bool(text: str) -> Optional[bool]:
    """Like Go's strconv.ParseBool, but in any case."""
    return {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}.get(text.lower())


def _split(given: Any) -> list[str]:
    texts = given if isinstance(given, (list, tuple)) else [given]
    return [part.strip() for text in texts for part in str(text).split(",") if part.strip()]


_FLAG_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


def _decode_pairs(name: str, given: Any, *, item: schema.Type, problems: Problems) -> Optional[list[tuple[str, Any]]]:
    """`a=b,c=d`, a list of such texts, or a mapping. A part without = continues the previous value (lists of admission
    plugins contain commas). A part with a second = is refused, as by kubeadm (argSlice.Set in
    cmd/kubeadm/app/cmd/options), because the meaning of a comma in such a value is ambiguous."""
    if isinstance(given, Mapping):
        pairs = [f"{key}={value}" for key, value in given.items()]
    else:
        pairs = _split(given)
    found: list[tuple[str, Any]] = []
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals and found and item is schema.TEXT:
            found[-1] = (found[-1][0], f"{found[-1][1]},{key}")
            continue
        if item is schema.TEXT and not isinstance(given, Mapping) and ("=" in text or not _FLAG_NAME.fullmatch(key)):
            remedy = "give it in a file (--config): extraArgs: [{name: NAME, value: VALUE}]"
            told = f"malformed key=value pair in flag value: {shorten(pair)!r}"
            problems.add(Problem(f"--{name}", 0, "", told, remedy))
            return None
        value: Any = text if item is schema.TEXT else parse_bool(text)
        if not equals or not key or value is None:
            form = "name=value,..." if item is schema.TEXT else "Name=true,..."
            problems.add(Problem(f"--{name}", 0, "", f"{shorten(pair)!r} is not {form}", f"write --{name}={form}"))
            return None
        found.append((key, value))
    return found
