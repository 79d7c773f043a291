"""The timer that renews a node's certificates before they end, as two units of kb's own.

This module decides where the timer runs, and reads how it stands. It does not know what is renewed. A worker has none unless it is
switched on there: it has but one certificate that does not renew itself, the kubelet's own, which no caller verifies. kubeadm has no
counterpart: it leaves the date to the admin's calendar.
"""

from __future__ import annotations

from pathlib import Path

from kubeup.engine.items import File, Gone, Unit
from kubeup.engine.plan import Ground, Group, Plan
from kubeup.engine.run import Run
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import own_copy, services
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.phases.kb_program import plan_program

with lazily:
    from kubeup import yaml_files

TIMER, SERVICE = "kb-certs.timer", "kb-certs.service"
_TIMERS = "timers.target"


def off_mark(paths: Paths) -> Path:
    """The file that says that an admin switched the timer off, so that no later run switches it on again."""
    return paths.state_dir / "certs-auto-off"


def has_timers(host: Host) -> bool:
    """Whether a timer can run here: OpenRC and machines without a service manager have none."""
    return services.find(host) is services.SYSTEMD


@frozen
class Timer:
    """How the timer stands; times in systemd's own words. result: how the last run ended, "success" or what systemd calls the failure;
    "" if there was none since the machine started."""

    is_on: bool
    last: str = ""
    next: str = ""
    result: str = ""


def read_timer(host: Host, paths: Paths) -> Timer:
    """Ask systemd. A service that never ran has the result "success" there, too, so its end is looked at."""
    if not host.exists(paths.systemd / TIMER):
        return Timer(is_on=False)
    timer = _read_properties(host, TIMER, "ActiveState,NextElapseUSecRealtime")
    service = _read_properties(host, SERVICE, "Result,ExecMainExitTimestamp")
    last = service.get("ExecMainExitTimestamp", "")
    return Timer(
        timer.get("ActiveState") == "active",
        last,
        timer.get("NextElapseUSecRealtime", ""),
        service.get("Result", "") if last else "",
    )


def _read_properties(host: Host, unit: str, names: str) -> dict[str, str]:  # noqa: PLR0917
    answer = host.query(["systemctl", "show", unit, "-p", names], timeout_s=15)
    return dict(line.split("=", 1) for line in answer.stdout.splitlines() if "=" in line)


def plan_default(run: Run) -> Plan:
    """The timer on a node that kb makes. On one that another tool made, or where it was switched off, it is the admin's to switch on."""
    if not has_timers(run.host):
        return Plan(details=["no systemd here: no timer renews the certificates"])
    is_adopted = any(run.host.exists(run.paths.adopted(workflow)) for workflow in ("init", "join"))
    if run.host.exists(off_mark(run.paths)) or (is_adopted and not run.host.exists(run.paths.systemd / TIMER)):
        return Plan()
    try:
        return plan_timer(run)
    except HostError as error:  # no Python that root may run: the node works without it
        return Plan(notes=[f"no timer renews the certificates: {error}"])


def plan_timer(run: Run) -> Plan:
    """The two units, and the copy of kb that they run. Raises when it is applied: HostError (unit-not-started, folder-of-another-user)."""
    pyz = own_copy.find_running_pyz()
    command = own_copy.plan_command(run.host, pyz, paths=run.paths)
    texts = {name: yaml_files.fill_template(f"systemd/{name}", {"command": command}) for name in (SERVICE, TIMER)}
    files = (File(run.paths.systemd / name, text) for name, text in texts.items())
    return Plan(Group((*plan_program(run, pyz), *files), guard=Unit(TIMER, wanted_by=_TIMERS)))


def plan_no_timer(run: Run) -> Plan:
    """Neither unit. The copy of kb stays: other units may run it."""
    files = [run.paths.systemd / name for name in (TIMER, SERVICE)]

    def find(ground: Ground) -> list[str]:
        return [str(path) for path in files if ground.host.exists(path)]

    def take_away(ground: Ground) -> None:
        if not find(ground):
            return
        Unit(TIMER, wanted_by=_TIMERS).take_back(ground.host)
        for path in files:
            ground.host.remove(path)
        services.forget_removed_units(ground.host)

    return Plan(Gone("the timer that renews certificates", find, take_away, ("auto-renewal",)))
