"""Bundles: what goes in, equal bytes for equal inputs, every kind of damage by its name."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from kubeup.airgap import (
    bundle,
    bundle_needs,
    bundle_signature,
    bundle_sources,
    bundle_verify,
    bundle_write,
    downloads,
    oci_layout,
)
from kubeup.airgap.bundle_needs import Need
from kubeup.airgap.bundle_sources import FolderSource, Gathering, LayoutSource
from kubeup.airgap.oci_layout import as_json
from kubeup.config import presets
from kubeup.config.types import KbConfiguration, LoadBalancer
from kubeup.errors import HostError, KbError, UsageError
from kubeup.machine.local_host import LocalHost
from kubeup.releases import find_release
from kubeup.secret import Secret
from tests.bundle_case import config, elf, write_blob, write_layout, write_programs

HOST = LocalHost()
A, B = "registry.k8s.io/pause:3.10.1", "docker.io/library/web:1"
BOTH = {A: {"amd64": [b"pause"], "arm64": [b"pause for arm"]}, B: {"amd64": [b"web", b"shared"], "arm64": [b"w"]}}


def make(tmp_path: Path, out: str = "a.tar", *, archs: tuple[str, ...] = ("amd64",), **words: Any) -> oci_layout.Layout:
    source = tmp_path / "source"
    if not source.exists():
        source.mkdir()
        write_layout(source, BOTH)
        write_programs(tmp_path / "programs")
    gathering = Gathering(HOST, tmp_path / f".{out}.parts", archs)
    sources = (LayoutSource(oci_layout.open_layout(HOST, source)), FolderSource(tmp_path / "programs"))
    for name in (A, B):
        gathering.add_image(Need(name, "a test"), sources)
    if archs == ("amd64",):
        gathering.add_files(bundle_needs.plan_files(archs), sources, "v1.35.6")
    bundle_write.write_bundle(gathering, tmp_path / out, kubernetes_version="v1.35.6", **words)
    return oci_layout.open_layout(HOST, tmp_path / out)


def verify(found: oci_layout.Layout, **words: Any) -> bundle_verify.Verdict:
    return bundle_verify.verify_bundle(HOST, found, **words)


def test_a_bundle_has_what_was_asked_for(tmp_path: Path) -> None:
    found = make(tmp_path)
    assert set(found.names) == {A, B}
    assert {entry.title for entry in bundle.list_files(HOST, found)} == {
        f"amd64/{i.name}" for i in downloads.NODE_FILES
    }
    assert verify(found) == bundle_verify.Verdict((), (), len(found.blobs), sum(p.size for p in found.blobs.values()))


def test_the_index_keeps_its_digest_and_other_architectures_are_left_out(tmp_path: Path) -> None:
    found = make(tmp_path)
    source = oci_layout.open_layout(HOST, tmp_path / "source")
    assert found.names[A]["digest"] == source.names[A]["digest"]
    held = {b"".join(oci_layout.read_place(HOST, place)) for place in found.blobs.values()}
    assert b"pause" in held and b"pause for arm" not in held
    both = make(tmp_path, "both.tar", archs=("amd64", "arm64"))
    assert b"pause for arm" in {b"".join(oci_layout.read_place(HOST, place)) for place in both.blobs.values()}


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    make(tmp_path, "a.tar")
    make(tmp_path, "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


def test_what_is_nowhere_is_listed_with_what_needs_it(tmp_path: Path) -> None:
    gathering = Gathering(HOST, tmp_path / "parts", ("amd64",))
    gathering.add_image(Need(A, "the sandbox of every pod"), ())
    gathering.add_files([Need("amd64/kubelet", "the node's agent")], (FolderSource(tmp_path),), "v1.35.6")
    with pytest.raises(HostError) as caught:
        bundle_write.write_bundle(gathering, tmp_path / "a.tar", kubernetes_version="v1.35.6")
    assert caught.value.code == "bundle-incomplete"
    assert [line.partition(" (for ")[0] for line in caught.value.details] == [A, "amd64/kubelet"]
    assert not (tmp_path / "a.tar").exists()


def test_a_program_for_another_machine_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "kubelet").write_bytes(elf("arm64"))
    gathering = Gathering(HOST, tmp_path / "parts", ("amd64",))
    gathering.add_files([Need("amd64/kubelet", "the node's agent")], (FolderSource(tmp_path),), "v1.35.6")
    assert [why for _, why in gathering.missing] == [f"{tmp_path}/kubelet is for arm64"]


def test_an_image_for_another_machine_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_layout(tmp_path / "source", {A: {"arm64": [b"x"]}})
    gathering = Gathering(HOST, tmp_path / "parts", ("amd64",))
    gathering.add_image(Need(A, "a test"), (LayoutSource(oci_layout.open_layout(HOST, tmp_path / "source")),))
    assert "it is for arm64 alone, and amd64 is wanted" in gathering.missing[0][1]


def test_a_flipped_byte_is_found_and_named(tmp_path: Path) -> None:
    found = make(tmp_path)
    title = next(entry for entry in bundle.list_files(HOST, found) if entry.title == "amd64/runc")
    place = found.blobs[title.digest]
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[place.offset + 100] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    (problem,) = verify(oci_layout.open_layout(HOST, tmp_path / "a.tar")).problems
    assert title.digest in problem and "needed by file amd64/runc" in problem


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_a_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    make(tmp_path)
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(HostError) as caught:
        oci_layout.open_layout(HOST, tmp_path / "a.tar")
    assert caught.value.code == "bundle-truncated"


def test_a_cut_exactly_between_two_blobs_is_named(tmp_path: Path) -> None:
    found = make(tmp_path)
    last = max(found.blobs.values(), key=lambda place: place.offset)
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: last.offset - 512])
    with pytest.raises(HostError) as caught:
        oci_layout.open_layout(HOST, tmp_path / "a.tar")
    assert caught.value.code == "bundle-truncated"


@pytest.mark.parametrize(
    "data",
    [b"", b"no tar at all" * 100, b"\x1f\x8b" + bytes(600), bytes(10240)],
    ids=["empty", "text", "gzip", "zeros"],
)
def test_other_files_are_no_bundles(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(HostError) as caught:
        oci_layout.open_layout(HOST, tmp_path / "x.tar")
    assert caught.value.code == "bundle-unreadable"


def test_a_configuration_s_missing_images_are_listed(tmp_path: Path) -> None:
    found = make(tmp_path)
    needs = bundle_needs.plan_images(config(), find_release("v1.35.6"), [], [])
    missing = {need.name: need.by for need in verify(found, needs=needs).missing}
    assert A not in missing and missing["registry.k8s.io/etcd:3.6.6-0"] == "the static pod etcd"


def test_the_images_of_a_manifest_are_needed_too() -> None:
    pods = {"spec": {"initContainers": [{"image": "quay.io/a/b:1"}], "containers": [{"image": "busybox"}]}}
    daemon = {"kind": "DaemonSet", "metadata": {"name": "flannel"}, "spec": {"template": pods}}
    needs = {need.name: need.by for need in bundle_needs.plan_images(config(), find_release("v1.35.6"), [daemon], [])}
    assert not any("haproxy" in name for name in needs)
    balanced = config(kb=KbConfiguration(load_balancer=LoadBalancer("local")))
    assert any("haproxy" in need.name for need in bundle_needs.plan_images(balanced, find_release("v1.35.6"), [], []))
    assert needs["quay.io/a/b:1"] == "DaemonSet flannel" and "docker.io/library/busybox:latest" in needs


def test_a_delta_leaves_out_what_its_base_has(tmp_path: Path) -> None:
    base = make(tmp_path)
    delta = make(tmp_path, "b.tar", since=base)
    assert not set(delta.blobs) & set(base.blobs)
    assert delta.index["annotations"][bundle.SINCE] == oci_layout.digest_of(base.index_bytes)
    assert verify(delta).problems
    assert verify(delta, base=base).problems == ()


def test_diff(tmp_path: Path) -> None:
    one = make(tmp_path)
    (tmp_path / "programs/kubelet").write_bytes(elf("amd64", mark="newer"))
    other = make(tmp_path, "b.tar")
    assert bundle_verify.diff_bundles(HOST, one, other) == {
        "added": [],
        "removed": [],
        "changed": ["file amd64/kubelet"],
    }


def test_a_title_that_leads_out_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    gathering = Gathering(HOST, tmp_path / "parts", ("amd64",))
    (tmp_path / "x").write_bytes(b"x")
    gathering.add_file("../../etc/passwd", tmp_path / "x")
    bundle_write.write_bundle(gathering, tmp_path / "evil.tar", kubernetes_version="v1.35.6")
    with pytest.raises(HostError) as caught:
        bundle.list_files(HOST, oci_layout.open_layout(HOST, tmp_path / "evil.tar"))
    assert caught.value.code == "bundle-unsafe"


# ---- signatures


def keys() -> tuple[Secret, str]:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()).decode()
    return Secret(private), key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo).decode()


def test_a_signature_holds_until_something_changes(tmp_path: Path) -> None:
    private, public = keys()
    found = make(tmp_path, key=private)
    bundle_signature.check_signature(found, public)
    _, foreign = keys()
    for bad in (foreign,):
        with pytest.raises(HostError) as caught:
            bundle_signature.check_signature(found, bad)
        assert caught.value.code == "signature-wrong"
    changed = oci_layout.Layout(found.path, found.index, found.index_bytes + b" ", found.blobs, found.signature)
    with pytest.raises(HostError, match="is not what the owner of the key signed"):
        bundle_signature.check_signature(changed, public)
    garbled = oci_layout.Layout(found.path, found.index, found.index_bytes, found.blobs, b'{"ed25519": 3}')
    with pytest.raises(HostError, match="is not what the owner of the key signed"):
        bundle_signature.check_signature(garbled, public)


def test_no_signature_and_no_key(tmp_path: Path) -> None:
    _, public = keys()
    found = make(tmp_path)
    with pytest.raises(HostError) as caught:
        bundle_signature.check_signature(found, public)
    assert caught.value.code == "signature-missing"
    with pytest.raises(UsageError) as wrong:
        bundle_signature.check_signature(found, "no key")
    assert wrong.value.code == "bad-key"
    with pytest.raises(UsageError):
        bundle_signature.sign_index(b"{}", Secret("no key"))


# ---- downloads


def test_official_urls() -> None:
    plan = downloads.plan_download("kubelet", kubernetes_version="v1.35.6", arch="arm64", versions={})
    assert plan.url == "https://dl.k8s.io/release/v1.35.6/bin/linux/arm64/kubelet"
    own = downloads.plan_download(
        "containerd", kubernetes_version="v1.35.6", arch="amd64", versions={"containerd": "2.0.1"}
    )
    assert own.url.endswith("/v2.0.1/containerd-2.0.1-linux-amd64.tar.gz") and own.members["bin/ctr"] == "ctr"
    preset = presets.find_preset("daocloud")
    moved = downloads.plan_download("runc", kubernetes_version="v1.35.6", arch="amd64", versions={}, preset=preset)
    assert moved.url.startswith("https://files.m.daocloud.io/github.com/opencontainers/runc/")
    with pytest.raises(UsageError):
        presets.find_preset("nowhere")


def test_every_minor_has_its_row_of_versions() -> None:
    from kubeup.releases import RELEASES

    for release in RELEASES.values():
        for component in ("crictl", "containerd", "runc", "cni"):
            plan = downloads.plan_download(
                component, kubernetes_version=f"v{release.name}.0", arch="amd64", versions={}
            )
            assert plan.version and "{" not in plan.url


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ("a" * 64, "x", "a" * 64),
        (f"{'a' * 64}  runc.amd64\n{'b' * 64}  runc.arm64\n", "runc.arm64", "b" * 64),
        (f"{'a' * 64} *x\n", "x", "a" * 64),
        (f"{'a' * 64}  other\n", "x", ""),
        ("<html>not found</html>", "x", ""),
    ],
)
def test_checksums(text: str, name: str, wanted: str) -> None:
    assert downloads.parse_sha256(text, name) == wanted


def test_elf_machines() -> None:
    assert downloads.elf_architecture(elf("amd64")) == "amd64" and downloads.elf_architecture(elf("arm64")) == "arm64"
    assert downloads.elf_architecture(b"#!/bin/sh\n" + bytes(30)) is None and downloads.elf_architecture(b"") is None
    assert downloads.elf_architecture(b"\x7fELF\x02\x01" + bytes(12) + b"\x77\x77") == ""


def test_sources(tmp_path: Path) -> None:
    (tmp_path / "programs").mkdir()
    make(tmp_path)
    words = ["https://r.example/", str(tmp_path / "a.tar"), str(tmp_path / "programs"), "official"]
    kinds = [type(source).__name__ for source in bundle_sources.parse_sources(HOST, words, presets.Preset(""), {})]
    assert kinds == ["RegistrySource", "LayoutSource", "FolderSource", "RegistrySource", "DownloadSource"]
    with pytest.raises(KbError):
        bundle_sources.parse_sources(HOST, ["nowhere"], presets.Preset(""), {})


def test_very_many_problems_are_found_in_time_and_told_in_part(tmp_path: Path) -> None:
    layers = [{"digest": f"sha256:{number:064x}", "size": 1} for number in range(20_000)]
    config = {"mediaType": "x", **write_blob(tmp_path, b"{}")}
    text = {"mediaType": oci_layout.OCI_MANIFEST, "config": config, "layers": layers}
    write_layout(tmp_path, {})
    entry = {
        "mediaType": oci_layout.OCI_MANIFEST,
        **write_blob(tmp_path, as_json(text)),
        "annotations": {oci_layout.NAME: "x/y:1"},
    }
    (tmp_path / "index.json").write_bytes(as_json({"manifests": [entry]}))
    started = time.monotonic()
    problems = bundle_verify.verify_bundle(HOST, oci_layout.open_layout(HOST, tmp_path)).problems
    assert time.monotonic() - started < 5
    assert len(problems) == 101 and problems[-1] == "and 19900 more"


@pytest.mark.parametrize("kind", ["a/b\r\nX-Evil: 1", "a\nb", "\u2028", "x" * 300, 7])
def test_a_media_type_that_could_be_no_header_is_refused(tmp_path: Path, kind: object) -> None:
    """A mirror sends it as the Content-Type."""
    for where in ("entry", "manifest"):
        text = {"mediaType": kind if where == "manifest" else oci_layout.OCI_MANIFEST}
        entry = {**write_blob(tmp_path, as_json(text)), **({"mediaType": kind} if where == "entry" else {})}
        write_layout(tmp_path, {})
        (tmp_path / "index.json").write_bytes(as_json({"manifests": [entry]}))
        with pytest.raises(HostError) as caught:
            oci_layout.read_json_blob(HOST, oci_layout.open_layout(HOST, tmp_path), entry["digest"])
        assert caught.value.code == "bundle-unreadable" and "mediaType" in caught.value.cause


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_layout(source, BOTH)
    for text in ("no json", "[]", json.dumps({"manifests": [{"digest": "../../x"}]})):
        (source / "index.json").write_text(text)
        with pytest.raises(HostError) as caught:
            oci_layout.open_layout(HOST, source)
        assert caught.value.code == "bundle-unreadable"
