"""What the harness is told from outside, and the facts it cannot derive.

Owns: the environment variables, the cache's place, and one table with what belongs to each Kubernetes minor.
Must not: touch the machine beyond looking at it.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

REPO = Path(__file__).resolve().parents[3]
LOGS = REPO / "tests/e2e/_logs"

# Everything the harness makes on the machine carries this prefix, so that leftovers are known by their names.
PREFIX = "kbe2e"

COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
NODE_BINARIES = ("kubelet", "kubectl", "crictl")
IMAGE_BINARIES = (*COMPONENTS, "etcd", "coredns", "pause")

CRIO_BINARIES = ("crio", "pinns")

# The programs of this machine that the harness runs, and the Debian package of each.
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "nft": "nftables",
    "curl": "curl",
    "docker-registry": "docker-registry",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}


@dataclass(frozen=True)
class Minor:
    """What one Kubernetes minor needs besides its own binaries; several tags where patch releases differ."""

    etcd: tuple[str, ...]
    coredns: str
    pause: str
    containerd: str


MINORS = {
    "1.33": Minor(etcd=("3.5.24-0", "3.5.32-0"), coredns="v1.12.0", pause="3.10", containerd="1.6"),
    "1.34": Minor(etcd=("3.6.4-0", "3.6.5-0", "3.6.6-0"), coredns="v1.12.1", pause="3.10.1", containerd="1.6"),
    "1.35": Minor(etcd=("3.6.6-0",), coredns="v1.13.1", pause="3.10.1", containerd="1.6"),
    "1.36": Minor(etcd=("3.6.8-0",), coredns="v1.14.2", pause="3.10.2", containerd="2.1"),
}


class LabError(Exception):
    """Something of the harness itself went wrong, in words for the person who runs it."""


@dataclass(frozen=True)
class Release:
    """One folder of real binaries below $KB_E2E_BIN."""

    minor: str
    version: str
    folder: Path

    @property
    def facts(self) -> Minor:
        """The row of MINORS that belongs to this release."""
        return MINORS[self.minor]

    def binary(self, name: str) -> Path:
        """The path of one program, which must exist."""
        path = self.folder / name
        if not path.is_file():
            raise LabError(f"{path} is missing; $KB_E2E_BIN/{self.minor} must hold {name}")
        return path


def read_release(folder: Path) -> Optional[Release]:
    """The release in `folder`, or None while it is not complete (READY and versions.env appear last)."""
    env = folder / "versions.env"
    if folder.name not in MINORS or not env.is_file() or not (folder / "READY").exists():
        return None
    pairs = dict(line.strip().split("=", 1) for line in env.read_text().splitlines() if "=" in line)
    version = pairs.get("KUBERNETES_VERSION", "").strip("\"'")
    return Release(folder.name, version, folder) if version.startswith("v") else None


def read_releases() -> dict[str, Release]:
    """Every complete release below $KB_E2E_BIN by its minor, oldest first; empty when the variable is not set."""
    top = os.environ.get("KB_E2E_BIN", "")
    if not top or not Path(top).is_dir():
        return {}
    found = (read_release(folder) for folder in Path(top).iterdir())
    return {r.minor: r for r in sorted((r for r in found if r), key=lambda r: int(r.minor.split(".")[1]))}


def find_release(version: str) -> Release:
    """The release of a minor ("1.35") or of a full version ("v1.35.6")."""
    minor = ".".join(version.lstrip("v").split(".")[:2])
    releases = read_releases()
    if minor not in releases:
        have = ", ".join(releases) or "none"
        raise LabError(f"no complete binaries of Kubernetes {minor} below $KB_E2E_BIN (found: {have})")
    return releases[minor]


def make_patch(release: Release, folder: Path) -> Release:
    """The next patch of a release, in `folder`: the same programs, which call themselves by its version. A version in a program of Go's is
    text of some length, so another patch number of one digit fits in its place."""
    place, _, patch = release.version.rpartition(".")
    version = f"{place}.{int(patch) + 1}"
    if len(version) != len(release.version):
        raise LabError(f"{version} is longer than {release.version}: it does not fit in the programs")
    folder.mkdir()
    for source in release.folder.iterdir():
        target = folder / source.name
        target.write_bytes(source.read_bytes().replace(release.version.encode(), version.encode()))
        shutil.copymode(source, target)
    return Release(release.minor, version, folder)


def find_crio(name: str) -> Path:
    """One of CRI-O's static programs. Raises LabError."""
    path = Path(os.environ.get("KB_E2E_BIN", "/nonexistent"), "crio", name)
    if not path.is_file():
        raise LabError(f"{path} is missing; a node with CRI-O needs it")
    return path


def cache_dir() -> Path:
    """Where images, base systems and running labs live: $KB_E2E_CACHE, or below ~/.cache."""
    top = os.environ.get("KB_E2E_CACHE", "")
    return Path(top).resolve() if top else Path.home() / ".cache" / "kb-e2e"


def lab_name(default: str = "test") -> str:
    """The lab's name: $KB_E2E_LAB lets a second, separate lab run beside the first."""
    return os.environ.get("KB_E2E_LAB", "") or default


def read_architecture() -> str:
    """This machine's architecture in the words of OCI and Debian."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def has_cap_sys_resource() -> bool:
    """Whether this process may lower oom_score_adj; without it no pod sandbox starts unless it is asked not to."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 24 & 1)
    return False


def explain_why_not() -> Optional[str]:
    """One line that says why end-to-end tests cannot run here, or None when they can."""
    if not os.environ.get("KB_E2E_BIN"):
        return "they need real Kubernetes binaries: set KB_E2E_BIN (tests/e2e/README.md says how)"
    if not read_releases():
        return f"no complete release (READY, versions.env) below KB_E2E_BIN={os.environ['KB_E2E_BIN']}"
    if os.geteuid() != 0:
        return "they boot nodes, which only root may do"
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if missing:
        return "they need programs: apt-get install " + " ".join(missing)
    return None
