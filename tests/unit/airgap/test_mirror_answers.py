"""kubeup/airgap/mirror_answers.py: the pull API and the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubeup.airgap import (
    bundle,
    bundle_write,
    mirror_answers,
    mirror_catalog,
    oci_layout,
)
from kubeup.airgap.bundle_sources import Gathering
from kubeup.airgap.mirror_answers import Answer, Request
from kubeup.airgap.mirror_catalog import Catalog
from kubeup.airgap.oci_layout import Place
from tests.unit.airgap.mirror_case import HOST, ask, content


@pytest.mark.parametrize(
    ("name", "namespace", "status"),
    [
        ("registry.k8s.io/pause", "", 200),
        ("pause", "registry.k8s.io", 200),
        ("pause", "quay.io", 404),  # another tag
        ("pause", "", 404),  # two registries have one: which is meant?
        ("library/web", "", 404),  # its tag is 1
        ("nothing", "", 404),
    ],
)
def test_names(catalog: Catalog, name: str, namespace: str, status: int) -> None:
    assert ask(catalog, f"/v2/{name}/manifests/3.10.1", ns=namespace).status == status


def test_manifests_by_tag_and_digest(catalog: Catalog) -> None:
    tagged = ask(catalog, "/v2/library/web/manifests/1", ns="docker.io")
    assert tagged.headers["Content-Type"] == oci_layout.OCI_INDEX
    digest = tagged.headers["Docker-Content-Digest"]
    assert oci_layout.digest_of(content(tagged)) == digest
    assert content(ask(catalog, f"/v2/library/web/manifests/{digest}", ns="docker.io")) == content(tagged)
    child = json.loads(content(tagged))["manifests"][0]["digest"]
    assert ask(catalog, f"/v2/library/web/manifests/{child}").headers["Content-Type"] == oci_layout.OCI_MANIFEST
    left_out = json.loads(content(tagged))["manifests"][1]["digest"]
    assert (
        json.loads(ask(catalog, f"/v2/library/web/manifests/{left_out}").body)["errors"][0]["code"]
        == "MANIFEST_UNKNOWN"
    )


def test_blobs_tags_and_catalog(catalog: Catalog) -> None:
    digest = oci_layout.digest_of(b"p")
    assert content(ask(catalog, f"/v2/anything/blobs/{digest}")) == b"p"
    assert ask(catalog, "/v2/x/blobs/sha256:zz").status == 404
    assert json.loads(ask(catalog, "/v2/pause/tags/list", ns="quay.io").body) == {"name": "pause", "tags": ["1"]}
    names = ["docker.io/library/web", "kb/files", "quay.io/pause", "registry.k8s.io/pause"]
    assert json.loads(ask(catalog, "/v2/_catalog").body)["repositories"] == names
    page = ask(catalog, "/v2/_catalog", n="2")
    assert json.loads(page.body)["repositories"] == names[:2] and "last=kb%2Ffiles" in page.headers["Link"]
    assert json.loads(ask(catalog, "/v2/_catalog", n="2", last="kb/files").body)["repositories"] == names[2:]


def test_files_and_pages(catalog: Catalog) -> None:
    (row,) = json.loads(ask(catalog, "/files/").body)["files"]
    assert row["title"] == "kb.pyz" and row["digest"] == oci_layout.digest_of(b"0123456789")
    assert content(ask(catalog, "/files/kb.pyz")) == b"0123456789"
    assert ask(catalog, "/files/../../etc/passwd").status == 404
    assert mirror_catalog.describe(catalog).startswith("3 images, 1 files")
    assert ask(catalog, "/healthz").body == b"ok\n" and ask(catalog, "/ca.crt").body == b"PEM"
    assert ask(catalog, "/nothing").status == 404
    refused = ask(catalog, "/v2/x/manifests/1", "PUT")
    assert refused.status == 405 and refused.headers["Allow"] == "GET, HEAD"


def test_the_files_are_an_artifact_with_a_name(catalog: Catalog) -> None:
    manifest = json.loads(content(ask(catalog, "/v2/kb/files/manifests/v1.35.6")))
    assert manifest["artifactType"] == bundle.ARTIFACT_TYPE
    assert [layer["annotations"][oci_layout.TITLE] for layer in manifest["layers"]] == ["kb.pyz"]
    for part in (manifest["config"], *manifest["layers"]):
        assert oci_layout.digest_of(content(ask(catalog, f"/v2/kb/files/blobs/{part['digest']}"))) == part["digest"]
    # docker.io/kb/files is an image of somebody else's
    assert ask(catalog, "/v2/kb/files/manifests/v1.35.6", ns="docker.io").status == 404


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-3", 206, (100, 4)),
        ("bytes=4-", 206, (104, 6)),
        ("bytes=-3", 206, (107, 3)),
        ("bytes=-30", 206, (100, 10)),
        ("bytes=9-99", 206, (109, 1)),
        ("bytes=10-", 416, None),
        ("bytes=5-4", 200, (100, 10)),
        ("bytes=-0", 416, None),
        (f"bytes={'9' * 5000}-", 416, None),
        (f"bytes=-{'9' * 5000}", 206, (100, 10)),
        (f"bytes=1-{'9' * 5000}", 206, (101, 9)),
        ("bytes=\u00b2-", 200, (100, 10)),
        ("bytes=-", 200, (100, 10)),
        ("bytes=0-1,3-4", 200, (100, 10)),
        ("lines=1-2", 200, (100, 10)),
    ],
)
def test_ranges(wanted: str, status: int, part: object) -> None:
    cut = mirror_answers.cut_range(Answer(200, {}, place=Place(Path("/x"), 100, 10)), wanted)
    assert cut.status == status
    assert (cut.place and (cut.place.offset, cut.place.size)) == part


def test_requests() -> None:
    parsed = mirror_answers.parse_request(
        b"GET /v2/a/manifests/1?ns=quay.io HTTP/1.1\r\nHost: x\r\nRange: bytes=1-\r\nConnection: close"
    )
    assert parsed == Request(
        "GET", "/v2/a/manifests/1", {"ns": "quay.io"}, {"host": "x", "range": "bytes=1-", "connection": "close"}, False
    )
    for bad in (b"", b"GET /", b"\x16\x03\x01\x02\x00", b"GET / HTTP/2\r\n"):
        assert mirror_answers.parse_request(bad) is None


def bundle_of(tmp_path: Path, version: str, kb_version: str) -> Path:
    gathering = Gathering(HOST, tmp_path / f"parts-{version}", ("amd64",))
    for title, text, own in (
        ("kb.pyz", f"kb {kb_version}", kb_version),
        ("amd64/kubelet", f"kubelet {version}", version),
    ):
        path = tmp_path / f"{version}-{own}-{Path(title).name}"
        path.write_text(text)
        gathering.add_file(title, path, version=own)
    out = tmp_path / "served" / f"kb-{version}.tar"
    bundle_write.write_bundle(gathering, out, kubernetes_version=version)
    return out


def test_files_are_served_by_kubernetes_version(tmp_path: Path) -> None:
    """A node that joins a cluster of 1.35 is not given the kubelet of 1.36, which lies beside it; kb itself is the newest,
    and its sum is the one that the join line carries."""
    (tmp_path / "served").mkdir()
    for version, own in (("v1.35.6", "0.9.0"), ("v1.36.0", "0.10.0"), ("v1.36.1-rc.1", "0.8.0")):
        bundle_of(tmp_path, version, own)
    layouts = mirror_catalog.find_layouts(HOST, tmp_path / "served")
    found = mirror_catalog.build_catalog(HOST, layouts)
    for wanted, served in (
        ("v1.35.6", "v1.35.6"), ("v1.35.9", "v1.35.6"), ("v1.36.0", "v1.36.0"), ("", "v1.36.1-rc.1"), ("v1.37.0", "v1.36.1-rc.1"),
    ):  # fmt: skip
        assert content(ask(found, "/files/amd64/kubelet", version=wanted)) == f"kubelet {served}".encode(), wanted
        assert content(ask(found, "/files/kb.pyz", version=wanted)) == b"kb 0.10.0"
        rows = json.loads(ask(found, "/files/", version=wanted).body)["files"]
        assert next(row["version"] for row in rows if row["title"] == "amd64/kubelet") == served
    assert ask(found, "/files/amd64/kubelet", version="v1.34.0").status == 404
    chosen = bundle.choose_files([bundle.read_files(HOST, one) for one in layouts])["kb.pyz"]
    assert ask(found, "/files/kb.pyz").headers["Docker-Content-Digest"] == chosen.digest


@pytest.mark.parametrize("n", ["\u00b2", "9" * 5000, "-1", "x"])
def test_a_page_of_no_size(catalog: Catalog, n: str) -> None:
    assert ask(catalog, "/v2/_catalog", n=n).status == 400
