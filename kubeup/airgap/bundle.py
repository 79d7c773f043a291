"""Bundles: what a cluster needs, in one file. Planning, gathering, writing, checking, comparing, signing.

A bundle is an OCI image layout in an uncompressed tar: the images by their upstream names, and one artifact whose layers
are files (title, mode and sha256 as annotations). Equal inputs give equal bytes. Blobs go from their source to the file
piece by piece; what has to come over a network waits in a folder beside the file, so that a broken run is gone on with.
Must not place anything on a node. kubeadm has no like of it.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from kubeup.airgap import downloads, registry_client
from kubeup.airgap import oci_layout as layout
from kubeup.airgap.downloads import NODE_FILES
from kubeup.airgap.oci_layout import Descriptor, Layout, Place, as_json, digest_of
from kubeup.airgap.registry_client import Ref, Refused, parse_ref
from kubeup.config import presets
from kubeup.config.types import InitConfig
from kubeup.errors import HostError, KbError, UsageError, shown
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.lazy_modules import lazy_import
from kubeup.machine.host import Host
from kubeup.machine.http import Unreachable
from kubeup.machine.local_host import LocalHost
from kubeup.machine.process import is_stream
from kubeup.node.images import list_images, load_balancer_image
from kubeup.releases import Release
from kubeup.secret import Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519
else:
    ed25519 = lazy_import("cryptography.hazmat.primitives.asymmetric.ed25519")
    serialization = lazy_import("cryptography.hazmat.primitives.serialization")

ARTIFACT_TYPE = "application/vnd.kb.bundle.v1"
FILE_TYPE = "application/octet-stream"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
MODE, SHA256, VERSION, SINCE, KUBERNETES = (
    "io.kb.mode",
    "io.kb.sha256",
    "io.kb.version",
    "io.kb.since",
    "io.kb.kubernetes",
)
KB_FILE = "kb.pyz"
_MAX_PROBLEMS = 100
"""How many are told."""

Tell = Callable[[str], None]


@frozen
class Need:
    """Something that has to be in a bundle, and what needs it."""

    name: str
    by: str


@frozen
class FileEntry:
    """A file in a bundle."""

    title: str
    mode: int
    digest: str
    size: int
    version: str = ""


# ---- what goes in


def plan_images(
    config: InitConfig, release: Release, network: Sequence[Mapping[str, Any]], more: Sequence[str]
) -> tuple[Need, ...]:
    """Every image that init, join, the load balancer and the pod network's manifest (its objects) name, and `more`."""
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
                for container in value.get(key) or []:
                    if isinstance(container, Mapping) and isinstance(container.get("image"), str):
                        found.append((container["image"], owner))
            for item in value.values():
                look(item, owner)

    for item in objects:
        look(item, f"{item.get('kind', '')} {(item.get('metadata') or {}).get('name', '')}".strip())
    return found


def plan_files(archs: Sequence[str], *, without: Sequence[str] = ()) -> tuple[Need, ...]:
    """The files of a node by their titles: `amd64/kubelet`."""
    return tuple(
        Need(f"{arch}/{item.name}", item.needed_by)
        for arch in archs
        for item in NODE_FILES
        if item.component not in without
    )


# ---- where it comes from


@frozen
class FolderSource:
    """A folder with programs by their names: DIR/<arch>/kubelet, DIR/kubelet, DIR/usr/bin/kubelet, DIR/cni/bridge."""

    path: Path


@frozen
class LayoutSource:
    layout: Layout


@frozen
class RegistrySource:
    """A server that has images under their names without the registry, or (base "") each image's own registry."""

    base: str = ""


@frozen
class DownloadSource:
    """Official release URLs."""

    preset: Optional[presets.Preset] = None
    versions: Mapping[str, str] = field(default_factory=dict)


Source = Union[FolderSource, LayoutSource, RegistrySource, DownloadSource]


def parse_sources(
    local: LocalHost, texts: Sequence[str], preset: presets.Preset, versions: Mapping[str, str]
) -> tuple[Source, ...]:
    """--from's words: a registry's URL, a layout's folder or tar, a folder with programs, or `official`; without any:
    the official places. Raises UsageError (unknown-source)."""
    sources: list[Source] = []
    for text in texts or ("official",):
        path = Path(text).absolute()
        if text == "official":
            sources += [RegistrySource(), DownloadSource(preset, versions)]
        elif text.startswith(("http://", "https://")):
            sources.append(RegistrySource(text.rstrip("/")))
        elif local.is_dir(path) and not layout.is_layout(local, path):
            sources.append(FolderSource(path))
        elif local.exists(path):
            sources.append(LayoutSource(layout.open_layout(local, path)))
        else:
            raise UsageError(
                f"--from {text}",
                cause="it is no URL, and there is no such file or folder",
                remedy="give a registry's URL, a layout (folder or tar), a folder with programs, or the word official",
                code="unknown-source",
            )
    return tuple(sources)


