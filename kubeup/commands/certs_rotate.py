"""The commands certs rotate-sa and certs rotate-ca: which pair is rotated, and how far this run may go."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from kubeup.commands import launcher, static_pods
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, KbError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.cluster import objects
    from kubeup.config import load_join, problems
    from kubeup.doctor import node_files
    from kubeup.engine import state
    from kubeup.phases import (
        rotate_cluster,
        rotate_etcd,
        rotate_front_proxy,
        rotate_sa,
        rotate_worker,
        rotation,
        static_pods_swap,
    )
    from kubeup.swap import store

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.config.types import NodeConfig
    from kubeup.doctor.node_files import Patient
    from kubeup.engine.run import Run
    from kubeup.engine.runner import RunResult
    from kubeup.engine.state import State
    from kubeup.phases.static_pods_swap import SwapRun


def rotate_sa_key(call: Invocation) -> int:
    """Take this control plane through the stages of a rotation of the key that signs tokens, or back."""
    return _rotate(call, rotate_sa.SERVICE_ACCOUNTS)


def rotate_ca(call: Invocation) -> int:
    """The same for an authority. Raises UsageError (usage)."""
    kinds = {
        kind.word: kind
        for kind in (rotate_cluster.CLUSTER_AUTHORITY, rotate_etcd.ETCD_AUTHORITY, rotate_front_proxy.FRONT_PROXY)
    }
    word = call.words[0] if len(call.words) == 1 else ""
    if call.flags.get("list") and not call.words:
        return launcher.list_phases(call)
    if word not in kinds:
        near = problems.suggest(word, tuple(kinds)) if word else f"one of {', '.join(kinds)}"
        raise UsageError(
            f"kb certs rotate-ca {' '.join(call.words)}".rstrip(),
            cause=f"it takes one authority: {near}",
            remedy="kb certs rotate-ca cluster",
            code="usage",
        )
    return _rotate(call, kinds[word])


def _rotate(call: Invocation, kind: rotation.Kind) -> int:
    if call.flags.get("list"):
        return launcher.list_phases(call)
    if call.flags.get("undo") and call.flags.get("finish"):
        raise UsageError(
            f"{kind.command} --undo --finish",
            cause="one goes back, and the other one begins what cannot be taken back",
            remedy=f"go back on every control plane first: {kind.command} --undo",
            code="usage",
        )
    launch = Launch(call)
    launch.require_root()
    if kind.takes_workers:
        patient = node_files.read_patient(launch.local, Paths())
        if not patient.is_control_plane:
            return _follow(launch, patient, kind=kind)
    with launch.locked(Paths()) as node_state:
        _end_cut_off(launch, node_state, kind=kind)
        ctx = _make_run(launch, node_state, kind=kind)
        result = _work(launch, ctx)
    _print(launch, result, kind=kind)
    return 0


def _work(launch: Launch, ctx: Run) -> RunResult:
    phases = tuple(phase for phase in launch.call.command.phases if ctx.config.is_control_plane or not phase.on)
    kept = state.State(launch.target, ctx.paths, is_kept=False)
    return launch.work(ctx, kept, phases=phases, keeps_journal=False)


def _follow(launch: Launch, patient: Patient, *, kind: rotation.Kind) -> int:
    """The part of a worker. Raises HostError (not-a-control-plane, no-node)."""
    if any(launch.call.flags.get(name) for name in ("undo", "finish", "restart-workloads", "force")):
        raise launcher.no_control_plane(patient.paths, then=f"{kind.command} --continue")
    if not patient.is_member:
        raise HostError(
            "this machine is no node of a cluster",
            cause=f"there is no {patient.paths.kubelet_config}",
            remedy=f"run it on the nodes that a control plane names: {kind.command} --continue",
            code="no-node",
        )
    with launch.locked(patient.paths) as node_state:
        launcher.require_same_node(node_state, patient.config, paths=patient.paths)
        base = launcher.make_run(launch.target, patient.config, paths=patient.paths, report=launch.call.report)
        caller = launcher.kubelet_caller(launch.target, patient.paths)
        values = {**base.values(), "caller": caller, "command": kind.command, "title": kind.title}
        result = _work(launch, rotate_worker.WorkerRun(**values))
    _print(launch, result, kind=kind)
    return 0


def _end_cut_off(launch: Launch, node_state: State, *, kind: rotation.Kind) -> None:
    """End a restart of static pods that was cut off: until then this node's API server may be out. One that changes manifests is refused
    before. Raises HostError (swap-cut-off), and KbError from the swap."""
    cut_off = store.load_cut_off(launch.local, Paths())
    if cut_off is None:
        return
    if launch.is_dry:
        raise launcher.swap_cut_off(cut_off)
    static_pods_swap.swap_pods(_make_run(launch, node_state, kind=kind, has_api=False))


def _make_run(launch: Launch, node_state: State, *, kind: rotation.Kind, has_api: bool = True) -> rotation.RotationRun:
    """has_api: whether the API can be asked: while a restart is cut off, the only API server may be the one that is out, and would be waited for
    in vain. Raises HostError (not-a-control-plane, node-renamed)."""
    flags = launch.call.flags
    cut_off = store.load_cut_off(launch.local, Paths())
    seen = store.with_missing(launch.local, Paths(), texts=cut_off.formers if cut_off is not None else {})
    base = static_pods.make_swap_run(
        launch,
        node_state,
        patient=node_files.read_patient(seen, Paths()),
        texts=(),
        command=kind.command,
        tells_edits=False,
    )
    return rotation.RotationRun(
        **{**base.values(), "config": _with_stored(base) if has_api else base.config},
        kind=kind,
        continues=bool(flags.get("continue")),
        finishes=bool(flags.get("finish")),
        turns=bool(flags.get("undo")),
        restarts=bool(flags.get("restart-workloads")),
        force=bool(flags.get("force")),
    )


def _with_stored(base: SwapRun) -> NodeConfig:
    """This node's configuration with what the cluster stores of keys and lives, which no file of the node tells. If it cannot be read now,
    the phases say so."""
    try:
        text = objects.read_config_key(base.api, "kubeadm-config", key="ClusterConfiguration")
        found = load_join.parse_stored_cluster(base.host, text, warnings=[])
    except KbError:
        return base.config
    cluster = dataclasses.replace(
        base.config.cluster,
        encryption_algorithm=found.encryption_algorithm,
        feature_gates=found.feature_gates,
        certificate_validity_period_s=found.certificate_validity_period_s,
        ca_certificate_validity_period_s=found.ca_certificate_validity_period_s,
    )
    return dataclasses.replace(base.config, cluster=cluster)


def _print(launch: Launch, result: RunResult, *, kind: rotation.Kind) -> None:
    call = launch.call
    launch.print_result(result)
    if call.output != "text" or launch.is_dry:
        return
    left = result.results.remaining
    if left:
        call.tell("\n".join(["still to be done:", *(f"  {one}" for one in left)]))
    elif left is not None:
        call.tell(f"the rotation of {kind.title} has ended: every control plane accepts one alone")
