"""`kb upgrade apply` and `kb upgrade node` on real nodes: two minors in a row, three control planes, and what goes wrong on the way."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, code_of
from .lab.node import Node, wait_until
from .lab.settings import find_release
from .lab.static_pods import (
    MANIFESTS,
    SLOW,
    Calls,
    Client,
    add_flag,
    fill_store,
    list_left,
    read_gaps,
    read_manifests,
    read_running,
    read_stored,
    start_health_log,
)
from .test_static_pods import GAP_S, make_three, told

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
APPLY, NODE = f"{KB} upgrade apply", f"{KB} upgrade node"
BACK_S = 90.0


def make_control_plane(
    make_node: MakeNode, kb_pyz: Path, version: str, *, cluster: Optional[dict[str, Any]] = None, **more: Any
) -> Node:
    node = make_node("cp1", version=version, **more)
    node.scp(kb_pyz, "/root/kb.pyz")
    kb = {"podNetwork": {"plugin": "bridge"}}
    node.write("/root/init.yaml", lab_config(version, address=node.address, cluster=cluster, kb=kb))
    node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
    node.wait_node_ready()
    fill_store(node)
    return node


def offer(node: Node, version: str) -> str:
    """Give the node the images of a release, and put its programs where the former ones are, as packages do. Returns the version."""
    folder = node.offer_release(version)
    for name in ("kubelet", "kubectl"):
        node.run(f"p=$(command -v {name}); cp {folder}/{name} $p.new && mv $p.new $p")
    return find_release(version).version


def upgrade(node: Node, command: str) -> float:
    began = time.monotonic()
    told(node.run(f"{command} --yes --no-drain", timeout=900))
    return time.monotonic() - began


def check_version(node: Node, version: str) -> None:
    texts = read_manifests(node)
    assert all(f":{version}" in text for name, text in texts.items() if name != "etcd")
    shown = node.kubectl(f"get node {node.name} -o jsonpath={{.status.nodeInfo.kubeletVersion}}")
    assert shown.strip() == version
    assert list_left(node) == []


def list_pinned(node: Node) -> set[str]:
    """The API server's images that the kubelet must not delete, by their versions."""
    images = json.loads(node.run("crictl images -o json").stdout)["images"]
    names = [tag for one in images if one.get("pinned") for tag in one["repoTags"]]
    return {name.rpartition(":")[2] for name in names if "/kube-apiserver:" in name}


def test_two_minors_in_a_row(make_node: MakeNode, kb_pyz: Path) -> None:
    node = make_control_plane(make_node, kb_pyz, "1.34", containerd="2.1")
    stored = read_stored(node)
    start_health_log(node)
    assert list_pinned(node) == set()
    for former, minor in (("1.34", "1.35"), ("1.35", "1.36")):
        version = offer(node, minor)
        took_s = upgrade(node, f"{APPLY} {version}")
        print(f"{version}: {took_s:.1f} s, away for {read_gaps(node)}", flush=True)
        check_version(node, version)
        assert list_pinned(node) == {find_release(former).version}
        assert stored <= read_stored(node)
        again = told(node.run(f"{APPLY} {version} --yes", timeout=300))
        assert "run with these manifests already" in again
        refused = node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", check=False, timeout=300)
        assert code_of(refused) == "version-goes-back", refused.output
    images = node.kubectl("-n kube-system get deploy,ds -o jsonpath={..image}")
    assert f"kube-proxy:{version}" in images
    told(node.run(f"{KB} upgrade finish"))
    assert list_pinned(node) == set()