@dataclass
class Gathering:
    """What was found so far: blobs by digest, the entries of the index, and the layers of the artifact."""

    local: LocalHost
    spool: Path
    archs: tuple[str, ...]
    tell: Tell = lambda text: None
    blobs: dict[str, Place] = field(default_factory=dict)
    entries: dict[str, Descriptor] = field(default_factory=dict)
    files: dict[str, Descriptor] = field(default_factory=dict)
    missing: list[tuple[Need, str]] = field(default_factory=list)

    # ---- images

    def add_image(self, need: Need, sources: Sequence[Source]) -> None:
        """Find the image in the first source that has it; what is nowhere is noted in `missing`."""
        ref, reasons = parse_ref(need.name), []
        for source in sources:
            try:
                if isinstance(source, LayoutSource) and self._take_from_layout(ref, source.layout):
                    return
                if isinstance(source, RegistrySource):
                    self._take_from_registry(ref, source)
                    return
            except _WrongArchitecture as error:
                reasons.append(str(error))
            except (Refused, Unreachable) as error:
                reasons.append(f"{error.what}: {error.cause}")
        self.missing.append((need, "; ".join(reasons) or "none of the sources has it"))

    def _take_from_layout(self, ref: Ref, found: Layout) -> bool:
        named = found.names.get(ref.name)
        if named is None and ref.digest and ref.digest in found.blobs:
            data = layout.read_json_blob(self.local, found, ref.digest) or {}
            named = {
                "mediaType": str(data.get("mediaType")),
                "digest": ref.digest,
                "size": found.blobs[ref.digest].size,
            }
        if named is None:
            return False

        def read(descriptor: Descriptor) -> bytes:
            place = found.blobs.get(str(descriptor["digest"]))
            if place is None:
                raise _incomplete(found.path, str(descriptor["digest"]))
            return layout.read_document(self.local, place, str(descriptor["digest"]))

        def take(descriptor: Descriptor) -> Place:
            place = found.blobs.get(str(descriptor["digest"]))
            if place is None:
                raise _incomplete(found.path, str(descriptor["digest"]))
            return place

        self._take(ref, {key: named[key] for key in ("mediaType", "digest", "size")}, read, take)
        return True

    def _take_from_registry(self, ref: Ref, source: RegistrySource) -> None:
        base = source.base or registry_client.server_of(ref.registry)
        credentials = registry_client.read_credentials(
            self.local, ref.registry if not source.base else base.partition("://")[2]
        )
        server = registry_client.Registry(
            self.local, base, credentials, upstream=ref.registry if source.base else "", tell=self.tell
        )
        self.tell(f"{ref.name}: asking {base}")
        kind, data = server.get_manifest(ref.repository, ref.reference)

        def read(descriptor: Descriptor) -> bytes:
            digest = str(descriptor["digest"])
            if digest == digest_of(data):
                return data
            if descriptor.get("mediaType") in (*layout.MANIFEST_TYPES, *layout.INDEX_TYPES):
                return server.get_manifest(ref.repository, digest)[1]
            is_document = int(descriptor["size"]) <= layout.MAX_DOCUMENT
            # what is larger is none, and not worth fetching: reading it says so
            place = take(descriptor) if is_document else Place(Path(ref.name), 0, int(descriptor["size"]))
            return layout.read_document(self.local, place, digest)

        def take(descriptor: Descriptor) -> Place:
            digest, size = str(descriptor["digest"]), int(descriptor["size"])
            path = self.spool / digest.replace(":", "-")
            server.fetch_blob(self.local, ref.repository, digest=digest, size=size, into=path)
            return Place(path, 0, size)

        self._take(ref, {"mediaType": kind, "digest": digest_of(data), "size": len(data)}, read, take)

    def _take(
        self, ref: Ref, top: Descriptor, read: Callable[[Descriptor], bytes], take: Callable[[Descriptor], Place]
    ) -> None:
        """Add the image that `top` describes with all of its blobs for the wanted architectures."""
        taken: dict[str, Place] = {}
        data = read(top)
        document = layout.parse_manifest(Path(ref.name), data, "its manifest")
        taken[str(top["digest"])] = self._keep(data)
        manifests = [(top, data)]
        if top["mediaType"] in layout.INDEX_TYPES:
            children = [self._pick(document, arch) for arch in self.archs]
            manifests = [(child, read(child)) for child in children]
        for descriptor, text in manifests:
            taken[str(descriptor["digest"])] = self._keep(text)
            manifest = layout.parse_manifest(Path(ref.name), text, str(descriptor["digest"]))
            if "config" not in manifest:
                raise _WrongArchitecture("its manifest names no configuration: it is no image")
            config = read(manifest["config"])
            if top["mediaType"] not in layout.INDEX_TYPES:
                settings = layout.parse_document(Path(ref.name), config, "its configuration")
                self._check_architecture(settings)
                top = {**top, "platform": _platform_of(settings)}
            taken[str(manifest["config"]["digest"])] = self._keep(config)
            for layer in manifest.get("layers") or []:
                if not layer.get("urls"):
                    taken[str(layer["digest"])] = take(layer)
        self.blobs.update(taken)
        annotations = {layout.NAME: ref.name, layout.REF_NAME: ref.name}
        self.entries[ref.name] = {**top, "annotations": annotations}

    def _keep(self, data: bytes) -> Place:
        """Small documents lie in the spool, like everything that comes over a network."""
        path = self.spool / digest_of(data).replace(":", "-")
        self.local.write_file(path, data)
        return Place(path, 0, len(data))

    @staticmethod
    def _pick(index: Mapping[str, Any], arch: str) -> Descriptor:
        for entry in index.get("manifests") or []:
            platform = entry.get("platform") or {}
            if platform.get("os") == "linux" and platform.get("architecture") == arch:
                return dict(entry)
        have = ", ".join(_archs_of(index)) or "no architecture"
        raise _WrongArchitecture(f"it exists for {have}, not for {arch}; --arch names fewer")

    def _check_architecture(self, config: Mapping[str, Any]) -> None:
        have = str(config.get("architecture"))
        if self.archs != (have,):
            raise _WrongArchitecture(f"it is for {have} alone, and {', '.join(self.archs)} is wanted")

    # ---- files

    def add_files(self, needs: Sequence[Need], sources: Sequence[Source], kubernetes_version: str) -> None:
        """Find each file in the first source that has it, of the right architecture."""
        left = {need.name: need for need in needs}
        reasons: dict[str, list[str]] = {}
        for source in sources:
            for title in list(left):
                is_taken = False
                if isinstance(source, FolderSource):
                    is_taken = self._take_from_folder(title, source.path, reasons)
                elif isinstance(source, LayoutSource):
                    is_taken = self._take_file_from_layout(title, source.layout)
                if is_taken:
                    del left[title]
            if isinstance(source, DownloadSource):
                for title in self._download(left, source, kubernetes_version, reasons):
                    del left[title]
        for title, need in left.items():
            self.missing.append((need, "; ".join(reasons.get(title, [])) or "none of the sources has it"))

    def _take_from_folder(self, title: str, folder: Path, reasons: dict[str, list[str]]) -> bool:
        arch, _, name = title.partition("/")
        if name.startswith("cni/"):
            places = [
                folder / arch / name,
                folder / name,
                *(folder / rest / name[4:] for rest in ("opt/cni/bin", "usr/lib/cni")),
            ]
        else:
            inner = ("", "bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin")
            places = [folder / arch / name, *(folder / rest / name for rest in inner)]
        for path in places:
            found = self.local.stat(path)
            if found is None or found.is_dir:
                continue
            have = read_elf_architecture(self.local, path)
            if have != arch:
                reasons.setdefault(title, []).append(f"{path} is {f'for {have}' if have else 'no ELF program'}")
                continue
            self.add_file(title, path)
            return True
        return False

    def add_file(self, title: str, path: Path, *, mode: int = 0o755, version: str = "") -> None:
        """A file of this machine, read once for its sum."""
        self.tell(f"reading {path}")
        digest = registry_client.sum_file(self.local, path)
        found = self.local.stat(path)
        # a link's own size is of no use: its target's is
        size = found.size if found and not found.is_symlink else _size_of(self.local, path)
        self._note_file(title, digest, Place(path, 0, size), mode, version)

    def _note_file(self, title: str, digest: str, place: Place, mode: int, version: str = "") -> None:
        self.blobs[digest] = place
        annotations = {layout.TITLE: title, MODE: f"{mode:04o}", SHA256: digest[len("sha256:") :]}
        if version:
            annotations[VERSION] = version
        self.files[title] = {"mediaType": FILE_TYPE, "digest": digest, "size": place.size, "annotations": annotations}

    def _take_file_from_layout(self, title: str, found: Layout) -> bool:
        layer = next(
            (item for item in file_layers(self.local, found) if item["annotations"].get(layout.TITLE) == title), None
        )
        if layer is None or layer["digest"] not in found.blobs:
            return False
        self.files[title] = layer
        self.blobs[layer["digest"]] = found.blobs[layer["digest"]]
        return True

    def _download(
        self, left: Mapping[str, Need], source: DownloadSource, kubernetes_version: str, reasons: dict[str, list[str]]
    ) -> list[str]:
        """The titles that official URLs gave."""
        got: list[str] = []
        for arch in self.archs:
            wanted = {title.partition("/")[2]: title for title in left if title.startswith(f"{arch}/")}
            for component in downloads.components_of(wanted):
                plan = downloads.plan_download(
                    component,
                    kubernetes_version=kubernetes_version,
                    arch=arch,
                    versions=source.versions,
                    preset=source.preset,
                )
                try:
                    got += self._take_download(plan, arch, wanted)
                except (Refused, Unreachable) as error:
                    for name, title in wanted.items():
                        if downloads.FILES_BY_NAME[name].component == component:
                            reasons.setdefault(title, []).append(f"{error.what}: {error.cause}")
        return got

    def _take_download(self, plan: downloads.Download, arch: str, wanted: Mapping[str, str]) -> list[str]:
        path = fetch_download(self.local, plan, self.spool, self.tell)
        if not plan.members:
            titles = [wanted[plan.component]]
            self._require_elf(path, arch, plan.url)
            self.add_file(titles[0], path, version=plan.version)
            return titles
        titles = []
        for name, place in unpack_members(self.local, path, plan, self.spool / f"{arch}-{plan.file_name}.d").items():
            title = f"{arch}/{name}"
            if name in wanted:
                self._require_elf(place, arch, plan.url)
                self.add_file(title, place, version=plan.version)
                titles.append(title)
        return titles

    def _require_elf(self, path: Path, arch: str, url: str) -> None:
        have = read_elf_architecture(self.local, path)
        if have != arch:
            raise HostError(
                f"{url} is not for {arch}",
                cause=f"its ELF header names {have or 'no known machine'}",
                remedy="take another version or mirror: kb bundle create --use COMPONENT=VERSION, --preset NAME",
                code="wrong-architecture",
            )


