"""A timer of kb's own: two units of systemd, and the installed copy of kb that they run.

This module knows how such a timer comes and goes, not what it is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from kubeup.engine.items import File, Gone, Unit
from kubeup.engine.plan import Ground, Group, Plan
from kubeup.engine.run import Run
from kubeup.lazy_modules import lazily
from kubeup.machine import own_copy, services
from kubeup.phases.kb_program import plan_program

with lazily:
    from kubeup import yaml_files

_WANTED_BY = "timers.target"


def units_of(name: str) -> tuple[str, str]:
    """The service and the timer: kb-certs.service, kb-certs.timer"""
    return f"{name}.service", f"{name}.timer"


def plan_timer(run: Run, name: str, *, values: Mapping[str, str], more: Iterable[File] = ()) -> Plan:
    """The units configs/systemd/NAME.service and NAME.timer, filled in with `values` and the command, and `more` files that they read.
    Raises when it is applied: HostError (unit-not-started, folder-of-another-user)."""
    pyz = own_copy.find_running_pyz()
    filled = {**values, "command": own_copy.plan_command(run.host, pyz, paths=run.paths)}
    texts = ((unit, yaml_files.fill_template(f"systemd/{unit}", filled)) for unit in units_of(name))
    files = [File(run.paths.systemd / unit, text) for unit, text in texts]
    return Plan(Group((*plan_program(run, pyz), *more, *files), guard=Unit(units_of(name)[1], wanted_by=_WANTED_BY)))


def plan_no_timer(run: Run, name: str, *, what: str, phase: str, more: Iterable[Path] = ()) -> Plan:
    """Neither unit, nor `more` files. The copy of kb stays: other units may run it. what: the timer in words; phase: which has made it."""
    files = [*(run.paths.systemd / unit for unit in reversed(units_of(name))), *more]

    def find(ground: Ground) -> list[str]:
        return [str(path) for path in files if ground.host.exists(path)]

    def take_away(ground: Ground) -> None:
        if not find(ground):
            return
        Unit(units_of(name)[1], wanted_by=_WANTED_BY).take_back(ground.host)
        for path in files:
            ground.host.remove(path)
        services.forget_removed_units(ground.host)

    return Plan(Gone(what, find, take_away, (phase,)))
