"""Run: all that the phases of one command may see and touch, and what they hand on to each other.

Owns the types. Everything is frozen but for what is named: the client of the API server, what was found out on the way,
the results. Must not do any of a phase's work, nor choose what is run (runner.py does). Mirrors the workflow.RunData of
cmd/kubeadm/app/cmd/{init,join,reset}.go.
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
    from kubeup.cluster.api import Api
    from kubeup.cluster.shared_certs import SharedFile


@dataclass
class Results:
    """What a phase hands on: to later phases, to the end of the command, and, as far as STORED names it, to a later run.
    A field that is None was not handed on."""

    certificate_key: Optional[Secret] = None
    """With which this run stored the authorities in the cluster."""
    tokens: Optional[Sequence[Secret]] = None
    """The bootstrap tokens that this run made."""
    token_ids: Optional[Sequence[str]] = None
    server: Optional[str] = None
    """Where the cluster is called: `host:port` in init's join command, a URL where a node has joined."""
    ca_cert_hashes: Optional[Sequence[str]] = None
    etcd_members: Optional[Sequence[str]] = None
    node_ready: Optional[bool] = None
    remaining: Optional[Sequence[str]] = None
    """What a change of the endpoint leaves to be done elsewhere, one sentence each."""
    before_endpoint: Optional[str] = None
    before_server: Optional[str] = None
    before_balancer: Optional[str] = None
    before_is_begun_here: Optional[bool] = None
    """What was before the endpoint was changed: what taking it back goes to."""
    closing_text: Optional[Secret] = None
    """The last words of init: the join command, with its token, stands in them."""
    join_text: Optional[str] = None
    """The last words of join."""

    def take(self, more: Results) -> None:
        """Take over what a phase handed on."""
        for item in dataclasses.fields(self):
            value = getattr(more, item.name)
            if value is not None:
                setattr(self, item.name, value)

    def stored(self) -> dict[str, Any]:
        """For state.json: plain values, and nothing that is secret."""
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
}
"""The results that a later run reads back out of a phase's entry in state.json, and their types there."""

Outputs = Optional[Results]
"""What a phase returns."""


def read_stored(outputs: Mapping[str, Any]) -> Results:
    """The results in a phase's entry of state.json; what this kb does not know, or has another type, is nothing."""
    known = {name: outputs[name] for name, kind in STORED.items() if isinstance(outputs.get(name), kind)}
    return Results(**known)


@frozen
class Selection:
    """Which phases of a workflow run, by their names: the one answer to "does phase X run?"."""

    will_run: frozenset[str] = frozenset()
    """Those that this run works through."""
    planned: frozenset[str] = frozenset()
    """Those of the whole workflow that the configuration asks for and nobody left out. One phase alone is part of a node
    that is made phase by phase: what the others bring is not missing yet."""
    skipped: frozenset[str] = frozenset()
    """Those that the user left out (--skip-phases, skipPhases)."""
    unfinished: frozenset[str] = frozenset()
    """Those that no earlier run has finished."""
    cut_off: frozenset[str] = frozenset()
    """Of these, those that one began: it failed in them, or was killed."""


Who = Literal["admin", "kubelet", "bootstrap"]
"""As whom the API server is called."""


class Promises(Protocol):
    """Where a step registers how it is taken back, as far as its changes of files do not say it themselves, before it makes them."""

    def expect(self, paths: Iterable[Path]) -> None:
        """Files that a program makes for it."""

    def mark_lines(self, path: Path, mark: str) -> None:
        """Of this file the lines with the mark are kb's, and the others are not."""

    def register(self, compensation: Mapping[str, str]) -> None: ...

    def withdraw(self, compensation: Mapping[str, str]) -> None: ...


class NoPromises:
    """Of a run that keeps no state."""

    def expect(self, paths: Iterable[Path]) -> None: ...

    def mark_lines(self, path: Path, mark: str) -> None: ...

    def register(self, compensation: Mapping[str, str]) -> None: ...

    def withdraw(self, compensation: Mapping[str, str]) -> None: ...


class Caller:
    """Calls the API server for a run. The client is made when it is first asked for, so that whoever it is to speak for may
    come to be on the way: a joining node speaks with its bootstrap's identity, and from then on with its own."""

    def __init__(self, make: Optional[Callable[[Who], Api]] = None, who: Who = "admin") -> None:
        self.who = who
        self._make = make
        self._api: Optional[Api] = None
        self._former_changes: list[str] = []

    @classmethod
    def by(cls, client: Api) -> Caller:
        """One whose client is there already."""
        return cls(lambda who: client)

    def become(self, who: Who) -> None:
        """From here on as somebody else."""
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
        """The objects that were changed in the cluster, in order."""
        return [*self._former_changes, *(self._api.changes if self._api else ())]


@dataclass
class Found:
    """What one phase found out or made, and others need without doing it again."""

    keys: Optional[private_keys.KeyMaker] = None
    mirror: Optional[Mirror] = None
    """The mirror, as it has proven itself."""
    shared_files: Optional[Sequence[SharedFile]] = None
    """The files that control planes share, opened by preflight and not written yet."""
    programs_are_planned: bool = False
    """A dry run on a machine that still lacks what the checks would ask."""
    lagging: Optional[Sequence[str]] = None
    """The API servers that do not show the new endpoint's name yet."""


@frozen_by_name
class BareRun:
    """What a phase may see and touch on any node, whatever is known of its cluster."""

    host: Host
    paths: Paths
    report: Report
    config: Optional[NodeConfig] = None
    caller: Caller = field(default_factory=Caller)
    selection: Selection = Selection()
    owned_paths: frozenset[str] = frozenset()
    """What kb made on this node, by its state."""
    results: Results = field(default_factory=Results)
    """What the phases that ran before handed on, merged."""
    promises: Promises = NoPromises()
    machine: Optional[Host] = None
    """The host below `host` where that keeps a journal: for what nobody takes back, such as a download that waits."""


@frozen_by_name
class Run(BareRun):
    """All that a phase may see and touch of a node that is being made, or changed."""

    config: NodeConfig
    release: Release
    found: Found = field(default_factory=Found)

    @property
    def api(self) -> Api:
        """The API server, as whoever this run speaks for at the moment."""
        return self.caller.api

    def start_keys(self, wanted: int) -> None:
        """Begin to make that many keys, ahead of their use, unless keys are being made already."""
        if self.found.keys is None:
            self.found.keys = private_keys.KeyMaker(cert_specs.key_algorithm(self.config.cluster), wanted=wanted)