class _WrongArchitecture(Exception):
    """A source has the image, but not for all of the wanted architectures."""


def _archs_of(index: Mapping[str, Any]) -> list[str]:
    platforms = [entry.get("platform") or {} for entry in index.get("manifests") or []]
    return [str(platform.get("architecture")) for platform in platforms if platform.get("os") == "linux"]


def _platform_of(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(config[key]) for key in ("architecture", "os", "variant") if config.get(key)}


def _size_of(local: Host, path: Path) -> int:
    with contextlib.closing(local.open_read(path)) as file:
        return file.seek(0, 2)


def _incomplete(path: Path, digest: str) -> HostError:
    return HostError(
        f"{path} lacks blob {digest}",
        cause="it is a delta (kb bundle create --since), or was cut down",
        remedy="give the bundle that it was made against too: --from BASE --from DELTA",
        code="bundle-incomplete",
    )


def read_elf_architecture(host: Host, path: Path) -> Optional[str]:
    with contextlib.closing(host.open_read(path)) as file:
        return downloads.elf_architecture(file.read(20))


def fetch_download(local: LocalHost, plan: downloads.Download, folder: Path, tell: Tell) -> Path:
    """The published file, proven by its published sum. Raises Refused, Unreachable, HostError (download-damaged,
    checksum-missing)."""
    told = registry_client.read_url(local, plan.sha256_url).decode(errors="replace")
    wanted = downloads.parse_sha256(told, plan.file_name)
    if not wanted:
        raise HostError(
            f"{plan.sha256_url} names no sum of {plan.file_name}",
            cause=f"it says: {told[:60]!r}",
            remedy="without a checksum kb takes no program: try another mirror (--preset), or give the file with --from DIR",
            code="checksum-missing",
        )
    path = folder / f"{wanted[:16]}-{plan.file_name}"
    registry_client.fetch_resumed(
        local,
        lambda offset: registry_client.open_url(local, plan.url, offset),
        into=path,
        digest=f"sha256:{wanted}",
        name=plan.url,
        tell=tell,
    )
    return path


