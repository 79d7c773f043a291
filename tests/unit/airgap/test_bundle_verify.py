"""kubeup/airgap/bundle_verify.py: what is damaged, cut off or missing in a bundle, and how two differ."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from kubeup.airgap import (
    bundle,
    bundle_verify,
    oci_layout,
)
from kubeup.airgap.oci_layout import as_json
from kubeup.errors import HostError
from tests.bundle_case import elf, write_blob, write_layout
from tests.unit.airgap.bundle_case import BOTH, HOST, make, verify


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


def test_diff(tmp_path: Path) -> None:
    one = make(tmp_path)
    (tmp_path / "programs/kubelet").write_bytes(elf("amd64", mark="newer"))
    other = make(tmp_path, "b.tar")
    assert bundle_verify.diff_bundles(HOST, one, other=other) == {
        "added": [],
        "removed": [],
        "changed": ["file amd64/kubelet"],
    }


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
            oci_layout.read_json_blob(HOST, oci_layout.open_layout(HOST, tmp_path), digest=entry["digest"])
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
