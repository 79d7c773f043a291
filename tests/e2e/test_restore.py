"""kb restore on real nodes: the same machine, and another one of another name, whose further control planes join again."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab import settings, watcher
from .lab.bundles import BARE, make_bundle
from .lab.config import lab_config
from .lab.control_planes import (
    IGNORE,
    KB,
    KEY,
    check_members,
    code_of,
    join_control_plane,
    kubectl,
    lead_endpoint,
    start_cluster,
    wait_kubectl,
)
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import find_release
from .lab.static_pods import start_program
from .world import apt_repository
from .world.web import check_cluster_serves

MakeNode = Callable[..., Node]
FEW = {"encryptionAlgorithm": "ECDSA-P256"}
BACKUP = "/root/b.tar"
BAR_S = 180.0
AGE = shutil.which("age") or ""


def has_etcdutl() -> bool:
    releases = settings.read_releases()
    return "1.35" in releases and (releases["1.35"].folder / "etcdutl").exists()


pytestmark = [
    pytest.mark.k8s_versions("1.34", "1.35", "1.36"),
    pytest.mark.skipif(not has_etcdutl(), reason="needs $KB_E2E_BIN/1.35/etcdutl"),
]


def make_control_plane(make_node: MakeNode, kb_pyz: Path, version: str, name: str = "cp1") -> Node:
    node = make_node(name, version=version)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write(
        "/root/init.yaml",
        lab_config(version, address=node.address, cluster=FEW, kb={"podNetwork": {"plugin": "bridge"}}),
    )
    node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
    node.wait_node_ready()
    return node


def own_kubectl(node: Node, words: str) -> str:
    return kubectl(node, words, server=f"{node.address}:6443").stdout


def test_the_same_machine(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """What came after the backup is gone, what was deleted after it is back, and whoever watches goes on."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    own_kubectl(node, "create configmap before --from-literal=a=1")
    own_kubectl(node, "taint node cp1 node-role.kubernetes.io/control-plane-")
    own_kubectl(node, f"create deployment web --image=registry.k8s.io/pause:{node.release.facts.pause} --replicas=2")
    node.run(f"{KB} backup -o {BACKUP}", timeout=120)
    own_kubectl(node, "delete configmap before")
    own_kubectl(node, "create configmap after --from-literal=a=1")
    own_kubectl(node, "delete deployment web")
    revision = int(own_kubectl(node, "get configmap after -o jsonpath={.metadata.resourceVersion}"))

    refused = node.run(f"{KB} restore {BACKUP}", check=False, timeout=120)
    assert code_of(refused) == "cluster-lives"
    began = time.monotonic()
    print(node.run(f"{KB} restore {BACKUP} --force {IGNORE}", timeout=600).output)
    print(f"restored in {time.monotonic() - began:.0f} s")
    wait_kubectl(node, f"--server https://{node.address}:6443 get configmap before", timeout_s=30)
    assert "after" not in own_kubectl(node, "get configmaps")
    assert (
        int(own_kubectl(node, "get configmap before -o jsonpath={.metadata.resourceVersion}"))
        <= revision + 1_000_000_000
    )
    own_kubectl(node, "create configmap new --from-literal=a=1")
    assert int(own_kubectl(node, "get configmap new -o jsonpath={.metadata.resourceVersion}")) > revision + 900_000_000
    wait_until(
        lambda: "2/2" in own_kubectl(node, "get deployment web"), what="the deployment's pods run again", timeout_s=120
    )
    assert node.run("ls -d /etc/kubernetes.kb-before-restore-* /var/lib/etcd/.kb-before-restore-*").stdout, (
        "the lab mounts etcd's folder"
    )


