"""Container images out of static binaries: a small, deterministic writer of OCI image layouts.

An image here is one layer: some files, some links, and how to start. The same files give the same bytes, so a digest may be
written down. Layouts are cached per Kubernetes release as folders (`oci-layout`, `index.json`, `blobs/sha256/...`), which
skopeo, `ctr images import` (as a tar) and the lab's registry (registry.py) read.
Must not: know nodes or labs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from . import settings
from .image import (
    base_key,
    build_once,
    describe_file,
    ensure_base,
    ensure_haproxy,
    haproxy_key,
    hash_recipe,
    layers_dir,
    mount_overlay,
    remove_tree,
)
from .settings import Release
from .shell import sh

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

WEB_IMAGE = "registry.k8s.io/e2e-test/web:1"
HAPROXY_IMAGE = "docker.io/library/haproxy:3.2.21-alpine"
"""kb's default; what is in it is Debian's haproxy."""
WEB_APPLETS = (
    "sh", "httpd", "nslookup", "wget", "nc", "ping", "ip", "cat", "ls", "echo", "env", "hostname", "sleep", "true", "id", "mount",
)  # fmt: skip
# What kube-proxy calls, where Debian keeps it; the many names of xtables are links.
PROXY_PROGRAMS = (
    "usr/sbin/xtables-nft-multi",
    "usr/sbin/xtables-legacy-multi",
    "usr/sbin/nft",
    "usr/sbin/conntrack",
)
XTABLES_NAMES = (
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
)
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """One image to write. `files` maps a path in the image to a file of this machine, or to its contents."""

    names: tuple[str, ...]
    files: Mapping[str, Union[Path, bytes]]
    links: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    architecture: str = ""
    """This machine's, where none is named."""


# ------------------------------------------------------------------------------------------------ the writer


def pack_layer(image: Image) -> bytes:
    """The image's files as an uncompressed tar: sorted, owned by root, without times."""
    entries: dict[str, Union[Path, bytes, str]] = {**image.files, **image.links}
    folders = {str(parent) for name in entries for parent in Path(name).parents} - {".", "/"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(folders | {"tmp"}):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(info)
        for name, source in sorted(entries.items()):
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if isinstance(source, str):
                info.type, info.linkname = tarfile.SYMTYPE, source
                tar.addfile(info)
            else:
                data = source.read_bytes() if isinstance(source, Path) else source
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_blob(layout: Path, data: bytes, media_type: str) -> dict[str, Any]:
    """Store bytes under their digest and return the descriptor that refers to them."""
    digest = hashlib.sha256(data).hexdigest()
    path = layout / "blobs" / "sha256" / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def write_image(layout: Path, image: Image) -> list[dict[str, Any]]:
    """Write one image's blobs; returns the index entries, one for each name."""
    tar = pack_layer(image)
    layer = write_blob(layout, gzip.compress(tar, compresslevel=1, mtime=0), LAYER)
    platform = {"architecture": image.architecture or settings.read_architecture(), "os": "linux"}
    start: dict[str, Any] = {"Env": [PATH]}
    if image.entrypoint:
        start["Entrypoint"] = list(image.entrypoint)
    if image.command:
        start["Cmd"] = list(image.command)
    diff_ids = ["sha256:" + hashlib.sha256(tar).hexdigest()]
    config = {**platform, "config": start, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": write_blob(layout, _as_json(config), CONFIG),
        "layers": [layer],
    }
    described = {**write_blob(layout, _as_json(manifest), MANIFEST), "platform": platform}
    return [{**described, "annotations": _annotate(name)} for name in image.names]


def write_layout(layout: Path, images: Iterable[Image]) -> None:
    """Write an OCI image layout with all these images into an existing folder."""
    manifests = [entry for image in images for entry in write_image(layout, image)]
    _write_index(layout, manifests)


def _write_index(layout: Path, manifests: list[dict[str, Any]]) -> None:
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_bytes(_as_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}))


def write_joint_layout(layout: Path, parts: Iterable[Path]) -> None:
    """Write a layout whose images are indexes, as registries have them: each name with what every part has of it."""
    (layout / "blobs/sha256").mkdir(parents=True)
    joint: dict[str, list[Any]] = {}
    for part in parts:
        for blob in (part / "blobs/sha256").iterdir():
            if not (layout / "blobs/sha256" / blob.name).exists():
                os.link(blob, layout / "blobs/sha256" / blob.name)
        for entry in json.loads((part / "index.json").read_text())["manifests"]:
            name = entry.pop("annotations")["io.containerd.image.name"]
            joint.setdefault(name, []).append(entry)
    manifests = []
    for name, entries in joint.items():
        index = _as_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
        manifests.append({**write_blob(layout, index, INDEX), "annotations": _annotate(name)})
    _write_index(layout, manifests)


def _annotate(name: str) -> dict[str, str]:
    """containerd reads the whole name from its own annotation, everybody else takes the tag from the standard's."""
    return {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}


def _as_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def list_names(layout: Path) -> list[str]:
    """The names of the images in a layout."""
    index = json.loads((layout / "index.json").read_text())
    return [entry["annotations"]["io.containerd.image.name"] for entry in index["manifests"]]


# ------------------------------------------------------------------------------------------------ what to pack


def plan_component(release: Release, name: str) -> Image:
    """kube-apiserver and its like: the binary alone, where upstream has it."""
    names = (f"registry.k8s.io/{name}:{release.version}",)
    return Image(names, {f"usr/local/bin/{name}": release.binary(name)}, entrypoint=(f"/usr/local/bin/{name}",))


