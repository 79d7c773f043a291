"""A node's programs: which are present, missing or wrong, where to get them, and how to install them.

Everything is first fetched and verified in kb's own folder (checksum, ELF machine, version). Only when all files are
good is anything installed. A good existing file stays. Must not configure what it installs (runtime_fix.py, the phase
kubelet-start). kubeadm leaves all of this to its user.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional

from kubeup.airgap import bundle, bundle_needs, bundle_sources, downloads, oci_layout, registry_client
from kubeup.airgap.containerd_hosts import Mirror
from kubeup.airgap.downloads import NODE_FILES, NodeFile
from kubeup.airgap.oci_layout import Layout
from kubeup.config import presets
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.machine.host import Host
from kubeup.machine.local_host import LocalHost
from kubeup.releases import Release, parse_version

STAGING = Path("/var/lib/kb/staging")
CNI_ELSEWHERE = Path("/usr/lib/cni")
"""Where Debian keeps the CNI plugins; its containerd looks there."""

Tell = Callable[[str], None]


@frozen
class Standing:
    """What is known about one of the node's files. verdict: good | missing | wrong."""

    item: NodeFile
    verdict: str
    path: Optional[Path] = None
    version: str = ""
    why: str = ""


@frozen
class Offered:
    """A file that a source has. open(): its bytes; the caller verifies the checksum."""

    item: NodeFile
    digest: str
    size: int
    mode: int
    origin: str
    open: Callable[[], Iterator[bytes]]


# ---- what is installed


def look(host: Host, cluster_version: str, *, release: Release) -> tuple[Standing, ...]:
    """The current state of every file of NODE_FILES."""
    found = [_look_at(host, item, cluster_version=cluster_version, release=release) for item in NODE_FILES]
    runtime = next(one for one in found if one.item.name == "containerd")
    if runtime.verdict != "good":
        return tuple(found)
    # an existing runtime came with its own parts, wherever its package keeps them
    return tuple(_as_part_of_runtime(host, one) for one in found)


def _as_part_of_runtime(host: Host, one: Standing) -> Standing:
    name = one.item.name
    if one.verdict != "missing" or not name.startswith("cni/"):
        return one
    place = CNI_ELSEWHERE / name[len("cni/") :]
    return Standing(one.item, "good", place) if host.exists(place) else one


def ask_version(host: Host, path: Path, *, item: NodeFile) -> tuple[str, str]:
    """The version that the program at `path` prints, and why it prints none, in words: one of the two is ""."""
    answer = host.query([path, *item.version_words], timeout_s=60)
    match = re.search(item.version_pattern, answer.stdout + answer.stderr)
    if not answer.ok:
        return "", f"it does not run: {_first_line(answer.stderr)}"
    return (match.group(1), "") if match else ("", f"it says {_first_line(answer.stdout + answer.stderr)!r}")


def _look_at(host: Host, item: NodeFile, *, cluster_version: str, release: Release) -> Standing:
    if item.name.startswith("cni/"):
        place = Path(item.place)
        return Standing(item, "good" if host.exists(place) else "missing", place if host.exists(place) else None)
    path = host.which(item.name)
    if path is None:
        return Standing(item, "missing")
    if not item.version_words:
        return Standing(item, "good", path)
    answer = host.query([path, *item.version_words], timeout_s=30)
    match = re.search(item.version_pattern, answer.stdout + answer.stderr)
    version = match.group(1) if match else ""
    why = (
        judge_version(item.name, version, cluster_version=cluster_version, release=release)
        if answer.ok
        else f"it does not run: {_first_line(answer.stderr)}"
    )
    return Standing(item, "wrong" if why else "good", path, version, why)


def judge_version(name: str, version: str, *, cluster_version: str, release: Release) -> str:
    """Why this version is not suitable; "" if it is, or if the version does not matter."""
    have, want = parse_version(re.split(r"[~+]", version)[0]), parse_version(cluster_version)
    if name == "kubelet" and want is not None:
        if have is None:
            return f"it calls itself {version!r}"
        if (have.major, have.minor) != (want.major, want.minor):
            return f"it is {version}, and the cluster's version is {cluster_version}"
    if name == "containerd" and have is not None:
        floor = (2, 0) if release.needs_runtime_config else (1, 6)
        if (have.major, have.minor) < floor:
            return f"it is {version}, and a kubelet {release.name} needs {floor[0]}.{floor[1]} or newer"
    return ""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it said nothing")


