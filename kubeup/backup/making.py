"""Makes a backup: looks at the control plane, takes the snapshot, and writes the archive to where it was asked for.

The snapshot is kept in a file without a name until its hash is known, since the first member of the archive names it. So nothing is
left behind whenever this ends, and a former backup stays until the new one is whole. Changes nothing but the file that was asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Optional

from kubeup import __version__, moments
from kubeup.backup import archive, encryption, node_content, opening
from kubeup.backup.archive import About, Content, Entry
from kubeup.cluster import etcd, etcd_snapshot
from kubeup.cluster.api import Api
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.machine.http import Unreachable
from kubeup.machine.local_host import LocalHost
from kubeup.machine.process import is_stream
from kubeup.paths import Paths
from kubeup.yaml_files import YAMLError, commands_of_pod, dump_yaml, flags_of, load_yaml

OBJECTS = ("kubeadm-config", "kubelet-config", "kube-proxy", "kb-config")
"""ConfigMaps of kube-system that are in a backup, to be read: what the cluster was configured as."""
_MARGIN = 32 << 20
"""Bytes by which etcd's data may grow between the look at the room and the snapshot."""
_DENIED = (
    "permission denied",
    "user name is empty",
    "invalid auth token",
    "http 401",
    "http 403",
    "404 page not found",
)
"""What an etcd answers whose users have no right to it, or whose gateway is switched off. Source: api/v3rpc/rpctypes/error.go"""
_CHUNK = 1 << 20
_SLOWEST, _FASTEST = float(8 << 20), float(32 << 20)
"""Bytes a second."""
_TAKES_S, _PAUSE_S = 2.5, 0.02


@frozen
class Source:
    """The control plane that is backed up."""

    host: LocalHost
    paths: Paths
    node: str
    kubernetes: str
    client: etcd.Etcd
    etcd_kind: str
    """local | external"""
    api: Optional[Api] = None


@frozen
class Planned:
    """What a backup will hold. contents: all but the snapshot; db_size: how large that is, in bytes, 0 if it cannot be had."""

    about: About
    contents: tuple[Content, ...]
    db_size: int
    no_snapshot: str = ""
    """Why there will be no snapshot, in words; only of an external etcd, which has backups of its own."""


@frozen
class Target:
    """Where a backup goes. folder: on whose disk it may be large meanwhile; keeps: the folder of the backup itself, None if that goes
    elsewhere. The former holds the snapshot in plain text for a while, so it is this machine's own if the backup is encrypted.

    write: takes its bytes; whatever they raise, nothing of them is left."""

    name: str
    folder: Path
    keeps: Optional[Path]
    write: Callable[[Iterable[bytes]], None]


@frozen
class Made:
    """A finished backup. size: in bytes, as it was written, encrypted or not; sha256: of the same."""

    about: About
    entries: tuple[Entry, ...]
    size: int
    sha256: str


# ---- looking


def plan_backup(source: Source, *, without: Iterable[Path] = ()) -> Planned:
    """Look at everything that goes in, and read the files. without: folders and files that do not go in: former backups. Raises HostError (file-unreadable); ClusterError (no-snapshot) if this
    node's etcd does not answer."""
    host, paths = source.host, source.paths
    found = node_content.gather_files(host, paths, without=without)
    pods = dict(node_content.read_pods(host, paths))
    objects, missing = read_objects(source.api)
    flags = _flags_of(pods.get("kube-apiserver.yaml"))
    about = About(
        made=moments.show(host.now()),
        kb=__version__,
        node=source.node,
        machine_id=_read_line(host, Path("/etc/machine-id")),
        kubernetes=source.kubernetes,
        etcd_kind=source.etcd_kind,
        # as the API server makes it absolute: path.Join("/", prefix) in apiserver/pkg/storage/etcd3/store.go
        etcd_prefix=posixpath.normpath(f"/{flags['etcd-prefix'].strip('/')}")
        if flags.get("etcd-prefix")
        else About.etcd_prefix,
        address=flags.get("advertise-address", ""),
        endpoint=_find_endpoint(objects),
        pki=str(paths.pki),
        etcd_data=str(paths.etcd_data),
        images=tuple(sorted({image for pod in pods.values() for image in node_content.images_of(pod)})),
        missing=(*found.missing, *missing),
    )
    return _with_etcd(source, about, contents=(*objects, *found.contents))


