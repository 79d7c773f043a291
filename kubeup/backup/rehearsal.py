"""Boots a backup: etcd with its data, and an API server with its configuration and keys, that nothing else can reach.

Both run out of this node's images in transient units of systemd, in a network of their own with lo alone. The API server is given the
flags of the manifest in the backup; what would call out, log or ask others who may do what is taken out. Then its objects are listed
kind by kind, so that every stored object is read and decrypted. Everything is a look: afterwards the machine is as before. What a
killed kb leaves ends by itself, and is removed by the next rehearsal. No peer of kb's has an equivalent.
"""

from __future__ import annotations

import contextlib
import functools
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

from kubeup import releases
from kubeup.backup import etcdutl, opening, rehearsal_objects, rehearsal_pod
from kubeup.backup.archive import SNAPSHOT, About, Backup
from kubeup.backup.rehearsal_objects import Counted
from kubeup.cluster.etcd import Etcd
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine import namespaces, waiting
from kubeup.machine.http import Tls
from kubeup.machine.local_host import LocalHost
from kubeup.node import image_program
from kubeup.node.image_program import Bind, MountedImage
from kubeup.node.image_pulls import full_image_name, list_images
from kubeup.paths import Paths
from kubeup.secret import Secret

ETCD, APISERVER = "kb-rehearsal-etcd.service", "kb-rehearsal-apiserver.service"
_LOCK = Path("/run/kb/rehearsal.lock")
_FOLDER = "kb-rehearsal"
_LASTS_S = 240
"""After which the programs end, whatever became of kb."""
_MAX_CAUSE = 400
_ETCD_S, _APISERVER_S = 30.0, 90.0
_MEMORY = 700 << 20
"""Bytes that an API server and an etcd need besides the data."""
_ROOM = 192 << 20
"""Bytes that etcd's log takes: it is allocated in files of 64 MiB."""


@frozen
class Images:
    """What the rehearsal runs. not_of_backup: those of this node's own manifests, since the backup's are not here."""

    etcd: str
    apiserver: str
    not_of_backup: tuple[str, ...] = ()


@frozen
class Rehearsed:
    images: Images
    counted: Counted


def rehearse(
    local: LocalHost, backup: Backup, *, socket: str, own_images: Sequence[str], tell: Callable[[str], None]
) -> Rehearsed:
    """Boot the backup and count what is in it. socket: the runtime's. own_images: of this node's static pods.

    Raises HostError: backup-without-data, rehearsal-impossible, rehearsal-failed, no-etcdutl, snapshot-not-restored, memory-short,
    disk-full, locked, spool-not-private, backup-newer-kubernetes.
    """
    if not backup.has(SNAPSHOT):
        raise HostError(
            "the backup holds no data of etcd, so there is nothing to boot",
            cause="; ".join(backup.about.missing) or "it was made without a snapshot",
            remedy="make one that has it, where etcd runs",
            code="backup-without-data",
        )
    folder = opening.scratch_folder(local, Paths()) / _FOLDER
    with contextlib.ExitStack() as stack:
        stack.enter_context(local.lock(_LOCK, "kb backup verify"))
        sweep(local, folder)
        size = next(entry.size for entry in backup.entries if entry.name == SNAPSHOT)
        _require_resources(local, folder.parent, size=size)
        images = choose_images(backup.about, have=list_images(local, socket), own=own_images)
        etcd_image, apiserver_image = (
            stack.enter_context(image_program.mount_image(local, socket, image=image))
            for image in (images.etcd, images.apiserver)
        )
        _require_mounted(etcd_image, apiserver_image)
        etcdutl.require_etcdutl(local, etcd_image)
        stack.callback(sweep, local, folder)
        local.make_private_dir(folder)
        tell("restoring etcd's data")
        local.write_stream(folder / "snapshot.db", backup.chunks(SNAPSHOT), mode=0o600)
        etcdutl.restore_snapshot(
            local,
            etcd_image,
            snapshot=folder / "snapshot.db",
            data_dir=folder / "etcd",
            words=rehearsal_pod.MEMBER,
        )
        local.remove(folder / "snapshot.db")
        counted = _boot(local, backup, folder=folder, images=(etcd_image, apiserver_image), tell=tell)
        return Rehearsed(images, counted)


