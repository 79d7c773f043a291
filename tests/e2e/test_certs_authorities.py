"""Authorities of other kinds on real nodes: an intermediate CA, elliptic curves, a CA whose key is kept elsewhere. What kb does with
certificates works with each of them, or is refused by name before anything changes."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from .lab.config import lab_config
from .lab.control_planes import code_of
from .lab.node import Node, wait_until
from .test_certs import IGNORE, KB, PKI, can_call, check_used, read_containers, renew

pytestmark = pytest.mark.k8s_versions("1.35", "1.36")
MakeNode = Callable[..., Node]
LEAVES = {
    "ca": ("apiserver", "apiserver-kubelet-client"),
    "etcd/ca": ("etcd/server", "etcd/peer", "etcd/healthcheck-client", "apiserver-etcd-client"),
    "front-proxy-ca": ("front-proxy-client",),
}
FEW = {"dns": {"disabled": True}, "proxy": {"disabled": True}}


def make_control_plane(node: Node, kb_pyz: Path, version: str, **cluster: Any) -> None:
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", lab_config(version, address=node.address, cluster={**FEW, **cluster}))
    node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
    node.wait_node_ready()


def make_intermediates(node: Node) -> None:
    """The cluster's authorities are themselves signed by a root that no node has."""
    node.run(f"mkdir -p {PKI}/etcd /root/root && cd /root/root && openssl req -x509 -newkey rsa:2048 -nodes -days 7000 "
             "-keyout root.key -out root.crt -subj /CN=Example-Root 2>/dev/null")  # fmt: skip
    node.write(
        "/root/root/ext",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,digitalSignature\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n",
    )
    for name in LEAVES:
        place = f"{PKI}/{name}"
        node.run(f"openssl req -newkey rsa:2048 -nodes -keyout {place}.key -out /tmp/ca.csr -subj /CN={name.replace('/', '-')} 2>/dev/null && "
                 f"openssl x509 -req -in /tmp/ca.csr -CA /root/root/root.crt -CAkey /root/root/root.key -CAcreateserial -days 3600 "
                 f"-extfile /root/root/ext -out {place}.crt 2>/dev/null && chmod 600 {place}.key")  # fmt: skip


def check_leaves(node: Node) -> None:
    for ca, leaves in LEAVES.items():
        words = " ".join(f"{PKI}/{leaf}.crt" for leaf in leaves)
        node.run(f"openssl verify -partial_chain -CAfile {PKI}/{ca}.crt {words}")


def key_kinds(node: Node) -> set[str]:
    places = " ".join(f"{PKI}/{leaf}.key" for leaves in LEAVES.values() for leaf in leaves)
    return set(
        node.run(f"for k in {places}; do openssl pkey -in $k -noout -text | head -n 1; done").stdout.splitlines()
    )


def read_listing(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.run(f"{KB} certs check-expiration -o json").stdout)
    return found


def check_everything(node: Node) -> None:
    """What an admin does with certificates over the years."""
    found = read_listing(node)
    assert all(row["answers"] and not row["differsFromFile"] for row in found["servedCertificates"]), found
    assert found["warnings"] == [], found
    before, kinds = read_containers(node), key_kinds(node)
    renew(node, "all")
    check_used(node, before)
    check_leaves(node)
    assert key_kinds(node) == kinds
    authorities = [node.read(f"{PKI}/{name}.crt") for name in LEAVES]
    node.run(f"{KB} certs add-san k8s.example.net", timeout=180)
    assert can_call(node, node.address, "k8s.example.net") == (len(authorities) == 3)
    node.run(f"{KB} certs add-san --remove k8s.example.net", timeout=180)
    check_leaves(node)
    assert "nothing has expired" in node.run(f"{KB} certs recover").output
    node.run("systemctl start kb-certs", timeout=120)
    node.run(f"{KB} backup -o /root/kb.tar", timeout=120)
    told = json.loads(node.run(f"{KB} backup verify /root/kb.tar -o json", timeout=180).stdout)
    assert told["objects"], told
    assert [node.read(f"{PKI}/{name}.crt") for name in LEAVES] == authorities


