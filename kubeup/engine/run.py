"""Run: everything that the phases of one command may see and change, and what they pass on to each other.

Everything is frozen except the API client, the values found on the way (Found) and the results. This module only defines the
types: the phases do the work, and runner.py selects them. Mirrors workflow.RunData of cmd/kubeadm/app/cmd/{init,join,reset}.go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, Protocol

from kubeup.config.types import NodeConfig
from kubeup.frozen_values import frozen, frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.releases import Release
from kubeup.report import Report
from kubeup.secret import Secret

with lazily:
    from kubeup.node import cert_specs, private_keys

if TYPE_CHECKING:
    from kubeup.airgap.containerd_hosts import Mirror
    from kubeup.cluster import health, lease
    from kubeup.cluster.amid_rotation import Rotation
    from kubeup.cluster.api import Api
    from kubeup.cluster.departure import Departing
    from kubeup.cluster.shared_certs import SharedFile


@dataclass
class Results:
    """What a phase passes on to later phases, to the end of the command and, for the fields in STORED, to a later run.
    None means that the phase did not set the field."""

    certificate_key: Optional[Secret] = None
    """The key with which this run encrypted the CAs that it uploaded to the cluster."""
    tokens: Optional[Sequence[Secret]] = None
    """The bootstrap tokens that this run made."""
    token_ids: Optional[Sequence[str]] = None
    server: Optional[str] = None
    """The address of the cluster: `host:port` in init's join command, a URL after a join."""
    ca_cert_hashes: Optional[Sequence[str]] = None
    etcd_members: Optional[Sequence[str]] = None
    node_ready: Optional[bool] = None
    remaining: Optional[Sequence[str]] = None
    """What is still to be done elsewhere after a change of the endpoint, one sentence each."""
    before_endpoint: Optional[str] = None
    before_server: Optional[str] = None
    before_balancer: Optional[str] = None
    before_is_begun_here: Optional[bool] = None
    """The values before the endpoint was changed, which undoing the change restores."""
    before_cert_sans: Optional[Sequence[str]] = None
    """Those of the names of the last change of apiServer.certSANs that were there before it."""
    changed_cert_sans: Optional[Sequence[str]] = None
    closing_text: Optional[Secret] = None
    """The closing message of init. It contains the join command with its token."""
    join_text: Optional[str] = None
    """The closing message of join."""

    def take(self, more: Results) -> None:
        """Merge the results of a phase into these."""
        for item in dataclasses.fields(self):
            value = getattr(more, item.name)
            if value is not None:
                setattr(self, item.name, value)

    def stored(self) -> dict[str, Any]:
        """The results for state.json: plain values without secrets."""
        values = {name: getattr(self, name) for name in STORED}
        return {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in values.items() if v is not None}


STORED: Mapping[str, type] = {
    "token_ids": list,
    "server": str,
    "ca_cert_hashes": list,
    "etcd_members": list,
    "node_ready": bool,
    "remaining": list,
    "before_endpoint": str,
    "before_server": str,
    "before_balancer": str,
    "before_is_begun_here": bool,
    "before_cert_sans": list,
    "changed_cert_sans": list,
}
"""The results that a later run reads back from a phase's entry in state.json, and their types there."""

Outputs = Optional[Results]
"""The return value of a phase."""


def read_stored(outputs: Mapping[str, Any]) -> Results:
    """The results in a phase's entry of state.json. Unknown fields, and fields of another type, are ignored."""
    known = {name: outputs[name] for name, kind in STORED.items() if isinstance(outputs.get(name), kind)}
    return Results(**known)


@frozen
class Selection:
    """The names of the phases that run: the one answer to "does phase X run?"."""

    will_run: frozenset[str] = frozenset()
    """Phases that this run executes."""
    planned: frozenset[str] = frozenset()
    """Phases of the whole workflow that the configuration asks for and nobody skipped. When a node is built phase by phase, what
    the other phases provide does not count as missing yet."""
    skipped: frozenset[str] = frozenset()
    """Phases that the user skipped (--skip-phases, skipPhases)."""
    unfinished: frozenset[str] = frozenset()
    """Phases that no earlier run has finished."""
    cut_off: frozenset[str] = frozenset()
    """Unfinished phases that an earlier run began: it failed in them, or was killed."""


Who = Literal["admin", "kubelet", "bootstrap"]
"""The identity with which kb calls the API server."""


class Promises(Protocol):
    """Where a step registers, in advance, how to undo a change, if the changed files alone do not tell."""

    def expect(self, paths: Iterable[Path]) -> None:
        """Register files that a program will create for the act."""

    def mark_lines(self, path: Path, mark: str) -> None:
        """Register that the lines with this mark in the file are kb's, and the others are not."""

    def register(self, compensation: Mapping[str, str]) -> None: ...

    def withdraw(self, compensation: Mapping[str, str]) -> None: ...

    def tell_changed(self, paths: Iterable[Path]) -> None:
        """Count files that the act has changed in a way of its own, which undoes itself."""


