"""The commands reconfigure confirm and back, and reconfigure wait, which a unit of systemd's runs: how a change that is being tried ends."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kubeup.commands import launcher, static_pods
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.waiting import watch
from kubeup.paths import Paths

with lazily:
    from kubeup.doctor import node_files
    from kubeup.engine import step
    from kubeup.phases import reconfigure_config, tried_swap
    from kubeup.swap import manifests, proof, store, try_record

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.engine.runner import RunResult
    from kubeup.engine.state import State
    from kubeup.engine.step import Phase
    from kubeup.machine.host import Host
    from kubeup.phases.static_pods_swap import SwapRun

LOOK_S = 2.0
"""How often the unit looks how much time is left: a confirmation, or a swap that ended, may have changed it."""
BOOT_S = 150.0
"""How long the kubelet and the API server may take after a boot, before the way back begins without them."""
_UNIT = "kb-try"


def confirm(call: Invocation) -> int:
    """Keep the change."""
    launch, paths = Launch(call), Paths()
    launch.require_root()
    with launch.locked(paths) as node_state:
        one = _load(launch.local, paths)
        tried_swap.check_confirmed(one)
        patient = node_files.read_patient(launch.local, paths)
        ctx = launcher.make_run(launch.target, patient.config, paths=patient.paths, report=call.report)
        if one.config:
            plan = functools.partial(reconfigure_config.plan_tried, text=one.config, made_from=one.config_from)
            does = "Store the configuration that was tried in the cluster, and keep the former one"
            phase = step.Phase("upload-config/kubeadm", does, plan=plan, live="cluster")
            launch.work(ctx, node_state, phases=(phase,), workflow="reconfigure", only=phase.name)
        if not launch.is_dry:
            tried_swap.end(ctx, status=try_record.CONFIRMED)
    kept = f"the change of {', '.join(one.names)}"
    call.report.note(f"{kept} would stay" if launch.is_dry else f"{kept} stays")
    if one.config and not launch.is_dry:
        call.tell("on every other control plane: kb reconfigure node")
    return 0


def back(call: Invocation) -> int:
    """Go back at once."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    launch, paths = Launch(call), Paths()
    launch.require_root()
    with launch.locked(paths) as node_state:
        last = try_record.load(launch.local, paths)
        if last is not None and last.status == try_record.BACK and static_pods.lacks_gate(call, node_state):
            call.report.note("this node has gone back already; only the check of the cluster is left")
            result = static_pods.run_gate(launch, node_state)
        else:
            one = _load(launch.local, paths)
            ctx = _make_run(launch, node_state, one=one, agrees=bool(call.flags.get("yes")))
            result = _go_back(launch, node_state, ctx=ctx, phases=call.command.phases)
    launch.print_result(result)
    return 0


def _load(local: Host, paths: Paths) -> try_record.Try:
    """Raises HostError (nothing-tried, try-unreadable)."""
    last = try_record.load(local, paths)
    if last is None or not last.is_pending:
        raise tried_swap.no_try(last)
    return last


def _make_run(
    launch: Launch, node_state: State, *, one: try_record.Try, agrees: bool, is_in_unit: bool = False
) -> SwapRun:
    """The run of the way back. What was cut off on the way there is taken back; what was cut off on the way back goes on."""
    cut_off = store.load_cut_off(launch.local, Paths())
    if cut_off is None and not launch.is_dry:
        manifests.remove_leftovers(launch.local, Paths())
    seen = store.with_missing(launch.local, Paths(), texts=cut_off.formers if cut_off is not None else {})
    goes_on = cut_off is not None and one.leads_back(cut_off)
    fields = {"agree": launch.call.report.note} if agrees else {}
    return static_pods.make_swap_run(
        launch,
        node_state,
        patient=node_files.read_patient(seen, Paths()),
        texts=one.formers,
        is_undo=not goes_on,
        command=tried_swap.BACK,
        tells_edits=False,
        is_in_unit=is_in_unit,
        **fields,
    )


