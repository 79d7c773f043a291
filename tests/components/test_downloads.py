"""Official releases, from a server that has them under their official paths."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kubeup.airgap import bundle, bundle_needs, bundle_sources, downloads, programs
from kubeup.config import presets
from kubeup.errors import HostError
from kubeup.machine.local_host import LocalHost
from tests.bundle_case import elf

pytestmark = pytest.mark.component

V = "v1.35.6"


class HastyHost(LocalHost):
    """A machine on which waiting takes no time."""

    def sleep(self, seconds: float) -> None:
        pass


HOST = HastyHost()


def pack(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def publish(root: Path, component: str, data: bytes, *, told: str = "") -> Path:
    """The file and its checksum at the places that configs/downloads.yaml names."""
    plan = downloads.plan_download(component, kubernetes_version=V, arch="amd64", versions={})
    place = root / plan.url.partition("://")[2]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    total = told or hashlib.sha256(data).hexdigest()
    text = total if component in ("kubelet", "kubectl") else f"{total}  {plan.file_name}\n{'0' * 64}  another\n"
    (root / plan.sha256_url.partition("://")[2]).write_text(text)
    return place


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[Path, presets.Preset]]:
    """Every component of a node, behind a preset that leads to this machine."""
    root = tmp_path / "www"
    for name in ("kubelet", "kubectl", "runc"):
        publish(root, name, elf("amd64", mark=name))
    publish(root, "crictl", pack({"crictl": elf("amd64", mark="crictl")}))
    names = ("containerd", "containerd-shim-runc-v2", "ctr", "containerd-stress")
    publish(root, "containerd", pack({f"bin/{name}": elf("amd64", mark=name) for name in names}))
    plugins = ("bridge", "host-local", "loopback", "portmap", "LICENSE")
    publish(root, "cni", pack({f"./{name}": elf("amd64", mark=name) for name in plugins}))
    handler = functools.partial(Quiet, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    yield root, presets.Preset("here", downloads={host: f"{base}/{host}" for host in ("dl.k8s.io", "github.com")})
    server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def gather(tmp_path: Path, preset: presets.Preset) -> bundle_sources.Gathering:
    gathering = bundle_sources.Gathering(HOST, tmp_path / "parts", ("amd64",))
    gathering.add_files(
        bundle_needs.plan_files(("amd64",)), (bundle_sources.DownloadSource(preset),), kubernetes_version=V
    )
    return gathering


def test_every_program_comes_from_its_official_place(tmp_path: Path, published: tuple[Path, presets.Preset]) -> None:
    gathering = gather(tmp_path, published[1])
    assert gathering.missing == []
    assert set(gathering.files) == {f"amd64/{item.name}" for item in downloads.NODE_FILES}
    assert gathering.files["amd64/containerd"]["annotations"][bundle.VERSION] == "2.1.4"
    offered = programs.offer_downloads(
        HOST, ["runc", "ctr"], cluster_version=V, arch="amd64", preset=published[1], spool=tmp_path / "s", tell=print
    )
    assert b"".join(offered["ctr"].open()) == elf("amd64", mark="ctr")


def test_a_second_run_fetches_only_checksums(tmp_path: Path, published: tuple[Path, presets.Preset]) -> None:
    gather(tmp_path, published[1])
    for path in published[0].rglob("*"):
        if path.is_file() and "sha256" not in path.name:
            path.unlink()
    assert gather(tmp_path, published[1]).missing == []


def test_another_sum_is_refused(tmp_path: Path, published: tuple[Path, presets.Preset]) -> None:
    publish(published[0], "runc", elf("amd64", mark="tampered"), told="a" * 64)
    with pytest.raises(HostError) as caught:
        gather(tmp_path, published[1])
    assert caught.value.code == "download-damaged" and "runc" in caught.value.what


@pytest.mark.parametrize("kind", ["a page", "nothing", "half"])
def test_an_archive_that_is_none_is_named(tmp_path: Path, published: tuple[Path, presets.Preset], kind: str) -> None:
    """Its published sum fits: somebody published it so."""
    whole = pack({"crictl": os.urandom(100_000)})
    data = {"a page": b"<html>login</html>", "nothing": b"", "half": whole[:50_000]}[kind]
    publish(published[0], "crictl", data)
    with pytest.raises(HostError) as caught:
        gather(tmp_path, published[1])
    assert caught.value.code == "download-damaged" and "crictl" in caught.value.what


def test_without_a_sum_nothing_is_taken(tmp_path: Path, published: tuple[Path, presets.Preset]) -> None:
    place = publish(published[0], "kubelet", elf("amd64"))
    place.with_name("kubelet.sha256").write_text("<html>sign in</html>")
    with pytest.raises(HostError) as caught:
        gather(tmp_path, published[1])
    assert caught.value.code == "checksum-missing"


def test_a_program_for_another_machine_is_refused(tmp_path: Path, published: tuple[Path, presets.Preset]) -> None:
    publish(published[0], "kubelet", elf("arm64"))
    with pytest.raises(HostError) as caught:
        gather(tmp_path, published[1])
    assert caught.value.code == "wrong-architecture"


def test_what_is_not_published_is_listed(tmp_path: Path, published: tuple[Path, presets.Preset]) -> None:
    publish(published[0], "runc", b"x").unlink()
    ((need, why),) = gather(tmp_path, published[1]).missing
    assert need.name == "amd64/runc" and "404" in why
    with pytest.raises(HostError) as caught:
        programs.offer_downloads(
            HOST, ["runc"], cluster_version=V, arch="amd64", preset=published[1], spool=tmp_path / "s", tell=print
        )
    assert caught.value.code == "packages-not-found"