class NoPromises:
    """Promises of a run that keeps no state: nothing is registered."""

    def expect(self, paths: Iterable[Path]) -> None: ...

    def mark_lines(self, path: Path, mark: str) -> None: ...

    def register(self, compensation: Mapping[str, str]) -> None: ...

    def withdraw(self, compensation: Mapping[str, str]) -> None: ...

    def tell_changed(self, paths: Iterable[Path]) -> None: ...


class Caller:
    """Provides a run's client of the API server. The client is made on first use, because its identity may be created during the
    run: a joining node first uses its bootstrap identity, and later its own."""

    def __init__(self, make: Optional[Callable[[Who], Api]] = None, who: Who = "admin") -> None:
        self.who = who
        self._make = make
        self._api: Optional[Api] = None
        self._former_changes: list[str] = []

    @classmethod
    def by(cls, client: Api) -> Caller:
        """A Caller with an existing client."""
        return cls(lambda who: client)

    def become(self, who: Who) -> None:
        """Use another identity from here on."""
        self._former_changes, self._api = self.changes, None
        self.who = who

    @property
    def api(self) -> Api:
        if self._api is None:
            if self._make is None:
                raise RuntimeError("this run was made without an API client")
            self._api = self._make(self.who)
        return self._api

    @property
    def changes(self) -> list[str]:
        """The objects changed in the cluster so far, in order."""
        return [*self._former_changes, *(self._api.changes if self._api else ())]


@dataclass
class Found:
    """What one phase found out or made, so that later phases need not do it again."""

    keys: Optional[private_keys.KeyMaker] = None
    mirror: Optional[Mirror] = None
    """The mirror, once it has been verified."""
    shared_files: Optional[Sequence[SharedFile]] = None
    """The files that control planes share, decrypted by preflight but not written yet."""
    programs_are_planned: bool = False
    """This is a dry run on a machine that still lacks the programs that the checks would call."""
    renewals: Optional[Mapping[str, tuple[str, float]]] = None
    """When each kubelet had renewed its lease while this node's API server was away, or as it came back: node -> (renewTime,
    leaseDurationSeconds)."""
    led: Optional[Mapping[str, tuple[str, str]]] = None
    """When each leader had renewed its lease as the new static pods began to be watched: component -> (holderIdentity, renewTime)."""
    unwell: Optional[frozenset[tuple[str, str]]] = None
    """The parts of the cluster, (kind, name), that were in trouble before this node's static pods were swapped; None if they are not."""
    parts: Optional[Sequence[health.Part]] = None
    """The whole cluster after the swap, where nothing that could hurt it was changed since."""
    looked_at: float = 0.0
    """When the renewals were read, on the monotonic clock: they prove only that somebody lived since."""
    turn: Optional[lease.Lease] = None
    """This node's turn to join etcd, if it has to be held until its new member serves."""
    lagging: Optional[Sequence[str]] = None
    """The API servers whose certificates do not have the new endpoint's name yet."""
    rotation: Optional[tuple[Optional[Rotation]]] = None
    """The rotation of a shared key that is under way in the cluster that is joined, or None for none; None if nobody has looked."""
    departing: Optional[Departing] = None
    """The node that is removed, as it was found before anything was changed."""


@frozen_by_name
class BareRun:
    """What a phase may see and change on any node, even if its cluster is unknown."""

    host: Host
    paths: Paths
    report: Report
    config: Optional[NodeConfig] = None
    caller: Caller = field(default_factory=Caller)
    selection: Selection = Selection()
    owned_paths: frozenset[str] = frozenset()
    """The paths that kb made or adopted on this node, according to its state."""
    results: Results = field(default_factory=Results)
    """The merged results of the phases that ran before."""
    promises: Promises = NoPromises()
    machine: Optional[Host] = None
    """The host that `host` wraps if that keeps a journal: for changes that are never undone, such as a kept download."""

    def values(self) -> dict[str, Any]:
        """Field -> value, for a run that has more of them: `SwapRun(**run.values(), texts=...)`."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}


@frozen_by_name
class ResetRun(BareRun):
    """A run of reset. All it knows about the node's configuration is how to reach the runtime."""

    cri_socket: str


@frozen_by_name
class Run(BareRun):
    """Everything that a phase may see and change on a node that is being set up or reconfigured."""

    config: NodeConfig
    release: Release
    found: Found = field(default_factory=Found)

    @property
    def api(self) -> Api:
        """The client of the API server, with the run's current identity."""
        return self.caller.api

    def start_keys(self, wanted: int) -> None:
        """Start generating this many private keys ahead of their use, unless that has already begun."""
        if self.found.keys is None:
            self.found.keys = private_keys.KeyMaker(cert_specs.key_algorithm(self.config.cluster), wanted=wanted)
