"""The look for drift: every place where a finished node, or its cluster, can come to differ from how it was left. Changes nothing.

The doctor tells what is broken; this tells what was changed, whether or not it works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kubeup.drift import accepted, cluster_objects, identities, machine, recorded_files
from kubeup.drift.drifted import Drift, Ground
from kubeup.errors import KbError
from kubeup.frozen_values import frozen

LOOKS: tuple[tuple[str, Callable[[Ground], Iterator[Drift]]], ...] = (
    ("files", recorded_files.look_at_files),
    ("sysctls", machine.look_at_sysctls),
    ("certificates", identities.look_at_identities),
    ("programs", machine.look_at_programs),
    ("what runs", machine.look_at_running),
    ("others' files", machine.look_at_others),
    ("the cluster's objects", cluster_objects.look_at_cluster),
)
"""What each is called where it cannot be looked at."""


@frozen
class Looked:
    """drift: what is to be told. missed: what could not be looked at, and why, in words."""

    drift: tuple[Drift, ...]
    missed: tuple[str, ...] = ()
    accepted: tuple[Drift, ...] = ()
    """What differs, and is meant."""


def look_for_drift(ground: Ground) -> Looked:
    """Everything that drifted, without what was accepted. One look that fails does not keep the others from being made."""
    found: list[Drift] = []
    missed: list[str] = []
    for title, look in LOOKS:
        try:
            found += look(ground)
        except KbError as error:
            missed.append(f"{title}: {error}")
    left = accepted.drop_accepted(found, _read_accepted(ground, missed))
    return Looked(left, tuple(missed), tuple(one for one in found if one not in left))


def _read_accepted(ground: Ground, missed: list[str]) -> accepted.Accepted:
    try:
        return accepted.read_accepted(ground.records, ground.api)
    except KbError as error:
        missed.append(f"what was accepted of the cluster: {error}")
        return accepted.read_accepted(ground.records, None)


def find_by_name(found: tuple[Drift, ...], name: str) -> tuple[Drift, ...]:
    """The drift of this name, or of all names below it (`sysctl`); () if there is none."""
    return tuple(one for one in found if one.name == name or one.name.startswith(f"{name}/"))
