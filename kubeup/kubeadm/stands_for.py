"""Which Kubernetes version kb stands for under the name kubeadm: what `kubeadm version` answers, also in the middle of an upgrade.

A real kubeadm has one version, its own. A script that upgrades a node installs the next kubeadm first, asks it for its version, hands
that to `kubeadm upgrade apply`, and installs the next kubelet later. So the answer must not be the kubelet's version alone. This
module looks at the node, in the order of docs/adr/0021, and changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kubeup import releases
from kubeup.config import choose
from kubeup.machine.host import Host
from kubeup.paths import Paths

_IN_NAME = re.compile(r"kubeadm-(v?\d+\.\d+\.\d+.*)")
_MAX_LINKS = 16


def find_version(host: Host, *, called: str = "", wanted: str = "") -> str:
    """`v1.36.3`. called: the file by which kb was called. wanted: the version of an upgrade, which counts where nobody has said which
    kubeadm is meant, and it is newer than what runs."""
    said = _of_link(host, called) or _of_package(host)
    if said:
        return said
    here = _of_node(host) or choose.choose_version(host, "").value or releases.NEWEST_PROVEN
    found, new = releases.parse_version(here), releases.parse_version(wanted)
    return new.text if found and new and new.key > found.key else here


def _of_link(host: Host, called: str) -> str:
    """The version in the name of a link that leads to kb: kubeadm -> kubeadm-v1.36.3 -> kb.pyz."""
    path = Path(called)
    for _ in range(_MAX_LINKS if called else 0):
        named = _IN_NAME.fullmatch(path.name)
        found = releases.parse_version(named[1]) if named else None
        if found is not None:
            return found.text
        target = host.read_link(path)
        if target is None:
            break
        path = Path(os.path.normpath(path.parent / target))
    return ""


def _of_package(host: Host) -> str:
    """The version of the installed package kubeadm, whose program kb stands in front of."""
    for argv in (
        ("dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", "kubeadm"),
        ("rpm", "--query", "--queryformat", "installed %{VERSION}", "kubeadm"),
    ):
        if host.which(argv[0]) is None:
            continue
        status, _, version = host.query(argv, timeout_s=10).stdout.strip().partition(" ")
        # without the epoch and the revision of the package
        found = releases.parse_version(version.rpartition(":")[2].partition("-")[0])
        if status == "installed" and found is not None:
            return found.text
    return ""


def _of_node(host: Host) -> str:
    """The newest of what runs here: a control plane is upgraded before its kubelet."""
    found = [version for version in map(releases.parse_version, _read_running(host)) if version is not None]
    return max(found, key=lambda version: version.key).text if found else ""


def _read_running(host: Host) -> Iterator[str]:
    manifest = Paths().manifest("kube-apiserver")
    if not host.exists(manifest):
        return  # the kubelet alone: choose_version knows it
    image = re.search(r"^\s*image:\s*[\"']?[^\s\"']+:(v[^\s\"'@]+)", host.read_text(manifest), re.MULTILINE)
    yield image[1].replace("_", "+") if image else ""
    if host.which("kubelet") is not None:
        yield choose.choose_version(host, "").value
