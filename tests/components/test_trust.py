"""A man in the middle on loopback: nothing that he says is believed, and nothing that he could use reaches him.

He has the cluster's public certificates and signatures, as everybody has, and an authority and keys of his own.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import datetime
import http.server
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional, Union

import pytest

from kubeup.airgap import containerd_hosts, oci_layout, registry_client
from kubeup.cluster import api, find_cluster, membership, tokens
from kubeup.cluster.objects import render_cluster_info
from kubeup.config.types import BootstrapTokenDiscovery, Discovery, Timeouts
from kubeup.errors import HostError, KbError
from kubeup.machine.http import UNPROVEN, Tls, Unreachable
from kubeup.machine.local_host import LocalHost
from kubeup.machine.redirects import get_page
from kubeup.node import ca_pins, cert_specs, certificates, private_keys
from kubeup.secret import Secret
from kubeup.trust import Anchors
from tests.make_docs import REPO

pytestmark = pytest.mark.component

TOKEN = Secret("abcdef.0123456789abcdef")
INFO = find_cluster.CLUSTER_INFO
TIMEOUTS = Timeouts(discovery_s=2)


class HastyHost(LocalHost):
    """A machine on which waiting takes no time."""

    def sleep(self, seconds: float) -> None:
        pass


class Authority:
    """A certificate authority, and certificates of servers that it signs."""

    def __init__(self, name: str, folder: Path, *, parent: Optional[Authority] = None) -> None:
        validity = certificates.plan_validity(datetime.datetime.now(datetime.timezone.utc), 86400)
        self.folder = folder / name
        self.folder.mkdir()
        key = private_keys.generate_key("ECDSA-P256")
        self.ca = certificates.Ca(certificates.issue_ca_cert(name, key, validity=validity), key, self.folder / "ca.crt")
        self.pem = certificates.cert_to_pem(self.ca.cert)
        self.pin = ca_pins.ca_cert_hashes(self.pem)[0]
        subject = certificates.Subject(
            f"{name}-server", sans=cert_specs.make_sans(["127.0.0.1", "localhost"]), is_server=True
        )
        server_key = private_keys.generate_key("ECDSA-P256")
        cert = certificates.issue_leaf_cert(subject, server_key, ca=self.ca, validity=validity)
        (self.folder / "server.crt").write_text(certificates.cert_to_pem(cert))
        (self.folder / "server.key").write_text(private_keys.key_to_pem(server_key).reveal())


Page = Union[bytes, tuple[int, Mapping[str, str], bytes], Callable[[http.server.BaseHTTPRequestHandler], None]]


@dataclass
class Server:
    """An HTTPS server (or an HTTP one) that answers by path and remembers what it was sent. A page may be bytes with status
    200, (status, headers, bytes), or a function of the handler."""

    authority: Optional[Authority]
    pages: dict[str, Page] = field(default_factory=dict)
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.authority else 'http'}://{self.address}"

    @property
    def credentials(self) -> list[str]:
        """Everything in what it was sent that belongs to somebody."""
        found = [
            headers[name] for _, _, headers, _ in self.seen for name in ("authorization", "cookie") if name in headers
        ]
        return found + [body.decode() for *_, body in self.seen if b"refresh_token" in body]


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.seen.append((self.command, self.path, headers, body))
            page: Page = server.pages.get(self.path.partition("?")[0], (404, {}, b""))
            if callable(page):
                page(self)
                return
            status, told, content = (200, {}, page) if isinstance(page, bytes) else page
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **told}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_HEAD = do_PATCH = handle_one

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that does not believe the certificate hangs up

    listener = Quiet(("127.0.0.1", 0), Handler)
    if server.authority:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.authority.folder / "server.crt", server.authority.folder / "server.key")
        listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    server.port = listener.server_address[1]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()


@pytest.fixture
def real(tmp_path: Path) -> Authority:
    return Authority("real", tmp_path)


@pytest.fixture
def evil(tmp_path: Path) -> Authority:
    return Authority("evil", tmp_path)


BUNDLES: dict[str, Callable[[str, str], str]] = {
    "real and his": lambda real, evil: real + evil,
    "his and real": lambda real, evil: evil + real,
    "real twice and his": lambda real, evil: real + real + evil,
    "real alone": lambda real, evil: real,
    "his alone": lambda real, evil: evil,
    "text between": lambda real, evil: f"subject=x\n{real}\nissuer=y\n{evil}",
}
bundles = pytest.mark.parametrize("bundle", BUNDLES)


# ---- the mirror


@bundles
def test_the_mirror_of_a_man_in_the_middle(real: Authority, evil: Authority, bundle: str) -> None:
    pages = {"/ca.crt": BUNDLES[bundle](real.pem, evil.pem).encode(), "/v2/": b"{}", "/files/": b'{"files": []}'}
    with serving(Server(evil, dict(pages))) as server:
        with pytest.raises(HostError) as caught:
            containerd_hosts.find_mirror(LocalHost(), server.url, ca_hash=real.pin)
        assert caught.value.code == "mirror-not-trusted"
        assert [path for _, path, *_ in server.seen] == ["/ca.crt"], "nothing else was asked of him"
        # what came from discovery and holds the pinned certificate is narrowed likewise
        offered = Anchors.given(BUNDLES[bundle](real.pem, evil.pem))
        with pytest.raises(HostError):
            containerd_hosts.find_mirror(LocalHost(), server.url, ca_hash=real.pin, cluster_ca=offered)
        assert {path for _, path, *_ in server.seen} == {"/ca.crt"}


@bundles
def test_the_real_mirror_is_believed_for_its_pinned_certificate_alone(
    real: Authority, evil: Authority, bundle: str
) -> None:
    shown = BUNDLES[bundle](real.pem, evil.pem)
    with serving(Server(real, {"/ca.crt": shown.encode(), "/v2/": b"{}"})) as server:
        if bundle == "his alone":
            with pytest.raises(HostError):
                containerd_hosts.find_mirror(LocalHost(), server.url, ca_hash=real.pin)
            return
        found = containerd_hosts.find_mirror(LocalHost(), server.url, ca_hash=real.pin)
        assert found.ca_pem == real.pem, "this is what containerd is told to believe"


@pytest.mark.parametrize(
    "text", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff" * 100]
)
def test_a_mirror_that_shows_no_authority(real: Authority, evil: Authority, text: bytes) -> None:
    with serving(Server(evil, {"/ca.crt": text})) as server, pytest.raises(HostError) as caught:
        containerd_hosts.find_mirror(LocalHost(), server.url, ca_hash=real.pin)
    assert caught.value.code == "mirror-not-trusted"


# ---- discovery


def cluster_info(server_url: str, ca_pem: str, *signers: Secret) -> bytes:
    text = render_cluster_info(server_url, ca_pem)["data"]["kubeconfig"]
    data = {"kubeconfig": text}
    for token in signers:
        data[tokens.jws_key(token.reveal().partition(".")[0])] = tokens.compute_jws(text, token)
    return json.dumps({"kind": "ConfigMap", "data": data}).encode()


def discover(server: Server, *pins: str, notes: Optional[list[str]] = None) -> membership.Access:
    wanted = BootstrapTokenDiscovery(TOKEN, server.address, pins, unsafe_skip_ca_verification=not pins)
    note = notes.append if notes is not None else lambda text: None
    return find_cluster.discover_cluster(
        LocalHost(), Discovery(wanted), timeouts=TIMEOUTS, tell=lambda text: None, note=note
    )


@bundles
@pytest.mark.parametrize("signature", ["none", "his own", "another token's"])
def test_a_man_in_the_middle_of_a_join(real: Authority, evil: Authority, bundle: str, signature: str) -> None:
    signers = {
        "none": (),
        "his own": (Secret("abcdef.fedcba9876543210"),),
        "another token's": (Secret("zzzzzz.0123456789abcdef"),),
    }
    with serving(Server(evil)) as server:
        shown = BUNDLES[bundle](real.pem, evil.pem)
        server.pages = {
            INFO: cluster_info(server.url, shown, *signers[signature]),
            "/version": b'{"major": "1"}',
        }
        with pytest.raises(KbError) as caught:
            discover(server, real.pin)
        assert caught.value.code in {"ca-hash-mismatch", "server-not-trusted", "tls-failed", "token-secret-wrong"}, (
            caught.value
        )
        assert server.credentials == []
        assert {path.partition("?")[0] for _, path, *_ in server.seen} == {INFO}


@bundles
def test_a_man_in_the_middle_who_copies_the_real_signature(real: Authority, evil: Authority, bundle: str) -> None:
    """He asks the real cluster, and shows its text with the real signature, or his own text with it."""
    with serving(Server(evil)) as server:
        genuine = json.loads(cluster_info(server.url, real.pem, TOKEN))
        theirs = json.loads(cluster_info(server.url, BUNDLES[bundle](real.pem, evil.pem)))
        theirs["data"].update({key: value for key, value in genuine["data"].items() if key.startswith("jws-")})
        for page in (genuine, theirs):
            server.pages = {INFO: json.dumps(page).encode(), "/version": b"{}"}
            with pytest.raises(KbError):
                discover(server, real.pin)
        assert server.credentials == []


def test_an_honest_cluster_is_found(real: Authority, evil: Authority) -> None:
    """Also one whose own bundle holds a second authority: the whole of it came over a connection that the pin proved."""
    with serving(Server(real)) as server:
        for text in (real.pem, evil.pem + real.pem):
            server.pages = {INFO: cluster_info(server.url, text, TOKEN)}
            found = discover(server, real.pin)
            assert found.ca_pem.replace("\n", "") == text.replace("\n", "") and found.server == server.url
        assert server.credentials == []


def test_without_a_pin_the_signature_proves_and_kb_says_what_that_means(real: Authority) -> None:
    notes: list[str] = []
    with serving(Server(real)) as server:
        server.pages = {INFO: cluster_info(server.url, real.pem), "/version": b"{}"}
        with pytest.raises(KbError):
            discover(server)
        assert server.credentials == [], "nobody without the token has shown that he has it"
        server.pages = {INFO: cluster_info(server.url, real.pem, TOKEN)}
        discover(server, notes=notes)
    assert any("whoever knows the token can pass for the cluster" in text for text in notes)


def test_the_token_goes_to_a_server_that_the_pin_has_proven(real: Authority) -> None:
    """To tell an unknown token from a signer that is down."""
    with serving(Server(real)) as server:
        server.pages = {INFO: cluster_info(server.url, real.pem), "/version": (401, {}, b"{}")}
        with pytest.raises(KbError) as caught:
            discover(server, real.pin)
        assert caught.value.code == "token-unknown"
        assert set(server.credentials) == {f"Bearer {TOKEN.reveal()}"}


@pytest.mark.parametrize("order", ["root first", "intermediate first", "intermediate alone"])
def test_an_authority_is_believed_as_go_believes_it(tmp_path: Path, order: str) -> None:
    """Every certificate of the file is an anchor, a root or not."""
    root, inner, leaf = (tmp_path / name for name in ("root", "inner", "leaf"))
    for folder in (root, inner, leaf):
        folder.mkdir()

    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=tmp_path)

    new = ["-newkey", "rsa:2048", "-nodes"]
    run("req", "-x509", *new, "-keyout", "root/k", "-out", "root/c", "-subj", "/CN=root", "-days", "2")
    for name, signer, extensions in (
        ("inner", "root", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign"),
        ("leaf", "inner", "subjectAltName=IP:127.0.0.1"),
    ):
        (tmp_path / name / "ext").write_text(extensions)
        run("req", *new, "-keyout", f"{name}/k", "-out", f"{name}/r", "-subj", f"/CN={name}")
        run("x509", "-req", "-in", f"{name}/r", "-CA", f"{signer}/c", "-CAkey", f"{signer}/k", "-CAcreateserial", "-days", "2",
            "-extfile", f"{name}/ext", "-out", f"{name}/c")  # fmt: skip
    authority = Authority("unused", tmp_path)
    (authority.folder / "server.crt").write_text(
        (leaf / "c").read_text() + (inner / "c").read_text() * (order == "root first")
    )
    (authority.folder / "server.key").write_text((leaf / "k").read_text())
    pems = {"root first": (root, inner), "intermediate first": (inner, root), "intermediate alone": (inner,)}[order]
    anchors = Anchors.given("".join((folder / "c").read_text() for folder in pems))
    with serving(Server(authority, {"/version": b"{}"})) as server:
        assert LocalHost().http_get(f"{server.url}/version", tls=Tls(anchors)).status == 200


# ---- credentials


def test_no_credentials_over_plain_http_or_to_an_unproven_server(real: Authority) -> None:
    with serving(Server(None, {"/": b"{}"})) as plain, serving(Server(real, {"/": b"{}"})) as secure:
        host = LocalHost()
        for header in ("Authorization", "authorization", "Cookie", "Proxy-Authorization"):
            for url, tls in ((f"{plain.url}/", None), (f"{secure.url}/", UNPROVEN)):
                with pytest.raises(HostError) as caught:
                    host.http_get(url, tls=tls, headers={header: "Bearer x"})
                assert caught.value.code == "credentials-unprotected"
        with pytest.raises(HostError):
            host.http_send("POST", f"{plain.url}/", headers={"Authorization": "x"})
        with pytest.raises(HostError), host.http_open(f"{plain.url}/", headers={"Authorization": "x"}):
            pass
        with pytest.raises(HostError):
            host.http_upload(f"{plain.url}/", [b"x"], size=1, headers={"Authorization": "x"})
        assert plain.seen == [] and secure.seen == []
        assert host.http_get(f"{plain.url}/").status == 200


def test_a_kubeconfig_whose_server_is_plain_http(tmp_path: Path) -> None:
    with serving(Server(None, {"/api/v1/nodes": b"{}", INFO: b"{}"})) as plain:
        text = (
            f"apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: '{plain.url}'}}}}]\n"
            "users: [{name: u, user: {token: plantedtoken}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n"
        )
        path = tmp_path / "kubeconfig"
        path.write_text(text)
        with pytest.raises(HostError) as caught:
            api.Api(LocalHost(), api.read_identity(LocalHost(), path), retry_s=0).list("/api/v1/nodes")
        assert caught.value.code == "credentials-unprotected" and "https" in caught.value.remedy
        with pytest.raises(KbError) as told:
            find_cluster.discover_cluster(
                LocalHost(),
                Discovery(file=str(path)),
                timeouts=TIMEOUTS,
                tell=lambda text: None,
                note=lambda text: None,
            )
        assert told.value.code == "credentials-unprotected"
        assert plain.seen == []


def test_a_registry_s_upload_that_is_sent_elsewhere(real: Authority, evil: Authority) -> None:
    """Its credentials are its own, whatever a Location says; and https is not left."""
    with serving(Server(real)) as server, serving(Server(None)) as plain, serving(Server(evil)) as other:
        server.pages["/v2/x/blobs/uploads/"] = (202, {"Location": f"{plain.url}/take"}, b"")
        client = registry_client.Registry(LocalHost(), server.url, tls=Tls(Anchors.given(real.pem + evil.pem)))
        client._tokens["repository:x:pull,push"] = "Basic dTpwdw=="
        with pytest.raises(Unreachable, match="not https"):
            client.push_blob(LocalHost(), "x", digest="sha256:" + "0" * 64, size=1, content=[b"x"])
        server.pages["/v2/x/blobs/uploads/"] = (202, {"Location": f"{other.url}/take"}, b"")
        with contextlib.suppress(KbError):
            client.push_blob(LocalHost(), "x", digest="sha256:" + "0" * 64, size=1, content=[b"x"])
        assert server.credentials == ["Basic dTpwdw=="] * 2
        assert plain.seen == [] and other.credentials == []


@pytest.mark.parametrize("credentials", [("u", Secret("pw")), ("<token>", Secret("refreshme"))])
def test_a_registry_s_realm_that_is_plain_http(real: Authority, credentials: tuple[str, Secret]) -> None:
    with serving(Server(real)) as server, serving(Server(None, {"/token": b'{"token": "x"}'})) as plain:
        challenge = {"WWW-Authenticate": f'Bearer realm="{plain.url}/token",service="s"'}
        server.pages["/v2/x/manifests/1"] = (401, challenge, b"")
        client = registry_client.Registry(LocalHost(), server.url, credentials, tls=Tls(Anchors.given(real.pem)))
        with pytest.raises(HostError) as caught:
            client.get_manifest("x", "1")
        assert caught.value.code == "credentials-unprotected"
        assert plain.seen == []


@pytest.mark.parametrize("scheme", ["Bearer", "Basic", "bearer"])
@pytest.mark.parametrize("credentials", [("u", Secret("pw")), ("<token>", Secret("refreshme"))])
def test_a_registry_of_plain_http_gets_no_credentials_and_names_no_realm_for_them(
    evil: Authority, monkeypatch: pytest.MonkeyPatch, credentials: tuple[str, Secret], scheme: str
) -> None:
    """Whoever is on the way answers in its place, and names an https realm of his own, which the system believes."""
    monkeypatch.setenv("SSL_CERT_FILE", str(evil.folder / "ca.crt"))
    (evil.folder / "ca.crt").write_text(evil.pem)
    with serving(Server(None)) as plain, serving(Server(evil, {"/token": b'{"token": "x"}'})) as his:
        challenge = {"WWW-Authenticate": f'{scheme} realm="{his.url}/token",service="s"'}
        plain.pages["/v2/x/manifests/1"] = plain.pages["/v2/x/blobs/sha256:1"] = (401, challenge, b"")
        for ask in (
            lambda client: client.get_manifest("x", "1"),
            lambda client: client.has_blob("x", "sha256:1"),
            lambda client: b"".join(client._stream("x/blobs/sha256:1", "s", headers={}, offset=0)),
        ):
            with pytest.raises(HostError) as caught:
                ask(registry_client.Registry(LocalHost(), plain.url, credentials))
            assert caught.value.code == "credentials-unprotected"
        assert his.seen == [] and plain.credentials == []


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_a_server_that_a_registry_sends_on_to_is_not_logged_in_to(
    real: Authority, evil: Authority, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Blobs lie in somebody else's network, as a rule: what that one asks for is not the registry's word."""
    monkeypatch.setenv("SSL_CERT_FILE", str(evil.folder / "ca.crt"))
    (evil.folder / "ca.crt").write_text(evil.pem)
    with serving(Server(real)) as server, serving(Server(evil, {"/token": b'{"token": "x"}'})) as other:
        server.pages["/v2/x/blobs/sha256:1"] = server.pages["/v2/x/manifests/1"] = (
            307,
            {"Location": f"{other.url}/it"},
            b"",
        )
        other.pages["/it"] = (401, {"WWW-Authenticate": f'{scheme} realm="{other.url}/token",service="s"'}, b"")
        client = registry_client.Registry(
            LocalHost(), server.url, ("u", Secret("pw")), tls=Tls(Anchors.given(real.pem))
        )
        with pytest.raises(registry_client.Refused):
            b"".join(client._stream("x/blobs/sha256:1", "s", headers={}, offset=0))
        with pytest.raises(registry_client.Refused):
            client.get_manifest("x", "1")
        assert other.credentials == [] and [path for _, path, *_ in other.seen] == ["/it", "/it"]


