"""A node's programs: what is there, what is proven before it gets its place, and what stays as it was where it is not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeup.airgap import distro_packages
from kubeup.airgap import programs as packages
from kubeup.airgap.containerd_hosts import Mirror
from kubeup.airgap.downloads import FILES_BY_NAME, NODE_FILES
from kubeup.airgap.programs import Offered
from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from kubeup.releases import find_release
from tests.bundle_case import elf
from tests.fake_host import FakeHost

V = "v1.35.6"
RELEASE = find_release(V)
ANSWERS = {
    "/usr/bin/containerd --version": "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24",
    "/usr/bin/runc --version": "runc version 1.1.5",
    "/usr/bin/crictl --version": "crictl version v1.35.0",
    "/usr/bin/kubelet --version": "Kubernetes v1.35.2",
    "/usr/bin/kubectl version": "Client Version: v1.35.2\n",
}


def machine(*programs: str, **answers: str) -> FakeHost:
    return FakeHost(programs=set(programs), answers={**ANSWERS, **answers})  # type: ignore[arg-type]


def verdicts(host: FakeHost, version: str = V) -> dict[str, str]:
    return {one.item.name: one.verdict for one in packages.look(host, version, release=find_release(version))}


def test_a_bare_machine_lacks_everything() -> None:
    assert set(verdicts(machine()).values()) == {"missing"}


def test_what_is_there_and_good() -> None:
    host = machine("containerd", "containerd-shim-runc-v2", "ctr", "runc", "crictl", "kubelet", "kubectl")
    host.files.update({f"/opt/cni/bin/{name}": b"" for name in ("bridge", "host-local", "portmap")})
    host.files["/usr/lib/cni/loopback"] = b""
    assert set(verdicts(host).values()) == {"good"}


@pytest.mark.parametrize(
    ("version", "name", "answer", "word"),
    [
        (V, "kubelet", "Kubernetes v1.34.2", "v1.34.2"),
        (V, "containerd", "containerd github.com/containerd/containerd v1.5.9 x", "1.6"),
        ("v1.37.0", "containerd", "containerd github.com/containerd/containerd 1.7.24~ds1", "2.0"),
    ],
)
def test_what_is_there_and_wrong_is_named(version: str, name: str, answer: str, word: str) -> None:
    host = machine(name, **{f"/usr/bin/{name} --version": answer})
    (one,) = (one for one in packages.look(host, version, release=find_release(version)) if one.item.name == name)
    assert one.verdict == "wrong" and word in one.why


def test_a_program_that_does_not_run_is_wrong() -> None:
    host = machine("kubelet")
    host.answers["/usr/bin/kubelet --version"] = CommandResult((), 126, stderr="cannot execute binary file\n")
    (one,) = (one for one in packages.look(host, V, release=RELEASE) if one.item.name == "kubelet")
    assert one.verdict == "wrong" and "cannot execute binary file" in one.why


# ---- staging


def offer(name: str, data: bytes, *, digest: str = "") -> Offered:
    def pieces() -> Iterator[bytes]:
        yield data[:100]
        yield data[100:]

    proven = digest or f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Offered(FILES_BY_NAME[name], proven, len(data), 0o755, "a bundle", pieces)


def stage(host: FakeHost, *offered: Offered) -> dict[str, Path]:
    return packages.stage(host, offered, arch="amd64", cluster_version=V, release=RELEASE, tell=lambda text: None)


def test_what_is_good_gets_its_place() -> None:
    host = machine(**{f"{packages.STAGING}/kubelet --version": "Kubernetes v1.35.6"})
    staged = stage(host, offer("kubelet", elf("amd64")), offer("cni/bridge", elf("amd64")))
    assert not host.exists(Path("/usr/local/bin/kubelet"))
    assert packages.put_in_place(host, staged) == [Path("/usr/local/bin/kubelet"), Path("/opt/cni/bin/bridge")]
    assert host.modes["/usr/local/bin/kubelet"] == 0o755 and not host.exists(packages.STAGING)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (offer("kubelet", elf("arm64")), "wrong-architecture"),
        (offer("kubelet", b"#!/bin/sh\nexit 0\n".ljust(200)), "wrong-architecture"),
        (offer("kubelet", elf("amd64"), digest="sha256:" + "0" * 64), "file-damaged"),
        (offer("kubelet", elf("amd64")), "wrong-version"),
    ],
)
def test_what_is_not_good_changes_nothing(bad: Offered, code: str) -> None:
    host = machine(**{f"{packages.STAGING}/kubelet --version": "Kubernetes v1.33.1"})
    if code != "wrong-version":
        host.answers[f"{packages.STAGING}/kubelet --version"] = "Kubernetes v1.35.6"
    with pytest.raises(HostError) as caught:
        stage(host, offer("cni/bridge", elf("amd64")), bad)
    assert caught.value.code == code
    assert not host.exists(packages.STAGING) and host.files == {}


def test_a_full_disk_is_found_before_anything_is_written() -> None:
    host = machine()
    host.free = 10 << 20
    with pytest.raises(HostError) as caught:
        stage(host, offer("kubelet", elf("amd64")))
    assert caught.value.code == "disk-full" and host.changes == []


# ---- a mirror's files


def test_the_files_of_a_mirror() -> None:
    rows = [
        {"title": "amd64/kubelet", "digest": "sha256:" + "a" * 64, "size": 5, "mode": "0755", "version": ""},
        {"title": "arm64/kubelet", "digest": "sha256:" + "b" * 64, "size": 5, "mode": "0755", "version": ""},
        {"title": "amd64/else", "digest": "sha256:" + "c" * 64, "size": 5, "mode": "0755", "version": ""},
        {"title": "amd64/runc", "digest": "md5:1", "size": 5, "mode": "0755", "version": ""},
    ]
    body = json.dumps({"files": rows}).encode()
    host = FakeHost(urls={"http://m:5000/files/": HttpResponse(200, body)})
    offered = packages.offer_mirror(host, Mirror("http://m:5000"), arch="amd64")
    assert {name: one.origin for name, one in offered.items()} == {"kubelet": "http://m:5000/files/amd64/kubelet"}
    host.urls["http://m:5000/files/"] = HttpResponse(404)
    assert packages.offer_mirror(host, Mirror("http://m:5000"), arch="amd64") == {}
    for broken in (b"<html>", b"{}", b'{"files": [{}]}', b'{"files": 3}'):
        host.urls["http://m:5000/files/"] = HttpResponse(200, broken)
        with pytest.raises(HostError) as caught:
            packages.offer_mirror(host, Mirror("http://m:5000"), arch="amd64")
        assert caught.value.code == "mirror-invalid"


# ---- apt and dnf


def missing(*names: str) -> list[packages.Standing]:
    return [packages.Standing(FILES_BY_NAME[name], "missing") for name in names]


def test_apt() -> None:
    base = "https://mirrors.ustc.edu.cn/kubernetes/core:/stable:/v1.35/deb/"
    key = HttpResponse(200, b"-----BEGIN PGP PUBLIC KEY BLOCK-----")
    expected = ["containerd", "kubelet=1.35.6-*", "cri-tools", "kubernetes-cni"]
    commands = [
        "apt-get update -q",
        "apt-get install -q -y --no-install-recommends " + " ".join(expected),
        "apt-mark hold kubelet",
        "apt-mark unhold kubelet kubectl",
    ]
    host = FakeHost(programs={"apt-get"}, urls={f"{base}Release.key": key}, accepts=commands)
    wanted = missing("containerd", "ctr", "kubelet", "crictl", "cni/bridge")
    assert distro_packages.install(host, "apt", wanted=wanted, version=V, preset_name="ustc") == expected
    assert host.read_text(distro_packages.APT_LIST) == f"deb [signed-by={distro_packages.APT_KEY}] {base} /\n"
    assert [change for change in host.changes if change.startswith("run")] == [f"run {line}" for line in commands[:3]]
    host.programs.add("apt-mark")
    distro_packages.release(host)
    assert host.changes[-1] == f"run {commands[3]}"


DNF = "dnf install -y --refresh --setopt=disable_excludes=kb-kubernetes kubelet-1.35.6"


def test_dnf_and_what_goes_wrong() -> None:
    host = FakeHost(programs={"dnf"}, accepts={DNF})
    assert distro_packages.install(host, "dnf", wanted=missing("kubelet"), version=V, preset_name="aliyun") == [
        "kubelet-1.35.6"
    ]
    assert "mirrors.aliyun.com/kubernetes-new/core/stable/v1.35/rpm/" in host.read_text(distro_packages.DNF_REPO)
    for manager, there, code in (("apt", set(), "no-package-manager"), ("dnf", {"dnf"}, "packages-not-installed")):
        host = FakeHost(programs=there, answers={DNF: CommandResult((), 1, stderr="no match")})
        with pytest.raises(HostError) as caught:
            distro_packages.install(host, manager, wanted=missing("kubelet"), version=V, preset_name="")
        assert caught.value.code == code
    host = FakeHost(
        programs={"apt-get"}, urls={"https://pkgs.k8s.io/core:/stable:/v1.35/deb/Release.key": HttpResponse(403)}
    )
    with pytest.raises(HostError) as caught:
        distro_packages.install(host, "apt", wanted=missing("kubelet"), version=V, preset_name="")
    assert caught.value.code == "repository-key-missing" and host.changes == []


def test_dnf_is_asked_anew_and_in_words_that_both_dnfs_know() -> None:
    host = FakeHost(programs={"dnf"}, accepts={DNF})
    distro_packages.install(host, "dnf", wanted=missing("kubelet"), version=V, preset_name="")
    (run,) = [change for change in host.changes if change.startswith("run")]
    assert run == f"run {DNF}"


@pytest.mark.parametrize(
    ("manager", "said", "code", "cause"),
    [
        ("dnf", "Package kubelet-1.35.6-1.x86_64.rpm is not signed\nError: GPG check FAILED", "packages-not-trusted",
         "Package kubelet-1.35.6-1.x86_64.rpm is not signed"),
        ("dnf", "Transaction failed: Signature verification failed.\nOpenPGP check for package \"kubelet-1.35.6-1\" has failed: wrong key?",
         "packages-not-trusted", 'OpenPGP check for package "kubelet-1.35.6-1" has failed: wrong key?'),
        ("apt-get", "W: https://a InRelease is not signed\nE: The repository 'https://b InRelease' is not signed.", "packages-not-trusted",
         "E: The repository 'https://b InRelease' is not signed."),
        ("apt-get", "W: https://a InRelease is not signed\nE: Unable to locate package runc", "packages-not-installed",
         "E: Unable to locate package runc"),
        ("dnf", "  - Curl error (6): Could not resolve host: pkgs.k8s.io\nIgnoring repositories: kb-kubernetes\n"
         "Error: Unable to find a match: kubelet-1.35.6", "packages-not-installed",
         "Curl error (6): Could not resolve host: pkgs.k8s.io; Error: Unable to find a match: kubelet-1.35.6"),
        ("dnf", "Failed to resolve the transaction:\nNo match for argument: kubelet-1.35.7\nYou can try to add to command line:\n"
         "  --skip-unavailable to skip unavailable packages", "packages-not-installed", "No match for argument: kubelet-1.35.7"),
        ("dnf", "something else\nthe disk burns", "packages-not-installed", "the disk burns"),
    ],
)  # fmt: skip
def test_why_packages_were_not_installed(manager: str, said: str, code: str, cause: str) -> None:
    base = "https://pkgs.k8s.io/core:/stable:/v1.35/deb/"
    key = HttpResponse(200, b"-----BEGIN PGP PUBLIC KEY BLOCK-----")
    failed = CommandResult((), 1, stderr=said)
    first = {"dnf": DNF, "apt-get": "apt-get update -q"}[manager]
    host = FakeHost(programs={manager}, urls={f"{base}Release.key": key}, answers={first: failed})
    with pytest.raises(HostError) as caught:
        distro_packages.install(host, manager.partition("-")[0], wanted=missing("kubelet"), version=V, preset_name="")
    assert (caught.value.code, caught.value.cause) == (code, cause)


def test_every_component_has_a_package() -> None:
    components = {item.component for item in NODE_FILES} - {"kubelet", "kubectl"}
    assert all(set(rows) == components for rows in distro_packages.PACKAGES.values())
