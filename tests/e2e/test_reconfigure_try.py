"""`--try` on real nodes: a change goes back by itself at its end, whatever happened to the machine or to kb in between; a confirmed one stays."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.control_planes import IGNORE, KB, code_of, print_join
from .lab.node import Node, wait_until
from .lab.static_pods import (
    SWAP,
    add_flag,
    argv_of,
    draft,
    list_left,
    read_manifests,
    read_running,
    read_stored,
)
from .test_reconfigure_config import read_config, reconfigure
from .test_static_pods import make_control_plane

pytestmark = pytest.mark.k8s_versions("1.35", "1.36")
MakeNode = Callable[..., Node]
UNIT = "/etc/systemd/system/kb-try.service"
FLAGS = {"kube-apiserver": "--max-requests-inflight=397", "kube-scheduler": "--kube-api-qps=47"}
WITH_ETCD = {"etcd": "--max-txn-ops=300", **FLAGS}


def begin(node: Node, flags: Mapping[str, str], *, lasts: str) -> dict[str, str]:
    """Try these flags; returns the manifests of before."""
    former = read_manifests(node)
    words = draft(node, {name: add_flag(former[name], flag) for name, flag in flags.items()})
    told = node.run(f"{SWAP} {words} --try {lasts} --yes", timeout=600)
    print(told.output, flush=True)
    assert "goes back by itself at" in told.output and "reconfigure confirm" in told.output
    assert read_record(node)["status"] == "waiting"
    check_run(node, former, flags)
    return former


def check_run(node: Node, former: Mapping[str, str], flags: Mapping[str, str] = {}) -> None:
    """That the former manifests run, those of these components with one more flag; and that nothing of a swap is left."""
    wanted = {name: add_flag(text, flags[name]) if name in flags else text for name, text in former.items()}
    assert {name: argv_of(text) for name, text in read_manifests(node).items()} == {
        name: argv_of(text) for name, text in wanted.items()
    }
    running = read_running(node)
    assert {name: one.argv for name, one in running.items()} == {n: argv_of(t) for n, t in wanted.items()}
    assert list_left(node) == []


def check_flag(node: Node, former: Mapping[str, str], component: str, flag: str) -> None:
    """That the former manifests run, this one with one more argument, at its end."""
    wanted = {name: (*argv_of(text), *([flag] if name == component else ())) for name, text in former.items()}
    assert {name: argv_of(text) for name, text in read_manifests(node).items()} == wanted
    assert {name: one.argv for name, one in read_running(node).items()} == wanted
    assert list_left(node) == []


def counted(node: Node) -> set[str]:
    """What was made to be counted; a token for a join is none of it."""
    return {one for one in read_stored(node) if "counted-" in one}


def read_record(node: Node) -> Any:
    return json.loads(node.read("/var/lib/kb/try/try.json"))


def wait_back(node: Node, former: Mapping[str, str], *, timeout_s: float) -> float:
    """Wait until the node has gone back by itself. Returns the seconds."""
    began = time.monotonic()
    wait_until(lambda: not node.exists(UNIT), what="the node to go back", timeout_s=timeout_s, every_s=1)
    took = time.monotonic() - began
    print(f"went back {took:.0f} s later", node.journal("kb-try"), sep="\n", flush=True)
    assert read_record(node)["status"] == "back"
    node.wait_node_ready()
    wait_until(lambda: "kube-scheduler" in read_running(node), what="the scheduler", timeout_s=60)
    check_run(node, former)
    return took


def test_back_by_itself_or_confirmed(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    stored = counted(node)
    former = begin(node, FLAGS, lasts="45s")
    for words in ("certs renew all", f"reconfigure static-pods {draft(node, former)}", "upgrade node"):
        refused = node.run(f"{KB} {words}", check=False)
        assert code_of(refused) == "try-pending", refused.output
    other = make_node("w1", version=k8s_version)
    other.scp(kb_pyz, "/root/kb.pyz")
    refused = other.run(f"{KB} {print_join(node)} {IGNORE} --soak 0", check=False, timeout=300)
    if node.exists(UNIT):
        assert code_of(refused) == "try-elsewhere" and "on cp1: " in refused.output, refused.output
    wait_back(node, former, timeout_s=240)
    reasons = {one["reason"] for one in node.get("events -n default")["items"]}
    assert "ChangeTakenBack" in reasons
    assert "kb/tried-change" not in node.kubectl("-n kube-system get configmap kubeadm-config -o yaml")
    assert code_of(node.run(f"{KB} reconfigure confirm", check=False)) == "nothing-tried"
    assert counted(node) == stored

    begin(node, FLAGS, lasts="30s")
    node.run(f"{KB} reconfigure confirm")
    assert not node.exists(UNIT)
    time.sleep(40)
    check_run(node, former, FLAGS)
    node.run(f"{SWAP} --undo --yes", timeout=600)
    check_run(node, former)

    begin(node, WITH_ETCD, lasts="1h")
    node.run(f"{KB} reconfigure back --yes", timeout=600)
    check_run(node, former)
    assert counted(node) == stored and not node.exists(UNIT)


def test_a_reconfiguration(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """`kb reconfigure COMPONENT --set --try`: the cluster stores it only when it is confirmed. The same command again looks again."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    former, stored = read_manifests(node), read_config(node)
    words = "scheduler --set kube-api-qps=47"
    told = reconfigure(node, f"{words} --try 90s")
    tried = read_record(node)
    assert "goes back by itself at" in told.output and read_config(node) == stored
    check_flag(node, former, "kube-scheduler", "--kube-api-qps=47")
    again = reconfigure(node, f"{words} --try 90s")
    assert f"goes back by itself at {tried['ends']}" in again.output and read_record(node) == tried
    for other in ("scheduler --set kube-api-qps=48 --try 1m", "apiserver --set v=3 --try 1m", words):
        refused = reconfigure(node, other, check=False)
        assert code_of(refused) == "try-pending", refused.output
    wait_back(node, former, timeout_s=240)
    assert read_config(node) == stored

    words = "apiserver --set max-requests-inflight=397"
    reconfigure(node, f"{words} --try 30m")
    node.run(f"{KB} reconfigure back --yes", timeout=600)
    check_run(node, former)
    assert read_config(node) == stored and not node.exists(UNIT)

    reconfigure(node, f"{words} --try 30m")
    node.run(f"{KB} reconfigure confirm")
    assert "max-requests-inflight" in read_config(node) and not node.exists(UNIT)
    check_flag(node, former, "kube-apiserver", FLAGS["kube-apiserver"])
    assert "nothing to do" in reconfigure(node, words).output
    node.run(f"{KB} drift")
    assert code_of(reconfigure(node, "kubelet --set maxPods=99 --try 5m", check=False)) == "not-tried"


