"""Compare a plan with the node, and make the node so: the one engine behind every planned step.

Owns the three-way comparison (recorded, wanted, found) and the order of applying. Must not know what a step is for, print
progress, or keep the state: the Runner does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Optional

from kubeup.engine.items import DIFFERS
from kubeup.engine.plan import Difference, Fields, Ground, Group, Item, Later, Part, Plan, Waiting, Yielded
from kubeup.engine.records import StepRecord
from kubeup.frozen_values import frozen

NOT_RUNNING = "it does not run"
NOT_KNOWN = "it is not known yet"
OTHER_START = "it runs from what its files held before"
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


def look_at(plan: Plan, run: Ground, recorded: Optional[StepRecord]) -> View:
    """The node and the cluster beside what is known of the plan by now. Only looks."""
    differences: list[Difference] = []
    drifted: list[Difference] = []
    configured: list[Difference] = []
    for part in plan.resolve(run).parts:
        for item in _items_of(part):
            found = item.look(run)
            ours = item.differences(item.wanted(), found)
            differences += ours
            before = (recorded or {}).get(item.name)
            if ours and before is not None:
                drifted += _compare_recorded(item, before, found)
                configured += _compare_wanted(item, before)
        if isinstance(part, Group):
            differences += _look_at_guard(part, run, recorded)
        elif isinstance(part, Later):
            differences.append(Difference(part.name, NOT_KNOWN))
    return View(tuple(differences), tuple(drifted), tuple(configured), recorded is not None)


def _items_of(part: Part) -> tuple[Item, ...]:
    if isinstance(part, Group):
        return (*part.once, *part.items)
    return () if isinstance(part, (Later, Yielded, Waiting)) else (part,)


def _compare_recorded(item: Item, before: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
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


def _look_at_guard(group: Group, run: Ground, recorded: Optional[StepRecord]) -> list[Difference]:
    found = []
    if not group.guard.is_running(run):
        found.append(Difference(group.name, NOT_RUNNING))
    started_with = (recorded or {}).get(group.name, {}).get("started_with")
    if started_with not in (None, group.content):
        found.append(Difference(group.name, OTHER_START))
    return found


def is_there(plan: Plan, run: Ground) -> bool:
    """Whether the node and the cluster are as the plan says, as far as it is known by now."""
    return not look_at(plan, run, None).differences


def record_found(plan: Plan, run: Ground) -> StepRecord:
    """What is there of what the plan wants, as another tool left it. With which contents a program was started, nobody knows."""
    items = [item for part in plan.resolve(run).parts for item in _items_of(part) if not item.is_of_cluster]
    found = {item: item.look(run) for item in items}
    return {item.name: item.record(fields) for item, fields in found.items() if fields is not None}


def make_so(plan: Plan, run: Ground) -> None:
    """Apply a plan from within an act, which records nothing itself. Raises KbError."""
    Applier(run, is_forced=True).apply(plan)


class Applier:
    """Applies one plan. `record` holds then what was found after it, for the items of this node.

    is_forced: write what is there in another spelling too; was_begun: a run before this one did not come to its end, so that a
    program may run from contents of before; made: the paths that this very step made: what another one made is not its to remove."""

    def __init__(
        self,
        run: Ground,
        *,
        recorded: Optional[StepRecord] = None,
        is_forced: bool = False,
        was_begun: bool = False,
        made: Iterable[str] = (),
    ) -> None:
        self.run = run
        self.recorded = recorded
        self.is_forced = is_forced
        self.was_begun = was_begun
        self.made = frozenset(made)
        self.record: StepRecord = {}
        self._applied: list[Part] = []
        self._is_stale = False

    def apply(self, plan: Plan) -> Plan:
        """The plan with what became known on the way, so that nobody has to ask for it a second time.

        Raises KbError. What was applied before it is in the record."""
        for warning in plan.warnings:
            self.run.report.warn_once(warning)
        for text in plan.details:
            self.run.report.detail(text)
        if not plan.is_open:
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
        elif isinstance(part, Yielded):
            self._keep_record()
            self.run.report.detail(f"{part.name}: {part.why}")
        elif isinstance(part, Waiting):
            self._keep_record()
        else:
            self._apply_item(part)

    def _apply_item(self, item: Item) -> bool:
        """Whether it had to be changed. The answer of an apply is its own second look."""
        if item.is_of_cluster:
            item.apply(self.run)
            return True
        found = item.look(self.run)
        is_due = bool(item.differences(item.wanted(), found))
        if is_due or self.is_forced or found is None:
            found = item.apply(self.run)
        self.record[item.name] = item.record(found)
        return is_due

    def _apply_group(self, group: Group) -> None:
        """Stop, write, start. A run that is cut off in between leaves the program stopped, or a record of another start, or no
        record at all: the next run sees each of them."""
        guard, items = group.guard, (*group.once, *group.items)
        due = [item for item in items if item.differences(item.wanted(), item.look(self.run))]
        has_no_record = self.recorded is None and self.was_begun
        if due or self._is_stale or has_no_record or _look_at_guard(group, self.run, self.recorded):
            guard.stop(self.run)
            for item in items:
                self._apply_item(item)
            guard.start(self.run)
        else:
            for item in items:
                self.record[item.name] = item.record(item.look(self.run) or item.wanted())
        guard.settle(self.run)
        self.record[group.name] = {"started_with": group.content}

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
        """A file that the record names and the plan does not goes, if kb made it and nobody changed it since."""
        wanted = {item.name for item in plan.items()}
        if any(isinstance(part, Yielded) for part in plan.parts):
            return
        for name, fields in (self.recorded or {}).items():
            if name in wanted or not name.startswith("/") or ("content" not in fields and "digest" not in fields):
                continue
            self._remove_file(Path(name), fields)

    def _remove_file(self, path: Path, fields: Mapping[str, object]) -> None:
        host = self.run.host
        if str(path) not in self.made or not host.exists(path) or host.is_dir(path):
            return
        text = host.read_bytes(path).decode(errors="surrogateescape")
        if "content" in fields and fields["content"] == text:
            host.remove(path)
            self._is_stale = True
            self.run.report.detail(f"removed {path}: nothing wants it any more")
        else:
            self.run.report.note(f"{path} is wanted no more, and was changed since kb wrote it: it stays")
