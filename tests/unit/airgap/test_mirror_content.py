"""kubeup/airgap/mirror_content.py: bundles share blobs, and what goes takes along what nobody else names, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

from kubeup.airgap import bundle_signature, mirror_catalog, mirror_content, oci_layout
from kubeup.airgap.mirror_content import Content, Removal, plan_removal, read_content
from kubeup.errors import HostError
from kubeup.machine.local_host import LocalHost
from kubeup.secret import Secret
from tests.bundle_case import write_layout
from tests.mirror_bundles import ETCD, HOST, KUBE_34, KUBE_35, PAUSE, add_bundle

PROGRAM_34, PROGRAM_35 = b"kubelet of 1.34", b"kubelet of 1.35"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two versions with an image in common, and a delta of the second one."""
    folder = tmp_path / "mirror"
    add_bundle(
        folder, "kb-34.tar", version="v1.34.9", images={PAUSE: [b"p"], KUBE_34: [b"base", b"34"]}, program=PROGRAM_34
    )
    add_bundle(
        folder, "kb-35.tar", version="v1.35.6", images={PAUSE: [b"p"], KUBE_35: [b"base", b"35"]}, program=PROGRAM_35
    )
    return folder


def take_out(folder: Path, *, bundles: Sequence[str] = (), images: Sequence[str] = ()) -> Removal:
    content = read_content(HOST, folder)
    removal = plan_removal(content, bundles=bundles, images=images)
    mirror_content.carry_out(HOST, content, removal, tell=lambda text: None)
    return removal


def served(folder: Path) -> list[str]:
    """What the mirror serves whole: each image of which every blob is there and right."""
    layouts = mirror_catalog.find_layouts(HOST, folder)
    catalog = mirror_catalog.build_catalog(HOST, layouts)
    content = read_content(HOST, folder)
    for image in content.images:
        for digest in content.reach({"digest": image.digest, "size": 1}):
            place = catalog.blobs[digest]
            assert hashlib.sha256(b"".join(oci_layout.read_place(HOST, place))).hexdigest() == digest[7:]
    names = {f"{name}:{tag}" for name, tags in catalog.repositories.items() for tag in tags}
    assert {image.name for image in content.images} <= names
    return sorted(image.name for image in content.images)


def has(folder: Path, data: bytes) -> bool:
    layouts = mirror_catalog.find_layouts(HOST, folder)
    return any(oci_layout.digest_of(data) in one.blobs for one in layouts)


def test_what_is_there(folder: Path) -> None:
    content = read_content(HOST, folder)
    assert [(one.name, one.version, one.minor) for one in content.bundles] == [
        ("kb-34.tar", "v1.34.9", "v1.34"), ("kb-35.tar", "v1.35.6", "v1.35"),
    ]  # fmt: skip
    assert [(image.name, image.bundles) for image in content.images] == [
        (KUBE_34, ("kb-34.tar",)), (KUBE_35, ("kb-35.tar",)), (PAUSE, ("kb-34.tar", "kb-35.tar")),
    ]  # fmt: skip
    assert all(image.size > 0 for image in content.images)
    assert content.versions(content.bundles) == {"v1.34.9", "v1.35.6"}
    assert plan_removal(content).is_empty


@pytest.mark.parametrize("word", ["v1.34", "1.34", "v1.34.9", "kb-34.tar", "/var/lib/kb/mirror/kb-34.tar"])
def test_a_word_for_bundles(folder: Path, word: str) -> None:
    assert mirror_content.find_bundles(read_content(HOST, folder), word) == ["kb-34.tar"]


@pytest.mark.parametrize("word", ["registry.k8s.io/pause:3.10", "pause", "1", "v1.35.6.7", "v1.x"])
def test_a_word_that_may_be_an_image(folder: Path, word: str) -> None:
    assert mirror_content.find_bundles(read_content(HOST, folder), word) is None