def test_a_reboot_in_between(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The power is cut, and comes back after the end, or before it; an orderly reboot, too."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    former = begin(node, FLAGS, lasts="20s")
    node.kill()
    time.sleep(25)
    node.start()
    wait_back(node, former, timeout_s=400)

    former = read_manifests(node)
    begin(node, WITH_ETCD, lasts="150s")
    began = time.monotonic()
    node.stop(timeout_s=180)
    node.start()
    wait_back(node, former, timeout_s=500)
    assert time.monotonic() - began > 140, "it did not wait for what was left"


def test_kb_is_killed(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """In the middle of the swap of a trial, with etcd and the API server out; and the unit on its way back, killed with the power."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    stored, former = counted(node), read_manifests(node)
    words = draft(node, {name: add_flag(former[name], flag) for name, flag in WITH_ETCD.items()})
    going = node.popen(f"{SWAP} {words} --try 10m --yes")
    wait_until(lambda: not node.exists("/etc/kubernetes/manifests/etcd.yaml"), what="etcd to be out", timeout_s=120)
    node.run("pkill -KILL -f 'kb.pyz reconfigure static-pods'")
    going.wait(timeout=60)
    wait_back(node, former, timeout_s=400)
    assert counted(node) == stored

    begin(node, WITH_ETCD, lasts="40s")
    wait_until(lambda: not node.exists("/etc/kubernetes/manifests/etcd.yaml"), what="the way back", timeout_s=180)
    node.kill()
    node.start()
    wait_back(node, former, timeout_s=500)
    assert counted(node) == stored
    node.run(f"{KB} reset --force", timeout=300)
    assert not node.exists(UNIT) and not node.exists("/var/lib/kb/try/try.json")


def test_a_reset_removes_it(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    begin(node, FLAGS, lasts="1h")
    node.run(f"{KB} reset --force", timeout=300)
    assert not node.exists(UNIT) and not node.exists("/var/lib/kb/try/try.json")
    assert node.run("systemctl is-active kb-try.service", check=False).stdout.strip() != "active"
