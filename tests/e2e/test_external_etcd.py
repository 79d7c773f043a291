"""Day two of a control plane whose etcd is the operator's: what kb does there, and what it leaves to the operator by name."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from .lab.control_planes import IGNORE, KB, MakeNode, code_of, kubectl, lead_endpoint, wait_kubectl
from .lab.node import Node, wait_until
from .lab.static_pods import fill_store
from .test_join_external_etcd import init_first
from .world.own_etcd import FOLDER, ask_etcd

pytestmark = pytest.mark.k8s_versions("1.35")
BACKUP = "/root/b.tar"


def refused(node: Node, words: str) -> tuple[str, str]:
    answer = node.run(f"{KB} {words}", check=False, timeout=120)
    assert answer.code != 0, answer.output
    print(answer.stderr)
    return code_of(answer), answer.stderr


def test_day_two_on_the_operator_s_etcd(make_node: MakeNode, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> None:
    cp1, store, url = init_first(make_node, kb_pyz, k8s_version, tmp_path / "own")
    fill_store(cp1, 50)
    check_certificates(cp1)
    check_left_to_the_operator(cp1, url)
    check_backup(cp1, url)
    check_restored_by_hand(cp1, store, url)
    asked = ask_etcd(store, url, "kv/range", {"key": "a2I=", "keys_only": True})
    assert int(asked["header"]["revision"]) > 1_000_000_000, "nobody takes an old object for a new one"


def check_certificates(cp1: Node) -> None:
    """Renewed but for the operator's own; nothing has expired."""
    own = cp1.run(f"sha256sum {FOLDER}/*").stdout
    print(cp1.run(f"{KB} certs renew all", timeout=300).output)
    assert cp1.run(f"sha256sum {FOLDER}/*").stdout == own and not cp1.exists("/etc/kubernetes/pki/etcd")
    shown = json.loads(cp1.run(f"{KB} certs check-expiration -o json").stdout)
    assert not any("etcd" in row["name"] for row in shown["certificates"]), shown
    recovered = json.loads(cp1.run(f"{KB} certs recover -o json", timeout=120).stdout)
    assert recovered["expired"] == [], recovered


def check_left_to_the_operator(cp1: Node, url: str) -> None:
    for words in ("defrag --yes", "compact", "alarm disarm", "leader somebody"):
        code, text = refused(cp1, f"etcd {words}")
        assert code == "etcd-is-external" and f"etcdctl --endpoints {url}" in text, text
    code, text = refused(cp1, "etcd recover --lost other --yes")
    assert code == "no-local-etcd" and "operator" in text


def check_backup(cp1: Node, url: str) -> None:
    made = json.loads(cp1.run(f"{KB} backup -o {BACKUP} -o json".replace("-o json", "--output json")).stdout)
    names = {row["name"] for row in made["entries"]}
    assert {"etcd/snapshot.db", f"files{FOLDER}/client.key", "files/etc/kubernetes/pki/ca.key"} <= names, names
    assert made["about"]["etcd_kind"] == "external" and made["about"]["objects"] > 50
    told = json.loads(cp1.run(f"{KB} backup verify {BACKUP} -o json", timeout=120).stdout)
    assert told["unread"] == {} and told["kinds"]["configmaps"] >= 50, told
    code, text = refused(cp1, f"restore {BACKUP} --force {IGNORE}")
    assert code == "backup-external-etcd" and url in text and f"tar -xf {BACKUP} etcd/snapshot.db" in text, text
    assert cp1.exists("/etc/kubernetes/manifests/kube-apiserver.yaml")


def check_restored_by_hand(cp1: Node, store: Node, url: str) -> None:
    """What the refusal says, on the machine of that etcd: what was deleted after the backup is back."""
    kubectl(cp1, "delete configmap counted-1")
    store.disk_path(BACKUP).write_bytes(cp1.disk_path(BACKUP).read_bytes())
    store.scp(cp1.release.folder / "etcdutl", "/usr/local/bin/etcdutl")
    line = store.run("tr '\\0' ' ' </proc/$(pidof etcd)/cmdline").stdout
    store.run(f"tar -xf {BACKUP} etcd/snapshot.db && systemctl stop own-etcd")
    words = "--data-dir /var/lib/etcd/new --bump-revision 1000000000 --mark-compacted"
    print(store.run(f"etcdutl snapshot restore etcd/snapshot.db {words}").output)
    argv = shlex.split(line.replace("/var/lib/etcd/own", "/var/lib/etcd/new"))
    store.run(["systemd-run", "--unit=new-etcd", "--property=Restart=always", *argv])
    lead_endpoint(cp1)
    wait_kubectl(cp1, "get configmap counted-1", timeout_s=180)
    cp1.run("systemctl restart kubelet")
    wait_until(lambda: kubectl(cp1, "create configmap new", check=False).ok, what="a write", timeout_s=60)
