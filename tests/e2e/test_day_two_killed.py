"""`kb restore`, `kb etcd recover` and `kb certs recover` are killed after what they change: the same command comes to a good end, and
nothing is lost. With KB_E2E_EVERY_KILL=1 after every single change, which takes up to half an hour; else after a few of them.
KB_E2E_FIRST_ROUND=7 goes on with a sweep of restore's that was broken off after the round before."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable

import pytest

from .lab.changes import Moment, kill_at_every_change
from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, check_members, join_control_plane, lead_endpoint, print_join, start_cluster
from .lab.node import Node, wait_until
from .lab.static_pods import fill_store, list_left, read_stored
from .test_certs_recover import are_ready, recover, short, stop_kubelets, wait_until_over

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
FEW = {"encryptionAlgorithm": "ECDSA-P256", "dns": {"disabled": True}, "proxy": {"disabled": True}}
"""Nothing here is about keys, DNS and Services."""
EVERY = os.environ.get("KB_E2E_EVERY_KILL", "") not in ("", "0")
FIRST = int(os.environ.get("KB_E2E_FIRST_ROUND", "0"))
COUNTED = 100


def only(*words: str) -> Callable[[Moment], bool]:
    """The moments whose change has one of these words; every one if that was asked for."""

    def is_wanted(moment: Moment) -> bool:
        if EVERY:  # a folder of kb's own is made only once, and the same record is not written again
            return "make_dir /var/lib/kb" not in moment.change and "/records/" not in moment.change
        return moment.nth == 1 and any(re.search(word, str(moment)) for word in words)

    return is_wanted


def show(killed: Sequence[Moment]) -> None:
    print(f"killed after each of {len(killed)} changes", *killed, sep="\n  ")


def read_kept(node: Node) -> set[str]:
    """What is stored, without the tokens by which nodes join: each run may make one."""
    return {row for row in read_stored(node) if " bootstrap-token-" not in row}


def found(make_node: MakeNode, kb_pyz: Path, version: str, *, name: str, cluster: Mapping[str, object]) -> Node:
    node = make_node(name, version=version)
    node.scp(kb_pyz, "/root/kb.pyz")
    kb = {"podNetwork": {"plugin": "bridge"}}
    node.write("/root/init.yaml", lab_config(version, address=node.address, cluster=cluster, kb=kb))
    node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
    node.wait_node_ready()
    return node


# ---- restore


def test_a_restore(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """On the machine of the backup, which has been restored before: nothing of an earlier run may pass for this one's."""
    node = found(make_node, kb_pyz, k8s_version, name="r1", cluster=FEW)
    fill_store(node, COUNTED)
    node.run(f"{KB} backup -o /root/b.tar", timeout=120)
    stored, number = read_kept(node), 0
    argv = shlex.split(f"kb.pyz restore /root/b.tar --force {IGNORE}")

    def spoil() -> None:
        nonlocal number
        number += 1
        node.run("rm -rf /etc/kubernetes.kb-before-* /var/lib/kubelet/pki.kb-before-* /var/lib/etcd/.kb-before-*")
        node.kubectl(f"create configmap after-{number}")
        node.kubectl("delete configmap counted-0")

    def check(moment: str) -> None:
        wait_until(lambda: read_kept(node) == stored, what=f"the objects of the backup, {moment}", timeout_s=60)
        left = node.run(
            "ls -dA /etc/kubernetes.kb-* /var/lib/etcd/.kb-* /var/lib/kb/restore/* /run/kb-* 2>/dev/null; true"
        ).stdout
        for place in ("/etc/kubernetes.kb-before-restore-", "/var/lib/etcd/.kb-before-restore-"):
            assert place in left, (moment, left)
        assert "kb-restored" not in left and "snapshot.db" not in left and "kb-image" not in left, (moment, left)
        assert json.loads(node.read("/var/lib/kb/restore/restore.json"))["done"] is True, moment
        check_members(node, ["r1"])

    spoil()
    few = only("restore.json", "move_file .*kb-", "kubernetes/pki/ca.key", "manifests/", "systemctl")
    show(kill_at_every_change(node, argv, (), check=check, restore=spoil, wanted=few, first=FIRST))


# ---- etcd recover


KEPT = ".kb-before-recover"


