"""Doctor's check of swaps of static pods: one that was cut off leaves a pod stopped, or half of them replaced."""

from __future__ import annotations

from kubeup.diagnosis.checks.facts import ERROR, Finding, Findings
from kubeup.doctor.node_files import Patient
from kubeup.swap import store


def look_at_swap(patient: Patient) -> Findings:
    cut_off = store.load_cut_off(patient.host, patient.paths)
    if cut_off is None:
        return
    away = [name for name in cut_off.names if not patient.host.exists(patient.paths.manifest(name))]
    told = f"; stopped meanwhile: {', '.join(away)}" if away else ""
    yield Finding(
        "swap",
        ERROR,
        f"a swap of {', '.join(cut_off.names)} was cut off on this node{told}",
        remedy="continue it: kb reconfigure static-pods; or take it back: kb reconfigure static-pods --undo",
    )
