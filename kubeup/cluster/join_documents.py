"""Reads what a node needs from its cluster before it joins: the documents that init or kubeadm stored in kube-system."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Optional

from kubeup.addresses import host_of
from kubeup.cluster import api as kubeapi
from kubeup.cluster.clock import explain_untrusted
from kubeup.cluster.find_cluster import NEW_TOKEN, token_unknown
from kubeup.cluster.membership import Access, with_reachable_server
from kubeup.config.load_join import ClusterDocuments
from kubeup.config.types import Timeouts
from kubeup.errors import ClusterError
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.machine.http import Unreachable

with lazily:
    from kubeup.cluster import objects, try_mark


def read_documents(host: Host, access: Access, *, timeouts: Timeouts) -> ClusterDocuments:
    """The documents that a joining node needs. Raises ClusterError: server-unreachable, token-expired, token-unknown, try-elsewhere,
    not-kubeadms-cluster, and those of the API."""
    access = with_reachable_server(host, access)
    api = kubeapi.Api(host, access.identity, retry_s=timeouts.kubernetes_api_call_s)
    try:
        kubeadm_config = api.get(kubeapi.path_of("ConfigMap", "kubeadm-config", namespace=objects.SYSTEM))
        try_mark.refuse_marked(kubeadm_config, now=host.now(), node="")
        cluster_text = _key_of(kubeadm_config, "kubeadm-config", key="ClusterConfiguration")
        kubelet_config = api.get(kubeapi.path_of("ConfigMap", "kubelet-config", namespace=objects.SYSTEM))
        kubelet_text = _key_of(kubelet_config, "kubelet-config", key="kubelet")
        network, balancer = objects.read_pod_network(api), objects.read_load_balancer(api)
        found = ClusterDocuments(cluster_text, kubelet_text, network, balancer)
        if not balancer.is_local:
            return found
        asked = access.asked.partition("://")[2]
        servers = {*objects.read_api_servers(api), *([asked] if _is_address(asked) else [])}
        return replace(found, api_servers=tuple(sorted(servers)), reached_server=access.asked)
    except Unreachable as error:
        if error.reason == "tls":
            raise explain_untrusted(error, access.server, skew_s=access.skew_s, now=host.now()) from error
        raise ClusterError(
            f"the cluster's address {access.server} does not answer",
            cause=f"{error.cause}; cluster-info names it as the address of the API server for all nodes",
            remedy=f"check the way there from this node: curl -vk {access.server}/version",
            code="server-unreachable",
        ) from error
    except kubeapi.ApiRefused as error:
        if error.http_status == 401 and access.token:
            raise _token_refused(access) from error
        if error.http_status == 403:
            raise ClusterError(
                error.what,
                cause=error.cause,
                remedy="give tokens their rights, on a control plane: kb init phase upload-config all, then "
                "kb init phase bootstrap-token",
                code="join-rights-missing",
            ) from error
        raise


def _is_address(server: str) -> bool:
    """Whether the host in `host:port` is an IP address. The load balancer's file is read before names resolve."""
    try:
        ipaddress.ip_address(host_of(server))
    except ValueError:
        return False
    return True


def _token_refused(access: Access) -> ClusterError:
    token_id = access.token.reveal().partition(".")[0]
    if not access.has_signed:
        return token_unknown(token_id, access.server)
    return ClusterError(
        f"token {token_id} has expired",
        cause=f"cluster-info is signed with it, but the API server {access.server} no longer accepts it (or it "
        "never had the usage authentication)",
        remedy=f"make a new one {NEW_TOKEN}",
        code="token-expired",
    )


def _key_of(config_map: Optional[kubeapi.Object], name: str, *, key: str) -> str:
    text = objects.value_of(config_map, key)
    if not text:
        raise ClusterError(
            f"the cluster has no ConfigMap kube-system/{name} with a key {key}",
            cause="neither kb nor kubeadm made it, or its init was cut off",
            remedy="on a control plane: kb init phase upload-config",
            code="not-kubeadms-cluster",
        )
    return text
