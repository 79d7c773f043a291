"""The command drift schedule: switches the timer that looks for drift on or off, says how it stands, and is what the timer runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeup.commands import drift, launcher, timers
from kubeup.commands.launcher import Launch
from kubeup.engine.step import Phase
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.doctor import node_files
    from kubeup.phases import auto_renewal, drift_timer

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation

_NAMED = 10
"""How many names an Event has."""


def drift_schedule(call: Invocation) -> int:
    """Run `kb drift schedule on|off|status`, or `run` for the timer."""
    verb = timers.read_verb(call)
    launch = Launch(call)
    launch.require_root()
    if verb == "run":
        return _run_now(launch)
    if not auto_renewal.has_timers(launch.local):
        raise timers.no_timers(timers.say_own_line("17 4 * * *", "drift schedule run"))
    if verb == "status":
        is_on = launch.local.exists(Paths().systemd / drift_timer.TIMER)
        if call.output != "text":
            call.print_value({"on": is_on})
        else:
            call.print(f"the daily look for drift is {'on' if is_on else 'off'}")
        return 0
    return _switch(launch, is_on=verb == "on")


def _switch(launch: Launch, *, is_on: bool) -> int:
    patient = node_files.read_patient(launch.local, Paths())
    paths = patient.paths
    drift.require_node(patient)
    switch_off = Phase(
        "drift-timer-off", "Remove the timer that looks for drift", plan=drift_timer.plan_no_timer, live="node"
    )
    with launch.locked(paths) as node_state:
        launcher.require_same_node(node_state, patient.config, paths=paths)
        ctx = launcher.make_run(launch.target, patient.config, paths=paths, report=launch.call.report)
        if is_on:
            result = launch.work(ctx, node_state)
        else:
            # by its name, so that it is done again whatever an earlier run recorded
            result = launch.work(ctx, node_state, phases=(switch_off,), only=switch_off.name)
    launch.print_result(result)
    return 0


def _run_now(launch: Launch) -> int:
    """Look, print what drifted for the journal, and tell the cluster. Returns 1 if something did."""
    launch.only_looks = True
    ground, looked = drift.look_now(launch)
    drift.show(launch, ground, looked=looked)
    names = list(dict.fromkeys(one.name for one in looked.drift))
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        text = f"{len(names)} drifted: {', '.join(names[:_NAMED])}{more}; see it: kb drift"
        launcher.write_event(launch, ground.patient, by="kb-drift", reason="DriftFound", message=text, kind="Warning")
    return drift.DRIFTED if names else 0
