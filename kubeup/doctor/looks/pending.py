"""Doctor's check of pods that do not start, for a reason that is the cluster's: what breaks nothing that runs shows only here."""

from __future__ import annotations

from kubeup.cluster import api as kubeapi
from kubeup.cluster import pending_pods
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings, not_proven
from kubeup.doctor import node_files
from kubeup.doctor.node_files import Patient, open_api
from kubeup.machine.http import Unreachable


def look_at_pending(patient: Patient) -> Findings:
    """Only on a control plane, since a worker's identity sees its own pods alone. Another node's trouble is only a warning here."""
    if not patient.is_control_plane or not patient.host.exists(patient.kubeconfig):
        return
    try:
        found = _find(patient)
    except Unreachable as error:
        yield not_proven("pending-pods", error)
        return
    except kubeapi.ApiRefused as error:
        if error.http_status not in (401, 403):
            raise
        yield not_proven("pending-pods", error)
        return
    for one in found:
        is_away = one.is_as_made or one.node not in ("", patient.config.node.name)
        yield Finding("pending-pods", WARNING if is_away else ERROR, str(one.trouble), one.trouble.remedy)


def look_at_all_pending(patient: Patient) -> Findings:
    """The same for all nodes, this one as any other. Raises what the API does."""
    for one in _find(patient):
        yield Finding("pending-pods", WARNING if one.is_as_made else ERROR, str(one.trouble), one.trouble.remedy)


def _find(patient: Patient) -> list[pending_pods.Pending]:
    flags = node_files.read_flags(patient.host, patient.paths, component="kube-apiserver")
    pulls_always = "AlwaysPullImages" in flags.get("enable-admission-plugins", "").split(",")
    return pending_pods.find_pending(open_api(patient), pulls_always=pulls_always)
