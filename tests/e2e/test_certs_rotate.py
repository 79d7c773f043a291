"""`kb certs rotate-sa` and `kb certs rotate-ca etcd|front-proxy` on three real control planes, under clients that read and write meanwhile: the admin's
certificate, and the token of a pod as its kubelet renews it. Killed on the way, taken back, and handed to kubeadm afterwards."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest

from .lab import change_killer
from .lab.config import lab_config
from .lab.control_planes import ENDPOINT, IGNORE, KB, KEY, code_of, lead_endpoint
from .lab.node import Node, wait_until
from .lab.shell import Result
from .lab.static_pods import Client
from .test_static_pods import GAP_S, make_three
from .world import web
from .world.podnet import connect_nodes

pytestmark = pytest.mark.k8s_versions("1.35", "1.36")
MakeNode = Callable[..., Node]
PKI = "/etc/kubernetes/pki"
SA, FRONT, ETCD = (f"{KB} certs {words}" for words in ("rotate-sa", "rotate-ca front-proxy", "rotate-ca etcd"))
TOKEN_CLIENT = """
import base64, glob, http.client, json, os, ssl, time
context = ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")
path = "/api/v1/namespaces/default/configmaps/by-token"
def read():
    found = []
    for one in glob.glob("/var/lib/kubelet/pods/*/volumes/kubernetes.io~projected/kube-api-access-*/token"):
        text = open(one).read()
        if b":default:default" in base64.urlsafe_b64decode(text.split(".")[1] + "==="):
            found.append((os.stat(one).st_mtime, text))
    return max(found)[1]
def call(method, path, body=None):
    connection = http.client.HTTPSConnection("kb-api.cluster.local", 7443, context=context, timeout=5)
    kind = "merge-patch+json" if method == "PATCH" else "json"
    headers = {"Authorization": "Bearer " + token, "Content-Type": "application/" + kind}
    connection.request(method, path, body and json.dumps(body), headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return str(answer.status)
token = read()
call("POST", path.rpartition("/")[0], {"metadata": {"name": "by-token"}})
log, number = open("/root/by_token.log", "w", 1), 0
while True:
    began, number = time.time(), number + 1
    for method, body in (("GET", None), ("PATCH", {"data": {"number": str(number)}})):
        said = ""
        for _ in range(2):
            try:
                token = read()
                said = call(method, path, body)
            except Exception as error:
                said = repr(error)
            if said == "200":
                break
        log.write(json.dumps([began, round(time.time() - began, 3), method, said]) + chr(10))
    time.sleep(0.1)
"""
"""Reads and writes each 100 ms with the token that a kubelet keeps for a pod of account default/default on this node; tries once again."""


def rotate(node: Node, command: str, words: str = "", *, check: bool = True) -> Result:
    began = time.monotonic()
    done = node.run(f"{command} {words}", check=check, timeout=900)
    print(f"{node.name}: {time.monotonic() - began:.1f} s", done.command, done.output, sep="\n", flush=True)
    return done


def go_on(nodes: Sequence[Node], command: str) -> None:
    """The line that is left, on every node in turn, until it names none; once too often is nothing."""
    for node in [*nodes, *nodes, *nodes]:
        shown = rotate(node, command, "--continue").stdout
        if "on control plane" not in shown:
            rotate(nodes[0], command, "--continue")
            return
    raise AssertionError(shown)


def stage_of(node: Node) -> str:
    return node.kubectl("-n kube-system get configmap kb-rotation -o 'jsonpath={.data.stage}'")


def is_over(node: Node) -> bool:
    left = node.kubectl("-n kube-system get configmap,secret -o name").split()
    marks = node.kubectl("get nodes -o yaml")
    return not [name for name in left if name.endswith("/kb-rotation")] and "kb.io/rotation" not in marks


def status_of(node: Node, server: Node, how: str, path: str = "/api/v1/namespaces/default/configmaps/by-token") -> str:
    line = f"curl -s -o /dev/null -w '%{{http_code}}' --cacert {PKI}/ca.crt {how} https://{server.address}:6443{path}"
    return node.run(line).stdout.strip()


@contextmanager
def watched(node: Node, *, unit: str = "token") -> Iterator[None]:
    """Two clients work through the node's load balancer meanwhile: no call fails, after one more try, and the gaps are short."""
    own = Client(node, "new")
    own.start()
    node.write("/root/by_token.py", TOKEN_CLIENT)
    node.run(f"systemd-run --quiet --collect --unit {unit} python3 /root/by_token.py")
    wait_until(lambda: node.exists("/root/by_token.log"), what="the client with a token", timeout_s=60)
    yield
    node.run(f"systemctl stop {unit}")
    rows = [json.loads(line) for line in node.read("/root/by_token.log").splitlines() if line.endswith("]")]
    failed = [row for row in rows if row[3] != "200"]
    calls = own.stop()
    print(f"with a certificate: {calls}; with a pod's token: {len(rows)} calls, {len(failed)} failed", flush=True)
    assert not calls.failed, calls.failed[:5]
    assert rows and not failed, failed[:5]
    assert calls.longest_gap_s <= GAP_S


def add_account(node: Node) -> None:
    """A pod on the node, whose account may write ConfigMaps."""
    web.wait_service_account(node)
    node.kubectl("create clusterrolebinding by-token --clusterrole=edit --serviceaccount=default:default")
    labels = {"app": "by-token"}
    spec = {**web.render_pod("by-token")["spec"], "nodeName": node.name, "tolerations": [{"operator": "Exists"}]}
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "by-token"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }  # fmt: skip
    web.apply(node, deployment)
    node.wait_pods_ready("default", "app=by-token")


