"""`kb certs rotate-ca cluster` on real control planes and a worker, under clients that know the former authority alone, clients that read it anew,
and a webhook whose certificate the authority signed. Killed on the way, taken back, ended, and handed to kubeadm afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest

from .lab.control_planes import KB, code_of
from .lab.node import Node, wait_until
from .lab.settings import read_releases
from .lab.static_pods import Client
from .test_certs_rotate import (
    PKI,
    TOKEN_CLIENT,
    add_account,
    check_left,
    is_over,
    killed,
    rotate,
    stage_of,
)
from .test_join_load_balancer import init as init_with_balancer
from .test_join_load_balancer import join, make_join_command
from .test_static_pods import GAP_S, make_three
from .world import client_go

pytestmark = pytest.mark.k8s_versions("1.35", "1.36")
MakeNode = Callable[..., Node]
CLUSTER = f"{KB} certs rotate-ca cluster"
HOOK_PORT = 9443
HOOK = """
import http.server, json, ssl
class Hook(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        told = {"uid": asked["request"]["uid"], "allowed": True}
        text = json.dumps({"apiVersion": asked["apiVersion"], "kind": asked["kind"], "response": told}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *words):
        pass
class Server(http.server.ThreadingHTTPServer):
    context = None
    def get_request(self):
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            made.load_cert_chain("/root/hook.crt", "/root/hook.key")
            self.context = made
        except (OSError, ssl.SSLError):
            pass
        taken, address = super().get_request()
        return self.context.wrap_socket(taken, server_side=True, do_handshake_on_connect=False), address
Server(("", 9443), Hook).serve_forever()
"""
FRESH = TOKEN_CLIENT.replace(
    "    connection = http.client", "    context = ssl.create_default_context(cafile=FILE)\n    connection = http.client", 1
).replace("/root/by_token.log", "/root/fresh.log").replace("by-token", "by-fresh").replace(
    'context = ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")', f'FILE = "{PKI}/ca.crt"', 1
)  # fmt: skip
"""The same client, which reads the authorities again for each call, as client-go does from Kubernetes 1.36 on."""
FROZEN, ANEW = "by_token", "fresh"


def go_on(control_planes: Sequence[Node], worker: Node) -> None:
    """The lines that are left, on every node in turn, until none is; once too often is nothing."""
    for _ in range(3):
        for node in [*control_planes, worker, control_planes[0]]:
            shown = rotate(node, CLUSTER, "--continue").stdout
        if "on control plane" not in shown and "on worker" not in shown:
            return
    raise AssertionError(shown)


def start_token_client(node: Node, unit: str, program: str) -> None:
    node.write(f"/root/{unit}_client.py", program)
    node.run(f"rm -f /root/{unit}.log; systemd-run --quiet --collect --unit {unit} python3 /root/{unit}_client.py")
    wait_until(lambda: node.exists(f"/root/{unit}.log"), what=f"the client {unit}", timeout_s=60)


def stop_token_client(node: Node, unit: str) -> None:
    """No call failed after one more try."""
    node.run(f"systemctl stop {unit}")
    rows = [json.loads(line) for line in node.read(f"/root/{unit}.log").splitlines() if line.endswith("]")]
    failed = [row for row in rows if row[3] != "200"]
    print(f"{unit}: {len(rows)} calls, {len(failed)} failed", flush=True)
    assert rows and not failed, failed[:5]


@contextmanager
def old_clients(node: Node) -> Iterator[None]:
    """A kubeconfig that embeds the former authority and a certificate of it, and a pod's token with ca.crt as it was read at the start: neither is
    read again, and no call fails."""
    node.run("cp /etc/kubernetes/admin.conf /root/copy.conf")
    own = Client(node, "new", kubeconfig="/root/copy.conf")
    own.start()
    start_token_client(node, FROZEN, TOKEN_CLIENT)
    yield
    calls = own.stop()
    print(f"with an embedded certificate: {calls}", flush=True)
    assert not calls.failed, calls.failed[:5]
    assert calls.longest_gap_s <= GAP_S
    stop_token_client(node, FROZEN)
    told = node.run(f"{CLUSTER} --finish", check=False, timeout=300)
    assert code_of(told) == "rotation-still-used" and "kubeconfig /root/copy.conf" in told.stderr, told.output
    node.run("rm /root/copy.conf")


def issue_hook(signer: Node, node: Node) -> None:
    """A certificate of the authority whose key is on the nodes now, and a webhook that shows it."""
    text = f"subjectAltName=IP:{node.address}"
    signer.run(
        f"cd /root && openssl req -newkey rsa:2048 -nodes -keyout hook.key -out hook.csr -subj /CN=hook 2>/dev/null && echo {text} >hook.ext "
        f"&& openssl x509 -req -in hook.csr -CA {PKI}/ca.crt -CAkey {PKI}/ca.key -CAcreateserial -CAserial hook.srl -days 9 -extfile hook.ext "
        "-out hook.crt 2>/dev/null"
    )
    for name in ("hook.key", "hook.crt"):
        node.write(f"/root/{name}", signer.read(f"/root/{name}"))
    node.write("/root/hook.py", HOOK)
    unit = "systemd-run --quiet --collect --unit hook --property Restart=always python3 /root/hook.py"
    node.run(f"systemctl is-active --quiet hook || {unit}")  # one that runs shows it to whoever connects from now on
    ask = f"curl -sk -o /dev/null https://{node.address}:{HOOK_PORT}/"
    wait_until(lambda: signer.run(ask, check=False).code in (0, 52), what="the webhook", timeout_s=30)


def add_hook(server: Node, node: Node) -> None:
    """Every change of a ConfigMap in `default` needs the webhook's word."""
    issue_hook(server, node)
    bundle = server.run(f"base64 -w0 {PKI}/ca.crt").stdout.strip()
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}
    hook = {
        "name": "hook.example.com", "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}, "rules": [rule],
        "clientConfig": {"url": f"https://{node.address}:{HOOK_PORT}/", "caBundle": bundle},
    }  # fmt: skip
    made = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "hook"},
        "webhooks": [hook],
    }
    server.write("/root/hook.json", json.dumps(made))
    server.kubectl("apply -f /root/hook.json")


