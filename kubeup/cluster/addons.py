"""The two addons of every cluster: CoreDNS and kube-proxy.

This module renders their objects. From a running CoreDNS it keeps the number of replicas and an edited Corefile. It does not talk
to the cluster: the phases pass in what is there. Mirrors cmd/kubeadm/app/phases/addons/{dns,proxy} and
cmd/kubeadm/app/componentconfigs/kubeproxy.go.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from kubeup.cluster import dns_spread
from kubeup.cluster.api import Object
from kubeup.cluster.objects import HASH_ANNOTATION
from kubeup.config.types import ClusterConfiguration, NodeConfig
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.node import images, kubelet, patches
from kubeup.node.kubeconfig import control_plane_url
from kubeup.releases import RELEASES, Release
from kubeup.yaml_files import containers_of_pod, dump_yaml, fill_template, load_all_yaml, load_yaml, read_resource

DNS_LABEL = "k8s-app=kube-dns"
KUBE_PROXY_KUBECONFIG = "/var/lib/kube-proxy/kubeconfig.conf"
_DNS_ADDRESS_INDEX = 10
_PROBE_PORTS = {"liveness-probe": 8080, "readiness-probe": 8181}


def is_generated(config_map: Optional[Mapping[str, Any]]) -> bool:
    """Whether a component's configuration is what a tool generated: then its annotation is the hash of the data."""
    meta, data = ((config_map or {}).get(name) or {} for name in ("metadata", "data"))
    return (meta.get("annotations") or {}).get(HASH_ANNOTATION) == kubelet.component_config_hash(data)


