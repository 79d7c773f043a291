"""The command upgrade self: kb's own units on this node run this kb instead of an older one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.doctor import node_files
    from kubeup.machine import own_copy
    from kubeup.phases import own_units

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation


def upgrade_self(call: Invocation) -> int:
    """Put this kb where the units find it, write their files as it does, and restart them. Raises UsageError (not-one-file)."""
    launch = Launch(call)
    launch.require_root()
    if own_copy.find_running_pyz() is None:
        raise UsageError(
            "this kb is not one file",
            cause="it runs from a checkout, and the units run either that or a copy of a kb.pyz",
            remedy="python3 build_zipapp.py, then on the node: python3 kb.pyz upgrade self",
            code="not-one-file",
        )
    patient = node_files.read_patient(launch.local, Paths())
    paths = patient.paths
    with launch.locked(paths) as node_state:
        launcher.require_same_node(node_state, patient.config, paths=paths)
        if not own_units.list_units(launch.local, paths):
            call.report.note("no unit of kb's own is on this node: nothing runs an older kb")
        ctx = launcher.make_run(launch.target, patient.config, paths=paths, report=call.report)
        result = launch.work(ctx, node_state)
    launch.print_result(result)
    return 0
