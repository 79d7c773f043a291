"""The timer that renews a node's certificates before they end, as two units of kb's own.

This module decides where the timer runs, and reads how it stands. It does not know what is renewed. A worker has none unless it is
switched on there: it has but one certificate that does not renew itself, the kubelet's own, which no caller verifies. kubeadm has no
counterpart: it leaves the date to the admin's calendar.
"""

from __future__ import annotations

from pathlib import Path

from kubeup.engine.plan import Plan
from kubeup.engine.run import Run
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.phases import own_timer

_NAME = "kb-certs"
SERVICE, TIMER = own_timer.units_of(_NAME)


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
    return own_timer.plan_timer(run, _NAME, values={})


def plan_no_timer(run: Run) -> Plan:
    """Neither unit."""
    return own_timer.plan_no_timer(run, _NAME, what="the timer that renews certificates", phase="auto-renewal")
