"""Where an upgrade's programs come from, on real nodes: held packages of apt's that stay held, a mirror in the air gap, and the
place where releases are published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable

import pytest

from .lab.bundles import BARE, make_bundle
from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, code_of, print_join
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import Release, find_release, read_architecture
from .lab.static_pods import fill_store, read_stored
from .test_air_gap import asked_outside, init, join_line, put
from .test_static_pods import told
from .test_upgrade import check_version
from .test_upgrade_kubelet import is_open, kubelet_of
from .world import apt_repository, rpm_repository
from .world.official_hosts import lead_to_world, publish_kubernetes, publish_release, serve_world
from .world.web import check_cluster_serves

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
NEXT = "1.36"
PACKAGES = "dpkg-query -W -f '${Package} ${Version} ${db:Status-Want}\\n' kubelet kubectl"


def test_in_the_air_gap(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> None:
    """The next minor's bundle is added to the mirror; then a control plane and a worker are upgraded from there."""
    bundle, following = (
        make_bundle(lab, kb_pyz, find_release(minor), tmp_path / f"kb-{minor}.tar") for minor in (k8s_version, NEXT)
    )
    cp1, w1 = (make_node(name, version=k8s_version, **BARE) for name in ("cp1", "w1"))
    lab.clear_outside()
    put(cp1, kb_pyz, bundle)
    w1.run(join_line(init(cp1, bundle).stdout), timeout=600)
    for node in (cp1, w1):
        cp1.wait_node_ready(node.name)
    w1.scp(kb_pyz, "/root/kb.pyz")
    fill_store(cp1)
    stored, version = read_stored(cp1), find_release(NEXT).version
    mirror = f"--mirror https://{cp1.address}:5000"

    early = cp1.run(f"{KB} upgrade apply {version} {mirror} --yes", check=False, timeout=600)
    assert not early.ok and "kube-apiserver:" in early.output, told(early)
    cp1.scp(following, "/root/next.tar")
    cp1.run(f"{KB} mirror add next.tar", timeout=120)
    wait_until(
        lambda: cp1.run(f"crictl pull registry.k8s.io/kube-apiserver:{version}", check=False, timeout=120).ok,
        what="the mirror to serve the next minor",
        timeout_s=120,
    )
    told(cp1.run(f"{KB} upgrade plan {version} {mirror}", timeout=300))
    told(cp1.run(f"{KB} upgrade apply {version} {mirror} --yes", timeout=900))
    check_version(cp1, version)
    plain = told(w1.run(f"{KB} upgrade node --yes", timeout=300))  # no line that leads out of the gap
    assert f"upgrade node {mirror};" in plain and "apt-get" not in plain
    told(w1.run(f"{KB} upgrade node {mirror} --yes", timeout=600))
    assert kubelet_of(cp1, "w1") == version and is_open(cp1, "w1")
    assert stored <= read_stored(cp1)
    check_cluster_serves(cp1, server="w1", client="w1")
    assert asked_outside(lab) == []


def test_by_apt(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> None:
    """Held packages are upgraded, and held again; a way back puts the former program in the package's place, and the same command
    brings the package's again."""
    missing = [program for program in apt_repository.PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install dpkg-dev gnupg openssl")
    former, wanted = (find_release(minor) for minor in (k8s_version, NEXT))
    repository = apt_repository.AptRepository(lab, former, tmp_path)
    repository.build(wanted)
    for release in (former, wanted):
        lab.registry.add_release(release)
    mirror = f"http://{lab.registry.start().address}"
    node = make_node("cp1", version=k8s_version, **BARE)
    node.scp(kb_pyz, "/root/kb.pyz")
    kb = {"packages": {"source": "apt"}, "podNetwork": {"plugin": "bridge"}}
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, kb=kb))
    repository.start()
    try:
        repository.offer_to(node)
        node.run(f"{KB} init --config init.yaml --mirror {mirror} --soak 0 {IGNORE}", timeout=600)
        node.wait_node_ready()
        check_packages(node, former.version)
        fill_store(node)
        stored = read_stored(node)
        upgrade = f"{KB} upgrade apply {wanted.version} --packages apt --yes"

        repository.stop()
        refused = node.run(upgrade, check=False, timeout=600)
        assert code_of(refused) == "packages-not-installed" or "pkgs.k8s.io" in refused.output, told(refused)
        assert kubelet_of(node, "cp1") == former.version
        check_packages(node, former.version)

        repository.start()
        repository.offer_to(node)
        told(node.run(upgrade, timeout=900))
        check_version(node, wanted.version)
        check_packages(node, wanted.version)
        assert f"/v{NEXT}/deb" in node.run("cat /etc/apt/sources.list.d/*.list").stdout
        told(node.run(f"{KB} upgrade rollback --kubelet-only --yes", timeout=600))
        assert kubelet_of(node, "cp1") == former.version
        assert former.version in node.run("kubelet --version").stdout
        told(node.run(upgrade, timeout=900))
        check_version(node, wanted.version)
        check_packages(node, wanted.version)
        assert stored <= read_stored(node)
    finally:
        repository.stop()