def test_a_minor_goes_with_its_file_and_what_others_name_stays(folder: Path) -> None:
    size = (folder / "kb-34.tar").stat().st_size
    removal = take_out(folder, bundles=["kb-34.tar"])
    assert (removal.images, removal.bundles, removal.freed) == ((KUBE_34,), ("kb-34.tar",), size)
    assert not (folder / "kb-34.tar").exists() and served(folder) == [KUBE_35, PAUSE]
    assert has(folder, PROGRAM_35) and not has(folder, PROGRAM_34)


def test_an_image_goes_from_every_bundle_and_index_and_signature_stay(tmp_path: Path, folder: Path) -> None:
    add_bundle(
        folder, "signed.tar", version="v1.35.7", images={PAUSE: [b"p"], ETCD: [b"base", b"etcd"]}, key=_key(tmp_path)
    )
    before = oci_layout.open_layout(HOST, folder / "signed.tar")
    removal = take_out(folder, images=[PAUSE])
    assert removal.images == (PAUSE,) and removal.bundles == () and len(removal.rewritten) == 3
    assert served(folder) == sorted([KUBE_34, KUBE_35, ETCD]) and not has(folder, b"p") and has(folder, b"base")
    after = oci_layout.open_layout(HOST, folder / "signed.tar")
    assert (after.index_bytes, after.signature) == (before.index_bytes, before.signature)
    bundle_signature.check_signature(after, (tmp_path / "key.pub").read_text())
    assert after.path.stat().st_size < 20_000 and plan_removal(read_content(HOST, folder)).is_empty
    assert take_out(folder, images=[PAUSE]).is_empty, "once more changes nothing"


def _key(tmp_path: Path) -> Any:
    for words in (
        ("genpkey", "-algorithm", "ed25519", "-out", "key"),
        ("pkey", "-in", "key", "-pubout", "-out", "key.pub"),
    ):
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True)
    return Secret((tmp_path / "key").read_text())


def test_what_a_delta_needs_of_its_base_stays_without_a_name(folder: Path) -> None:
    base = oci_layout.open_layout(HOST, folder / "kb-34.tar")
    add_bundle(folder, "delta.tar", version="v1.34.10", images={ETCD: [b"base", b"new"]}, since=base)
    assert served(folder) == sorted([KUBE_34, KUBE_35, ETCD, PAUSE])
    (folder / "kb-35.tar").unlink()
    removal = take_out(folder, bundles=["kb-34.tar"])
    assert removal.images == (KUBE_34, PAUSE) and removal.bundles == ("kb-34.tar",)
    assert removal.forgotten == {folder / "kb-34.tar"}
    assert served(folder) == [ETCD] and not has(folder, b"34") and not has(folder, b"p")
    rest = oci_layout.open_layout(HOST, folder / "kb-34.tar")
    assert rest.names == {} and oci_layout.digest_of(b"base") in rest.blobs
    assert len(rest.blobs) == 2, "a layer, and the configuration that all of these images have"
    assert take_out(folder).is_empty, "the delta needs it"
    add_bundle(folder, "kb-35.tar", version="v1.35.6", images={KUBE_35: [b"35"]})
    take_out(folder, bundles=["delta.tar"])
    assert sorted(one.name for one in folder.iterdir()) == ["kb-35.tar"]


def test_two_names_of_one_image_go_together(folder: Path) -> None:
    same = "example.org/pause:same"
    add_bundle(folder, "more.tar", version="", images={same: [b"p"]})
    assert take_out(folder, images=[PAUSE]).images == (same, PAUSE)
    assert served(folder) == [KUBE_34, KUBE_35]


def test_a_folder_is_left_as_it_is(folder: Path) -> None:
    write_layout(folder / "by-hand", {ETCD: {"amd64": [b"base", b"e"]}})
    removal = take_out(folder, bundles=["kb-34.tar", "by-hand"], images=[ETCD])
    assert removal.images == (KUBE_34,) and removal.bundles == ("kb-34.tar",) and ETCD in served(folder)


