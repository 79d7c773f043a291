"""The Runner: works through the phases of a workflow.

Owns the order: select, look, skip or resume, register the undo, run, record. Mirrors
cmd/kubeadm/app/cmd/phases/workflow/runner.go, and adds state, probes and drift.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kubeup.engine.journal import JournalHost, remove_leftovers
from kubeup.engine.run import BareRun, Results, Selection, read_stored
from kubeup.engine.state import PhaseState, State
from kubeup.engine.step import (
    Phase,
    fingerprint_inputs,
    names_below,
    plan_skips,
    resolve_path,
    select_phases,
    wanted_phases,
)
from kubeup.errors import HostError, Interrupted, KbError


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
    """The end of a run: every phase's outcome in order, and all that they handed on."""

    workflow: str
    phases: list[PhaseOutcome] = field(default_factory=list)
    results: Results = field(default_factory=Results)

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


class Runner:
    """Works through the phases of one workflow on one node."""

    def __init__(self, workflow: str, phases: Sequence[Phase], state: State, *, keeps_journal: bool = True) -> None:
        """keeps_journal: False for the workflow that undoes the journal: its own steps are not written into it."""
        self.keeps_journal = keeps_journal
        self.workflow = workflow
        self.phases = phases
        self.state = state
        self._total = len(phases)

    def run(self, ctx: BareRun, *, only: str = "", skip: Sequence[str] = ()) -> RunResult:
        """Run all phases but the skipped, or those that `only` names (these run even if they were done before or are among
        the skipped).

        Raises KbError with the phase's name and what was changed filled in.
        """
        chosen = select_phases(self.phases, only) if only else tuple(self.phases)
        chosen = wanted_phases(chosen, ctx.config)
        skipped = frozenset() if only else plan_skips(chosen, skip)
        result = RunResult(self.workflow, results=ctx.results)
        remove_leftovers(ctx.host, self.state)
        ctx = dataclasses.replace(
            ctx, owned_paths=self.state.known_paths(), selection=self._select(ctx, chosen, skipped, skip)
        )
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
        return result

    def _select(self, ctx: BareRun, chosen: Sequence[Phase], skipped: frozenset[str], skip: Sequence[str]) -> Selection:
        # what the user left out is left out for good, also where this run works through one phase alone
        left_out = names_below(self.phases, skip)
        planned = wanted_phases(self.phases, ctx.config)
        return Selection(
            will_run=frozenset(phase.name for phase in chosen if phase.name not in skipped),
            planned=frozenset(phase.name for phase in planned if phase.name not in skipped),
            skipped=left_out,
            unfinished=frozenset(phase.name for phase in self.phases if not self._is_done(phase)),
        )

    def _is_done(self, phase: Phase) -> bool:
        before = self.state.phases.get(f"{self.workflow}/{phase.name}")
        return before is not None and before.status == "done"

    def _run_one(
        self, ctx: BareRun, phase: Phase, *, is_forced: bool, is_skipped: bool, result: RunResult
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
                ctx.results.take(read_stored(before.outputs))
                return PhaseOutcome(phase.name, "unchanged", ctx.host.monotonic() - started)
            else:
                ctx.report.note(f"{phase.name}: drift: it was done, but the node no longer shows it: doing it again")
        return self._act(ctx, phase, key, inputs, started, result)

    def _act(
        self, ctx: BareRun, phase: Phase, key: str, inputs: dict[str, str], started: float, result: RunResult
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
        sent_before = len(ctx.caller.changes)
        try:
            journal.plan_to_make([resolve_path(ctx.paths, name) for name in phase.makes])
            self.state.save()
            worked_on = dataclasses.replace(ctx, host=journal, machine=ctx.host) if self.keeps_journal else ctx  # type: ignore[arg-type]
            handed = phase.run(worked_on) or Results()
            journal.forget_unmade()
            entry.status, entry.ended = "done", f"{ctx.host.now():%Y-%m-%dT%H:%M:%SZ}"
            entry.outputs = handed.stored()
            self.state.save()
        except BaseException as error:
            journal.forget_unmade()
            self._record_failure(ctx, phase, entry, journal, error, result)
            raise
        sent = ctx.caller.changes[sent_before:]
        ctx.results.take(handed)
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
        ctx: BareRun,
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


def _describe(outcome: PhaseOutcome, mode: str) -> str:
    if outcome.status != "done":
        return f"{outcome.status} ({outcome.why})" if outcome.why else outcome.status
    if mode == "dry-run":
        count = len(outcome.changed_files) + len(outcome.changed_objects)
        return f"would change {count} file{'s' * (count != 1)}" if outcome.changed_files else "would run"
    return f"{outcome.seconds:.1f}s"
