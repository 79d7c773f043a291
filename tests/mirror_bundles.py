"""Small bundles in a mirror's folder, made as kb bundle create makes them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from kubeup.airgap import bundle_write, oci_layout
from kubeup.airgap.bundle_needs import Need
from kubeup.airgap.bundle_sources import Gathering, LayoutSource
from kubeup.machine.local_host import LocalHost
from tests.bundle_case import write_layout

HOST = LocalHost()
PAUSE, ETCD = "registry.k8s.io/pause:3.10.1", "registry.k8s.io/etcd:3.6.6-0"
KUBE_34, KUBE_35 = "registry.k8s.io/kube-apiserver:v1.34.9", "registry.k8s.io/kube-apiserver:v1.35.6"


def add_bundle(
    folder: Path,
    name: str,
    *,
    version: str,
    images: Mapping[str, Sequence[bytes]],
    program: bytes = b"",
    since: Optional[oci_layout.Layout] = None,
    key: Any = None,
) -> Path:
    """images: name -> layers. program: the content of its one file, kubelet."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as kept:
        source = Path(kept) / "source"
        source.mkdir()
        write_layout(source, {image: {"amd64": layers} for image, layers in images.items()})
        gathering = Gathering(HOST, Path(kept) / "parts", ("amd64",))
        for image in images:
            gathering.add_image(Need(image, "a test"), (LayoutSource(oci_layout.open_layout(HOST, source)),))
        if program:
            (Path(kept) / "kubelet").write_bytes(program)
            gathering.add_file("kubelet", Path(kept) / "kubelet")
        bundle_write.write_bundle(gathering, folder / name, kubernetes_version=version, since=since, key=key)
    return folder / name
