"""What the cluster still needs of a mirror: the images of its pods, and what each version that a node runs needs when an image was deleted, or
when a node joins or is set up again.

Asks the API server, and this node's kubelet by its manifests and its runtime. Changes nothing, and knows no bundle (mirror_content.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from kubeup import releases
from kubeup.airgap import bundle_needs
from kubeup.airgap.mirror_content import Content, Image, Removal
from kubeup.cluster import probes
from kubeup.cluster.api import Api, path_of
from kubeup.config.types import NodeConfig
from kubeup.errors import KbError
from kubeup.json_text import as_table
from kubeup.machine.host import Host
from kubeup.node import containers, image_pulls, images
from kubeup.paths import Paths
from kubeup.yaml_files import YAMLError, load_yaml

_NAMED = 3


@dataclass
class Needs:
    """versions: `v1.35.6` -> who runs it, in words; images: full name -> who needs it, in words, in the order found."""

    versions: dict[str, list[str]] = field(default_factory=dict)
    images: dict[str, list[str]] = field(default_factory=dict)

    def note(self, image: str, why: str) -> None:
        reasons = self.images.setdefault(image_pulls.full_image_name(image), [])
        if why not in reasons:
            reasons.append(why)

    def of_version(self, version: str) -> str:
        """Who needs this version's minor, in words; "" if nobody does."""
        minor = _minor_of(version)
        return say_some([one for other, who in self.versions.items() if _minor_of(other) == minor for one in who])

    def of_image(self, image: Image) -> str:
        repository = image.name.rpartition(":")[0]
        names = (image.name, f"{repository}@{image.digest}", f"{image.name}@{image.digest}")
        return say_some([why for name in names for why in self.images.get(name, ())])


def say_some(reasons: Iterable[str]) -> str:
    found = list(dict.fromkeys(reasons))
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{', '.join(found[:_NAMED])}{more}"


def _minor_of(version: str) -> str:
    parsed = releases.parse_version(version)
    return f"v{parsed.major}.{parsed.minor}" if parsed else version


def read_needs(api: Api, config: NodeConfig, *, paths: Paths, more: Mapping[str, str]) -> Needs:
    """config: this node's. more: further versions, and who needs them. Raises ApiRefused, Unreachable."""
    needs = Needs()
    for node in api.list(path_of("Node")):
        needs.versions.setdefault(probes.kubelet_version(node), []).append(f"node {node['metadata']['name']}")
    needs.versions.setdefault(config.cluster.kubernetes_version, []).append("nodes that join")
    for version, why in more.items():
        needs.versions.setdefault(version, []).append(why)
    for version, who in needs.versions.items():
        for image in _images_of(config, version):
            for one in who:
                needs.note(image, one)
    for pod in api.list(path_of("Pod")):
        where = str((pod.get("spec") or {}).get("nodeName") or "")
        told = f"pod {pod['metadata'].get('namespace')}/{pod['metadata']['name']}" + (f" on {where}" if where else "")
        for image, _ in bundle_needs.images_of([pod]):
            needs.note(image, told)
    for image, why in _list_own(api.host, config.node.cri_socket, paths=paths):
        needs.note(image, why)
    return needs


def _images_of(config: NodeConfig, version: str) -> tuple[str, ...]:
    """The images that kubeadm and kb need for a version; () for a version that this kb does not know."""
    try:
        release = releases.find_release(version)
    except KbError:
        return ()
    cluster = replace(config.cluster, kubernetes_version=version)
    return images.list_node_images(replace(config, cluster=cluster), release)


def _list_own(host: Host, socket: str, *, paths: Paths) -> Iterator[tuple[str, str]]:
    """(image, why) of what this node's kubelet starts without an API server, and of what its runtime runs."""
    for name in host.list_dir(paths.manifests):
        if name.endswith((".yaml", ".yml", ".json")) and not name.startswith("."):
            try:
                pod = load_yaml(host.read_text(paths.manifests / name))
            except (KbError, YAMLError):
                continue
            for image, _ in bundle_needs.images_of([as_table(pod)]):
                yield image, f"{paths.manifests / name}"
    for one in containers.list_containers(host, socket, has_exits=False):
        if "/" in one.image:  # else it is an ID of the runtime
            yield one.image, f"container {one.name} on this node"


# ---- may it go?


def find_hindrances(content: Content, removal: Removal, *, needs: Needs) -> list[str]:
    """What of a removal somebody needs, in words. What was not there before hinders nothing."""
    by_name = {image.name: image for image in content.images}
    found = []
    for version in sorted(content.versions(content.bundles)):
        left = [one for one in content.bundles if one.name not in removal.bundles]
        minors = {_minor_of(one) for one in content.versions(left)}
        who = needs.of_version(version)
        if who and _minor_of(version) not in minors:
            found.append(f"the programs of {version}: {who}")
    for name in removal.images:
        who = needs.of_image(by_name[name])
        if who:
            found.append(f"image {name}: {who}")
    return found


def find_spare(content: Content, needs: Needs) -> list[str]:
    """The minors of bundles that nobody needs, `v1.34`, the oldest first; never all there are."""
    minors = {one.minor: one.version for one in content.bundles if one.version and one.size}
    spare = sorted((minor for minor, version in minors.items() if not needs.of_version(version)), key=_order_of)
    if len(spare) == len(minors):
        spare = spare[:-1]
    return spare


def _order_of(minor: str) -> tuple[int, ...]:
    parsed: Collection[str] = minor.lstrip("v").split(".")
    return tuple(int(part) if part.isdigit() else -1 for part in parsed)
