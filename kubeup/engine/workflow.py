"""Phases as data, and the Runner that works through them.

Owns the contract of a phase, and the order: select, look, skip or resume, register the undo, run, record. Mirrors
cmd/kubeadm/app/cmd/phases/workflow/runner.go in names and selection, and adds state, probes and drift.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup.config.types import InitConfig
from kubeup.engine.journal import JournalHost, remove_leftovers
from kubeup.engine.state import PhaseState, State
from kubeup.errors import HostError, Interrupted, KbError, UsageError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.releases import Release
from kubeup.report import Report
from kubeup.secret import Secret

if TYPE_CHECKING:
    from kubeup.cluster.api import Api

Outputs = Optional[Mapping[str, Any]]
"""What a phase hands to later ones and to the result: plain values (text, numbers, lists), and Secrets."""


@frozen
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


@frozen
class Phase:
    """One step of a workflow.

    name   kubeadm's name: `certs/apiserver`
    does   the one-line reason: progress line, --help, README
    run    does it; returns outputs or None; changes the machine through ctx.host and the cluster through ctx.api
    reads  attributes of InitConfig on which the result depends (`cluster.networking.service_subnet`): its fingerprint
    makes  files it makes: names relative to the kubernetes folder's pki (`pki/ca.crt`), or absolute paths
    done   a probe of the real node: is the result there, and right?
    needs  phases that must not be skipped if this one runs
    live   "node": looks at the running machine, so it is deferred under --root; "cluster": waits for the running
           cluster, so it is deferred under --root and --dry-run alike
    always runs every time: what it does is telling, not changing
    hidden runs, but has no `kb init phase` command
    on     "control-plane": only where a joining node becomes a control plane
    when   whether the configuration asks for it at all; None: always
    """

    name: str
    does: str
    run: Callable[[Context], Outputs]
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    done: Optional[Callable[[Context], bool]] = None
    needs: tuple[str, ...] = ()
    live: str = ""
    always: bool = False
    hidden: bool = False
    on: str = ""
    when: Optional[Callable[[InitConfig], bool]] = None


@dataclass
class PhaseOutcome:
    """What became of a phase: status is done | unchanged | skipped | deferred | failed."""

    name: str
    status: str
    seconds: float = 0.0
    changed_files: list[str] = field(default_factory=list)
    changed_objects: list[str] = field(default_factory=list)
    why: str = ""


@dataclass
class RunResult:
    """The end of a run: every phase's outcome in order, and the merged outputs."""

    workflow: str
    phases: list[PhaseOutcome] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    @property
    def changes(self) -> int:
        return sum(len(phase.changed_files) + len(phase.changed_objects) for phase in self.phases)

    def as_dict(self) -> dict[str, Any]:
        return {
            "workflow": self.workflow,
            "changes": self.changes,
            "phases": [
                {
                    "name": phase.name,
                    "status": phase.status,
                    "seconds": round(phase.seconds, 3),
                    "changedFiles": phase.changed_files,
                    "changedObjects": phase.changed_objects,
                }
                for phase in self.phases
            ],
        }


def select_phases(phases: Sequence[Phase], name: str) -> tuple[Phase, ...]:
    """The phases that `kb init phase NAME` means: one phase, or all below a parent (`certs`, `certs/all`).

    Raises UsageError (unknown-phase) with the nearest name.
    """
    wanted = name.strip("/").replace(" ", "/")
    parent = wanted[: -len("/all")] if wanted.endswith("/all") else wanted
    found = tuple(phase for phase in phases if phase.name == wanted or phase.name.startswith(parent + "/"))
    if found:
        return found
    raise _unknown_phase(phases, name)


def wanted_phases(phases: Sequence[Phase], config: InitConfig) -> tuple[Phase, ...]:
    """Without those that this configuration does not ask for."""
    return tuple(phase for phase in phases if phase.when is None or phase.when(config))


def _unknown_phase(phases: Sequence[Phase], name: str) -> UsageError:
    known = sorted({phase.name for phase in phases} | {phase.name.partition("/")[0] for phase in phases})
    near = difflib.get_close_matches(name, known, 1)
    return UsageError(
        f"invalid phase name: {name}",
        cause="no phase of this workflow is called so",
        remedy=f"did you mean {near[0]}? All names: kb init --list" if near else "all names: kb init --list",
        code="unknown-phase",
    )


