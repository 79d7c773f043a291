"""kubeup/upgrade/lacks.py: what the next version does not accept of this node, by the tables, and by the program where it is here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeup import releases
from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.node import image_program, image_pulls, program_trials
from kubeup.node.tried_pod import Trial
from kubeup.paths import Paths
from kubeup.trouble import Trouble
from kubeup.upgrade import lacks, v2_content
from kubeup.upgrade.objection import Objection
from tests.fake_host import FakeHost

FLAGS, CONFIG, EXTRA = "/var/lib/kubelet/kubeadm-flags.env", "/var/lib/kubelet/config.yaml", "/etc/default/kubelet"


def make_look(target: str, kubelet: str = "", **files: str) -> lacks.Look:
    names = {"flags": FLAGS, "config": CONFIG, "extra": EXTRA, "cgroup": "/sys/fs/cgroup/cgroup.controllers"}
    host = FakeHost(files={names[name]: text.encode() for name, text in {"cgroup": "cpu", **files}.items()})
    host.dirs.add("/sys/fs/cgroup")
    version = releases.parse_version(target)
    assert version is not None
    program = Path(kubelet) if kubelet else None
    return lacks.Look(
        host, Paths(), "n1", version, releases.find_release(target), socket="unix:///x.sock", kubelet=program
    )


def named(found: Iterator[Objection]) -> list[tuple[str, str]]:
    listed = list(found)
    assert all(one.weighs == "mandatory" for one in listed)
    return [(one.name, one.trouble.what) for one in listed]


def pod(name: str, image: str, *flags: str) -> dict[str, Any]:
    container = {"name": name, "image": image, "command": [name, *flags]}
    return {"metadata": {"name": name}, "spec": {"containers": [container]}}


# ---- static pods, by the tables


def test_gates_that_are_gone_or_fixed() -> None:
    wanted = pod(
        "kube-apiserver", "r/kube-apiserver:v1.36.3", "--feature-gates=MemoryManager=true,ImageVolume=false,Fine=true"
    )
    found = list(lacks.judge_pods(make_look("v1.36.3"), [lacks.Pod("kube-apiserver", wanted, wanted)]))
    assert [str(one.trouble) for one in found] == [
        "--feature-gates of kube-apiserver sets MemoryManager to true: Kubernetes 1.36 has no feature gate MemoryManager any more",
        "--feature-gates of kube-apiserver sets ImageVolume to false: since Kubernetes 1.36 it is always true",
    ]
    assert list(lacks.judge_pods(make_look("v1.34.9"), [lacks.Pod("kube-apiserver", wanted, wanted)])) == []


def test_flags_that_the_next_etcd_lacks() -> None:
    now = pod("etcd", "r/etcd:3.5.32-0", "--enable-v2=true", "--experimental-initial-corrupt-check=true", "--name=n1")
    wanted = pod("etcd", "r/etcd:3.6.5-0", "--enable-v2=true", "--experimental-initial-corrupt-check=true", "--name=n1")
    found = named(lacks.judge_pods(make_look("v1.34.9"), [lacks.Pod("etcd", now, wanted)]))
    assert found == [("flag-gone", "etcd is started with --enable-v2")]
    later = pod("etcd", "r/etcd:3.7.0-0", "--experimental-initial-corrupt-check=true")
    found = named(lacks.judge_pods(make_look("v1.36.3"), [lacks.Pod("etcd", wanted, later)]))
    assert found == [("flag-gone", "etcd is started with --experimental-initial-corrupt-check")]
    assert named(lacks.judge_pods(make_look("v1.36.3"), [lacks.Pod("etcd", wanted, wanted)])) == []


def test_a_manifest_that_is_no_pod() -> None:
    found = named(lacks.judge_pods(make_look("v1.36.3"), [lacks.Pod("etcd", {}, {"spec": []})]))
    assert found == [("manifest-invalid", "the manifest of etcd is not a pod")]


# ---- static pods, by the program


class Image:
    """An image that is here; what its program says of the flags."""

    def __init__(self, *trials: Trial, why_not: str = "") -> None:
        self.trials, self.why_not = trials, why_not

    def put(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        @contextlib.contextmanager
        def mount(host: object, socket: str, *, image: str) -> Iterator[image_program.MountedImage]:
            yield image_program.MountedImage(image, Path("/run/x"), self.why_not)

        monkeypatch.setattr(image_pulls, "list_images", lambda *_: {name})
        monkeypatch.setattr(image_program, "mount_image", mount)
        monkeypatch.setattr(program_trials, "try_command", lambda *_, **__: iter(self.trials))


WITH_GATE = pod("kube-apiserver", "registry.k8s.io/kube-apiserver:v1.36.3", "--feature-gates=MemoryManager=true")
NAME = "registry.k8s.io/kube-apiserver:v1.36.3"


def judge() -> list[str]:
    return [
        one.name for one in lacks.judge_pods(make_look("v1.36.3"), [lacks.Pod("kube-apiserver", WITH_GATE, WITH_GATE)])
    ]


def test_what_the_program_says_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    Image(Trial("kube-apiserver", "flags"), Trial("kube-apiserver", "feature gates")).put(monkeypatch, NAME)
    assert judge() == []
    Image(Trial("kube-apiserver", "flags", Trouble("a", "b", "c"))).put(monkeypatch, NAME)
    assert judge() == ["flag-refused"]


def test_what_cannot_be_tried_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    Image(Trial("kube-apiserver", "flags", not_tried="no systemd")).put(monkeypatch, NAME)
    assert judge() == ["gate-refused"]
    Image(why_not="no ctr").put(monkeypatch, NAME)
    assert judge() == ["gate-refused"]
    Image(Trial("kube-apiserver", "flags")).put(monkeypatch, "another:v1")
    assert judge() == ["gate-refused"]


# ---- the kubelet


def test_flags_that_the_next_kubelet_lacks() -> None:
    ours = 'KUBELET_KUBEADM_ARGS="--pod-infra-container-image=r/pause:3.10 --container-runtime-endpoint=unix:///x --node-ip=10.0.0.1"'
    assert named(lacks.judge_kubelet(make_look("v1.35.6", flags=ours))) == []
    extra = 'KUBELET_EXTRA_ARGS="--pod-infra-container-image=r/pause:3.10 --v=2"'
    assert named(lacks.judge_kubelet(make_look("v1.35.6", extra=extra))) == [
        ("kubelet-flag-refused", f"{EXTRA} gives --pod-infra-container-image")
    ]
    assert named(lacks.judge_kubelet(make_look("v1.34.9", extra=extra))) == []


def test_the_new_kubelet_itself_is_asked_where_it_is_here() -> None:
    look = make_look("v1.36.3", kubelet="/opt/kubelet", extra='KUBELET_EXTRA_ARGS="--frobnicate=1 --v=2"')
    assert isinstance(look.host, FakeHost)
    asked = ("/opt/kubelet", "--frobnicate=1", "--v=2", "--version")
    look.host.answers = {
        " ".join(asked): CommandResult(asked, 1, "", "Error: unknown flag: --frobnicate"),
        "/opt/kubelet --v=2 --version": "Kubernetes v1.36.3",
    }
    assert named(lacks.judge_kubelet(look)) == [("kubelet-flag-refused", f"{EXTRA} gives --frobnicate")]


def test_gates_of_the_kubelet() -> None:
    config = "featureGates:\n  MemoryManager: true\n  ImageVolume: false\n"
    found = named(lacks.judge_kubelet(make_look("v1.36.3", config=config)))
    assert found == [
        ("gate-refused", f"featureGates in {CONFIG} sets MemoryManager to true"),
        ("gate-refused", f"featureGates in {CONFIG} sets ImageVolume to false"),
    ]
    extra = 'KUBELET_EXTRA_ARGS="--feature-gates=MemoryManager=true"'
    assert named(lacks.judge_kubelet(make_look("v1.36.3", extra=extra))) == [
        ("gate-refused", f"{EXTRA} sets MemoryManager to true")
    ]


def test_gates_in_flags_are_looked_up_where_the_new_kubelet_is_here_too() -> None:
    """Its --version knows all flags, and looks at no gate."""
    look = make_look(
        "v1.36.3", kubelet="/opt/kubelet", flags='KUBELET_KUBEADM_ARGS="--feature-gates=MemoryManager=true"'
    )
    assert isinstance(look.host, FakeHost)
    look.host.answers = {"/opt/kubelet --feature-gates=MemoryManager=true --version": "Kubernetes v1.36.3"}
    assert named(lacks.judge_kubelet(look)) == [("gate-refused", f"{FLAGS} sets MemoryManager to true")]


def test_what_all_kubelets_share_concerns_all_nodes() -> None:
    found = list(
        lacks.judge_kubelet_config(
            make_look("v1.36.3"), {"featureGates": {"MemoryManager": True}}, where="x", remedy="y", node=""
        )
    )
    assert [one.node for one in found] == [""]


def test_cgroup_v1() -> None:
    look = make_look("v1.35.6")
    assert isinstance(look.host, FakeHost)
    del look.host.files["/sys/fs/cgroup/cgroup.controllers"]
    assert named(lacks.judge_kubelet(look)) == [("cgroup-v1", "n1 has cgroup v1")]
    look.host.files[CONFIG] = b"failCgroupV1: false\n"
    assert named(lacks.judge_kubelet(look)) == []


def test_keys_of_etcd_2_are_in_the_way_of_etcd_3_6(monkeypatch: pytest.MonkeyPatch) -> None:
    told = HostError("keys of etcd 2", cause="it does not start", remedy="remove them", code="etcd-v2-content")
    monkeypatch.setattr(v2_content, "find", lambda *args, **more: told)
    now, wanted = pod("etcd", "r/etcd:3.5.32-0"), pod("etcd", "r/etcd:3.6.5-0")
    assert named(lacks.judge_pods(make_look("v1.34.9"), [lacks.Pod("etcd", now, wanted)])) == [
        ("etcd-v2-content", told.what)
    ]