def _with_etcd(source: Source, about: About, *, contents: tuple[Content, ...]) -> Planned:
    try:
        status, members, count = _look_at_etcd(source.client, about.etcd_prefix)
    except (Unreachable, etcd.EtcdRefused) as error:
        if not _is_denied(source, error):
            raise _no_snapshot(error) from error
        return Planned(_without_data(about, error), contents, 0, no_snapshot=str(error))
    about = dataclasses.replace(
        about,
        etcd=status.version,
        revision=status.revision,
        objects=count,
        members=tuple(
            archive.Member(one.hex_id, one.name, one.peer_urls, one.client_urls, one.is_learner) for one in members
        ),
    )
    return Planned(about, contents, status.db_size)


def _look_at_etcd(client: etcd.Etcd, prefix: str) -> tuple[etcd.Status, tuple[etcd.Member, ...], int]:
    """The status of the first member that answers, the members, and the number of objects. Raises Unreachable, EtcdRefused."""
    members = client.list_members(is_sure=False)
    statuses = map(client.read_status, client.endpoints)
    status = next((one for one in statuses if one.version), etcd.Status("no member tells its status"))
    if not status.version:
        raise etcd.EtcdRefused("maintenance status", client.endpoints[0], message=status.trouble)
    return status, members, client.count_keys(prefix + "/")


def _is_denied(source: Source, error: KbError) -> bool:
    """Whether an external etcd does not let this cluster take a snapshot. One that only is away may not make a backup without data, which
    would take the place of a good one."""
    return source.etcd_kind == "external" and any(words in str(error).lower() for words in _DENIED)


def _no_snapshot(error: KbError) -> ClusterError:
    return ClusterError(
        "etcd gives no snapshot, so there is no backup",
        cause=f"{error.what}: {error.cause}",
        remedy="see what is wrong with it: kb doctor",
        code="no-snapshot",
    )


def _without_data(about: About, error: KbError) -> About:
    words = f"etcd's data: the external etcd gives no snapshot ({error.cause}); back it up where it runs"
    return dataclasses.replace(about, missing=(words, *about.missing))


def read_objects(api: Optional[Api]) -> tuple[tuple[Content, ...], tuple[str, ...]]:
    """The objects to read, and what is missing of them, in words. They are in the snapshot as well."""
    found = []
    for name in OBJECTS if api else ():
        try:
            one = api.get(f"/api/v1/namespaces/kube-system/configmaps/{name}") if api else None
        except (HostError, ClusterError) as error:
            return (), (f"{archive.OBJECTS}: the API server does not answer ({error.cause}); the snapshot has them",)
        if one is not None:
            metadata = {key: value for key, value in one["metadata"].items() if key != "managedFields"}
            text = dump_yaml({"apiVersion": "v1", "kind": "ConfigMap", **one, "metadata": metadata})
            found.append(archive.content_of(f"{archive.OBJECTS}{name}.yaml", text.encode()))
    return tuple(found), ()


def _find_endpoint(objects: Iterable[Content]) -> str:
    """controlPlaneEndpoint in ConfigMap kubeadm-config."""
    for content in objects:
        if content.entry.name == f"{archive.OBJECTS}kubeadm-config.yaml":
            with contextlib.suppress(YAMLError, KeyError, TypeError, AttributeError):
                config = load_yaml(b"".join(content.chunks).decode())["data"]["ClusterConfiguration"]
                return str(load_yaml(config).get("controlPlaneEndpoint") or "")
    return ""


def _flags_of(pod: object) -> dict[str, str]:
    command, *_ = [*commands_of_pod(pod if isinstance(pod, dict) else {}), []]
    return flags_of(command)


def _read_line(host: Host, path: Path) -> str:
    return host.read_text(path).strip() if host.exists(path) else ""


# ---- writing


