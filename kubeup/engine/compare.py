"""Compare a plan with the node, and make the node so: the one engine behind every planned step.

Owns the three-way comparison (recorded, wanted, found) and the order of applying. Must not know what a step is for, print
progress, or keep the state: the Runner does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Optional

from kubeup.engine.items import DIFFERS
from kubeup.engine.plan import Difference, Fields, Ground, Group, Item, Later, Part, Plan, Proof, Waiting, Yielded
from kubeup.engine.records import StepRecord
from kubeup.frozen_values import frozen

NOT_RUNNING = "it does not run"
NOT_KNOWN = "it is not known yet"
OTHER_START = "it runs from what its files held before"
WANTED_NO_MORE = "it is no longer needed"
"""Differences of what is no file, as sentences."""


@frozen
class View:
    """What a plan and the node have to say about each other.

    differences: wanted against found; drifted: what of it the node did itself, or somebody on it, since it was recorded;
    configured: what is wanted otherwise than it was recorded; is_known: whether there is a record at all."""

    differences: tuple[Difference, ...] = ()
    drifted: tuple[Difference, ...] = ()
    configured: tuple[Difference, ...] = ()
    is_known: bool = True


def look_at(plan: Plan, run: Ground, *, recorded: Optional[StepRecord], made: Iterable[str] = ()) -> View:
    """The node and the cluster beside what is known of the plan by now. Only looks. made: what may go once nothing wants it."""
    differences: list[Difference] = []
    drifted: list[Difference] = []
    configured: list[Difference] = []
    for part in plan.resolve(run).parts:
        for item in _items_of(part):
            found = item.look(run)
            ours = item.differences(item.wanted(), found)
            differences += ours
            before = (recorded or {}).get(item.name)
            if ours and before is not None and before.keys() == item.record(item.wanted()).keys():
                drifted += _compare_recorded(item, before, found=found)
                configured += _compare_wanted(item, before)
        if isinstance(part, Group):
            differences += _look_at_guard(part, run, recorded=recorded)
        elif isinstance(part, Later):
            differences.append(Difference(part.name, NOT_KNOWN))
        elif isinstance(part, Proof):
            differences += _look_at_proof(part, run)
    stale, _ = find_stale(plan, run, recorded=recorded, made=made)
    configured += [Difference(str(path), WANTED_NO_MORE) for path in stale]
    differences += [Difference(str(path), WANTED_NO_MORE) for path in stale]
    return View(tuple(differences), tuple(drifted), tuple(configured), recorded is not None)


def _items_of(part: Part) -> tuple[Item, ...]:
    if isinstance(part, Group):
        return (*part.once, *part.items)
    return () if isinstance(part, (Later, Proof, Yielded, Waiting)) else (part,)


def _compare_recorded(item: Item, before: Fields, *, found: Optional[Fields]) -> tuple[Difference, ...]:
    """What became of it since. Of a secret only that it is another one."""
    if "digest" in before:
        now = item.record(found) if found else {}
        return () if now == before else (Difference(item.name, DIFFERS),)
    return item.differences(before, found)


def _compare_wanted(item: Item, before: Fields) -> tuple[Difference, ...]:
    wanted = item.wanted()
    if "digest" in before:
        return () if item.record(wanted) == before else (Difference(item.name, DIFFERS),)
    return item.differences(wanted, before)


def _look_at_guard(group: Group, run: Ground, *, recorded: Optional[StepRecord]) -> list[Difference]:
    found = []
    if not group.guard.is_running(run):
        found.append(Difference(group.name, NOT_RUNNING))
    started_with = (recorded or {}).get(group.name, {}).get("started_with")
    if started_with not in (None, group.content(run)):
        found.append(Difference(group.name, OTHER_START))
    return found


def _look_at_proof(proof: Proof, run: Ground) -> list[Difference]:
    trouble = proof.judge(run) if proof.judge else ""
    return [Difference(proof.name, trouble)] if trouble else []


def find_stale(
    plan: Plan, run: Ground, *, recorded: Optional[StepRecord], made: Iterable[str]
) -> tuple[list[Path], list[Path]]:
    """The files that the record names and the plan does not: those that are as kb made them, and those that somebody changed since.

    Nothing while the plan leaves something open, or while a program that was started from the recorded files is not in the plan: it
    reads them still. A secret is taken away by the act that uses it up."""
    wanted = {item.name for item in plan.items()} | {part.name for part in plan.parts}
    known, may_go = recorded or {}, frozenset(made)
    is_kept = plan.is_open or any(isinstance(part, Yielded) for part in plan.parts)
    if is_kept or any("started_with" in fields and name not in wanted for name, fields in known.items()):
        return [], []
    own: list[Path] = []
    changed: list[Path] = []
    for name, fields in known.items():
        path = Path(name)
        if name in wanted or name not in may_go or "content" not in fields or not run.host.exists(path):
            continue
        is_plain = run.host.read_link(path) is None and not run.host.is_dir(path)
        is_own = is_plain and run.host.read_bytes(path).decode(errors="surrogateescape") == fields["content"]
        (own if is_own else changed).append(path)
    return own, changed


def is_there(plan: Plan, run: Ground) -> bool:
    """Whether the node and the cluster are as the plan says, as far as it is known by now."""
    return not look_at(plan, run, recorded=None).differences


def record_found(plan: Plan, run: Ground) -> StepRecord:
    """What is there of what the plan wants, as another tool left it. With which contents a program was started, nobody knows."""
    items = [item for part in plan.resolve(run).parts for item in _items_of(part) if not item.is_of_cluster]
    found = [(item, item.look(run)) for item in items]
    return {item.name: item.record(fields) for item, fields in found if fields is not None}


def make_so(plan: Plan, run: Ground) -> None:
    """Apply a plan from within an act, which records nothing itself. Raises KbError."""
    Applier(run, is_forced=True).apply(plan)


class Applier:
    """Applies one plan. `record` holds then what was found after it, for the items of this node.

    is_forced: write what is there in another spelling too; was_begun: a run before this one did not come to its end, so that a
    program may run from contents of before; made: the paths that this very step made, and that nothing else needs: they go when the
    plan does not name them any more; keep: puts a record on the disk, before a program's files change."""

    def __init__(
        self,
        run: Ground,
        *,
        recorded: Optional[StepRecord] = None,
        is_forced: bool = False,
        was_begun: bool = False,
        made: Iterable[str] = (),
        keep: Callable[[StepRecord], None] = lambda _: None,
    ) -> None:
        self.run = run
        self.recorded = recorded
        self.is_forced = is_forced
        self.was_begun = was_begun
        self.made = frozenset(made)
        self.keep = keep
        self.record: StepRecord = {}
        self._applied: list[Part] = []
        self._is_stale = False

    def apply(self, plan: Plan) -> Plan:
        """The plan with what became known on the way, so that nobody has to ask for it a second time.

        Raises KbError. What was applied before it is in the record."""
        for warning in plan.warnings:
            self.run.report.warn_once(warning)
        for text in plan.notes:
            self.run.report.note(text)
        for text in plan.details:
            self.run.report.detail(text)
        self._remove_stale(plan)
        for part in plan.parts:
            self._apply_part(part)
        return Plan(*self._applied, hands_on=plan.hands_on)

    def _apply_part(self, part: Part) -> None:
        if not isinstance(part, Later):
            self._applied.append(part)
        if isinstance(part, Group):
            self._apply_group(part)
        elif isinstance(part, Later):
            self._apply_later(part)
        elif isinstance(part, Proof):
            if self.run.host.mode != "dry-run":
                part.wait(self.run)
        elif isinstance(part, Yielded):
            self._keep_record()
            self.run.report.detail(f"{part.name}: {part.why}")
        elif isinstance(part, Waiting):
            self._keep_record()
        else:
            self._apply_item(part)

    def _apply_item(self, item: Item) -> bool:
        """Whether it had to be changed. The answer of an apply is its own second look. What a blind item would do shows when it does
        it: a dry run only names it."""
        if item.is_blind and self.run.host.mode == "dry-run":
            self.run.host.plan_later(item.name)  # type: ignore[attr-defined]
            return True
        if item.is_of_cluster:
            item.apply(self.run)
            return True
        found = item.look(self.run)
        is_due = bool(item.differences(item.wanted(), found))
        if is_due or self.is_forced or found is None or item.is_judged:
            found = item.apply(self.run)
        self.record[item.name] = item.record(found)
        return is_due

    def _apply_group(self, group: Group) -> None:
        """Stop, write, start. What is on the disk before the first change says that nobody knows from what the program runs, so
        that the next run sees where this one is cut off, also where the program was not stopped and its files are right by then."""
        guard, items = group.guard, (*group.once, *group.items)
        found = [(item, item.look(self.run)) for item in items]
        is_due = any(item.differences(item.wanted(), fields) for item, fields in found)
        has_no_record = self.recorded is None and self.was_begun
        if is_due or self._is_stale or has_no_record or _look_at_guard(group, self.run, recorded=self.recorded):
            self.keep({**(self.recorded or {}), **self.record, group.name: {"started_with": ""}})
            guard.stop(self.run)
            for item in items:
                self._apply_item(item)
            guard.start(self.run)
        else:
            self.record.update({item.name: item.record(fields or item.wanted()) for item, fields in found})
        for item in group.once:
            # it goes when it has served, or stays as somebody else's: no later run is to miss it, or to take it away
            self.record.pop(item.name, None)
        guard.settle(self.run)
        self.record[group.name] = {"started_with": group.content(self.run)}

    def _apply_later(self, part: Later) -> None:
        if self.run.host.mode == "dry-run":
            value = part.read(self.run)
        else:
            value = part.wait(self.run)
        if value is None:
            self.run.host.plan_later(part.name)  # type: ignore[attr-defined]
            self._applied.append(part)
            return
        for then in part.then(value):
            self._apply_part(then)

    def _keep_record(self) -> None:
        """What gave way, or waits, is neither forgotten nor taken away."""
        for item, fields in (self.recorded or {}).items():
            self.record.setdefault(item, fields)

    # ---- what is wanted no more

    def _remove_stale(self, plan: Plan) -> None:
        """Before what takes its place is made."""
        own, changed = find_stale(plan, self.run, recorded=self.recorded, made=self.made)
        for path in own:
            self.run.host.remove(path)
            self._is_stale = True
            self.run.report.detail(f"removed {path}: nothing needs it any more")
        for path in changed:
            self.run.report.note(f"{path} is no longer needed, but was changed after kb wrote it: it stays")