def test_a_registry_s_own_realm_gets_its_credentials(real: Authority, tmp_path: Path) -> None:
    """Over https, for that registry: the token for them goes with the request, and on to nobody else."""
    blob = b"content"
    digest = oci_layout.digest_of(blob)
    with serving(Server(real)) as server, serving(Server(real, {"/elsewhere": blob})) as other:
        pulled = f"/v2/a/b/blobs/{digest}"

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            is_known = handler.headers.get("Authorization") == "Bearer t0k"
            handler.send_response(307 if is_known else 401)
            handler.send_header("Content-Length", "0")
            realm = f'Bearer realm="{server.url}/token",service="s"'
            handler.send_header(*(("Location", f"{other.url}/elsewhere") if is_known else ("WWW-Authenticate", realm)))
            handler.end_headers()

        server.pages = {pulled: answer, "/token": b'{"token": "t0k"}'}
        proven = Tls(Anchors.given(real.pem))
        client = registry_client.Registry(LocalHost(), server.url, ("me", Secret("pw")), tls=proven)
        with pytest.raises(Unreachable):  # the other one has an authority that the system does not know
            client.fetch_blob(HastyHost(), "a/b", digest=digest, size=len(blob), into=tmp_path / "blob")
        login = "Basic " + base64.b64encode(b"me:pw").decode()
        assert server.credentials[:2] == [login, "Bearer t0k"]
        assert any("service=s&scope=repository%3Aa%2Fb%3Apull" in path for _, path, *_ in server.seen)
        assert other.seen == [], "neither the registry's authority nor its token is another server's"