def sweep(local: LocalHost, folder: Path) -> None:
    """End and remove whatever a rehearsal has left. The caller holds the lock."""
    for unit in (APISERVER, ETCD):
        image_program.stop_program(local, unit)
    local.remove_tree(folder)


# ---- before


def _require_resources(local: LocalHost, folder: Path, *, size: int) -> None:
    rows = dict(line.split(":", 1) for line in local.read_text(Path("/proc/meminfo")).splitlines() if ":" in line)
    told = rows.get("MemAvailable", "").split()
    free = int(told[0]) << 10 if told and told[0].isdecimal() else _MEMORY * 4
    if free < _MEMORY + 2 * size:
        raise HostError(
            "there is not enough memory to boot the backup here",
            cause=f"it needs about {(_MEMORY + 2 * size) >> 20} MiB, and {free >> 20} MiB are available",
            remedy="run it on a machine with more memory: its images and this file are all it needs",
            code="memory-short",
        )
    room, needed = local.free_bytes(folder), 2 * size + _ROOM
    if room < needed:
        raise HostError(
            f"there is no room to boot the backup in {folder}",
            cause=f"it needs {needed >> 20} MiB for a while, and the file system has {room >> 20} MiB free",
            remedy=f"make space there: df -h {folder}",
            code="disk-full",
        )


def choose_images(about: About, *, have: set[str], own: Sequence[str]) -> Images:
    """The images of the backup's manifests, else those of this node's own. Raises HostError: rehearsal-impossible,
    backup-newer-kubernetes."""
    found, others = [], []
    for component in ("etcd", "kube-apiserver"):
        wanted, here = _image_of(about.images, component), _image_of(own, component)
        present = [image for image in (wanted, here) if image and full_image_name(image) in have]
        if not present and component == "etcd" and about.etcd_kind == "external":
            present = [image for image in have if image.split(":")[0].endswith("/etcd")][:1]
        if not present:
            image = wanted or here or component
            raise HostError(
                f"the image {image} is not on this node",
                cause="a backup is booted with the images that this node has, and nothing is pulled for it",
                remedy=f"pull it: crictl pull {image}",
                code="rehearsal-impossible",
            )
        if wanted and present[0] != wanted:
            others.append(present[0])
        found.append(present[0])
    _refuse_older(about, found[1])
    return Images(found[0], found[1], tuple(others))


def _image_of(images: Sequence[str], component: str) -> str:
    return next((image for image in images if re.split("[:@]", image.rpartition("/")[2])[0] == component), "")


def _refuse_older(about: About, image: str) -> None:
    """Raises HostError (backup-newer-kubernetes): an older API server does not know what a newer one has stored."""
    its, ours = releases.parse_version(about.kubernetes), releases.version_of_image(image)
    if its and ours and ours.minor < its.minor:
        raise HostError(
            f"the backup is of Kubernetes {its.text}, and this node has the API server of {ours.text}",
            cause="an older API server cannot read what a newer one has stored",
            remedy=f"pull the newer one: crictl pull {image.rpartition(':')[0]}:{its.text}",
            code="backup-newer-kubernetes",
        )


def _require_mounted(*images: MountedImage) -> None:
    for image in images:
        if image.why_not:
            raise HostError(
                "the backup cannot be booted on this node",
                cause=image.why_not,
                remedy="boot it on a node that runs containerd and systemd; that the file is whole is proven",
                code="rehearsal-impossible",
            )


# ---- booting