def killed(node: Node, words: str, change: str) -> None:
    """The command ends by SIGKILL right after this change."""
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    wish = {"argv": shlex.split(f"kb.pyz {words}"), "phase": "", "change": change, "nth": 1}
    done = node.run(["python3", "-I", "change_killer.py", json.dumps(wish)], check=False, timeout=600)
    seen = node.read(change_killer.CHANGES_LOG)
    assert '["killed"' in seen, (change, seen, done.output)


def test_the_key_of_service_accounts(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    nodes = make_three(make_node, kb_pyz, k8s_version)
    cp1, cp2 = nodes[:2]
    add_account(cp1)
    old = cp1.kubectl("create token default --duration 24h").strip()
    former = cp1.read(f"{PKI}/sa.key")
    assert all(status_of(cp1, node, f"-H 'Authorization: Bearer {old}'") in ("200", "404") for node in nodes)

    with watched(cp1):
        # the first stage, taken back by all; then anew, killed on the way
        rotate(cp1, SA)
        rotate(cp1, SA, "--undo")
        go_on(nodes, SA)
        assert is_over(cp1) and cp1.read(f"{PKI}/sa.key") == former
        killed(cp1, "certs rotate-sa", f"write_file {PKI}/sa.pub")
        rotate(cp1, SA)
        go_on(nodes, SA)
        assert stage_of(cp1) == "use" and cp1.read(f"{PKI}/sa.key") == cp2.read(f"{PKI}/sa.key") != former
        new = cp1.kubectl("create token default --duration 24h").strip()
        for token in (old, new):
            assert [status_of(cp1, node, f"-H 'Authorization: Bearer {token}'") for node in nodes] == ["200"] * 3

        # the last stage: who may hold a former token is named, and restarted
        refused = rotate(cp1, SA, "--finish", check=False)
        assert code_of(refused) == "rotation-still-used" and "default/by-token" in refused.stderr
        rotate(cp1, SA, "--finish --restart-workloads")
        go_on(nodes, SA)
        assert is_over(cp1)
        assert [status_of(cp1, node, f"-H 'Authorization: Bearer {old}'") for node in nodes] == ["401"] * 3
        assert [status_of(cp1, node, f"-H 'Authorization: Bearer {new}'") for node in nodes] == ["200"] * 3
    check_left(nodes)


def test_the_authority_of_the_front_proxy(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    nodes = make_three(make_node, kb_pyz, k8s_version)
    cp1 = nodes[0]
    add_account(cp1)
    former = cp1.read(f"{PKI}/front-proxy-ca.crt")
    cp1.run(f"cp {PKI}/front-proxy-client.crt {PKI}/front-proxy-client.key /root/")
    with watched(cp1):
        killed(cp1, "certs rotate-ca front-proxy", f"write_file {PKI}/front-proxy-ca.crt")
        rotate(cp1, FRONT)
        go_on(nodes, FRONT)
        assert stage_of(cp1) == "use"
        for pair in (PKI, "/root"):
            assert [speak_for_others(cp1, node, pair) for node in nodes] == ["200"] * 3
        rotate(cp1, FRONT, "--finish")
        go_on(nodes, FRONT)
        assert is_over(cp1)
        assert [speak_for_others(cp1, node, PKI) for node in nodes] == ["200"] * 3
        assert [speak_for_others(cp1, node, "/root") for node in nodes] == ["401"] * 3
    told = cp1.get("configmap -n kube-system extension-apiserver-authentication")["data"][
        "requestheader-client-ca-file"
    ]
    assert told.strip() == cp1.read(f"{PKI}/front-proxy-ca.crt").strip() != former.strip()
    check_left(nodes)


def test_the_authority_of_etcd(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    nodes = make_three(make_node, kb_pyz, k8s_version)
    cp1 = nodes[0]
    add_account(cp1)
    cp1.run(f"cp {PKI}/etcd/healthcheck-client.crt {PKI}/etcd/healthcheck-client.key /root/")
    with watched(cp1):
        rotate(cp1, ETCD)
        go_on(nodes, ETCD)
        assert stage_of(cp1) == "use"
        for folder in (f"{PKI}/etcd", "/root"):
            assert [ask_etcd(cp1, node, folder) for node in nodes] == ["200"] * 3
        rotate(cp1, ETCD, "--finish")
        go_on(nodes, ETCD)
        assert is_over(cp1)
        assert [ask_etcd(cp1, node, f"{PKI}/etcd") for node in nodes] == ["200"] * 3
        assert [ask_etcd(cp1, node, "/root") for node in nodes] == ["000"] * 3
    check_left(nodes)


def ask_etcd(node: Node, server: Node, folder: str) -> str:
    """The HTTP status; 000 if the handshake fails."""
    pair = f"--cert {folder}/healthcheck-client.crt --key {folder}/healthcheck-client.key"
    line = f"curl -s -o /dev/null -w '%{{http_code}}' --cacert {PKI}/etcd/ca.crt {pair} https://{server.address}:2379/health"
    return node.run(line, check=False).stdout.strip()


def test_a_cluster_of_kubeadm_s(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kb has made neither of its nodes; kubeadm joins the second one in the middle of the rotation, with the files of that stage."""
    cp1, cp2 = nodes = [make_node(name, version=k8s_version, kubeadm=True) for name in ("cp1", "cp2")]
    lead_endpoint(cp1)
    text = lab_config(k8s_version, address=cp1.address, endpoint=ENDPOINT, init={"certificateKey": KEY})
    cp1.write("/root/init.yaml", text)
    cp1.run(f"kubeadm init --config init.yaml {IGNORE}", timeout=600)
    connect_nodes([cp1])
    cp1.wait_node_ready()
    for node in nodes:
        node.scp(kb_pyz, "/root/kb.pyz")
    assert code_of(rotate(cp1, SA, check=False)) == "not-confirmed"
    rotate(cp1, SA, "--yes")
    assert stage_of(cp1) == "use"
    cp1.run(f"kubeadm init phase upload-certs --upload-certs --certificate-key {KEY}", timeout=120)
    command = cp1.run("kubeadm token create --print-join-command").stdout.strip()
    cp2.run(f"{command} --control-plane --certificate-key {KEY} {IGNORE}", timeout=600)
    connect_nodes(nodes)
    for node in nodes:
        cp1.wait_node_ready(node.name)
    assert "on control plane cp2: " in rotate(cp1, SA).stdout, "it has not acknowledged yet"
    rotate(cp2, SA, "--continue")
    rotate(cp1, SA, "--finish --restart-workloads")
    rotate(cp2, SA, "--continue")
    assert is_over(cp1) and not cp1.exists("/var/lib/kb/state.json")
    for node in nodes:
        node.run("kubeadm certs check-expiration")
        cp1.wait_node_ready(node.name)


def speak_for_others(node: Node, server: Node, folder: str) -> str:
    how = f"--cert {folder}/front-proxy-client.crt --key {folder}/front-proxy-client.key -H 'X-Remote-User: x' -H 'X-Remote-Group: system:masters'"
    return status_of(node, server, how, "/api/v1/namespaces/kube-system")


def check_left(nodes: Sequence[Node]) -> None:
    """kubeadm and kb go on from what is there: nothing drifted, kubeadm reads the certificates, shares them, and renews."""
    first = nodes[0]
    for node in nodes:
        node.scp(node.release.binary("kubeadm"), "/usr/local/bin/kubeadm")
        shown = node.run("kubeadm certs check-expiration").stdout
        assert "etcd-server" in shown and "<invalid>" not in shown, shown
        drifted = node.run(f"{KB} drift", check=False)
        assert drifted.code == 0, drifted.output
    first.run("kubeadm certs renew front-proxy-client")
    first.run(f"kubeadm init phase upload-certs --upload-certs --certificate-key {KEY}", timeout=120)
