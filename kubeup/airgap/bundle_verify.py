"""Checks whether a bundle is intact and sufficient for a configuration, and how two bundles differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Optional

from kubeup.airgap import oci_layout as layout
from kubeup.airgap.bundle import Tell, list_files, walk_blobs
from kubeup.airgap.bundle_needs import Need
from kubeup.airgap.oci_layout import Layout
from kubeup.airgap.registry_client import parse_ref
from kubeup.errors import HostError, KbError, shown
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host

_MAX_PROBLEMS = 100
"""The maximum number of problems reported."""


@frozen
class Verdict:
    """The result of verify: problems in words, (need, why) of what a configuration lacks, and how much was read."""

    problems: tuple[str, ...]
    missing: tuple[Need, ...]
    blobs: int
    bytes: int


def verify_bundle(
    host: Host,
    found: Layout,
    *,
    base: Optional[Layout] = None,
    needs: Sequence[Need] = (),
    files: Sequence[Need] = (),
    tell: Tell = lambda text: None,
) -> Verdict:
    """Check every blob's digest, that none is missing, and that the bundle contains what is needed. base: a delta's
    base."""
    # problem -> what needs it
    problems = {f"{shown(name)} is in it, but is not part of a layout": "" for name in found.strays[:20]}
    problems.update({text: "" for name in found.names if (text := describe_bad_name(name))})
    whole = replace(found, blobs={**(base.blobs if base else {}), **found.blobs})
    walked = _walk(host, whole, problems=problems)
    _sum_blobs(host, found, walked=walked, problems=problems, tell=tell)
    named = [text if owner in text else f"{text} (needed by {owner})" for text, owner in problems.items()]
    if len(named) > _MAX_PROBLEMS:
        named[_MAX_PROBLEMS:] = [f"and {len(named) - _MAX_PROBLEMS} more"]
    missing = [need for need in needs if not _has_image(found, need.name)]
    missing += [need for need in files if need.name not in walked.titles]
    total = sum(place.size for place in found.blobs.values())
    return Verdict(tuple(named), tuple(missing), len(found.blobs), total)


@dataclass
class _Walked:
    """What is reachable from the index: the owner and size of each blob by digest, and the titles of the files."""

    owners: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    titles: frozenset[str] = frozenset()
    is_whole: bool = False


def _walk(host: Host, whole: Layout, *, problems: dict[str, str]) -> _Walked:
    walked = _Walked()
    try:
        for digest, size, owner in walk_blobs(host, whole):
            walked.owners.setdefault(digest, owner)
            walked.sizes.setdefault(digest, size)
            if digest not in whole.blobs:
                problems[f"blob {digest} of {owner} is missing"] = ""
            elif whole.blobs[digest].size != size:
                problems[f"blob {digest} of {owner} has {whole.blobs[digest].size} bytes, not {size}"] = ""
        walked.titles = frozenset(entry.title for entry in list_files(host, whole))
        walked.is_whole = True
    except HostError as error:
        problems[str(error)] = ""
    return walked


def _sum_blobs(host: Host, found: Layout, *, walked: _Walked, problems: dict[str, str], tell: Tell) -> None:
    for digest, place in sorted(found.blobs.items(), key=lambda item: item[1].offset):
        if walked.is_whole and digest not in walked.sizes:
            problems[f"blob {digest} is in it, but nothing in index.json refers to it"] = ""
            continue
        if walked.sizes.get(digest, place.size) != place.size:
            continue  # reported above; a blob that is too large is not worth reading
        tell(f"reading {digest[7:19]} ({place.size >> 20} MiB)")
        try:
            for _ in layout.read_checked(host, place, digest=digest):
                pass
        except HostError as error:
            problems[str(error)] = walked.owners.get(digest, "")


def describe_bad_name(name: str) -> str:
    """Why an image with this name cannot be served; "" if it can."""
    try:
        parse_ref(name)
    except KbError as error:
        return f"image {shown(name)}: {error.cause}"
    return ""


def _has_image(found: Layout, name: str) -> bool:
    ref = parse_ref(name)
    return ref.name in found.names or bool(ref.digest and ref.digest in found.blobs)


def diff_bundles(host: Host, one: Layout, *, other: Layout) -> dict[str, list[str]]:
    """What `other` adds, lacks and has in another version, by image name and file title."""

    def contents(found: Layout) -> dict[str, str]:
        named = {f"image {name}": str(entry["digest"]) for name, entry in found.names.items()}
        return {**named, **{f"file {entry.title}": entry.digest for entry in list_files(host, found)}}

    old, new = contents(one), contents(other)
    return {
        "added": sorted(set(new) - set(old)),
        "removed": sorted(set(old) - set(new)),
        "changed": sorted(name for name in set(old) & set(new) if old[name] != new[name]),
    }
