"""The check of the rest of the cluster, from a control plane: other nodes, API servers, controllers, admission."""

from __future__ import annotations

from kubeup.cluster import api as kubeapi
from kubeup.cluster import health
from kubeup.diagnosis.checks.facts import ERROR, OK, WARNING, Finding, Findings
from kubeup.doctor.node_files import Patient
from kubeup.machine.http import Unreachable

_LEVELS = {"node": WARNING, "api-server": WARNING, "leader": ERROR, "admission": ERROR}
"""Where another machine is in trouble this node may be well; without controllers or admission nothing in the cluster goes on."""


def look_at_cluster(patient: Patient) -> Findings:
    """What only the cluster shows. This node itself and etcd have looks of their own. A worker's identity may not see it."""
    host = patient.host
    if not patient.is_control_plane or not host.exists(patient.kubeconfig):
        return
    api = kubeapi.Api(host, kubeapi.read_identity(host, patient.kubeconfig), retry_s=0)
    try:
        parts = health.probe_cluster(api)
    except Unreachable:
        return  # the look at this node's chain says why
    for part in parts:
        is_own = part.node == patient.config.node.name
        if part.unproven:
            yield Finding("cluster", OK, f"not proven: {part.unproven}", remedy="")
        elif part.trouble and not (is_own and part.kind == "node"):
            # what is wrong here is an error of the look that shows why; that it leads no longer follows from it
            level = WARNING if is_own else _LEVELS[part.kind]
            yield Finding("cluster", level, str(part.trouble), part.trouble.remedy)
