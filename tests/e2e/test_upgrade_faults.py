"""Faults in an upgrade to another minor, beside those of test_upgrade.py and test_upgrade_kubelet.py: an etcd that does not start, a disk that fills
up while etcd is out, a member of etcd that is dead or dies meanwhile, a flag that the next kubelet lacks. Each is named, and the node is as it was within
90 seconds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Callable

import pytest

from .lab.control_planes import KB, check_members, code_of
from .lab.node import Node, wait_until
from .lab.static_pods import SLOW, is_out, list_left, meddle, read_manifests, read_running, read_stored
from .test_join_load_balancer import wait_servers
from .test_static_pods import DISK, filling, free_disk, make_control_plane, make_three, told
from .test_upgrade import APPLY, BACK_S, check_as_before, check_version, edit_config, offer
from .test_upgrade_attacked import NEXT, await_end, begun, start_all

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
NOT_STARTED = 'extraArgs: [{name: heartbeat-interval, value: "900"}]'
"""etcd ends with it, since it has to be less than a fifth of the election timeout. No trial finds that."""


def test_an_etcd_that_does_not_start_and_a_full_disk(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_control_plane(make_node, kb_pyz, k8s_version, on_one_disk=True)
    texts, stored, version = read_manifests(node), read_stored(node), offer(node, NEXT)
    starts = {name: one.start for name, one in read_running(node).items()}

    edit_config(node, f"s/^      local:$/      local:\\n        {NOT_STARTED}/")
    began = time.monotonic()
    failed = node.run(f"{APPLY} {version} --yes", check=False, timeout=600)
    took_s = time.monotonic() - began
    print(f"an etcd that does not start: over after {took_s:.0f} s", flush=True)
    assert not failed.ok and "--election-timeout[1000ms] should be" in told(failed)
    assert took_s < BACK_S * SLOW
    assert read_manifests(node) == texts and list_left(node) == []
    wait_until(
        lambda: {name: one.start for name, one in read_running(node).items()} == starts,
        what="the former pods",
        timeout_s=120,
    )
    wait_until(lambda: stored <= read_stored(node), what="the same objects", timeout_s=60)
    edit_config(node, "/heartbeat-interval/d")

    meddle(node, is_out("etcd"), filling())
    began = time.monotonic()
    ended = node.run(f"{APPLY} {version} --yes", check=False, timeout=600)
    print(
        f"the disk full: over after {time.monotonic() - began:.0f} s, {'done' if ended.ok else 'not done'}", flush=True
    )
    told(ended)
    found = read_manifests(node)
    assert int(node.run(f"stat -c %s {DISK}/filler").stdout) > 0, "the disk was not filled"
    free_disk(node)
    is_new = all(f":{version}" in text for name, text in found.items() if name != "etcd")
    assert is_new or found == texts, "half of each"
    assert ended.ok or "remedy:" in ended.output
    wait_until(lambda: stored <= read_stored(node), what="the same objects", timeout_s=120)

    told(node.run(f"{APPLY} {version} --yes", timeout=900))
    check_version(node, version)
    assert stored <= read_stored(node)


def test_a_member_is_dead_or_dies_meanwhile(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Of three. No other member stops as long as it is away; then the same command goes through."""
    nodes = make_three(make_node, kb_pyz, k8s_version)
    first, other, dead = nodes
    version = offer(first, NEXT)
    texts, running, stored = read_manifests(first), read_running(first), read_stored(first)
    others = read_running(other)

    dead.kill()
    refused = first.run(f"{APPLY} {version} --yes --no-drain", check=False, timeout=300)
    assert not refused.ok and dead.name in told(refused)
    check_as_before(first, texts, running=running)

    start_again(nodes, dead)
    began = time.monotonic()
    start_all([first], f"upgrade apply {version} --yes --no-drain")
    first.run(f"until {begun('programs')}; do sleep 0.05; done", timeout=300)
    dead.kill()
    text = await_end(first)
    print(f"a member that dies meanwhile: over after {time.monotonic() - began:.0f} s", flush=True)
    assert "ended with 0" not in text and dead.name in text
    assert read_manifests(first) == texts and list_left(first) == []
    assert {name: read_running(first)[name].start for name in ("etcd", "kube-apiserver")} == {
        name: running[name].start for name in ("etcd", "kube-apiserver")
    }
    now = read_running(other)
    assert {name: now[name].id for name in ("etcd", "kube-apiserver")} == {
        name: others[name].id for name in ("etcd", "kube-apiserver")
    }
    assert stored <= read_stored(first)

    start_again(nodes, dead)
    told(first.run(f"{APPLY} {version} --yes --no-drain", timeout=900))
    check_version(first, version)
    assert stored <= read_stored(first)