def test_https_is_not_left_by_a_redirect(real: Authority, evil: Authority) -> None:
    with serving(Server(None, {"/x": b"planted"})) as plain, serving(Server(real)) as server:
        for target in (f"{plain.url}/x", "file:///etc/passwd", "ftp://127.0.0.1/x"):
            server.pages["/x"] = (302, {"Location": target}, b"")
            proven = Tls(Anchors.given(real.pem))
            with pytest.raises(Unreachable):
                b"".join(registry_client.open_url(LocalHost(), f"{server.url}/x", offset=0, tls=proven))
        assert plain.seen == []
        plain.pages["/y"] = (302, {"Location": f"{plain.url}/x"}, b"")
        assert get_page(LocalHost(), f"{plain.url}/y")[1].body == b"planted", (
            "plain http to plain http is what was asked for"
        )


# ---- slow and endless servers


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.1)


def drip_head(handler: http.server.BaseHTTPRequestHandler) -> None:
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.1)


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            handler.wfile.write(b"x" * 65536)


def endless_head(handler: http.server.BaseHTTPRequestHandler) -> None:
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(100_000):
            handler.wfile.write(f"X-{number}: {'y' * 100}\r\n".encode())


@pytest.mark.parametrize("page", [drip, drip_head, endless, endless_head])
def test_a_server_that_never_ends(monkeypatch: pytest.MonkeyPatch, page: Callable[..., None]) -> None:
    monkeypatch.setattr("kubeup.machine.connections.BODY_S", 1.0)
    with serving(Server(None, {"/": page})) as server:
        started = time.monotonic()
        with pytest.raises(Unreachable):
            LocalHost().http_get(f"{server.url}/", timeout_s=1)
        assert time.monotonic() - started < 8, "a second for the head, one for the rest, and a margin"


