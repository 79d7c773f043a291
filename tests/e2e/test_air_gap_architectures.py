"""One bundle for amd64 and arm64: what the other architecture needs is carried whole, and this one's nodes start from it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab import image
from .lab.bundles import BARE
from .lab.images import WEB_IMAGE
from .lab.lab import Lab
from .lab.node import Node
from .lab.settings import find_release, read_architecture
from .test_air_gap import asked_outside, check_ctr_reads, init, join_line, put
from .world import foreign

MakeNode = Callable[..., Node]
PROGRAMS = (
    "kubelet",
    "kubectl",
    "crictl",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "cni/bridge",
    "cni/host-local",
)
ELF_MACHINE = {"amd64": b"\x3e\x00", "arm64": b"\xb7\x00"}
"""e_machine, at offset 18 of an ELF file of 64 bits, low byte first (elf(5))."""


@pytest.mark.k8s_versions("1.35")
def test_one_bundle_for_two_architectures(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    """Made of a registry with indexes and of two folders; read by skopeo from the file and from the mirror; and bare nodes
    of this machine's architecture take their half of it."""
    other, release = foreign.find_foreign(k8s_version), find_release(k8s_version)
    if other is None or read_architecture() != "amd64":
        pytest.skip(f"needs programs for arm64 in $KB_E2E_BIN/arm64/{k8s_version}, on a machine of amd64")
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo: apt-get install skopeo")
    native = [release.folder, *image.ensure_variant(release.facts.containerd)]
    carried = [other.folder, foreign.ensure_runtime()]
    lab.registry.clear()
    lab.registry.add_layout(foreign.ensure_joint_layout(release, other))
    registry = f"http://{lab.registry.start().address}"

    def create(out: Path, *words: object, check: bool = True) -> Any:
        argv = ["python3", kb_pyz, "bundle", "create", "-o", out, "--kubernetes-version", release.version, *words]
        return lab.exec(shlex.join(map(str, argv)), timeout=300, check=check)

    def kb(words: str, *, check: bool = True) -> Any:
        return lab.exec(f"python3 {kb_pyz} bundle {words}", timeout=120, check=check)

    sources = [word for source in (registry, *native, *carried) for word in ("--from", source)]
    both, one = tmp_path / "both.tar", tmp_path / "one.tar"
    lacking = create(both, "--arch", "amd64,arm64", "--image", WEB_IMAGE, *sources, check=False)
    assert f"{WEB_IMAGE}: it exists for amd64, not for arm64" in lacking.stderr and lacking.code == 4, lacking.output
    halves = [word for source in (registry, *native) for word in ("--from", source)]
    lacking = create(both, "--arch", "amd64,arm64", *halves, check=False)
    assert lacking.code == 4 and "arm64/kubelet" in lacking.output and "is for amd64" in lacking.output, lacking.output
    assert not both.exists()
    create(both, "--arch", "amd64,arm64", *sources)
    create(one, "--arch", "amd64", *halves)
    lab.registry.stop()

    # whole for both, and said to be so
    kb(f"verify {both} --kubernetes-version {release.version}")
    for arch in ELF_MACHINE:
        kb(f"verify {both} --kubernetes-version {release.version} --arch {arch}")
    kb(f"verify {one} --kubernetes-version {release.version}")
    half = kb(f"verify {one} --kubernetes-version {release.version} --arch amd64,arm64", check=False)
    assert half.code == 4 and "arm64/kubelet is missing" in half.stderr, half.output
    shown = json.loads(kb(f"show {both} -o json").stdout)
    titles = {entry["title"] for entry in shown["files"]}
    assert {f"{arch}/{name}" for arch in ELF_MACHINE for name in PROGRAMS} <= titles
    differs = kb(f"diff {one} {both}").stdout
    assert "arm64/kubelet" in differs and "amd64/kubelet" not in differs, differs

    # skopeo takes either half out of the file
    name = f"registry.k8s.io/kube-apiserver:{release.version}"
    for arch in ELF_MACHINE:
        check_image(lab, f"oci-archive:{both}:{name}", arch)

    # bare machines, and the mirror that the first one runs
    cp1, w1 = make_node("cp1", version=k8s_version, **BARE), make_node("w1", version=k8s_version, **BARE)
    lab.clear_outside()
    put(cp1, kb_pyz, both)
    done = init(cp1, both)
    cp1.wait_node_ready()
    w1.run(join_line(done.stdout), timeout=600)
    cp1.wait_node_ready("w1")
    mirror = f"{cp1.address}:5000"
    authority = tmp_path / "authority"
    authority.mkdir()
    (authority / "ca.crt").write_text(cp1.read("/etc/kubernetes/pki/ca.crt"))
    for arch, machine in ELF_MACHINE.items():
        check_image(lab, f"docker://{mirror}/kube-apiserver:{release.version}", arch, "--cert-dir", str(authority))
        for program in PROGRAMS:
            start = w1.run(f"curl -fsSk https://{mirror}/files/{arch}/{program} | head -c 20 | od -An -tx1").stdout
            assert bytes.fromhex(start.replace(" ", "").strip())[18:] == machine, (arch, program, start)
    check_ctr_reads(w1, kb_pyz, both)
    assert asked_outside(lab) == []


def check_image(lab: Lab, place: str, arch: str, *words: str) -> None:
    """skopeo finds the index, and picks from it the image of that architecture."""
    index = json.loads(lab.exec(["skopeo", "inspect", "--raw", *words, place]).stdout)
    assert sorted(entry["platform"]["architecture"] for entry in index["manifests"]) == sorted(ELF_MACHINE)
    config = lab.exec(["skopeo", "--override-arch", arch, "inspect", "--config", *words, place]).stdout
    assert json.loads(config)["architecture"] == arch
