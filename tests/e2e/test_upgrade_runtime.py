"""`kb upgrade runtime` on real nodes: containerd 1.6 to 2.1 with its configuration, drained and not, on a worker and under a control plane."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .lab import settings
from .lab.bundles import make_bundle
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .test_join import join, make_token
from .test_upgrade_kubelet import BUNDLE, deploy, init, is_open

MakeNode = Callable[..., Node]
UPGRADE = f"python3 kb.pyz upgrade runtime --bundle {BUNDLE}"
CONFIG = "/etc/containerd/config.toml"


@pytest.fixture
def old(make_node: MakeNode, lab: Lab, kb_pyz: Path, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """A control plane and a worker with containerd 1.6, and a bundle with 2.1."""
    cp1, w1 = (make_node(name, version="1.35", containerd="1.6") for name in ("cp1", "w1"))
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    join(w1, cp1, *make_token(cp1))
    bundle = make_bundle(lab, kb_pyz, settings.find_release("1.36"), tmp_path / "new.tar")
    for node in (cp1, w1):
        node.scp(bundle, BUNDLE)
    yield cp1, w1


def runtime_of(cp1: Node, name: str) -> str:
    return str(cp1.get(f"node {name}")["status"]["nodeInfo"]["containerRuntimeVersion"])


def expect(cp1: Node, node: Node, version: str) -> None:
    def is_so() -> bool:
        return runtime_of(cp1, node.name).startswith(f"containerd://{version}")

    wait_until(is_so, what=f"{node.name} to report containerd {version}", timeout_s=60, every_s=1)
    cp1.wait_node_ready(node.name)
    assert is_open(cp1, node.name)


def containers_of(node: Node) -> set[str]:
    return set(node.run("crictl ps -q").stdout.split())


@pytest.mark.k8s_versions("1.35")
def test_containerd_1_becomes_2_and_1_again(old: tuple[Node, Node], k8s_version: str) -> None:
    cp1, w1 = old
    deploy(cp1, budget=False)
    former = w1.read(CONFIG)
    assert "version = 2" in former

    began = time.monotonic()
    w1.run(UPGRADE, timeout=600)
    print(f"the worker, drained: {time.monotonic() - began:.0f} s")
    expect(cp1, w1, "2.1")
    assert "version = 3" in w1.read(CONFIG) and "io.containerd.cri.v1.runtime" in w1.read(CONFIG)
    cp1.wait_pods_ready("default", "app=drained")
    assert "nothing to do" in w1.run(UPGRADE).output

    began = time.monotonic()
    w1.run("python3 kb.pyz upgrade runtime --undo", timeout=600)
    print(f"the way back: {time.monotonic() - began:.0f} s")
    expect(cp1, w1, "1.6")
    assert w1.read(CONFIG) == former
    cp1.wait_pods_ready("default", "app=drained")

    before = containers_of(cp1)
    began = time.monotonic()
    done = cp1.run(f"{UPGRADE} --no-drain --yes", timeout=600)
    print(f"the control plane, not drained: {time.monotonic() - began:.0f} s\n{done.output}")
    expect(cp1, cp1, "2.1")
    assert before <= containers_of(cp1), "its containers ran on"


@pytest.mark.k8s_versions("1.35")
def test_what_can_fail_leaves_the_node_as_it_was(old: tuple[Node, Node], k8s_version: str) -> None:
    cp1, w1 = old
    deploy(cp1, budget=False)
    former = w1.read(CONFIG)

    w1.write(CONFIG, former + "\n[debug]\n  level = 7\n")
    refused = w1.run(UPGRADE, check=False)
    assert refused.code == 4 and "containerd-config-refused" in refused.output, refused.output
    w1.write(CONFIG, former)

    # the new one starts by hand and not as the service: its folder is another's
    w1.run("mkdir -p /etc/systemd/system/containerd.service.d")
    w1.write(
        "/etc/systemd/system/containerd.service.d/x.conf",
        "[Service]\nExecStartPre=/bin/sh -c '! /usr/bin/containerd --version | grep -q v2'\n",
    )
    w1.run("systemctl daemon-reload")
    began = time.monotonic()
    failed = w1.run(f"{UPGRADE} --no-drain --yes", check=False, timeout=600)
    print(f"not started, and back: {time.monotonic() - began:.0f} s")
    assert failed.code == 5 and "runtime-not-upgraded" in failed.output, failed.output
    expect(cp1, w1, "1.6")
    assert w1.read(CONFIG) == former
    w1.run("rm -r /etc/systemd/system/containerd.service.d && systemctl daemon-reload")

    started = w1.popen(f"echo $$ >/run/kb-upgrade.pid; exec {UPGRADE} --no-drain --yes")
    wait_until(
        lambda: w1.run("systemctl is-active containerd", check=False).stdout.strip() == "inactive",
        what="containerd to be stopped", timeout_s=120, every_s=0.05,
    )  # fmt: skip
    w1.run("kill -KILL $(cat /run/kb-upgrade.pid)", check=False)
    started.wait(timeout=60)
    refused = w1.run("python3 kb.pyz upgrade node --yes", check=False)
    assert "upgrade-cut-off" in refused.output and "upgrade runtime --undo" in refused.output, refused.output
    w1.run(f"{UPGRADE} --no-drain --yes", timeout=600)
    expect(cp1, w1, "2.1")
    cp1.wait_pods_ready("default", "app=drained")
