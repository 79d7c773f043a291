"""The timer that backs up a control plane, as two units of kb's own, and the file that says where to.

This module decides where the timer runs. What a backup holds it does not know.
"""

from __future__ import annotations

from kubeup.backup import schedule
from kubeup.backup.schedule import Schedule
from kubeup.engine.items import File, Gone, Unit
from kubeup.engine.plan import Ground, Group, Plan
from kubeup.engine.run import Run
from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine import own_copy, services
from kubeup.phases.kb_program import plan_program

with lazily:
    from kubeup import yaml_files

TIMER, SERVICE = "kb-backup.timer", "kb-backup.service"
_TIMERS = "timers.target"


@frozen_by_name
class ScheduleRun(Run):
    """A run of `kb backup schedule`."""

    schedule: Schedule


def plan_timer(run: ScheduleRun) -> Plan:
    """The two units, the schedule, and the copy of kb that they run. Raises when it is applied: HostError (unit-not-started,
    folder-of-another-user)."""
    pyz = own_copy.find_running_pyz()
    values = {
        "command": own_copy.plan_command(run.host, pyz, paths=run.paths),
        "when": schedule.parse_when(run.schedule.when),
    }
    files = [
        File(run.paths.systemd / name, yaml_files.fill_template(f"systemd/{name}", values)) for name in (SERVICE, TIMER)
    ]
    told = File(schedule.schedule_file(run.paths), schedule.render_schedule(run.schedule), mode=0o600)
    return Plan(Group((*plan_program(run, pyz), told, *files), guard=Unit(TIMER, wanted_by=_TIMERS)))


def plan_no_timer(run: Run) -> Plan:
    """Neither unit and no schedule. The backups stay, and so does the copy of kb, which other units may run."""
    files = [run.paths.systemd / name for name in (TIMER, SERVICE)]
    files += [schedule.schedule_file(run.paths), schedule.last_file(run.paths)]

    def find(ground: Ground) -> list[str]:
        return [str(path) for path in files if ground.host.exists(path)]

    def take_away(ground: Ground) -> None:
        if not find(ground):
            return
        Unit(TIMER, wanted_by=_TIMERS).take_back(ground.host)
        for path in files:
            ground.host.remove(path)
        services.forget_removed_units(ground.host)

    return Plan(Gone("the timer that makes backups", find, take_away, ("backup-timer",)))
