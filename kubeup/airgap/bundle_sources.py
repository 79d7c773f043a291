"""The sources of a bundle's images and files: folders, layouts, registries, downloads.

Owns the gathering: the first source that has something is used, and its content must be for the requested architecture.
"""

from __future__ import annotations

import contextlib
import functools
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from kubeup.airgap import downloads, registry_client
from kubeup.airgap import oci_layout as layout
from kubeup.airgap.bundle import FILE_TYPE, MODE, SHA256, VERSION, Tell, file_layers
from kubeup.airgap.bundle_needs import Need
from kubeup.airgap.oci_layout import Descriptor, Layout, Place, digest_of
from kubeup.airgap.registry_client import Ref, Refused, parse_ref
from kubeup.config import presets
from kubeup.errors import HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.machine.http import Unreachable
from kubeup.machine.local_host import LocalHost


@frozen
class FolderSource:
    """A folder with programs by name: DIR/<arch>/kubelet, DIR/kubelet, DIR/usr/bin/kubelet, DIR/cni/bridge."""

    path: Path


@frozen
class LayoutSource:
    layout: Layout


@frozen
class RegistrySource:
    """A server that has images under their names without the registry or, with base "", each image's own registry."""

    base: str = ""


@frozen
class DownloadSource:
    """Official release URLs."""

    preset: Optional[presets.Preset] = None
    versions: Mapping[str, str] = field(default_factory=dict)


Source = Union[FolderSource, LayoutSource, RegistrySource, DownloadSource]


def parse_sources(
    local: LocalHost, texts: Sequence[str], *, preset: presets.Preset, versions: Mapping[str, str]
) -> tuple[Source, ...]:
    """The values of --from: a registry's URL, a layout's folder or tar, a folder with programs, or `official`, which is
    also the default. Raises UsageError (unknown-source)."""
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
                cause="it is not a URL, and there is no such file or folder",
                remedy="give a registry's URL, a layout (folder or tar), a folder with programs, or the word official",
                code="unknown-source",
            )
    return tuple(sources)


