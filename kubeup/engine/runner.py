"""The Runner: executes the phases of a workflow.

For each phase, in order: select, look, skip or resume, register the undo, run, record. Mirrors
cmd/kubeadm/app/cmd/phases/workflow/runner.go, and adds state, probes and drift.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from kubeup import moments
from kubeup.engine.compare import WANTED_NO_MORE, Applier, View, look_at
from kubeup.engine.items import Gone
from kubeup.engine.journal import JournalHost, remove_leftovers
from kubeup.engine.plan import Difference, Plan
from kubeup.engine.records import StepRecord, load_records
from kubeup.engine.run import BareRun, Results, Selection, read_stored
from kubeup.engine.state import PhaseState, State
from kubeup.engine.step import (
    Phase,
    fingerprint_of,
    fingerprint_spec,
    names_below,
    plan_skips,
    select_phases,
    wanted_phases,
)
from kubeup.errors import HostError, Interrupted, KbError


@dataclass
class PhaseOutcome:
    """How a phase ended: status is done | unchanged | skipped | deferred | waiting | failed."""

    name: str
    status: str
    seconds: float = 0.0
    changed_files: list[str] = field(default_factory=list)
    changed_objects: list[str] = field(default_factory=list)
    why: str = ""


@dataclass
class RunResult:
    """The result of a run: the outcome of every phase, in order, and their merged results."""

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
    """Executes the phases of one workflow on one node."""

    def __init__(self, workflow: str, phases: Sequence[Phase], *, state: State, keeps_journal: bool = True) -> None:
        """keeps_journal: False for reset, which undoes the journal, so its own steps are not written to it."""
        self.keeps_journal = keeps_journal
        self.workflow = workflow
        self.phases = phases
        self.state = state
        self.records = load_records(state.host, state.paths.records)
        self._total = len(phases)

    def run(self, ctx: BareRun, *, only: str = "", skip: Sequence[str] = ()) -> RunResult:
        """Run all phases except the skipped ones, or only those that `only` names, even if they are done or skipped.

        Raises KbError, with the name of the phase and what was changed filled in.
        """
        chosen = select_phases(self.phases, only) if only else tuple(self.phases)
        chosen = wanted_phases(chosen, ctx.config)
        skipped = frozenset() if only else plan_skips(chosen, skip)
        result = RunResult(self.workflow, results=ctx.results)
        remove_leftovers(ctx.host, self.state)
        ctx = dataclasses.replace(
            ctx, owned_paths=self.state.known_paths(), selection=self._select(ctx, chosen, skipped=skipped, skip=skip)
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
            except KbError as error:
                error.phase = error.phase or phase.name
                raise
            result.phases.append(outcome)
            ctx.report.phase(
                index, len(chosen), name=phase.name, does=phase.does, outcome=_describe(outcome, ctx.host.mode)
            )
        return result

    def _select(
        self, ctx: BareRun, chosen: Sequence[Phase], *, skipped: frozenset[str], skip: Sequence[str]
    ) -> Selection:
        # what the user skipped stays skipped, even in a run of a single phase
        left_out = names_below(self.phases, skip)
        planned = wanted_phases(self.phases, ctx.config)
        return Selection(
            will_run=frozenset(phase.name for phase in chosen if phase.name not in skipped),
            planned=frozenset(phase.name for phase in planned if phase.name not in skipped),
            skipped=left_out,
            unfinished=frozenset(phase.name for phase in self.phases if self._status_of(phase) != "done"),
            cut_off=frozenset(phase.name for phase in self.phases if self._status_of(phase) not in ("", "done")),
        )

    def _status_of(self, phase: Phase) -> str:
        """The status of its last run; "" if it never ran."""
        before = self.state.phases.get(f"{self.workflow}/{phase.name}")
        return before.status if before else ""

    def _run_one(
        self, ctx: BareRun, phase: Phase, *, is_forced: bool, is_skipped: bool, result: RunResult
    ) -> PhaseOutcome:
        if is_skipped:
            return PhaseOutcome(phase.name, "skipped", why="--skip-phases")
        if (phase.live and ctx.host.mode == "root") or (phase.live == "cluster" and ctx.host.mode == "dry-run"):
            return PhaseOutcome(phase.name, "deferred", why="needs the running node")
        started = ctx.host.monotonic()
        self._take_along(phase)
        before = self.state.phases.get(f"{self.workflow}/{phase.name}")
        plan: Optional[Plan] = None
        inputs = fingerprint_spec(phase, ctx)
        if before and before.status == "done" and not is_forced and not phase.always:
            try:
                if phase.plan is None:
                    again = self._why_again(ctx, phase, before=before, inputs=inputs)
                else:
                    plan = phase.plan(ctx)
                    again = self._why_other(ctx, phase, before=before, plan=plan)
            except KbError as error:
                self._tell_failure(ctx, phase, error=error, result=result)
                raise
            if not again:
                ctx.results.take(read_stored(before.outputs))
                return PhaseOutcome(phase.name, "unchanged", ctx.host.monotonic() - started)
            if plan is None or not plan.waits:
                ctx.report.note(f"{phase.name}: {again}")
        return self._act(ctx, phase, plan=plan, inputs=inputs, started=started, result=result, is_forced=is_forced)

    def _take_along(self, phase: Phase) -> None:
        """Move the state and record of a renamed phase to its new name."""
        key, former = f"{self.workflow}/{phase.name}", f"{self.workflow}/{phase.formerly}"
        if phase.formerly and former in self.state.phases:
            self.state.phases.setdefault(key, self.state.phases.pop(former))
            self.records.rename(key, former)

    def _why_again(self, ctx: BareRun, phase: Phase, *, before: PhaseState, inputs: dict[str, str]) -> str:
        if inputs and "spec" not in before.inputs:
            before.inputs.update(inputs)  # an older kb ran it with unknown inputs: changes show from now on
            self.state.save()
        if any(before.inputs[name] != value for name, value in inputs.items()):
            return "its configuration changed since the last run: applying it again"
        if phase.probe is None or phase.probe(ctx):
            return ""
        return "drift: it was done, but no longer holds on the node: applying it again"

    def _why_other(self, ctx: Any, phase: Phase, *, before: PhaseState, plan: Plan) -> str:
        """Why a planned phase that was done runs again: the configuration changed, or somebody changed the node."""
        key = f"{self.workflow}/{phase.name}"
        view = look_at(plan, ctx, recorded=self.records.of(key), made=self._may_remove(key, before))
        if plan.waits:
            return plan.waits[0].why
        known, blind = before.inputs.get("plan", ""), [item for item in plan.items() if item.is_blind]
        has_to_know = known and (view.differences or blind)
        is_same = plan.resolve(ctx).fingerprint() == known if has_to_know else None
        if blind and is_same is False:
            return f"{blind[0].name} changed since the last run: applying it again"
        return describe_view(view, is_same_plan=is_same)

    def _act(
        self,
        ctx: BareRun,
        phase: Phase,
        *,
        plan: Optional[Plan],
        inputs: dict[str, str],
        started: float,
        result: RunResult,
        is_forced: bool,
    ) -> PhaseOutcome:
        key = f"{self.workflow}/{phase.name}"
        before = self.state.phases.get(key)
        entry = self._begin(ctx, key, inputs=inputs)
        journal = JournalHost(ctx.host, self.state, key=key, entry=entry)
        # a killed run may have registered paths that it never created
        journal.forget_unmade()
        sent_before = len(ctx.caller.changes)
        try:
            plan = plan or (phase.plan(ctx) if phase.plan else None)
            journal.expect(plan.places() if plan else ())
            self.state.save()
            was_begun = before is not None and before.status != "done"
            worked_on = self._with_journal(ctx, journal)
            handed = self._work(worked_on, phase, plan=plan, entry=entry, is_forced=is_forced, was_begun=was_begun)
            journal.forget_unmade()
            entry.status, entry.ended = "done", moments.show(ctx.host.now())
            entry.outputs = handed.stored()
            self.state.save()
        except BaseException as error:
            journal.forget_unmade()
            self._record_failure(ctx, phase, entry=entry, journal=journal, error=error, result=result)
            raise
        sent = ctx.caller.changes[sent_before:]
        ctx.results.take(handed)
        _tell_changes(ctx, journal, sent=sent)
        is_changed = bool(journal.changed_files or sent or journal.commands)
        status = "done" if is_changed or before is None or before.status != "done" else "unchanged"
        took = ctx.host.monotonic() - started
        if plan and plan.waits:
            why = plan.waits[0].why
            return PhaseOutcome(phase.name, "waiting", took, journal.changed_files, sent, why=why)
        return PhaseOutcome(phase.name, status, took, journal.changed_files, sent)

    def _begin(self, ctx: BareRun, key: str, *, inputs: dict[str, str]) -> PhaseState:
        """The step's new state entry, with what earlier runs created and passed on."""
        before = self.state.phases.get(key)
        entry = PhaseState("running", inputs=inputs, started=moments.show(ctx.host.now()))
        if before:
            # earlier outputs stay valid until the phase produces new ones
            entry.created, entry.backups, entry.outputs = before.created, before.backups, before.outputs
            entry.compensations = before.compensations
        if self.keeps_journal:
            self.state.phases[key] = entry
        return entry

    def _with_journal(self, ctx: BareRun, journal: JournalHost) -> BareRun:
        if not self.keeps_journal:
            return ctx
        return dataclasses.replace(ctx, host=journal, machine=ctx.host, promises=journal)  # type: ignore[arg-type]

    def _work(
        self, ctx: BareRun, phase: Phase, *, plan: Optional[Plan], entry: PhaseState, is_forced: bool, was_begun: bool
    ) -> Results:
        phase.before(ctx)
        began = ctx.host.monotonic()
        if plan is None:
            foretold = phase.foretell if ctx.host.mode == "dry-run" else None
            handed = (foretold or phase.act)(ctx) or Results()
        else:
            handed = self._apply(ctx, phase, plan=plan, entry=entry, is_forced=is_forced, was_begun=was_begun)
        phase.after(ctx, handed, ctx.host.monotonic() - began)
        return handed

    def _apply(
        self, ctx: Any, phase: Phase, *, plan: Plan, entry: PhaseState, is_forced: bool, was_begun: bool
    ) -> Results:
        """Apply the plan and record what was found afterwards. A run that keeps no state compares only with the disk, and always
        writes."""
        key = f"{self.workflow}/{phase.name}"

        def keep(record: StepRecord) -> None:
            if self.state.is_kept and self.keeps_journal:
                self.records.put(key, record)
                self._save_records(ctx)

        applier = Applier(
            ctx,
            recorded=self.records.of(key),
            is_forced=is_forced or not self.state.is_kept,
            was_begun=was_begun,
            made=self._may_remove(key, entry),
            keep=keep,
        )
        applied = applier.apply(plan)
        self._forget(frozenset(name for item in applied.items() if isinstance(item, Gone) for name in item.made_by))
        keep(applier.record)
        entry.inputs = fingerprint_of(applied)
        return plan.hands_on or Results()

    def _forget(self, names: frozenset[str]) -> None:
        """Drop the records of phases with these names, in any workflow: what they made was removed, which is no drift."""
        self.records.forget(names)
        for key, entry in self.state.phases.items():
            if key.partition("/")[2] in names:
                entry.inputs.pop("plan", None)

    def _save_records(self, ctx: BareRun) -> None:
        """Save the records; only warn if that fails. The work itself is done, and the next run can merely say less about what
        it finds."""
        try:
            self.records.save()
        except HostError as error:
            ctx.report.warn_once(f"what was done could not be recorded: {error}")

    def _may_remove(self, key: str, entry: PhaseState) -> frozenset[str]:
        """The paths that this step may remove: it made them, they are in kb's workplaces, and no other step needs them. A record
        alone is not enough to remove a file."""
        needed = {Path(name) for step, items in self.records.steps.items() if step != key for name in items}
        needed.update(Path(name) for step, made in self.state.phases.items() if step != key for name in made.created)
        return frozenset(
            path
            for path in entry.created
            if path not in self.state.adopted and Path(path) not in needed and self.state.is_workplace(Path(path))
        )

    def _record_failure(
        self,
        ctx: BareRun,
        phase: Phase,
        *,
        entry: PhaseState,
        journal: JournalHost,
        error: BaseException,
        result: RunResult,
    ) -> None:
        entry.status, entry.ended = "failed", moments.show(ctx.host.now())
        self._tell_failure(ctx, phase, error=error, result=result, changed_files=journal.changed_files)
        if isinstance(error, KbError):
            entry.error = error.as_dict()
        elif isinstance(error, KeyboardInterrupt):
            entry.error = {"code": "interrupted", "what": str(error)}
        else:
            entry.error = {"code": "bug", "what": str(error)}
        # a full disk must not hide the original error
        with contextlib.suppress(HostError):
            self.state.save()

    def _tell_failure(
        self,
        ctx: BareRun,
        phase: Phase,
        *,
        error: BaseException,
        result: RunResult,
        changed_files: Sequence[str] = (),
    ) -> None:
        """Report the phase that failed, and what was changed before."""
        files = sum(len(done.changed_files) for done in result.phases) + len(changed_files)
        if isinstance(error, KbError):
            error.phase = error.phase or phase.name
            error.changed = error.changed or ("nothing was changed" if not files else f"{files} files were changed")
        outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        ctx.report.phase(len(result.phases) + 1, self._total, name=phase.name, does=phase.does, outcome=outcome)