def unpack_members(local: LocalHost, archive: Path, plan: downloads.Download, folder: Path) -> dict[str, Path]:
    """The wanted members of a downloaded archive as files below `folder`: name in the bundle -> path. Raises HostError
    (download-damaged): its published sum says that it is what was published, not that it is an archive."""
    try:
        return _unpack_members(local, archive, plan, folder)
    except (tarfile.TarError, EOFError, ValueError, zlib.error) as error:
        raise HostError(
            f"{plan.url} cannot be unpacked",
            cause=f"{type(error).__name__}: {error}",
            remedy="take another version or mirror: kb bundle create --use COMPONENT=VERSION, --preset NAME",
            code="download-damaged",
        ) from error


def _unpack_members(local: LocalHost, archive: Path, plan: downloads.Download, folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    with contextlib.closing(local.open_read(archive)) as file, tarfile.open(fileobj=file, mode="r:*") as tar:
        for member in tar:
            name = member.name[2:] if member.name.startswith("./") else member.name
            target = plan.members.get(name) or (
                plan.members["*"] + name if "*" in plan.members and "/" not in name else ""
            )
            if not member.isreg() or not target or target not in downloads.FILES_BY_NAME:
                continue
            content = tar.extractfile(member)
            assert content is not None
            path = folder / target.replace("/", "-")
            local.write_stream(path, iter(functools.partial(content.read, 1 << 20), b""), mode=0o755)
            found[target] = path
    return found


# ---- the file


@frozen
class Written:
    """What was written."""

    path: Path
    digest: str
    """Of index.json, which names all the rest by its digest."""
    images: int
    files: int
    blobs: int
    bytes: int
    left_out: int
    """Blobs that the base of a delta has."""


def write_bundle(
    gathering: Gathering,
    out: Path,
    *,
    kubernetes_version: str,
    since: Optional[Layout] = None,
    key: Optional[Secret] = None,
) -> Written:
    """Write the tar. Raises HostError (bundle-incomplete) where something was not found, (source-changed), (disk-full)."""
    if gathering.missing:
        raise HostError(
            f"not found for the bundle: {len(gathering.missing)} of what it needs",
            cause=f"{gathering.missing[0][0].name}: {gathering.missing[0][1]}",
            remedy="name a source that has them: --from URL|DIR|FILE; or leave them out with a fitting --config",
            code="bundle-incomplete",
            details=[f"{need.name} (for {need.by}): {why}" for need, why in gathering.missing],
        )
    index = _render_index(gathering, kubernetes_version, since)
    index_bytes = as_json(index)
    documents = {"index.json": index_bytes}
    if key is not None:
        documents[layout.SIGNATURE_FILE] = sign_index(index_bytes, key)
    base = since.blobs if since else {}
    chosen = [(digest, place) for digest, place in sorted(gathering.blobs.items()) if digest not in base]
    total = sum(place.size for _, place in chosen)

    def contents() -> Iterator[tuple[str, int, Iterator[bytes]]]:
        for digest, place in chosen:
            gathering.tell(f"writing {digest[7:19]} ({place.size >> 20} MiB)")
            yield digest, place.size, layout.read_checked(gathering.local, place, digest)

    if not is_stream(str(out)):
        _require_space(gathering.local, out, total)
    gathering.local.write_output(str(out), layout.render_tar(documents, contents()))
    count = len(gathering.blobs) - len(chosen)
    return Written(out, digest_of(index_bytes), len(gathering.entries), len(gathering.files), len(chosen), total, count)


def _require_space(host: Host, path: Path, needed: int) -> None:
    free = host.free_bytes(path.parent)
    if free < needed:
        raise HostError(
            f"cannot write {path}",
            cause=f"it needs {needed >> 20} MiB, and the file system of {path.parent} has {free >> 20} MiB free",
            remedy=f"make space there (df -h {path.parent}), or choose another place",
            code="disk-full",
        )


def _render_index(gathering: Gathering, kubernetes_version: str, since: Optional[Layout]) -> dict[str, Any]:
    entries = [gathering.entries[name] for name in sorted(gathering.entries)]
    annotations = {KUBERNETES: kubernetes_version}
    if gathering.files:
        entries.append(_add_artifact(gathering, kubernetes_version))
    if since is not None:
        annotations[SINCE] = digest_of(since.index_bytes)
    return {"schemaVersion": 2, "mediaType": layout.OCI_INDEX, "manifests": entries, "annotations": annotations}


def _add_artifact(gathering: Gathering, kubernetes_version: str) -> Descriptor:
    """The manifest of the files. It has no name in the index: containerd would take a named one for an image."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": layout.OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": digest_of(EMPTY), "size": len(EMPTY)},
        "layers": [gathering.files[title] for title in sorted(gathering.files)],
        "annotations": {KUBERNETES: kubernetes_version},
    }
    data = as_json(manifest)
    for document in (data, EMPTY):
        gathering.blobs[digest_of(document)] = gathering._keep(document)
    return {
        "mediaType": layout.OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "digest": digest_of(data),
        "size": len(data),
    }


# ---- reading one


def list_artifacts(found: Layout) -> list[Descriptor]:
    """The descriptors of the artifacts of files in a layout: one, or none."""
    return [entry for entry in found.index.get("manifests") or [] if entry.get("artifactType") == ARTIFACT_TYPE]


def file_layers(host: Host, found: Layout) -> list[Descriptor]:
    """The descriptors of the files in a layout; [] where it holds no artifact of kb's."""
    layers: list[Descriptor] = []
    for entry in list_artifacts(found):
        manifest = layout.read_json_blob(host, found, str(entry["digest"])) or {}
        layers += [item for item in manifest.get("layers") or [] if (item.get("annotations") or {}).get(layout.TITLE)]
    return layers


def list_files(host: Host, found: Layout) -> list[FileEntry]:
    """The files in a layout. A title that leads out of the folder it is unpacked in is refused (bundle-unsafe)."""
    entries = []
    for layer in file_layers(host, found):
        told = layer["annotations"]
        title = str(told[layout.TITLE])
        if title.startswith("/") or ".." in title.split("/") or not layout.is_digest(str(layer.get("digest"))):
            raise HostError(
                f"{found.path} names a file {title!r}",
                cause="a title is a relative path without .., and its digest a sha256",
                remedy="do not use this file: kb made no such bundle",
                code="bundle-unsafe",
            )
        mode = parse_mode(told.get(MODE, "0755"))
        entries.append(FileEntry(title, mode, str(layer["digest"]), int(layer["size"]), str(told.get(VERSION, ""))))
    return entries


@frozen
class NodeFiles:
    """The files of a bundle. version: of the Kubernetes that they are for (`v1.35.6`; "" where it does not say)."""

    version: str
    entries: tuple[FileEntry, ...]


def read_files(host: Host, found: Layout) -> NodeFiles:
    """Raises HostError as list_files."""
    return NodeFiles(_read_kubernetes_version(host, found), tuple(list_files(host, found)))


def _read_kubernetes_version(host: Host, found: Layout) -> str:
    for entry in list_artifacts(found):
        manifest = layout.read_json_blob(host, found, str(entry["digest"])) or {}
        told = (manifest.get("annotations") or {}).get(KUBERNETES)
        if told:
            return str(told)
    return str((found.index.get("annotations") or {}).get(KUBERNETES) or "")


def files_by_version(bundles: Iterable[NodeFiles]) -> dict[str, dict[str, FileEntry]]:
    """Kubernetes version -> title -> file; a later bundle wins."""
    found: dict[str, dict[str, FileEntry]] = {}
    for item in bundles:
        if item.entries:
            found.setdefault(item.version, {}).update({entry.title: entry for entry in item.entries})
    return found


def choose_files(bundles: Sequence[NodeFiles]) -> dict[str, FileEntry]:
    """What is meant where nobody says a version: of each file that of the newest Kubernetes; of kb.pyz the newest kb's, which
    serves all versions. One rule for what a mirror hands out and for the sums that kb prints."""
    chosen: dict[str, FileEntry] = {}
    by_version = files_by_version(bundles)
    for version in sorted(by_version, key=_order_of):
        chosen.update(by_version[version])
    own = [entry for item in bundles for entry in item.entries if entry.title == KB_FILE]
    if own:
        chosen[KB_FILE] = max(own, key=lambda entry: _order_of(entry.version))
    return chosen


def choose_version(versions: Iterable[str], wanted: str) -> str:
    """Which of these Kubernetes versions serves a node of a cluster of `wanted`: that itself, else the newest patch release of
    its minor, else the newest older one, as a kubelet may be older than the API server; "" for none."""
    have = sorted(versions, key=_order_of)
    if wanted in have:
        return wanted
    minor = _order_of(wanted)[0][:2]
    fit = [version for version in have if (-1,) < _order_of(version)[0][:2] <= minor]
    return fit[-1] if fit else ""


def _order_of(version: str) -> tuple[tuple[int, ...], bool, str]:
    """Sorts `v1.35.6`, `v1.36.0-rc.1`, `v1.36.0` as semantic versioning does, what is no version first."""
    numbers, _, more = version.lstrip("v").partition("-")
    parts = numbers.partition("+")[0].split(".")
    is_version = all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts)
    return tuple(map(int, parts)) if is_version else (-1,), not more, more


