"""kubeup/airgap/mirror_catalog.py: bundles that come, go, are damaged or linked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from kubeup.airgap import (
    bundle_verify,
    mirror_catalog,
    oci_layout,
)
from kubeup.airgap.mirror_catalog import Catalog
from kubeup.errors import HostError
from kubeup.machine.local_host import LocalHost
from tests.bundle_case import write_layout
from tests.unit.airgap.mirror_case import HOST


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
    store = mirror_catalog.Store(HOST, tmp_path / "served", log=said.append)
    (tmp_path / "served/b.tar").write_bytes(b"half a file")
    assert len(look_again(store).repositories) == 4 and "b.tar is left out" in said[0]
    (tmp_path / "served/b.tar").unlink()
    assert len(look_again(store).repositories) == 4 and "has changed: 3 images" in said[-1]


def test_a_file_that_is_being_copied_is_told_once(tmp_path: Path, catalog: Catalog) -> None:
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "served").mkdir()
    said: list[str] = []
    (tmp_path / "served/a.tar").write_bytes(data[:600])
    store = mirror_catalog.Store(HOST, tmp_path / "served", log=said.append)
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
    store = mirror_catalog.Store(host, tmp_path / "served", log=said.append)
    assert look_again(store).repositories == {}
    host.fails_for = ""
    assert len(look_again(store).repositories) == 4, "nothing has changed in the folder, and yet it is tried again"
    host.fails_for = "folder"
    assert len(look_again(store).repositories) == 4 and "serving the previous content" in said[-1]


def test_a_bundle_that_is_exchanged_is_served_as_it_was_until_it_is_looked_at(tmp_path: Path, catalog: Catalog) -> None:
    """The places of its blobs are those of the file that was there."""
    store = mirror_catalog.Store(HOST, tmp_path / "a.tar", log=print)
    (tmp_path / "new").write_bytes(b"x" * (tmp_path / "a.tar").stat().st_size)
    (tmp_path / "new").rename(tmp_path / "a.tar")
    for digest, place in store.catalog.blobs.items():
        file = store.serving.open_file(place.path)
        assert oci_layout.digest_of(os.pread(file.descriptor, place.size, place.offset)) == digest


def test_a_linked_bundle(tmp_path: Path, catalog: Catalog) -> None:
    """`latest.tar`, a link to the newest, by itself and in a folder."""
    (tmp_path / "served").mkdir()
    for link in (tmp_path / "latest.tar", tmp_path / "served/latest.tar"):
        link.symlink_to(tmp_path / "a.tar")
        assert bundle_verify.verify_bundle(HOST, oci_layout.open_layout(HOST, link)).problems == ()
    for path in (tmp_path / "latest.tar", tmp_path / "served"):
        store = mirror_catalog.Store(HOST, path, log=print)
        assert len(store.catalog.repositories) == 4
        for place in store.catalog.blobs.values():
            assert os.pread(store.serving.open_file(place.path).descriptor, place.size, place.offset) == b"".join(
                oci_layout.read_place(HOST, place)
            )


def test_a_disk_that_fails_while_a_bundle_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").symlink_to("/proc/self/mem")  # its first page cannot be read: EIO
    with pytest.raises(HostError) as caught:
        oci_layout.open_layout(HOST, tmp_path / "a.tar")
    assert caught.value.code == "file-unreadable"


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
    store = mirror_catalog.Store(HOST, folder, log=said.append)
    assert {"registry.k8s.io/pause", "registry.k8s.io/good"} <= set(store.catalog.repositories)
    for name in ("half.tar", "pipe.tar", "nothing.tar", "Foo Bar", "types"):
        assert any(name in text and "left out" in text for text in said), (name, said)
