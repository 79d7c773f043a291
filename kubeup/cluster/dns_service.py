"""Why the cluster's DNS does not answer at the address that pods ask: from its Service to the pods behind it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from kubeup.cluster import objects, probes, stuck_pods
from kubeup.cluster.api import Api, path_of
from kubeup.errors import HostError
from kubeup.json_text import as_table
from kubeup.shapes import fit_what_does
from kubeup.trouble import Trouble
from kubeup.yaml_files import load_mapping

SERVICE = "kube-dns"
_POD = {"metadata!": {"name!": str, "labels!": {str: str}}, "spec!": {"nodeName!": str}}


_BY_KUBELET = "the kubelet tells pods", "clusterDNS in /var/lib/kubelet/config.yaml"
_BY_CONFIG = (
    f"kubelets are to tell pods by ConfigMap {objects.SYSTEM}/kubelet-config",
    "clusterDNS there; and in /var/lib/kubelet/config.yaml of the nodes that have joined by it",
)


def explain_silence(api: Api, servers: Sequence[str], *, reads_pods: bool) -> Optional[Trouble]:
    """The first broken link behind the addresses in the kubelet's clusterDNS; None if all that can be read is well. reads_pods: whether this
    identity may read all pods of kube-system, as that of a worker may not. Raises Unreachable, ApiRefused."""
    service = api.get(path_of("Service", SERVICE, namespace=objects.SYSTEM))
    if service is None:
        return _say_gone(servers)
    trouble = _judge_address(service, servers)
    if trouble is not None:
        return trouble
    return _judge_ports(service) or (
        _explain_pods(api, fit_what_does(service, _SERVICE)["spec"]["selector"]) if reads_pods else None
    )


def _judge_ports(service: Any) -> Optional[Trouble]:
    """The ports of DNS (RFC 1035, 4.2), and to which of CoreDNS they lead: its pods name it dns and dns-tcp."""
    rows = fit_what_does(service, {"spec!": {"ports!": [{"port!": int, "protocol!": str, "targetPort": object}]}})[
        "spec"
    ]["ports"]
    told = {row["protocol"] or "TCP": str(row.get("targetPort", 53)) for row in rows if row["port"] == 53}
    lost = [kind for kind in ("UDP", "TCP") if kind not in told]
    odd = {kind: port for kind, port in told.items() if port not in ("53", "dns", "dns-tcp")}
    if not rows or (not lost and not odd):
        return None
    what = (
        f"Service {SERVICE} has no port 53 for {' and '.join(lost)}"
        if lost
        else f"Service {SERVICE} leads to port {' and '.join(odd.values())} of CoreDNS' pods"
    )
    return Trouble(
        what,
        "it was changed",
        f"if CoreDNS does not listen there by its Corefile: kubectl -n {objects.SYSTEM} delete service {SERVICE}; kb init phase addon coredns, on a control plane",
    )


def explain_address(api: Api, servers: Sequence[str], *, told: tuple[str, str] = _BY_KUBELET) -> Optional[Trouble]:
    """Why nothing answers at these addresses, if no Service has one of them; None if one has. Raises Unreachable, ApiRefused."""
    if _is_served(api, servers):
        return None
    service = api.get(path_of("Service", SERVICE, namespace=objects.SYSTEM))
    return _judge_address(service, servers, told=told) if service is not None else _say_gone(servers)


def read_told(api: Api) -> tuple[list[str], str]:
    """The addresses and the domain of the cluster's DNS that kubelets are to give to pods, by the ConfigMap from which nodes join; [] and "" if it
    cannot be read, which has findings of its own. Raises Unreachable, ApiRefused."""
    try:
        stored = load_mapping(objects.read_config_key(api, "kubelet-config", key="kubelet"), "ConfigMap kubelet-config")
    except HostError:
        return [], ""
    told = stored.get("clusterDNS")
    return [str(one) for one in told] if isinstance(told, list) else [], str(stored.get("clusterDomain") or "")


def find_odd_address(api: Api, servers: Sequence[str]) -> Optional[Trouble]:
    """Whether the address that kubelets are to give to pods is none of a Service, or the Service there leads past CoreDNS. Raises Unreachable,
    ApiRefused."""
    if not servers or is_left_out(api, servers):
        return None
    service = api.get(path_of("Service", SERVICE, namespace=objects.SYSTEM))
    return explain_address(api, servers, told=_BY_CONFIG) or (_judge_ports(service) if service is not None else None)


def _say_gone(servers: Sequence[str]) -> Trouble:
    what = f"there is no Service {SERVICE} in {objects.SYSTEM}"
    cause = f"it was deleted, and pods ask its address {', '.join(servers)}"
    return Trouble(what, cause, "kb init phase addon coredns, on a control plane")


_SERVICE = {"spec!": {"clusterIP!": str, "clusterIPs!": [str], "selector!": {str: str}}}


def _judge_address(service: Any, servers: Sequence[str], *, told: tuple[str, str] = _BY_KUBELET) -> Optional[Trouble]:
    """told: who gives pods these addresses, and where that stands."""
    spec = fit_what_does(service, _SERVICE)["spec"]
    addresses = spec["clusterIPs"] or [spec["clusterIP"]]
    if set(addresses) & set(servers) or any(map(_is_of_one_node, servers)):
        return None
    return Trouble(
        f"{told[0]} to ask {', '.join(servers)}, and the Service {SERVICE} is at {', '.join(addresses)}",
        told[1],
        f"correct it (clusterDNS: [{', '.join(addresses)}]), on every node and in ConfigMap {objects.SYSTEM}/kubelet-config; then there: systemctl restart kubelet",
    )


def _is_of_one_node(address: str) -> bool:
    """Whether a cache of DNS on each node answers there, and no Service: NodeLocal DNSCache has such an address."""
    try:
        return ipaddress.ip_address(address).is_link_local
    except ValueError:
        return False


def _is_served(api: Api, servers: Sequence[str]) -> bool:
    """Whether a Service, anybody's, is at one of these addresses."""
    shape = {"spec!": {"clusterIP!": str, "clusterIPs!": [str]}}
    specs = (fit_what_does(service, shape)["spec"] for service in api.list(path_of("Service")))
    return any({spec["clusterIP"], *spec["clusterIPs"]} & set(servers) for spec in specs)


