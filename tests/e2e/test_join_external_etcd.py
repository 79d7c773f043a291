"""Further control planes of a cluster whose etcd is the operator's: nobody but its operator changes its members."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from .lab.config import lab_config
from .lab.control_planes import (
    ENDPOINT,
    IGNORE,
    KB,
    KEY,
    MakeNode,
    code_of,
    join_control_plane,
    kubectl,
    lead_endpoint,
    print_join,
    wait_kubectl,
    wait_nodes_ready,
)
from .lab.node import Node
from .world.own_etcd import FOLDER, ask_etcd, give_client_files, make_certificates, render_external_etcd, start_etcd
from .world.web import check_cluster_serves

CUT_OFF = "nft add table ip cut; nft add chain ip cut out '{{type filter hook output priority 0;}}'; nft add rule ip cut out ip daddr {address} drop"
OPEN = "nft delete table ip cut"


def read_member_ids(store: Node, url: str) -> list[str]:
    return [member["ID"] for member in ask_etcd(store, url, "cluster/member/list", {})["members"]]


def check_has_no_etcd(node: Node) -> None:
    assert not node.exists("/etc/kubernetes/manifests/etcd.yaml")
    assert not node.exists("/etc/kubernetes/pki/etcd")
    assert not node.exists("/etc/kubernetes/pki/apiserver-etcd-client.crt")
    assert node.run("pidof etcd", check=False).stdout == ""
    manifest = node.read("/etc/kubernetes/manifests/kube-apiserver.yaml")
    assert f"--etcd-keyfile={FOLDER}/client.key" in manifest
    assert node.run(f"stat -c %a {FOLDER}/client.key").stdout.strip() == "600"


def init_first(make_node: MakeNode, kb_pyz: Path, version: str, folder: Path) -> tuple[Node, Node, str]:
    """The first control plane, the machine of etcd, and etcd's URL. The certificates are uploaded."""
    cp1, store = make_node("cp1", version=version, prepared=True), make_node("etcd1")
    make_certificates(folder, store.address)
    url = start_etcd(store, cp1.release.binary("etcd"), folder)
    give_client_files(cp1, folder)
    lead_endpoint(cp1)
    config: dict[str, Any] = {"cluster": {"etcd": render_external_etcd(url)}, "endpoint": ENDPOINT}
    cp1.write(
        "/root/init.yaml",
        lab_config(
            version,
            address=cp1.address,
            init={"certificateKey": KEY},
            kb={"podNetwork": {"plugin": "bridge"}},
            **config,
        ),
    )
    cp1.scp(kb_pyz, "/root/kb.pyz")
    cp1.run(f"{KB} init --config init.yaml --upload-certs --soak 0 {IGNORE}", timeout=900)
    return cp1, store, url


