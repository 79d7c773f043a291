"""Which files of a control plane go into its backup: whatever a new machine would need to be this one.

Owns the tables of places. Beside the usual ones, everything that the static pods mount from the host goes in (encryption
configuration and its keys, audit policy, admission configuration, the CA of OIDC): the manifests say where it is. Files are read into
memory, so that their hashes are of what is written. What is left out is said. Reads only this machine's files, and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kubeup.backup.archive import Content, Entry, content_of, file_name
from kubeup.errors import HostError
from kubeup.machine.files import is_leftover
from kubeup.machine.host import FileStat, Host
from kubeup.paths import Paths
from kubeup.yaml_files import YAMLError, commands_of_pod, flags_of, load_all_yaml, load_yaml

MAX_FILE = 16 << 20
MAX_TREE = 64 << 20
"""The limits, in bytes, of a file, and of all files: a backup is held in memory until it is written, but for etcd's data."""
MAX_FILES = 5000

PLACES = (
    "/etc/kubernetes",
    "/var/lib/kubelet/config.yaml",
    "/var/lib/kubelet/instance-config.yaml",
    "/var/lib/kubelet/kubeadm-flags.env",
    "/var/lib/kubelet/pki",
    "/etc/default/kubelet",
    "/etc/sysconfig/kubelet",
    "/etc/systemd/system/kubelet.service",
    "/etc/systemd/system/kubelet.service.d",
    "/etc/systemd/system/containerd.service.d",
    "/etc/containerd",
    "/etc/crictl.yaml",
    "/etc/cni/net.d",
    "/etc/modules-load.d/kb.conf",
    "/etc/sysctl.d/90-kb.conf",
    "/var/lib/kb",
)
"""Files and folders that every control plane has, or may have. certificatesDir comes with the static pods."""
UNITS = re.compile(r"kb-[\w.-]+\.(service|timer)")
LEFT_OUT = (
    "/etc/kubernetes/tmp",  # kubeadm's copies of etcd's data from before upgrades
    "/var/lib/kb/kb-rehearsal",  # what a rehearsal that was killed has left
    "/var/lib/kb/downloads",
    "/var/lib/kb/drift",  # what was found where something was put back
    "/var/lib/kb/lock",
    "/var/lib/kb/mirror",  # images, from a bundle that is kept elsewhere
    "/var/lib/kb/readdress",  # files of a former address
    "/var/lib/kb/reboot",  # a reboot that is not finished yet
    "/var/lib/kb/staging",
    "/var/lib/kb/try",  # a change on trial: what a restored node runs is what runs when it is made
    "/var/lib/kb/upgrade-runtime",
    "/var/lib/kb/upgrade",  # a node's way back from an upgrade: programs, and a backup of before
)
SYSTEM_PLACES = (
    "/dev",
    "/etc/ca-certificates",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
    "/lib",
    "/proc",
    "/run",
    "/sys",
    "/tmp",  # noqa: S108
    "/usr",
    "/var/log",
    "/var/run",
    "/var/tmp",  # noqa: S108
)
"""What static pods mount and the system or a package provides, or fills with logs."""
_TOO_WIDE = frozenset(("/", "/etc", "/home", "/mnt", "/opt", "/root", "/srv", "/var", "/var/lib", "/var/lib/kubelet"))
"""A folder that is mounted whole from here has far more than a component needs."""
_OUTPUTS = frozenset(("audit-log-path", "log-file", "log-dir", "data-dir", "wal-dir"))


