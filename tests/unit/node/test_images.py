from __future__ import annotations

from dataclasses import replace

import pytest

from kubeup.config.types import DNS, ClusterConfiguration, ExternalEtcd, LocalEtcd, Proxy
from kubeup.node.images import image_of, list_images
from kubeup.releases import RELEASES

CLUSTER = ClusterConfiguration("v1.35.6")


def refs(cluster: ClusterConfiguration, minor: int = 35) -> list[str]:
    return [image.ref for image in list_images(cluster, RELEASES[minor])]


def test_images_of_1_35_in_kubeadms_order() -> None:
    assert refs(CLUSTER) == [
        "registry.k8s.io/kube-apiserver:v1.35.6",
        "registry.k8s.io/kube-controller-manager:v1.35.6",
        "registry.k8s.io/kube-scheduler:v1.35.6",
        "registry.k8s.io/kube-proxy:v1.35.6",
        "registry.k8s.io/coredns/coredns:v1.13.1",
        "registry.k8s.io/pause:3.10.1",
        "registry.k8s.io/etcd:3.6.6-0",
    ]


def test_a_repository_of_ones_own_has_coredns_on_the_top_level() -> None:
    found = refs(replace(CLUSTER, image_repository="mirror.example/k8s"))
    assert "mirror.example/k8s/coredns:v1.13.1" in found
    assert all(ref.startswith("mirror.example/k8s/") for ref in found)


def test_dns_and_etcd_may_have_repositories_and_tags_of_their_own() -> None:
    cluster = replace(
        CLUSTER,
        image_repository="mirror.example",
        dns=DNS("registry.k8s.io", "v9"),
        local_etcd=LocalEtcd(image_repository="e.example", image_tag="3.5.1-0"),
    )
    assert image_of("coredns", cluster, release=RELEASES[35]).ref == "registry.k8s.io/coredns/coredns:v9"
    assert str(image_of("etcd", cluster, release=RELEASES[35])) == "e.example/etcd:3.5.1-0"


def test_what_is_disabled_or_external_is_not_listed() -> None:
    cluster = replace(
        CLUSTER,
        dns=DNS(disabled=True),
        proxy=Proxy(disabled=True),
        local_etcd=None,
        external_etcd=ExternalEtcd(("https://e:2379",)),
    )
    assert [image.component for image in list_images(cluster, RELEASES[35])] == [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "pause",
    ]


def test_build_metadata_becomes_an_underscore() -> None:
    cluster = replace(CLUSTER, kubernetes_version="v1.35.6+k0s.1")
    assert image_of("kube-proxy", cluster, release=RELEASES[35]).tag == "v1.35.6_k0s.1"


def test_unknown_component() -> None:
    with pytest.raises(KeyError):
        image_of("kubelet", CLUSTER, release=RELEASES[35])