def _tell_changes(ctx: BareRun, journal: JournalHost, *, sent: Sequence[str]) -> None:
    for path in journal.changed_files:
        ctx.report.detail(f"wrote {path}")
    for command in journal.commands:
        ctx.report.detail(f"ran {command}", 2)
    for name in sent:
        ctx.report.detail(f"applied {name}")


def describe_view(view: View, *, is_same_plan: Optional[bool] = None) -> str:
    """Why a phase has to run again, in words; "" if the node is as wanted.

    is_same_plan: whether the plan is the same as at the last apply; None if unknown."""
    if not view.differences:
        return ""
    told = view.drifted or (view.differences if is_same_plan else ())
    if told:
        return f"drift: {told[0]}{_more(told)}: applying it again"
    told = view.configured or (view.differences if is_same_plan is False else ())
    if told and told[0].field == WANTED_NO_MORE:
        return f"{told[0]}{_more(told)}: applying it again"
    if told:
        what = " ".join(filter(None, (told[0].item, told[0].field)))
        return f"{what}{_more(told)} changed since the last run: applying it again"
    return f"{view.differences[0]}{_more(view.differences)}: applying it again"


def _more(differences: Sequence[Difference]) -> str:
    return f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""


def _describe(outcome: PhaseOutcome, mode: str) -> str:
    if outcome.status != "done":
        return f"{outcome.status} ({outcome.why})" if outcome.why else outcome.status
    if mode == "dry-run":
        count = len(outcome.changed_files) + len(outcome.changed_objects)
        return f"would change {count} file{'s' * (count != 1)}" if outcome.changed_files else "would run"
    return f"{outcome.seconds:.1f}s"
