"""The command reconfigure static-pods: which manifests are to run, and on whose word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.yaml_files import containers_of_pod, is_same_yaml, load_mapping

with lazily:
    from kubeup.config import load_init
    from kubeup.doctor import node_files
    from kubeup.phases import static_pods_swap, tried_swap
    from kubeup.swap import manifests, store

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.doctor.node_files import Patient
    from kubeup.engine.runner import RunResult
    from kubeup.engine.state import State
    from kubeup.machine.host import Host

COMMAND = "kb reconfigure static-pods"
SWAP, GATE = "swap", "gate"
"""The phase that checks the cluster at the end."""
Texts = tuple[tuple[str, str], ...]


def static_pods(call: Invocation) -> int:
    """Swap the static pods in the given files, continue a swap that was cut off, or take the last one back."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    if call.words and call.flags.get("undo"):
        raise UsageError(
            f"{COMMAND} {' '.join(call.words)} --undo",
            cause="--undo takes back the last swap, whose manifests kb has kept",
            remedy=f"{COMMAND} --undo",
            code="usage",
        )
    launch = Launch(call)
    launch.require_root()
    local, paths = launch.local, Paths()
    with launch.locked(paths) as node_state:
        last = store.load(local, paths)
        is_cut_off = last is not None and last.status == store.RUNNING
        if not launch.is_dry and not is_cut_off:
            manifests.remove_leftovers(local, paths)
        is_back = last is not None and last.status == store.TAKEN_BACK and bool(call.flags.get("undo"))
        if is_back and (lacks_gate(call, node_state) or _was_killed(call, node_state)):
            call.report.note("the last swap was taken back already; only the check of the cluster is left")
            result = run_gate(launch, node_state)
        else:
            texts = _choose_texts(call, local, last=last, paths=paths)
            seen = store.with_missing(local, paths, texts=last.formers if last is not None and is_cut_off else {})
            ctx = make_swap_run(
                launch,
                node_state,
                patient=node_files.read_patient(seen, paths),
                texts=texts,
                is_undo=bool(call.flags.get("undo")),
                try_s=read_try(call),
            )
            result = launch.work(ctx, node_state)
    launch.print_result(result)
    return 0


def lacks_gate(call: Invocation, node_state: State) -> bool:
    """Whether this command has done its work, and the cluster was not well at its end."""
    return launcher.is_begun(node_state, f"{call.command.workflow}/{GATE}")


def _was_killed(call: Invocation, node_state: State) -> bool:
    """Whether a swap has ended here, and could not say so any more."""
    swap = node_state.phases.get(f"{call.command.workflow}/{SWAP}")
    return swap is not None and swap.status == "running"


def run_gate(launch: Launch, node_state: State) -> RunResult:
    """Check the cluster; nothing is swapped. Raises ClusterError (cluster-not-well)."""
    ctx = make_swap_run(launch, node_state, patient=node_files.read_patient(launch.local, Paths()), texts=())
    names = (SWAP, GATE) if _was_killed(launch.call, node_state) else (GATE,)
    return launch.work(ctx, node_state, phases=[one for one in launch.call.command.phases if one.name in names])


def make_swap_run(launch: Launch, node_state: State, *, patient: Patient, **fields: Any) -> static_pods_swap.SwapRun:
    """What the phases of a swap work with on this node. fields: those of SwapRun. Raises HostError (not-a-control-plane, node-renamed)."""
    call = launch.call
    if not patient.is_control_plane:
        raise launcher.no_control_plane(patient.paths)
    launcher.require_same_node(node_state, patient.config, paths=patient.paths)
    base = launcher.make_run(launch.target, patient.config, paths=patient.paths, report=call.report)
    return static_pods_swap.SwapRun(**{**base.values(), **launcher.of_a_swap(call), **fields})


def read_try(call: Invocation) -> float:
    """--try in seconds; 0 without it. Raises UsageError (invalid-duration, usage)."""
    told = call.flags.get("try")
    if not told:
        return 0.0
    lasts_s = float(load_init.parse_duration(str(told), "--try"))
    cause = ""
    if call.flags.get("undo"):
        cause = "--undo goes back, and is not tried"
    elif not tried_swap.AT_LEAST_S <= lasts_s <= tried_swap.AT_MOST_S:
        cause = f"a change is tried for {tried_swap.AT_LEAST_S:.0f} s to {tried_swap.AT_MOST_S / 3600:.0f} h"
    if cause:
        raise UsageError(f"--try {told}", cause=cause, remedy="give it a time such as --try 5m", code="usage")
    return lasts_s