# ---- sources


def offer_bundle(host: Host, found: Layout, *, arch: str) -> dict[str, Offered]:
    """The bundle's files for this architecture: name -> file."""
    offered = {}
    for entry in bundle.list_files(host, found):
        item = _item_of(entry.title, arch)
        place = found.blobs.get(entry.digest)
        if item is not None and place is not None:
            offered[item.name] = Offered(
                item, entry.digest, entry.size, entry.mode, str(found.path), _opener(host, place)
            )
    return offered


def _opener(host: Host, place: oci_layout.Place) -> Callable[[], Iterator[bytes]]:
    return lambda: oci_layout.read_place(host, place)


def offer_mirror(host: Host, mirror: Mirror, *, arch: str, version: str = "") -> dict[str, Offered]:
    """The files that kb's mirror has for a Kubernetes version ("": its newest). {} for other registries. Raises
    Unreachable, HostError (mirror-invalid)."""
    query = f"?{urllib.parse.urlencode({'version': version})}" if version else ""
    answer = host.http_get(f"{mirror.url}/files/{query}", tls=mirror.tls, timeout_s=15)
    if answer.status != 200:
        return {}
    try:
        rows = parse_json_object(answer.body, "the list of files")["files"]
        entries = [
            (str(row["title"]), str(row["digest"]), int(row["size"]), bundle.parse_mode(str(row["mode"])))
            for row in rows
        ]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise HostError(
            f"{mirror.url}/files/ is not what kb's mirror returns",
            cause=f"{type(error).__name__}: {error}",
            remedy=f"look at it: curl {mirror.url}/files/",
            code="mirror-invalid",
        ) from error
    offered = {}
    for title, digest, size, mode in entries:
        item = _item_of(title, arch)
        if item is not None and oci_layout.is_digest(digest):
            url = f"{mirror.url}/files/{urllib.parse.quote(title)}{query}"
            offered[item.name] = Offered(item, digest, size, mode, url, _url_opener(host, url, mirror=mirror))
    return offered


def _url_opener(host: Host, url: str, *, mirror: Mirror) -> Callable[[], Iterator[bytes]]:
    return lambda: registry_client.open_url(host, url, offset=0, tls=mirror.tls)


def offer_downloads(
    local: LocalHost,
    names: Sequence[str],
    *,
    cluster_version: str,
    arch: str,
    preset: presets.Preset,
    spool: Path,
    tell: Tell,
) -> dict[str, Offered]:
    """Official releases, downloaded and verified with their published checksums. Raises HostError
    (packages-not-found)."""
    gathering = bundle_sources.Gathering(local, spool, (arch,), tell=tell)
    needs = [bundle_needs.Need(f"{arch}/{name}", downloads.FILES_BY_NAME[name].needed_by) for name in names]
    gathering.add_files(needs, (bundle_sources.DownloadSource(preset),), kubernetes_version=cluster_version)
    if gathering.missing:
        need, why = gathering.missing[0]
        raise HostError(
            f"{len(gathering.missing)} programs cannot be downloaded",
            cause=f"{need.name}: {why}",
            remedy="see whether this node reaches the internet; on a slow network: --preset NAME; without a network: --bundle FILE",
            code="packages-not-found",
            details=[f"{need.name}: {why}" for need, why in gathering.missing],
        )
    offered = {}
    for title, layer in gathering.files.items():
        item = _item_of(title, arch)
        assert item is not None
        place = gathering.blobs[str(layer["digest"])]
        offered[item.name] = Offered(
            item, str(layer["digest"]), place.size, 0o755, str(place.path), _opener(local, place)
        )
    return offered


def _item_of(title: str, arch: str) -> Optional[NodeFile]:
    own, _, name = title.partition("/")
    return downloads.FILES_BY_NAME.get(name) if own == arch else None


