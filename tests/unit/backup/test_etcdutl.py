"""kubeup/backup/etcdutl.py: out of etcd's image, or from PATH."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.backup import etcdutl
from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.node.image_program import MountedImage
from tests.fake_host import FakeHost

IMAGE = MountedImage("registry.k8s.io/etcd:3.6.6-0", Path("/run/kb-image.1.x"))
SNAPSHOT, DATA = Path("/s/snapshot.db"), Path("/s/etcd")
BUMP = ("--bump-revision=1000000000", "--mark-compacted")


def make_host(
    *, in_image: bool = False, in_path: bool = False, fails: str = ""
) -> tuple[FakeHost, list[tuple[str, ...]]]:
    host = FakeHost(dirs={"/run/systemd/system"}, programs={"systemd-run", *(["etcdutl"] if in_path else [])})
    if in_image:
        host.files["/run/kb-image.1.x/usr/local/bin/etcdutl"] = b""
    calls: list[tuple[str, ...]] = []

    def answer(argv: tuple[str, ...]) -> CommandResult:
        calls.append(argv)
        return CommandResult(argv, 1 if fails else 0, stderr=fails)

    host.answers.update({"systemd-run": answer, "etcdutl": answer})
    return host, calls


def restore(host: FakeHost, image: MountedImage = IMAGE) -> None:
    etcdutl.restore_snapshot(host, image, snapshot=SNAPSHOT, data_dir=DATA, words=BUMP)


def test_out_of_the_image_it_sees_the_snapshot_and_the_folder_alone() -> None:
    host, calls = make_host(in_image=True, in_path=True)
    restore(host)
    (argv,) = calls
    words = argv[argv.index("--") + 1 :]
    assert words == (
        "/usr/local/bin/etcdutl", "snapshot", "restore", "/kb-snapshot.db", "--data-dir=/kb-restored/etcd", *BUMP
    )  # fmt: skip
    assert {"BindReadOnlyPaths=/s/snapshot.db:/kb-snapshot.db", "BindPaths=/s:/kb-restored"} <= set(argv)
    assert "ReadWritePaths=/kb-restored" in argv and "PrivateNetwork=yes" in argv and "User=65534" not in argv


@pytest.mark.parametrize("image", [IMAGE, MountedImage("x", why_not="this runtime is CRI-O")])
def test_from_path_where_the_image_has_none(image: MountedImage) -> None:
    host, calls = make_host(in_path=True)
    restore(host, image)
    assert calls == [("etcdutl", "snapshot", "restore", "/s/snapshot.db", "--data-dir=/s/etcd", *BUMP)]


def test_nowhere() -> None:
    host, calls = make_host()
    with pytest.raises(HostError) as caught:
        restore(host)
    assert caught.value.code == "no-etcdutl" and calls == []
    assert "registry.k8s.io/etcd:3.6.6-0 does not have it" in caught.value.cause


def test_what_it_says_of_a_snapshot_that_it_refuses() -> None:
    host, _ = make_host(in_path=True, fails="Error: expected sha256 [1 2], got [3 4]")
    with pytest.raises(HostError) as caught:
        restore(host)
    assert caught.value.code == "snapshot-not-restored" and "expected sha256" in caught.value.cause
