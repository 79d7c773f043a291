"""The commands upgrade rollback and upgrade finish: take this node back to what it ran before its upgrade, or drop what is kept for that."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kubeup.commands import launcher, mirror_upkeep, upgrade, upgrade_outlook
from kubeup.commands.launcher import Launch
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.yaml_files import dump_yaml, is_same_yaml, load_mapping

with lazily:
    from kubeup.doctor import node_files
    from kubeup.phases import upgrade_rollback, upgrade_run
    from kubeup.swap import store
    from kubeup.upgrade import kept, target, three_way

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.engine.state import State
    from kubeup.machine.host import Host


SWAP = "swap"
"""The phase that swaps the static pods."""


def rollback(call: Invocation) -> int:
    """Take this node back, or go on with it."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    launch = Launch(call)
    launch.require_root()
    with launch.locked(Paths()) as node_state:
        found = kept.load(launch.local, Paths())
        if found is None:
            raise upgrade_rollback.nothing_kept()
        if found.status == kept.TAKEN_BACK:
            call.report.note(f"this node is back at {found.former} already")
            return 0
        _continue_swap(launch, node_state, found=found)
        ctx = _make_run(launch, found)
        phases = [phase for phase in call.command.phases if ctx.config.is_control_plane or not phase.on]
        phases = [phase for phase in phases if ctx.texts or not phase.on]
        result = launch.work(ctx, node_state, phases=phases)
        staying = _find_staying(launch, ctx, found=found)
        if not launch.is_dry:
            kept.end(launch.local, Paths(), status=kept.RUNNING if staying else kept.TAKEN_BACK)
    launch.print_result(result)
    if call.output == "text" and not launch.is_dry and not result.results.remaining:
        call.tell(_say_end(found, staying))
    return 0


def _say_end(found: kept.Kept, staying: Sequence[str]) -> str:
    if staying:
        return f"the kubelet is back at {found.former}; {', '.join(staying)} stay as they are, and what they ran before is still kept"
    return f"this node is back at {found.former}; to upgrade it again: kb upgrade node, or kb upgrade apply on the first one"


def _find_staying(launch: Launch, ctx: upgrade_run.UpgradeRun, *, found: kept.Kept) -> list[str]:
    """The static pods that a rollback of the kubelet alone leaves new. Their former manifests and images are kept for another rollback."""
    if ctx.texts or not ctx.config.is_control_plane:
        return []
    pods, _ = upgrade_rollback.keep_etcd(_list_pods(launch.local, ctx.paths, found))
    return [pod.name for pod in pods if pod.is_changed]


def _continue_swap(launch: Launch, node_state: State, *, found: kept.Kept) -> None:
    """End a swap that a rollback began and that was cut off: until then this node's API server may be out. Raises HostError (swap-cut-off) if
    something else began it, and KbError from the swap."""
    cut_off = store.load_cut_off(launch.local, Paths())
    if cut_off is None:
        return
    if launch.is_dry or not launcher.is_begun(node_state, f"{launch.call.command.workflow}/{SWAP}"):
        raise launcher.swap_cut_off(cut_off, node_state)
    ctx = _make_run(launch, found, formers=cut_off.formers)
    phases = tuple(phase for phase in launch.call.command.phases if phase.name == SWAP)
    launch.work(ctx, node_state, phases=phases)


def _make_run(
    launch: Launch, found: kept.Kept, *, formers: Mapping[str, str] = types.MappingProxyType({})
) -> upgrade_run.UpgradeRun:
    """formers: the manifests that a swap which was cut off may have taken out of their places, by component."""
    call, local = launch.call, launch.local
    patient = node_files.read_patient(store.with_missing(local, Paths(), texts=formers), Paths())
    base = launcher.make_run(launch.target, patient.config, paths=patient.paths, report=call.report)
    if not patient.is_control_plane:
        base = dataclasses.replace(base, caller=launcher.kubelet_caller(launch.target, patient.paths))
    is_kubelet_only = bool(call.flags.get("kubelet-only")) or not patient.is_control_plane
    keeps = upgrade_outlook.read_keeps(call)
    targets: tuple[target.Target, ...] = ()
    if not is_kubelet_only and not formers:
        pods, told = upgrade_rollback.keep_etcd(_list_pods(local, patient.paths, found))
        if told:
            call.report.note(told)
        targets = tuple(_plan_target(local, patient.paths, pod, keeps=keeps is not False) for pod in pods)
    return upgrade_run.UpgradeRun(
        **base.values(),
        texts=tuple((one.name, one.wanted) for one in targets),
        targets=targets,
        keep_edits=keeps,
        **launcher.of_a_swap(call),
        former=found.wanted,
        is_first=False,
        drains=not call.flags.get("no-drain"),
        drain_s=upgrade.read_drain_timeout(call),
        command="kb upgrade rollback",
    )


def _list_pods(local: Host, paths: Paths, found: kept.Kept) -> list[store.Pod]:  # noqa: PLR0917
    """The static pods whose former manifests are kept: from the present ones to those."""
    pods = []
    for name in store.COMPONENTS:
        path = paths.manifest(name)
        if found.files.get(str(path)) and local.exists(path):
            pods.append(store.Pod(name, local.read_text(path), local.read_text(kept.copy_of(paths, path))))
    return pods


def _plan_target(local: Host, paths: Paths, pod: store.Pod, *, keeps: bool) -> target.Target:  # noqa: PLR0917
    """Three ways: as the upgrade left it, as it is, as it was before."""
    copy = kept.after_of(paths, paths.manifest(pod.name))
    base = local.read_text(copy) if local.exists(copy) else _read_swapped(local, paths, pod) or pod.former
    after, found, wanted = (load_mapping(text, pod.name) for text in (base, pod.former, pod.wanted))
    merge = three_way.Merge(pod.name, keeps=keeps)
    merged = merge.run(after, found, wanted=wanted, recorded=after)
    text = pod.wanted if merged == wanted else dump_yaml(merged)
    return target.Target(pod.name, pod.former, base, text, tuple(merge.edits), tuple(merge.conflicts))


def _read_swapped(local: Host, paths: Paths, pod: store.Pod) -> str:  # noqa: PLR0917
    """What the last swap put in, if it was this upgrade's; "" if that is not known."""
    last = store.load(local, paths)
    swapped = next((one for one in (last.pods if last is not None else ()) if one.name == pod.name), None)
    return swapped.wanted if swapped is not None and is_same_yaml(swapped.former, pod.wanted) else ""


def finish(call: Invocation) -> int:
    """Remove what is kept of the last upgrade of this node."""
    launch = Launch(call)
    launch.require_root()
    with launch.locked(Paths()):
        found = kept.load(launch.local, Paths())
        if found is None:
            call.report.note("nothing is kept of an upgrade of this node")
            return 0
        if found.status == kept.RUNNING:
            launcher.agree(
                call,
                f"the upgrade to {found.wanted} has not ended here: without what is kept, this node cannot be taken back",
            )
        if not launch.is_dry:
            kept.finish(launch.local, Paths())
    call.report.note(f"removed what was kept of {found.former}: this node cannot be taken back to it any more")
    spare = "" if launch.is_dry else mirror_upkeep.say_spare(launch)
    if spare:
        call.tell(f"in the mirror of this node: {spare}")
    return 0
