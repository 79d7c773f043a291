"""The images that a cluster needs, by name.

Owns the rules by which a component, a repository and a tag become a reference. Must not pull or look at anything.
Mirrors cmd/kubeadm/app/images/images.go.
"""

from __future__ import annotations

import re

from kubeup.config.types import ClusterConfiguration, KbConfiguration, NodeConfig
from kubeup.frozen_values import frozen
from kubeup.releases import LOAD_BALANCER_IMAGE, Release

DEFAULT_REPOSITORY = "registry.k8s.io"
VERSIONED_COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
"""Their tag is the Kubernetes version."""
COMPONENTS = (*VERSIONED_COMPONENTS, "coredns", "pause", "etcd")
"""In kubeadm's order."""


@frozen
class Image:
    """What runs `component`: `repository` is the name without the tag."""

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
    """The image of one of COMPONENTS. Raises KeyError for another name."""
    if component in VERSIONED_COMPONENTS:
        tag = render_tag(cluster.kubernetes_version)
        return Image(component, f"{cluster.image_repository}/{component}", tag)
    if component == "coredns":
        repository = cluster.dns.image_repository or cluster.image_repository
        # the default registry keeps CoreDNS one level deeper; copies of it are flat
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
    """list_images by name, and what kb itself runs on a control-plane node: the load balancer, where one is asked for."""
    names = tuple(image.ref for image in list_images(config.cluster, release))
    return (*names, load_balancer_image(config.kb)) if config.kb.load_balancer.is_local else names


def load_balancer_image(kb: KbConfiguration) -> str:
    """The image as it was given, or kb's default. It keeps its name where a mirror is set: the runtime asks that."""
    return kb.load_balancer.image or LOAD_BALANCER_IMAGE


def rewrite_image(image: str, server: str) -> str:
    """`quay.io/cilium/cilium:v1` -> `SERVER/cilium/cilium:v1`: the mirror's host takes the registry's place, which
    is how containerd too asks a mirror. Docker's short names get their full form (`busybox` -> `library/busybox`)."""
    first, slash, rest = image.partition("/")
    has_registry = bool(slash) and ("." in first or ":" in first or first == "localhost")
    registry, repository = (first, rest) if has_registry else ("docker.io", image)
    if registry == server:
        return image
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    return f"{server}/{repository}"


def render_tag(version: str) -> str:
    """A version as an image tag: `v1.35.6+build` -> `v1.35.6_build`, since tags know no `+`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", version)