@dataclass
class Gathering:
    """What has been found so far: blobs by digest, the entries of the index, and the layers of the artifact."""

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
        """Find the image in the first source that has it; an image that no source has is added to `missing`."""
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
                reasons.append(str(error))
        self.missing.append((need, "; ".join(reasons) or "none of the sources has it"))

    def _take_from_layout(self, ref: Ref, found: Layout) -> bool:
        named = found.names.get(ref.name)
        if named is None and ref.digest and ref.digest in found.blobs:
            data = layout.read_json_blob(self.local, found, digest=ref.digest) or {}
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
            return layout.read_document(self.local, place, digest=str(descriptor["digest"]))

        def take(descriptor: Descriptor) -> Place:
            place = found.blobs.get(str(descriptor["digest"]))
            if place is None:
                raise _incomplete(found.path, str(descriptor["digest"]))
            return place

        self._take(ref, {key: named[key] for key in ("mediaType", "digest", "size")}, read=read, take=take)
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
            # a larger blob is not a document and not worth fetching: reading it reports the error
            place = take(descriptor) if is_document else Place(Path(ref.name), 0, int(descriptor["size"]))
            return layout.read_document(self.local, place, digest=digest)

        def take(descriptor: Descriptor) -> Place:
            digest, size = str(descriptor["digest"]), int(descriptor["size"])
            path = self.spool / digest.replace(":", "-")
            server.fetch_blob(self.local, ref.repository, digest=digest, size=size, into=path)
            return Place(path, 0, size)

        self._take(ref, {"mediaType": kind, "digest": digest_of(data), "size": len(data)}, read=read, take=take)

    def _take(
        self, ref: Ref, top: Descriptor, *, read: Callable[[Descriptor], bytes], take: Callable[[Descriptor], Place]
    ) -> None:
        """Add the image that `top` describes, with all of its blobs for the requested architectures."""
        taken: dict[str, Place] = {}
        data = read(top)
        document = layout.parse_manifest(Path(ref.name), data, name="its manifest")
        taken[str(top["digest"])] = self._keep(data)
        manifests = [(top, data)]
        if top["mediaType"] in layout.INDEX_TYPES:
            children = [self._pick(document, arch) for arch in self.archs]
            manifests = [(child, read(child)) for child in children]
        for descriptor, text in manifests:
            taken[str(descriptor["digest"])] = self._keep(text)
            manifest = layout.parse_manifest(Path(ref.name), text, name=str(descriptor["digest"]))
            if "config" not in manifest:
                raise _WrongArchitecture("its manifest names no configuration: it is not an image")
            config = read(manifest["config"])
            if top["mediaType"] not in layout.INDEX_TYPES:
                settings = layout.parse_document(Path(ref.name), config, name="its configuration")
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
        """Keep a small document in the spool, like everything that is downloaded."""
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
            raise _WrongArchitecture(f"it is only for {have}, but {', '.join(self.archs)} is wanted")

    # ---- files

    def add_files(self, needs: Sequence[Need], sources: Sequence[Source], *, kubernetes_version: str) -> None:
        """Find each file, for the right architecture, in the first source that has it."""
        left = {need.name: need for need in needs}
        reasons: dict[str, list[str]] = {}
        for source in sources:
            for title in list(left):
                is_taken = False
                if isinstance(source, FolderSource):
                    is_taken = self._take_from_folder(title, source.path, reasons=reasons)
                elif isinstance(source, LayoutSource):
                    is_taken = self._take_file_from_layout(title, source.layout)
                if is_taken:
                    del left[title]
            if isinstance(source, DownloadSource):
                for title in self._download(left, source, kubernetes_version=kubernetes_version, reasons=reasons):
                    del left[title]
        for title, need in left.items():
            self.missing.append((need, "; ".join(reasons.get(title, [])) or "none of the sources has it"))

    def _take_from_folder(self, title: str, folder: Path, *, reasons: dict[str, list[str]]) -> bool:
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
        """Add a file of this machine; it is read once to compute its checksum."""
        self.tell(f"reading {path}")
        digest = registry_client.sum_file(self.local, path)
        found = self.local.stat(path)
        # the size of a link is useless: use its target's
        size = found.size if found and not found.is_symlink else _size_of(self.local, path)
        self._note_file(title, digest, place=Place(path, 0, size), mode=mode, version=version)

    def _note_file(self, title: str, digest: str, *, place: Place, mode: int, version: str = "") -> None:
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
        self,
        left: Mapping[str, Need],
        source: DownloadSource,
        *,
        kubernetes_version: str,
        reasons: dict[str, list[str]],
    ) -> list[str]:
        """Download files from official URLs; return their titles."""
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
                    got += self._take_download(plan, arch, wanted=wanted)
                except (Refused, Unreachable) as error:
                    missed = [wanted[name] for name in wanted if downloads.FILES_BY_NAME[name].component == component]
                    for title in missed:
                        reasons.setdefault(title, []).append(str(error))
        return got

    def _take_download(self, plan: downloads.Download, arch: str, *, wanted: Mapping[str, str]) -> list[str]:
        path = fetch_download(self.local, plan, folder=self.spool, tell=self.tell)
        if not plan.members:
            titles = [wanted[plan.component]]
            self._require_elf(path, arch, url=plan.url)
            self.add_file(titles[0], path, version=plan.version)
            return titles
        titles = []
        for name, place in unpack_members(
            self.local, path, plan=plan, folder=self.spool / f"{arch}-{plan.file_name}.d"
        ).items():
            title = f"{arch}/{name}"
            if name in wanted:
                self._require_elf(place, arch, url=plan.url)
                self.add_file(title, place, version=plan.version)
                titles.append(title)
        return titles

    def _require_elf(self, path: Path, arch: str, *, url: str) -> None:
        have = read_elf_architecture(self.local, path)
        if have != arch:
            raise HostError(
                f"{url} is not for {arch}",
                cause=f"its ELF header names {have or 'no known machine'}",
                remedy="take another version or mirror: kb bundle create --use COMPONENT=VERSION, --preset NAME",
                code="wrong-architecture",
            )


class _WrongArchitecture(Exception):
    """A source has the image, but not for all requested architectures."""


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


def fetch_download(local: LocalHost, plan: downloads.Download, *, folder: Path, tell: Tell) -> Path:
    """The published file, verified with its published checksum. Raises Refused, Unreachable, HostError
    (download-damaged, checksum-missing)."""
    told = registry_client.read_url(local, plan.sha256_url).decode(errors="replace")
    wanted = downloads.parse_sha256(told, plan.file_name)
    if not wanted:
        raise HostError(
            f"{plan.sha256_url} has no checksum of {plan.file_name}",
            cause=f"it says: {told[:60]!r}",
            remedy="a program without a checksum is not installed: try another mirror (--preset), or give the file with --from DIR",
            code="checksum-missing",
        )
    path = folder / f"{wanted[:16]}-{plan.file_name}"
    registry_client.fetch_resumed(
        local,
        lambda offset: registry_client.open_url(local, plan.url, offset=offset),
        into=path,
        digest=f"sha256:{wanted}",
        name=plan.url,
        tell=tell,
    )
    return path


def unpack_members(local: LocalHost, archive: Path, *, plan: downloads.Download, folder: Path) -> dict[str, Path]:
    """The wanted members of a downloaded archive as files below `folder`: name in the bundle -> path. Raises HostError
    (download-damaged): the published checksum proves that it is the published file, not that it is an archive."""
    try:
        return _unpack_members(local, archive, plan=plan, folder=folder)
    except (tarfile.TarError, EOFError, ValueError, zlib.error) as error:
        raise HostError(
            f"{plan.url} cannot be unpacked",
            cause=f"{type(error).__name__}: {error}",
            remedy="take another version or mirror: kb bundle create --use COMPONENT=VERSION, --preset NAME",
            code="download-damaged",
        ) from error


def _unpack_members(local: LocalHost, archive: Path, *, plan: downloads.Download, folder: Path) -> dict[str, Path]:
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
