"""kubeup/cluster/join_documents.py: what a joining node reads, and by which server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

import pytest

from kubeup.cluster import join_documents, membership
from kubeup.config.load_join import ClusterDocuments
from kubeup.errors import KbError
from kubeup.machine.http import AnyTls, HttpResponse, Unreachable
from kubeup.trust import Anchors
from tests.unit.cluster.discovery_case import (
    CA,
    ENDPOINT,
    SERVER,
    TIMEOUTS,
    TOKEN,
    ClusterHost,
    cluster_host,
    documents_host,
    unreachable,
    wanted,
)


def read(host: ClusterHost, has_signed: bool = True) -> ClusterDocuments:
    return join_documents.read_documents(
        host, membership.Access(SERVER, Anchors.given(CA), TOKEN, has_signed=has_signed), timeouts=TIMEOUTS
    )


def read_fails(host: ClusterHost, has_signed: bool = True) -> KbError:
    with pytest.raises(KbError) as caught:
        read(host, has_signed)
    return caught.value


def test_the_documents_of_the_cluster() -> None:
    found = read(documents_host())
    assert found.cluster_text == "kind: ClusterConfiguration"
    assert found.kubelet_text == "kind: KubeletConfiguration"
    assert (found.pod_network.plugin, found.pod_network.backend) == ("bridge", "route")


def test_why_the_documents_cannot_be_had() -> None:
    expired = read_fails(documents_host(good_tokens=set()))
    assert expired.code == "token-expired" and "abcdef" in expired.what
    assert read_fails(documents_host(good_tokens=set()), has_signed=False).code == "token-unknown"
    assert read_fails(cluster_host(TOKEN)).code == "not-kubeadms-cluster"
    away = read_fails(documents_host(trouble={"server": unreachable("timeout", "timed out")}))
    assert away.code == "server-unreachable" and SERVER in away.what
    forbidden = HttpResponse(403, b'{"kind": "Status", "reason": "Forbidden", "message": "no"}')
    assert read_fails(documents_host(trouble={"server": forbidden})).code == "join-rights-missing"


# ---- a cluster whose name for its API servers leads nowhere yet


def balanced_host(**fields: Any) -> ClusterHost:
    """Only ENDPOINT is in reach; the nodes have load balancers of their own."""
    host = NearHost(**{name: getattr(documents_host(), name) for name in ("data", "objects")}, **fields)
    host.objects["api/v1/namespaces/kube-system/configmaps/kb-config"]["data"]["loadBalancer"] = (
        "mode: local\nimage: m/haproxy:1\nhealthPort: 10281\n"
    )
    host.objects["apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"] = {
        "endpoints": [{"addresses": ["10.0.0.12"]}],
        "ports": [{"name": "https", "port": 6443}],
    }
    return host


class NearHost(ClusterHost):
    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = 4 << 20,
    ) -> HttpResponse:
        if url.startswith(SERVER):
            raise Unreachable(url, "dns", text="unknown name")
        return super().http_get(url, tls=tls, headers=headers, timeout_s=timeout_s)


def access_of(host: ClusterHost) -> membership.Access:
    return membership.Access(SERVER, Anchors.given(CA), TOKEN, has_signed=True, asked=f"https://{ENDPOINT}")


def test_kb_goes_on_with_the_server_that_answered_discovery() -> None:
    host = balanced_host()
    found = join_documents.read_documents(host, access_of(host), timeouts=TIMEOUTS)
    assert found.reached_server == f"https://{ENDPOINT}"
    assert found.load_balancer.is_local and found.load_balancer.image == "m/haproxy:1"
    assert found.api_servers == (ENDPOINT, "10.0.0.12:6443")
    assert all(host.sent_tokens)


def test_a_name_in_the_way_of_joining_is_no_backend() -> None:
    host = balanced_host()
    found = join_documents.read_documents(
        host, replace(access_of(host), asked=f"https://{ENDPOINT}"), timeouts=TIMEOUTS
    )
    assert all(not server[0].isalpha() for server in found.api_servers)
    assert not join_documents._is_address("cp1.example:6443") and join_documents._is_address("[fd00::1]:6443")


def test_without_such_load_balancers_the_cluster_s_own_address_must_do() -> None:
    host = balanced_host()
    del host.objects["api/v1/namespaces/kube-system/configmaps/kb-config"]["data"]["loadBalancer"]
    with pytest.raises(KbError) as caught:
        join_documents.read_documents(host, access_of(host), timeouts=TIMEOUTS)
    assert caught.value.code == "server-unreachable" and SERVER in caught.value.what


def test_an_expired_token_is_told_all_the_same() -> None:
    host = balanced_host(good_tokens=set())
    with pytest.raises(KbError) as caught:
        join_documents.read_documents(host, access_of(host), timeouts=TIMEOUTS)
    assert caught.value.code == "token-expired"


def test_a_member_whose_load_balancer_does_not_run_yet_is_heard_by_the_server_on_the_command_line() -> None:
    host = balanced_host()
    member = membership.Access(SERVER, Anchors.given(CA), is_member=True)
    found = membership.find_way_of_member(host, member, wanted=wanted())
    assert found.asked == f"https://{ENDPOINT}" and found.is_member
    assert membership.find_way_of_member(cluster_host(), member, wanted=wanted()) == member
