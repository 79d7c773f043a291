"""Doctor's check of this machine's own firewall: whether it keeps other machines from what this node serves to them.

A control plane notices that it does not reach a worker's kubelet; on the worker itself only the rule shows. Which other nodes there are decides what
has to be open: alone, a control plane serves nobody by its addresses.
"""

from __future__ import annotations

import contextlib

from kubeup.cluster import objects
from kubeup.cluster.api import path_of
from kubeup.diagnosis.checks.facts import ERROR, Finding, Findings
from kubeup.doctor.node_files import Patient, list_servers, open_api, read_flags
from kubeup.errors import KbError
from kubeup.network.input_rules import Bar, Packet, find_bars

CLOSED_ETCD = "firewall/etcd"
"""The finding of a member of etcd that is cut off from the others: this node's API server reads nothing."""
_KUBELET, _CLIENTS, _PEERS = 10250, 2379, 2380


def look_at_firewall(patient: Patient) -> Findings:
    """Ports from which a rule here keeps every other machine. What depends on a source, or cannot be read, is let pass."""
    if not patient.is_member:
        return
    own = patient.config.local_api_endpoint
    inside = tuple(filter(None, patient.config.cluster.networking.pod_subnet.split(",")))
    served = _list_served(patient)
    version = 6 if ":" in own.advertise_address else 4
    bars = find_bars(patient.host, [Packet(port, version, inside) for port in served])
    if not bars:
        return
    wanted = _choose_wanted(patient)
    ports: dict[Bar, list[int]] = {}
    for packet, bar in bars.items():
        if served[packet.port][0] in wanted:
            ports.setdefault(bar, []).append(packet.port)
    for bar, some in ports.items():
        lost = ", ".join(dict.fromkeys(served[port][1] for port in some))
        named = f"TCP port{'s' if len(some) > 1 else ''} {', '.join(map(str, some))}"
        text = f"this machine's firewall keeps every other machine from {named}, so {lost}: {bar.rule}"
        is_rule = not bar.remedy.startswith("see ")
        remedy = f"let {named} in from the cluster's nodes, as your firewall does it"
        yield Finding(
            CLOSED_ETCD if _PEERS in some else "firewall",
            ERROR,
            text,
            f"{remedy}; {'if nothing needs that rule: ' if is_rule else ''}{bar.remedy}",
        )


def _list_served(patient: Patient) -> dict[int, tuple[str, str]]:
    """Port -> (who has to reach it: planes | nodes, what fails if they do not)."""
    kubelet = patient.config.kubelet.get("port")
    ports = {
        kubelet if isinstance(kubelet, int) and kubelet else _KUBELET: (
            "planes",
            "kubectl logs and exec do not reach its pods",
        )
    }
    if "kube-apiserver" in patient.components:
        ports[patient.config.local_api_endpoint.bind_port] = ("nodes", "no other node reaches its API server")
    if "etcd" in patient.components:
        ports |= dict.fromkeys((_CLIENTS, _PEERS), ("planes", "other members do not reach its etcd"))
    return ports


def _choose_wanted(patient: Patient) -> set[str]:
    """Of whom there are others: planes | nodes. A worker always has a control plane elsewhere."""
    if not patient.is_control_plane:
        return {"planes"}
    told = read_flags(patient.host, patient.paths, component="etcd").get("initial-cluster", "")
    if len(list_servers(patient)) > 1 or "," in told:
        return {"planes", "nodes"}
    with contextlib.suppress(KbError):
        api = open_api(patient)
        planes = api.list(path_of("Node"), label=objects.CONTROL_PLANE_TAINT.key)
        nodes = planes if len(planes) > 1 else api.list(path_of("Node"))
        return {name for name, some in (("planes", planes), ("nodes", nodes)) if len(some) > 1}
    return set()