def bundle_of(node: Node) -> str:
    found: str = node.get("validatingwebhookconfiguration hook")["webhooks"][0]["clientConfig"]["caBundle"]
    return node.run(f"echo {found} | base64 -d | grep -c BEGIN").stdout.strip()


def knows(node: Node, server: str, ca_file: str) -> bool:
    """Whether a handshake with the server succeeds for who trusts this file alone."""
    line = f"openssl s_client -connect {server} -CAfile {ca_file} -no-CApath -verify_return_error </dev/null"
    return node.run(line, check=False, timeout=20).code == 0


def status_with(node: Node, url: str, pair: str) -> str:
    line = f"curl -sk -o /dev/null -w '%{{http_code}}' --cert {pair} --key {pair} {url}"
    return node.run(line, check=False).stdout.strip()


def keep_former(node: Node) -> None:
    """Its certificate, and an admin's of it, to be refused at the end."""
    node.run(f"cp {PKI}/ca.crt /root/former.crt; cp {PKI}/ca.key /root/former.key")
    node.run(
        "cd /root && openssl req -newkey rsa:2048 -nodes -keyout a.key -out a.csr -subj /O=system:masters/CN=old 2>/dev/null && openssl x509 -req "
        "-in a.csr -CA former.crt -CAkey former.key -CAcreateserial -days 9 -out a.crt 2>/dev/null && cat a.crt a.key >old.pem"
    )


def check_ended(control_planes: Sequence[Node], worker: Node) -> None:
    """Nobody knows by the former authority, and nobody lets in whom it has signed."""
    cp1, nodes = control_planes[0], [*control_planes, worker]
    assert is_over(cp1) and bundle_of(cp1) == "1"
    for node in control_planes:
        url = f"https://{node.address}:6443/api/v1/namespaces/default"
        assert status_with(cp1, url, "/root/old.pem") == "401"
        assert not knows(cp1, f"{node.address}:6443", "/root/former.crt")
        assert knows(cp1, f"{node.address}:6443", f"{PKI}/ca.crt")
    for node in nodes:
        assert status_with(cp1, f"https://{node.address}:10250/pods", "/root/old.pem") == "401"
        cp1.wait_node_ready(node.name)
        cp1.kubectl(f"get --raw /api/v1/nodes/{node.name}/proxy/healthz")
        assert node.run(f"grep -c BEGIN {PKI}/ca.crt").stdout.strip() == "1"
    for one in cp1.get("configmap -A --field-selector metadata.name=kube-root-ca.crt")["items"]:
        assert one["data"]["ca.crt"].strip() == cp1.read(f"{PKI}/ca.crt").strip()


def finish(cp1: Node, hook: Node) -> None:
    """The last stage waits for those who know the former one alone: a webhook, and pods."""
    refused = rotate(cp1, CLUSTER, "--finish", check=False)
    assert code_of(refused) == "rotation-still-used" and "default/by-token" in refused.stderr
    assert "hook.example.com" in refused.stderr and "join lines" in refused.stderr
    issue_hook(cp1, hook)
    start_token_client(cp1, ANEW, FRESH)
    rotate(cp1, CLUSTER, "--finish --restart-workloads")