def _choose_texts(call: Invocation, local: Host, *, last: Optional[store.Swap], paths: Paths) -> Texts:
    """The manifests that are to run. Raises UsageError: no-manifest-given, swap-unfinished; HostError (nothing-to-undo,
    not-a-static-pod)."""
    is_cut_off = last is not None and last.status == store.RUNNING
    if call.flags.get("undo"):
        if last is None or last.status == store.TAKEN_BACK:
            raise HostError(
                "there is no swap of static pods to undo on this node",
                cause="none was swapped, or the last one was taken back already",
                remedy=f"give the manifests that are to run: {COMMAND} FILE...",
                code="nothing-to-undo",
            )
        if not is_cut_off:
            _refuse_outdated(local, paths, last)
        wanted = last if is_cut_off else last.reversed()
        return tuple((pod.name, pod.wanted) for pod in wanted.pods if pod.is_changed)
    texts = tuple(_read_manifest(local, Path(word), paths=paths) for word in call.words)
    if is_cut_off and last is not None:
        if texts and not (last.wants_same(texts) and _run_already(local, paths, last=last, texts=texts)):
            raise UsageError(
                f"a swap of {', '.join(last.names)} was cut off, and these are other manifests",
                cause="its pods may be half swapped",
                remedy=f"continue it: {COMMAND}; or take it back: {COMMAND} --undo",
                code="swap-unfinished",
            )
        return tuple((pod.name, pod.wanted) for pod in last.pods if pod.is_changed)
    if not texts:
        raise UsageError(
            "no manifest was given",
            cause="no swap was cut off on this node, so there is none to continue",
            remedy=f"copy a manifest from {paths.manifests}, edit the copy, then: {COMMAND} COPY",
            code="no-manifest-given",
        )
    return texts


def _refuse_outdated(local: Host, paths: Paths, last: store.Swap) -> None:  # noqa: PLR0917
    """Raises HostError (undo-outdated): what came after the swap, an upgrade for example, would be taken back with it."""
    for pod in last.pods:
        path = paths.manifest(pod.name)
        if pod.is_changed and not (local.exists(path) and is_same_yaml(local.read_text(path), pod.wanted)):
            raise HostError(
                f"{path} is not the manifest that the last swap put in",
                cause="it was changed since, and --undo would take back that too",
                remedy=f"edit a copy of it so that it is as you want it, then: {COMMAND} COPY",
                code="undo-outdated",
            )


def _run_already(local: Host, paths: Paths, *, last: store.Swap, texts: Texts) -> bool:
    """Whether those of the manifests that the swap has nothing to do with are on this node as they are."""
    others = [(paths.manifest(name), text) for name, text in texts if name not in last.names]
    return all(local.exists(path) and is_same_yaml(local.read_text(path), text) for path, text in others)


def _read_manifest(local: Host, path: Path, *, paths: Paths) -> tuple[str, str]:
    """The component and the text of a manifest. Raises HostError (not-a-static-pod)."""
    text = local.read_text(path.absolute())
    pod = load_mapping(text, str(path))
    metadata = pod.get("metadata")
    name = str(metadata.get("name")) if isinstance(metadata, dict) else ""
    cause = ""
    if pod.get("kind") != "Pod" or pod.get("apiVersion") != "v1":
        cause = f"it is a {pod.get('kind') or 'document without a kind'}, not a Pod of v1"
    elif name not in store.COMPONENTS:
        cause = f"its name is {name!r}, not one of {', '.join(store.COMPONENTS)}"
    elif (metadata or {}).get("namespace") != "kube-system":
        cause = f"its namespace is {(metadata or {}).get('namespace')!r}, not 'kube-system'"
    elif _container_name(pod) != name:
        cause = f"none of its containers is called {name}"
    elif paths.manifests in path.absolute().parents:
        cause = f"it lies in {paths.manifests}, where the kubelet runs it at once"
    if cause:
        raise HostError(
            f"{path} is no manifest for this command",
            cause=cause,
            remedy=f"edit a copy outside of that folder: cp {paths.manifests}/kube-apiserver.yaml /root/",
            code="not-a-static-pod",
        )
    return name, text


def _container_name(pod: Mapping[str, Any]) -> str:
    return next((str(one.get("name")) for one in containers_of_pod(pod)), "")
