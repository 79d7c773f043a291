"""kubeup.node.image_program against a real containerd: the files of an image are seen, and no mount, snapshot or lease stays."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeup.machine.dry_run import DryRunHost
from kubeup.node import crictl
from kubeup.node.image_program import MountedImage, is_in_image, mount_image, run_program
from tests.components.test_runtime import FAIL, HOST, PAUSE, Daemon, need, start_containerd, stop, write_layout

pytestmark = pytest.mark.component

LOOKER = DryRunHost(HOST)
"""Mounting an image is a look: a dry run does it as well."""


@pytest.fixture(scope="module")
def containerd() -> Iterator[Daemon]:
    """It has registry.test/fail:1 (writes a line, and exits with 3) and registry.test/pause:1 (waits)."""
    need("containerd", "ctr")
    folder = Path(tempfile.mkdtemp(prefix="kb-containerd-"))
    daemon = start_containerd(folder)
    try:
        for name, program in (("fail", FAIL), ("pause", PAUSE)):
            write_layout(folder / name, program)
            with tarfile.open(folder / f"{name}.tar", "w") as tar:
                tar.add(folder / name, arcname=".")
            words = ("images", "import", "--base-name", f"registry.test/{name}", str(folder / f"{name}.tar"))
            done = HOST.run(crictl.ctr_argv(daemon.socket, *words))
            if not done.ok:
                pytest.skip(f"containerd unpacks no image here: {done.stderr[-300:]}")
        yield daemon
    finally:
        stop(daemon.process)
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(containerd: Daemon) -> str:
    """What mentions a mounted image: in containerd, among the mounts, and in /run."""
    asked = [
        HOST.run(crictl.ctr_argv(containerd.socket, *words)).stdout for words in (("leases", "ls"), ("snapshots", "ls"))
    ]
    rows = [*"\n".join(asked).splitlines(), *Path("/proc/mounts").read_text().splitlines(), *map(str, Path("/run").iterdir())]  # fmt: skip
    return "\n".join(row for row in rows if "kb-image" in row)


def need_mount(mounted: MountedImage) -> None:
    if mounted.why_not:
        pytest.skip(f"no image can be mounted here: {mounted.why_not}")


def test_the_files_are_seen_and_nothing_stays(containerd: Daemon) -> None:
    before = leftovers(containerd)
    with mount_image(LOOKER, containerd.socket, image="registry.test/fail:1") as mounted:
        need_mount(mounted)
        assert is_in_image(LOOKER, mounted, "/main")
        assert not is_in_image(LOOKER, mounted, "/other")
        assert str(mounted.root) in leftovers(containerd)
    assert leftovers(containerd) == before
    assert LOOKER.plan == []


def test_an_image_that_is_not_there(containerd: Daemon) -> None:
    before = leftovers(containerd)
    with mount_image(LOOKER, containerd.socket, image="registry.test/none:1") as mounted:
        assert "not found" in mounted.why_not
    assert leftovers(containerd) == before


def test_what_a_killed_kb_left_goes_with_the_next_mount(containerd: Daemon) -> None:
    before = leftovers(containerd)
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = Path(tempfile.mkdtemp(prefix=f"kb-image.{gone.pid}.", dir="/run"))
    done = HOST.run(crictl.ctr_argv(containerd.socket, "images", "mount", "--rw", "registry.test/fail:1", str(left)))
    if not done.ok:
        left.rmdir()
        pytest.skip(f"no image can be mounted here: {done.stderr}")
    with mount_image(LOOKER, containerd.socket, image="registry.test/fail:1"):
        assert not left.exists()
    assert leftovers(containerd) == before


def test_a_program_of_an_image(containerd: Daemon) -> None:
    with mount_image(LOOKER, containerd.socket, image="registry.test/fail:1") as mounted:
        need_mount(mounted)
        done = run_program(LOOKER, mounted, argv=["/main"])
    if not Path("/run/systemd/system").is_dir():
        assert done.why_not == "systemd does not run this machine"
        pytest.skip(done.why_not)
    assert (done.code, done.stderr, done.why_not) == (3, "Error: boom\n", "")


def test_a_program_that_does_not_end(containerd: Daemon) -> None:
    if not Path("/run/systemd/system").is_dir():
        pytest.skip("systemd does not run this machine")
    with mount_image(LOOKER, containerd.socket, image="registry.test/pause:1") as mounted:
        need_mount(mounted)
        assert run_program(LOOKER, mounted, argv=["/main"], timeout_s=1).why_not == "/main does not end within 1 s"
