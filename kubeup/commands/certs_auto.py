"""The command certs auto: switches the timer that renews certificates on or off, says how it stands, and is what the timer runs.

What the timer did is in its journal, and in an Event of this node. kubeadm has no counterpart.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from kubeup.commands import certs, launcher, timers
from kubeup.commands.launcher import Launch
from kubeup.engine.step import Phase
from kubeup.errors import HostError, KbError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.machine.waiting import watch
from kubeup.paths import Paths

with lazily:
    from kubeup.doctor import node_files
    from kubeup.phases import auto_renewal
    from kubeup.upgrade import kept

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.doctor.node_files import Patient

_LOCK_PATIENCE_S = 900.0
"""How long another kb may work on this node before the timer's run gives up."""


def certs_auto(call: Invocation) -> int:
    """Run `kb certs auto on|off|status`, or `run` for the timer."""
    verb = timers.read_verb(call)
    launch = Launch(call)
    if verb != "status":
        launch.require_root()
    if verb == "run":
        if launch.is_dry:
            raise UsageError(
                "kb certs auto run --dry-run",
                cause="run does at once what the timer does, and has no dry run",
                remedy="see what is about to end: kb certs check-expiration",
                code="usage",
            )
        return _run_now(launch)
    if not auto_renewal.has_timers(launch.local):
        raise timers.no_timers(timers.say_own_line("17 3 * * *", "certs auto run"))
    return _show(launch) if verb == "status" else _switch(launch, is_on=verb == "on")


# ---- on, off, status


def _switch(launch: Launch, *, is_on: bool) -> int:
    patient = _read(launch)
    paths = patient.paths
    mark = auto_renewal.off_mark(paths)
    switch_off = Phase(
        "auto-renewal-off", "Remove the timer that renews certificates", plan=auto_renewal.plan_no_timer, live="node"
    )
    with launch.locked(paths) as node_state:
        launcher.require_same_node(node_state, patient.config, paths=paths)
        ctx = launcher.make_run(launch.target, patient.config, paths=paths, report=launch.call.report)
        if is_on:
            launch.target.remove(mark)
            result = launch.work(ctx, node_state)
        else:
            launch.target.make_dir(paths.state_dir, mode=0o700)
            launch.target.write_file(mark, "", mode=0o600)
            # by its name, so that it is done again whatever an earlier run recorded
            result = launch.work(ctx, node_state, phases=(switch_off,), only=switch_off.name)
    launch.print_result(result)
    return 0


def _show(launch: Launch) -> int:
    """Print whether the timer is on, when it ran and when it runs next, and how the last run ended."""
    found = auto_renewal.read_timer(launch.local, Paths())
    if launch.call.output != "text":
        launch.call.print_value({"on": found.is_on, "last": found.last, "next": found.next, "result": found.result})
        return 0
    launch.call.print(f"automatic renewal is {'on' if found.is_on else 'off'}")
    for name, value in (("last", found.last), ("result", found.result), ("next", found.next)):
        if value:
            launch.call.print(f"  {name}: {value}")
    return 0


def _read(launch: Launch) -> Patient:
    """This node, by its files. Raises HostError (not-a-node)."""
    patient = node_files.read_patient(launch.local, Paths())
    if patient.is_member:
        return patient
    raise HostError(
        "this machine is no node",
        cause=f"there is no {patient.paths.kubelet_config}",
        remedy="make it one: kb init, or kb join",
        code="not-a-node",
    )


# ---- what the timer runs


def _run_now(launch: Launch) -> int:
    """Renew what is due, and tell the cluster what was done, or why not. Raises what the renewal raises, after that is told."""
    patient = _read(launch)
    launch.call = replace(launch.call, words=["all"])
    _wait_for_others(launch)
    with contextlib.suppress(KbError):  # whoever upgrades next is told of a damaged record
        kept.drop_expired(launch.local, patient.paths)
    try:
        done = certs.renew_due(launch)
    except KbError as error:
        launcher.write_event(
            launch, patient, by="kb-certs", reason="CertificateRenewalFailed", message=str(error), kind="Warning"
        )
        raise
    if done.renewed:
        launcher.write_event(
            launch, patient, by="kb-certs", reason="CertificatesRenewed", message=f"renewed: {', '.join(done.renewed)}"
        )
    if done.left:
        verb = "has" if len(done.left) == 1 else "have"
        why = f"{', '.join(done.left)} {verb} less than a fifth of their life left; the key of their authority is not on this node"
        launcher.write_event(launch, patient, by="kb-certs", reason="CertificatesExpiring", message=why, kind="Warning")
    return 0


def _wait_for_others(launch: Launch) -> None:
    """Wait until no other kb works on this node. If one still does in the end, the renewal says so."""
    local = launch.local

    def look() -> str:
        try:
            with local.lock(Paths.lock, "kb certs auto"):
                return ""
        except HostError as error:
            return str(error)

    watch(local, look, timeout_s=_LOCK_PATIENCE_S, poll_s=5.0)
