"""The commands node reboot, and node returned, which a unit runs after the boot. They work on this node alone: no other one is reached."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from kubeup.commands import launcher, upgrade
from kubeup.commands.launcher import Launch
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.cluster import reboot_turn
    from kubeup.doctor import node_files
    from kubeup.phases import node_reboot as phases
    from kubeup.phases import tried_swap

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.engine.state import State
    from kubeup.phases.node_reboot import RebootRun


def reboot(call: Invocation) -> int:
    """Empty this node and reboot it; or finish a reboot from which the machine is back."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    launch = Launch(call)
    launch.require_root()
    with launch.locked(Paths()) as node_state:
        ctx = _make_run(launch)
        launcher.require_same_node(node_state, ctx.config, paths=ctx.paths)
        begun = phases.find_begun(launch.local, ctx.paths)
        if begun and begun != phases.read_boot_id(launch.local):
            return _finish(launch, node_state, ctx=ctx)
        why = phases.is_required(launch.local) if call.flags.get("if-required") else "it was asked for"
        if begun or why:
            call.report.note(f"a reboot is due: {why}" if not begun else "a reboot of this node was begun: going on")
            launch.print_result(launch.work(ctx, node_state))
            return 0
        if ctx.is_server and not launch.is_dry:
            reboot_turn.provide(ctx.api)
    call.print("no reboot is due: there is no /run/reboot-required, and needs-restarting does not say so")
    return 0


def _make_run(launch: Launch) -> RebootRun:
    call = launch.call
    patient = node_files.read_patient(launch.local, Paths())
    base = launcher.make_run(launch.target, patient.config, paths=patient.paths, report=call.report)
    if not patient.is_control_plane:
        base = dataclasses.replace(base, caller=launcher.kubelet_caller(launch.target, patient.paths))
    return phases.RebootRun(
        **base.values(),
        agree=lambda question: launcher.agree(call, question),
        is_server=patient.is_control_plane,
        drains=not call.flags.get("no-drain"),
        drain_s=upgrade.read_drain_timeout(call),
    )


def _finish(launch: Launch, node_state: State, *, ctx: RebootRun, is_in_unit: bool = False) -> int:
    command = next(one for one in launch.call.commands if one.name == "node returned")
    result = launch.work(ctx, node_state, phases=command.phases, workflow=command.workflow)
    if not launch.is_dry:
        tried_swap.remove_unit(launch.local, ctx.paths, is_in_unit=is_in_unit, unit=phases.UNIT)
    launch.print_result(result)
    return 0


def returned(call: Invocation) -> int:
    """What the unit runs: nothing before the boot, the rest after it. systemd starts it again if it does not succeed."""
    launch = Launch(call)
    launch.require_root()
    paths = Paths()
    begun = phases.find_begun(launch.local, paths)
    if begun and begun == phases.read_boot_id(launch.local):
        return 0
    with launch.locked(paths) as node_state:
        if begun:
            return _finish(launch, node_state, ctx=_make_run(launch), is_in_unit=True)
        tried_swap.remove_unit(launch.local, paths, is_in_unit=True, unit=phases.UNIT)
    return 0