def test_an_intermediate_ca(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node, worker = (make_node(name, version=k8s_version) for name in ("cp1", "w1"))
    make_intermediates(node)
    authorities = [node.read(f"{PKI}/{name}.crt") for name in LEAVES]
    make_control_plane(node, kb_pyz, k8s_version)
    assert [node.read(f"{PKI}/{name}.crt") for name in LEAVES] == authorities
    check_everything(node)
    worker.scp(kb_pyz, "/root/kb.pyz")
    line = node.run(f"{KB} token create --print-join-command").stdout.strip()
    worker.run(f"{line} --soak 0 {IGNORE}", timeout=300)
    node.wait_node_ready("w1")


def test_elliptic_curves(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    make_control_plane(node, kb_pyz, k8s_version, encryptionAlgorithm="ECDSA-P384")
    assert all("384" in kind for kind in key_kinds(node)), key_kinds(node)
    check_everything(node)


def test_a_ca_whose_key_is_elsewhere(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The cluster's CA; those of etcd and the front proxy are here. What it signs is asked for by requests, signed there and put in."""
    node = make_node("cp1", version=k8s_version)
    make_control_plane(node, kb_pyz, k8s_version)
    node.run(f"mv {PKI}/ca.key /root/ca.key")
    before, files = (
        read_containers(node),
        node.run("cd /etc/kubernetes && find . -type f | sort | xargs sha256sum").stdout,
    )
    for words in ("add-san k8s.example.net", "renew apiserver"):
        refused = node.run(f"{KB} certs {words}", check=False, timeout=120)
        print(words, refused.output, flush=True)
        # `renew` says it as kubeadm does, and succeeds; the others fail
        assert ("can't be renewed" in refused.output) if "renew" in words else not refused.ok, (words, refused.output)
    refused = node.run(f"{KB} certs rotate-ca cluster --yes", check=False, timeout=120)
    assert code_of(refused) == "external-ca-signs", refused.output
    assert "kb-rotation" not in node.kubectl("get configmaps -n kube-system -o name")
    assert node.run("cd /etc/kubernetes && find . -type f | sort | xargs sha256sum").stdout == files
    assert read_containers(node) == before
    assert "nothing has expired" in node.run(f"{KB} certs recover").output
    rows = {row["name"]: row for row in read_listing(node)["certificates"]}
    assert rows["apiserver"]["externallyManaged"] and not rows["etcd-server"]["externallyManaged"], rows
    node.run("systemctl start kb-certs", timeout=120)

    # by requests
    node.run(f"{KB} certs generate-csr --cert-dir /root/csr --kubeconfig-dir /root/csr --config init.yaml")
    node.write("/root/ext", "extendedKeyUsage=serverAuth\n")
    node.run("openssl req -in csr/apiserver.csr -noout -text | grep -q 10.96.0.1")
    node.run("openssl x509 -req -in csr/apiserver.csr -CA /etc/kubernetes/pki/ca.crt -CAkey ca.key -CAcreateserial -days 300 "
             "-copy_extensions copy -extfile ext -out csr/apiserver.crt")  # fmt: skip
    node.run(f"cp csr/apiserver.key csr/apiserver.crt {PKI}/")
    wait_until(lambda: can_call(node, node.address, "kubernetes"), what="the signed one", timeout_s=20)
    renew(node, "etcd-server")
    node.run(f"{KB} backup -o /root/kb.tar", timeout=120)
    found = json.loads(node.run(f"{KB} backup verify /root/kb.tar -o json", timeout=180).stdout)
    assert any("ca.key" in text for text in found["about"]["missing"]), found


def test_authorities_that_have_ended(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """All three, like the certificates that they signed. Nobody could learn of others, so none is rotated; their keys get other certificates by the
    administrator's hand, and the node comes back by `certs recover`."""
    node = make_node("cp1", version=k8s_version)
    life = {"caCertificateValidityPeriod": "3m0s", "certificateValidityPeriod": "2m30s"}
    make_control_plane(node, kb_pyz, k8s_version, **life)
    node.run("systemctl stop kubelet")
    wait_until(
        lambda: not node.run(f"openssl x509 -checkend 0 -noout -in {PKI}/ca.crt", check=False).ok,
        what="the end of the authorities",
        timeout_s=200,
    )
    node.run("systemctl start kubelet")
    for words in ("rotate-ca cluster --yes", "rotate-ca etcd --yes", "recover"):
        refused = node.run(f"{KB} certs {words}", check=False, timeout=120)
        assert code_of(refused) == "ca-expired", refused.output

    for name in LEAVES:
        place = f"{PKI}/{name}"
        node.run(f"openssl x509 -in {place}.crt -signkey {place}.key -days 3650 -out /root/ca.crt && mv /root/ca.crt {place}.crt")  # fmt: skip
    began = time.monotonic()
    print(node.run(f"{KB} certs recover", timeout=400).output, flush=True)
    print(f"back after {time.monotonic() - began:.1f} s", flush=True)
    node.wait_node_ready()
    check_leaves(node)
    wanted = node.read(f"{PKI}/ca.crt")
    info = node.kubectl("get configmap cluster-info -n kube-public -o jsonpath={.data.kubeconfig}")
    names = ("admin", "super-admin", "kubelet", "controller-manager", "scheduler")
    for text in (info, *(node.read(f"/etc/kubernetes/{name}.conf") for name in names)):
        found = yaml.safe_load(text)["clusters"][0]["cluster"]["certificate-authority-data"]
        assert base64.b64decode(found).decode() == wanted
    client = f"{PKI}/etcd/healthcheck-client"
    shown = node.run(
        f"curl -sS --cacert {PKI}/etcd/ca.crt --cert {client}.crt --key {client}.key https://127.0.0.1:2379/health"
    )
    assert '"health":"true"' in shown.stdout
    assert "nothing has expired" in node.run(f"{KB} certs recover").output
