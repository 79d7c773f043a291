"""`kb reconfigure endpoint` on real nodes: to a name of the operator's own, to a load balancer of the nodes' own, and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable

import pytest

from .lab.config import lab_config, list_ignored_checks
from .lab.node import Node, wait_until
from .world.web import check_cluster_serves

MakeNode = Callable[..., Node]
KB = "python3 kb.pyz"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
LOCAL = "kb-api.cluster.local:7443"


def make_cluster(make_node: MakeNode, kb_pyz: Path, version: str) -> tuple[Node, Node]:
    """A control plane without controlPlaneEndpoint, and a worker."""
    cp1, w1 = make_node("cp1", version=version), make_node("w1", version=version)
    for node in (cp1, w1):
        node.scp(kb_pyz, "/root/kb.pyz")
    cp1.write("/root/init.yaml", lab_config(version, address=cp1.address))
    cp1.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)
    w1.run(make_join_command(cp1), timeout=600)
    return cp1, w1


def make_join_command(node: Node) -> str:
    shown = node.run(f"{KB} token create --print-join-command").stdout.strip()
    return shown.replace("kubeadm", KB, 1) + f" {IGNORE}"


def facts(cp1: Node, w1: Node) -> dict[str, str]:
    """Who is called where, by all that say so."""
    stored = cp1.kubectl("-n kube-system get cm kubeadm-config -o yaml")
    endpoint = re.search(r"controlPlaneEndpoint: (\S+)", stored)
    return {
        "stored": endpoint[1] if endpoint else "",
        "admin": server_in(cp1.read("/etc/kubernetes/admin.conf")),
        "super-admin": server_in(cp1.read("/etc/kubernetes/super-admin.conf")),
        "cluster-info": server_in(cp1.kubectl("-n kube-public get cm cluster-info -o yaml")),
        "kube-proxy": server_in(cp1.kubectl("-n kube-system get cm kube-proxy -o yaml")),
        "worker": server_in(w1.read("/etc/kubernetes/kubelet.conf")),
    }


def server_in(text: str) -> str:
    found = re.search(r"server: https://(\S+)", text)
    assert found, text
    return found[1]


def key_of(node: Node) -> str:
    return node.run("openssl rsa -in /etc/kubernetes/pki/apiserver.key -pubout 2>/dev/null | sha256sum; "
                    "cksum </etc/kubernetes/pki/apiserver.key").stdout  # fmt: skip


def check_works(cp1: Node, w1: Node) -> None:
    cp1.wait_node_ready("w1")
    cp1.kubectl("-n kube-system rollout status ds/kube-proxy --timeout=120s", timeout=150)
    check_cluster_serves(cp1, server="w1", client="cp1")
    cp1.kubectl("delete pod web client --wait=true", timeout=120)
    cp1.kubectl("delete service web", check=False)


@pytest.mark.k8s_versions("1.35")
def test_to_a_name_of_the_operator_s_own(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, w1 = make_cluster(make_node, kb_pyz, k8s_version)
    before, key = facts(cp1, w1), key_of(cp1)
    assert before["stored"] == ""

    for words, code in (
        ("api.test:6443", "endpoint-unknown-name"),
        (f"{cp1.address}:6444", "endpoint-unreachable"),
        (f"{w1.address}:10250", "endpoint-of-another-cluster"),
        ("api_test:6443", "bad-endpoint"),
        ("api.test", "bad-endpoint"),
        ("", "no-endpoint-stored"),
        ("--undo", "nothing-to-undo"),
    ):
        refused = cp1.run(f"{KB} reconfigure endpoint {words}", check=False)
        assert f"code:   {code}" in refused.stderr, refused.output
    assert facts(cp1, w1) == before

    for node in (cp1, w1):
        node.run(f"echo {cp1.address} api.test >>/etc/hosts")
    refused = w1.run(f"{KB} reconfigure endpoint api.test:6443", check=False)
    assert "code:   endpoint-not-stored" in refused.stderr
    planned = cp1.run(f"{KB} reconfigure endpoint api.test:6443 --dry-run").stdout
    assert "would write: /etc/kubernetes/admin.conf" in planned and "configmaps/kubeadm-config" in planned
    assert "configmaps/kube-proxy" in planned and facts(cp1, w1) == before

    done = cp1.run(f"{KB} reconfigure endpoint api.test:6443", timeout=300)
    assert "on worker w1: python3 kb.pyz reconfigure endpoint" in done.stdout, done.output
    w1.run(f"{KB} reconfigure endpoint", timeout=300)
    after = facts(cp1, w1)
    assert set(after.values()) == {"api.test:6443"} and key_of(cp1) == key
    names = cp1.run("openssl x509 -in /etc/kubernetes/pki/apiserver.crt -noout -ext subjectAltName").stdout
    assert "DNS:api.test" in names
    shown = w1.run("curl -sf --cacert /etc/kubernetes/pki/ca.crt https://api.test:6443/version").stdout
    assert k8s_version in shown
    check_works(cp1, w1)

    again = cp1.run(f"{KB} reconfigure endpoint api.test:6443", timeout=300)
    assert "nothing to do" in again.stderr, again.output
    w2 = make_node("w2", version=k8s_version)
    w2.scp(kb_pyz, "/root/kb.pyz")
    w2.run(f"echo {cp1.address} api.test >>/etc/hosts")
    wait_until(
        lambda: "jws" in cp1.kubectl("-n kube-public get cm cluster-info -o yaml"), what="signatures", timeout_s=60
    )
    joining = make_join_command(cp1)
    assert "join api.test:6443" in joining
    w2.run(joining, timeout=600)
    cp1.wait_node_ready("w2")


@pytest.mark.k8s_versions("1.35")
def test_half_way_and_on_or_back(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """To a load balancer of the nodes' own. It fails half way, for want of a kubelet that would start it; it is taken
    back; it is begun again, killed, and gone on with to the end; and taken back once more."""
    cp1, w1 = make_cluster(make_node, kb_pyz, k8s_version)
    before, hosts = facts(cp1, w1), cp1.read("/etc/hosts")
    line = f"{KB} reconfigure endpoint {LOCAL} --load-balancer local"

    cp1.run("systemctl stop kubelet")
    failed = cp1.run(line, check=False, timeout=300)
    assert "code:   load-balancer-not-up" in failed.stderr and "journalctl -u kubelet" in failed.stderr, failed.output
    half = facts(cp1, w1)
    assert half["stored"] == LOCAL and {**half, "stored": ""} == before  # nobody was told who could not call
    cp1.run("systemctl start kubelet")
    undone = cp1.run(f"{KB} reconfigure endpoint --undo", timeout=300)
    assert facts(cp1, w1) == before and cp1.read("/etc/hosts") == hosts, undone.output
    assert "loadBalancer" not in cp1.kubectl("-n kube-system get cm kb-config -o yaml")
    assert "code:   nothing-to-undo" in cp1.run(f"{KB} reconfigure endpoint --undo", check=False).stderr

    # killed at one moment after the other, until one run comes through
    for delay in ("0.5", "1", "1.5", "2", "2.5", "3"):
        cp1.run(f"timeout -s KILL {delay} {line}", check=False)
    done = cp1.run(line, timeout=300)
    assert "on node w1: python3 kb.pyz reconfigure endpoint" in done.stdout and "then here again" in done.stdout, (
        done.output
    )
    assert facts(cp1, w1)["kube-proxy"] == before["kube-proxy"]  # it would find no load balancer on the worker
    w1.run(f"{KB} reconfigure endpoint", timeout=300)
    last = cp1.run(f"{KB} reconfigure endpoint", timeout=300)
    assert "still to be done" not in last.stdout, last.output
    assert set(facts(cp1, w1).values()) == {LOCAL}
    check_works(cp1, w1)

    refused = w1.run(f"{KB} reconfigure endpoint --undo", check=False)
    assert "code:   undo-elsewhere-first" in refused.stderr
    back = cp1.run(f"{KB} reconfigure endpoint --undo", timeout=300)
    assert "on worker w1: python3 kb.pyz reconfigure endpoint --undo" in back.stdout
    w1.run(f"{KB} reconfigure endpoint --undo", timeout=300)
    assert facts(cp1, w1) == before and cp1.read("/etc/hosts") == hosts
    for node in (cp1, w1):
        wait_until(lambda: not node.run("crictl ps -q --name kb-load-balancer").stdout.strip(),  # noqa: B023
                   what="haproxy to end", timeout_s=60)  # fmt: skip
    check_works(cp1, w1)