def test_another_machine_and_control_planes_that_join_it(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Three new machines within the bar; the first has another name and address."""
    old = make_control_plane(make_node, kb_pyz, k8s_version, "cp1")
    own_kubectl(old, "create configmap before --from-literal=a=1")
    old.run(f"{KB} backup -o {BACKUP}", timeout=120)
    data = old.disk_path(BACKUP).read_bytes()
    old.kill()

    nodes = [make_node(name, version=k8s_version) for name in ("new1", "new2", "new3")]
    for node in nodes:
        node.scp(kb_pyz, "/root/kb.pyz")
    first = nodes[0]
    first.disk_path(BACKUP).write_bytes(data)
    began = time.monotonic()
    words = f"--control-plane-endpoint {first.address}:6443"
    print(first.run(f"{KB} restore {BACKUP} {words} {IGNORE}", timeout=600).output)
    took = time.monotonic() - began
    wait_kubectl(first, f"--server https://{first.address}:6443 get configmap before", timeout_s=30)
    assert "cp1" not in own_kubectl(first, "get nodes -o name")
    first.run(f"{KB} init phase upload-certs --upload-certs --certificate-key {'ab' * 32}", timeout=120)
    for node in nodes[1:]:
        join_control_plane(node, first)
    total = time.monotonic() - began
    print(f"the first in {took:.0f} s, all three in {total:.0f} s")
    check_members(first, ("new1", "new2", "new3"))
    assert total < BAR_S


DEPLOY = "deployment-controller"
KEEPER = "/root/kube-controller-manager"


def start_those_who_live_through_it(client: Node, admin: str) -> None:
    """On a machine beside the cluster, called by its endpoint: a watcher, and the cluster's only controller of Deployments."""
    client.write("/root/admin.conf", admin, mode=0o600)
    client.scp(watcher.PROGRAM, "/root/watcher.py")
    client.scp(client.release.folder / "kube-controller-manager", KEEPER)
    start_program(client, "watcher", ["python3", "watcher.py", "/root/admin.conf", "/root/copy.json"])
    argv = [
        KEEPER,
        "--kubeconfig=/root/admin.conf",
        f"--controllers={DEPLOY}",
        "--leader-elect=false",
        "--secure-port=0",
    ]
    start_program(client, "keeper", argv)
    wait_until(lambda: client.exists("/root/copy.json"), what="the watcher's first list", timeout_s=30)


def read_copy(client: Node) -> Any:
    return json.loads(client.read("/root/copy.json"))


def is_rolled_out(node: Node, name: str, *, number: str = "") -> bool:
    """Whether the controller has seen the Deployment as it is, and made it a ReplicaSet of its template, which has that NUMBER.

    There may be others: whoever reads the restored ReplicaSets before the restored Deployment makes one of the template that it knows."""
    made = json.loads(own_kubectl(node, f"get deployment {name} -o json"))
    found = json.loads(own_kubectl(node, f"get replicasets -l app={name} -o json"))["items"]
    own = [one for one in found if one["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]]
    numbers = {one["spec"]["template"]["spec"]["containers"][0].get("env", [{"value": ""}])[0]["value"] for one in own}
    return made["status"].get("observedGeneration") == made["metadata"]["generation"] and number in numbers


def test_three_new_machines_and_who_lived_through_it(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """All machines of the cluster are lost. A watcher and a controller run on beside it: what they know of the time after the backup is
    given up, and they work on what is restored without being started again."""
    names = ("new1", "new2", "new3")
    without = [{"name": "controllers", "value": f"*,bootstrapsigner,tokencleaner,-{DEPLOY}"}]
    cluster = {**FEW, "controllerManager": {"extraArgs": without}}
    old = start_cluster(make_node, kb_pyz, k8s_version, names=("cp1",), cluster=cluster)[0]
    client = make_node("client", version=k8s_version)
    start_those_who_live_through_it(client, old.read("/etc/kubernetes/admin.conf"))
    pids = "systemctl show -p MainPID --value keeper watcher"
    lived = client.run(pids).stdout
    image = f"registry.k8s.io/pause:{old.release.facts.pause}"
    for name in ("kept", "changed"):
        own_kubectl(old, f"create deployment {name} --image={image} --replicas=0")
        own_kubectl(old, f"create configmap {name} --from-literal=a=1")
    wait_until(lambda: is_rolled_out(old, "kept") and is_rolled_out(old, "changed"), what="both", timeout_s=60)
    old.run(f"{KB} backup -o {BACKUP}", timeout=120)
    data = old.disk_path(BACKUP).read_bytes()

    # what the restore takes back: objects made, deleted and changed after the backup, which both have seen
    own_kubectl(old, "create configmap after --from-literal=a=1")
    own_kubectl(old, "delete configmap kept")
    own_kubectl(old, "delete deployment kept")
    own_kubectl(old, f"create deployment after --image={image} --replicas=0")
    for number in range(3):
        own_kubectl(old, f"set env deployment changed NUMBER={number}")
    wait_until(
        lambda: is_rolled_out(old, "changed", number="2") and is_rolled_out(old, "after"), what="all", timeout_s=60
    )
    wait_until(
        lambda: {"after", "kept"} & set(read_copy(client)["copy"]) == {"after"}, what="the watcher", timeout_s=30
    )
    seen = read_copy(client)["at"]
    old.kill()

    nodes = [make_node(name, version=k8s_version) for name in names]
    first = nodes[0]
    for node in nodes:
        node.scp(kb_pyz, "/root/kb.pyz")
    first.disk_path(BACKUP).write_bytes(data)
    began = time.monotonic()
    lead_endpoint(first, [*nodes, client])
    print(first.run(f"{KB} restore {BACKUP} {IGNORE}", timeout=600).output)
    took = time.monotonic() - began
    first.run(f"{KB} init phase upload-certs --upload-certs --certificate-key {KEY}", timeout=120)
    for node in nodes[1:]:
        join_control_plane(node, first)
    total = time.monotonic() - began
    check_members(first, names)
    print(f"restored: the first in {took:.0f} s, all three in {total:.0f} s")

    stored = {row["metadata"]["name"]: row["metadata"]["uid"] for row in first.get("configmaps -n default")["items"]}
    assert "kept" in stored and "after" not in stored
    wait_until(lambda: read_copy(client)["copy"] == stored, what="the watcher to follow", timeout_s=90)
    print(f"the watcher followed {time.monotonic() - began:.0f} s after the restore began: {read_copy(client)}")
    assert read_copy(client)["back"] == 0 and read_copy(client)["at"] > seen + 900_000_000
    own_kubectl(first, "create configmap after --from-literal=a=2")
    wait_until(lambda: "after" in read_copy(client)["copy"], what="what is made after the restore", timeout_s=20)

    # what it had seen last of `changed` was of a higher generation, and `after` and `kept` were other objects
    own_kubectl(first, "set env deployment changed NUMBER=new")
    own_kubectl(first, "set env deployment kept NUMBER=new")
    own_kubectl(first, f"create deployment after --image={image} --replicas=0")
    for name, value in (("changed", "new"), ("kept", "new"), ("after", "")):
        wait_until(lambda: is_rolled_out(first, name, number=value), what=f"{name} to be rolled out", timeout_s=90)  # noqa: B023
    print(f"the controller followed {time.monotonic() - began:.0f} s after the restore began")
    print(own_kubectl(first, "get replicasets -o wide"))
    assert client.run(pids).stdout == lived, "neither was started again"
    assert total < BAR_S


def test_a_new_machine_of_the_same_name_and_a_worker_that_lived_through_it(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str
) -> None:
    """The control plane's machine is lost, with its disk. The worker's pods go on; kube-proxy there, a controller that has watched the
    cluster of before, follows the restored one."""
    old, worker = make_control_plane(make_node, kb_pyz, k8s_version), make_node("w1", version=k8s_version)
    worker.scp(kb_pyz, "/root/kb.pyz")
    worker.run(f"{old.run(f'{KB} token create --print-join-command').stdout.strip()} --soak 0 {IGNORE}", timeout=300)
    own_kubectl(old, "create deployment web --image=registry.k8s.io/e2e-test/web:1 --replicas=2 -- httpd -f -p 8080")
    wait_until(lambda: "2/2" in own_kubectl(old, "get deployment web"), what="the pods", timeout_s=120)
    old.run(f"{KB} backup -o {BACKUP}", timeout=120)
    data, address = old.disk_path(BACKUP).read_bytes(), old.address
    own_kubectl(old, "create configmap after --from-literal=a=1")
    before = set(worker.run("crictl ps -q").stdout.split())
    lab.remove_node(old)

    new = make_node("cp1", version=k8s_version)
    assert new.address == address
    new.scp(kb_pyz, "/root/kb.pyz")
    new.disk_path(BACKUP).write_bytes(data)
    restored = json.loads(new.run(f"{KB} restore {BACKUP} -o json {IGNORE}", timeout=600).stdout)
    assert restored["remaining"] == ["ssh w1 systemctl restart kubelet"], restored
    worker.run("systemctl restart kubelet")
    wait_until(lambda: " Ready " in own_kubectl(new, "get node w1"), what="the worker", timeout_s=120)
    assert "after" not in own_kubectl(new, "get configmaps")
    own_kubectl(new, "expose deployment web --port 80 --target-port 8080")
    service = own_kubectl(new, "get service web -o jsonpath={.spec.clusterIP}")
    wait_until(lambda: worker.run(f"curl -s -m 2 -o /dev/null http://{service}/", check=False).ok,
               what="kube-proxy on the worker to follow", timeout_s=120)  # fmt: skip
    own_kubectl(new, "scale deployment web --replicas=3")
    wait_until(lambda: "3/3" in own_kubectl(new, "get deployment web"), what="the third pod", timeout_s=120)
    assert before <= set(worker.run("crictl ps -q").stdout.split()), "no container of before was restarted"


@pytest.mark.k8s_versions("1.35")
def test_a_machine_with_nothing_on_it(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    """The control plane's machine is lost, and the new one has neither runtime nor kubelet nor network: all comes out of a bundle."""
    old = make_control_plane(make_node, kb_pyz, k8s_version)
    own_kubectl(old, "create configmap before --from-literal=a=1")
    old.run(f"{KB} backup -o {BACKUP}", timeout=120)
    data, address = old.disk_path(BACKUP).read_bytes(), old.address
    lab.remove_node(old)
    bundle = make_bundle(lab, kb_pyz, find_release(k8s_version), tmp_path / "all.tar")

    new = make_node("cp1", version=k8s_version, **BARE)
    assert new.address == address
    new.scp(kb_pyz, "/root/kb.pyz")
    new.disk_path(BACKUP).write_bytes(data)
    refused = new.run(f"{KB} restore {BACKUP} {IGNORE}", check=False, timeout=120)
    print(refused.output)
    assert refused.code != 0 and not new.exists("/etc/kubernetes/pki")
    new.scp(bundle, "/root/all.tar")
    lab.clear_outside()
    began = time.monotonic()
    print(new.run(f"{KB} restore {BACKUP} --bundle all.tar --air-gapped {IGNORE}", timeout=600).output)
    print(f"restored on a bare machine in {time.monotonic() - began:.0f} s")
    wait_kubectl(new, f"--server https://{new.address}:6443 get configmap before", timeout_s=30)
    new.wait_node_ready()
    check_cluster_serves(new)
    assert not [asked for asked in lab.list_outside() if not asked.endswith(". udp . 53")]


@pytest.mark.k8s_versions("1.35")
def test_a_machine_whose_programs_are_packages(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    """The new machine is bare; its programs come by apt, its images from a mirror."""
    missing = [program for program in apt_repository.PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install dpkg-dev gnupg openssl")
    old = make_control_plane(make_node, kb_pyz, k8s_version)
    own_kubectl(old, "create configmap before --from-literal=a=1")
    old.run(f"{KB} backup -o {BACKUP}", timeout=120)
    data, address = old.disk_path(BACKUP).read_bytes(), old.address
    lab.remove_node(old)
    release = find_release(k8s_version)
    repository = apt_repository.AptRepository(lab, release, tmp_path)
    repository.build()
    lab.registry.add_release(release)
    mirror = f"http://{lab.registry.start().address}"

    new = make_node("cp1", version=k8s_version, **BARE)
    assert new.address == address
    new.scp(kb_pyz, "/root/kb.pyz")
    new.disk_path(BACKUP).write_bytes(data)
    line = f"{KB} restore {BACKUP} --packages apt --mirror {mirror} {IGNORE}"
    refused = new.run(line, check=False, timeout=300)
    print(refused.output)
    assert refused.code and not new.exists("/etc/kubernetes/pki") and not new.exists("/usr/bin/kubelet")
    repository.start()
    try:
        repository.offer_to(new)
        lab.clear_outside()
        began = time.monotonic()
        print(new.run(line, timeout=600).output)
        print(f"restored on a bare machine by its packages in {time.monotonic() - began:.0f} s")
        wait_kubectl(new, f"--server https://{new.address}:6443 get configmap before", timeout_s=30)
        new.wait_node_ready()
        check_cluster_serves(new)
        assert "kubelet" in new.run("dpkg-query -W kubelet").stdout
        assert not [asked for asked in lab.list_outside() if not asked.endswith(". udp . 53")]
    finally:
        repository.stop()


@pytest.mark.k8s_versions("1.35", "1.36")
def test_a_machine_that_has_another_name_now(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The machine of the backup itself, with the same address: its node, its member of etcd and its certificates follow the new name."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    own_kubectl(node, "create configmap before --from-literal=a=1")
    node.run(f"{KB} backup -o {BACKUP}", timeout=120)
    node.run(f"echo renamed >/etc/hostname; hostname renamed; echo {node.address} renamed >>/etc/hosts")
    print(node.run(f"{KB} restore {BACKUP} --force {IGNORE}", timeout=600).output)
    wait_kubectl(node, f"--server https://{node.address}:6443 get configmap before", timeout_s=30)
    node.wait_node_ready("renamed")
    assert own_kubectl(node, "get nodes -o name").split() == ["node/renamed"]
    check_members(node, ("renamed",))
    wait_until(
        lambda: (
            "kube-apiserver-renamed" in (shown := own_kubectl(node, "-n kube-system get pods")) and "-cp1" not in shown
        ),
        what="the static pods of the new name alone",
        timeout_s=120,
    )
    names = node.run("openssl x509 -in /etc/kubernetes/pki/apiserver.crt -noout -ext subjectAltName").stdout
    assert "DNS:renamed" in names and "DNS:cp1" not in names, names


@pytest.mark.k8s_versions("1.35")
@pytest.mark.skipif(not AGE, reason="needs age on this machine")
def test_an_encrypted_one(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """By its file and by a pipe; with a wrong key, cut off and with a flipped byte it is refused before anything stops."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    for program in ("age", "age-keygen"):
        node.scp(Path(AGE).with_name(program), f"/usr/local/bin/{program}")
    node.run("age-keygen -o key.txt; age-keygen -o other.txt; age-keygen -y key.txt > to.txt")
    own_kubectl(node, "create configmap before --from-literal=a=1")
    node.run(f"{KB} backup -o b.age --age $(cat to.txt)", timeout=120)
    size = int(node.run("stat -c %s b.age").stdout)
    node.run(f"head -c {size // 2} b.age > cut.age; head -c 100 b.age > head.age")
    node.run(f"cp b.age flipped.age; printf x | dd of=flipped.age bs=1 seek={size // 2} conv=notrunc status=none")
    state = "find /etc/kubernetes /var/lib/kb -type f | sort | xargs sha256sum; crictl ps -q | sort"
    before = node.run(state).stdout

    def refused(code: str, line: str) -> None:
        answer = node.run(line, check=False, timeout=120)
        print(line, answer.stderr, sep="\n")
        assert code_of(answer) == code and node.run(state).stdout == before, (line, answer.output)

    refused("backup-encrypted", f"{KB} restore b.age --force {IGNORE}")
    refused("backup-key-wrong", f"{KB} restore b.age --identity other.txt --force {IGNORE}")
    refused("backup-key-wrong", f"{KB} restore b.age --identity none.txt --force {IGNORE}")
    for name in ("cut.age", "head.age", "flipped.age"):
        refused("backup-damaged", f"{KB} restore {name} --identity key.txt --force {IGNORE}")
    refused("backup-damaged", f"cat cut.age | {KB} restore - --identity key.txt --force {IGNORE}")
    refused("backup-truncated", f"age -d -i key.txt cut.age 2>/dev/null | {KB} restore - --force {IGNORE}")
    for line in (
        f"{KB} restore b.age --identity key.txt --force {IGNORE}",
        f"cat b.age | {KB} restore - --identity key.txt --force {IGNORE}",
        f"age -d -i key.txt b.age | {KB} restore - --force {IGNORE}",
    ):
        own_kubectl(node, "delete configmap before")
        began = time.monotonic()
        node.run(line, timeout=600)
        print(f"{time.monotonic() - began:.0f} s: {line}")
        wait_kubectl(node, f"--server https://{node.address}:6443 get configmap before", timeout_s=30)


def test_killed_and_run_again(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    old = make_control_plane(make_node, kb_pyz, k8s_version)
    own_kubectl(old, "create configmap before --from-literal=a=1")
    old.run(f"{KB} backup -o {BACKUP}", timeout=120)
    for seconds in (3, 8, 15):
        old.run(f"timeout -s KILL {seconds} {KB} restore {BACKUP} --force {IGNORE}", check=False, timeout=120)
    print(old.run(f"{KB} restore {BACKUP} --force {IGNORE}", timeout=600).output)
    wait_kubectl(old, f"--server https://{old.address}:6443 get configmap before", timeout_s=60)