def test_an_answer_that_is_too_large_by_its_own_word() -> None:
    with serving(Server(None, {"/": b"x" * 5000})) as server:
        with pytest.raises(Unreachable, match="more than 4999 bytes"):
            LocalHost().http_get(f"{server.url}/", max_bytes=4999)
        assert len(LocalHost().http_get(f"{server.url}/", max_bytes=5000).body) == 5000


def test_a_server_that_says_nothing_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        started = time.monotonic()
        with pytest.raises(Unreachable) as caught:
            LocalHost().http_get(url, timeout_s=0.5)
        assert caught.value.reason == "timeout" and time.monotonic() - started < 5


# ---- what mypy refuses

SNIPPET = """
from kubeup.airgap import containerd_hosts, registry_client
from kubeup.cluster import api, membership
from kubeup.machine.http import UNPROVEN, Tls
from kubeup.machine.local_host import LocalHost
from kubeup.secret import Secret
from kubeup.trust import Anchors, Offered

offered = Offered("pem")
Tls("pem"){0}
Tls(offered){0}
api.Identity("https://x", UNPROVEN, Secret("token")){0}
LocalHost().http_send("POST", "https://x", tls=UNPROVEN){0}
LocalHost().http_open("https://x", tls=UNPROVEN){0}
LocalHost().http_upload("https://x", (), size=0, tls=UNPROVEN){0}
registry_client.Registry(LocalHost(), "https://x", tls=UNPROVEN){0}
membership.Access("https://x", offered){0}
containerd_hosts.Mirror("https://x", offered){0}
Anchors(offered){0}
Anchors.given(offered){0}
Anchors.vouched("pem"){0}
Tls(Anchors.given("pem"))
LocalHost().http_get("https://x", tls=UNPROVEN)
"""


