"""What goes wrong around an upgrade on real nodes: another one at the same time, a power cut, a mirror that stops, nodes that do not get
their images."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, check_members, join_control_plane, join_worker, start_cluster
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import find_release
from .lab.static_pods import SLOW, fill_store, list_left, read_manifests, read_stored
from .test_static_pods import told
from .test_upgrade import APPLY, NODE, check_version, make_control_plane, offer
from .test_upgrade_kubelet import is_open

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
NEXT = "1.36"


def start_all(nodes: Sequence[Node], words: str) -> None:
    """The same command on all of them within a second; its words and its status are in upgrade.log."""
    for node in nodes:
        node.run(
            f"rm -f upgrade.log; nohup sh -c '{KB} {words}; echo ended with $?' >upgrade.log 2>&1 </dev/null & true"
        )


def begun(phase: str) -> str:
    """A shell's condition: the upgrade of this node has come to the phase."""
    return f"grep -q 'upgrade-apply@[^/]*/{phase}' /var/lib/kb/state.json"


def ready_of(pod: dict[str, Any]) -> dict[str, Any]:
    rows = pod["status"].get("conditions", [])
    return next((row for row in rows if row["type"] == "Ready"), {})


def await_end(node: Node, timeout_s: float = 600) -> str:
    is_over = "grep -q '^ended with' upgrade.log"
    wait_until(lambda: node.run(is_over, check=False).ok, what=f"the end on {node.name}", timeout_s=timeout_s)
    text = node.read("/root/upgrade.log")
    print(f"== {node.name}", text, sep="\n", flush=True)
    return text


def test_two_at_once(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Both control planes begin in the same moment. At most one of them stops anything, the other says why not, and goes on afterwards."""
    nodes = start_cluster(make_node, kb_pyz, k8s_version, names=["c1", "c2"])
    c1, c2 = nodes
    join_control_plane(c2, c1)
    c1.wait_node_ready("c2")
    fill_store(c1)
    stored = read_stored(c1)
    version = find_release(NEXT).version
    for node in nodes:
        offer(node, NEXT)
    start_all(nodes, f"upgrade apply {version} --yes --no-drain")
    ends = {node.name: await_end(node) for node in nodes}
    done = [node for node in nodes if "ended with 0" in ends[node.name]]
    for node in nodes:
        assert list_left(node) == [], node.name
        if node not in done:
            assert "remedy:" in ends[node.name], node.name
    assert stored <= read_stored(c1)
    check_members(c1, [node.name for node in nodes])
    for node in [one for one in nodes if one not in done]:
        told(node.run(f"{APPLY} {version} --yes --no-drain", timeout=900))
    for node in nodes:
        told(node.run(f"{NODE} --yes --no-drain", timeout=600))
        check_version(node, version)
    images = c1.kubectl("-n kube-system get deploy,ds -o jsonpath={..image}")
    assert f"kube-proxy:{version}" in images and stored <= read_stored(c1)


def test_the_power_is_cut_while_the_kubelet_is_out(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Of the only control plane, whose static pods are new by then; the same command ends it after the boot."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    stored, version = read_stored(node), offer(node, NEXT)
    start_all([node], f"upgrade apply {version} --yes")
    node.run(f"until {begun('kubelet-config')} && ! systemctl is-active -q kubelet; do sleep 0.02; done", timeout=300)
    node.kill()
    node.start()
    print("power cut while the kubelet was out", node.read("/root/upgrade.log"), sep="\n", flush=True)
    began = time.monotonic()
    told(node.run(f"{APPLY} {version} --yes", timeout=900))
    print(f"after the boot: {time.monotonic() - began:.0f} s", flush=True)
    check_version(node, version)
    node.wait_node_ready()
    assert is_open(node, node.name) and stored <= read_stored(node)
    told(node.run(f"{KB} doctor", check=False, timeout=120))
    again = told(node.run(f"{APPLY} {version} --yes", timeout=300))
    assert "run with these manifests already" in again


def test_the_mirror_stops_half_way(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str) -> None:
    """While the images are pulled: nothing has stopped. Before kube-proxy goes to the workers: it says which node lacks what, within the
    time that a rollout has; the former pods go on, and the same command ends it once the mirror is back."""
    following = find_release(NEXT)
    for release in (find_release(k8s_version), following):
        lab.registry.add_release(release)
    mirror, version = f"http://{lab.registry.start().address}", following.version
    cp1, w1 = (make_node(name, version=k8s_version, images=False) for name in ("cp1", "w1"))
    for node in (cp1, w1):
        node.scp(kb_pyz, "/root/kb.pyz")
    text = lab_config(k8s_version, address=cp1.address, kb={"podNetwork": {"plugin": "bridge"}})
    cp1.write("/root/init.yaml", text)
    cp1.run(f"{KB} init --config init.yaml --mirror {mirror} --packages none --soak 0 {IGNORE}", timeout=600)
    join_worker(w1, cp1, f"--mirror {mirror} --packages none")
    cp1.wait_node_ready("w1")
    fill_store(cp1)
    stored, before = read_stored(cp1), read_manifests(cp1)
    command = f"upgrade apply {version} --mirror {mirror} --packages none --yes"

    start_all([cp1], command)
    cp1.run(f"until crictl images | grep -q {version}; do sleep 0.1; done", timeout=120)
    lab.registry.stop()
    assert "ended with 0" not in await_end(cp1) and read_manifests(cp1) == before
    told(cp1.run(f"{KB} status", check=False))

    lab.registry.start()
    began = time.monotonic()
    start_all([cp1], command)
    cp1.run(f"until {begun('upload-config')}; do sleep 0.1; done", timeout=300)
    lab.registry.stop()
    text = await_end(cp1)
    print(f"with a mirror that stopped: {time.monotonic() - began:.0f} s", flush=True)
    assert "code:   addon-not-rolled-out" in text and "on w1: crictl pull " in text
    assert time.monotonic() - began < 120 + 90 * SLOW
    dns = cp1.get("pods -n kube-system -l k8s-app=kube-dns")["items"]
    assert [pod for pod in dns if ready_of(pod).get("status") == "True"], dns
    lab.registry.start()
    (line,) = re.findall(r"on w1: (crictl pull .*?); see to what that says; then: ", text)
    told(w1.run(line, timeout=120))
    told(cp1.run(f"{KB} {command}", timeout=900))
    assert all(f":{version}" in text for name, text in read_manifests(cp1).items() if name != "etcd")
    assert f"kube-proxy:{version}" in cp1.kubectl("-n kube-system get ds -o jsonpath={..image}")
    assert stored <= read_stored(cp1)
