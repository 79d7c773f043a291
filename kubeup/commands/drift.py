"""The command drift: what of this node and its cluster was changed since kb or kubeadm left it, field by field, and since when."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

from kubeup import moments, releases
from kubeup.commands import certs, launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, KbError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.cluster import api as kubeapi
    from kubeup.config import types
    from kubeup.doctor import foreign_node, node_files
    from kubeup.drift import accepted, drifted, look, mending
    from kubeup.engine import records, run
    from kubeup.machine import dry_run
    from kubeup.phases import static_pods_swap
    from kubeup.swap import store
    from kubeup.upgrade import node_config

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.config.types import NodeConfig
    from kubeup.doctor.node_files import Patient
    from kubeup.drift.drifted import Drift, Ground
    from kubeup.drift.look import Looked
    from kubeup.engine.state import State
    from kubeup.machine.host import Host

DRIFTED = 1
"""The exit status where something drifted."""
RETRY_S = 2
_DAMAGED = ("stored-config-invalid", "not-kubeadms-cluster")
"""The codes of a stored configuration that somebody deleted, or changed so that nobody understands it."""
_CUT = 60
"""Longest text of a cell."""


def drift(call: Invocation) -> int:
    """Print what drifted, by name and field, or put it back, or accept it. Returns 0 if nothing has drifted, or nothing is left, else 1."""
    launch = Launch(call)
    launch.require_root()
    _check_words(call)
    if call.flags.get("fix") or call.flags.get("accept"):
        return _change(launch)
    launch.only_looks = True
    ground, looked = look_now(launch)
    if call.words:
        looked = replace(
            looked, drift=tuple(one for name in call.words for one in look.find_by_name(looked.drift, name))
        )
    show(launch, ground, looked=looked)
    return DRIFTED if looked.drift else 0


def look_now(launch: Launch) -> tuple[Ground, Looked]:
    """This node, and what drifted. Raises HostError: not-a-node, swap-cut-off."""
    ground, missed = find_ground(launch, launch.open_state(Paths()))
    looked = look.look_for_drift(ground)
    return ground, replace(looked, missed=(*missed, *looked.missed))


def _check_words(call: Invocation) -> None:
    """Raises UsageError (usage)."""
    verbs = [name for name in ("fix", "accept") if call.flags.get(name)]
    cause = ""
    if len(verbs) == 2:
        cause = "what is put back need not be accepted"
    elif verbs and not call.words and not call.flags.get("all"):
        cause = f"--{verbs[0]} takes the names of what drifted, or --all"
    elif call.flags.get("all") and (call.words or not verbs):
        cause = "--all stands for every name, of --fix or --accept"
    if cause:
        words = " ".join(("kb drift", *(f"--{name}" for name in verbs), *call.words))
        raise UsageError(words, cause=cause, remedy="see the names: kb drift", code="usage")


# ---- where the look stands


def find_ground(launch: Launch, node_state: State) -> tuple[Ground, tuple[str, ...]]:
    """This node, and what its cluster stores; why the cluster is not looked at, in words. Raises HostError: not-a-node, swap-cut-off."""
    cut_off = store.load_cut_off(launch.local, Paths())
    if cut_off is not None:  # a change on trial may be looked at; pods that are half swapped would all be told
        raise launcher.swap_cut_off(cut_off)
    local = dry_run.DryRunHost(launch.local, waits=True)
    patient = node_files.read_patient(local, Paths())
    require_node(patient)
    config, missed, damage = patient.config, [], ""
    client: Optional[kubeapi.Api] = None
    try:
        client = _open_api(patient, local)
        stored = _read_config(patient, client)
        releases.find_release(stored.cluster.kubernetes_version)
        config = stored
    except KbError as error:
        client = None
        missed.append(f"the cluster's configuration: {error}")
        damage = str(error) if error.code in _DAMAGED else ""
    if not node_state.phases:
        missed.append("files: kb has no record of this node; kb adopt makes one")
    base = launcher.make_run(local, config, paths=patient.paths, report=launch.call.report)
    ground = drifted.Ground(
        replace(base, caller=run.Caller.by(client)) if client is not None else base,
        patient,
        records.load_records(local, patient.paths.records),
        node_state.phases,
        node_state.known_paths(),
        client if patient.is_control_plane else None,
        has_stored=client is not None,
        damage=damage,
    )
    return ground, tuple(missed)


def require_node(patient: Patient) -> None:
    """Raises HostError (not-a-node)."""
    if not patient.is_member:
        raise HostError(
            "this machine is no node",
            cause=f"there is no {patient.paths.kubelet_config}",
            remedy="make it one: kb init, or kb join",
            code="not-a-node",
        )


def _open_api(patient: Patient, host: Host) -> kubeapi.Api:
    """A control plane calls its own API server as its admin, a worker as its kubelet."""
    server = node_files.find_own_server(patient.host, patient.paths)
    path = patient.paths.admin_conf if patient.is_control_plane else patient.paths.kubernetes / "kubelet.conf"
    return kubeapi.Api(host, kubeapi.read_identity(host, path, server=server), retry_s=RETRY_S)


def _read_config(patient: Patient, client: kubeapi.Api) -> NodeConfig:
    """This node's configuration as the cluster stores it now. Proxies of this shell are not the node's."""
    stored = node_config.read_stored(client, is_control_plane=patient.is_control_plane)
    join = patient.config.join
    if patient.is_control_plane and foreign_node.has_joined(patient.host, patient.paths):
        join = types.Join(client.server, "", control_plane=types.JoinControlPlane())
    return node_config.make_node_config(patient.host, patient.paths, own=patient.config, stored=stored, join=join)


# ---- what is shown


def show(launch: Launch, ground: Ground, *, looked: Looked, otherwise: str = "") -> None:
    """otherwise: what is said if there is no drift."""
    call, node = launch.call, ground.run.config.node.name
    if call.output != "text":
        rows = [_describe(one) for one in looked.drift]
        names = list(dict.fromkeys(one.name for one in looked.accepted))
        call.print_value({"node": node, "drift": rows, "accepted": names, "notLooked": list(looked.missed)})
        return
    for text in looked.missed:
        call.report.warn(f"not looked at: {text}")
    if not looked.drift:
        known = len({one.name for one in looked.accepted})
        more = f" ({known} accepted)" if known and not otherwise else ""
        call.print(otherwise or f"nothing has drifted on node {node}{more}")
        return
    call.print(render(looked.drift))
    names = list(dict.fromkeys(one.name for one in looked.drift))
    call.print(f"{len(names)} drifted on node {node}: {', '.join(names)}")
    for one in {one.name: one for one in looked.drift if one.remedy and not one.is_fixable}.values():
        call.tell(f"{one.name}: {one.remedy}")
    first = next((one.name for one in looked.drift if one.is_fixable), "")
    if first:
        call.tell(f"put it back: kb drift --fix {first}, or all that can be: kb drift --fix --all")
    call.tell(f"say that it is meant, and is not to be told again: kb drift --accept {names[0]}")


def _describe(one: Drift) -> dict[str, Any]:
    names = ("name", "where", "field", "recorded", "wanted", "found", "since", "by", "remedy")
    return {**{name: getattr(one, name) for name in names}, "fixable": one.is_fixable, "ofCluster": one.is_of_cluster}


def render(found: Sequence[Drift]) -> str:
    rows = [("NAME", "FIELD", "RECORDED", "WANTED", "FOUND", "SINCE")]
    for one in found:
        since = " by ".join(filter(None, (one.since, one.by)))
        cells = (one.name, one.field, one.recorded or "-", one.wanted or "-", one.found or "-", since or "-")
        rows.append(tuple(map(_cut, cells)))  # type: ignore[arg-type]
    return certs.render_table(rows)  # type: ignore[arg-type]


def _cut(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _CUT else f"{line[: _CUT - 3]}..."


# ---- fix and accept


def _change(launch: Launch) -> int:
    """Put back, or accept, what was named. Returns 1 if something is left of it."""
    call = launch.call
    with launch.locked(Paths()) as node_state:
        ground, _ = find_ground(launch, node_state)
        chosen = _choose(call, ground, looked=look.look_for_drift(ground))
        if call.flags.get("accept"):
            return _accept(launch, ground, chosen=chosen)
        _fix(launch, ground, chosen=chosen, node_state=node_state)
        if launch.is_dry:
            launcher.print_plan(call, list(getattr(launch.target, "plan", [])))
            return 0
        names = {one.name for one in chosen}
        ground, missed = find_ground(launch, node_state)
        looked = look.look_for_drift(ground)
    left = tuple(one for one in looked.drift if one.name in names)
    seen = look.Looked(left, (*missed, *looked.missed))
    show(launch, ground, looked=seen, otherwise=f"nothing is left of it on node {ground.patient.config.node.name}")
    return DRIFTED if left else 0


def _choose(call: Invocation, ground: Ground, *, looked: Looked) -> tuple[Drift, ...]:
    """The drift of these names; all of it with --all; and what an earlier --fix left of it. Raises UsageError (not-drifted)."""
    if call.flags.get("all"):
        return (*looked.drift, *(mending.find_unproven(ground) if call.flags.get("fix") else ()))
    chosen: list[Drift] = []
    for name in call.words:
        # what was accepted is put back if it is named
        found = look.find_by_name((*looked.drift, *looked.accepted), name)
        if not found and call.flags.get("fix"):
            found = mending.find_left(ground, name, found=looked.drift)
        if not found:
            names = ", ".join(dict.fromkeys(one.name for one in looked.drift))
            raise UsageError(
                f"{name} has not drifted",
                cause=f"what has: {names}" if names else "nothing has drifted on this node",
                remedy="see what has: kb drift",
                code="not-drifted",
            )
        chosen += found
    return tuple(chosen)


def _accept(launch: Launch, ground: Ground, *, chosen: Sequence[Drift]) -> int:
    kept = records.load_records(launch.target, ground.run.paths.records)
    client = _open_api(ground.patient, launch.target) if any(one.is_of_cluster for one in chosen) else None
    accepted.accept(chosen, records=kept, api=client, now=moments.show(launch.local.now()))
    for name in dict.fromkeys(one.name for one in chosen):
        launch.call.print(f"{name} {'would be' if launch.is_dry else 'is'} accepted as it is")
    return 0


def _fix(launch: Launch, ground: Ground, *, chosen: Sequence[Drift], node_state: State) -> None:
    """Raises what the phases of a swap raise, and what mending.mend raises."""
    call, config, paths = launch.call, ground.run.config, ground.run.paths
    client = functools.partial(_open_api, ground.patient, launch.target)
    base = launcher.make_run(launch.target, config, paths=paths, report=call.report)
    ctx = replace(base, caller=run.Caller(lambda _: client()))
    for text in mending.mend(ground, ctx, found=chosen, api=client):
        call.print(f"{'would: ' if launch.is_dry else ''}{text}")
    swaps = mending.find_swaps(ground, [one.name for one in chosen])
    if not swaps:
        return
    swap = static_pods_swap.SwapRun(
        **ctx.values(),
        texts=tuple(swaps.items()),
        **launcher.of_a_swap(call),
        tells_edits=False,
    )
    launch.work(swap, node_state, workflow=mending.SWAP)