class Gathering:
    """The files found so far. missing: what was left out, and why, in words."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._found: dict[Path, Content] = {}
        self._seen: set[Path] = set()
        self._without: set[Path] = set()
        self.size = 0
        self.missing: list[str] = []

    @property
    def contents(self) -> tuple[Content, ...]:
        return tuple(self._found[path] for path in sorted(self._found))

    def leave_out(self, path: Path) -> None:
        self._without.add(path)

    def add(self, path: Path) -> None:
        """A file, a link with what it leads to, or a folder with all that is in it. What is not there, or is a socket, is no content."""
        left = [path]
        while left:
            place = left.pop()
            if place in self._seen or self._is_left_out(place):
                continue
            self._seen.add(place)
            found = self._host.stat(place)
            if found is None or is_leftover(place.name):
                continue
            if found.is_dir:
                left += [place / name for name in self._host.list_dir(place)]
            elif found.is_symlink:
                left += self._add_link(place, found)
            elif found.is_regular:
                self._add_file(place, found)

    def _is_left_out(self, path: Path) -> bool:
        return any(place in self._without for place in (path, *path.parents))

    def _add_link(self, path: Path, found: FileStat) -> list[Path]:
        target = self._host.read_link(path)
        if target is None:
            return []
        if len(self._found) < MAX_FILES:
            self._keep(path, Content(Entry(file_name(path), 0, mode=0o777, uid=found.uid, gid=found.gid, link=target)))
        real = self._host.real_path(path)
        is_system = _is_below(real, SYSTEM_PLACES) or str(real) in _TOO_WIDE
        return [] if is_system and self._host.is_dir(real) else [real]

    def _add_file(self, path: Path, found: FileStat) -> None:
        if found.size > MAX_FILE or self.size + found.size > MAX_TREE or len(self._found) >= MAX_FILES:
            why = f"it has {found.size >> 20} MiB" if found.size > MAX_FILE else "the files before it are too many"
            self.missing.append(f"{path}: {why}")
            return
        try:
            data = self._host.read_bytes(path)
        except HostError:
            if self._host.exists(path):
                raise
            return  # removed meanwhile
        owner = (found.uid, found.gid)
        self._keep(path, content_of(file_name(path), data, mode=found.mode, owner=owner))
        self.size += len(data)

    def _keep(self, path: Path, content: Content) -> None:
        try:
            str(path).encode()
            content.entry.link.encode()
        except UnicodeEncodeError:
            self.missing.append(f"{str(path)!a}: its name is not UTF-8")
            return
        self._found[path] = content


def gather_files(host: Host, paths: Paths, *, without: Iterable[Path] = ()) -> Gathering:
    """Everything that goes in but etcd's data and the objects. without: what is left out besides. Raises HostError (file-unreadable)."""
    found = Gathering(host)
    for place in (*map(Path, LEFT_OUT), paths.etcd_data, *without):
        found.leave_out(place)
    pods = list(read_pods(host, paths))
    for _, pod in pods:
        for name in sorted(_OUTPUTS):
            for flags in map(flags_of, commands_of_pod(pod)):
                if flags.get(name, "").startswith("/"):
                    found.leave_out(_on_host(pod, Path(flags[name])))
    for place in (*map(Path, PLACES), paths.pki, paths.kubeconfigs):
        found.add(place)
    for name in host.list_dir(paths.systemd):
        if UNITS.fullmatch(name):
            found.add(paths.systemd / name)
    for path in _find_kubelet_files(host, paths):
        found.add(path)
    for _, pod in pods:
        for path in find_mounted(host, pod):
            found.add(path)
    found.missing += _find_missing(host, paths, pods=[pod for _, pod in pods])
    return found


# ---- the static pods


def read_pods(host: Host, paths: Paths) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The name of each manifest, and its pod. The kubelet takes every file that does not begin with a dot."""
    for name in host.list_dir(paths.manifests):
        if name.startswith(".") or host.is_dir(paths.manifests / name):
            continue
        try:
            pod = load_yaml(host.read_text(paths.manifests / name))
        except YAMLError:
            continue
        if isinstance(pod, dict) and isinstance(pod.get("spec"), dict):
            yield name, pod


def images_of(pod: Mapping[str, Any]) -> list[str]:
    return [str(one["image"]) for one in _rows(pod["spec"], "containers") if one.get("image")]


def find_mounted(host: Host, pod: Mapping[str, Any]) -> Iterator[Path]:
    """The files and folders of the host that a static pod mounts, without the system's own; and the files that its flags name, even
    if they lie in a folder of the system's."""
    for volume in _rows(pod["spec"], "volumes"):
        told = volume.get("hostPath")
        path = Path(str(told.get("path") or "")) if isinstance(told, dict) else Path()
        if path.is_absolute() and str(path) not in _TOO_WIDE and not _is_below(path, SYSTEM_PLACES):
            yield path
    for command in commands_of_pod(pod):
        for name, value in flags_of(command).items():
            if value.startswith("/") and name not in _OUTPUTS:
                path = _on_host(pod, Path(value))
                found = host.stat(path)
                if found is not None and not found.is_dir:
                    yield path


