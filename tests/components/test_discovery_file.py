"""Discovery by a kubeconfig, on loopback: whatever client-go does with such a file, kb does, or names."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeup.cluster import find_cluster
from kubeup.cluster.membership import Access
from kubeup.cluster.objects import render_cluster_info
from kubeup.config.types import Discovery
from kubeup.errors import KbError
from kubeup.machine.local_host import LocalHost
from kubeup.node import kubeconfig
from kubeup.secret import Secret
from tests.components.test_trust import INFO, TIMEOUTS, Authority, HastyHost, Server, serving
from tests.make_docs import REPO

pytestmark = pytest.mark.component

TOKEN = Secret("abcdef.0123456789abcdef")
NO_TOKEN = Secret("")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Server]:
    """An API server that shows cluster-info."""
    server = Server(Authority("real", tmp_path))
    with serving(server):
        assert server.authority is not None
        info = render_cluster_info(server.url, server.authority.pem)
        server.pages[INFO] = json.dumps(info).encode()
        (tmp_path / "ca.crt").write_text(server.authority.pem)
        yield server


def write(folder: Path, server: Server, *, user: str = "{token: t}", more: str = "", ca: str = "ca.crt") -> Path:
    path = folder / "found.conf"
    path.write_text(
        f"clusters: [{{name: a, cluster: {{server: '{server.url}', certificate-authority: {ca}{more}}}}}]\n"
        f"users: [{{name: u, user: {user}}}]\n"
        "contexts: [{name: c, context: {cluster: a, user: u}}]\ncurrent-context: c\n"
    )
    return path


def discover(path: Path, token: Secret = NO_TOKEN) -> Access:
    wanted = Discovery(file=str(path), tls_bootstrap_token=token)
    return find_cluster.discover_cluster(
        HastyHost(), wanted, timeouts=TIMEOUTS, tell=lambda _: None, note=lambda _: None
    )


def refused(path: Path, token: Secret = NO_TOKEN) -> KbError:
    with pytest.raises(KbError) as caught:
        discover(path, token)
    return caught.value


def bearer(server: Server) -> list[str]:
    return [headers.get("authorization", "") for _, _, headers, _ in server.seen]


def test_no_kind_and_a_relative_authority(cluster: Server, tmp_path: Path) -> None:
    access = discover(write(tmp_path, cluster))
    assert access.token.reveal() == "t" and bearer(cluster) == ["Bearer t"]
    again = kubeconfig.parse_kubeconfig(access.render_bootstrap_kubeconfig("kubernetes").reveal(), source="x")
    assert (again.server, again.token.reveal(), again.ca_file) == (cluster.url, "t", "") and again.ca_pem


def test_a_token_in_a_file(cluster: Server, tmp_path: Path) -> None:
    (tmp_path / "tok").write_text("from-file\n")
    assert discover(write(tmp_path, cluster, user="{tokenFile: tok}")).token.reveal() == "from-file"


def test_a_plugin_s_token_goes_into_the_bootstrap(cluster: Server, tmp_path: Path) -> None:
    (tmp_path / "plugin").write_text(
        '#!/bin/sh\necho \'{"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", '
        '"status": {"token": "asked"}}\'\n'
    )
    (tmp_path / "plugin").chmod(0o755)
    user = "{exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, interactiveMode: Never}}"
    path = write(tmp_path, cluster, user=user)
    access = discover(path)
    assert access.token.reveal() == "asked" and bearer(cluster) == ["Bearer asked"]
    (tmp_path / "plugin").write_text("#!/bin/sh\nexit 7\n")
    error = refused(path)
    assert error.code == "credential-plugin-failed" and "--tls-bootstrap-token" in error.remedy
    assert discover(path, TOKEN).token == TOKEN, "a token beside the file needs no plugin"


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("{auth-provider: {name: oidc}}", "auth-provider: {name: oidc}"),
        ("{username: a, password: s3cret}", "username, password"),
        ("{token: t, as: admin}", "as: admin"),
    ],
)
def test_what_kb_does_not_do_is_named(cluster: Server, tmp_path: Path, user: str, words: str) -> None:
    path = write(tmp_path, cluster, user=user)
    error = refused(path)
    assert error.code == "kubeconfig-unsupported" and words in error.what and "s3cret" not in str(error.as_dict())
    assert cluster.seen == []
    assert discover(path, TOKEN).token == TOKEN


@contextlib.contextmanager
def proxying(answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Iterator[tuple[int, list[str]]]:
    """An HTTP proxy that knows CONNECT: its port, and what it was asked."""
    asked: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            asked.append(head.decode())
            client.sendall(answer)
            if b" 200 " not in answer:
                client.close()
                continue
            host, _, port = head.split()[1].decode().rpartition(":")
            server = socket.create_connection((host, int(port)))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1], asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_proxy_is_gone_through(cluster: Server, tmp_path: Path) -> None:
    with proxying() as (port, asked):
        access = discover(write(tmp_path, cluster, more=f", proxy-url: 'http://me:pass@127.0.0.1:{port}'"))
        assert asked[0].startswith(f"CONNECT {cluster.address} ") and "Authorization: Basic bWU6cGFzcw==" in asked[0]
        assert "Bearer" not in asked[0] and bearer(cluster) == ["Bearer t"]
        identity = access.identity
        assert LocalHost().http_get(f"{identity.server}{INFO}", tls=identity.tls).status == 200 and len(asked) == 2
    (note,) = access.notes
    assert "proxy-url" in note and "HTTPS_PROXY" in note
    text = access.render_bootstrap_kubeconfig("kubernetes").reveal()
    assert f"proxy-url: http://me:pass@127.0.0.1:{port}" in text


def test_a_proxy_that_does_not_lead_there_is_named(cluster: Server, tmp_path: Path) -> None:
    with proxying(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n") as (port, _):
        error = refused(write(tmp_path, cluster, more=f", proxy-url: 'http://127.0.0.1:{port}'"))
    assert error.code == "proxy-unreachable" and "407" in error.cause and str(tmp_path / "found.conf") in error.what
    error = refused(write(tmp_path, cluster, more=f", proxy-url: 'http://127.0.0.1:{port}'"))
    assert error.code == "proxy-unreachable" and cluster.seen == []


def test_a_proxy_of_a_kind_that_kb_does_not_know_is_named(cluster: Server, tmp_path: Path) -> None:
    for token in (NO_TOKEN, TOKEN):
        error = refused(write(tmp_path, cluster, more=", proxy-url: 'socks5://127.0.0.1:1'"), token)
        assert error.code == "kubeconfig-unsupported" and "socks5" in error.what


def test_the_server_proves_the_name_that_the_file_says(cluster: Server, tmp_path: Path) -> None:
    access = discover(write(tmp_path, cluster, more=", tls-server-name: localhost"))
    assert access.identity.tls.server_name == "localhost"
    assert "tls-server-name: localhost" in access.render_bootstrap_kubeconfig("kubernetes").reveal()
    assert refused(write(tmp_path, cluster, more=", tls-server-name: other")).code == "endpoint-not-in-certificate"
    with proxying() as (port, asked):
        discover(write(tmp_path, cluster, more=f", tls-server-name: localhost, proxy-url: 'http://127.0.0.1:{port}'"))
        assert len(asked) == 1


def test_a_pair_that_does_not_go_together_is_told_before_anybody_is_asked(cluster: Server, tmp_path: Path) -> None:
    folder = cluster.authority.folder if cluster.authority else tmp_path
    Authority("other", tmp_path)
    user = f"{{client-certificate: {folder}/server.crt, client-key: {tmp_path}/other/server.key}}"
    error = refused(write(tmp_path, cluster, user=user))
    assert error.code == "discovery-identity-unfit" and cluster.seen == []


@pytest.mark.parametrize(
    "user",
    [
        "{exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/true, interactiveMode: Never}}",
        "{tokenFile: /etc/hostname}",
    ],
)
def test_what_a_server_sends_reads_and_runs_nothing_here(
    cluster: Server, tmp_path: Path, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.authority is not None
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
    text = write(tmp_path, cluster, user=user, ca="''").read_bytes()
    cluster.pages["/found.conf"] = text
    wanted = Discovery(file=f"{cluster.url}/found.conf")
    with pytest.raises(KbError) as caught:
        find_cluster.discover_cluster(HastyHost(), wanted, timeouts=TIMEOUTS, tell=lambda _: None, note=lambda _: None)
    assert caught.value.code == "discovery-not-self-contained"


def test_the_command_names_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "found.conf").write_text("kind: Secret\napiVersion: v1\n")
    config = tmp_path / "join.yaml"
    config.write_text(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration\nnodeRegistration: {name: w1}\n"
        f"discovery: {{file: {{kubeConfigPath: {tmp_path}/found.conf}}}}\n"
    )
    argv = [
        sys.executable,
        str(REPO / "kb.py"),
        "join",
        "--dry-run",
        "--config",
        str(config),
        "--skip-phases",
        "preflight",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4 and "its kind is 'Secret', not Config" in done.stderr
    assert "kb makes a new one" not in done.stderr
