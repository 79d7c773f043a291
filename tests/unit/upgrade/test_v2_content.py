"""kubeup/upgrade/v2_content.py: an etcd 3.6 does not start on keys of etcd 2, and etcd's own tool says so before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeup.machine.host import CommandResult
from kubeup.node import image_program
from kubeup.upgrade import v2_content
from tests.fake_host import FakeHost

DATA, SOCKET = Path("/var/lib/etcd"), "unix:///x.sock"
ANSWERS = {
    "clean": (0, "No custom content found in v2store.\n", ""),
    "keys": (1, "", "Error: detected custom content in v2store\n"),
    "unknown": (1, "", 'Error: unknown command "check" for "etcdutl"\n'),
}
"""What etcdutl 3.5.26 says, beside a member that runs and beside one that does not; and 3.6.6, which has no such word."""


CALLS: list[tuple[str, ...]] = []


@pytest.fixture(autouse=True)
def mounts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    CALLS.clear()

    @contextlib.contextmanager
    def mount(host: Any, socket: str, *, image: str) -> Iterator[image_program.MountedImage]:
        made.append(image)
        yield image_program.MountedImage(image, Path("/run/kb-image.1.x"))

    monkeypatch.setattr(image_program, "mount_image", mount)
    return made


def etcd(tag: str, *flags: str) -> dict[str, Any]:
    container = {"name": "etcd", "image": f"registry.k8s.io/etcd:{tag}", "command": ["etcd", *flags]}
    return {"metadata": {"name": "etcd"}, "spec": {"containers": [{"name": "sidecar", "image": "x:1"}, container]}}


def make_host(says: str, *, in_image: bool = True) -> FakeHost:
    host = FakeHost(dirs={"/run/systemd/system"}, programs={"systemd-run"})
    if in_image:
        host.files["/run/kb-image.1.x/usr/local/bin/etcdutl"] = b""
    code, out, err = ANSWERS[says]

    def answer(argv: tuple[str, ...]) -> CommandResult:
        CALLS.append(argv)
        return CommandResult(argv, code, stdout=out, stderr=err)

    host.answers["systemd-run"] = answer
    return host


def ask(host: FakeHost, now: str = "3.5.32-0", then: str = "3.6.5-0", *flags: str) -> str:
    error = v2_content.find(host, SOCKET, now=etcd(now, *flags), wanted=etcd(then), data_dir=DATA)
    return f"{error.what}: {error.cause}" if error is not None else ""


def test_keys_of_etcd_2_are_named_before_anything_stops(mounts: list[str]) -> None:
    host = make_host("keys")
    assert (
        ask(host)
        == "etcd's data hold keys of etcd 2: an etcd 3.6 does not start on them: detected custom content in v2store"
    )
    assert mounts == ["registry.k8s.io/etcd:3.5.32-0"]
    (argv,) = CALLS
    assert argv[argv.index("--") + 2 :] == ("check", "v2store", "--data-dir=/kb-data")
    assert "BindReadOnlyPaths=/var/lib/etcd:/kb-data" in argv


@pytest.mark.parametrize("says", ["clean", "unknown"])
def test_a_clean_one_and_a_tool_that_cannot_say_pass(says: str) -> None:
    assert ask(make_host(says)) == ""
    assert ask(make_host("keys", in_image=False)) == ""


@pytest.mark.parametrize(
    ("now", "then", "flags"),
    [
        ("3.6.5-0", "3.6.6-0", ()),
        ("3.5.24-0", "3.5.32-0", ()),
        ("mine", "3.6.5-0", ()),
        ("3.5.32-0", "3.6.5-0", ("--wal-dir=/w",)),
    ],
)
def test_only_the_step_to_3_6_is_asked_about(now: str, then: str, flags: tuple[str, ...], mounts: list[str]) -> None:
    assert ask(make_host("keys"), now, then, *flags) == "" and mounts == []
