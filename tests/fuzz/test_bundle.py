"""Bundles of any JSON types and any bytes: every reader takes them or says what is wrong, in bounded time."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from kubeup.airgap import bundle, bundle_signature, bundle_verify, bundle_write, mirror_catalog, oci_layout, programs
from kubeup.airgap.bundle_needs import Need
from kubeup.airgap.bundle_sources import Gathering, LayoutSource
from kubeup.errors import KbError
from kubeup.machine.local_host import LocalHost
from tests.bundle_case import write_layout
from tests.fuzz import alter_bytes, alter_value, cases

HOST = LocalHost()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_layout(folder / "source", {"registry.k8s.io/web:1": {"amd64": [b"w"], "arm64": [b"x"]}})
    gathering = Gathering(HOST, folder / "parts", ("amd64",))
    gathering.add_image(
        Need("registry.k8s.io/web:1", "a test"), (LayoutSource(oci_layout.open_layout(HOST, folder / "source")),)
    )
    (folder / "kubelet").write_bytes(b"\x7fELF")
    gathering.add_file("amd64/kubelet", folder / "kubelet", version="v1.35.6")
    bundle_write.write_bundle(gathering, folder / "a.tar", kubernetes_version="v1.35.6")
    return folder


def read_in_every_way(path: Path) -> None:
    with contextlib.suppress(KbError):
        found = oci_layout.open_layout(HOST, path)
        for look in (
            lambda: bundle_verify.verify_bundle(HOST, found),
            lambda: bundle.list_files(HOST, found),
            lambda: bundle_verify.diff_bundles(HOST, found, other=found),
            lambda: programs.offer_bundle(HOST, found, arch="amd64"),
            lambda: programs.architectures_in(HOST, found),
            lambda: mirror_catalog.build_catalog(HOST, [found]),
            lambda: bundle.choose_files([bundle.read_files(HOST, found)]),
            lambda: bundle_signature.check_signature(found, ""),
        ):
            with contextlib.suppress(KbError):
                look()
    mirror_catalog.build_catalog(HOST, [], leave_out=lambda what, why: None)


def unpack(made: Path, target: Path) -> dict[str, bytes]:
    found = oci_layout.open_layout(HOST, made / "a.tar")
    documents = {"oci-layout": oci_layout.LAYOUT_FILE, "index.json": found.index_bytes}
    for digest, place in found.blobs.items():
        documents[f"blobs/sha256/{digest[7:]}"] = b"".join(oci_layout.read_place(HOST, place))
    for name, data in documents.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    return documents


def test_documents_of_any_types(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "layout"
    documents = unpack(made, folder)
    index = json.loads(documents["index.json"])
    manifests = {name: data for name, data in documents.items() if data[:1] == b"{" and name.startswith("blobs")}
    for chance in cases("bundle documents", 300):
        changed: Any = alter_value(chance, index)
        if chance.random() < 0.6:
            name = chance.choice(sorted(manifests))
            data = json.dumps(alter_value(chance, json.loads(manifests[name]))).encode(errors="surrogatepass")
            digest = hashlib.sha256(data).hexdigest()
            (folder / "blobs/sha256" / digest).write_bytes(data)
            changed = json.loads(json.dumps(index).replace(name.rpartition("/")[2], digest))
            for entry in changed["manifests"]:
                entry["size"] = len(data) if entry["digest"].endswith(digest) else entry["size"]
        (folder / "index.json").write_text(json.dumps(changed))
        read_in_every_way(folder)


def test_tars_of_any_bytes(made: Path, tmp_path: Path) -> None:
    whole = (made / "a.tar").read_bytes()
    for chance in cases("bundle bytes", 200):
        (tmp_path / "b.tar").write_bytes(alter_bytes(chance, whole))
        read_in_every_way(tmp_path / "b.tar")


@pytest.mark.parametrize(("levels", "times"), [(40, 2), (2000, 1)])
def test_an_index_that_names_another_twice(tmp_path: Path, levels: int, times: int) -> None:
    """Each manifest is read once, whichever way leads to it, and however deep it lies."""
    blobs = tmp_path / "blobs/sha256"
    blobs.mkdir(parents=True)
    data = oci_layout.as_json({"schemaVersion": 2, "mediaType": oci_layout.OCI_MANIFEST})
    for _ in range(levels):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        child = {"mediaType": oci_layout.OCI_INDEX, "digest": f"sha256:{digest}", "size": len(data)}
        data = oci_layout.as_json({"schemaVersion": 2, "mediaType": oci_layout.OCI_INDEX, "manifests": [child] * times})
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    top = {
        "mediaType": oci_layout.OCI_INDEX,
        "digest": f"sha256:{digest}",
        "size": len(data),
        "annotations": {oci_layout.NAME: "registry.k8s.io/x:1"},
    }
    (tmp_path / "index.json").write_bytes(oci_layout.as_json({"schemaVersion": 2, "manifests": [top]}))
    (tmp_path / "oci-layout").write_bytes(oci_layout.LAYOUT_FILE)
    found = oci_layout.open_layout(HOST, tmp_path)
    assert bundle_verify.verify_bundle(HOST, found).problems == ()
    assert "registry.k8s.io/x" in mirror_catalog.build_catalog(HOST, [found]).repositories


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"manifests": 5}', '{"manifests": [5]}', '{"manifests": [{"digest": 1}]}', "NaN", ""]
)
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "oci-layout").write_bytes(oci_layout.LAYOUT_FILE)
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(KbError) as caught:
        oci_layout.open_layout(HOST, tmp_path)
    assert caught.value.code == "bundle-unreadable"


STRAYS = {
    "an absolute name": "/etc/cron.d/evil",
    "a way up": "../../root/.ssh/authorized_keys",
    "another file": "install.sh",
    "a blob that nothing names": "blobs/sha256/" + hashlib.sha256(b"evil").hexdigest(),
}


@pytest.mark.parametrize("name", STRAYS)
def test_what_no_layout_has_is_named(made: Path, tmp_path: Path, name: str) -> None:
    whole = (made / "a.tar").read_bytes()
    end = whole.rstrip(b"\0")
    body = whole[: (len(end) + 511) // 512 * 512]
    stray = oci_layout._header(STRAYS[name], 4) + b"evil" + oci_layout._padding(4)
    (tmp_path / "b.tar").write_bytes(body + stray + bytes(1024))
    problems = bundle_verify.verify_bundle(HOST, oci_layout.open_layout(HOST, tmp_path / "b.tar")).problems
    assert problems and (STRAYS[name].rpartition("/")[2] in " ".join(problems))


def test_a_second_index_is_refused(made: Path, tmp_path: Path) -> None:
    whole = (made / "a.tar").read_bytes()
    body = whole[: (len(whole.rstrip(b"\0")) + 511) // 512 * 512]
    (tmp_path / "b.tar").write_bytes(
        body + oci_layout._header("index.json", 2) + b"{}" + oci_layout._padding(2) + bytes(1024)
    )
    with pytest.raises(KbError, match="twice"):
        oci_layout.open_layout(HOST, tmp_path / "b.tar")
