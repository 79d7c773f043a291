"""A release for a second architecture, as far as it can be had without a machine of it: to be carried, not to be run.

Needs $KB_E2E_BIN/arm64/<minor>/, filled like $KB_E2E_BIN/<minor>/. Its containerd, runc and CNI plugins are Debian's.
Must not: know pytest or kb.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from ..lab import image, images, settings
from ..lab.settings import Release
from ..lab.shell import sh

ARCHITECTURE = "arm64"
PACKAGES = ("containerd", "runc", "containernetworking-plugins")


def find_foreign(minor: str) -> Optional[Release]:
    """The same minor for arm64, or None."""
    return settings.read_release(Path(os.environ.get("KB_E2E_BIN", "")) / ARCHITECTURE / minor)


def plan_images(release: Release) -> list[images.Image]:
    """Kubernetes' own images, each with its program alone: what kube-proxy calls is this machine's."""
    places = {f"registry.k8s.io/{name}:{release.version}": f"usr/local/bin/{name}" for name in settings.COMPONENTS}
    places |= {f"registry.k8s.io/etcd:{tag}": "usr/local/bin/etcd" for tag in release.facts.etcd}
    places |= {
        f"registry.k8s.io/coredns/coredns:{release.facts.coredns}": "coredns",
        f"registry.k8s.io/pause:{release.facts.pause}": "pause",
    }
    return [
        images.Image(
            (name,), {place: release.binary(Path(place).name)}, entrypoint=(f"/{place}",), architecture=ARCHITECTURE
        )
        for name, place in places.items()
    ]


def ensure_joint_layout(native: Release, foreign: Release) -> Path:
    """The images of both as a registry has them, one index for each name (built once)."""
    binaries = (image.describe_file(foreign.binary(name)) for name in settings.IMAGE_BINARIES)
    key = image.hash_recipe(images.images_key(native), Path(__file__).read_text(), *binaries)

    def build(draft: Path) -> None:
        own = draft / "own"
        own.mkdir()
        images.write_layout(own, plan_images(foreign))
        images.write_joint_layout(draft, (images.ensure_layout(native), own))
        image.remove_tree(own)

    return image.build_once(settings.cache_dir() / "images" / f"{native.minor}-joint-{key}", build)


def ensure_runtime() -> Path:
    """A folder with Debian's programs for arm64, unpacked and never installed (built once)."""

    def build(draft: Path) -> None:
        for name in PACKAGES:
            apt = settings.cache_dir() / "apt" / f"{image.SUITE}-{ARCHITECTURE}"
            package = image.download_package(name, image.SUITE, apt, architecture=ARCHITECTURE)
            sh(["dpkg-deb", "--extract", str(package), str(draft)])

    key = image.hash_recipe(image.SUITE, PACKAGES)
    return image.build_once(image.layers_dir() / f"runtime-{ARCHITECTURE}-{key}", build)
