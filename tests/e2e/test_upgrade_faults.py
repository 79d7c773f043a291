"""Faults in an upgrade to another minor, beside those of test_upgrade.py and test_upgrade_kubelet.py: an etcd that does not start, a disk that fills
up while etcd is out, a member of etcd that is dead or dies meanwhile. Each is named, and the node is as it was within 90 seconds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable

import pytest

from .lab.control_planes import check_members
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