def test_an_etcd_that_recovers(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The last of three, whose recovery is taken back each time."""
    nodes = start_cluster(make_node, kb_pyz, k8s_version, names=("e1", "e2", "e3"), cluster=FEW)
    node = nodes[0]
    for other in nodes[1:]:
        join_control_plane(other, node)
    fill_store(node, COUNTED)
    stored, manifest = read_kept(node), "/etc/kubernetes/manifests/etcd.yaml"
    former = node.read(manifest)
    for other in nodes[1:]:
        other.kill()
    node.reboot()  # an API server that runs on may call itself ready for more than a minute
    lead_endpoint(node)
    argv = shlex.split("kb.pyz etcd recover --lost e2 --lost e3 --yes")

    def check(moment: str) -> None:
        check_members(node, ["e1"])
        wait_until(lambda: read_kept(node) == stored, what=f"the same objects, {moment}", timeout_s=60)
        assert "--force-new-cluster" not in node.read(manifest) and list_left(node) in ([], [KEPT]), (
            moment,
            list_left(node),
        )

    def take_back() -> None:
        node.run(f"{KB} etcd recover --undo --yes", timeout=300)
        assert node.read(manifest) == former and list_left(node) == []
        node.run("systemctl restart kubelet")  # a pod of the same contents would start later and later

    few = only("recovery.json", "kb-before-recover", "manifests/etcd.yaml", "manifests/kube-apiserver.yaml")
    show(kill_at_every_change(node, argv, (), check=check, restore=take_back, wanted=few))


# ---- certs recover


PLACES = "/etc/kubernetes /var/lib/kubelet/pki"


def keep_expired(node: Node) -> Callable[[], None]:
    """What brings the node back to the files that it has now. Folders stay, since containers have them mounted."""
    node.run(f"tar cf /root/expired.tar {PLACES}")
    new = "/var/lib/kubelet/pki/kubelet-client-* /etc/kubernetes/bootstrap-kubelet.conf"

    def put_back() -> None:
        node.run(f"systemctl stop kubelet; rm -f {new}; tar xf /root/expired.tar -C /; systemctl start kubelet")

    return put_back


def test_certificates_that_are_recovered(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = found(make_node, kb_pyz, k8s_version, name="c1", cluster={**FEW, **short(3)})
    fill_store(node, COUNTED)
    stored = read_kept(node)
    keys = "sha256sum /etc/kubernetes/pki/*.key /etc/kubernetes/pki/*/*.key /etc/kubernetes/pki/sa.pub"
    before = node.run(keys).stdout
    stop_kubelets([node])
    wait_until_over(node)
    put_back = keep_expired(node)
    put_back()

    def check(moment: str) -> None:
        check_recovered(node, moment)
        wait_until(lambda: read_kept(node) == stored, what=f"the same objects, {moment}", timeout_s=60)
        assert node.run(keys).stdout == before, moment

    argv = shlex.split("kb.pyz certs recover")
    few = only("recovery.json", "pki/apiserver.crt", "admin.conf", "kubelet-client", "systemctl", "crictl")
    show(kill_at_every_change(node, argv, (), check=check, restore=put_back, wanted=few))


def check_recovered(node: Node, moment: str) -> None:
    assert recover(node)["expired"] == [], moment
    left = node.run("ls /etc/kubernetes /var/lib/kb").stdout.split()
    assert "bootstrap-kubelet.conf" not in left and "recovery.json" not in left, (moment, left)


def test_a_worker_that_asks_for_its_certificate(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    life = {"controllerManager": short(3)["controllerManager"]}
    server = found(make_node, kb_pyz, k8s_version, name="s1", cluster={**FEW, **life})
    worker = make_node("w1", version=k8s_version)
    worker.scp(kb_pyz, "/root/kb.pyz")
    words = print_join(server)
    worker.run(f"{KB} {words} --soak 0 {IGNORE}", timeout=600)
    wait_until(lambda: are_ready(server, 2), what="two nodes", timeout_s=60)
    uid = server.get("node w1")["metadata"]["uid"]
    stop_kubelets([worker])
    wait_until_over(worker)
    put_back = keep_expired(worker)
    put_back()

    def check(moment: str) -> None:
        check_recovered(worker, moment)
        wait_until(lambda: are_ready(server, 2), what=f"both are Ready, {moment}", timeout_s=60)
        assert server.get("node w1")["metadata"]["uid"] == uid, moment

    argv = shlex.split(f"kb.pyz certs recover {words.partition(' --')[1]}{words.partition(' --')[2]}")
    few = only("recovery.json", "bootstrap-kubelet.conf", "systemctl")
    show(kill_at_every_change(worker, argv, (), check=check, restore=put_back, wanted=few))