def test_mypy_refuses_what_is_unproven_where_credentials_go(tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET.format("  # refused"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache"), str(snippet)],
        capture_output=True, text=True, cwd=REPO,
    )  # fmt: skip
    refused = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    wanted = {number for number, line in enumerate(snippet.read_text().splitlines(), 1) if "# refused" in line}
    assert refused == wanted, done.stdout


def calls_of_anchors(path: Path) -> Iterator[tuple[str, str, str]]:
    """(module, function, constructor) wherever something becomes an anchor."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call):
                name = ast.unparse(call.func)
                if re.search(r"\bAnchors(\.\w+)?$", name):
                    yield (
                        path.relative_to(REPO / "kubeup").with_suffix("").as_posix(),
                        function.name,
                        name.partition(".")[2] or "itself",
                    )


def test_what_becomes_an_anchor_does_so_in_few_places() -> None:
    """A text has no memory of where it came from: `Anchors.given(offered.pem)` is fine for mypy. Whoever adds a place here has to
    know whose word the text is: this machine's or its operator's (given), or that of a server that has proven itself (vouched)."""
    found = {call for path in sorted((REPO / "kubeup").rglob("*.py")) for call in calls_of_anchors(path)}
    assert found == {
        ("node/ca_pins", "keep_pinned", "itself"),
        # what a server offered, with a signature of the token's holders or over a proven connection
        ("cluster/find_cluster", "_discover_by_token", "vouched"),
        ("cluster/find_cluster", "_discover_by_file", "vouched"),
        # kubeconfigs and authorities that lie on this machine or were named by its operator
        ("cluster/find_cluster", "_discover_by_file", "given"),
        ("cluster/membership", "read_member_access", "given"),
        ("cluster/api", "read_identity", "given"),
        ("commands/join", "_make_run", "given"),
        ("commands/join", "make_api", "given"),
        ("commands/mirror", "sync", "given"),
        ("cluster/etcd", "read_client_tls", "given"),
        ("cluster/etcd", "read_external_tls", "given"),
        ("phases/serve_mirror", "_own_tls", "given"),
        ("swap/kubelet_view", "_send", "given"),
        # what an API server that kb has started wrote into a folder of kb's
        ("backup/rehearsal_objects", "get", "given"),
        # the cluster's authority, as discovery or this node's files have it
        ("phases/find_mirror", "mirror_of", "given"),
        ("network/load_balancer", "wait_until_serving", "given"),
        ("phases/endpoint", "_tls", "given"),
        ("phases/cert_names", "_shake_hands", "given"),
        ("doctor/looks/expiry", "_answers", "given"),
        ("commands/mirror_move", "_open_mirror", "given"),
        # the one in the node's own kubelet.conf or pki/ca.crt
        ("cluster/membership", "read_way", "given"),
        # one of the two authorities of a rotation, which control planes keep sealed: nothing is sent, only the handshake counts
        ("cluster/authority_places", "find_distrust", "given"),
    }


# ---- the command as a whole


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a dry run looks at everything")
@bundles
@pytest.mark.parametrize(
    "words", [(), ("--control-plane", "--certificate-key", "ab" * 32)], ids=["worker", "control plane"]
)
def test_join_gives_a_man_in_the_middle_nothing(
    real: Authority, evil: Authority, bundle: str, words: tuple[str, ...]
) -> None:
    """Whatever he shows: no token, no certificate key, no request for a certificate; not a file changes."""
    with serving(Server(evil)) as server:
        server.pages = {
            INFO: cluster_info(server.url, BUNDLES[bundle](real.pem, evil.pem)),
            "/version": b"{}",
        }
        line = [sys.executable, str(REPO / "kb.py"), "join", server.address, "--token", TOKEN.reveal()]
        line += ["--discovery-token-ca-cert-hash", real.pin, "--dry-run", "--ignore-preflight-errors=all", *words]
        ended = subprocess.run(line, capture_output=True, text=True, timeout=120)
        assert ended.returncode not in (0, 70) and "  code:   " in ended.stderr, ended.stderr
        found = re.search(r"code:   (\S+)", ended.stderr)
        assert found and found[1] in {"ca-hash-mismatch", "server-not-trusted", "tls-failed", "token-secret-wrong"}, (
            ended.stderr
        )
        assert server.credentials == [] and not [body for *_, body in server.seen if body]
        assert {path.partition("?")[0] for _, path, *_ in server.seen} == {INFO}
        assert "ab" * 32 not in ended.stderr + ended.stdout