@pytest.mark.k8s_versions("1.33")
def test_etcd_goes_from_3_5_to_3_6(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """First etcd alone goes to the patch that 3.6 may follow, in the words of the plan's remedy; then everything to 1.34."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    stored = read_stored(node)
    edit_config(node, "s/^      local:$/      local:\\n        imageTag: 3.5.32-0/")
    before = read_manifests(node)
    upgrade(node, f"{APPLY} {find_release(k8s_version).version}")
    assert "etcd:3.5.32-0" in read_manifests(node)["etcd"]
    assert {name for name, text in read_manifests(node).items() if before[name] != text} == {"etcd"}
    edit_config(node, "/imageTag: 3.5.32-0/d")
    version = offer(node, "1.34")
    start_health_log(node)
    took_s = upgrade(node, f"{APPLY} {version}")
    print(f"{version}: {took_s:.1f} s, away for {read_gaps(node)}", flush=True)
    check_version(node, version)
    assert "etcd:3.6." in read_manifests(node)["etcd"]
    assert stored <= read_stored(node)


@pytest.mark.k8s_versions("1.33")
def test_keys_of_etcd_2_are_in_the_way(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """etcd is given the interface of etcd 2, and a key through it, which is in the next snapshot of its raft log. Without it, it goes on."""
    node = make_control_plane(make_node, kb_pyz, k8s_version, cluster={"etcd": {"local": {"imageTag": "3.5.32-0"}}})
    edit_config(node, "/imageTag: 3.5.32-0/d")
    version, before = offer(node, "1.34"), read_manifests(node)["etcd"]
    pki = "/etc/kubernetes/pki/etcd"
    curl = f"curl -sf --cacert {pki}/ca.crt --cert {pki}/server.crt --key {pki}/server.key https://127.0.0.1:2379"
    flags = ("--enable-v2=true", "--snapshot-count=50")
    node.write(f"{MANIFESTS}/etcd.yaml", add_flag(add_flag(before, flags[0]), flags[1]), mode=0o600)
    wait_until(lambda: node.run(f"{curl}/v2/keys", check=False).ok, what="etcd 2's interface", timeout_s=120, every_s=1)
    node.run(f"{curl}/v2/keys/left -X PUT -d value=1")
    write_on(node, "there")
    command = f"{APPLY} {version} --yes --hand-edits drop"
    refused = node.run(command, check=False, timeout=300)
    assert code_of(refused) == "etcd-v2-content", told(refused)
    assert all(flag in read_manifests(node)["etcd"] for flag in flags)
    node.run(f"{curl}/v2/keys/left -X DELETE")
    write_on(node, "gone")
    told(node.run(command, timeout=900))
    check_version(node, version)
    assert "etcd:3.6." in read_manifests(node)["etcd"]


def write_on(node: Node, word: str) -> None:
    """Until the API server is back, and then more writes than etcd keeps without a snapshot of its raft log."""
    wait_until(lambda: node.run("kubectl --kubeconfig /etc/kubernetes/admin.conf get --raw /readyz", check=False).ok,
               what="the API server", timeout_s=120, every_s=1)  # fmt: skip
    node.kubectl(f"label configmaps -n default --all e2e={word} --overwrite", timeout=120)


def test_three_control_planes(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Who calls the API on the node that is upgraded, through its load balancer, notices nothing: haproxy runs on under the new kubelet."""
    nodes = make_three(make_node, kb_pyz, k8s_version)
    stored = read_stored(nodes[0])
    seen: list[Calls] = []
    as_of_an_older_kb(nodes[1])
    for index, node in enumerate(nodes):
        version = offer(node, "1.36")
        balancer = read_balancer(node)
        clients = [Client(node, "keep"), Client(node, "new")]
        for client in clients:
            client.start()
        time.sleep(2)
        took_s = upgrade(node, NODE if index else f"{APPLY} {version}")
        time.sleep(3)
        for client in clients:
            seen.append(client.stop())
            print(f"{node.name}: {took_s:.1f} s, {client.way}: {seen[-1]}", *seen[-1].failed[:20], sep="\n", flush=True)
        check_version(node, version)
        assert read_balancer(node) == balancer
    check_calls(seen)
    assert stored <= read_stored(nodes[0])
    images = nodes[0].kubectl("-n kube-system get deploy,ds -o jsonpath={..image}")
    assert f"kube-proxy:{version}" in images


def check_calls(seen: Sequence[Calls]) -> None:
    """That nobody waited for long, and no call failed but perhaps one write that etcd dropped, and one call that is made again."""
    turned_away = [row for calls in seen for row in calls.failed if is_turned_away(row)]
    assert len(turned_away) <= 1, turned_away
    for calls in seen:
        lost = [row for row in calls.failed if is_dropped(row)]
        assert [row for row in calls.failed if row not in turned_away] == lost and len(lost) <= 1, calls.failed[:10]
        assert calls.longest_gap_s <= GAP_S * SLOW + sum(took for _, took, *_ in lost), calls


def is_dropped(row: tuple[Any, ...]) -> bool:
    """Whether etcd dropped this write while its leadership moved, and gave it up after seven seconds (docs/adr/0018-swap.md)."""
    _, took, verb, answer = row
    return bool(verb == "PATCH" and answer == "500" and took > 6.9)


def is_turned_away(row: tuple[Any, ...]) -> bool:
    """Whether an API server that had just been told to stop asked for this call again, which client-go does by itself: one that came over a
    connection that was open (docs/adr/0018-swap.md)."""
    _, took, _, answer = row
    return bool(answer == "503, Retry-After: 1" and took < 1.0)


def read_balancer(node: Node) -> str:
    """The container of the node's load balancer."""
    found: list[str] = []

    def is_up() -> bool:
        found[:] = node.run("crictl ps -q --name '^kb-load-balancer$'").stdout.split()
        return len(found) == 1

    wait_until(is_up, what="the load balancer", timeout_s=60)
    return found[0]


def as_of_an_older_kb(node: Node) -> None:
    """Have the load balancer's manifest name no UID."""
    before = read_balancer(node)
    node.run(f"sed -i '/^  uid: /d' {MANIFESTS}/kb-load-balancer.yaml")
    wait_until(lambda: read_balancer(node) != before, what="another container of the load balancer", timeout_s=90)


def test_what_goes_wrong_leaves_the_node_as_it_was(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    texts, running, stored = read_manifests(node), read_running(node), read_stored(node)
    version = find_release("1.36").version

    missing = node.run(f"{APPLY} v1.36.99 --yes", check=False, timeout=600)
    assert not missing.ok, told(missing)
    assert "kube-apiserver:v1.36.99" in missing.output
    check_as_before(node, texts, running=running)

    offer(node, "1.36")
    edit_config(node, 's/^    apiServer: {}/    apiServer:\\n      extraArgs: [{name: no-such-flag, value: "1"}]/')
    flag = node.run(f"{APPLY} {version} --yes", check=False, timeout=600)
    assert code_of(flag) == "static-pod-refused", told(flag)
    assert "no-such-flag" in flag.output
    check_as_before(node, texts, running=running)

    edit_config(node, 's/no-such-flag, value: "1"/etcd-servers, value: "https:\\/\\/127.0.0.1:2"/')
    began = time.monotonic()
    crash = node.run(f"{APPLY} {version} --yes", check=False, timeout=600)
    assert not crash.ok, told(crash)
    print(f"back after {time.monotonic() - began:.0f} s", flush=True)
    wait_until(lambda: read_stored(node) == stored, what="the same objects", timeout_s=60)
    assert read_manifests(node) == texts
    assert time.monotonic() - began < 2 * BACK_S

    edit_config(node, "/extraArgs/d; s/^    apiServer:$/    apiServer: {}/")
    upgrade(node, f"{APPLY} {version}")
    check_version(node, version)
    assert stored <= read_stored(node)


def edit_config(node: Node, script: str) -> None:
    """Change ConfigMap kubeadm-config with sed."""
    node.write("/root/edit.sed", script + "\n")
    shown = "kubectl -n kube-system get configmap kubeadm-config -o yaml"
    node.run(
        f"export KUBECONFIG=/etc/kubernetes/admin.conf; {shown} | sed -f /root/edit.sed | kubectl apply --validate=false -f -"
    )


def check_as_before(node: Node, texts: dict[str, str], *, running: object) -> None:
    assert read_manifests(node) == texts
    assert read_running(node) == running
    assert list_left(node) == []


def test_killed_in_the_middle(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The API server is out when kb is killed: the same command ends the upgrade."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    stored, version = read_stored(node), offer(node, "1.36")
    words = f"upgrade apply {version} --yes --no-drain"
    watch = f"until test -e {MANIFESTS}/.kube-apiserver.yaml.kb-former; do sleep 0.05; done"
    node.run(f"{KB} {words} >killed.log 2>&1 & p=$!; {watch}; kill -9 $p; true", timeout=600)
    upgrade(node, f"{APPLY} {version}")
    check_version(node, version)
    assert stored <= read_stored(node)
