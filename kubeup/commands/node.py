"""The commands node remove, replace, drain and uncordon: a node leaves the cluster, another takes its place, or its pods leave it for a while."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kubeup.commands import launcher, token, upgrade
from kubeup.commands.launcher import Launch
from kubeup.errors import ClusterError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.cluster import departure, eviction, reboot_turn
    from kubeup.doctor import node_files
    from kubeup.engine import state
    from kubeup.phases import node_reboot, node_remove
    from kubeup.swap import turn

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.cluster.api import Api
    from kubeup.doctor.node_files import Patient


def remove(call: Invocation) -> int:
    """Take a node out of the cluster, dead or alive; or go on with that. It keeps no state: what is gone is not found again."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    launch = Launch(call)
    launch.require_root()
    name = _read_name(call)
    with launch.locked(Paths()):
        ctx = _make_run(launch, name)
        try:
            node_state = state.State(launch.target, ctx.paths, is_kept=False)
            result = launch.work(ctx, node_state, keeps_journal=False)
        finally:
            if not launch.is_dry:
                turn.end(ctx, tell=ctx.report.detail)
    launch.print_result(result, more={"node": name, "wasFound": ctx.departing.state})
    if call.output == "text" and not launch.is_dry:
        left = list(result.results.remaining or ())
        if left:
            call.tell("\n".join(["still to be done:", *(f"  {one}" for one in left)]))
    return 0


def _read_name(call: Invocation) -> str:
    """Raises UsageError (usage)."""
    if len(call.words) == 1 and call.words[0]:
        return call.words[0]
    raise UsageError(
        f"kb {call.command.name} takes the name of one node",
        cause=f"{len(call.words)} were given",
        remedy=f"see the names: kubectl get nodes; then: kb {call.command.name} NAME",
        code="usage",
    )


def _read_patient(launch: Launch) -> Patient:
    """This control plane. Raises HostError (not-a-control-plane)."""
    patient = node_files.read_patient(launch.local, Paths())
    if not patient.is_control_plane:
        raise launcher.no_control_plane(patient.paths)
    return patient


def _make_run(launch: Launch, name: str) -> node_remove.NodeRemoveRun:
    call, patient = launch.call, _read_patient(launch)
    base = launcher.make_run(launch.target, patient.config, paths=patient.paths, report=call.report)
    return node_remove.NodeRemoveRun(
        **base.values(),
        leaving=name,
        agree=lambda question: launcher.agree(call, question),
        drains=not call.flags.get("no-drain"),
        drain_s=upgrade.read_drain_timeout(call),
    )


# ---- drain and uncordon


def drain(call: Invocation) -> int:
    """Cordon a node and evict its pods. It takes pods again if that does not succeed."""
    launch = Launch(call)
    launch.require_root()
    api, name = _find_subject(launch)
    prospect = eviction.look(api, name)
    for line in prospect.describe():
        call.report.note(line)
    if launch.is_dry:
        return _print_drained(call, name, pods=prospect.moves, would=True)
    if prospect.bare:
        launcher.agree(call, f"{eviction.name_pods(prospect.bare)} will be gone: nothing makes them anew elsewhere.")
    was_open = eviction.cordon_for_admin(api, name)
    try:
        gone = eviction.evict_all(api, name, tell=call.report.waiting, refused_s=upgrade.read_drain_timeout(call))
    except ClusterError:
        if was_open:
            eviction.uncordon_for_admin(api, name)
        raise
    return _print_drained(call, name, pods=gone, would=False)


def _print_drained(call: Invocation, name: str, *, pods: Sequence[eviction.Pod], would: bool) -> int:
    if call.output != "text":
        call.print_value({"dryRun": would, "node": name, "evicted": [pod.label for pod in pods]})
        return 0
    for pod in pods:
        call.print(f"{'would evict' if would else 'evicted'}: {pod.label}")
    call.tell("nothing was changed" if would else f"node {name} takes no pods until: kb node uncordon {name}")
    return 0


def uncordon(call: Invocation) -> int:
    """Let pods onto a node again, whoever has cordoned it."""
    launch = Launch(call)
    launch.require_root()
    api, name = _find_subject(launch)
    was_closed = eviction.uncordon_for_admin(api, name)
    reboot_turn.give_back(api, name)  # of a reboot that was interrupted, and that nobody goes on with
    if not call.words:
        node_reboot.give_up(launch.target, Paths())
    told = (
        f"node {name} {'would take' if launch.is_dry else 'takes'} pods again"
        if was_closed
        else f"node {name} was not cordoned"
    )
    call.print(told)
    return 0


def _find_subject(launch: Launch) -> tuple[Api, str]:
    """The node that is meant, this one if none is named, and the way to it: on a worker its kubelet's, which reaches no other node. Raises
    HostError (not-a-control-plane), UsageError (usage)."""
    call = launch.call
    patient = node_files.read_patient(launch.local, Paths())
    own = patient.config.node.name
    name = _read_name(call) if call.words else own
    if patient.is_control_plane:
        run = launcher.make_run(launch.target, patient.config, paths=patient.paths, report=call.report)
        return run.api, name
    if name != own:
        raise launcher.no_control_plane(patient.paths)
    return launcher.kubelet_api(launch.target, patient.paths), name


# ---- replace


def replace(call: Invocation) -> int:
    """Print the two lines with which a new machine takes the place of a node: one for here, one for that machine."""
    launch = Launch(call)
    launch.require_root()
    name = _read_name(call)
    ctx = _make_run(launch, name)
    one = departure.look(ctx.api, name, client=node_remove.own_etcd(ctx))
    if one.is_nowhere:
        raise ClusterError(
            f"node {name} is not registered",
            cause="the cluster has no Node of this name, and etcd no member of it",
            remedy="print the line alone: kb token create --print-join-command, with --control-plane for a control plane",
            code="node-not-registered",
        )
    departure.check(one, own=ctx.config.node.name, endpoint=node_remove.read_endpoint(ctx))
    line = token.make_join_line(launch, is_control_plane=one.is_control_plane)
    mirror = node_remove.find_mirror(launch.local, one.addresses)
    if mirror and mirror in line:
        call.report.warn(
            f"the mirror {mirror} runs on {name} and goes with it: have another control plane serve it first (kb mirror move), and print these lines again"
        )
    call.tell(f"here: kb node remove {name} --yes")
    call.print(f"on the new machine: {line}")
    return 0