def test_by_dnf(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> None:
    """The next minor's repository, with a key of its own; what only kb may upgrade is not upgraded with the machine afterwards."""
    missing = [program for program in rpm_repository.PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install rpm createrepo-c gnupg openssl")
    former, wanted = (find_release(minor) for minor in (k8s_version, NEXT))
    repository, later = (rpm_repository.RpmRepository(lab, one, folder_for(tmp_path, one)) for one in (former, wanted))
    for one in (repository, later):
        one.build()
    shutil.copytree(later.core, repository.www / later.core.relative_to(later.www))
    for release in (former, wanted):
        lab.registry.add_release(release)
    mirror = f"http://{lab.registry.start().address}"
    node = make_node("cp1", version=k8s_version, dnf=True, **BARE)
    node.scp(kb_pyz, "/root/kb.pyz")
    kb = {"packages": {"source": "dnf"}, "podNetwork": {"plugin": "bridge"}}
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, kb=kb))
    query = "rpm -q --qf '%{NAME} %{VERSION}\\n' kubelet kubectl"
    repository.start()
    try:
        repository.offer_to(node)
        node.run(f"{KB} init --config init.yaml --mirror {mirror} --soak 0 {IGNORE}", timeout=600)
        node.wait_node_ready()
        fill_store(node)
        stored, plain = read_stored(node), wanted.version.lstrip("v")
        upgrade = f"{KB} upgrade apply {wanted.version} --packages dnf --yes"
        told(node.run(upgrade, timeout=900))
        check_version(node, wanted.version)
        rows = [f"kubelet {plain}", f"kubectl {plain}"]
        assert node.run(query).stdout.splitlines() == rows
        told(node.run("dnf upgrade -y --refresh", timeout=120))
        assert node.run(query).stdout.splitlines() == rows
        told(node.run(f"{KB} upgrade rollback --kubelet-only --yes", timeout=600))
        assert former.version in node.run("kubelet --version").stdout
        told(node.run(upgrade, timeout=900))
        check_version(node, wanted.version)
        assert node.run(query).stdout.splitlines() == rows and stored <= read_stored(node)
    finally:
        later.stop()
        repository.stop()


def test_from_the_official_place(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> None:
    """Programs from dl.k8s.io and images from registry.k8s.io, which the lab plays. The plan finds the newest version there; a wrong checksum
    stops the upgrade before anything is changed."""
    if read_architecture() != "amd64":
        pytest.skip("the releases that are played are amd64's")
    former, wanted = (find_release(minor) for minor in (k8s_version, NEXT))
    nodes = [make_node(name, version=k8s_version, **BARE) for name in ("cp1", "w1")]
    cp1, w1 = nodes
    lab.registry.add_release(wanted)
    with serve_world(lab, tmp_path / "world", former) as world:
        publish_release(world, former)
        for node in nodes:
            lead_to_world(node, world)
            node.scp(kb_pyz, "/root/kb.pyz")
        kb = {"packages": {"source": "download"}, "podNetwork": {"plugin": "bridge"}}
        cp1.write("/root/init.yaml", lab_config(k8s_version, address=cp1.address, kb=kb))
        cp1.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
        w1.run(f"{KB} {print_join(cp1)} --packages download --soak 0 {IGNORE}", timeout=600)
        for node in nodes:
            cp1.wait_node_ready(node.name)
        fill_store(cp1)
        stored = read_stored(cp1)

        publish_kubernetes(world, wanted, told="a" * 64)
        planned = cp1.run(f"{KB} upgrade plan --packages download", check=False, timeout=300)
        assert f"upgrade apply {wanted.version} --packages download" in told(planned)
        upgrade = f"{KB} upgrade apply {wanted.version} --packages download --yes"
        refused = cp1.run(upgrade, check=False, timeout=600)
        assert not refused.ok and "a" * 64 in told(refused)
        assert kubelet_of(cp1, "cp1") == former.version
        assert f"kube-apiserver:{former.version}" in cp1.read("/etc/kubernetes/manifests/kube-apiserver.yaml")

        publish_kubernetes(world, wanted)
        told(cp1.run(upgrade, timeout=900))
        check_version(cp1, wanted.version)
        told(w1.run(f"{KB} upgrade node --packages download --yes", timeout=600))
        assert kubelet_of(cp1, "w1") == wanted.version and is_open(cp1, "w1")
        assert f"/release/{wanted.version}/bin/linux/amd64/kubelet" in world.log.read_text()
        assert stored <= read_stored(cp1)
        check_cluster_serves(cp1, server="w1", client="w1")


def folder_for(top: Path, release: Release) -> Path:
    (top / release.minor).mkdir()
    return top / release.minor


def check_packages(node: Node, version: str) -> None:
    """Both are installed in this version, and apt holds them."""
    plain = version.lstrip("v")
    assert node.run(PACKAGES).stdout.splitlines() == [f"{name} {plain}-1.1 hold" for name in ("kubectl", "kubelet")]