def find_libraries(base: Path, programs: Iterable[str]) -> set[str]:
    """The shared libraries and the loader that programs of a base system need, as paths in it."""
    found: set[str] = set()
    for program in programs:
        for line in sh(["chroot", str(base), "ldd", f"/{program}"], check=False).stdout.splitlines():
            path = next((word for word in line.split() if word.startswith("/")), None)
            if path:
                found.add(path.lstrip("/"))
    return found


def plan_kube_proxy(release: Release) -> Image:
    """kube-proxy with the base system's iptables, nft and conntrack; without all their libraries no Service works."""
    base = ensure_base()
    plugins = [str(p.relative_to(base)) for p in sorted((base / "usr/lib").glob("*/xtables/*.so"))]
    paths = {*PROXY_PROGRAMS, *plugins, *find_libraries(base, (*PROXY_PROGRAMS, *plugins))}
    files: dict[str, Union[Path, bytes]] = {}
    for path in sorted(paths):
        files[path] = _follow(base, path)
    files["usr/local/bin/kube-proxy"] = release.binary("kube-proxy")
    files["etc/nsswitch.conf"] = b"hosts: files dns\n"
    links = {f"usr/sbin/{name}": "xtables-nft-multi" for name in XTABLES_NAMES}
    links.update({f"usr/sbin/{n.replace('tables', 'tables-nft')}": "xtables-nft-multi" for n in XTABLES_NAMES})
    links.update({f"usr/sbin/{n.replace('tables', 'tables-legacy')}": "xtables-legacy-multi" for n in XTABLES_NAMES})
    names = (f"registry.k8s.io/kube-proxy:{release.version}",)
    return Image(names, files, links, entrypoint=("/usr/local/bin/kube-proxy",))


def _follow(base: Path, path: str) -> Path:
    """The file that a link inside a base system leads to, where an absolute target means a path of the base."""
    target = base / path
    for _ in range(10):
        if not target.is_symlink():
            return target
        goal = os.readlink(target)
        target = base / goal.lstrip("/") if goal.startswith("/") else target.parent / goal
    raise OSError(f"too many links: {base / path}")


def plan_web() -> Image:
    """A web server, and the programs to ask one: busybox under several names. Its page is the pod's own name."""
    base = ensure_base()
    page = b"#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nhostname\n"
    files: dict[str, Union[Path, bytes]] = {
        "bin/busybox": base / "bin/busybox",
        **{library: _follow(base, library) for library in find_libraries(base, ("bin/busybox",))},
        "www/index.html": b"kb e2e web\n",
        "www/cgi-bin/hostname": page,
        "etc/nsswitch.conf": b"hosts: files dns\n",
        "etc/passwd": b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    }
    links = {f"bin/{applet}": "busybox" for applet in WEB_APPLETS}
    names = (WEB_IMAGE, "docker.io/library/e2e-web:1")
    return Image(names, files, links, command=("/bin/httpd", "-f", "-p", "80", "-h", "/www"))


def plan_haproxy() -> Image:
    """The load balancer of kb's nodes. Its libraries are found in the base with haproxy laid over it."""
    scratch = layers_dir() / f".haproxy-{os.getpid()}"
    program = "usr/sbin/haproxy"
    try:
        root, upper, work = (scratch / name for name in ("root", "upper", "work"))
        with mount_overlay(root, lower=ensure_haproxy(), upper=upper, work=work):
            paths = {program, *find_libraries(root, (program,))}
            files: dict[str, Union[Path, bytes]] = {path: _follow(root, path).read_bytes() for path in sorted(paths)}
    finally:
        remove_tree(scratch)
    return Image((HAPROXY_IMAGE,), files, command=("haproxy",))


def plan_images(release: Release) -> list[Image]:
    """All images of a release, under the names that manifests use."""
    facts = release.facts
    etcd = tuple(f"registry.k8s.io/etcd:{tag}" for tag in facts.etcd)
    coredns = f"registry.k8s.io/coredns/coredns:{facts.coredns}"
    pause = f"registry.k8s.io/pause:{facts.pause}"
    return [
        *(plan_component(release, name) for name in settings.COMPONENTS if name != "kube-proxy"),
        plan_kube_proxy(release),
        Image(
            etcd,
            {f"usr/local/bin/{name}": path for name, path in etcd_programs(release)},
            entrypoint=("/usr/local/bin/etcd",),
        ),
        Image((coredns,), {"coredns": release.binary("coredns")}, entrypoint=("/coredns",)),
        Image((pause,), {"pause": release.binary("pause")}, entrypoint=("/pause",)),
        plan_web(),
        plan_haproxy(),
    ]


def etcd_programs(release: Release) -> list[tuple[str, Path]]:
    """etcd, and etcdutl if it is there: older images of etcd do not have it either."""
    names = ["etcd", *(["etcdutl"] if (release.folder / "etcdutl").is_file() else [])]
    return [(name, release.binary(name)) for name in names]


def images_key(release: Release) -> str:
    """The hash of everything a release's images are made from (this module included)."""
    names = {*settings.IMAGE_BINARIES, *(name for name, _ in etcd_programs(release))}
    binaries = (describe_file(release.binary(name)) for name in sorted(names))
    return hash_recipe(base_key(), haproxy_key(), Path(__file__).read_text(), release.version, release.facts, *binaries)


def ensure_layout(release: Release) -> Path:
    """The OCI image layout of a release (built once, about 15 s)."""
    folder = settings.cache_dir() / "images"
    target = folder / f"{release.minor}-{images_key(release)}"
    return build_once(target, lambda draft: write_layout(draft, plan_images(release)))


def copy_layout_as_tar(layout: Path, target: Path) -> Path:
    """Write a layout as one tar file, as `ctr images import` and `skopeo copy oci-archive:` take it."""
    with tarfile.open(target, "w") as tar:
        for name in ("oci-layout", "index.json", "blobs"):
            tar.add(layout / name, arcname=name)
    return target