def parse_mode(text: str) -> int:
    """A program's mode, or that of other files: nobody but root may change what root runs, whatever a bundle says."""
    is_program = re.fullmatch(r"[0-7]{1,6}", text) is None or int(text, 8) & 0o111
    return 0o755 if is_program else 0o644


def walk_blobs(host: Host, found: Layout) -> Iterator[tuple[str, int, str]]:
    """(digest, size, what needs it) of every blob that the index leads to. Of an image index only the children that
    are there: a bundle leaves other architectures out."""
    seen: set[str] = set()
    for entry in found.index.get("manifests") or []:
        annotations = entry.get("annotations") or {}
        owner = str(annotations.get(layout.NAME) or annotations.get(layout.REF_NAME) or "the files")
        for descriptor, document in walk_manifests(host, found, entry, seen):
            yield str(descriptor["digest"]), int(descriptor["size"]), owner
            yield from _leaves(document or {}, owner)


def walk_manifests(
    host: Host, found: Layout, entry: Descriptor, seen: set[str]
) -> Iterator[tuple[Descriptor, Optional[dict[str, Any]]]]:
    """The descriptors and documents below an entry of the index, each once, whichever way leads to it: an index can name
    another twice, and that one the next. None for a document that is not there; children that are not are left out.
    seen: the digests that were walked before."""
    waiting = [entry]
    while waiting:
        descriptor = waiting.pop()
        digest = str(descriptor["digest"])
        if digest in seen:
            continue
        seen.add(digest)
        document = layout.read_json_blob(host, found, digest)
        yield descriptor, document
        children = {str(child["digest"]): child for child in reversed((document or {}).get("manifests") or [])}
        waiting += [child for name, child in children.items() if name in found.blobs and name not in seen]


