"""The commands upgrade rollback and upgrade finish: take this node back to what it ran before its upgrade, or drop what is kept for that."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from kubeup.commands import launcher, upgrade
from kubeup.commands.launcher import Launch
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.cluster import api as kubeapi
    from kubeup.doctor import node_files
    from kubeup.engine import run
    from kubeup.phases import upgrade_rollback, upgrade_run
    from kubeup.swap import store
    from kubeup.upgrade import kept

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.machine.host import Host


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
        ctx = _make_run(launch, found)
        phases = [phase for phase in call.command.phases if ctx.config.is_control_plane or not phase.on]
        phases = [phase for phase in phases if ctx.texts or not phase.on]
        result = launch.work(ctx, node_state, phases=phases)
        if not launch.is_dry:
            kept.end(launch.local, Paths(), status=kept.TAKEN_BACK)
    launch.print_result(result)
    if call.output == "text" and not launch.is_dry and not result.results.remaining:
        call.tell(
            f"this node is back at {found.former}; to upgrade it again: kb upgrade node, or kb upgrade apply on the first one"
        )
    return 0


def _make_run(launch: Launch, found: kept.Kept) -> upgrade_run.UpgradeRun:
    call, local = launch.call, launch.local
    patient = node_files.read_patient(local, Paths())
    base = launcher.make_run(launch.target, patient.config, paths=patient.paths, report=call.report)
    if not patient.is_control_plane:
        base = dataclasses.replace(
            base, caller=run.Caller(lambda _: _kubelet_api(launch.target, patient.paths), "kubelet")
        )
    is_kubelet_only = bool(call.flags.get("kubelet-only")) or not patient.is_control_plane
    return upgrade_run.UpgradeRun(
        **{item.name: getattr(base, item.name) for item in dataclasses.fields(base)},
        texts=() if is_kubelet_only else _choose_texts(local, patient.paths, found),
        agree=lambda question: launcher.agree(call, question),
        before_stop=str(call.flags.get("before-stop") or ""),
        after_start=str(call.flags.get("after-start") or ""),
        former=found.wanted,
        is_first=False,
        drains=not call.flags.get("no-drain"),
        drain_s=upgrade.read_drain_timeout(call),
        command="kb upgrade rollback",
    )


def _choose_texts(local: Host, paths: Paths, found: kept.Kept) -> tuple[tuple[str, str], ...]:  # noqa: PLR0917
    """The former manifests that can go back."""
    pods = []
    for name in store.COMPONENTS:
        path = paths.manifest(name)
        if found.files.get(str(path)) and local.exists(path):
            pods.append(store.Pod(name, local.read_text(path), local.read_text(kept.copy_of(paths, path))))
    chosen, _ = upgrade_rollback.keep_etcd(pods)
    return tuple((pod.name, pod.wanted) for pod in chosen)


def _kubelet_api(host: Host, paths: Paths) -> kubeapi.Api:
    """The API server as this node's kubelet calls it."""
    return kubeapi.Api(host, kubeapi.read_identity(host, paths.kubernetes / "kubelet.conf"), retry_s=20)


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
    return 0
