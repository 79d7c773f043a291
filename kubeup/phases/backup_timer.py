"""The timer that backs up a control plane, as two units of kb's own, and the file that says where to.

This module decides where the timer runs. What a backup holds it does not know.
"""

from __future__ import annotations

from kubeup.engine.items import File
from kubeup.engine.plan import Plan
from kubeup.engine.run import Run
from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.phases import own_timer

with lazily:
    from kubeup.backup import schedule as schedules

_NAME = "kb-backup"
SERVICE, TIMER = own_timer.units_of(_NAME)


@frozen_by_name
class ScheduleRun(Run):
    """A run of `kb backup schedule`."""

    schedule: schedules.Schedule


def plan_timer(run: ScheduleRun) -> Plan:
    """The two units, the schedule, and the copy of kb that they run. Raises when it is applied: HostError (unit-not-started,
    folder-of-another-user)."""
    told = File(schedules.schedule_file(run.paths), schedules.render_schedule(run.schedule), mode=0o600)
    return own_timer.plan_timer(run, _NAME, values={"when": schedules.parse_when(run.schedule.when)}, more=[told])


def plan_no_timer(run: Run) -> Plan:
    """Neither unit and no schedule. The backups stay."""
    files = [schedules.schedule_file(run.paths), schedules.last_file(run.paths)]
    return own_timer.plan_no_timer(run, _NAME, what="the timer that makes backups", phase="backup-timer", more=files)
