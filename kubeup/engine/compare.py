"""Compares a plan with the node and applies it: the one engine behind every planned step.

This module does the three-way comparison (recorded, wanted, found) and fixes the order in which parts are applied. It knows no
step in particular. Progress output and state belong to the Runner.
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
OTHER_START = "it still runs with the old contents of its files"
WANTED_NO_MORE = "it is no longer needed"
"""The differences that are not differences of a field, as sentences."""


@frozen
class View:
    """The result of comparing a plan with the node.

    differences: between wanted and found.
    drifted: those that came about on the node since the record: found differs from recorded.
    configured: those that come from a changed configuration: wanted differs from recorded.
    is_known: whether there is a record at all."""

    differences: tuple[Difference, ...] = ()
    drifted: tuple[Difference, ...] = ()
    configured: tuple[Difference, ...] = ()
    is_known: bool = True


def look_at(plan: Plan, run: Ground, *, recorded: Optional[StepRecord], made: Iterable[str] = ()) -> View:
    """Compare the node and the cluster with what is known of the plan by now, without changing anything.

    made: the paths that may be removed once the plan no longer names them."""
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
    """How the item changed since it was recorded. For a secret, only that it changed."""
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
    """Files that the record names and the plan does not, as two lists: those that are still as kb wrote them, and those that
    somebody changed since.

    Both are empty while the plan is open or has yielded, and while it lacks a program that was started from the recorded files,
    because that program still reads them. A secret is never listed: the act that uses it up removes it."""
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
    """Whether the node and the cluster match the plan, as far as the plan is known by now."""
    return not look_at(plan, run, recorded=None).differences


def record_found(plan: Plan, run: Ground) -> StepRecord:
    """The record of those items of the plan that another tool already made. It cannot tell with which contents a program was
    started."""
    items = [item for part in plan.resolve(run).parts for item in _items_of(part) if not item.is_of_cluster]
    found = [(item, item.look(run)) for item in items]
    return {item.name: item.record(fields) for item, fields in found if fields is not None}


def make_so(plan: Plan, run: Ground) -> None:
    """Apply a plan from within an act, without recording it. Raises KbError."""
    Applier(run, is_forced=True).apply(plan)


class Applier:
    """Applies one plan. Afterwards `record` holds what was found of this node's items.

    is_forced: also write files that differ only in spelling.
    was_begun: an earlier run did not finish, so a program may run with older contents.
    made: the paths that this step made and nothing else needs; they are removed once the plan no longer names them.
    keep: stores a record on disk, before a program's files change."""

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
        """Apply the plan, and return it with the values that became known on the way, so that they are not asked for again.

        Raises KbError; the record then holds what was applied before the error."""
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
        """Apply one item, and return whether it had to change. What `apply` returns is recorded without a second look. A dry run
        only names a blind item, since what it would do is not known before."""
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
        """Stop, write, start. Before the first change, a record on disk says that the program's contents are unknown. If this run
        is cut off, the next one starts the program again, even if it was never stopped and its files are right by then."""
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
            # it is removed after its use, or belongs to somebody else: later runs must neither miss nor remove it
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
        """Keep the record of what yielded or waits, so that it is neither forgotten nor removed."""
        for item, fields in (self.recorded or {}).items():
            self.record.setdefault(item, fields)

    # ---- what is no longer wanted

    def _remove_stale(self, plan: Plan) -> None:
        """Remove stale files before their replacements are created."""
        own, changed = find_stale(plan, self.run, recorded=self.recorded, made=self.made)
        for path in own:
            self.run.host.remove(path)
            self._is_stale = True
            self.run.report.detail(f"removed {path}: it is no longer needed")
        for path in changed:
            self.run.report.note(f"{path} is no longer needed, but was changed after kb wrote it, so it stays")
