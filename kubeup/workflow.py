"""Phases as data, and the Runner that works through them.

Owns the contract of a phase, and the order: select, look, skip or resume, register the undo, run, record. Mirrors
cmd/kubeadm/app/cmd/phases/workflow/runner.go in names and selection, and adds state, probes and drift.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Optional

from kubeup.config.types import InitConfig
from kubeup.host import Host
from kubeup.paths import Paths
from kubeup.releases import Release
from kubeup.report import Report

if TYPE_CHECKING:
    from kubeup.kubeapi import Api

Outputs = Optional[Mapping[str, Any]]
"""What a phase hands to later ones and to the result: plain values (text, numbers, lists), and Secrets."""


@dataclass(frozen=True)
class Context:
    """All that a phase may see and touch."""

    host: Host
    paths: Paths
    config: InitConfig
    release: Release
    report: Report
    outputs: MutableMapping[str, Any] = field(default_factory=dict)
    """The outputs of the phases that ran before, merged: {"join_command": ...}."""
    make_api: Optional[Callable[[Context], Api]] = None

    @property
    def api(self) -> Api:
        """The API server, with the identity of admin.conf, spoken to on this node's own address."""
        if "_api" not in self.outputs:
            if self.make_api is None:
                raise RuntimeError("this context was made without an API client")
            self.outputs["_api"] = self.make_api(self)
        api: Api = self.outputs["_api"]
        return api


@dataclass(frozen=True)
class Phase:
    """One step of a workflow.

    name   kubeadm's name: `certs/apiserver`
    does   the one-line reason: progress line, --help, README
    run    does it; returns outputs or None; changes the machine through ctx.host and the cluster through ctx.api
    reads  attributes of InitConfig on which the result depends (`cluster.networking.service_subnet`): its fingerprint
    makes  files it makes: names relative to the kubernetes folder's pki (`pki/ca.crt`), or absolute paths
    done   a probe of the real node: is the result there, and right?
    needs  phases that must not be skipped if this one runs
    live   talks to the running node or cluster, and cannot run where there is none (--root): it is deferred there
    hidden runs, but has no `kb init phase` command
    """

    name: str
    does: str
    run: Callable[[Context], Outputs]
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    done: Optional[Callable[[Context], bool]] = None
    needs: tuple[str, ...] = ()
    live: bool = False
    hidden: bool = False
