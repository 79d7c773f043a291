"""The phases kubelet-config and upload-config/kubelet of `kb reconfigure`: another configuration for this node's kubelet, and for all.

A kubelet has no mode in which it only checks its configuration, so its start is watched, and the former one comes back if it does not
work. Pods run on meanwhile. The copy of the former configuration lies on the disk until then: a run that was cut off goes on, and comes
back to it. The ConfigMap follows only once this node works. With kubeadm, the ConfigMap is edited by hand, and `kubeadm upgrade node phase
kubelet-config` writes the file without a look at the kubelet.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import NoReturn

from kubeup.engine.plan import Difference, Plan, compare_documents
from kubeup.engine.run import Outputs
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.phases import kubelet_start, static_pods_swap, upgrade_kubelet, upload_config, wait_node
from kubeup.phases.reconfigure_config import ReconfigureRun
from kubeup.yaml_files import is_same_yaml, load_mapping

with lazily:
    from kubeup.cluster import api
    from kubeup.engine import records
    from kubeup.node import kubelet
    from kubeup.upgrade import target, three_way

MAX_PODS = 110
"""The kubelet's own value. Source: pkg/kubelet/apis/config/v1beta1/defaults.go"""


def plan_file(run: ReconfigureRun) -> tuple[str, list[Difference]]:
    """This node's config.yaml as it is to be, and what of it others changed since kb wrote it, which stays. Where there is no record of
    what was written, all of it becomes as configured, as kubeadm has it. Raises UsageError (patch-failed)."""
    path = run.paths.kubelet_config
    shared = kubelet_start.shared_kubelet_config(run)
    for text in shared.warnings:
        run.report.warn_once(text)
    wanted = load_mapping(kubelet_start.render_kubelet_files(run, shared)[path], str(path))
    text = run.host.read_text(path)
    found = load_mapping(text, str(path))
    recorded = target.find_recorded(records.load_records(run.host, run.paths.records), path)
    merge = three_way.Merge("kubelet", prefers_new=True)
    merged = merge.run(load_mapping(recorded, str(path)) if recorded else found, found, wanted=wanted)
    return (text if merged == found else kubelet.dump_kubelet_config(merged)), merge.edits


def change_kubelet(ctx: ReconfigureRun) -> Outputs:
    """Write the file, restart the kubelet and watch it; put the former file back if it does not work.

    Raises ClusterError: kubelet-not-changed (the former one is back), kubelet-not-taken-back; HostError."""
    run = dataclasses.replace(ctx, host=ctx.machine or ctx.host)
    path, copy = run.paths.kubelet_config, _copy_of(run)
    wanted, edits = plan_file(run)
    for edit in edits:
        run.report.note(f"not of the stored configuration: {edit}; kept")
    former, goes_on = run.host.read_text(path), run.host.exists(copy)
    if is_same_yaml(former, wanted) and not goes_on:
        return None
    for one in compare_documents(path.name, load_mapping(wanted, "it"), found=load_mapping(former, "it")):
        run.report.note(f"change: {one.as_change()}")
    needs_ready = goes_on or upgrade_kubelet.is_ready(run)
    if not goes_on:
        _refuse_fewer_pods(
            run, *(int(load_mapping(text, "it").get("maxPods") or MAX_PODS) for text in (former, wanted))
        )
        for folder in (run.paths.state_dir, copy.parent):
            run.host.make_dir(folder, mode=0o700)
        run.host.write_file(copy, former, mode=0o600)
    pressures = _read_pressures(run)
    try:
        took_s = _start_with(run, wanted, needs_ready=needs_ready)
        _refuse_pressures(run, _read_pressures(run) - pressures)
    except BaseException as error:
        _go_back(run, error, needs_ready=needs_ready)
    run.host.remove(copy)
    ctx.promises.tell_changed([path])
    run.report.note(f"the kubelet runs with it; the node was Ready after {took_s:.0f} s")
    return None


