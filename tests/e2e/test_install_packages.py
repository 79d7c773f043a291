"""`packages: {source: apt}` and `dnf` on a bare machine: a distribution's containerd and Kubernetes' own packages make it a node."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .lab.bundles import BARE
from .lab.config import lab_config, list_ignored_checks
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import find_release
from .world import apt_repository, rpm_repository
from .world.web import check_cluster_serves

MakeNode = Callable[..., Node]
KB = "python3 kb.pyz"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())


@pytest.mark.k8s_versions("1.35")
def test_a_bare_machine_by_apt(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> None:
    """The packages come from pkgs.k8s.io (here: one of the lab's own) and from Debian, the images from a registry."""
    missing = [program for program in apt_repository.PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install dpkg-dev gnupg openssl")
    release = find_release(k8s_version)
    repository = apt_repository.AptRepository(lab, release, tmp_path)
    repository.build()
    lab.registry.add_release(release)
    mirror = f"http://{lab.registry.start().address}"
    node = make_node("cp1", version=k8s_version, **BARE)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, kb={"packages": {"source": "apt"}}))
    line = f"{KB} init --config init.yaml --mirror {mirror} {IGNORE}"

    refused = node.run(line, check=False, timeout=300)
    assert refused.code and "pkgs.k8s.io" in refused.stderr, refused.output
    assert not node.exists("/etc/kubernetes/pki") and node.run("command -v kubelet", check=False).code

    repository.start()
    try:
        repository.offer_to(node)
        lab.clear_outside()
        node.run(line, timeout=600)
        node.wait_node_ready()
        check_cluster_serves(node)
        rows = node.run(
            "dpkg-query -W -f '${Package} ${Version} ${db:Status-Want}\\n' kubelet kubectl cri-tools containerd"
        ).stdout
        assert f"kubelet {release.version.lstrip('v')}-1.1 hold" in rows and "kubectl" in rows, rows
        assert "nothing to do" in node.run(line, timeout=300).stderr
        for unit in ("containerd", "kubelet"):
            assert node.run(f"systemctl is-enabled {unit}").stdout.strip() == "enabled"
        assert [asked for asked in lab.list_outside() if not asked.endswith(". udp . 53")] == []
        node.kubectl(
            "delete pod web client --wait=true", timeout=120
        )  # they ignore SIGTERM, and would hold a reboot up
        ended = "crictl ps -q --name '^(web|client)$' 2>/dev/null"
        wait_until(lambda: not node.run(ended).stdout.strip(), what="their containers to end", timeout_s=60)
        node.reboot()
        node.wait_node_ready()

        node.run(f"{KB} reset --force", timeout=300)
        left = node.run(
            "dpkg-query -W -f '${Package}\\n' kubelet containerd; ls /etc/kubernetes /etc/apt/sources.list.d",
            check=False,
        )
        assert "install" in node.run("dpkg-query -W -f '${db:Status-Want}' kubelet").stdout
        assert re.findall(r"^(kubelet|containerd)$", left.stdout, re.MULTILINE) == ["containerd", "kubelet"], (
            left.output
        )
        assert "kb-kubernetes" not in left.stdout, left.output
    finally:
        repository.stop()


@pytest.mark.k8s_versions("1.35")
def test_a_bare_machine_by_dnf(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> None:
    """The same by dnf 4 (Debian's, beside apt): RPMs made and signed here, in a repository of createrepo_c's. What is not
    signed with the repository's key stays out, and the kubelet stays at its version.

    The node is Debian, so rpm knows of nothing on it; what Kubernetes' packages require of a distribution comes from a
    package without files (rpm_repository.py), the rest is as on a machine that has RPMs alone."""
    missing = [program for program in rpm_repository.PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install rpm createrepo-c gnupg openssl")
    release = find_release(k8s_version)
    plain = release.version.lstrip("v")
    repository = rpm_repository.RpmRepository(lab, release, tmp_path)
    repository.build()
    lab.registry.add_release(release)
    mirror = f"http://{lab.registry.start().address}"
    node = make_node("cp1", version=k8s_version, dnf=True, **BARE)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, kb={"packages": {"source": "dnf"}}))
    line = f"{KB} init --config init.yaml --mirror {mirror} {IGNORE}"

    def refused(code: str, *words: str) -> None:
        ended = node.run(line, check=False, timeout=300)
        assert f"code:   {code}" in ended.stderr and ended.code == 4, ended.output
        assert all(word in ended.stderr for word in words), ended.stderr
        assert not node.exists("/etc/kubernetes/pki") and node.run("command -v kubelet containerd", check=False).code
        assert node.run("rpm -qa | grep -v ^gpg-pubkey", check=False).stdout == ""

    refused("packages-not-installed", "pkgs.k8s.io")
    repository.start()
    try:
        repository.offer_to(node)
        lab.clear_outside()
        repository.sign(None, f"kubelet-{plain}-*")
        refused("packages-not-trusted", f"kubelet-{plain}", "is not signed")
        repository.sign(repository.foreign_key, f"kubelet-{plain}-*")
        refused("packages-not-trusted", f"kubelet-{plain}")
        repository.sign(repository.key, f"kubelet-{plain}-*")

        node.run(line, timeout=600)
        node.wait_node_ready()
        check_cluster_serves(node)
        query = "rpm -q --qf '%{NAME} %{VERSION}\\n' kubelet kubectl cri-tools kubernetes-cni containerd runc"
        rows = node.run(query).stdout.splitlines()
        assert rows[:2] == [f"kubelet {plain}", f"kubectl {plain}"] and len(rows) == 6, rows
        assert "nothing to do" in node.run(line, timeout=300).stderr
        for unit in ("containerd", "kubelet"):
            assert node.run(f"systemctl is-enabled {unit}").stdout.strip() == "enabled"

        # a newer kubelet is there, and only who says so gets it
        newer = f"{k8s_version}.{rpm_repository.NEWER}"
        assert newer not in node.run("dnf upgrade -y --refresh", timeout=120).stdout
        assert newer in node.run("dnf upgrade --assumeno --setopt=disable_excludes=kb-kubernetes", check=False).stdout
        assert node.run(query).stdout.splitlines() == rows

        assert [asked for asked in lab.list_outside() if not asked.endswith(". udp . 53")] == []
        node.kubectl("delete pod web client --wait=true", timeout=120)
        ended = "crictl ps -q --name '^(web|client)$' 2>/dev/null"
        wait_until(lambda: not node.run(ended).stdout.strip(), what="their containers to end", timeout_s=60)
        node.reboot()
        node.wait_node_ready()

        # the packages stay, with every file as they brought it; the repository goes
        node.run(f"{KB} reset --force", timeout=300)
        assert node.run(query).stdout.splitlines() == rows
        # all but the time of what was changed for containerd and given back
        verify = "rpm -V --nomtime kubelet kubectl cri-tools kubernetes-cni containerd runc"
        changed = node.run(verify, check=False)
        assert changed.ok, changed.output
        assert node.run("ls /etc/yum.repos.d").stdout.split() == ["distribution.repo"]
        assert not node.exists("/etc/kubernetes/pki")
    finally:
        repository.stop()
