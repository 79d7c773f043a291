"""The command upgrade runtime: another containerd on this node, watched; or the former one again."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from kubeup.commands import launcher, upgrade
from kubeup.commands.launcher import Launch
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.doctor import node_files
    from kubeup.phases import upgrade_run, upgrade_runtime

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation

COMMAND = "kb upgrade runtime"


def runtime(call: Invocation) -> int:
    """Replace containerd, continue that, or take it back (--undo)."""
    launch = Launch(call)
    launch.require_root()
    with launch.locked(Paths()):
        ctx = _make_run(launch)
        if call.flags.get("undo"):
            upgrade_runtime.take_back(ctx)
            call.tell("the former containerd runs again, with its configuration")
            return 0
        ready = upgrade_runtime.prepare(ctx)
        if ready is None:
            call.tell("this containerd runs already: nothing to do")
            return 0
        call.report.note(f"containerd {ready.former} -> {ready.wanted}; {_say_config(ready)}")
        _agree(launch, ctx)
        took_s = upgrade_runtime.RuntimeChange(ctx, ready).carry_out()
    call.tell(
        f"containerd {ready.wanted} runs; the node was Ready with it after {took_s:.0f} s. "
        f"What ran before is kept for seven days: {COMMAND} --undo"
    )
    return 0


def _say_config(ready: upgrade_runtime.Ready) -> str:
    if ready.new_text == ready.text:
        return f"{ready.config} stays as it is"
    return f"{ready.config} is written in its newer form, which means the same"


def _agree(launch: Launch, ctx: upgrade_run.UpgradeRun) -> None:
    if not ctx.drains:
        name = ctx.config.node.name
        launcher.agree(
            launch.call,
            f"the pods of node {name} stay while its runtime is away for some seconds: they run on, but what asks the runtime "
            "(kubectl exec and logs, probes that run a program) fails meanwhile",
        )


def _make_run(launch: Launch) -> upgrade_run.UpgradeRun:
    call = launch.call
    patient = node_files.read_patient(launch.local, Paths())
    config = dataclasses.replace(patient.config, kb=upgrade.with_sources(call, patient.config.kb))
    base = launcher.make_run(launch.target, config, paths=patient.paths, report=call.report)
    if not patient.is_control_plane:
        base = dataclasses.replace(base, caller=launcher.kubelet_caller(launch.target, patient.paths))
    return upgrade_run.UpgradeRun(
        **base.values(),
        texts=(),
        agree=lambda question: launcher.agree(call, question),
        former=config.cluster.kubernetes_version,
        is_first=False,
        drains=not call.flags.get("no-drain"),
        drain_s=upgrade.read_drain_timeout(call),
        command=COMMAND,
    )