def _on_host(pod: Mapping[str, Any], path: Path) -> Path:
    """The host's path of a path in the pod's containers. What no volume provides is in the image; then the path itself."""
    volumes = {str(one.get("name")): one.get("hostPath") for one in _rows(pod["spec"], "volumes")}
    best: tuple[Path, Path] = (Path("/"), Path("/"))
    for container in _rows(pod["spec"], "containers"):
        for mount in _rows(container, "volumeMounts"):
            told, at = volumes.get(str(mount.get("name"))), Path(str(mount.get("mountPath") or "/"))
            if isinstance(told, dict) and at in (path, *path.parents) and len(at.parts) > len(best[0].parts):
                best = (at, Path(str(told.get("path") or "/")))
    return best[1] / path.relative_to(best[0])


def _rows(holder: Any, name: str) -> list[Mapping[str, Any]]:
    rows = holder.get(name) if isinstance(holder, Mapping) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _is_below(path: Path, places: tuple[str, ...]) -> bool:
    return any(place in places for place in map(str, (path, *path.parents)))


# ---- the kubelet


def _find_kubelet_files(host: Host, paths: Paths) -> Iterator[Path]:
    """The files that the kubelet's configuration and flags name: the CA of its clients, its serving pair, a credential provider's."""
    config = _read_yaml(host, paths.kubelet_config)
    authentication = config.get("authentication")
    x509 = authentication.get("x509") if isinstance(authentication, dict) else None
    told = [config.get("tlsCertFile"), config.get("tlsPrivateKeyFile")]
    told += [x509.get("clientCAFile")] if isinstance(x509, dict) else []
    for place in (str(paths.kubelet_flags_env), "/etc/default/kubelet", "/etc/sysconfig/kubelet"):
        text = host.read_text(Path(place)) if host.exists(Path(place)) else ""
        told += re.findall(r"--[\w-]+[= ](/[^\s\"']+)", text)
    for value in told:
        path = Path(str(value or ""))
        found = host.stat(path) if path.is_absolute() else None
        if found is not None and (found.is_regular or found.is_symlink) and not host.is_dir(path):
            yield path


def _read_yaml(host: Host, path: Path) -> Mapping[str, Any]:
    try:
        found = load_yaml(host.read_text(path)) if host.exists(path) else None
    except YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


# ---- what is not there


def _find_missing(host: Host, paths: Paths, *, pods: list[Mapping[str, Any]]) -> Iterator[str]:
    for ca in ("ca", "front-proxy-ca", "etcd/ca"):
        if host.exists(paths.pki / f"{ca}.crt") and not host.exists(paths.pki / f"{ca}.key"):
            yield f"{paths.pki / ca}.key: it is not on this node, since the CA is external"
    for pod in pods:
        for endpoint in find_kms(pod, lambda path: host.read_text(path) if host.exists(path) else ""):
            yield f"the key with which {endpoint} encrypts Secrets: only that KMS plugin has it"


def find_kms(pod: Mapping[str, Any], read: Callable[[Path], str]) -> list[str]:
    """The sockets of the KMS plugins in the encryption configuration that a static pod's flag names. read: the text of a file of the
    host, "" if there is none."""
    places = [flags.get("encryption-provider-config", "") for flags in map(flags_of, commands_of_pod(pod))]
    files = [_on_host(pod, Path(place)) for place in places if place.startswith("/")]
    return [endpoint for path in files for endpoint in kms_endpoints(read(path))]


def kms_endpoints(text: str) -> list[str]:
    """The same, of the configuration's text."""
    try:
        documents = load_all_yaml(text)
    except YAMLError:
        return []
    found = []
    for document in documents:
        for row in _rows(document, "resources"):
            found += [provider["kms"] for provider in _rows(row, "providers") if isinstance(provider.get("kms"), dict)]
    return [str(one.get("endpoint") or one.get("name")) for one in found]