def _boot(
    local: LocalHost,
    backup: Backup,
    *,
    folder: Path,
    images: tuple[MountedImage, MountedImage],
    tell: Callable[[str], None],
) -> Counted:
    token = Secret(secrets.token_hex(16))
    pod = rehearsal_pod.plan_pod(backup, token=token)
    for path, data in pod.files.items():
        local.write_file(folder / "files" / str(path).lstrip("/"), data, mode=0o600)
    for name in ("certs", "home"):
        local.make_dir(folder / name, mode=0o700)
    since = f"{local.now():%Y-%m-%d %H:%M:%S} UTC"
    started = [
        (ETCD, images[0], rehearsal_pod.ETCD_ARGV, (Bind(folder / "etcd", rehearsal_pod.DATA, is_writable=True),), ""),
        (APISERVER, images[1], pod.argv, tuple(_binds(folder, pod)), ETCD),
    ]
    tell("starting etcd and the API server")
    for unit, image, argv, binds, joins in started:
        why_not = image_program.start_program(
            local, image, unit=unit, argv=argv, lasts_s=_LASTS_S, binds=binds, joins=joins
        )
        if why_not:
            raise _failed(local, unit, cause=why_not, since=since, folder=folder)
    process = image_program.find_process(local, ETCD)
    if not process:
        raise _failed(local, ETCD, cause="etcd ended at once", since=since, folder=folder)
    return namespaces.call_inside(
        process, lambda: _look(local, backup, pod=pod, folder=folder, token=token, since=since, tell=tell)
    )


def _binds(folder: Path, pod: rehearsal_pod.Pod) -> Iterator[Bind]:
    for source, target in pod.mounts:
        yield Bind(folder / "files" / str(source).lstrip("/"), target)
    yield Bind(folder / "certs", rehearsal_pod.CERTS, is_writable=True)


def _look(
    local: LocalHost,
    backup: Backup,
    *,
    pod: rehearsal_pod.Pod,
    folder: Path,
    token: Secret,
    since: str,
    tell: Callable[[str], None],
) -> Counted:
    """From inside the network of both: wait until they serve, and count."""
    client = Etcd(local, (rehearsal_pod.ETCD_URL,), tls=Tls())
    wait = functools.partial(_wait, local, since=since, folder=folder)
    wait(ETCD, look=lambda: client.probe_read(rehearsal_pod.ETCD_URL), timeout_s=_ETCD_S)
    caller = rehearsal_objects.Caller(local, folder / "certs" / "apiserver.crt", token=token)
    path = "/readyz?exclude=informer-sync" if pod.kms else "/readyz"
    wait(APISERVER, look=lambda: caller.probe(path), timeout_s=_APISERVER_S)
    tell("reading every object")
    keys = rehearsal_objects.count_keys(client, backup.about.etcd_prefix)
    return rehearsal_objects.count_objects(caller, keys=keys, kms=pod.kms)


def _wait(local: LocalHost, unit: str, *, look: Callable[[], str], timeout_s: float, since: str, folder: Path) -> None:
    def is_over(missing: str, elapsed: float) -> bool:
        return elapsed > 2 and not image_program.find_process(local, unit)

    missing, _ = waiting.watch(local, look, timeout_s=timeout_s, is_over=is_over, poll_s=0.2)
    if missing:
        raise _failed(local, unit, cause=missing, since=since, folder=folder)


def _failed(local: LocalHost, unit: str, *, cause: str, since: str, folder: Path) -> HostError:
    name = "etcd" if unit == ETCD else "the API server"
    lines = image_program.read_log(local, unit, since=since)
    errors = list(filter(None, map(find_error, lines)))
    full = next(filter(None, (etcdutl.find_full_disk(line, folder.parent) for line in errors)), None)
    return full or HostError(
        f"{name} does not start with what is in the backup",
        cause=errors[-1] if errors else cause,
        remedy=f"see what it logged: journalctl -u {unit}",
        code="rehearsal-failed",
        details=[cause, *lines[-15:]],
    )


def find_error(line: str) -> str:
    """The error in a line of the log: of etcd's JSON, or of klog (E1129 23:14:07.123456 7 main.go:1] text); "" if there is none."""
    told = as_table(line) if line.startswith("{") else {}
    if told:
        words = [str(told[name]) for name in ("msg", "error") if told.get(name)]
        return ": ".join(words)[:_MAX_CAUSE] if told.get("level") in ("error", "fatal", "panic") else ""
    klog = re.match(r"[EF]\d{4} [\d:.]+ +\d+ [^\]]+\] (.*)", line)
    found = klog[1] if klog else line if line.lower().startswith("error: ") else ""
    return found[:_MAX_CAUSE]