def start_again(nodes: list[Node], dead: Node) -> None:
    """Until its member serves, and every load balancer has its API server."""
    dead.start()
    addresses = [node.address for node in nodes]

    def serve() -> bool:
        try:
            check_members(nodes[0], [node.name for node in nodes])
        except AssertionError:
            return False
        return True

    wait_until(serve, what="all members of etcd", timeout_s=180, every_s=2)
    for node in nodes:
        wait_servers(node, addresses, timeout_s=180)
    nodes[0].wait_node_ready(dead.name)


PAUSE_FLAG = 'KUBELET_EXTRA_ARGS="--pod-infra-container-image=registry.k8s.io/pause:3.10"'
GONE = {
    "1.34": ("1.35", f"echo '{PAUSE_FLAG}' >/etc/default/kubelet", "pod-infra-container-image"),
    "1.35": (
        "1.36",
        "sed -i 's/\"$/ --feature-gates=TopologyAwareHints=true\"/' /var/lib/kubelet/kubeadm-flags.env",
        "TopologyAwareHints",
    ),
}
"""minor -> the next one, how its kubelet is given what it knows and the next one does not, and the name of that. 1.36 removed no flag, but gates."""


@pytest.mark.k8s_versions("1.34", "1.35")
def test_a_flag_that_the_next_kubelet_lacks(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The kubelet that runs takes it. The plan blocks, and the upgrade ends before anything stops; without it, it goes through."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    following, give, name = GONE[k8s_version]
    path = give.rpartition(" ")[2].lstrip(">")
    text = node.read(path) if node.exists(path) else ""
    node.run(give)
    node.run("systemctl restart kubelet")
    node.wait_node_ready()
    assert name in node.run("tr '\\0' ' ' </proc/$(systemctl show -p MainPID --value kubelet)/cmdline").stdout
    texts, running, stored = read_manifests(node), read_running(node), read_stored(node)
    version, kubelet = offer(node, following), node.run("systemctl show -p MainPID --value kubelet").stdout

    plan = node.run(f"{KB} upgrade plan {version} -o json", check=False, timeout=120)
    assert plan.code == 3, plan.output
    blocks = [one for one in json.loads(plan.stdout)["objections"] if one["weighs"] == "mandatory"]
    assert len(blocks) == 1 and name in json.dumps(blocks) and path in json.dumps(blocks), blocks
    began = time.monotonic()
    refused = node.run(f"{APPLY} {version} --yes", check=False, timeout=600)
    took_s = time.monotonic() - began
    print(f"a flag that the next kubelet lacks: refused after {took_s:.0f} s", flush=True)
    assert code_of(refused) == "kubelet-flags-refused", told(refused)
    assert name in refused.output and path in refused.output and took_s < BACK_S * SLOW
    check_as_before(node, texts, running=running)
    assert node.run("systemctl show -p MainPID --value kubelet").stdout == kubelet
    assert read_stored(node) == stored

    node.run(f"rm {path}") if not text else node.write(path, text)
    told(node.run(f"{APPLY} {version} --yes", timeout=900))
    check_version(node, version)
    assert stored <= read_stored(node)
