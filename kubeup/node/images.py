"""The names of the images that a cluster needs.

This module combines a component, a repository and a tag into an image reference. It pulls and reads nothing. Mirrors
cmd/kubeadm/app/images/images.go.
"""

from __future__ import annotations

import re

from kubeup.config.types import ClusterConfiguration, KbConfiguration, NodeConfig
from kubeup.frozen_values import frozen
from kubeup.releases import LOAD_BALANCER_IMAGE, Release

DEFAULT_REPOSITORY = "registry.k8s.io"
VERSIONED_COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
"""The components whose image tag is the Kubernetes version."""
COMPONENTS = (*VERSIONED_COMPONENTS, "coredns", "pause", "etcd")
"""All components, in kubeadm's order."""


@frozen
class Image:
    """The image of `component`. `repository` is its name without the tag."""

    component: str
    repository: str
    tag: str

    @property
    def ref(self) -> str:
        """`registry.k8s.io/etcd:3.6.6-0`"""
        return f"{self.repository}:{self.tag}"

    def __str__(self) -> str:
        return self.ref


def image_of(component: str, cluster: ClusterConfiguration, *, release: Release) -> Image:
    """The image of one of COMPONENTS. Raises KeyError for other names."""
    if component in VERSIONED_COMPONENTS:
        tag = render_tag(cluster.kubernetes_version)
        return Image(component, f"{cluster.image_repository}/{component}", tag)
    if component == "coredns":
        repository = cluster.dns.image_repository or cluster.image_repository
        # the default registry has CoreDNS one level deeper; mirrors of it are flat
        level = "coredns/" if repository == DEFAULT_REPOSITORY else ""
        return Image(component, f"{repository}/{level}coredns", cluster.dns.image_tag or release.coredns_tag)
    if component == "pause":
        return Image(component, f"{cluster.image_repository}/pause", release.pause_tag)
    if component == "etcd":
        etcd = cluster.local_etcd
        repository = (etcd.image_repository if etcd else "") or cluster.image_repository
        return Image(component, f"{repository}/etcd", (etcd.image_tag if etcd else "") or release.etcd_tag)
    raise KeyError(component)


def list_images(cluster: ClusterConfiguration, release: Release) -> tuple[Image, ...]:
    """All images that this cluster's control-plane nodes run, in kubeadm's order."""
    unused = {
        "kube-proxy": cluster.proxy.disabled,
        "coredns": cluster.dns.disabled,
        "etcd": cluster.local_etcd is None,
    }
    return tuple(image_of(name, cluster, release=release) for name in COMPONENTS if not unused.get(name))


def list_node_images(config: NodeConfig, release: Release) -> tuple[str, ...]:
    """The names of list_images, and of the image that kb itself adds to a control-plane node: the load balancer, if configured."""
    names = tuple(image.ref for image in list_images(config.cluster, release))
    return (*names, load_balancer_image(config.kb)) if config.kb.load_balancer.is_local else names


def load_balancer_image(kb: KbConfiguration) -> str:
    """The configured image, or kb's default. With a mirror it keeps its name, because the runtime asks the mirror."""
    return kb.load_balancer.image or LOAD_BALANCER_IMAGE


def rewrite_image(image: str, server: str) -> str:
    """`quay.io/cilium/cilium:v1` -> `SERVER/cilium/cilium:v1`: the mirror's host replaces the registry, as in containerd's requests to
    a mirror. Docker's short names are expanded (`busybox` -> `library/busybox`)."""
    first, slash, rest = image.partition("/")
    has_registry = bool(slash) and ("." in first or ":" in first or first == "localhost")
    registry, repository = (first, rest) if has_registry else ("docker.io", image)
    if registry == server:
        return image
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    return f"{server}/{repository}"


def render_tag(version: str) -> str:
    """A version as an image tag: `v1.35.6+build` -> `v1.35.6_build`, since tags cannot contain `+`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", version)
