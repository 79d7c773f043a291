"""The mirror's answers: pure, without a socket."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import pytest

from kubeup.airgap import (
    bundle,
    bundle_verify,
    bundle_write,
    mirror_answers,
    mirror_catalog,
    mirror_server,
    mirror_sync,
    oci_layout,
    registry_client,
)
from kubeup.airgap.bundle_needs import Need
from kubeup.airgap.bundle_sources import Gathering, LayoutSource
from kubeup.airgap.mirror_answers import Answer, Request
from kubeup.airgap.mirror_catalog import Catalog
from kubeup.airgap.oci_layout import Place
from kubeup.errors import HostError
from kubeup.machine.local_host import LocalHost
from tests.bundle_case import write_blob, write_layout, write_manifest

HOST = LocalHost()
PAUSE, OTHER, WEB = "registry.k8s.io/pause:3.10.1", "quay.io/pause:1", "docker.io/library/web:1"


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    source = tmp_path / "source"
    source.mkdir()
    write_layout(source, {PAUSE: {"amd64": [b"p"]}, OTHER: {"amd64": [b"q"]}, WEB: {"amd64": [b"w"], "arm64": [b"x"]}})
    gathering = Gathering(HOST, tmp_path / "parts", ("amd64",))
    sources = (LayoutSource(oci_layout.open_layout(HOST, source)),)
    for name in (PAUSE, OTHER, WEB):
        gathering.add_image(Need(name, "a test"), sources)
    (tmp_path / "kb.pyz").write_bytes(b"0123456789")
    gathering.add_file("kb.pyz", tmp_path / "kb.pyz")
    bundle_write.write_bundle(gathering, tmp_path / "a.tar", kubernetes_version="v1.35.6")
    return mirror_catalog.build_catalog(HOST, mirror_catalog.find_layouts(HOST, tmp_path / "a.tar"))


def ask(catalog: Catalog, path: str, method: str = "GET", **query: str) -> Answer:
    return mirror_answers.answer_request(Request(method, path, query, {}), catalog, ca_pem="PEM")


def content(answer: Answer) -> bytes:
    return b"".join(oci_layout.read_place(HOST, answer.place)) if answer.place else answer.body


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


def test_a_folder_of_bundles_is_one_catalog(tmp_path: Path, catalog: Catalog) -> None:
    assert mirror_catalog.find_layouts(HOST, tmp_path)  # a.tar, and the layout `source`
    (tmp_path / "empty").mkdir()
    with pytest.raises(HostError) as caught:
        mirror_catalog.find_layouts(HOST, tmp_path / "empty")
    assert caught.value.code == "bundle-unreadable"


def look_again(store: mirror_catalog.Store) -> Catalog:
    store.look_again()
    return store.catalog


def test_a_bad_new_bundle_takes_nothing_away(tmp_path: Path, catalog: Catalog) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "served/a.tar")
    said: list[str] = []
    store = mirror_catalog.Store(HOST, tmp_path / "served", said.append)
    (tmp_path / "served/b.tar").write_bytes(b"half a file")
    assert len(look_again(store).repositories) == 4 and "b.tar is left out" in said[0]
    (tmp_path / "served/b.tar").unlink()
    assert len(look_again(store).repositories) == 4 and "has changed: 3 images" in said[-1]


def test_a_file_that_is_being_copied_is_told_once(tmp_path: Path, catalog: Catalog) -> None:
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "served").mkdir()
    said: list[str] = []
    (tmp_path / "served/a.tar").write_bytes(data[:600])
    store = mirror_catalog.Store(HOST, tmp_path / "served", said.append)
    for size in (1200, 5000, len(data)):
        assert look_again(store).repositories == {}
        (tmp_path / "served/a.tar").write_bytes(data[:size])
    assert len(look_again(store).repositories) == 4
    assert [text.rpartition("is")[0].count("a.tar is left out") for text in said] == [1, 0]


class FailingDisk(LocalHost):
    """A machine whose disk cannot be read for a while."""

    fails_for = ""

    def open_read(self, path: Path, *, follows: bool = True) -> BinaryIO:
        if self.fails_for and path.name == self.fails_for:
            raise HostError("cannot read", cause="Input/output error", remedy="-", code="file-unreadable")
        return super().open_read(path, follows=follows)

    def list_dir(self, path: Path) -> list[str]:
        if self.fails_for == "folder":
            raise HostError("cannot read", cause="Input/output error", remedy="-", code="file-unreadable")
        return super().list_dir(path)


def test_a_disk_that_fails_for_a_moment(tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_catalog, "RETRY_S", -1)
    host = FailingDisk()
    host.fails_for = "a.tar"
    (tmp_path / "served").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "served/a.tar")
    said: list[str] = []
    store = mirror_catalog.Store(host, tmp_path / "served", said.append)
    assert look_again(store).repositories == {}
    host.fails_for = ""
    assert len(look_again(store).repositories) == 4, "nothing has changed in the folder, and yet it is tried again"
    host.fails_for = "folder"
    assert len(look_again(store).repositories) == 4 and "serving what was there before" in said[-1]


def test_a_bundle_that_is_exchanged_is_served_as_it_was_until_it_is_looked_at(tmp_path: Path, catalog: Catalog) -> None:
    """The places of its blobs are those of the file that was there."""
    store = mirror_catalog.Store(HOST, tmp_path / "a.tar", print)
    (tmp_path / "new").write_bytes(b"x" * (tmp_path / "a.tar").stat().st_size)
    (tmp_path / "new").rename(tmp_path / "a.tar")
    for digest, place in store.catalog.blobs.items():
        file = store.open_file(place.path)
        assert oci_layout.digest_of(os.pread(file.descriptor, place.size, place.offset)) == digest


def test_a_linked_bundle(tmp_path: Path, catalog: Catalog) -> None:
    """`latest.tar`, a link to the newest, by itself and in a folder."""
    (tmp_path / "served").mkdir()
    for link in (tmp_path / "latest.tar", tmp_path / "served/latest.tar"):
        link.symlink_to(tmp_path / "a.tar")
        assert bundle_verify.verify_bundle(HOST, oci_layout.open_layout(HOST, link)).problems == ()
    for path in (tmp_path / "latest.tar", tmp_path / "served"):
        store = mirror_catalog.Store(HOST, path, print)
        assert len(store.catalog.repositories) == 4
        for place in store.catalog.blobs.values():
            assert os.pread(store.open_file(place.path).descriptor, place.size, place.offset) == b"".join(
                oci_layout.read_place(HOST, place)
            )


def test_a_disk_that_fails_while_a_bundle_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").symlink_to("/proc/self/mem")  # its first page cannot be read: EIO
    with pytest.raises(HostError) as caught:
        oci_layout.open_layout(HOST, tmp_path / "a.tar")
    assert caught.value.code == "file-unreadable"


def test_listen() -> None:
    assert mirror_server.parse_listen(":5000") == ("0.0.0.0", 5000)
    assert mirror_server.parse_listen("[::1]:80") == ("::1", 80)
    for bad in ("", "5000x", "1.2.3.4", "a:0", "a:70000"):
        with pytest.raises(HostError):
            mirror_server.parse_listen(bad)


# ---- what cannot be served, and two versions


def test_one_bad_file_does_not_keep_the_others_from_being_served(tmp_path: Path, catalog: Catalog) -> None:
    """Half-copied, badly named, of wrong types, a pipe, a link: told and left out, at the start too."""
    folder = tmp_path / "served"
    folder.mkdir()
    (tmp_path / "a.tar").rename(folder / "a.tar")
    (folder / "half.tar").write_bytes((folder / "a.tar").read_bytes()[:-2000])
    os.mkfifo(folder / "pipe.tar")
    (folder / "nothing.tar").symlink_to("/nonexistent")
    odd = folder / "odd"
    write_layout(odd, {"registry.k8s.io/Foo Bar:1": {"amd64": [b"x"]}, "registry.k8s.io/good:1": {"amd64": [b"y"]}})
    types = folder / "types"
    write_layout(types, {"registry.k8s.io/types:1": {"amd64": [b"z"]}})
    index = json.loads((types / "index.json").read_text())
    index["manifests"][0]["size"] = "many"
    (types / "index.json").write_text(json.dumps(index))
    said: list[str] = []
    store = mirror_catalog.Store(HOST, folder, said.append)
    assert {"registry.k8s.io/pause", "registry.k8s.io/good"} <= set(store.catalog.repositories)
    for name in ("half.tar", "pipe.tar", "nothing.tar", "Foo Bar", "types"):
        assert any(name in text and "left out" in text for text in said), (name, said)


def bundle_of(tmp_path: Path, version: str, kb_version: str) -> Path:
    gathering = Gathering(HOST, tmp_path / f"parts-{version}", ("amd64",))
    for title, content, own in (
        ("kb.pyz", f"kb {kb_version}", kb_version),
        ("amd64/kubelet", f"kubelet {version}", version),
    ):
        path = tmp_path / f"{version}-{own}-{Path(title).name}"
        path.write_text(content)
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


class Pushed(registry_client.Registry):
    """A registry that refuses what names something that it does not have."""

    def __init__(self) -> None:
        super().__init__(HOST, "https://registry.example")
        self.manifests: list[str] = []
        self.blobs: list[str] = []

    def has_blob(self, repository: str, digest: str) -> bool:
        return digest in self.blobs

    def push_blob(self, local: LocalHost, repository: str, digest: str, size: int, content: Iterable[bytes]) -> None:
        assert digest not in self.blobs and oci_layout.digest_of(b"".join(content)) == digest
        self.blobs.append(digest)

    def push_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> None:
        document = json.loads(data)
        assert {child["digest"] for child in document.get("manifests", [])} <= set(self.manifests)
        assert {part["digest"] for part in document.get("layers", [])} <= set(self.blobs)
        assert media_type == document["mediaType"]
        self.manifests.append(reference)


def test_an_index_that_names_the_next_twice_is_pushed_once(tmp_path: Path) -> None:
    """40 levels of it are 2 to the power of 40 ways; the registry gets each document once, children first."""
    made = [write_manifest(tmp_path, "amd64", [bytes([number])]) for number in range(2)]
    for level in range(40):
        texts = [
            {"mediaType": oci_layout.OCI_INDEX, "manifests": made, "annotations": {"a": f"{level}-{n}"}} for n in (0, 1)
        ]
        made = [{"mediaType": oci_layout.OCI_INDEX, **write_blob(tmp_path, oci_layout.as_json(text))} for text in texts]
    write_layout(tmp_path, {})
    server, found = Pushed(), oci_layout.open_layout(HOST, tmp_path)
    mirror_sync._push_image(HOST, found, server, repository="x", reference="1", entry=made[0])
    assert len(server.manifests) == len(set(server.manifests)) == 2 + 2 * 39 + 1 and server.manifests[-1] == "1"


def test_an_index_of_one_child_is_pushed_as_that_child_however_deep(tmp_path: Path) -> None:
    leaf = made = write_manifest(tmp_path, "amd64", [b"x"])
    for _ in range(2000):
        text = {"mediaType": oci_layout.OCI_INDEX, "manifests": [made]}
        made = {"mediaType": oci_layout.OCI_INDEX, **write_blob(tmp_path, oci_layout.as_json(text))}
    write_layout(tmp_path, {})
    server, found = Pushed(), oci_layout.open_layout(HOST, tmp_path)
    mirror_sync._push_image(HOST, found, server, repository="x", reference="1", entry=made)
    assert server.manifests == ["1"] and len(server.blobs) == 2 and leaf["digest"] not in server.blobs


@pytest.mark.parametrize("n", ["\u00b2", "9" * 5000, "-1", "x"])
def test_a_page_of_no_size(catalog: Catalog, n: str) -> None:
    assert ask(catalog, "/v2/_catalog", n=n).status == 400
