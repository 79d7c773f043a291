"""What is verified is what is used: a bundle that is exchanged behind kb's back is never served, placed or copied for good."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from kubeup.airgap import bundle_needs, bundle_signature, bundle_write, oci_layout
from kubeup.airgap.bundle_needs import Need
from kubeup.airgap.bundle_sources import Gathering, LayoutSource
from kubeup.config.types import KbConfiguration
from kubeup.engine.run import Run
from kubeup.errors import HostError
from kubeup.machine.host import Argv, CommandResult
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths
from kubeup.phases import install_programs, local_bundle, serve_mirror
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.secret import Secret
from tests.bundle_case import write_layout
from tests.fake_node import make_config
from tests.plans import do, is_done

pytestmark = pytest.mark.component
GIVEN = Path("/usb/kb.tar")


class Exchanging(LocalHost):
    """A machine on which somebody exchanges a file right after it was opened for the nth time."""

    def __init__(self, root: Path, nth: int) -> None:
        super().__init__(root)
        self.left = nth
        self.exchange: Callable[[], object] = int

    def query(self, argv: Argv, **_: Any) -> CommandResult:
        """Below a root nothing is asked; here the machine's kind is."""
        return CommandResult(tuple(map(str, argv)), 0, "x86_64\n" if "uname" in argv else "")

    def open_read(self, path: Path, *, follows: bool = True) -> BinaryIO:
        found = super().open_read(path, follows=follows)
        if path == GIVEN:
            self.left -= 1
            if self.left == 0:
                self.exchange()
        return found


def make_keys(folder: Path) -> tuple[Secret, str]:
    run = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(folder / "key")]
    subprocess.run(run, check=True, capture_output=True)
    public = ["openssl", "pkey", "-in", str(folder / "key"), "-pubout"]
    told = subprocess.run(public, check=True, capture_output=True, text=True).stdout
    return Secret((folder / "key").read_text()), told


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """good.tar, signed; evil.tar with the good one's signature; the public key."""
    folder = tmp_path_factory.mktemp("bundles")
    key, public = make_keys(folder)
    (folder / "key.pub").write_text(public)
    host, config = LocalHost(), make_config()
    needs = bundle_needs.plan_images(config, RELEASES[35], network=[], more=())
    for name in ("good", "evil"):
        write_layout(
            folder / f"layout-{name}", {need.name: {"amd64": [f"{name} {need.name}".encode()]} for need in needs}
        )
        gathering = Gathering(host, folder / f"parts-{name}", ("amd64",))
        source = LayoutSource(oci_layout.open_layout(host, folder / f"layout-{name}"))
        for need in needs:
            gathering.add_image(Need(need.name, "a test"), (source,))
        (folder / f"kubelet-{name}").write_bytes(b"\x7fELF" + name.encode())
        gathering.add_file("amd64/kubelet", folder / f"kubelet-{name}", version="v1.35.6")
        bundle_write.write_bundle(
            gathering, folder / f"{name}.tar", kubernetes_version="v1.35.6", key=key if name == "good" else None
        )
    return folder


def context(tmp_path: Path, made: Path, nth: int) -> tuple[Run, Exchanging]:
    host = Exchanging(tmp_path / "node", nth)
    place = tmp_path / "node/usb/kb.tar"
    place.parent.mkdir(parents=True)
    shutil.copy(made / "good.tar", place)
    shutil.copy(made / "key.pub", tmp_path / "node/key.pub")

    def exchange() -> None:
        shutil.copy(made / "evil.tar", place.with_name("new"))
        place.with_name("new").rename(place)

    host.exchange = exchange
    wishes = KbConfiguration(bundle=str(GIVEN), verify_key="/key.pub")
    config = replace(make_config(), kb=wishes)
    return Run(host=host, paths=Paths(), config=config, release=RELEASES[35], report=Report(io.StringIO())), host


@pytest.mark.parametrize("nth", range(1, 8))
def test_an_exchanged_bundle_is_never_laid_down(tmp_path: Path, made: Path, nth: int) -> None:
    ctx, host = context(tmp_path, made, nth)
    copy = local_bundle.MIRROR_FOLDER / "kb.tar"
    try:
        local_bundle.lay_down_bundle(ctx)
    except HostError as error:
        assert error.code in ("signature-missing", "signature-wrong", "bundle-not-fit"), error
        assert not host.exists(copy)
    else:
        bundle_signature.check_signature(oci_layout.open_layout(host, copy), (made / "key.pub").read_text())
        assert host.read_bytes(copy) == (made / "good.tar").read_bytes()
    assert [name for name in host.list_dir(local_bundle.MIRROR_FOLDER) if name.startswith(".")] == []


def test_a_copy_that_lies_there_counts_by_its_index_and_signature(tmp_path: Path, made: Path) -> None:
    """Not by its size alone; and every phase that takes from it asks for the signature, also when it runs alone."""
    ctx, _ = context(tmp_path, made, 99)
    local_bundle.lay_down_bundle(ctx)
    assert local_bundle.bundle_is_laid_down(ctx)
    copy = tmp_path / "node/var/lib/kb/mirror/kb.tar"
    shutil.copy(made / "evil.tar", copy)
    assert not local_bundle.bundle_is_laid_down(ctx)
    with pytest.raises(HostError) as caught:
        local_bundle.open_signed(ctx, local_bundle.MIRROR_FOLDER / "kb.tar")
    assert caught.value.code == "signature-missing"
    shutil.copy(made / "evil.tar", tmp_path / "node/usb/kb.tar")
    with pytest.raises(HostError) as told:
        install_programs.offer_programs(ctx, "bundle", names=["kubelet"], arch="amd64")
    assert told.value.code == "signature-missing", "the phase of the programs asks for itself"
    with pytest.raises(HostError) as served:
        do(serve_mirror.plan_mirror, ctx)
    assert served.value.code == "signature-missing", "and that of the mirror, which would hand it to all nodes"
    assert not is_done(serve_mirror.plan_mirror, ctx) and not (tmp_path / "node/etc").exists()


def test_a_further_bundle_for_the_mirror(tmp_path: Path, made: Path) -> None:
    _, host = context(tmp_path, made, 2)
    public = (made / "key.pub").read_text()
    with pytest.raises(HostError):
        local_bundle.add_bundle(host, GIVEN, key_pem=public, tell=lambda text: None)
    assert host.list_dir(local_bundle.MIRROR_FOLDER) == []
    shutil.copy(made / "good.tar", tmp_path / "node/usb/kb.tar")
    host.left = 99
    found = local_bundle.add_bundle(host, GIVEN, key_pem=public, tell=lambda text: None)
    bundle_signature.check_signature(found, public)