def _leaves(document: Mapping[str, Any], owner: str) -> Iterator[tuple[str, int, str]]:
    """What a manifest names that is no manifest."""
    for child in [*([document["config"]] if "config" in document else []), *(document.get("layers") or [])]:
        title = (child.get("annotations") or {}).get(layout.TITLE)
        if not child.get("urls"):
            yield str(child["digest"]), int(child["size"]), f"file {title}" if title else owner


@frozen
class Verdict:
    """What verify found: problems in words, (need, why) of what a configuration misses, and how much was read."""

    problems: tuple[str, ...]
    missing: tuple[Need, ...]
    blobs: int
    bytes: int


def verify_bundle(
    host: Host,
    found: Layout,
    *,
    base: Optional[Layout] = None,
    needs: Sequence[Need] = (),
    files: Sequence[Need] = (),
    tell: Tell = lambda text: None,
) -> Verdict:
    """Sum every blob, look that none is missing, and that the bundle has what is needed. base: a delta's."""
    # in words -> what needs it
    problems = {f"{shown(name)} is in it, which no layout has": "" for name in found.strays[:20]}
    problems.update({text: "" for name in found.names if (text := describe_bad_name(name))})
    known: dict[str, Place] = {**(base.blobs if base else {}), **found.blobs}
    owners: dict[str, str] = {}
    sizes: dict[str, int] = {}
    titles: set[str] = set()
    try:
        whole = replace(found, blobs=known)
        for digest, size, owner in walk_blobs(host, whole):
            owners.setdefault(digest, owner)
            sizes.setdefault(digest, size)
            if digest not in known:
                problems[f"blob {digest} of {owner} is missing"] = ""
            elif known[digest].size != size:
                problems[f"blob {digest} of {owner} has {known[digest].size} bytes, not {size}"] = ""
        titles = {entry.title for entry in list_files(host, whole)}
        is_walked = True
    except HostError as error:
        problems[f"{error.what}: {error.cause}"] = ""
        is_walked = False
    for digest, place in sorted(found.blobs.items(), key=lambda item: item[1].offset):
        if is_walked and digest not in sizes:
            problems[f"blob {digest} is in it, and nothing in index.json leads to it"] = ""
            continue
        if sizes.get(digest, place.size) != place.size:
            continue  # said above; what is too large is not worth reading
        tell(f"reading {digest[7:19]} ({place.size >> 20} MiB)")
        try:
            for _ in layout.read_checked(host, place, digest):
                pass
        except HostError as error:
            problems[f"{error.what}: {error.cause}"] = owners.get(digest, "")
    named = [text if owner in text else f"{text} (needed by {owner})" for text, owner in problems.items()]
    if len(named) > _MAX_PROBLEMS:
        named[_MAX_PROBLEMS:] = [f"and {len(named) - _MAX_PROBLEMS} more"]
    missing = [need for need in needs if not _has_image(found, need.name)]
    missing += [need for need in files if need.name not in titles]
    total = sum(place.size for place in found.blobs.values())
    return Verdict(tuple(named), tuple(missing), len(found.blobs), total)