def write_backup(
    source: Source,
    planned: Planned,
    *,
    target: Target,
    recipients: encryption.Recipients,
    tell: Callable[[str], None],
) -> Made:
    """Take the snapshot and write the backup.

    Raises HostError: disk-full, output-folder-missing, and what the target raises; ClusterError: no-snapshot, snapshot-cut-off,
    snapshot-damaged.
    """
    local = source.host
    require_room(local, planned, target=target)
    with local.open_scratch(target.folder) as scratch:
        about, contents = planned.about, list(planned.contents)
        if not planned.no_snapshot:
            tell(f"the snapshot of etcd's data, {planned.db_size >> 20} MiB")
            try:
                entry = _save_snapshot(source, scratch, db_size=planned.db_size)
            except (Unreachable, etcd.EtcdRefused) as error:
                if not _is_denied(source, error):
                    raise _no_snapshot(error) from error
                about = _without_data(about, error)
            else:
                contents.insert(0, Content(entry, _read_again(scratch)))
        tell("writing it")
        counter = _Counter()
        plain = archive.render_archive(about, contents)
        target.write(counter.count(encryption.encrypt(local, recipients, chunks=plain)))
    return Made(about, tuple(content.entry for content in contents), counter.size, counter.digest.hexdigest())


def find_target(local: LocalHost, paths: Paths, *, name: str, is_encrypted: bool) -> Target:
    """A file, which is there as a whole or stays as it was; or a stream (`-`). What a killed kb left beside the file is removed."""

    def write(chunks: Iterable[bytes]) -> None:
        local.write_output(name, chunks, is_secret=True, is_steady=True, has_to_be_whole=True)

    if is_stream(name):
        return Target(name, opening.scratch_folder(local, paths), None, write)
    folder = Path(name).absolute().parent
    sweep_beside(local, Path(name))
    return Target(name, opening.scratch_folder(local, paths) if is_encrypted else folder, folder, write)


def require_room(local: LocalHost, planned: Planned, *, target: Target) -> None:
    """Raises HostError (disk-full), (output-folder-missing)."""
    if target.keeps and not local.is_dir(target.keeps):
        raise HostError(
            f"cannot write {target.name}",
            cause=f"there is no folder {target.keeps}",
            remedy=f"make it: mkdir -p {target.keeps}",
            code="output-folder-missing",
        )
    files = archive.size_of(planned.about, [content.entry for content in planned.contents])
    sizes = {target.folder: planned.db_size + _MARGIN}
    if target.keeps:
        sizes[target.keeps] = sizes.get(target.keeps, _MARGIN) + planned.db_size + files
    for folder, needed in sizes.items():
        free = local.free_bytes(folder)
        if free >= needed:
            continue
        raise HostError(
            f"there is no room for a backup in {folder}",
            cause=f"it needs {needed >> 20} MiB until it is written, and the file system has {free >> 20} MiB free",
            remedy=f"make space there (df -h {folder}), or write it to another machine: kb backup -o - | ssh HOST 'cat > FILE'",
            code="disk-full",
        )


def sweep_beside(local: LocalHost, path: Path) -> None:
    """Remove what a killed kb left beside a file that it was writing."""
    sweep(local, path.absolute().parent, names=re.escape(path.name[:200]))


def sweep(local: LocalHost, folder: Path, *, names: str) -> None:
    """Remove what a killed kb left of files that it was writing in a folder. names: a pattern of the files' names."""
    for name in local.list_dir(folder):
        found = re.fullmatch(rf"\.(?:{names})\.kb-(\d+)-[0-9a-f]+", name)
        if found and not local.exists(Path("/proc") / found[1]):
            local.remove(folder / name)


def _save_snapshot(source: Source, scratch: BinaryIO, *, db_size: int) -> Entry:
    """Read the snapshot, and take time: to send it costs etcd processor time that its other callers lack.

    db_size: how large it will be. Small ones take 2.5 s; large ones come at 32 MiB a second."""
    rate = max(_SLOWEST, min(_FASTEST, db_size / _TAKES_S))
    digest, size, began = hashlib.sha256(), 0, source.host.monotonic()
    for piece in etcd_snapshot.stream_snapshot(source.client):
        scratch.write(piece)
        digest.update(piece)
        size += len(piece)
        early_s = size / rate - (source.host.monotonic() - began)
        if early_s > _PAUSE_S:
            source.host.sleep(early_s)
    return Entry(archive.SNAPSHOT, size, digest.hexdigest())


def _read_again(scratch: BinaryIO) -> Iterator[bytes]:
    scratch.seek(0)
    while piece := scratch.read(_CHUNK):
        yield piece


class _Counter:
    """The size and the hash of what passes."""

    def __init__(self) -> None:
        self.size = 0
        self.digest = hashlib.sha256()

    def count(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for piece in chunks:
            self.size += len(piece)
            self.digest.update(piece)
            yield piece
