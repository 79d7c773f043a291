"""The command drift: what of this node and its cluster was changed since kb or kubeadm left it, field by field, and since when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

from kubeup.commands import certs, launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, KbError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.cluster import api as kubeapi
    from kubeup.config import types
    from kubeup.doctor import foreign_node, node_files
    from kubeup.drift import drifted, look
    from kubeup.engine import records, run
    from kubeup.machine import dry_run
    from kubeup.upgrade import node_config

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.config.types import NodeConfig
    from kubeup.doctor.node_files import Patient
    from kubeup.drift.drifted import Drift, Ground
    from kubeup.drift.look import Looked
    from kubeup.engine.state import State

DRIFTED = 1
"""The exit status where something drifted."""
RETRY_S = 2
_CUT = 60
"""Longest text of a cell."""


def drift(call: Invocation) -> int:
    """Print what drifted, by name and field. Returns 0 if nothing did, else 1."""
    launch = Launch(call)
    launch.require_root()
    launch.only_looks = True
    paths = Paths()
    ground, missed = find_ground(launch, launch.open_state(paths))
    looked = look.look_for_drift(ground)
    looked = replace(looked, missed=(*missed, *looked.missed))
    show(launch, ground, looked)
    return DRIFTED if looked.drift else 0


# ---- where the look stands


def find_ground(launch: Launch, node_state: State) -> tuple[Ground, tuple[str, ...]]:
    """This node, and what its cluster stores; why the cluster is not looked at, in words. Raises HostError: not-a-node, swap-cut-off."""
    launch.refuse_cut_off(Paths())
    local = dry_run.DryRunHost(launch.local, waits=True)
    patient = node_files.read_patient(local, Paths())
    if not patient.is_member:
        raise HostError(
            "this machine is no node",
            cause=f"there is no {patient.paths.kubelet_config}",
            remedy="make it one: kb init, or kb join",
            code="not-a-node",
        )
    config, missed = patient.config, []
    client: Optional[kubeapi.Api] = None
    try:
        client = _open_api(patient)
        config = _read_config(patient, client)
    except KbError as error:
        client = None
        missed.append(f"the cluster's configuration: {error}")
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
    )
    return ground, tuple(missed)


def _open_api(patient: Patient) -> kubeapi.Api:
    """A control plane asks its own API server as its admin, a worker as its kubelet."""
    server = node_files.find_own_server(patient.host, patient.paths)
    path = patient.paths.admin_conf if patient.is_control_plane else patient.paths.kubernetes / "kubelet.conf"
    return kubeapi.Api(patient.host, kubeapi.read_identity(patient.host, path, server=server), retry_s=RETRY_S)


def _read_config(patient: Patient, client: kubeapi.Api) -> NodeConfig:
    """This node's configuration as the cluster stores it now. Proxies of this shell are not the node's."""
    stored = node_config.read_stored(client, is_control_plane=patient.is_control_plane)
    join: Optional[types.Join] = None
    if not patient.is_control_plane:
        join = types.Join(client.server, "")
    elif foreign_node.has_joined(patient.host, patient.paths):
        join = types.Join(client.server, "", control_plane=types.JoinControlPlane())
    return node_config.make_node_config(patient.host, patient.paths, own=patient.config, stored=stored, join=join)


# ---- what is shown


def show(launch: Launch, ground: Ground, looked: Looked) -> None:  # noqa: PLR0917
    call, node = launch.call, ground.run.config.node.name
    if call.output != "text":
        rows = [dataclasses.asdict(one) for one in looked.drift]
        call.print_value({"node": node, "drift": rows, "notLooked": list(looked.missed)})
        return
    for text in looked.missed:
        call.report.warn(f"not looked at: {text}")
    if not looked.drift:
        call.print(f"nothing has drifted on node {node}")
        return
    call.print(render(looked.drift))
    names = list(dict.fromkeys(one.name for one in looked.drift))
    call.print(f"{len(names)} drifted on node {node}: {', '.join(names)}")
    for one in {one.name: one for one in looked.drift if one.remedy and not one.is_fixable}.values():
        call.tell(f"{one.name}: {one.remedy}")


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
