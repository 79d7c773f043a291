"""kubeup/node/cert_specs.py: kubeadm's table, and the names in a certificate."""

from __future__ import annotations

import dataclasses

import pytest

from kubeup.config.types import ClusterConfiguration, ExternalEtcd, LocalEtcd
from kubeup.node import cert_specs
from tests.fake_node import make_config

# ---- the table


def test_table_is_kubeadms() -> None:
    client, server = "client", "server"
    assert [
        (spec.name, spec.base, spec.signer, spec.common_name, [server] * spec.is_server + [client] * spec.is_client)
        for spec in cert_specs.CERTS.values()
    ] == [
        ("ca", "ca", "", "kubernetes", []),
        ("apiserver", "apiserver", "ca", "kube-apiserver", [server]),
        ("apiserver-kubelet-client", "apiserver-kubelet-client", "ca", "kube-apiserver-kubelet-client", [client]),
        ("front-proxy-ca", "front-proxy-ca", "", "front-proxy-ca", []),
        ("front-proxy-client", "front-proxy-client", "front-proxy-ca", "front-proxy-client", [client]),
        ("etcd-ca", "etcd/ca", "", "etcd-ca", []),
        ("etcd-server", "etcd/server", "etcd-ca", "", [server, client]),
        ("etcd-peer", "etcd/peer", "etcd-ca", "", [server, client]),
        ("etcd-healthcheck-client", "etcd/healthcheck-client", "etcd-ca", "kube-etcd-healthcheck-client", [client]),
        ("apiserver-etcd-client", "apiserver-etcd-client", "etcd-ca", "kube-apiserver-etcd-client", [client]),
    ]


def test_external_etcd_needs_no_etcd_certs() -> None:
    cluster = ClusterConfiguration("v1.35.6", local_etcd=None, external_etcd=ExternalEtcd(("https://e:2379",)))
    assert [spec.name for spec in cert_specs.wanted_certs(cluster)] == [
        "ca",
        "apiserver",
        "apiserver-kubelet-client",
        "front-proxy-ca",
        "front-proxy-client",
    ]


# ---- names


def test_apiserver_sans_of_a_plain_cluster() -> None:
    assert cert_specs.apiserver_sans(make_config()) == cert_specs.Sans(
        ("cp1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"),
        ("10.96.0.1", "10.77.0.11"),
    )


def test_apiserver_sans_follow_the_configuration() -> None:
    config = make_config(
        control_plane_endpoint="api.example.com:8443",
        networking=dataclasses.replace(
            ClusterConfiguration("v1.35.6").networking,
            service_subnet="fd00:10:96::/112,10.96.0.0/16",
            dns_domain="k8s.lan",
        ),
        api_server=dataclasses.replace(
            ClusterConfiguration("v1.35.6").api_server,
            cert_sans=("*.example.com", "10.0.0.9", "cp1", "10.77.0.11", "not a name", "2001:DB8::9"),
        ),
    )
    sans = cert_specs.apiserver_sans(config)
    assert sans.ips == ("fd00:10:96::1", "10.77.0.11", "10.0.0.9", "2001:db8::9")
    assert sans.dns == (
        "*.example.com",
        "api.example.com",
        "cp1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.k8s.lan",
    )


@pytest.mark.parametrize("endpoint", ["192.0.2.7:6443", "192.0.2.7"])
def test_an_address_as_endpoint_is_an_ip_san_after_the_advertise_address(endpoint: str) -> None:
    assert cert_specs.apiserver_sans(make_config(control_plane_endpoint=endpoint)).ips == (
        "10.96.0.1",
        "10.77.0.11",
        "192.0.2.7",
    )


def test_etcd_sans_have_extra_names_of_their_own() -> None:
    config = make_config(local_etcd=LocalEtcd(server_cert_sans=("etcd.lan", "10.0.0.1"), peer_cert_sans=("peer.lan",)))
    assert cert_specs.etcd_server_sans(config) == cert_specs.Sans(
        ("cp1", "etcd.lan", "localhost"), ("10.77.0.11", "127.0.0.1", "::1", "10.0.0.1")
    )
    assert cert_specs.etcd_peer_sans(config) == cert_specs.Sans(
        ("cp1", "localhost", "peer.lan"), ("10.77.0.11", "127.0.0.1", "::1")
    )


@pytest.mark.parametrize(
    ("name", "is_covered"),
    [
        ("api.example.com", True),
        ("API.example.COM", True),
        ("a.b.example.com", False),
        ("api.example.org", False),
        ("example.com", False),
        ("*.example.com", True),
        ("*.com", False),
        ("cp1", True),
        ("cp2", False),
        ("10.0.0.1", True),
        ("10.0.0.2", False),
        ("FD00:0::1", True),
    ],
)
def test_coverage_is_hostname_verification(name: str, is_covered: bool) -> None:
    assert cert_specs.Sans(("*.example.com", "cp1"), ("10.0.0.1", "fd00::1")).covers(name) is is_covered


def test_a_plain_name_does_not_cover_a_wanted_wildcard() -> None:
    assert cert_specs.Sans(("a.example.com",)).lacks(cert_specs.Sans(("*.example.com", "a.example.com"))) == (
        "*.example.com",
    )


# ---- keys


@pytest.mark.parametrize(
    ("algorithm", "gates", "expected"),
    [
        ("RSA-3072", {}, "RSA-3072"),
        ("", {}, "RSA-2048"),
        ("RSA-4096", {"PublicKeysECDSA": True}, "ECDSA-P256"),
        ("ECDSA-P384", {"PublicKeysECDSA": False}, "RSA-2048"),
        ("ECDSA-P384", {"RootlessControlPlane": True}, "ECDSA-P384"),
    ],
)
def test_key_algorithm(algorithm: str, gates: dict[str, bool], expected: str) -> None:
    cluster = ClusterConfiguration("v1.35.6", encryption_algorithm=algorithm, feature_gates=gates)
    assert cert_specs.key_algorithm(cluster) == expected


def test_an_ipv4_address_in_an_ipv6_one_is_written_as_what_it_is() -> None:
    assert cert_specs.make_sans(["::ffff:10.0.0.1", "10.0.0.1", "::1"]) == cert_specs.Sans((), ("10.0.0.1", "::1"))
    assert cert_specs.Sans((), ("10.0.0.1",)).covers("::ffff:10.0.0.1")