def describe_bad_name(name: str) -> str:
    """Why an image of this name could not be served; "" where it can."""
    try:
        parse_ref(name)
    except KbError as error:
        return f"image {shown(name)}: {error.cause}"
    return ""


def _has_image(found: Layout, name: str) -> bool:
    ref = parse_ref(name)
    return ref.name in found.names or bool(ref.digest and ref.digest in found.blobs)


def diff_bundles(host: Host, one: Layout, other: Layout) -> dict[str, list[str]]:
    """What `other` adds, lacks and has in another version, by names of images and titles of files."""

    def contents(found: Layout) -> dict[str, str]:
        named = {f"image {name}": str(entry["digest"]) for name, entry in found.names.items()}
        return {**named, **{f"file {entry.title}": entry.digest for entry in list_files(host, found)}}

    old, new = contents(one), contents(other)
    return {
        "added": sorted(set(new) - set(old)),
        "removed": sorted(set(old) - set(new)),
        "changed": sorted(name for name in set(old) & set(new) if old[name] != new[name]),
    }


# ---- signatures


def sign_index(index_bytes: bytes, key: Secret) -> bytes:
    """The signature file: ed25519 over index.json, which names all the rest by sha256. Raises UsageError (bad-key)."""
    try:
        private = serialization.load_pem_private_key(key.reveal().encode(), password=None)
    except (ValueError, TypeError) as error:
        raise _bad_key("--sign", "it is no private key in PEM, or is encrypted") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise _bad_key("--sign", "it is no ed25519 key")
    return as_json({"ed25519": base64.b64encode(private.sign(index_bytes)).decode(), "signs": "index.json"})


