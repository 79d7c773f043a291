"""Official releases: the files that a node needs, where they are published, and how they are verified.

Owns reading configs/downloads.yaml, and the names of a node's files in a bundle. Must not download anything
(registry_client.py does that) or install anything on a node (programs.py does that).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Optional

from kubeup.config import presets
from kubeup.frozen_values import frozen
from kubeup.yaml_files import load_yaml, read_resource

ARCHITECTURES = {"amd64": 62, "arm64": 183, "ppc64le": 21, "s390x": 22, "riscv64": 243}
"""Kubernetes' architecture names -> e_machine of an ELF header."""
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}
"""uname -m -> Kubernetes' name."""
CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
"""The plugins that kb's own pod network uses, and loopback, which older runtimes call."""


@frozen
class NodeFile:
    """A file of a node: its name in a bundle below the architecture, its component, and its path on the node."""

    name: str
    component: str
    place: str
    needed_by: str
    version_words: tuple[str, ...] = ()
    """The arguments that make it print its version; () if there are none."""
    version_pattern: str = ""


NODE_FILES: tuple[NodeFile, ...] = (
    NodeFile("containerd", "containerd", "/usr/local/bin/containerd", "the container runtime", ("--version",), r" v?(\d\S+)"),
    NodeFile("containerd-shim-runc-v2", "containerd", "/usr/local/bin/containerd-shim-runc-v2", "the container runtime"),
    NodeFile("ctr", "containerd", "/usr/local/bin/ctr", "looking into containerd"),
    NodeFile("runc", "runc", "/usr/local/sbin/runc", "the container runtime", ("--version",), r"runc version (\S+)"),
    NodeFile("crictl", "crictl", "/usr/local/bin/crictl", "asking the runtime", ("--version",), r"version v?(\S+)"),
    NodeFile("kubelet", "kubelet", "/usr/local/bin/kubelet", "the node's agent", ("--version",), r"Kubernetes (v\S+)"),
    NodeFile("kubectl", "kubectl", "/usr/local/bin/kubectl", "the admin", ("version", "--client"), r"Client Version: (v\S+)"),
    *(NodeFile(f"cni/{name}", "cni", f"/opt/cni/bin/{name}", "the pod network") for name in CNI_PLUGINS),
)  # fmt: skip
FILES_BY_NAME: Mapping[str, NodeFile] = {item.name: item for item in NODE_FILES}


@frozen
class Download:
    """One component in one version for one architecture. members: name in the archive -> name in the bundle; {} if the
    URL is the file itself."""

    component: str
    version: str
    url: str
    sha256_url: str
    members: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


def plan_download(
    component: str,
    *,
    kubernetes_version: str,
    arch: str,
    versions: Mapping[str, str],
    preset: Optional[presets.Preset] = None,
) -> Download:
    """Where a component for a node of that Kubernetes version is published. versions: component -> version, overrides
    the table's."""
    table = load_yaml(read_resource("downloads.yaml"))
    row: Mapping[str, Any] = table["components"][component]
    minor = ".".join(kubernetes_version.lstrip("v").split(".")[:2])
    own = table["versions"].get(minor) or {}
    version = versions.get(component) or own.get(component) or kubernetes_version
    values = {"version": version, "arch": arch}
    places = [_replace_host(str(row[key]).format(**values), preset) for key in ("url", "sha256")]
    return Download(component, version, places[0], places[1], row.get("members") or {})


def _replace_host(url: str, preset: Optional[presets.Preset]) -> str:
    host, _, path = url.partition("://")[2].partition("/")
    base = (preset.downloads if preset else {}).get(host)
    return f"{base.rstrip('/')}/{path}" if base else url


def parse_sha256(text: str, file_name: str) -> str:
    """The hex digest in the content of a checksum URL: only the digest, or lines of sha256sum; "" if it is not
    there."""
    found = ""
    for line in text.splitlines():
        words = line.split()
        if not words or not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
            continue
        name = words[-1].lstrip("*").rpartition("/")[2]
        if len(words) == 1 or name == file_name:
            found = found or words[0].lower()
    return found


def components_of(names: Mapping[str, object]) -> tuple[str, ...]:
    """The components that contain these files, in the table's order."""
    wanted = [item.component for item in NODE_FILES if item.name in names]
    return tuple(dict.fromkeys(wanted))


def elf_architecture(head: bytes) -> Optional[str]:
    """Kubernetes' name for the machine in an ELF file's first 20 bytes; "" for an unknown one, None if it is no ELF
    file."""
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    machine = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
    return next((name for name, number in ARCHITECTURES.items() if number == machine), "")
