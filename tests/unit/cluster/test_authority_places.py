"""Where the cluster's authority is told: what lacks which, and the servers behind a caBundle."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kubeup.cluster import authority_places
from kubeup.cluster.api import Api, ApiRefused, Identity
from kubeup.config.types import ClusterConfiguration
from kubeup.machine.http import HttpResponse, Tls
from kubeup.node import rotated_pairs
from kubeup.node.rotated_pairs import DROP, TRUST, Pair
from tests.fake_cluster import FakeCluster
from tests.fake_host import FakeHost

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/a.example.com"
SERVICE = "/apis/apiregistration.k8s.io/v1/apiservices/v1.example.com"


class Host(FakeHost):
    cluster: FakeCluster

    def http_get(self, url: str, **more: Any) -> HttpResponse:
        return self.cluster.answer("GET", url, b"", {})

    def http_send(self, method: str, url: str, *, body: bytes = b"", headers: Any = None, **more: Any) -> HttpResponse:
        return self.cluster.answer(method, url, body, headers or {})


def make_pair() -> Pair:
    cluster = ClusterConfiguration("v1.35.6", encryption_algorithm="ECDSA-P256")
    return rotated_pairs.make_pair(FakeHost(), cluster, authority="ca")


def encode(*pairs: Pair) -> str:
    return base64.b64encode("".join(one.cert_pem for one in pairs).encode()).decode()


@pytest.fixture
def host() -> Host:
    made = Host()
    made.cluster = FakeCluster()
    return made


def api_of(host: Host) -> Api:
    return Api(host, Identity("https://10.0.0.11:6443", Tls()), retry_s=0)


def test_what_lacks_the_new_one_and_what_has_the_former_one(host: Host) -> None:
    former, following = make_pair(), make_pair()
    meta = {"name": "kube-root-ca.crt", "namespace": "app"}
    one = {"kind": "ConfigMap", "metadata": meta, "data": {"ca.crt": former.cert_pem}}
    secret = {
        "kind": "Secret", "metadata": {"name": "old", "namespace": "app"}, "type": "kubernetes.io/service-account-token",
        "data": {"ca.crt": encode(former)},
    }  # fmt: skip
    host.cluster.objects = {"/api/v1/configmaps/app": one, "/api/v1/secrets/old": secret}

    def wrong(**more: Any) -> list[str]:
        return list(authority_places.find_wrong(api_of(host), **more))

    both = (former.cert, following.cert)
    assert wrong(wanted=both) == [
        "ConfigMap app/kube-root-ca.crt lacks the new one",
        "Secret app/old lacks the new one",
    ]
    one["data"] = {"ca.crt": following.cert_pem + former.cert_pem}
    secret["data"] = {"ca.crt": encode(following)}
    assert wrong(wanted=both) == ["Secret app/old lacks the new one"]
    assert wrong(wanted=both[1:], unwanted=both[:1]) == ["ConfigMap app/kube-root-ca.crt still has the former one"]


def test_the_caBundles_of_apis_and_conversions(host: Host) -> None:
    former, following = make_pair(), make_pair()
    client = {"caBundle": encode(former), "service": {"namespace": "app", "name": "hook", "port": 8443}}
    webhook = {"clientConfig": client}
    host.cluster.objects = {
        CRD: {"kind": "CustomResourceDefinition", "metadata": {"name": "a.example.com"}, "spec": {"conversion": {"webhook": webhook}}},
        SERVICE: {"kind": "APIService", "metadata": {"name": "v1.example.com"}, "spec": {**client, "group": "example.com"}},
        "/api/v1/namespaces/app/services/hook": {"kind": "Service", "metadata": {"name": "hook"}, "spec": {"clusterIP": "10.96.0.9"}},
    }  # fmt: skip
    host.served["10.96.0.9:8443"] = former.cert_pem
    found = list(authority_places.read_bundles(api_of(host)))
    assert [one.title for one in found] == [
        "the aggregated API of APIService v1.example.com",
        "the conversion of CustomResourceDefinition a.example.com",
    ]
    pems = {"former": former.cert_pem, "following": following.cert_pem}
    for one in found:
        assert one.has(former.cert) and authority_places.read_server(api_of(host), one) == former.cert
        assert authority_places.rewrite(api_of(host), one, **pems, stage=TRUST)
        with pytest.raises(ApiRefused):  # what was read has changed since
            authority_places.rewrite(api_of(host), one, **pems, stage=TRUST)
    for one in authority_places.read_bundles(api_of(host)):
        assert one.has(former.cert) and one.has(following.cert)
        assert not authority_places.rewrite(api_of(host), one, **pems, stage=TRUST)
        assert authority_places.rewrite(api_of(host), one, **pems, stage=DROP)


@pytest.mark.parametrize(
    ("client", "place"),
    [
        ({"url": "https://10.0.0.9:9443/x"}, ("10.0.0.9", 9443)),
        ({"url": "https://hook.example.com/x"}, ("hook.example.com", 443)),
        ({"url": "https://[fd00::9]:9443/x"}, ("fd00::9", 9443)),
        ({"url": "https://[fd00::9]/x"}, ("fd00::9", 443)),
        ({"service": {"name": "gone", "namespace": "app"}}, None),
        ({}, None),
    ],
)
def test_where_a_server_is(host: Host, client: Any, place: Any) -> None:
    assert authority_places._find_place(api_of(host), client) == place
