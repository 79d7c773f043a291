"""kubeup/node/image_program.py: a program out of an image, run in a sandbox, with nothing left behind."""

from __future__ import annotations

import json

import pytest

from kubeup.machine.host import CommandResult
from kubeup.node.image_program import ProgramResult, mount_image, run_program, runtime_name
from tests.fake_host import FakeHost
from tests.unit.node.runtime_case import DUMP_2_1
from tests.unit.node.trial_case import CRICTL, CTR, REFS, ROOT, SOCKET, Programs, failed, make_node

IMAGE = next(ref for ref in REFS if "kube-apiserver" in ref)


class Recorder:
    """Answers a command, and counts how often it was given."""

    def __init__(self, *answers: CommandResult) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, argv: tuple[str, ...]) -> CommandResult:
        self.calls.append(argv)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def run(host: FakeHost, *argv: str) -> ProgramResult:
    with mount_image(host, SOCKET, image=IMAGE) as mounted:
        return run_program(host, mounted, argv=argv)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("registry.k8s.io/etcd:3.6.6-0", "registry.k8s.io/etcd:3.6.6-0"),
        ("r.example:5000/etcd@sha256:aa", "r.example:5000/etcd@sha256:aa"),
        ("r.example:5000/etcd:3@sha256:aa", "r.example:5000/etcd@sha256:aa"),
        ("haproxy", "docker.io/library/haproxy:latest"),
    ],
)
def test_the_name_in_the_runtime(image: str, name: str) -> None:
    assert runtime_name(image) == name


def test_the_program_sees_no_network_and_no_host() -> None:
    programs = Programs()
    assert run(make_node(programs), "kube-apiserver", "--version", "--a=$x").stdout == "Kubernetes v1.35.6\n"
    assert programs.ran == [("/usr/local/bin/kube-apiserver", "--version", "--a=$$x")]  # systemd would replace $x
    assert {f"RootDirectory={ROOT}", "PrivateNetwork=yes", "RuntimeMaxSec=20", "User=65534"} <= set(programs.settings)


def test_the_mount_is_removed_whatever_happens() -> None:
    for error in (KeyboardInterrupt, RuntimeError):
        host, unmount = make_node(), Recorder(CommandResult((), 0))
        host.answers[f"{CTR} images unmount"] = unmount
        with pytest.raises(error), mount_image(host, SOCKET, image=IMAGE):
            raise error
        assert [call[-1] for call in unmount.calls] == [ROOT]
        assert "--rm" in unmount.calls[0]


def test_a_busy_mount_is_detached() -> None:
    host, unmount, detach = make_node(), Recorder(failed("busy"), CommandResult((), 0)), Recorder(CommandResult((), 0))
    host.answers.update({f"{CTR} images unmount": unmount, "umount --lazy": detach})
    run(host, "kube-apiserver")
    assert (len(unmount.calls), len(detach.calls)) == (2, 1)


def test_what_a_killed_kb_left_is_removed() -> None:
    host, unmount = make_node(), Recorder(CommandResult((), 0))
    host.dirs |= {"/run/kb-image.812.aaaaaa", "/run/kb-image.813.bbbbbb", "/run/kb-image.old", "/proc/813"}
    host.answers[f"{CTR} images unmount"] = unmount
    run(host, "kube-apiserver")
    assert [call[-1] for call in unmount.calls] == ["/run/kb-image.812.aaaaaa", ROOT]


@pytest.mark.parametrize(
    ("info", "dump", "options"),
    [
        ({"config": {"containerd": {"snapshotter": "native"}}}, "", ("--snapshotter", "native")),
        ({}, DUMP_2_1 + "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'zfs'\n", ("--snapshotter", "zfs")),
        ({}, "", ()),
    ],
)
def test_the_snapshotter_of_the_runtime(info: object, dump: str, options: tuple[str, ...]) -> None:
    host, mount = make_node(), Recorder(CommandResult((), 0))
    host.answers.update({f"{CRICTL} info": json.dumps(info), f"{CTR} images mount": mount})
    if dump:
        host.answers["containerd config dump"] = dump
    run(host, "kube-apiserver")
    assert mount.calls[0][-4 if options else -2 :] == (*options, IMAGE, ROOT)


@pytest.mark.parametrize(
    ("change", "why_not"),
    [
        ({"programs": {"crictl", "systemd-run"}}, "there is no ctr in PATH, which mounts images"),
        ({"programs": {"crictl", "ctr"}}, "there is no systemd-run in PATH"),
        ({"dirs": set()}, "systemd does not run this machine"),
        ({"root_user": False}, "only root may mount an image"),
    ],
)
def test_what_a_machine_lacks_is_said(change: dict[str, object], why_not: str) -> None:
    host = make_node()
    for name, value in change.items():
        setattr(host, name, value)
    assert run(host, "kube-apiserver").why_not == why_not


def test_cri_o_mounts_nothing() -> None:
    with mount_image(make_node(), "unix:///run/crio/crio.sock", image=IMAGE) as mounted:
        assert mounted.why_not == "only containerd can mount an image for kb, and this runtime is CRI-O"


@pytest.mark.parametrize(
    ("command", "answer", "why_not"),
    [
        (f"{CTR} images mount", failed("ctr: operation not permitted"), f"ctr could not mount {IMAGE}: ctr: operation not permitted"),
        ("mktemp -d", failed("mktemp: no space left"), "no folder could be made for it in /run: mktemp: no space left"),
        ("systemd-run", failed("", 226), "systemd could not start it in a sandbox of its own (status 226)"),
    ],
)  # fmt: skip
def test_what_is_refused_is_said(command: str, answer: CommandResult, why_not: str) -> None:
    host = make_node()
    host.answers[command] = answer
    assert run(host, "kube-apiserver").why_not == why_not


def test_a_program_that_the_image_lacks() -> None:
    assert run(make_node(), "kube-nothing").why_not == f"{IMAGE} has no program kube-nothing"


def test_a_program_that_does_not_end() -> None:
    host = make_node()

    def hang(argv: tuple[str, ...]) -> CommandResult:
        host.ticks += 20
        return CommandResult(argv, 1)

    host.answers["systemd-run"] = hang
    assert run(host, "kube-apiserver").why_not == "/usr/local/bin/kube-apiserver does not end within 20 s"
