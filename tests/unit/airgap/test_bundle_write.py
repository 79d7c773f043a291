"""kubeup/airgap/bundle_write.py: what goes into a bundle, to the byte."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from kubeup.airgap import (
    bundle,
    bundle_verify,
    bundle_write,
    downloads,
    oci_layout,
)
from kubeup.airgap.bundle_sources import Gathering
from kubeup.errors import HostError
from tests.unit.airgap.bundle_case import HOST, A, B, make, verify


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


def test_a_delta_leaves_out_what_its_base_has(tmp_path: Path) -> None:
    base = make(tmp_path)
    delta = make(tmp_path, "b.tar", since=base)
    assert not set(delta.blobs) & set(base.blobs)
    assert delta.index["annotations"][bundle.SINCE] == oci_layout.digest_of(base.index_bytes)
    assert verify(delta).problems
    assert verify(delta, base=base).problems == ()


def test_a_title_that_leads_out_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    gathering = Gathering(HOST, tmp_path / "parts", ("amd64",))
    (tmp_path / "x").write_bytes(b"x")
    gathering.add_file("../../etc/passwd", tmp_path / "x")
    bundle_write.write_bundle(gathering, tmp_path / "evil.tar", kubernetes_version="v1.35.6")
    with pytest.raises(HostError) as caught:
        bundle.list_files(HOST, oci_layout.open_layout(HOST, tmp_path / "evil.tar"))
    assert caught.value.code == "bundle-unsafe"