def architectures_in(host: Host, found: Layout) -> tuple[str, ...]:
    titles = (entry.title.partition("/")[0] for entry in bundle.list_files(host, found))
    return tuple(dict.fromkeys(title for title in titles if title in downloads.ARCHITECTURES))


# ---- installation


def stage(
    host: Host,
    offered: Sequence[Offered],
    *,
    arch: str,
    cluster_version: str,
    release: Release,
    tell: Tell,
    folder: Path = STAGING,
) -> dict[str, Path]:
    """Fetch everything to `folder` and verify it; nothing is installed yet. Raises HostError: disk-full, file-damaged,
    wrong-architecture, wrong-version; the folder is then removed again."""
    _require_space(host, offered)
    try:
        staged = {}
        for one in offered:
            tell(f"{one.item.name}: {one.size >> 20} MiB from {one.origin}")
            path = folder / one.item.name.replace("/", "-")
            host.write_stream(path, _proven(one, arch), mode=one.mode | 0o100)
            _prove_version(host, one, path=path, cluster_version=cluster_version, release=release)
            staged[one.item.name] = path
    except BaseException:
        host.remove_tree(folder)
        raise
    return staged


def _require_space(host: Host, offered: Sequence[Offered]) -> None:
    needed = sum(one.size for one in offered) + (64 << 20)
    for folder in (STAGING.parent, Path("/usr/local/bin")):
        free = host.free_bytes(folder)
        if free < needed:
            raise HostError(
                f"the file system of {folder} is too full for the node's programs",
                cause=f"they need {needed >> 20} MiB, and {free >> 20} MiB are free",
                remedy=f"make space there: df -h {folder}",
                code="disk-full",
            )


def _proven(one: Offered, arch: str) -> Iterator[bytes]:
    """The bytes; the ELF machine is checked before the first byte is written, the checksum at the end."""
    summed, count = hashlib.sha256(), 0
    first = True
    for piece in one.open():
        if first:
            _prove_architecture(one, piece, arch=arch)
            first = False
        summed.update(piece)
        count += len(piece)
        if count > one.size:
            break  # too much data: this is not the announced file, however much more there is
        yield piece
    if f"sha256:{summed.hexdigest()}" != one.digest:
        raise HostError(
            f"{one.item.name} from {one.origin} is damaged",
            cause=f"its checksum is sha256:{summed.hexdigest()}, not {one.digest}",
            remedy="check the bundle where it is stored: kb bundle verify FILE; and get it again",
            code="file-damaged",
        )


def _prove_architecture(one: Offered, head: bytes, *, arch: str) -> None:
    have = downloads.elf_architecture(head[:20])
    if have != arch:
        told = "no ELF program" if have is None else f"for {have or 'another machine'}"
        raise HostError(
            f"{one.item.name} from {one.origin} is not for this machine",
            cause=f"it is {told}, and this machine is {arch}",
            remedy=f"make a bundle for it: kb bundle create --arch {arch}",
            code="wrong-architecture",
        )


def _prove_version(host: Host, one: Offered, *, path: Path, cluster_version: str, release: Release) -> None:
    if not one.item.version_words or host.mode != "live":
        return
    answer = host.query([path, *one.item.version_words], timeout_s=60)
    match = re.search(one.item.version_pattern, answer.stdout + answer.stderr)
    why = "" if answer.ok else f"it does not run here: {_first_line(answer.stderr)}"
    why = why or judge_version(
        one.item.name, match.group(1) if match else "", cluster_version=cluster_version, release=release
    )
    if why:
        raise HostError(
            f"{one.item.name} from {one.origin} does not fit this cluster",
            cause=why,
            remedy=f"make a bundle for it: kb bundle create --kubernetes-version {cluster_version}",
            code="wrong-version",
        )


def put_in_place(host: Host, staged: Mapping[str, Path]) -> list[Path]:
    """Install every staged file, the runtime first; return the paths."""
    places = []
    for item in NODE_FILES:
        if item.name in staged:
            host.move_file(staged[item.name], Path(item.place))
            places.append(Path(item.place))
    host.remove_tree(STAGING)
    return places
