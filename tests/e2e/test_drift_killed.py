"""`kb drift --fix` on real nodes: killed after each thing that it does, it comes to its end by the same command; and the last swap can be undone
after it has only restarted a static pod."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Callable

import pytest

from .lab import change_killer
from .lab.changes import Moment, kill_after_each_change_in_turn, run_watched
from .lab.control_planes import KB, code_of
from .lab.node import Node, wait_until
from .lab.static_pods import (
    MANIFESTS,
    SWAP,
    add_flag,
    draft,
    list_left,
    manifest,
    read_manifests,
    read_running,
    swap,
)
from .test_drift import CHANGES, names_on
from .test_static_pods import told
from .test_upgrade_kubelet import init

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
SCHEDULER, SERVER = "kube-scheduler", "kube-apiserver"
PUT_BACK = (
    "sysctl/net.ipv4.ip_forward",
    "file/etc/sysctl.d/90-kb.conf",
    "unit/kb-routes",
    "kubelet/config.yaml",
    "kubelet/kubeadm-flags.env",
    "certificate/front-proxy-client",
    "configmap/kube-system/coredns",
    "daemonset/kube-system/kube-proxy",
)
"""All of CHANGES that kb puts back without a swap."""
UID = "5ca1ab1e-0000-4000-8000-000000000001"


def start(make_node: MakeNode, kb_pyz: Path, version: str) -> Node:
    node = make_node("cp1", version=version)
    init(node, kb_pyz)
    node.wait_pods_ready("kube-system")
    assert names_on(node) == []
    return node


def spoil(node: Node, *names: str) -> None:
    for name in names:
        node.run(f"export KUBECONFIG=/etc/kubernetes/admin.conf; {CHANGES[name]}")


def test_killed_after_each_change_in_turn(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = start(make_node, kb_pyz, k8s_version)
    spoil(node, *PUT_BACK)
    node.run("systemctl daemon-reload; systemctl restart kb-routes")
    assert set(PUT_BACK) <= set(names_on(node)) and nice_of(node, "kb-routes") == "3"
    killed = kill_after_each_change_in_turn(node, shlex.split("kb.pyz drift --fix --all --yes"), for_s=420)
    words = [change for _, change in killed]
    print(f"killed {len(killed)} times", *words, sep="\n  ", flush=True)
    wanted = (
        "sysctl",
        "90-kb.conf",
        "kb-routes",
        "config.yaml",
        "kubelet",
        "front-proxy-client",
        "coredns",
        "kube-proxy",
    )
    assert all(any(one in word for word in words) for one in wanted), words
    assert names_on(node) == [] and nice_of(node, "kb-routes") == "0"
    node.wait_node_ready()
    node.wait_pods_ready("kube-system")


def nice_of(node: Node, unit: str) -> str:
    """What its process runs with, whatever its file says."""
    return node.run(f"ps -o ni= -p $(systemctl show {unit} -p MainPID --value)").stdout.strip()


def test_killed_in_the_swap_of_a_manifest(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """A swap that was cut off is named with the command that continues it; a restart of the kubelet that was, is told as such."""
    node = start(make_node, kb_pyz, k8s_version)
    before = read_manifests(node)
    name, phase = f"manifest/{SCHEDULER}", "reconfigure-static-pods/swap"
    argv = shlex.split(f"kb.pyz drift --fix {name} --yes")
    moments = (
        Moment(phase, "write_file /var/lib/kb/swap/swap.json"),
        Moment(phase, f"move_file {manifest(SCHEDULER)} {MANIFESTS}/.{SCHEDULER}.yaml.kb-former"),
        Moment(phase, f"move_file {MANIFESTS}/.{SCHEDULER}.yaml.kb-next {manifest(SCHEDULER)}"),
        Moment("reconfigure-static-pods/gate", "save the state"),
    )
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    for moment in moments:
        spoil(node, name)
        wait_until(lambda: runs_with(node, "--v=3"), what="the edit to run", timeout_s=90)
        found = run_watched(node, argv, moment)
        assert found[-1][0] == "killed", (moment, found)
        again = node.run(["python3", *argv], check=False, timeout=300)
        print(f"killed after {moment}", again.output, sep="\n", flush=True)
        if not again.ok:
            assert code_of(again) == "swap-cut-off", again.output
            told(node.run(f"{SWAP} --yes", timeout=300))
        assert read_manifests(node) == before and list_left(node) == [], moment
        assert names_on(node) == [], moment
        assert not runs_with(node, "--v=3"), moment


def runs_with(node: Node, flag: str) -> bool:
    running = read_running(node).get(SCHEDULER)
    return running is not None and flag in running.argv


def test_the_last_swap_is_undone_after_a_restart(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """An API server whose manifest names its UID is not started anew by the kubelet when the manifest changes: kb does it."""
    node = start(make_node, kb_pyz, k8s_version)
    before = read_manifests(node)
    swap(node, draft(node, {SCHEDULER: add_flag(before[SCHEDULER], "--kube-api-qps=61")}))
    named = before[SERVER].replace("\nmetadata:\n", f"\nmetadata:\n  uid: {UID}\n", 1)
    node.write(manifest(SERVER), named, mode=0o600)
    former = read_running(node)[SERVER].id
    wait_until(lambda: is_new(node, former), what="an API server with that UID", timeout_s=180, every_s=2)
    node.write(manifest(SERVER), add_flag(named, "--max-requests-inflight=500"), mode=0o600)
    told(node.run(f"{KB} drift --accept manifest/{SERVER}"))
    assert names_on(node) == [f"running/{SERVER}"]
    told(node.run(f"{KB} drift --fix running/{SERVER} --yes", timeout=300))
    assert "--max-requests-inflight=500" in read_running(node)[SERVER].argv
    assert names_on(node) == []

    told(swap(node, "--undo"))
    assert read_manifests(node)[SCHEDULER] == before[SCHEDULER]
    assert "--kube-api-qps=61" not in read_running(node)[SCHEDULER].argv
    assert json.loads(node.read("/var/lib/kb/swap/swap.json"))["status"] == "taken back"
    assert list_left(node) == []


def is_new(node: Node, former: str) -> bool:
    """Whether another container of the API server runs, and serves."""
    running = read_running(node).get(SERVER)
    ready = "kubectl --kubeconfig /etc/kubernetes/admin.conf get --raw /readyz"
    return running is not None and running.id != former and node.run(ready, check=False).ok
