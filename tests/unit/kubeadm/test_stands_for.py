"""kubeup/kubeadm/stands_for.py: `kubeadm version` answers what the real packages would, before an upgrade, in it, and after it."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest

from kubeup.kubeadm.stands_for import find_version
from kubeup.machine.host import CommandResult
from kubeup.releases import NEWEST_PROVEN
from tests.fake_host import FakeHost

KUBEADM = "/usr/local/bin/kubeadm"
MANIFEST = Path("/etc/kubernetes/manifests/kube-apiserver.yaml")


def make_host(
    *, kubelet: str = "", package: str = "", server: str = "", manager: str = "dpkg-query", code: int = 0
) -> FakeHost:
    host = FakeHost()
    if kubelet:
        host.programs.add("kubelet")
        host.answers["/usr/bin/kubelet --version"] = f"Kubernetes {kubelet}\n"
    if manager:
        host.programs.add(manager)
        host.answers[manager] = CommandResult((manager,), code, package)
    if server:
        host.files[str(MANIFEST)] = f"    image: registry.example.com:5000/k8s/kube-apiserver:{server}\n".encode()
    return host


@pytest.mark.parametrize(
    ("kubelet", "package", "server", "answer"),
    [
        # a script with packages: before, with the next kubeadm, after the control plane, after the kubelet
        ("v1.35.6", "installed 1.35.6-1.1", "v1.35.6", "v1.35.6"),
        ("v1.35.6", "installed 1.36.3-1.1", "v1.35.6", "v1.36.3"),
        ("v1.35.6", "installed 1.36.3-1.1", "v1.36.3", "v1.36.3"),
        ("v1.36.3", "installed 1.36.3-1.1", "v1.36.3", "v1.36.3"),
        # without the package: what runs here
        ("v1.35.6", "", "", "v1.35.6"),
        ("v1.35.6", "", "v1.36.3", "v1.36.3"),
        ("v1.36.3", "", "v1.36.3", "v1.36.3"),
        ("v1.35.6", "config-files 1.33.1-1.1", "", "v1.35.6"),
        ("v1.35.6", "installed what", "", "v1.35.6"),
        ("", "", "", NEWEST_PROVEN),
        ("", "", "v1.34.9", "v1.34.9"),
        ("", "installed 1.36.3-00", "", "v1.36.3"),
    ],
)
def test_it_is_what_real_packages_would_answer(kubelet: str, package: str, server: str, answer: str) -> None:
    assert find_version(make_host(kubelet=kubelet, package=package, server=server)) == answer


def test_an_rpm_counts_as_well() -> None:
    assert find_version(make_host(kubelet="v1.35.6", package="installed 1.36.3", manager="rpm")) == "v1.36.3"
    missing = "package kubeadm is not installed"
    assert find_version(make_host(kubelet="v1.35.6", package=missing, manager="rpm", code=1)) == "v1.35.6"


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("kubeadm-v1.36.3", "v1.36.3"),
        ("kubeadm-1.36.3", "v1.36.3"),
        ("/opt/kubeadm-v1.36.0-rc.1", "v1.36.0-rc.1"),
        ("kb.pyz", None),
        ("kubeadm-new", None),
        ("kubeadm", None),
    ],
)
def test_a_link_may_say_the_version(monkeypatch: pytest.MonkeyPatch, target: str, answer: Optional[str]) -> None:
    """Whoever has no packages says with a link that the next kubeadm is there."""
    host = make_host(kubelet="v1.35.6", package="installed 1.34.9-1.1", server="v1.35.6")
    links = {KUBEADM: target, "/usr/local/bin/kubeadm-v1.36.3": "kb.pyz"}
    monkeypatch.setattr(host, "read_link", lambda path: links.get(str(path)))
    assert find_version(host, called=KUBEADM) == (answer or "v1.34.9")
