"""Bundles for the tests on real nodes: local binaries, Debian's runtime, images from the lab's registry.

Made by the zipapp under test, once per release and run. Must not: know pytest.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from . import image
from .images import WEB_IMAGE
from .lab import Lab
from .settings import Release

BARE = {"containerd": "bare", "kubelet": False, "images": False, "default_route": False}
"""The wishes of a node that has nothing, and nowhere to get it from."""


def make_bundle(lab: Lab, kb_pyz: Path, release: Release, out: Path, *, words: Sequence[str] = ()) -> Path:
    """A whole bundle of a release, its images pulled from the lab's registry by the distribution API."""
    lab.registry.add_release(release)
    address = lab.registry.start().address
    layers = image.ensure_variant(release.facts.containerd)
    sources = [f"http://{address}", str(release.folder), *map(str, layers)]
    argv = ["python3", str(kb_pyz), "bundle", "create", "-o", str(out), "--kubernetes-version", release.version]
    argv += ["--image", WEB_IMAGE, "--image", "docker.io/library/e2e-web:1"]
    for source in sources:
        argv += ["--from", source]
    lab.exec(shlex.join([*argv, *words]), timeout=300)
    lab.registry.stop()
    return out