def test_a_file_that_is_still_being_copied_keeps_everything(folder: Path) -> None:
    """What it needs of the others is not known yet."""
    data = (folder / "kb-34.tar").read_bytes()
    (folder / "next.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(HostError, match=r"next\.tar"):
        read_content(HOST, folder)


def test_a_disk_without_room_for_the_rest_keeps_everything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {one.name: one.read_bytes() for one in folder.iterdir()}
    monkeypatch.setattr(LocalHost, "free_bytes", lambda self, path: 100)
    with pytest.raises(HostError) as caught:
        take_out(folder, images=[PAUSE])
    assert caught.value.code == "disk-full" and "kb mirror list" in caught.value.remedy
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before
    take_out(folder, bundles=["kb-34.tar"])
    assert served(folder) == [KUBE_35, PAUSE], "a whole bundle needs no room"


# ---- killed


class Killed(BaseException):
    """As SIGKILL: nothing is tidied up."""


class Dying(LocalHost):
    """A machine on which kb is killed before its nth change; counts, and tidies nothing after that."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.dies_at, self.count, self.is_dead = at, 0, False

    def _step(self) -> None:
        self.count += 1
        if self.is_dead or self.count == self.dies_at:
            self.is_dead = True
            raise Killed

    def remove(self, path: Path) -> bool:
        self._step()
        return super().remove(path)

    def move_file(self, source: Path, path: Path) -> None:
        self._step()
        super().move_file(source, path)

    def write_stream(self, path: Path, chunks: Any, *, mode: int = 0o644) -> None:
        self._step()
        data = b"".join(chunks)
        if self.count + 1 == self.dies_at:
            data = data[: len(data) // 2]
        super().write_stream(path, (data,), mode=mode)


WAYS: Mapping[str, Callable[[], dict[str, Sequence[str]]]] = {
    "a bundle": lambda: {"bundles": ["kb-34.tar"]},
    "an image": lambda: {"images": [PAUSE]},
    "both": lambda: {"bundles": ["kb-34.tar"], "images": [PAUSE]},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", range(1, 9))
def test_killed_before_any_change_all_that_stays_is_served_and_gc_ends_it(folder: Path, way: str, at: int) -> None:
    base = oci_layout.open_layout(HOST, folder / "kb-34.tar")
    add_bundle(folder, "delta.tar", version="v1.34.10", images={ETCD: [b"base", b"new"]}, since=base)
    chosen = WAYS[way]()
    content = read_content(HOST, folder)
    removal = plan_removal(content, **chosen)
    stays = {image.name for image in content.images} - set(removal.images)
    try:
        mirror_content.carry_out(Dying(at), content, removal, tell=lambda text: None)
    except Killed:
        assert stays <= set(served(folder))
    take_out(folder, **chosen)
    take_out(folder)
    mirror_content.remove_leftovers(HOST, folder)
    assert set(served(folder)) == stays
    assert [one.name for one in folder.iterdir() if one.name.startswith(".")] == []
    assert plan_removal(read_content(HOST, folder)).is_empty


def test_a_mirror_that_serves_goes_on_with_what_it_has(folder: Path) -> None:
    store = mirror_catalog.Store(HOST, folder, log=lambda text: None)
    place = store.catalog.blobs[oci_layout.digest_of(b"base")]
    serving = store.serving
    take_out(folder, bundles=["kb-34.tar"], images=[PAUSE])
    file = serving.open_file(place.path)
    assert os.pread(file.descriptor, place.size, place.offset) == b"base"
    store.look_again()
    assert json.dumps(sorted(store.catalog.repositories)) == '["kb/files", "registry.k8s.io/kube-apiserver"]'
    place = store.catalog.blobs[oci_layout.digest_of(b"base")]
    assert os.pread(store.serving.open_file(place.path).descriptor, place.size, place.offset) == b"base"


def test_leftovers_are_those_of_kb_alone(folder: Path) -> None:
    for name in (".kb-36.tar.new", ".lock", ".foreign"):
        (folder / name).write_bytes(b"1234")
    assert mirror_content.find_leftovers(HOST, folder) == {folder / ".kb-36.tar.new": 4}
    assert mirror_content.remove_leftovers(HOST, folder) == 4
    assert sorted(one.name for one in folder.iterdir()) == [".foreign", ".lock", "kb-34.tar", "kb-35.tar"]


def test_an_empty_content_has_nothing() -> None:
    assert Content(HOST, ()).images == ()
