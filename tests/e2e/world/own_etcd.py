"""An etcd of the operator's, on a machine of its own: what tests of clusters with external etcd share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..lab.node import Node, wait_until
from ..lab.shell import sh

FOLDER = "/etc/own-etcd"
CLIENT_FILES = ("ca.crt", "client.crt", "client.key")
CURL = f"curl -sf --cacert {FOLDER}/ca.crt --cert {FOLDER}/client.crt --key {FOLDER}/client.key"


def make_certificates(folder: Path, address: str) -> None:
    """A CA with a serving and a client certificate for an etcd on that address, by openssl."""
    folder.mkdir(parents=True, exist_ok=True)
    run = ["openssl", "req", "-newkey", "rsa:2048", "-nodes"]
    sh(
        [
            *run,
            "-x509",
            "-days",
            "30",
            "-subj",
            "/CN=own-etcd-ca",
            "-keyout",
            f"{folder}/ca.key",
            "-out",
            f"{folder}/ca.crt",
        ]
    )
    for name, extension in (
        ("server", f"subjectAltName=IP:{address},IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"),
        ("client", "extendedKeyUsage=clientAuth\n"),
    ):
        sh([*run, "-subj", f"/CN=own-etcd-{name}", "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.csr"])
        (folder / f"{name}.ext").write_text(extension)
        sh(["openssl", "x509", "-req", "-days", "30", "-in", f"{folder}/{name}.csr", "-CA", f"{folder}/ca.crt",
            "-CAkey", f"{folder}/ca.key", "-CAcreateserial", "-extfile", f"{folder}/{name}.ext", "-out", f"{folder}/{name}.crt"])  # fmt: skip


def start_etcd(node: Node, binary: Path, certificates: Path) -> str:
    """An etcd of the operator's on a machine of its own, that lets clients with certificates in; returns its URL."""
    node.scp(binary, "/usr/local/bin/etcd")
    node.scp(certificates, "/etc/own-etcd")
    url = f"https://{node.address}:2379"
    node.run(
        "systemd-run --unit=own-etcd --property=Restart=always /usr/local/bin/etcd --data-dir=/var/lib/etcd/own"
        f" --listen-client-urls={url} --advertise-client-urls={url} --client-cert-auth --trusted-ca-file=/etc/own-etcd/ca.crt"
        " --cert-file=/etc/own-etcd/server.crt --key-file=/etc/own-etcd/server.key"
    )
    wait_until(
        lambda: '"true"' in node.run(f"{CURL} {url}/health", check=False).stdout,
        what="the operator's etcd",
        timeout_s=30,
    )
    return url


def give_client_files(node: Node, certificates: Path) -> None:
    """What an API server needs to be let in."""
    for name in CLIENT_FILES:
        node.write(f"{FOLDER}/{name}", (certificates / name).read_text(), mode=0o600)


def render_external_etcd(url: str) -> dict[str, Any]:
    """ClusterConfiguration's `etcd`."""
    files = dict(zip(("caFile", "certFile", "keyFile"), (f"{FOLDER}/{name}" for name in CLIENT_FILES)))
    return {"external": {"endpoints": [url], **files}}


def ask_etcd(store: Node, url: str, call: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of etcd's JSON gateway."""
    answer: dict[str, Any] = json.loads(store.run(f"{CURL} {url}/v3/{call} -d '{json.dumps(body)}'").stdout)
    return answer
