"""`kb certs rotate-sa` and `kb certs rotate-ca cluster|etcd|front-proxy` are killed after every single change: the same command comes to a good end, and the
former key is refused then."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import pytest

from .lab.changes import kill_after_each_change_in_turn
from .lab.control_planes import KB
from .lab.node import Node
from .test_certs_rotate import ETCD, FRONT, PKI, SA, ask_etcd, is_over, rotate, speak_for_others, stage_of, status_of
from .test_certs_rotate_cluster import CLUSTER, keep_former, knows, status_with
from .test_day_two_killed import FEW, found

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]


def test_the_key_of_service_accounts(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = found(make_node, kb_pyz, k8s_version, name="cp1", cluster=FEW)

    def make_token() -> str:
        return node.kubectl("-n kube-system create token default --duration 24h").strip()

    def says(token: str) -> str:  # the account may read nothing: it is known, or it is not
        return status_of(node, node, f"-H 'Authorization: Bearer {token}'", "/api/v1/namespaces/default/configmaps")

    former = make_token()
    sweep(node, SA, "sa", needed=(f"write_file {PKI}/sa.pub", f"write_file {PKI}/sa.key"))
    following = make_token()
    assert (says(former), says(following)) == ("403", "403")
    sweep(node, f"{SA} --finish", "sa", needed=())
    assert (says(former), says(following)) == ("401", "403")
    check_end(node, SA)


def test_the_authority_of_the_front_proxy(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = found(make_node, kb_pyz, k8s_version, name="cp1", cluster=FEW)
    node.run(f"cp {PKI}/front-proxy-client.crt {PKI}/front-proxy-client.key /root/")
    needed = [f"write_file {PKI}/front-proxy-{name}" for name in ("ca.crt", "ca.key", "client.crt", "client.key")]
    sweep(node, FRONT, "front-proxy", needed=needed)
    assert [speak_for_others(node, node, folder) for folder in (PKI, "/root")] == ["200", "200"]
    sweep(node, f"{FRONT} --finish", "front-proxy", needed=())
    assert [speak_for_others(node, node, folder) for folder in (PKI, "/root")] == ["200", "401"]
    check_end(node, FRONT)


def test_the_authority_of_etcd(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = found(make_node, kb_pyz, k8s_version, name="cp1", cluster=FEW)
    node.run(f"cp {PKI}/etcd/healthcheck-client.crt {PKI}/etcd/healthcheck-client.key /root/")
    needed = [f"write_file {PKI}/etcd/{name}" for name in ("ca.crt", "ca.key", "server.crt", "peer.crt")]
    sweep(node, ETCD, "etcd", needed=needed)
    assert [ask_etcd(node, node, folder) for folder in (f"{PKI}/etcd", "/root")] == ["200", "200"]
    sweep(node, f"{ETCD} --finish", "etcd", needed=())
    assert [ask_etcd(node, node, folder) for folder in (f"{PKI}/etcd", "/root")] == ["200", "000"]
    check_end(node, ETCD)


def test_the_cluster_s_authority(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = found(make_node, kb_pyz, k8s_version, name="cp1", cluster=FEW)
    keep_former(node)
    server, own = f"{node.address}:6443", f"https://{node.address}:6443/api/v1/namespaces/default"
    names = ("ca-signing.crt", "ca.crt", "ca.key", "apiserver.crt", "apiserver.key", "apiserver-kubelet-client.crt")
    confs = [
        f"write_file /etc/kubernetes/{name}.conf" for name in ("admin", "controller-manager", "scheduler", "kubelet")
    ]
    sweep(node, CLUSTER, "cluster", needed=[*(f"write_file {PKI}/{name}" for name in names), *confs])
    assert [knows(node, server, ca) for ca in ("/root/former.crt", f"{PKI}/ca.crt")] == [True, True]
    assert status_with(node, own, "/root/old.pem") == "200"
    sweep(node, f"{CLUSTER} --finish", "cluster", needed=())
    assert [knows(node, server, ca) for ca in ("/root/former.crt", f"{PKI}/ca.crt")] == [False, True]
    assert status_with(node, own, "/root/old.pem") == "401"
    check_end(node, CLUSTER)


def sweep(node: Node, command: str, what: str, *, needed: Sequence[str]) -> None:
    """Kill it after each change in turn, until it comes to its end: it waits for the last stage's word, or has nothing left to do."""
    is_last = "--finish" in command
    argv = [*shlex.split(command)[1:], "--yes"]
    killed = [
        change
        for _, change in kill_after_each_change_in_turn(node, argv, ends="no-rotation" if is_last else "ended with 0")
    ]
    print(f"{what}: killed after each of {len(killed)} changes", *killed, sep="\n  ", flush=True)
    missing = [one for one in needed if one not in killed]
    assert not missing, missing
    assert any("kb-rotation" in one for one in killed), killed
    if not is_last:
        assert stage_of(node) == "use"


def check_end(node: Node, command: str) -> None:
    """Nothing is left of it, nothing has drifted, and the node works."""
    rotate(node, command, "--continue")
    assert is_over(node)
    node.wait_node_ready()
    drifted = node.run(f"{KB} drift", check=False)
    assert drifted.code == 0, drifted.output
    left = node.run("ls -A /var/lib/kb/swap /etc/kubernetes/manifests 2>/dev/null; true").stdout
    assert ".kb-" not in left, left
