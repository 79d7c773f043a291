"""`kb node remove` on real nodes: a living worker, a control plane that lost its power, the first one; what is refused; kills; and the same
names join again."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Callable

import pytest

from .lab import change_killer
from .lab.config import lab_config
from .lab.control_planes import ENDPOINT, IGNORE, KB, KEY, check_members, code_of, is_lost, lead_endpoint, read_members
from .lab.node import Node, wait_until
from .lab.shell import Result
from .test_join_load_balancer import init, join, make_join_command, wait_servers
from .world.podnet import connect_nodes

pytestmark = pytest.mark.k8s_versions("1.35", "1.36")
MakeNode = Callable[..., Node]
IN_TIME_S = 20.0
"""How long it may take to remove a control plane that is dead, and known to be."""


def make_cluster(first: Node, *others: Node, kb_pyz: Path) -> None:
    """Control planes and workers, by their names, behind load balancers of their own."""
    init(first, kb_pyz)
    for node in others:
        join(node, first, kb_pyz, control_plane=node.name.startswith("cp"))
    for node in (first, *others):
        first.wait_node_ready(node.name)


def remove(node: Node, name: str, words: str = "--yes", *, check: bool = True) -> Result:
    began = time.monotonic()
    done = node.run(f"{KB} node remove {name} {words}", check=check, timeout=600)
    print(f"{name} after {time.monotonic() - began:.1f} s", done.command, done.output, sep="\n", flush=True)
    return done


def wait_lost(node: Node, name: str) -> None:
    wait_until(lambda: is_lost(node, name), what=f"the cluster to miss {name}", timeout_s=120)


def remove_dead(node: Node, name: str) -> None:
    """At most IN_TIME_S, and nothing of it is left."""
    began = time.monotonic()
    remove(node, name)
    took_s = time.monotonic() - began
    assert took_s <= IN_TIME_S, took_s
    check_gone(node, name)


def check_gone(node: Node, name: str) -> None:
    nodes = [one["metadata"]["name"] for one in node.get("nodes")["items"]]
    leases = [one["metadata"]["name"] for one in node.get("leases -n kube-node-lease")["items"]]
    assert name not in nodes and name not in leases
    pods = node.get("pods -A")["items"]
    assert [one["metadata"]["name"] for one in pods if one["spec"].get("nodeName") == name] == []
    assert name not in [member["name"] for member in read_members(node)]


def killed(node: Node, name: str, change: str) -> None:
    """`kb node remove` ends by SIGKILL right after this change."""
    argv = shlex.split(f"kb.pyz node remove {name} --yes")
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    wish = {"argv": argv, "phase": "", "change": change, "nth": 1}
    done = node.run(["python3", "-I", "change_killer.py", json.dumps(wish)], check=False, timeout=600)
    assert '["killed"' in node.read(change_killer.CHANGES_LOG), (
        change,
        node.read(change_killer.CHANGES_LOG),
        done.output,
    )


def remove_killed_at_every_change(node: Node, name: str) -> list[str]:
    """The same command over and over, each time killed right after the first change that no run before has made, until one comes to its end.
    Returns the changes."""
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    known: list[list[str]] = []
    began = time.monotonic()
    while len(known) < 60:
        wish = {"argv": shlex.split(f"kb.pyz node remove {name} --yes"), "known": known}
        done = node.run(["python3", "-I", "change_killer.py", json.dumps(wish)], check=False, timeout=600)
        rows = [json.loads(line) for line in node.read(change_killer.CHANGES_LOG).splitlines()]
        if not rows or rows[-1][0] != "killed":
            assert done.code == 0, done.output
            print(done.output, flush=True)
            print(f"{name}: {len(known)} kills, {time.monotonic() - began:.0f} s", *known, sep="\n", flush=True)
            return [what for _, what in known]
        known.append(rows[-2])
    raise AssertionError(known)


@pytest.mark.k8s_versions("1.35")
def test_killed_at_every_change(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Of three control planes a living one and a dead one, and a living worker."""
    cp1, cp2, cp3, w1 = (make_node(name, version=k8s_version) for name in ("cp1", "cp2", "cp3", "w1"))
    make_cluster(cp1, cp2, cp3, w1, kb_pyz=kb_pyz)
    cp1.kubectl("create deployment web --image=registry.k8s.io/e2e-test/web:1 --replicas=2")
    cp1.wait_pods_ready("default", "app=web")
    cp1.run(f"{KB} etcd leader cp3", check=False)

    changes = remove_killed_at_every_change(cp1, "cp3")
    assert any("member/remove" in one for one in changes) and any(
        "DELETE" in one and "nodes/cp3" in one for one in changes
    )
    check_gone(cp1, "cp3")
    check_members(cp1, ["cp1", "cp2"])
    wait_servers(w1, [cp1.address, cp2.address], timeout_s=5)
    cp3.run(f"{KB} reset --force", timeout=300)
    cp3.run(make_join_command(cp1, control_plane=True), timeout=600)
    cp1.wait_node_ready("cp3")
    check_members(cp1, ["cp1", "cp2", "cp3"])

    cp2.kill()
    wait_lost(cp1, "cp2")
    changes = remove_killed_at_every_change(cp1, "cp2")
    assert any("member/remove" in one for one in changes) and any(
        "DELETE" in one and "nodes/cp2" in one for one in changes
    )
    check_gone(cp1, "cp2")
    check_members(cp1, ["cp1", "cp3"])

    remove_killed_at_every_change(cp3, "w1")
    check_gone(cp3, "w1")
    assert "kb-static-pods" not in cp1.kubectl("get leases -n kube-system -o name")
    assert not cp1.get("configmap kb-drained-api-servers -n kube-system").get("data")


