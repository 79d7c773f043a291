"""`kb backup` and `kb backup verify` on real nodes: whole or not there, nobody notices, and a cluster comes out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.config import lab_config, list_ignored_checks
from .lab.node import Node, wait_until
from .lab.shell import Result
from .lab.static_pods import Client, fill_store

MakeNode = Callable[..., Node]
KB = "python3 kb.pyz"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
FILE = "/root/b.tar"
ENCRYPTION = """\
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - aescbc: {keys: [{name: one, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}
  - identity: {}
"""
APISERVER = {
    "extraArgs": [{"name": "encryption-provider-config", "value": "/enc/config.yaml"}],
    "extraVolumes": [{"name": "enc", "hostPath": "/etc/enc", "mountPath": "/enc", "readOnly": True}],
}


@pytest.fixture
def node(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> Node:
    """A control plane whose Secrets are encrypted at rest, with some objects."""
    made = make_node("cp1", version=k8s_version)
    made.scp(kb_pyz, "/root/kb.pyz")
    made.write("/etc/enc/config.yaml", ENCRYPTION)
    made.write("/root/init.yaml", lab_config(k8s_version, address=made.address, cluster={"apiServer": APISERVER}))
    made.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
    made.wait_node_ready()
    fill_store(made)
    made.kubectl("create secret generic known --from-literal=word=plain")
    return made


def ask(node: Node, words: str, *, timeout: float = 120) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(node.run(f"{KB} {words}", timeout=timeout).stdout)
    return shown


def refused(node: Node, words: str, *, code: str) -> str:
    answer = node.run(f"{KB} {words}", check=False, timeout=120)
    assert answer.code != 0 and f"code:   {code}" in answer.output, answer.output
    return answer.output


def list_left(node: Node) -> list[str]:
    """What a backup or a rehearsal may not leave behind."""
    shown = node.run(
        "ls -A /root /var/lib/kb /run; systemctl list-units --all --plain --no-legend 'kb-rehearsal-*'; grep kb-image /proc/mounts; true"
    ).stdout
    return [word for word in shown.split() if "kb-rehearsal" in word or "kb-image" in word or ".kb-" in word]


def test_backup(node: Node, k8s_version: str) -> None:
    check_dry_run(node)
    check_made(node)
    check_damaged(node)
    check_killed(node)
    check_etcd_dies(node)
    check_rehearsed(node)


def check_dry_run(node: Node) -> None:
    told = ask(node, "backup --dry-run --output json")
    names = {row["name"] for row in told["entries"]}
    assert {"files/etc/enc/config.yaml", "files/etc/kubernetes/pki/ca.key", "objects/kubeadm-config.yaml"} <= names
    assert not node.exists(FILE)


def check_made(node: Node) -> None:
    client = Client(node, "new")
    client.start()
    told = ask(node, f"backup -o {FILE} --output json")
    calls = client.stop()
    assert calls.failed == [], calls.failed
    assert told["about"]["objects"] >= 300 and told["about"]["revision"] > 0
    assert node.run(f"stat -c '%a %U' {FILE}").stdout.split() == ["600", "root"]
    piped = node.run(f"{KB} backup -o - | sha256sum; {KB} backup -o - | tar -tf - | head -2").stdout.splitlines()
    assert piped[1:] == ["manifest.json", "etcd/snapshot.db"]
    assert list_left(node) == []


def check_damaged(node: Node) -> None:
    size = int(node.run(f"stat -c %s {FILE}").stdout)
    node.run(f"cp {FILE} bad.tar; printf x | dd of=bad.tar bs=1 seek={size // 2} conv=notrunc status=none")
    refused(node, "backup verify bad.tar", code="backup-damaged")
    node.run(f"head -c {size // 2} {FILE} > bad.tar")
    refused(node, "backup verify bad.tar", code="backup-truncated")
    refused(node, "backup verify kb.pyz", code="not-a-backup")
    refused(node, f"backup -o {FILE} --age age1qqqqqqqqqq", code="encryption-missing")


def check_killed(node: Node) -> None:
    """SIGKILL at any moment leaves the former backup, and the next run removes what was left."""
    before = node.run(f"sha256sum {FILE}").stdout
    for wait_s in (0.2, 0.5, 0.8, 1.2):
        node.run(f"timeout -s KILL {wait_s} {KB} backup -o {FILE}; true")
        after = node.run(f"sha256sum {FILE}").stdout
        if after != before:
            break  # it was done by then
    node.run(f"{KB} backup -o {FILE}")
    assert list_left(node) == []
    node.run(f"timeout -s INT 0.6 {KB} backup -o other.tar; true")
    assert list_left(node) == []


def check_etcd_dies(node: Node) -> None:
    before = node.run(f"sha256sum {FILE}").stdout
    node.run("crictl stop $(crictl ps -q --name '^etcd$') >/dev/null")
    answer = node.run(f"{KB} backup -o {FILE}", check=False)
    if answer.code != 0:
        assert "code:   no-snapshot" in answer.output or "code:   snapshot-cut-off" in answer.output, answer.output
        assert node.run(f"sha256sum {FILE}").stdout == before
    wait_until(lambda: node.run("kubectl --kubeconfig /etc/kubernetes/admin.conf get --raw /readyz", check=False).code == 0,
               what="the API", timeout_s=180)  # fmt: skip


def check_rehearsed(node: Node) -> None:
    if "no-etcdutl" in (first := node.run(f"{KB} backup verify {FILE}", check=False, timeout=120)).output:
        pytest.skip("needs $KB_E2E_BIN/<minor>/etcdutl to boot a backup")
    assert first.code == 0, first.output
    told = ask(node, f"backup verify {FILE} -o json")
    assert told["ca"] == "same" and told["secret"] == "read" and told["unread"] == {}
    assert told["kinds"]["configmaps"] >= 300 and told["kinds"]["secrets"] >= 1
    assert told["seconds"] <= 60, told["seconds"]
    assert list_left(node) == []
    # what a killed one leaves, the next one removes
    node.run(f"timeout -s KILL 6 {KB} backup verify {FILE}; true", timeout=60)
    ask(node, f"backup verify {FILE} -o json")
    assert list_left(node) == []


# ---- a disk that fills in the middle


def fill_meanwhile(node: Node, folder: str, words: str) -> Result:
    """Run kb, and take all room in that folder as soon as it has written a little there. Afterwards there is room again."""
    ballast, used, free = f"{folder}/ballast", f"df --output=used {folder}", f"df -B1 --output=avail {folder}"
    begins = f"first=$({used} | tail -1); until [ $({used} | tail -1) -gt $((first + 512)) ]; do sleep 0.01; done"
    fill = f"({begins}; fallocate -l $({free} | tail -1) {ballast}; dd if=/dev/zero bs=4k status=none >>{ballast})"
    line = f"{fill} & filling=$!; {KB} {words}; said=$?; kill $filling; wait; rm -f {ballast}; exit $said"
    return node.run(["bash", "-c", f"set -o pipefail; {line}"], check=False, timeout=300)


def refuses_full(node: Node, folder: str, words: str) -> None:
    answer = fill_meanwhile(node, folder, words)
    print(words, answer.stderr, sep="\n")
    assert answer.code != 0 and "code:   disk-full" in answer.stderr, (words, answer.output)


@pytest.mark.k8s_versions("1.35")
def test_a_disk_that_fills_in_the_middle(node: Node) -> None:
    """There was room when it was looked for. Nothing half is left, and what was there before stays."""
    big = "head -c 700000 /dev/urandom | base64 -w0 > big; kubectl --kubeconfig /etc/kubernetes/admin.conf create configmap big-$n --from-file big"
    node.run(f"for n in $(seq 40); do {big}; done", timeout=300)
    size_mib = int(node.run(f"{KB} backup -o {FILE} >/dev/null; stat -c %s {FILE}").stdout) >> 20
    node.run(f"mkdir /small && mount -t tmpfs -o size={3 * size_mib + 80}m tmpfs /small")
    node.run(f"{KB} backup -o /small/b.tar")
    before = node.run("sha256sum /small/b.tar").stdout
    refuses_full(node, "/small", "backup -o /small/b.tar")
    assert node.run("sha256sum /small/b.tar; ls -A /small").stdout == f"{before}b.tar\n"

    # the same by the timer, which says so until the next one is good
    node.run(f"{KB} backup schedule daily --to /small --keep 2")
    node.run("systemctl start kb-backup.service", timeout=120)
    kept = node.run("ls -A /small").stdout
    refuses_full(node, "/small", "backup schedule run")
    assert node.run("ls -A /small").stdout == kept
    assert "the disk is full" in json.loads(node.run(f"{KB} backup schedule status -o json").stdout)["last"]["error"]
    assert "backup" in node.run(f"{KB} doctor", check=False).output
    node.run(f"{KB} backup schedule run; {KB} backup schedule off")

    # where a stream is kept until its hash is known, and where a backup is booted: kb's own folder
    mount = f"mount -t tmpfs -o mode=700,size={4 * size_mib + 300}m tmpfs /var/lib/kb"
    node.run(f"cp -a /var/lib/kb /root/kept; {mount}; cp -a /root/kept/. /var/lib/kb")
    before = node.run("ls -A /var/lib/kb").stdout
    refuses_full(node, "/var/lib/kb", "backup -o - | cat > /root/stream.tar")
    refuses_full(node, "/var/lib/kb", f"backup verify {FILE}")
    assert node.run("ls -A /var/lib/kb").stdout == before and list_left(node) == []
    node.run(f"{KB} backup verify {FILE}", timeout=120)


@pytest.mark.k8s_versions("1.35")
def test_a_machine_without_a_control_plane(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    made = make_node("w1", version=k8s_version)
    made.scp(kb_pyz, "/root/kb.pyz")
    refused(made, f"backup -o {FILE}", code="not-a-control-plane")
    assert not made.exists(FILE)


@pytest.mark.k8s_versions("1.35")
def test_a_cluster_that_kubeadm_made(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kb has never worked on it, and leaves nothing there."""
    made = make_node("cp1", version=k8s_version, prepared=True, kubeadm=True)
    made.scp(kb_pyz, "/root/kb.pyz")
    made.write("/root/init.yaml", lab_config(k8s_version, address=made.address))
    made.run(f"kubeadm init --config init.yaml {IGNORE}", timeout=600)
    told = ask(made, f"backup -o {FILE} --output json")
    assert told["about"]["node"] == "cp1" and told["about"]["missing"] == []
    answer = made.run(f"{KB} backup verify {FILE} -o json", check=False, timeout=120)
    assert answer.code == 0 or "no-etcdutl" in answer.output, answer.output
    if answer.code == 0:
        assert json.loads(answer.stdout)["unread"] == {}
    assert list_left(made) == [] and not made.exists("/var/lib/kb")
    assert made.run("ls -A /var/tmp /tmp | grep kb-; true").stdout == ""
