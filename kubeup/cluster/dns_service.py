"""Why the cluster's DNS does not answer at the address that pods ask: from its Service to the pods behind it."""

from __future__ import annotations

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


def explain_silence(api: Api, servers: Sequence[str], *, reads_pods: bool) -> Optional[Trouble]:
    """The first broken link behind the addresses in the kubelet's clusterDNS; None if all that can be read is well. reads_pods: whether this
    identity may read all pods of kube-system, as that of a worker may not. Raises Unreachable, ApiRefused."""
    service = api.get(path_of("Service", SERVICE, namespace=objects.SYSTEM))
    if service is None:
        what = f"there is no Service {SERVICE} in {objects.SYSTEM}"
        return Trouble(
            what,
            f"it was deleted, and pods ask its address {', '.join(servers)}",
            "kb init phase addon coredns, on a control plane",
        )
    shape = {"spec!": {"clusterIP!": str, "clusterIPs!": [str], "selector!": {str: str}}}
    spec = fit_what_does(service, shape)["spec"]
    addresses = spec["clusterIPs"] or [spec["clusterIP"]]
    if not set(addresses) & set(servers):
        return Trouble(
            f"the kubelet tells pods to ask {', '.join(servers)}, and the Service {SERVICE} is at {', '.join(addresses)}",
            "clusterDNS in /var/lib/kubelet/config.yaml",
            f"correct it (clusterDNS: [{', '.join(addresses)}]), here and in ConfigMap {objects.SYSTEM}/kubelet-config; then: systemctl restart kubelet",
        )
    return _explain_pods(api, spec["selector"]) if reads_pods else None


def is_left_out(api: Api, servers: Sequence[str]) -> bool:
    """Whether the cluster is meant to be without DNS (`dns.disabled`, as `--skip-phases addon/coredns` stores it too), and no Service of
    anybody's is at these addresses. Raises Unreachable, ApiRefused."""
    shape = {"spec!": {"clusterIP!": str, "clusterIPs!": [str]}}
    for service in api.list(path_of("Service")):
        spec = fit_what_does(service, shape)["spec"]
        if {spec["clusterIP"], *spec["clusterIPs"]} & set(servers):
            return False
    text = objects.read_config_key(api, "kubeadm-config", key="ClusterConfiguration")
    try:
        stored = load_mapping(text, "ConfigMap kubeadm-config")
    except HostError:  # what damaged it has findings of its own
        return False
    return as_table(stored.get("dns")).get("disabled") is True


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