def container_of(owner: Optional[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The container of this name in the pods of a Deployment or DaemonSet; the first one if none is called so, {} if there is none."""
    template = ((owner or {}).get("spec") or {}).get("template") or {}
    return next(iter(containers_of_pod({"metadata": {"name": name}, "spec": template.get("spec")})), {})


# ---- CoreDNS


@frozen
class RunningDns:
    """The current state of a cluster's DNS. The defaults are those of a new cluster."""

    deployment: str = "coredns"
    replicas: int = 2
    corefile: str = ""
    service_address: str = ""
    tag: str = ""
    """Of its image: `v1.13.1`; "" if there is none."""


def parse_running_dns(
    deployments: Sequence[Mapping[str, Any]],
    config_map: Optional[Mapping[str, Any]],
    *,
    service: Optional[Mapping[str, Any]],
) -> RunningDns:
    """The running DNS, from the Deployments with kube-dns' label, ConfigMap coredns and Service kube-dns.

    Raises ClusterError (dns-deployments-many) if there is more than one Deployment.
    """
    if len(deployments) > 1:
        names = ", ".join(sorted(str(found["metadata"]["name"]) for found in deployments))
        raise ClusterError(
            f"{len(deployments)} Deployments in kube-system carry the label {DNS_LABEL}: {names}",
            cause="kb cannot tell which of them is the cluster's DNS",
            remedy="delete the one that is not: kubectl -n kube-system delete deployment NAME",
            code="dns-deployments-many",
        )
    new = RunningDns()
    found = deployments[0] if deployments else {}
    return RunningDns(
        deployment=str((found.get("metadata") or {}).get("name") or new.deployment),
        replicas=dns_spread.is_moving(found) or int((found.get("spec") or {}).get("replicas", new.replicas)),
        corefile=str(((config_map or {}).get("data") or {}).get("Corefile", "")),
        service_address=str(((service or {}).get("spec") or {}).get("clusterIP", "")),
        tag=str(container_of(found, "coredns").get("image") or "")
        .partition("@")[0]
        .rpartition("/")[2]
        .partition(":")[2],
    )


def render_corefile(cluster: ClusterConfiguration, release: Release) -> str:
    return fill_template(f"addons/{release.corefile}", {"dns_domain": cluster.networking.dns_domain})


def is_default_corefile(text: str, cluster: ClusterConfiguration) -> bool:
    """Whether `text` is the Corefile that kubeadm or kb writes for any minor version that kb knows, apart from spacing and
    comments. Only such a Corefile is replaced."""
    return any(_tokens(text) == _tokens(render_corefile(cluster, row)) for row in RELEASES.values())


def _tokens(corefile: str) -> list[list[str]]:
    lines = (line.partition("#")[0].split() for line in corefile.splitlines())
    return [line for line in lines if line]


def render_coredns(
    config: NodeConfig, release: Release, *, running: RunningDns, patch: Optional[patches.Patches] = None
) -> list[Object]:
    """CoreDNS' objects, in the order in which they are written.

    Raises ClusterError (dns-address-differs) if the address of the existing Service kube-dns differs from the configured one:
    the address of a Service cannot be changed.
    """
    cluster = config.cluster
    address = cluster.service_address(_DNS_ADDRESS_INDEX)
    if running.service_address not in ("", address):
        raise ClusterError(
            f"Service kube-dns has the address {running.service_address}, and serviceSubnet "
            f"{cluster.networking.service_subnet} gives it {address}",
            cause="a Service's address cannot be changed, and every pod has the old one in its resolv.conf",
            remedy=f"set networking.serviceSubnet back to the range that {running.service_address} comes from",
            code="dns-address-differs",
        )
    values = {
        "deployment": running.deployment,
        "replicas": running.replicas,
        "image": images.image_of("coredns", cluster, release=release).ref,
        "service_address": address,
    }
    objects = _load("addons/coredns.yaml", values)
    is_edited = running.corefile != "" and not is_default_corefile(running.corefile, cluster)
    for index, found in enumerate(objects):
        if found["kind"] == "ConfigMap":
            found["data"]["Corefile"] = running.corefile if is_edited else render_corefile(cluster, release)
        elif found["kind"] == "Deployment":
            if not release.has_named_probe_ports:
                _number_probe_ports(found)
            if patch is not None:
                objects[index] = patch.apply("corednsdeployment", found)
    return objects


def _number_probe_ports(deployment: Object) -> None:
    """Replace port names by numbers in the probes: older minor versions have no container ports for them."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["ports"] = [port for port in container["ports"] if port["name"] not in _PROBE_PORTS]
    for probe in ("livenessProbe", "readinessProbe"):
        container[probe]["httpGet"]["port"] = _PROBE_PORTS[container[probe]["httpGet"]["port"]]


# ---- kube-proxy


def render_kube_proxy_config(config: NodeConfig) -> dict[str, Any]:
    """The KubeProxyConfiguration: zero values, overridden by what kb knows of the cluster, then by the user's fields."""
    is_ipv6 = ":" in config.local_api_endpoint.advertise_address
    known: dict[str, Any] = {
        "bindAddress": "::" if is_ipv6 else "0.0.0.0",
        "clusterCIDR": config.cluster.networking.pod_subnet,
        "clientConnection": {"kubeconfig": KUBE_PROXY_KUBECONFIG},
    }
    zero = load_yaml(read_resource("addons/kube-proxy-config.yaml"))
    return merge(merge(zero, known), config.kube_proxy)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` overridden by `over`: mappings are merged field by field, everything else is replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def render_kube_proxy(config: NodeConfig, release: Release) -> list[Object]:
    """kube-proxy's objects, in the order in which they are written."""
    objects = _load(
        "addons/kube-proxy.yaml", {"image": images.image_of("kube-proxy", config.cluster, release=release).ref}
    )
    config_map, daemon_set = objects[0], objects[1]
    kubeconfig = fill_template("addons/kube-proxy-kubeconfig.yaml", {"server": control_plane_url(config)})
    # the two files end without a newline, as kubeadm's do, because the hash below covers the text
    config_map["data"] = {
        "config.conf": dump_yaml(render_kube_proxy_config(config)).rstrip("\n"),
        "kubeconfig.conf": kubeconfig.rstrip("\n"),
    }
    if not config.kube_proxy:
        config_map["metadata"]["annotations"] = {HASH_ANNOTATION: kubelet.component_config_hash(config_map["data"])}
    (container,) = daemon_set["spec"]["template"]["spec"]["containers"]
    container["env"] += [{"name": name, "value": value} for name, value in sorted(config.proxy_env.items())]
    return objects


def _load(name: str, values: Mapping[str, object]) -> list[Object]:
    return [dict(document) for document in load_all_yaml(fill_template(name, values))]
