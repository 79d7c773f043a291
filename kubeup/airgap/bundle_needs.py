"""What a bundle has to contain for a configuration: images and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kubeup.airgap.downloads import NODE_FILES
from kubeup.airgap.registry_client import parse_ref
from kubeup.config.types import NodeConfig
from kubeup.frozen_values import frozen
from kubeup.node.images import list_images, load_balancer_image
from kubeup.releases import Release


@frozen
class Need:
    """Something that a bundle must contain, and what needs it."""

    name: str
    by: str


def plan_images(
    config: NodeConfig, release: Release, *, network: Sequence[Mapping[str, Any]], more: Sequence[str]
) -> tuple[Need, ...]:
    """Every image named by init, join, the load balancer and the pod network's manifest (its objects), and `more`."""
    whys = {"pause": "the sandbox of every pod", "coredns": "addon/coredns", "kube-proxy": "addon/kube-proxy"}
    needs = [
        Need(image.ref, whys.get(image.component, f"the static pod {image.component}"))
        for image in list_images(config.cluster, release)
    ]
    if config.kb.load_balancer.is_local:
        needs.append(Need(load_balancer_image(config.kb), "loadBalancer: {mode: local}"))
    needs += [Need(name, by) for name, by in images_of(network)]
    needs += [Need(name, "--image") for name in more]
    unique: dict[str, Need] = {}
    for need in needs:
        unique.setdefault(parse_ref(need.name).name, Need(parse_ref(need.name).name, need.by))
    return tuple(unique.values())


def images_of(objects: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(image, "DaemonSet flannel") of every container in the objects, in order."""
    found: list[tuple[str, str]] = []

    def look(value: Any, owner: str) -> None:
        if isinstance(value, list):
            for item in value:
                look(item, owner)
        elif isinstance(value, Mapping):
            for key in ("initContainers", "containers", "ephemeralContainers"):
                listed = value.get(key)
                for container in listed if isinstance(listed, list) else ():
                    if isinstance(container, Mapping) and isinstance(container.get("image"), str):
                        found.append((container["image"], owner))
            for item in value.values():
                look(item, owner)

    for item in objects:
        look(item, f"{item.get('kind', '')} {(item.get('metadata') or {}).get('name', '')}".strip())
    return found


def plan_files(archs: Sequence[str], *, without: Sequence[str] = ()) -> tuple[Need, ...]:
    """The files of a node, as titles: `amd64/kubelet`."""
    return tuple(
        Need(f"{arch}/{item.name}", item.needed_by)
        for arch in archs
        for item in NODE_FILES
        if item.component not in without
    )