VOLUME = """\
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: none.example}
spec: {attachRequired: true}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk-1}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  csi: {driver: none.example, volumeHandle: "1"}
  claimRef: {namespace: default, name: disk-1}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: disk-1}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", volumeName: disk-1, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer, labels: {app: writer}}
spec:
  nodeName: w1
  containers: [{name: c, image: "registry.k8s.io/e2e-test/web:1", volumeMounts: [{name: d, mountPath: /d}]}]
  volumes: [{name: d, persistentVolumeClaim: {claimName: disk-1}}]
"""
"""A volume of a driver that is none: who says that it is attached is the test."""


@pytest.mark.k8s_versions("1.35")
def test_a_dead_node_s_volumes_and_copies_of_its_disk(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, w1, w2 = (make_node(name, version=k8s_version) for name in ("cp1", "w1", "w2"))
    init(cp1, kb_pyz)
    join(w1, cp1, kb_pyz)
    cp1.wait_node_ready("w1")

    # a machine with a copy of another one's disk
    w1.run("tar -C / -cf /root/disk.tar etc/kubernetes var/lib/kb var/lib/kubelet/config.yaml var/lib/kubelet/pki")
    w2.scp(w1.root / "root/disk.tar", "/root/disk.tar")
    w2.scp(kb_pyz, "/root/kb.pyz")
    w2.run("tar -C / -xf /root/disk.tar")
    w2.write("/etc/machine-id", w1.read("/etc/machine-id"))
    refused = w2.run(make_join_command(cp1), check=False, timeout=300)
    print(refused.output, flush=True)
    assert code_of(refused) == "node-renamed" and "a copy of w1's" in refused.stderr
    w2.run("tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id")
    refused = w2.run(make_join_command(cp1), check=False, timeout=300)
    print(refused.output, flush=True)
    assert code_of(refused) == "state-foreign"
    # and one that has its name alone
    w2.run("rm -rf /etc/kubernetes /var/lib/kb /var/lib/kubelet/*")
    refused = w2.run(f"{make_join_command(cp1)} --node-name w1", check=False, timeout=300)
    print(refused.output, flush=True)
    assert code_of(refused) == "node-name-taken"

    # a dead node with an attached volume
    cp1.write("/root/volume.yaml", VOLUME)
    cp1.kubectl("apply -f /root/volume.yaml")

    def attachments() -> list[str]:
        return [one["metadata"]["name"] for one in cp1.get("volumeattachments")["items"]]

    wait_until(lambda: bool(attachments()), what="the volume to be attached", timeout_s=60)
    name = attachments()[0]
    cp1.kubectl(
        f"""patch volumeattachment {name} --subresource=status --type merge -p '{{"status":{{"attached":true}}}}'"""
    )
    wait_until(
        lambda: bool(cp1.get("node w1")["status"].get("volumesAttached")), what="the cluster to know it", timeout_s=60
    )
    w1.kill()
    wait_lost(cp1, "w1")
    assert attachments() == [name]
    done = remove(cp1, "w1")
    assert "still attached" not in done.stderr and attachments() == []
    assert "writer" not in cp1.kubectl("get pods -o name")


def test_nodes_leave_and_come_again(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, cp2, cp3, w1 = (make_node(name, version=k8s_version) for name in ("cp1", "cp2", "cp3", "w1"))
    cp3.save_disk()
    make_cluster(cp1, cp2, cp3, w1, kb_pyz=kb_pyz)
    cp1.kubectl("create deployment web --image=registry.k8s.io/e2e-test/web:1 --replicas=1")
    cp1.wait_pods_ready("default", "app=web")

    # what is refused changes nothing
    assert code_of(remove(cp1, "cp1", check=False)) == "node-is-this-one"
    asked = remove(cp1, "w1", "", check=False)
    assert code_of(asked) == "not-confirmed" and "default/web" not in asked.stderr.partition("stay")[0]
    foretold = remove(cp1, "cp2", "--dry-run")
    assert "member/remove" in foretold.stdout and "nothing was changed" in foretold.stdout
    cp3.kill()
    assert code_of(remove(cp1, "cp2", check=False)) == "etcd-removal-unsafe"
    check_now = {member["name"] for member in read_members(cp1)}
    assert check_now == {"cp1", "cp2", "cp3"}

    # a control plane without power; its machine comes again with a new disk, under the same name and address
    wait_lost(cp1, "cp3")
    remove_dead(cp2, "cp3")
    assert "nothing to do" in remove(cp2, "cp3").stderr
    check_members(cp1, ["cp1", "cp2"])
    cp3.restore_disk()
    began = time.monotonic()
    join(cp3, cp2, kb_pyz, control_plane=True)
    print(f"the machine with a new disk joined after {time.monotonic() - began:.1f} s", flush=True)
    cp1.wait_node_ready("cp3")
    check_members(cp1, ["cp1", "cp2", "cp3"])

    # the first one; its machine comes again with its old disk
    cp1.kill()
    wait_lost(cp2, "cp1")
    remove_dead(cp2, "cp1")
    check_members(cp2, ["cp2", "cp3"])
    wait_servers(w1, [cp2.address, cp3.address], timeout_s=120)
    cp1.start()
    said = cp1.run(f"{KB} reset --force", timeout=300)
    assert "last control plane" not in said.output, said.output
    cp1.run(make_join_command(cp2, control_plane=True), timeout=600)
    cp2.wait_node_ready("cp1")
    check_members(cp2, ["cp1", "cp2", "cp3"])

    # a living worker, and at once it is one again
    done = remove(cp3, "w1")
    assert "on w1: " in done.stdout and "reset --force" in done.stdout, done.stdout
    check_gone(cp3, "w1")
    w1.run(f"{KB} reset --force", timeout=300)
    join(w1, cp2, kb_pyz)
    cp2.wait_node_ready("w1")
    cp2.wait_pods_ready("default", "app=web")

    # a worker empties itself; it may do so with nobody else's node
    print(w1.run(f"{KB} node drain", timeout=300).output, flush=True)
    assert cp2.get("node w1")["spec"]["unschedulable"]
    assert code_of(w1.run(f"{KB} node drain cp2", check=False)) == "not-a-control-plane"
    w1.run(f"{KB} node uncordon")
    cp2.wait_pods_ready("default", "app=web")

    # a living control plane, killed after three of the changes
    members = json.loads(cp1.run(f"{KB} etcd members -o json").stdout)
    other = next(member for member in members if member["name"] != "cp2")
    server = f"https://{cp1.address}:6443/api/v1/nodes/cp2"
    killed(cp1, "cp2", f"http_send PATCH {server}")
    killed(cp1, "cp2", f"http_send POST {other['clientURLs'][0]}/v3/cluster/member/remove")
    killed(cp1, "cp2", f"http_send DELETE {server}")
    remove(cp1, "cp2")
    check_gone(cp1, "cp2")
    assert cp1.get("leases -n kube-system")["items"] and "kb-static-pods" not in cp1.kubectl(
        "get leases -n kube-system -o name"
    )
    said = cp2.run(f"{KB} reset --force", timeout=300)
    assert "last control plane" not in said.output, said.output
    cp2.run(make_join_command(cp1, control_plane=True), timeout=600)
    cp1.wait_node_ready("cp2")
    check_members(cp1, ["cp1", "cp2", "cp3"])

    # a machine in the place of another
    lines = cp1.run(f"{KB} node replace cp3").stdout.splitlines()
    assert lines[0].endswith("node remove cp3 --yes") and " --control-plane --certificate-key " in lines[1], lines


def test_a_cluster_of_kubeadm_s(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kb has made none of its nodes: a worker without power, and a living control plane, which kubeadm joins again."""
    cp1, cp2, w1 = (make_node(name, version=k8s_version, kubeadm=True) for name in ("cp1", "cp2", "w1"))
    lead_endpoint(cp1)
    cp1.write(
        "/root/init.yaml",
        lab_config(k8s_version, address=cp1.address, endpoint=ENDPOINT, init={"certificateKey": KEY}),
    )
    cp1.run(f"kubeadm init --config init.yaml --upload-certs {IGNORE}", timeout=600)
    command = cp1.run("kubeadm token create --print-join-command").stdout.strip()
    as_control_plane = f"{command} --control-plane --certificate-key {KEY} {IGNORE}"
    cp2.run(as_control_plane, timeout=600)
    w1.run(f"{command} {IGNORE}", timeout=300)
    connect_nodes([cp1, cp2, w1])
    for node in (cp1, cp2, w1):
        cp1.wait_node_ready(node.name)
    cp1.scp(kb_pyz, "/root/kb.pyz")

    w1.kill()
    wait_lost(cp1, "w1")
    remove_dead(cp1, "w1")
    done = remove(cp1, "cp2")
    assert "in a load balancer of your own" in done.stdout, done.stdout
    check_gone(cp1, "cp2")
    check_members(cp1, ["cp1"])
    assert not cp1.exists("/var/lib/kb/state.json")
    cp2.run("kubeadm reset --force", timeout=300)
    cp2.run(as_control_plane, timeout=600)
    cp1.wait_node_ready("cp2")
    check_members(cp1, ["cp1", "cp2"])
