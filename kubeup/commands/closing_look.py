"""What doctor finds on this node where init, join or an upgrade has failed, and where an upgrade has ended.

The command itself walks the chain of what it waits for. What lies beside that chain, such as a disk that is full or a CNI
configuration that is gone, is doctor's; only its errors are told, since what does not explain is not evidence. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from kubeup.errors import ClusterError
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.report import Report

with lazily:
    from kubeup.diagnosis.checks import facts
    from kubeup.doctor import node_files
    from kubeup.doctor.looks import table
    from kubeup.machine import dry_run

WORKFLOWS = frozenset({"init", "join", "upgrade-apply", "upgrade-node"})
_OF_THE_MACHINE = frozenset({"machine", "events", "pod-network"})
"""What needs no API server, which may be what does not come up, and judges nothing that the command was about to write."""
_OF_PODS = frozenset({"dns"})


def explain_failure(host: Host, error: ClusterError) -> None:
    """Add what doctor finds on the machine to the error's details, unless the error says it itself."""
    for note in _find_errors(host, _OF_THE_MACHINE):
        if note.text not in str(error):
            error.details = (*error.details, f"kb doctor finds: {note.text}. Remedy: {note.remedy}")


def warn_of_pods(host: Host, report: Report) -> None:
    """Warn of what pods on this node, and the node itself, do not reach of the cluster's DNS and API."""
    for note in _find_errors(host, _OF_PODS):
        report.warn(f"{note.text}. Remedy: {note.remedy}")


def _find_errors(host: Host, names: Collection[str]) -> list[facts.Finding]:
    looking = dry_run.DryRunHost(host, waits=True)
    try:
        patient = node_files.read_patient(looking, Paths())
        notes = table.examine(patient, [look for look in table.LOOKS if look.name in names])
    except Exception:  # whatever a look meets, the command's own error is what counts
        return []
    return [note for note in notes if note.level == facts.ERROR]