def test_control_planes_on_the_operator_s_etcd(
    make_node: MakeNode, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    cp1, store, url = init_first(make_node, kb_pyz, k8s_version, tmp_path / "own")
    members = read_member_ids(store, url)
    cp2 = make_node("cp2", version=k8s_version)
    cp2.scp(kb_pyz, "/root/kb.pyz")

    # without the key of the certificates, and without the files
    refused = cp2.run(f"{KB} {print_join(cp1)} --control-plane {IGNORE}", check=False, timeout=120)
    assert code_of(refused) == "shared-files-missing" and f"{FOLDER}/client.key" in refused.stderr, refused.output
    assert not cp2.exists("/etc/kubernetes/pki")

    # with them, and with a firewall between this machine and etcd
    cp2.run(CUT_OFF.format(address=store.address))
    refused = join_control_plane(cp2, cp1, check=False)
    assert code_of(refused) == "etcd-unreachable" and f"{url}/health" in refused.stderr, refused.output
    assert "kubelet" not in cp2.run("ps -eo comm=").stdout.split()
    cp2.run(OPEN)

    done = join_control_plane(cp2, cp1)
    assert "a new control plane instance was created" in done.stdout
    wait_nodes_ready(cp1, ["cp1", "cp2"])
    for node in (cp1, cp2):
        check_has_no_etcd(node)
        assert node.read(f"{FOLDER}/client.key") == (tmp_path / "own/client.key").read_text()
    assert read_member_ids(store, url) == members
    check_cluster_serves(cp2, server="cp2", client="cp1")
    cp1.kubectl("delete pod web client --wait=true", timeout=120)
    again = join_control_plane(cp2, cp1)
    assert "nothing to do" in again.stderr, again.output

    # what kb says of such an etcd
    shown = json.loads(cp2.run(f"{KB} etcd members -o json").stdout)
    assert [(int(member["id"], 16), member["state"]) for member in shown] == [(int(i), "serves") for i in members]
    kept = cp2.run(f"{KB} etcd remove {shown[0]['id']}", check=False)
    assert code_of(kept) == "etcd-is-external" and url in kept.stderr
    for node in (cp1, cp2):
        looked = node.run(f"{KB} doctor -o json", check=False)
        assert looked.code == 0, looked.output
    cp2.run(CUT_OFF.format(address=store.address))
    looked = cp2.run(f"{KB} doctor", check=False)
    assert looked.code != 0 and looked.output.count(f"the external etcd at {url}: no answer") == 1, looked.output
    assert f"curl -vk {url}/health" in looked.output and "ExternalEtcdVersion" not in looked.output
    cp2.run(OPEN)
    wait_kubectl(cp2, "get nodes", timeout_s=120)

    # the first one stops: the second serves, with the same data
    cp1.stop()
    lead_endpoint(cp2)
    wait_kubectl(cp2, "get nodes", timeout_s=60)
    kubectl(cp2, "create configmap while-one-is-away --from-literal=a=b")
    cp1.start()
    lead_endpoint(cp2, [cp1])
    wait_nodes_ready(cp2, ["cp1", "cp2"])
    own = f"--server https://{cp1.address}:6443"
    wait_kubectl(cp1, f"{own} get configmap while-one-is-away", timeout_s=120)

    # one goes: etcd keeps its members and its data, and the operator's files of etcd stay
    cp1.run(f"{KB} reset --force", timeout=300)
    assert read_member_ids(store, url) == members
    wait_kubectl(cp2, "get configmap while-one-is-away", timeout_s=60)
    assert cp1.exists(f"{FOLDER}/ca.crt")


@pytest.mark.k8s_versions("1.35")
def test_beside_kubeadm_on_the_operator_s_etcd(
    make_node: MakeNode, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    """kubeadm's control plane in kb's cluster, and then kb's by what kubeadm prints and uploads."""
    cp1, store, url = init_first(make_node, kb_pyz, k8s_version, tmp_path / "own")
    members = read_member_ids(store, url)
    cp2 = make_node("cp2", version=k8s_version, kubeadm=True)
    cp2.run(f"kubeadm {print_join(cp1, f'--certificate-key {KEY}')} {IGNORE}", timeout=600)
    for name in ("bridge", "host-local", "loopback", "portmap"):
        assert cp2.exists(f"/opt/cni/bin/{name}") or cp2.exists(f"/usr/lib/cni/{name}")
    check_has_no_etcd(cp2)
    uploaded = cp2.run(f"kubeadm init phase upload-certs --upload-certs --config {write_cluster(cp2)}").stdout
    key = re.search(r"^[0-9a-f]{64}$", uploaded, re.MULTILINE)
    assert key, uploaded
    line = cp2.run("kubeadm token create --print-join-command").stdout.strip().removeprefix("kubeadm ")
    cp3 = make_node("cp3", version=k8s_version)
    cp3.scp(kb_pyz, "/root/kb.pyz")
    cp3.run(f"{KB} {line} --control-plane --certificate-key {key[0]} {IGNORE} --soak 0", timeout=600)
    check_has_no_etcd(cp3)
    wait_nodes_ready(cp1, ["cp1", "cp3"])
    assert read_member_ids(store, url) == members
    # the same files by both tools
    listing = "cd /etc/kubernetes && find . -type f ! -name '*.bak' | sort"
    assert cp2.run(listing).stdout == cp3.run(listing).stdout


def write_cluster(node: Node) -> str:
    """The cluster's configuration as a file, which kubeadm wants to know of external etcd."""
    text = kubectl(node, "-n kube-system get configmap kubeadm-config -o jsonpath={.data.ClusterConfiguration}").stdout
    node.write("/root/cluster.yaml", text)
    return "/root/cluster.yaml"
