"""The command reset: ask for confirmation and run the phases that undo what kb did on this node."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.config.types import NodeRegistration
from kubeup.engine.run import BareRun, ResetRun
from kubeup.errors import HostError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.engine import undo
    from kubeup.network import node_routes as route_keeper
    from kubeup.phases import reset as reset_phases

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.engine.state import State


def reset(call: Invocation) -> int:
    """Undo what the journal holds. Without a journal nothing is touched."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    launch, paths = Launch(call), Paths()
    launch.require_root()
    if not launch.is_dry and not launch.local.exists(paths.state):
        undo.remove_remains(launch.target, paths)
    _require_journal(launch, paths)  # before the lock, whose file might be the only thing that kb ever created here
    with launch.locked(paths):
        node_state = _require_journal(launch, paths)
        _ask_to_reset(launch, node_state, paths=paths)
        ctx = ResetRun(
            host=launch.target,
            paths=paths,
            report=call.report,
            cri_socket=call.flags.get("cri-socket") or node_state.cri_socket or NodeRegistration.cri_socket,
        )
        result = launch.work(ctx, node_state, skip=call.flags.get("skip-phases", ()), keeps_journal=False)
        skipped = [
            outcome.name
            for outcome in result.phases
            if outcome.status == "skipped" and outcome.name.startswith("cleanup-node/")
        ]
        if not skipped:
            for text in undo.take_away(launch.target, paths):
                call.report.note(text)
    if launch.is_dry or call.output != "text":
        launch.print_result(result)
    else:
        _print_end(launch, node_state, paths=paths, skipped=skipped)
    return 0


def _print_end(launch: Launch, node_state: State, *, paths: Paths, skipped: Sequence[str]) -> None:
    call = launch.call
    if skipped:
        call.print(_AFTER_RESET_SKIPPED.format(names=", ".join(skipped)))
        return
    if _is_adopted(node_state, paths):
        call.print(_AFTER_RESET_ADOPTED.format(node=node_state.node, cluster=node_state.cluster))
        return
    call.print(_AFTER_RESET)
    if node_state.has_run("join"):
        call.tell(_AFTER_RESET_MEMBER.format(node=node_state.node))
    foreign = route_keeper.find_first_cni_config(launch.local, paths)
    if foreign not in ("", route_keeper.CNI_FILE):
        call.print(_AFTER_RESET_FOREIGN.format(path=paths.cni_conf / foreign))


def _is_adopted(node_state: State, paths: Paths) -> bool:
    """Whether another tool set up the node, whose kubelet and pods keep running."""
    return str(paths.kubelet_config) in node_state.adopted


_AFTER_RESET_ADOPTED = "what kb did on node {node} since it was adopted is undone; the node, which another tool set up, keeps running in cluster {cluster}"
_LAST = "{node} is the last control plane of cluster {cluster}: all its objects end with it"
_AFTER_RESET = "everything that kb made is gone, except kubeconfigs in home folders"
_AFTER_RESET_SKIPPED = "what these steps undo is still on this node, since they were skipped: {names}. kb reset without --skip-phases undoes the rest"
_AFTER_RESET_MEMBER = """\
Node {node} is still in the cluster, and its pods count as running for some minutes.
On a control plane, unless it joins again: kb node remove {node}"""
_AFTER_RESET_FOREIGN = """\
Another pod network left {path}, with its programs, links and rules.
Before this node joins again: rm {path}, and reboot it"""


def _require_journal(launch: Launch, paths: Paths) -> State:
    """The state of a node on which kb created or changed something. Raises HostError (nothing-to-reset)."""
    node_state = launch.open_state(paths)
    if node_state.has_changed_files():
        return node_state
    looked = (
        f"{paths.state} names no file that kb made or changed" if node_state.phases else f"there is no {paths.state}"
    )
    raise HostError(
        "kb has nothing to undo on this node",
        cause=f"{looked}: kb did not set up this node, or it was reset already",
        remedy="a node that kubeadm made: kubeadm reset",
        code="nothing-to-reset",
    )


def _ask_to_reset(launch: Launch, node_state: State, *, paths: Paths) -> None:
    last = ""
    looks = BareRun(host=launch.local, paths=paths, report=launch.call.report)
    if reset_phases.is_last_control_plane(looks, node_state.node):
        last = _LAST.format(node=node_state.node, cluster=node_state.cluster)
    if launch.call.flags.get("force") or launch.is_dry:
        if last:
            launch.call.report.note(f"{last}; kb backup would have kept a copy")
        return
    question = (
        f"kb reset undoes what kb did on node {node_state.node} since it was adopted; the node keeps running."
        if _is_adopted(node_state, paths)
        else f"kb reset stops node {node_state.node} and deletes its part of cluster {node_state.cluster}, etcd's data included."
    )
    if last:
        question += f"\n{last}. To keep a copy, stop here and run: kb backup"
    if not sys.stdin.isatty():
        raise UsageError(
            question,
            cause="it asks for confirmation, and stdin is not a terminal",
            remedy="kb backup -o FILE, then kb reset --force" if last else "kb reset --force",
            code="not-confirmed",
        )
    if launcher.ask(f"{question}\nGo on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError(
            "nothing was changed", cause="the question was not answered with y", remedy="kb reset", code="not-confirmed"
        )