def check_signature(found: Layout, public_pem: str) -> None:
    """Raise HostError (signature-missing, signature-wrong) or UsageError (bad-key) unless the key's owner signed it."""
    try:
        public = serialization.load_pem_public_key(public_pem.encode())
    except ValueError as error:
        raise _bad_key("--verify-key", "it is no public key in PEM") from error
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise _bad_key("--verify-key", "it is no ed25519 key")
    if not found.signature:
        raise HostError(
            f"{found.path} is not signed",
            cause=f"it has no {layout.SIGNATURE_FILE}",
            remedy="sign it where it is made: kb bundle create --sign KEY; or leave --verify-key out",
            code="signature-missing",
        )
    try:
        told = parse_json_object(found.signature, layout.SIGNATURE_FILE)
        public.verify(base64.b64decode(str(told["ed25519"])), found.index_bytes)
    except Exception as error:  # InvalidSignature, and every way in which the text may be broken
        raise HostError(
            f"{found.path} is not what the owner of the key signed",
            cause="the ed25519 signature does not fit index.json",
            remedy="do not use it: get it anew from where it was made, and compare the key",
            code="signature-wrong",
        ) from error


def _bad_key(flag: str, cause: str) -> UsageError:
    return UsageError(
        f"the key of {flag} cannot be used",
        cause=cause,
        remedy="make a pair: openssl genpkey -algorithm ed25519 -out KEY && openssl pkey -in KEY -pubout -out KEY.pub",
        code="bad-key",
    )
