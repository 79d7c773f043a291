"""Tries what a pod takes from the host: its volumes, the files that its flags name, and its ports.

Mirrors pkg/volume/hostpath/host_path.go (which types of volume must exist). A path that the program itself creates (a data folder, a
log) is never missing.
"""

from __future__ import annotations

import posixpath
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Optional

from kubeup.errors import shown
from kubeup.machine.host import Host
from kubeup.node.image_program import MountedImage, is_in_image
from kubeup.node.tried_pod import Trial, TriedPod
from kubeup.trouble import Trouble

MOUNTS, FILES, PORTS = "mounts", "files", "host ports"

_TYPES = ("", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket", "CharDevice", "BlockDevice")

# ---- volumes and mounts


def try_mounts(host: Host, pod: TriedPod) -> Iterator[Trial]:
    """Whether the kubelet would find every volume, and every mount names one."""
    troubles = [*_find_volume_troubles(host, pod), *_find_mount_troubles(pod)]
    yield from (Trial(pod.component, MOUNTS, trouble) for trouble in troubles)
    if not troubles:
        yield Trial(pod.component, MOUNTS)


def _find_volume_troubles(host: Host, pod: TriedPod) -> Iterator[Trouble]:
    for volume in pod.spec["volumes"]:
        source = volume.get("hostPath")
        cause = _judge_host_path(host, Path(source["path"] or "/"), kind=source["type"]) if source else ""
        if cause:
            yield Trouble(
                f"the volume {shown(volume['name'])} of {pod.component} cannot be mounted",
                cause,
                f"put it there, or correct the volume's path or type: {shown(source['path'])}",
            )


def _judge_host_path(host: Host, path: Path, *, kind: str) -> str:
    """Why the kubelet would not mount `path` as a volume of type `kind`; "" if it would."""
    if kind not in _TYPES:
        return f"there is no type of hostPath {shown(kind)}"
    real = host.real_path(path)
    found = host.stat(real)
    if found is None:
        if kind in ("", "DirectoryOrCreate"):
            return ""
        if kind == "FileOrCreate":
            return "" if host.is_dir(path.parent) else f"the folder of {path} does not exist, and the type is {kind}"
        return f"{path} does not exist, and the type is {kind}"
    if kind.startswith("Directory") and not found.is_dir:
        return f"{path} is not a folder, and the type is {kind}"
    if kind.startswith("File") and found.is_dir:
        return f"{path} is a folder, and the type is {kind}"
    if kind in ("Socket", "CharDevice", "BlockDevice") and (found.is_dir or found.is_regular):
        return f"{path} is no {kind}"
    return ""


def _find_mount_troubles(pod: TriedPod) -> Iterator[Trouble]:
    names = {volume["name"] for volume in pod.spec["volumes"]}
    for container in pod.containers():
        for mount in container["volumeMounts"]:
            if mount["name"] not in names:
                yield Trouble(
                    f"{pod.component} mounts an unknown volume at {shown(mount['mountPath'])}",
                    f"spec.volumes has no {shown(mount['name'])}, so the kubelet refuses the pod",
                    "add the volume, or remove the mount",
                )


# ---- files that flags name

_MADE_BY_THE_PROGRAM = re.compile(r"-(?:dir|path|to|endpoint|outputs?)$|^(?:log|log-file|log-dir|vmodule)$")
_READ_BY_THE_PROGRAM = re.compile(
    r"(?:file|kubeconfig|config|cacert|certificate|certificate-authority)$"
    r"|^(?:kubelet-client-key|discovery-cert|discovery-key)$|^pv-recycler-pod-template-filepath"
)


def list_files(pod: TriedPod) -> list[tuple[str, str]]:
    """The flags that name a file which the program reads, with its path in the container. A flag may occur more than once."""
    found = []
    for name, value in pod.flags:
        if name == "tls-sni-cert-key":  # CERT,KEY[:names]
            parts = re.sub(r":[^/]*$", "", value).split(",")
            found += [(name, part) for part in parts if part.startswith("/")]
        elif value.startswith("/") and _READ_BY_THE_PROGRAM.search(name) and not _MADE_BY_THE_PROGRAM.search(name):
            found.append((name, value))
    return list(dict.fromkeys(found))


def try_files(host: Host, mounted: MountedImage, *, pod: TriedPod) -> Iterator[Trial]:
    """Whether every file that a flag names is there for the container."""
    if pod.open_variables or not pod.argv:
        yield Trial(pod.component, FILES, not_tried="the command is known only when the pod runs")
        return
    found = [trial for name, path in list_files(pod) for trial in _try_file(host, mounted, pod=pod, flag=(name, path))]
    yield from found
    if not found:
        yield Trial(pod.component, FILES)


def _try_file(host: Host, mounted: MountedImage, *, pod: TriedPod, flag: tuple[str, str]) -> Iterator[Trial]:
    name, path = flag
    final, place = pod.follow(host, path)
    what = f"{pod.component} does not find the file of --{name}, {shown(path)}"
    leads = "" if final == posixpath.normpath(path) else f", where {shown(path)} leads"
    if place.host_path is not None:
        if not host.exists(place.host_path):
            cause = f"{place.host_path}{leads}, does not exist" if leads else f"{place.host_path} does not exist"
            yield Trial(pod.component, FILES, Trouble(what, cause, "put it there, or correct the flag"))
    elif place.volume:
        yield Trial(pod.component, FILES, not_tried=f"{shown(path)} is in a volume that is not on the host")
    elif mounted.why_not:
        why_not = f"{shown(final)} is in no mount, and whether the image has it is unknown: {mounted.why_not}"
        yield Trial(pod.component, FILES, not_tried=why_not)
    elif not is_in_image(host, mounted, final):
        cause = f"a mount is missing: neither a volume nor the image holds {shown(final)}{leads}"
        yield Trial(pod.component, FILES, Trouble(what, cause, "mount its folder (extraVolumes), or correct the flag"))


# ---- host ports

_SECURE_PORTS = {
    "kube-apiserver": ("6443", "0.0.0.0"),
    "kube-controller-manager": ("10257", "0.0.0.0"),
    "kube-scheduler": ("10259", "0.0.0.0"),
}
_ETCD_URLS = {
    "listen-client-urls": "http://localhost:2379",
    "listen-peer-urls": "http://localhost:2380",
    "listen-metrics-urls": "",
}


def list_host_ports(pod: TriedPod) -> dict[int, str]:
    """The TCP ports of the host that the pod listens on, each with its address ("": all of them)."""
    if not pod.spec.get("hostNetwork"):
        return {}
    found = {
        row.get("hostPort") or row.get("containerPort") or 0: ""
        for container in pod.spec["containers"]
        for row in container["ports"]
        if row["protocol"] in ("", "TCP")
    }
    if pod.component in _SECURE_PORTS:
        port, address = _SECURE_PORTS[pod.component]
        port = pod.flag("secure-port", port)
        found[int(port) if port.isdecimal() else 0] = _plain_address(pod.flag("bind-address", address))
    if pod.component == "etcd":
        for name, default in _ETCD_URLS.items():
            found.update(_ports_of_urls(pod.flag(name, default)))
    return {port: address for port, address in found.items() if 0 < port < 65536}


def _ports_of_urls(text: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for url in text.split(","):
        try:
            parts = urllib.parse.urlsplit(url.strip())
            port, host = parts.port, parts.hostname
        except ValueError:
            continue  # the program says so
        if port and parts.scheme in ("http", "https"):
            address = _plain_address(host or "")
            found[port] = address if found.get(port, address) == address else ""
    return found


def _plain_address(address: str) -> str:
    return "" if address in ("0.0.0.0", "::") else "127.0.0.1" if address == "localhost" else address


def try_ports(host: Host, pod: TriedPod, *, running: Optional[TriedPod]) -> Iterator[Trial]:
    """Whether the ports are free, or the running pod's own."""
    own: Mapping[int, str] = list_host_ports(running) if running else {}
    found = []
    for port, address in list_host_ports(pod).items():
        holder = "" if port in own else _find_holder(host, port, address=address)
        if holder:
            what = f"{pod.component} cannot listen on port {port}"
            remedy = f"stop {holder}, or give {pod.component} another port"
            found.append(Trial(pod.component, PORTS, Trouble(what, f"{holder} listens there", remedy)))
    yield from found
    if not found:
        yield Trial(pod.component, PORTS)


def _find_holder(host: Host, port: int, *, address: str) -> str:
    """Who listens on the port. An address that this node does not have cannot be held either."""
    holder = host.port_holder(port, address)
    if holder and address and not host.port_holder(port):
        return ""
    return holder or ""
