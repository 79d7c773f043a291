"""kb's own units on this node, once a newer kb is there: the copy of kb that they run, and their files as the newer one writes them.

Which units a node has was decided when each was switched on; this module adds none. kubeadm has no counterpart: it leaves nothing
running.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kubeup.engine.items import File, Unit
from kubeup.engine.plan import Ground, Group, Plan
from kubeup.engine.run import Run
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import own_copy, services
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.phases.kb_program import plan_program

with lazily:
    from kubeup import yaml_files
    from kubeup.backup import schedule
    from kubeup.network import load_balancer, pod_network
    from kubeup.phases import auto_renewal, backup_timer, drift_timer, serve_mirror

_TIMERS = "timers.target"


@frozen
class OwnUnits:
    """All of them, as the guard of what they read. units: (name, the target that starts it at boot)."""

    units: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return ", ".join(unit for unit, _ in self.units)

    @property
    def places(self) -> tuple[Path, ...]:
        return tuple(path for unit in self._each() for path in unit.places)

    def is_running(self, run: Ground) -> bool:
        return all(unit.is_running(run) for unit in self._each())

    def stop(self, run: Ground) -> None:
        """Nothing to do: each is restarted."""

    def start(self, run: Ground) -> None:
        for unit in self._each():
            unit.start(run)

    def settle(self, run: Ground) -> None:
        """Nothing to do: `start` enables them."""

    def _each(self) -> Iterator[Unit]:
        return (Unit(name, wanted_by=target) for name, target in self.units)


def list_units(host: Host, paths: Paths) -> list[tuple[str, str]]:
    """The units of kb's own that this node has: (name, the target that starts it at boot). Timers, not the services that they start."""
    found = [(unit, "multi-user.target") for unit in (pod_network.UNIT, load_balancer.UNIT, serve_mirror.MIRROR_UNIT)]
    found += [(timer.TIMER, _TIMERS) for timer in (auto_renewal, drift_timer, backup_timer)]
    return [(unit, target) for unit, target in found if host.exists(paths.systemd / unit)]


def plan_own_units(run: Run) -> Plan:
    """This kb in the place from which the units run it, their files, and all of them started with both. Nothing where this kb is no single
    file, or where no unit runs one. Raises when it is applied: HostError (folder-of-another-user, unit-not-started)."""
    pyz, units = own_copy.find_running_pyz(), list_units(run.host, run.paths)
    if pyz is None or not units or services.find(run.host) is not services.SYSTEMD:
        return Plan()
    command = own_copy.plan_command(run.host, pyz, paths=run.paths)
    files = [file for unit, _ in units for file in _files_of(run, unit, command=command)]
    return Plan(Group((*plan_program(run, pyz), *files), guard=OwnUnits(tuple(units))))


def _files_of(run: Run, unit: str, *, command: str) -> list[File]:
    """The files of a unit as this kb writes them. Those of a schedule of backups that cannot be read stay as they are: `kb doctor` tells of it."""
    values = {"command": command}
    if unit == serve_mirror.MIRROR_UNIT:
        values = serve_mirror.unit_values(run, command=command)
    names = [unit]
    if unit.endswith(".timer"):
        names.insert(0, f"{unit[: -len('.timer')]}.service")
    if unit == backup_timer.TIMER:
        told = schedule.read_schedule(run.host, run.paths)
        if told is None:
            return []
        values["when"] = schedule.parse_when(told.when)
    return [File(run.paths.systemd / name, yaml_files.fill_template(f"systemd/{name}", values)) for name in names]
