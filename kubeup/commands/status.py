"""The command status: print the state file, phase by phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeup.commands import launcher
from kubeup.errors import KbError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.doctor import node_files
    from kubeup.doctor.looks import rotating
    from kubeup.engine import state
    from kubeup.swap import try_record

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.machine.host import Host


def status(call: Invocation) -> int:
    """Print the state file, phase by phase."""
    node_state = state.load_state(launcher.open_host(call), Paths())
    if call.output != "text":
        call.print_value(node_state.as_dict())
        return 0
    tried = try_record.load_pending(node_state.host, Paths())
    if tried is not None:
        told = f"goes back by itself at {tried.ends}" + (f"; that failed last time: {tried.why}" if tried.why else "")
        call.print(f"a change of {', '.join(tried.names)} is being tried: it {told}")
    if node_state.host.is_live:
        _tell_rotation(call, node_state.host)
    if not node_state.phases:
        call.print("kb has not worked on this node yet (no /var/lib/kb/state.json)")
        return 0
    call.print(f"node {node_state.node} of cluster {node_state.cluster}")
    workflow_name = "join" if node_state.has_run("join") else "init"
    phases = next(command.phases for command in call.commands if command.name == workflow_name)
    is_control_plane = any(f"{workflow_name}/{phase.name}" in node_state.phases for phase in phases if phase.on)
    known = [f"{workflow_name}/{phase.name}" for phase in phases if is_control_plane or not phase.on]
    width = max(len(name) for name in known)
    for key in [*known, *(key for key in node_state.phases if key not in known)]:
        entry = node_state.phases.get(key)
        when = f"  {entry.ended or entry.started}" if entry else ""
        status = "not run" if entry is None else "adopted" if entry.adopted else entry.status
        call.print(f"{key:<{width}}  {status}{when}")
        if entry and entry.error:
            call.print(f"{'':<{width}}  {entry.error.get('what')}: {entry.error.get('cause', '')}")
    return 0


def _tell_rotation(call: Invocation, host: Host) -> None:
    """Of a key that the control planes share; a node whose files are damaged has a state all the same."""
    try:
        for one in rotating.look_at_rotation(node_files.read_patient(host, Paths())):
            call.print(f"{one.text}: {one.remedy}")
    except KbError as error:
        call.report.note(f"whether a rotation waits is not known: {error}")
