"""A machine of OpenRC, without systemd: kb makes a control plane, swaps its static pods, and refuses by name what needs a unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import pytest

from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, code_of
from .lab.node import Node
from .lab.static_pods import (
    COMPONENTS,
    HARMLESS,
    add_flag,
    draft,
    list_left,
    manifest,
    read_manifests,
    read_running,
    read_stored,
    swap,
    with_flags,
)

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "lab",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]]},
        }
    ],
}


def test_a_control_plane_without_systemd(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version, openrc=True)
    assert not node.run("which systemctl systemd-run", check=False).ok
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, kubelet={"cgroupDriver": "cgroupfs"}))
    refused = node.run(f"{KB} init --config init.yaml {IGNORE}", check=False, timeout=300)
    print(refused.output)
    assert code_of(refused) == "preflight" and "[ERROR OwnUnits]" in refused.output
    assert not node.exists("/etc/kubernetes")

    node.write("/etc/cni/net.d/10-lab.conflist", json.dumps(NETWORK))
    node.run(f"{KB} init --config init.yaml --pod-network none {IGNORE}", timeout=600)
    node.wait_node_ready()
    assert node.exists("/etc/runlevels/default/kubelet")
    check_swap(node)
    check_timers(node)
    check_stopped_kubelet(node)
    node.run(f"{KB} reset --force", timeout=300)
    assert node.run("crictl pods -q").stdout.strip() == ""
    assert not node.exists("/etc/kubernetes") and not node.exists("/etc/runlevels/default/kubelet")


def check_swap(node: Node) -> None:
    stored, first = read_stored(node), read_manifests(node)
    done = swap(node, draft(node, with_flags(node, HARMLESS)))
    print(done.output)
    for name in COMPONENTS:
        assert f"{name}: flags could not be tried: systemd does not run this machine" in done.output
        assert HARMLESS[name] in read_running(node)[name].argv
    swap(node, "--undo")
    assert read_manifests(node) == first and read_stored(node) == stored

    bad = add_flag(first["kube-apiserver"], "--no-such-flag=1")
    failed = swap(node, draft(node, {"kube-apiserver": bad}, "/root/bad"), check=False)
    print(failed.output)
    assert code_of(failed) == "static-pod-not-working"
    assert "unknown flag: --no-such-flag, which comes from its manifest" in failed.output
    assert "the former pods serve again" in failed.output
    assert read_manifests(node) == first and list_left(node) == [] and read_stored(node) == stored


def check_timers(node: Node) -> None:
    for words in ("certs auto on", "backup schedule daily --to /backup"):
        refused = node.run(f"{KB} {words}", check=False)
        print(refused.output)
        assert code_of(refused) == "no-systemd" and "root's crontab" in refused.output
    assert "nothing to renew" in node.run(f"{KB} certs auto run", timeout=120).output
    renewed = node.run(f"{KB} certs renew scheduler.conf", timeout=300)
    assert "kube-scheduler restarted" in renewed.output, renewed.output


def check_stopped_kubelet(node: Node) -> None:
    """What is told is in the words of OpenRC; a kubelet that is stopped in the middle is started again."""
    text = add_flag(node.read(manifest("kube-scheduler")), "--kube-api-qps=70")
    words = draft(node, {"kube-scheduler": text})
    node.run("rc-service kubelet stop")
    refused = swap(node, words, check=False)
    assert "rc-service kubelet start" in refused.output and "systemctl" not in refused.output, refused.output
    node.run("rc-service kubelet start")
    node.wait_node_ready()
    running = node.popen(f"python3 kb.pyz reconfigure static-pods {words} --yes")
    node.run(
        "until ls -A /etc/kubernetes/manifests | grep -q kb-former; do sleep 0.1; done; rc-service kubelet stop",
        timeout=120,
    )
    told = running.communicate(timeout=300)[0]
    print(told)
    assert running.returncode == 0, told
    assert "--kube-api-qps=70" in read_running(node)["kube-scheduler"].argv
