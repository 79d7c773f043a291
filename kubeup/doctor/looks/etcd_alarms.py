"""The check of etcd's alarms, which stay until somebody disarms them."""

from __future__ import annotations

from kubeup.cluster import etcd
from kubeup.diagnosis.checks.facts import ERROR, Finding, Findings, not_proven
from kubeup.doctor.node_files import Patient, read_mapping
from kubeup.errors import HostError
from kubeup.machine.http import Unreachable

_MEANS = {
    "NOSPACE": "its database has reached its quota, and nothing in the cluster can be written any more",
    "CORRUPT": "the data of this member differ from the others', and it is not to be trusted",
}
_DOES = {
    "NOSPACE": "kb etcd alarm disarm, which makes room first",
    "CORRUPT": "see whose: kb etcd alarm list; on another control plane: kb etcd remove NAME; then here: kb reset --force, and join again",
}


def look_at_etcd_alarms(patient: Patient) -> Findings:
    """The alarms that etcd has raised. Why an etcd does not answer is other checks' to tell."""
    if "etcd" not in patient.components:
        return
    urls = etcd.client_urls_of_manifest(read_mapping(patient.host, patient.paths.manifest("etcd")))
    try:
        alarms = etcd.Etcd(patient.host, urls, tls=etcd.read_client_tls(patient.host, patient.paths)).list_alarms()
    except (Unreachable, etcd.EtcdRefused, HostError) as error:
        yield not_proven("etcd-alarms", error)
        return
    for kind in dict.fromkeys(alarm.kind for alarm in alarms):
        text = f"etcd has raised the alarm {kind}: {_MEANS.get(kind, 'see its documentation')}"
        yield Finding("etcd-alarms", ERROR, text, _DOES.get(kind, "kb etcd alarm list"))