def is_left_out(api: Api, servers: Sequence[str]) -> bool:
    """Whether the cluster is meant to be without DNS (`dns.disabled`, as `--skip-phases addon/coredns` stores it too), and no Service of
    anybody's is at these addresses. Raises Unreachable, ApiRefused."""
    if _is_served(api, servers):
        return False
    return as_table(read_stored(api).get("dns")).get("disabled") is True


def read_stored(api: Api) -> dict[str, Any]:
    """The ClusterConfiguration in the cluster; {} if it cannot be read: what damaged it has findings of its own. Raises Unreachable, ApiRefused."""
    text = objects.read_config_key(api, "kubeadm-config", key="ClusterConfiguration")
    try:
        return load_mapping(text, "ConfigMap kubeadm-config")
    except HostError:
        return {}


def _explain_pods(api: Api, selector: Mapping[str, str]) -> Optional[Trouble]:
    pods = api.list(path_of("Pod", namespace=objects.SYSTEM))
    chosen = [pod for pod in pods if _chooses(selector, fit_what_does(pod, _POD)["metadata"]["labels"])]
    if not chosen:
        return _explain_none(api, selector)
    if any(probes.node_condition(pod)[0] == "True" for pod in chosen):
        return None
    for trouble in filter(None, (stuck_pods.judge(api, pod) for pod in chosen)):
        return trouble
    names = [
        f"{pod['metadata']['name']} on node {fit_what_does(pod, _POD)['spec']['nodeName'] or '?'}" for pod in chosen
    ]
    name = chosen[0]["metadata"]["name"]
    failure = probes.read_start_failure(api, name)
    if failure:
        is_config = 'configmap "coredns" not found' in failure
        see = f"kubectl -n {objects.SYSTEM} describe pod {name}"
        return Trouble(
            f"none of the pods behind Service {SERVICE} is started",
            f"{names[0]}: {failure}",
            "kb init phase addon coredns, on a control plane" if is_config else see,
        )
    return Trouble(
        f"none of the pods behind Service {SERVICE} is Ready",
        "; ".join(f"{one}: {probes.node_condition(pod)[1] or 'no reason given'}" for one, pod in zip(names, chosen)),
        f"kubectl -n {objects.SYSTEM} logs {name}",
    )


def _chooses(selector: Mapping[str, str], labels: Mapping[str, Any]) -> bool:
    """Whether a Service with this selector leads to pods with these labels; without one it leads to none."""
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def _explain_none(api: Api, selector: Mapping[str, str]) -> Trouble:
    """No pod has the selector's labels: either there are none, or the selector is not theirs."""
    told = ",".join(f"{key}={value}" for key, value in selector.items()) or "none"
    what = f"Service {SERVICE} leads to no pod: its selector is {told}"
    deployments = api.list(path_of("Deployment", namespace=objects.SYSTEM))
    shape = {
        "metadata!": {"name!": str},
        "spec!": {"replicas": int, "template!": {"metadata!": {"labels!": {str: str}}}},
    }
    rows = [fit_what_does(one, shape) for one in deployments]
    fitting = [one for one in rows if _chooses(selector, one["spec"]["template"]["metadata"]["labels"])]
    if not fitting:
        others = [one["metadata"]["name"] for one in rows if one["metadata"]["name"] in ("coredns", "kube-dns")]
        cause = f"the pods of Deployment {others[0]} have other labels" if others else "no Deployment makes such pods"
        return Trouble(what, cause, "kb init phase addon coredns, on a control plane")
    name, replicas = fitting[0]["metadata"]["name"], fitting[0]["spec"].get("replicas", 1)
    if replicas == 0:
        return Trouble(
            what,
            f"Deployment {name} is scaled to 0",
            f"kubectl -n {objects.SYSTEM} scale deployment {name} --replicas=2",
        )
    return Trouble(
        what,
        f"Deployment {name} has none of its {replicas} pods",
        f"kubectl -n {objects.SYSTEM} describe deployment,replicaset",
    )
