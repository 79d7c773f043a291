"""One field that drifted, and where a look for drift stands.

Names are made to be typed: `manifest/kube-apiserver`, `sysctl/net.ipv4.ip_forward`, `configmap/kube-system/kube-proxy`.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from kubeup import moments
from kubeup.cluster.api import Api
from kubeup.doctor.node_files import Patient
from kubeup.engine.plan import Difference, Fields, digest, show_value
from kubeup.engine.records import Records
from kubeup.engine.run import Run
from kubeup.engine.state import PhaseState
from kubeup.frozen_values import frozen
from kubeup.pem import split_pem

MARGIN_S = 2.0
"""State holds whole seconds, and file systems tick in hundredths."""


@frozen
class Drift:
    """One field of one thing that is neither as recorded nor as wanted. Values are as they may be shown: no secrets.

    where: a path, or the API server's kind and name. field: "" if the whole thing is missing. recorded: as kb or kubeadm left it; wanted:
    as the cluster's configuration has it; "" where that is not known. since, by: when and by whom it was changed, as far as known.
    is_fixable: whether --fix can put it right; if not, remedy says what does. is_of_cluster: it belongs to the cluster, not to this node."""

    name: str
    where: str
    field: str
    recorded: str = ""
    wanted: str = ""
    found: str = ""
    since: str = ""
    by: str = ""
    is_fixable: bool = False
    remedy: str = ""
    is_of_cluster: bool = False

    @property
    def seen(self) -> str:
        """A digest of what was found, by which it is accepted."""
        return digest([self.field, self.found])[:16]


@dataclass
class Ground:
    """What a look for drift stands on. run: with this node's configuration, as the cluster stores it (has_stored), else as its files say.
    api: None if the cluster cannot be asked, or its configuration is not understood. damage: why it is not, if somebody changed it, in words."""

    run: Run
    patient: Patient
    records: Records
    phases: Mapping[str, PhaseState]
    known_paths: frozenset[str]
    api: Optional[Api] = None
    has_stored: bool = False
    damage: str = ""

    @functools.cached_property
    def recorded(self) -> dict[str, list[Fields]]:
        """Item name -> its fields in each step that recorded it, the one that ran last at the end."""
        found: dict[str, list[Fields]] = {}
        for step in sorted(self.records.steps, key=self._ended):
            for name, fields in self.records.steps[step].items():
                found.setdefault(name, []).append(fields)
        return found

    def _ended(self, step: str) -> str:
        entry = self.phases.get(step)
        return entry.ended if entry is not None else ""

    @functools.cached_property
    def began(self) -> float:
        """When kb began to know this node, as a time of its clock: what others put there before is theirs. Infinity if it knows nothing."""
        times = [parse_moment(entry.started) for entry in self.phases.values() if entry.started]
        return min(times, default=float("inf"))

    @functools.cached_property
    def adopted(self) -> float:
        """When this node was adopted; 0.0 if kb made it. What others had changed in the cluster until then is theirs."""
        times = [parse_moment(entry.started) for entry in self.phases.values() if entry.adopted]
        return max(times, default=0.0) if times else 0.0

    def was_there_before(self, path: Path) -> bool:
        """Whether the file is as it was when kb began to know this node, or as a step of kb's put it back later."""
        found = self.run.host.stat(path)
        moment = max(found.mtime, found.ctime) if found is not None else 0.0
        if moment < self.began:
            return True
        spans = ((parse_moment(one.started), parse_moment(one.ended)) for one in self.phases.values())
        return any(start - MARGIN_S <= moment <= (end or float("inf")) + MARGIN_S for start, end in spans)

    def since(self, path: Path) -> str:
        """When the file's content changed last: `2026-11-30T10:00:00Z`; "" if it is not there."""
        found = self.run.host.stat(path)
        return show_moment(found.mtime) if found is not None and found.mtime else ""


def parse_moment(text: str) -> float:
    """`2026-11-30T10:00:00Z` as seconds since 1970; 0.0 if it is none."""
    moment = moments.find(text)
    return moment.timestamp() if moment is not None else 0.0


def show_moment(seconds: float) -> str:
    return moments.show(datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc))


def drop_wanted(differences: Iterable[Difference], wanted: Mapping[str, str]) -> list[Difference]:
    """The differences without those where what was found is what is wanted by now."""
    return [one for one in differences if not (one.field in wanted and wanted[one.field] == one.found)]


def show_difference(one: Difference, wanted: str = "") -> tuple[str, str, str, str]:
    """A difference from the record as a Drift's field, recorded, wanted and found, with secrets redacted."""
    recorded, wanted, found = (show_value(one.field, value) for value in (one.wanted, wanted, one.found))
    return one.field or "it is not there", recorded, wanted, found


def fingerprint(pem: str) -> str:
    """The sha256 of each certificate in it, as `openssl x509 -fingerprint -sha256` has it without colons; of the whole text if there is none."""
    blocks = [block for block in split_pem(pem) if block.is_cert]
    if not blocks:
        return f"sha256:{hashlib.sha256(pem.encode(errors='surrogateescape')).hexdigest()}"
    return ", ".join(f"sha256:{hashlib.sha256(block.content).hexdigest()}" for block in blocks)