def _refuse_fewer_pods(run: ReconfigureRun, before: int, after: int) -> None:  # noqa: PLR0917
    """A kubelet that starts takes the pods of its node in the order of their age, and fails those for which it has no place, those that run
    too (HandlePodAdditions of pkg/kubelet/kubelet.go). Raises ClusterError (kubelet-not-changed). An API server that is away hinders nothing."""
    name = run.config.node.name
    pods: list[api.Object] = []
    with contextlib.suppress(KbError):
        pods = run.api.list(api.path_of("Pod"), field=f"spec.nodeName={name}") if after < before else []
    living = [pod for pod in pods if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
    if len(living) > after:
        raise ClusterError(
            f"node {name} has {len(living)} pods, and its kubelet would have place for {after}",
            cause="a kubelet that starts ends the pods for which it has no place, those that run too; nothing was changed on this node",
            remedy=f"set maxPods to {len(living)} or more; or move pods to other nodes first: kubectl drain {name} --ignore-daemonsets",
            code="kubelet-not-changed",
        )


def _read_pressures(run: ReconfigureRun) -> frozenset[str]:
    """What the kubelet says is short on this node, `MemoryPressure`. An API server that is away hinders nothing."""
    with contextlib.suppress(KbError):
        rows = ((run.api.get(wait_node.node_path(run)) or {}).get("status") or {}).get("conditions") or ()
        return frozenset(
            str(one["type"]) for one in rows if one["type"].endswith("Pressure") and one["status"] == "True"
        )
    return frozenset()


def _refuse_pressures(run: ReconfigureRun, pressures: frozenset[str]) -> None:
    """Raises ClusterError (not-healthy): thresholds that are above what this node has left have the kubelet evict one pod after another."""
    if pressures:
        raise ClusterError(
            f"the kubelet of node {run.config.node.name} evicts pods",
            cause=f"with it, the node is under {', '.join(sorted(pressures))}",
            remedy="correct the thresholds",
            code="not-healthy",
        )


def _copy_of(run: ReconfigureRun) -> Path:
    return run.paths.state_dir / "reconfigure" / "kubelet-config.yaml"


def _start_with(run: ReconfigureRun, text: str, *, needs_ready: bool) -> float:
    began = run.host.now()
    run.host.write_file(run.paths.kubelet_config, text, keeps=True)
    static_pods_swap.record_files(run, [run.paths.kubelet_config])
    return upgrade_kubelet.start_and_watch(run, version="", since=began, needs_ready=needs_ready)


def _go_back(run: ReconfigureRun, error: BaseException, *, needs_ready: bool) -> NoReturn:
    """Raises ClusterError: kubelet-not-changed, kubelet-not-taken-back; an interruption goes on as one."""
    trouble, copy = upgrade_kubelet.find_trouble(run, error), _copy_of(run)
    run.report.note(f"the kubelet does not work with it: taking it back. {trouble.cause}")
    try:
        _start_with(run, run.host.read_text(copy), needs_ready=needs_ready)
    except KbError as second:
        raise ClusterError(
            f"the kubelet of node {run.config.node.name} does not come back with its former configuration",
            cause=second.cause,
            remedy=f"see its log: {services.say_log(run.host, 'kubelet')}; the former configuration is in {copy}",
            code="kubelet-not-taken-back",
        ) from error
    run.host.remove(copy)
    if not isinstance(error, KbError):
        raise error
    raise ClusterError(
        f"the kubelet of node {run.config.node.name} does not work with the changed configuration",
        cause=f"{trouble.cause}; it runs with the former one again, and nothing was stored",
        remedy="correct the value, then run the command again",
        code="kubelet-not-changed",
        details=error.details,
    ) from error


def foretell_kubelet(ctx: ReconfigureRun) -> Outputs:
    """Dry run: the file that would be written."""
    ctx.host.write_file(ctx.paths.kubelet_config, plan_file(ctx)[0], keeps=True)
    return None


def plan_stored(run: ReconfigureRun) -> Plan:
    """ConfigMap kubelet-config, if that is what changes."""
    return upload_config.plan_kubelet_config(run) if "kubelet" in run.components else Plan()


KUBELET = Act(do=change_kubelet, foretell=foretell_kubelet, live="node", always=True)
