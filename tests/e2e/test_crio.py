"""A node whose runtime is CRI-O: kb makes it, swaps its static pods, explains it, and takes it back. What cannot be tried there is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable

import pytest

from .lab import settings
from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, code_of
from .lab.lab import Lab
from .lab.node import Node
from .lab.static_pods import (
    COMPONENTS,
    HARMLESS,
    add_flag,
    draft,
    fill_store,
    list_left,
    read_manifests,
    read_running,
    read_stored,
    swap,
    with_flags,
)
from .test_reconfigure_config import FLAG, Before, check_kubelet, check_proxies, read_config, reconfigure

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
SOCKET = "unix:///var/run/crio/crio.sock"
NOT_TRIED = "could not be tried: only containerd can mount an image for kb, and this runtime is CRI-O"


@pytest.fixture
def node(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str) -> Node:
    """A control plane. Its socket is the only one, so that nobody has to name it; its images come from the lab's registry."""
    try:
        settings.find_crio("crio")
    except settings.LabError as error:
        pytest.skip(str(error))
    lab.registry.add_release(settings.find_release(k8s_version))
    lab.registry.start()
    node = make_node("cp1", version=k8s_version, crio=True)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/etc/crictl.yaml", f"runtime-endpoint: {SOCKET}\nimage-endpoint: {SOCKET}\n")
    node.write(
        "/root/init.yaml", lab_config(k8s_version, address=node.address, kb={"podNetwork": {"plugin": "bridge"}})
    )
    node.run(f"{KB} init --config init.yaml {IGNORE}", timeout=900)
    node.wait_node_ready()
    node.wait_pods_ready("kube-system")
    fill_store(node, 100)
    return node


def test_static_pods_are_swapped(node: Node) -> None:
    """All four, and back by --undo; then ones that do not start. Their flags are not tried, which is said: a new pod's exit tells, and
    the former one comes back."""
    assert f'containerRuntimeEndpoint: "{SOCKET}"' in node.read("/var/lib/kubelet/instance-config.yaml")
    stored, first = read_stored(node), read_manifests(node)
    done = swap(node, draft(node, with_flags(node, HARMLESS)))
    print(done.output)
    for name in COMPONENTS:
        for trial in ("flags", "feature gates"):
            assert f"{name}: {trial} {NOT_TRIED}" in done.output
        assert re.search(
            rf"{name}: tried without starting it: image, files, mounts, host ports, certificates", done.output
        )
        assert HARMLESS[name] in read_running(node)[name].argv
    assert read_stored(node) == stored and list_left(node) == []
    swap(node, "--undo")
    assert read_manifests(node) == first

    for name, flag, word in (
        ("kube-apiserver", "--no-such-flag=1", "unknown flag: --no-such-flag, which comes from its manifest"),
        ("etcd", "--no-such-flag=1", "--no-such-flag"),
        ("kube-controller-manager", "--controllers=*,none-of-this-name", "none-of-this-name"),
    ):
        before = read_running(node)
        failed = swap(node, draft(node, {name: add_flag(first[name], flag)}, "/root/bad"), check=False)
        print(failed.output)
        assert code_of(failed) == "static-pod-not-working" and word in failed.output
        assert "the former pods serve again" in failed.output
        assert read_manifests(node) == first and list_left(node) == []
        after = read_running(node)
        assert {n: one.start for n, one in after.items()} == {n: one.start for n, one in before.items()}
        assert read_stored(node) == stored


def test_it_is_reconfigured(node: Node) -> None:
    """A flag, the kubelet, and proxies of its services. A flag that does not exist is found by the exit of its pod: all comes back."""
    first = Before(node)
    done = reconfigure(node, f"apiserver --set {FLAG[2:]}")
    assert f"flags {NOT_TRIED}" in done.output
    assert FLAG in read_running(node)["kube-apiserver"].argv and "max-requests-inflight" in read_config(node)
    now = Before(node)
    failed = reconfigure(node, "scheduler --set no-such-flag=1", check=False)
    assert code_of(failed) == "static-pod-not-working" and "unknown flag: --no-such-flag" in failed.output
    now.check(same_containers=False)
    reconfigure(node, "apiserver --unset max-requests-inflight")
    first.check(same_containers=False)
    check_kubelet(node)
    check_proxies(node, "crio")
    node.run(f"{KB} drift")


def test_doctor_and_reset(node: Node) -> None:
    healthy = node.run(f"{KB} doctor", check=False, timeout=120)
    print(healthy.output)
    assert not re.search(r"^error ", healthy.stdout, re.MULTILINE), healthy.output
    node.run("systemctl stop crio")
    dead = node.run(f"{KB} doctor", check=False, timeout=120)
    print(dead.output)
    assert "crio is installed but does not run" in dead.output and "journalctl -u crio " in dead.output
    assert "containerd" not in dead.output
    node.run("systemctl start crio")
    node.run(f"{KB} reset --force", timeout=300)
    assert node.run("crictl pods -q").stdout.strip() == ""
    assert node.run("systemctl is-active crio").stdout.strip() == "active", "the runtime is not kb's"
    for place in ("/etc/kubernetes", "/var/lib/kb", "/var/lib/etcd/member", "/var/lib/kubelet/config.yaml"):
        assert not node.exists(place), place