def _go_back(launch: Launch, node_state: State, *, ctx: SwapRun, phases: Sequence[Phase]) -> RunResult:
    """Raises KbError, after it is written down when the way back is tried again."""
    try:
        return launch.work(ctx, node_state, phases=phases)
    except KbError as error:
        failed = None if launch.is_dry else tried_swap.note_failure(launch.local, ctx.paths, error=error)
        if failed is not None:
            launch.call.report.warn(f"this node has not gone back; that is tried again at {failed.ends}")
        raise


# ---- what the unit runs


def wait(call: Invocation) -> int:
    """Wait for the end of the trial, and go back then. Ends without success where it has to be run again: systemd does so after a while."""
    launch, paths = Launch(call), Paths()
    launch.require_root()
    local = launch.local
    one = try_record.load_pending(local, paths)
    has_rebooted = one is not None and not try_record.is_of_this_boot(local, one)
    if has_rebooted:
        _count_from_here(local, paths)
    watch(local, functools.partial(_say_left, local, paths), timeout_s=2 * tried_swap.AT_MOST_S, poll_s=LOOK_S)
    with launch.locked(paths) as node_state:
        one = try_record.load_pending(local, paths)
        if one is None:
            tried_swap.remove_unit(local, paths, is_in_unit=True)
            return 0
        if try_record.left_s(local, one) > 0:
            return 1
        _end_trial(launch, node_state, one=one, has_rebooted=has_rebooted)
    return 0


def _count_from_here(local: Host, paths: Paths) -> None:
    """From the boot on the clock counts no more, so that it may be set."""
    with local.lock(paths.lock, "kb reconfigure wait"):  # type: ignore[attr-defined]
        one = try_record.load_pending(local, paths)
        if one is not None and one.status == try_record.WAITING:
            left_s = try_record.left_s(local, one)
            try_record.save(local, paths, one=try_record.set_end(local, one, in_s=left_s))


def _say_left(local: Host, paths: Paths) -> str:
    """What is waited for, in words; "" if the trial is over, or it is time to go back and no other kb works on this node: one that swaps
    ends by itself, and one that was killed holds no lock."""
    one = try_record.load_pending(local, paths)
    if one is None:
        return ""
    left_s = try_record.left_s(local, one)
    if left_s > 0:
        return f"{left_s:.0f} s are left"
    try:
        with local.lock(paths.lock, "kb reconfigure wait"):  # type: ignore[attr-defined]
            return ""
    except HostError as error:
        return str(error)


def _end_trial(launch: Launch, node_state: State, *, one: try_record.Try, has_rebooted: bool) -> None:
    """Go back, and tell the cluster. Raises KbError."""
    names = ", ".join(one.names)
    ctx = _make_run(launch, node_state, one=one, agrees=True, is_in_unit=True)
    if has_rebooted and store.load_cut_off(launch.local, ctx.paths) is None:
        watch(launch.local, lambda: _say_missing(ctx), timeout_s=BOOT_S, poll_s=LOOK_S)
    patient = node_files.read_patient(store.with_missing(launch.local, ctx.paths, texts=dict(one.formers)), ctx.paths)
    phases = [phase for phase in launch.call.command.phases if phase.name != static_pods.GATE]
    try:
        _go_back(launch, node_state, ctx=ctx, phases=phases)
    except KbError as error:
        told = f"the change of {names} was not confirmed, and going back failed: {error}. Remedy: {error.remedy}"
        launcher.write_event(launch, patient, by=_UNIT, reason="ChangeNotTakenBack", message=told, kind="Warning")
        raise
    told = f"the change of {names} was not confirmed in time: this node went back to what it ran before"
    launch.call.report.note(told)
    launcher.write_event(launch, patient, by=_UNIT, reason="ChangeTakenBack", message=told)


def _say_missing(ctx: SwapRun) -> str:
    if not services.is_active(ctx.host, "kubelet"):
        return "the kubelet does not run"
    return "" if proof.is_api_up(ctx) else "the API server does not answer"