def plan_skips(phases: Sequence[Phase], skip: Sequence[str]) -> frozenset[str]:
    """The names of the phases that --skip-phases leaves out; a parent's name leaves out its children.

    Raises UsageError: unknown-phase, or unresolved-dependencies where a phase that stays needs one that goes.
    """
    skipped: set[str] = set()
    for name in skip:
        skipped.update(phase.name for phase in select_phases(phases, name))
    for phase in phases:
        missing = [need for need in phase.needs if need in skipped]
        if phase.name not in skipped and missing:
            listed = ", ".join(missing)
            raise UsageError(
                "unresolved dependencies:",
                cause=f'missing [{" ".join(missing)}] phase(s) needed by "{phase.name}" phase',
                remedy=f"skip {phase.name} too (--skip-phases {','.join([*skip, phase.name])}), or keep {listed}",
                code="unresolved-dependencies",
            )
    return frozenset(skipped)


def fingerprint_inputs(config: InitConfig, reads: Sequence[str]) -> dict[str, str]:
    """A short hash of each value that a phase reads. What kb generated for the user counts as one constant, so that
    a second run with the same words is the same run. Raises AttributeError for a name that InitConfig lacks."""
    prints = {}
    for name in reads:
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None) if value is None else getattr(value, part)
        text = json.dumps(_plain(value), sort_keys=True)
        prints[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return prints


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return hashlib.sha256(b"kb" + value.reveal().encode()).hexdigest()
    if dataclasses.is_dataclass(value):
        if getattr(value, "is_generated", False):
            return "generated"
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value


class Runner:
    """Works through the phases of one workflow on one node."""

    def __init__(self, workflow: str, phases: Sequence[Phase], state: State, *, keeps_journal: bool = True) -> None:
        """keeps_journal: False for the workflow that undoes the journal: its own steps are not written into it."""
        self.keeps_journal = keeps_journal
        self.workflow = workflow
        self.phases = phases
        self.state = state
        self._total = len(phases)

    def run(self, ctx: Context, *, only: str = "", skip: Sequence[str] = ()) -> RunResult:
        """Run all phases but the skipped, or those that `only` names (these run even if they were done before).

        Raises KbError with the phase's name and what was changed filled in.
        """
        chosen = select_phases(self.phases, only) if only else tuple(self.phases)
        chosen = wanted_phases(chosen, ctx.config)
        skipped = plan_skips(chosen, skip)
        result = RunResult(self.workflow)
        remove_leftovers(ctx.host, self.state)
        ctx.outputs["owned_paths"] = self.state.known_paths()
        ctx.outputs["unfinished_phases"] = frozenset(phase.name for phase in self.phases if not self._is_done(phase))
        ctx.outputs["will_run"] = frozenset(phase.name for phase in chosen if phase.name not in skipped)
        # one phase alone is part of a node that is made phase by phase: what the others bring is not missing yet
        planned = wanted_phases(self.phases, ctx.config)
        ctx.outputs["planned"] = frozenset(phase.name for phase in planned if phase.name not in skipped)
        self._total = len(chosen)
        for index, phase in enumerate(chosen, start=1):
            try:
                outcome = self._run_one(
                    ctx, phase, is_forced=bool(only), is_skipped=phase.name in skipped, result=result
                )
            except Interrupted as stop:
                stop.phase = phase.name
                raise
            result.phases.append(outcome)
            ctx.report.phase(index, len(chosen), phase.name, phase.does, _describe(outcome, ctx.host.mode))
        result.outputs = {key: value for key, value in ctx.outputs.items() if not key.startswith("_")}
        return result

    def _is_done(self, phase: Phase) -> bool:
        before = self.state.phases.get(f"{self.workflow}/{phase.name}")
        return before is not None and before.status == "done"

    def _run_one(
        self, ctx: Context, phase: Phase, *, is_forced: bool, is_skipped: bool, result: RunResult
    ) -> PhaseOutcome:
        if is_skipped:
            return PhaseOutcome(phase.name, "skipped", why="--skip-phases")
        if (phase.live and ctx.host.mode == "root") or (phase.live == "cluster" and ctx.host.mode == "dry-run"):
            return PhaseOutcome(phase.name, "deferred", why="needs the running node")
        started = ctx.host.monotonic()
        key = f"{self.workflow}/{phase.name}"
        inputs = fingerprint_inputs(ctx.config, phase.reads)
        before = self.state.phases.get(key)
        if before and before.status == "done" and not is_forced and not phase.always:
            changed = [name for name in inputs if before.inputs.get(name) != inputs[name]]
            if changed:
                ctx.report.note(f"{phase.name}: {', '.join(changed)} changed since the last run: doing it again")
            elif phase.done is None or phase.done(ctx):
                ctx.outputs.update(before.outputs)
                return PhaseOutcome(phase.name, "unchanged", ctx.host.monotonic() - started)
            else:
                ctx.report.note(f"{phase.name}: drift: it was done, but the node no longer shows it: doing it again")
        return self._act(ctx, phase, key, inputs, started, result)

    def _act(
        self, ctx: Context, phase: Phase, key: str, inputs: dict[str, str], started: float, result: RunResult
    ) -> PhaseOutcome:
        before = self.state.phases.get(key)
        entry = PhaseState("running", inputs=inputs, started=f"{ctx.host.now():%Y-%m-%dT%H:%M:%SZ}")
        if before:
            entry.created, entry.backups = before.created, before.backups
        if self.keeps_journal:
            self.state.phases[key] = entry
        journal = JournalHost(ctx.host, self.state, key, entry)
        # what was registered by a run that was killed before it was made counts as not made
        journal.forget_unmade()
        sent_before = _sent_objects(ctx)
        try:
            journal.plan_to_make([resolve_path(ctx.paths, name) for name in phase.makes])
            self.state.save()
            worked_on = dataclasses.replace(ctx, host=journal) if self.keeps_journal else ctx  # type: ignore[arg-type]
            outputs = dict(phase.run(worked_on) or {})
            journal.forget_unmade()
            entry.status, entry.ended = "done", f"{ctx.host.now():%Y-%m-%dT%H:%M:%SZ}"
            entry.outputs = {name: value for name, value in outputs.items() if _is_storable(value)}
            self.state.save()
        except BaseException as error:
            journal.forget_unmade()
            self._record_failure(ctx, phase, entry, journal, error, result)
            raise
        sent = _sent_objects(ctx)[len(sent_before) :]
        ctx.outputs.update(outputs)
        for path in journal.changed_files:
            ctx.report.detail(f"wrote {path}")
        for command in journal.commands:
            ctx.report.detail(f"ran {command}", 2)
        for name in sent:
            ctx.report.detail(f"applied {name}")
        is_changed = bool(journal.changed_files or sent or journal.commands)
        status = "done" if is_changed or before is None or before.status != "done" else "unchanged"
        return PhaseOutcome(phase.name, status, ctx.host.monotonic() - started, journal.changed_files, sent)

    def _record_failure(
        self,
        ctx: Context,
        phase: Phase,
        entry: PhaseState,
        journal: JournalHost,
        error: BaseException,
        result: RunResult,
    ) -> None:
        files = sum(len(done.changed_files) for done in result.phases) + len(journal.changed_files)
        entry.status, entry.ended = "failed", f"{ctx.host.now():%Y-%m-%dT%H:%M:%SZ}"
        if isinstance(error, KbError):
            error.phase = error.phase or phase.name
            error.changed = error.changed or ("nothing was changed" if not files else f"{files} files were changed")
            entry.error = error.as_dict()
        elif isinstance(error, KeyboardInterrupt):
            entry.error = {"code": "interrupted", "what": str(error)}
        else:
            entry.error = {"code": "bug", "what": str(error)}
        outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        ctx.report.phase(len(result.phases) + 1, self._total, phase.name, phase.does, outcome)
        # a full disk must not hide what went wrong first
        with contextlib.suppress(HostError):
            self.state.save()


def _sent_objects(ctx: Context) -> list[str]:
    api = ctx.outputs.get("_api")
    return list(api.changes) if api else []


def _is_storable(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_storable(item) for item in value)
    return value is None or isinstance(value, (str, int, float, bool))


def resolve_path(paths: Paths, name: str) -> Path:
    """A name in Phase.makes: absolute, `pki/...` in the certificates folder, or a file of /etc/kubernetes."""
    if name.startswith("/"):
        return Path(name)
    if name.startswith("pki/"):
        return paths.pki / name[len("pki/") :]
    return paths.kubeconfigs / name if name.endswith(".conf") else paths.kubernetes / name


def _describe(outcome: PhaseOutcome, mode: str) -> str:
    if outcome.status != "done":
        return f"{outcome.status} ({outcome.why})" if outcome.why else outcome.status
    if mode == "dry-run":
        count = len(outcome.changed_files) + len(outcome.changed_objects)
        return f"would change {count} file{'s' * (count != 1)}" if outcome.changed_files else "would run"
    return f"{outcome.seconds:.1f}s"