def test_one_control_plane_and_a_worker(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version)
    init_with_balancer(cp1, kb_pyz, podNetwork={"plugin": "bridge"})
    join(w1, cp1, kb_pyz)
    cp1.wait_node_ready("w1")
    add_account(cp1)
    add_hook(cp1, w1)
    keep_former(cp1)
    manifest = cp1.read("/etc/kubernetes/manifests/kube-controller-manager.yaml")
    line = cp1.run(f"{KB} token create --print-join-command").stdout.strip()
    with old_clients(cp1):
        # the first stage, taken back; then anew, killed on the way
        rotate(cp1, CLUSTER)
        assert stage_of(cp1) == "trust" and "no rotation" not in rotate(w1, CLUSTER, "--continue").output
        rotate(cp1, CLUSTER, "--undo")
        go_on([cp1], w1)
        assert is_over(cp1) and cp1.read(f"{PKI}/ca.crt") == cp1.read("/root/former.crt")
        assert cp1.read("/etc/kubernetes/manifests/kube-controller-manager.yaml") == manifest
        killed(cp1, "certs rotate-ca cluster", f"write_file {PKI}/ca.crt")
        rotate(cp1, CLUSTER)
        go_on([cp1], w1)
        assert stage_of(cp1) == "use" and bundle_of(cp1) == "2"
        assert knows(cp1, f"{cp1.address}:6443", "/root/former.crt")
        # a node joins in the middle, with a line of before
        w2 = make_node("w2", version=k8s_version)
        w2.scp(kb_pyz, "/root/kb.pyz")
        w2.run(f"{line} --ignore-preflight-errors=all", timeout=600)
        assert "on worker w2: " in rotate(cp1, CLUSTER, "--continue").stdout
        rotate(w2, CLUSTER, "--continue")
    finish(cp1, w1)
    rotate(w2, CLUSTER, "--continue")
    go_on([cp1], w1)
    stop_token_client(cp1, ANEW)
    check_ended([cp1], w1)
    assert cp1.read("/etc/kubernetes/manifests/kube-controller-manager.yaml") == manifest
    check_left([cp1])


RECONNECT = {"apiServer": {"extraArgs": [{"name": "goaway-chance", "value": "0.02"}]}}
"""API servers send one of 50 calls elsewhere, so that clients of HTTP/2 shake hands again and again, as they do only over days."""


def check_refused_meanwhile(cp1: Node, other: Node, kb_pyz: Path) -> None:
    """What would end badly in the middle says so before it changes anything: a control plane that joins, and what writes the
    controller-manager's manifest."""
    assert "rotation of cluster is in its stage 'use'" in cp1.run(f"{KB} status").stdout
    other.scp(kb_pyz, "/root/kb.pyz")
    line = make_join_command(cp1, control_plane=True)
    for program in (KB, f"{KB} --as-kubeadm"):
        refused = other.run(line.replace(KB, program, 1), check=False, timeout=300)
        print(refused.output, flush=True)
        assert "no control plane can join while the cluster's authority is rotated" in refused.output
        assert "certs rotate-ca cluster --continue" in refused.output and not other.exists(f"{PKI}/ca.crt")
    before = cp1.read("/etc/kubernetes/manifests/kube-controller-manager.yaml")
    for words in ("upgrade apply v1.36.99", "init phase control-plane/controller-manager", "reconfigure node"):
        refused = cp1.run(f"{KB} {words}", check=False, timeout=120)
        assert code_of(refused) == "rotation-under-way", refused.output
    assert cp1.read("/etc/kubernetes/manifests/kube-controller-manager.yaml") == before
    print(cp1.run(f"{KB} drift", check=False).output, flush=True)


def test_three_control_planes_and_a_worker(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    nodes = make_three(make_node, kb_pyz, k8s_version, cluster=RECONNECT)
    cp1, w1 = nodes[0], make_node("w1", version=k8s_version)
    join(w1, cp1, kb_pyz)
    cp1.wait_node_ready("w1")
    add_account(cp1)
    add_hook(cp1, w1)
    keep_former(cp1)
    found = sorted(read_releases().values(), key=lambda one: int(one.minor.partition(".")[2]))
    programs = [found[0], found[-1]]  # client-go reads ca.crt once; from 1.36 on again
    client_go.deploy(cp1, programs)
    client_go.start(cp1, programs)
    with old_clients(cp1):
        rotate(cp1, CLUSTER)
        go_on(nodes, w1)
        assert stage_of(cp1) == "use"
        assert all(knows(cp1, f"{node.address}:6443", "/root/former.crt") for node in nodes)
        check_refused_meanwhile(cp1, make_node("cp4", version=k8s_version), kb_pyz)
    finish(cp1, w1)
    go_on(nodes, w1)
    stop_token_client(cp1, ANEW)
    client_go.stop(cp1, programs)
    check_ended(nodes, w1)
    check_left(nodes)
