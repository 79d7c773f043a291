"""Doctor's checks of --cluster: every node as the API knows it, and the pods without which a cluster does not work."""

from __future__ import annotations

from kubeup.cluster import api as kubeapi
from kubeup.cluster import dns_service, node_state, objects, probes, stuck_pods
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.doctor.looks import dns_zone
from kubeup.doctor.node_files import Patient, open_api


def look_at_every_node(patient: Patient) -> Findings:
    """What keeps pods away from nodes that are Ready. Those that are not are the cluster look's."""
    for node in open_api(patient).list(kubeapi.path_of("Node")):
        if probes.node_condition(node)[0] == "True":
            for trouble in node_state.find_troubles(node):
                yield Finding("nodes", ERROR, str(trouble), trouble.remedy)
        cordon = node_state.find_cordon(node)
        if cordon:
            yield Finding("nodes", WARNING, str(cordon), cordon.remedy)


def look_at_system_pods(patient: Patient) -> Findings:
    """The pods of kube-system: DNS, kube-proxy, and what else the cluster was given."""
    api = open_api(patient)
    nodes = api.list(kubeapi.path_of("Node"), label=objects.CONTROL_PLANE_TAINT.key)
    ready = sorted(str(node["metadata"]["name"]) for node in nodes if probes.node_condition(node)[0] == "True")
    missing = stuck_pods.find_missing(api, objects.SYSTEM, nodes=ready)
    for trouble in (*missing, *stuck_pods.find_stuck(api, objects.SYSTEM)):
        yield Finding("pods", ERROR, str(trouble), trouble.remedy)


def look_at_dns_address(patient: Patient) -> Findings:
    """Whether there is a Service at the address that nodes are to give to pods for the cluster's DNS, and it knows the domain that they give."""
    api = open_api(patient)
    servers, domain = dns_service.read_told(api)
    trouble = dns_service.find_odd_address(api, servers)
    if trouble is not None:
        yield Finding("dns", ERROR, str(trouble), trouble.remedy)
        return
    silence = dns_service.explain_silence(api, servers, reads_pods=True) if servers else None
    if silence is not None and not dns_service.is_left_out(api, servers):
        yield Finding("dns", ERROR, f"nothing answers for the cluster's DNS: {silence}", silence.remedy)
        return
    zone = dns_zone.explain_zone(api, domain) if domain else None
    if zone is not None:
        yield Finding("dns", ERROR, f"the cluster's DNS knows no Service in {domain}: {zone}", zone.remedy)
