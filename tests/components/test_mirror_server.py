"""The mirror's server over real sockets: one client cannot take it from the others, and what it is sent is read in one way."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kubeup.airgap import mirror_catalog, mirror_server
from kubeup.machine.local_host import LocalHost
from kubeup.node import certificates, private_keys
from tests.bundle_case import write_layout
from tests.fuzz import alter_bytes, cases
from tests.make_docs import REPO

pytestmark = pytest.mark.component
BLOB = os.urandom(3 << 20)
UNPROVEN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
UNPROVEN.check_hostname = False
UNPROVEN.verify_mode = ssl.CERT_NONE


@dataclass
class Running:
    server: mirror_server.Server
    port: int
    said: list[str]
    blob: str
    is_tls: bool = False

    def connect(self, timeout: float = 10) -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        return UNPROVEN.wrap_socket(peer) if self.is_tls else peer

    def ask(self, request: bytes, timeout: float = 10) -> bytes:
        """All that comes back until the server closes, or falls silent."""
        with self.connect(timeout) as peer:
            peer.sendall(request)
            return read_all(peer)

    def is_well(self) -> bool:
        return self.ask(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").endswith(b"ok\n")


def read_all(peer: socket.socket) -> bytes:
    found: list[bytes] = []
    with contextlib.suppress(OSError):
        while piece := peer.recv(1 << 20):
            found.append(piece)
    return b"".join(found)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with serving(tmp_path, monkeypatch) as found:
        yield found


@contextlib.contextmanager
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_tls: bool = False) -> Iterator[Running]:
    write_layout(tmp_path / "layout", {"registry.k8s.io/web:1": {"amd64": [BLOB]}})
    said: list[str] = []
    store = mirror_catalog.Store(LocalHost(), tmp_path / "layout", log=said.append)
    listener = LocalHost().listen("127.0.0.1", 0)
    tls = mirror_server.make_tls_context(*make_certificate(tmp_path)) if is_tls else None
    server = mirror_server.Server(store, listener, log=said.append, tls=tls)
    blob = next(digest for digest, place in store.catalog.blobs.items() if place.size == len(BLOB))
    broken: list[object] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)

    def serve() -> None:
        with contextlib.suppress(OSError, ValueError):
            server.serve()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield Running(server, listener.getsockname()[1], said, blob, is_tls)
    finally:
        server._is_ending = True
        listener.close()
        for line in list(server._lines):
            line.hang_up()
    assert broken == [], "a thread ended with an exception"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    key = private_keys.generate_key("ECDSA-P256")
    validity = certificates.plan_validity(datetime.datetime.now(datetime.timezone.utc), 86400)
    (folder / "server.crt").write_text(
        certificates.cert_to_pem(certificates.issue_ca_cert("mirror", key, validity=validity))
    )
    (folder / "server.key").write_text(private_keys.key_to_pem(key).reveal())
    return folder / "server.crt", folder / "server.key"


def best_of(count: int, running: Running) -> float:
    """The shortest time of an answer: a busy machine says nothing of the server."""
    times = []
    for _ in range(count):
        started = time.monotonic()
        assert running.is_well()
        times.append(time.monotonic() - started)
    return min(times)


@pytest.mark.parametrize("kind", ["silent", "a byte now and then", "keep-alive"])
def test_many_slow_clients_keep_no_good_one_out(running: Running, kind: str) -> None:
    crowd: list[socket.socket] = []
    try:
        for _ in range(600):
            peer = running.connect()
            if kind == "a byte now and then":
                peer.sendall(b"G")
            elif kind == "keep-alive":
                peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            crowd.append(peer)
        assert best_of(3, running) < 1.0
        assert len(running.server._lines) <= mirror_server.MAX_CONNECTIONS
        if kind == "keep-alive":
            answered = sum(b"200 OK" in peer.recv(4096) for peer in crowd)
            assert answered == 600, "each of them got its answer before it had to make room"
    finally:
        for peer in crowd:
            peer.close()


@pytest.mark.parametrize("is_tls", [False, True])
def test_clients_that_do_not_read_keep_no_good_one_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_tls: bool
) -> None:
    """They come from several addresses, and take a few bytes now and then, so that nothing ever stands still."""
    monkeypatch.setattr(mirror_server, "MAX_CONNECTIONS", 24)
    monkeypatch.setattr(mirror_server, "MAX_PER_CLIENT", 12)
    monkeypatch.setattr(mirror_server, "LATE_S", 0.5)
    crowd: list[socket.socket] = []
    with serving(tmp_path, monkeypatch, is_tls=is_tls) as running:
        # larger than what the kernel keeps for a connection
        for name, place in running.server._store.catalog.blobs.items():
            if name == running.blob:
                os.truncate(place.path, 1 << 30)
                running.server._store.catalog.blobs[name] = replace(place, size=1 << 30)
        try:
            for number in range(24):
                peer = socket.socket()
                peer.settimeout(10)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                peer.bind((f"127.0.0.{2 + number % 3}", 0))
                peer.connect(("127.0.0.1", running.port))
                peer = UNPROVEN.wrap_socket(peer) if is_tls else peer
                peer.sendall(f"GET /v2/x/blobs/{running.blob} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                crowd.append(peer)
            for _ in range(10):
                time.sleep(0.1)
                for peer in crowd:
                    peer.recv(100)
            assert len(running.server._lines) == 24
            assert best_of(3, running) < 1.0
        finally:
            for peer in crowd:
                peer.close()


def test_handshakes_that_never_end_take_no_more_than_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_server, "MAX_CONNECTIONS", 20)
    before, crowd = threading.active_count(), []
    with serving(tmp_path, monkeypatch, is_tls=True) as running:
        try:
            for _ in range(200):
                crowd.append(socket.create_connection(("127.0.0.1", running.port), timeout=10))
            assert best_of(3, running) < 1.0
            assert threading.active_count() - before < 40, "who was asked to make room is still there"
        finally:
            for peer in crowd:
                peer.close()


def test_where_descriptors_are_few_there_are_some_left_for_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_server, "raise_descriptor_limit", lambda: mirror_server._SPARE_DESCRIPTORS + 20)
    crowd: list[socket.socket] = []
    with serving(tmp_path, monkeypatch) as running:
        try:
            for number in range(60):
                peer = socket.socket()
                peer.bind((f"127.0.0.{2 + number % 5}", 0))
                peer.connect(("127.0.0.1", running.port))
                crowd.append(peer)
            assert best_of(3, running) < 1.0
            assert len(running.server._lines) <= 20
            whole = running.ask(f"GET /v2/x/blobs/{running.blob} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            assert whole.endswith(BLOB)
        finally:
            for peer in crowd:
                peer.close()


def test_a_change_of_the_folder_is_taken_up_while_answers_go_on(running: Running, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", {"registry.k8s.io/other:1": {"amd64": [b"new"]}})
    ask = b"GET /v2/registry.k8s.io/other/tags/list HTTP/1.1\r\nConnection: close\r\n\r\n"
    deadline = time.monotonic() + 20
    while b"200 OK" not in running.ask(ask):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_whoever_asked_longest_ago_is_forgotten_first(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd of addresses does not keep a joining node, which looks for its own count, out of the counts."""
    monkeypatch.setattr(mirror_server, "MAX_CLIENTS", 3)
    for number in (*range(2, 8), 9, 9):
        with socket.socket() as peer:
            peer.bind((f"127.0.0.{number}", 0))
            peer.connect(("127.0.0.1", running.port))
            peer.sendall(b"GET /v2/ HTTP/1.1\r\nConnection: close\r\n\r\n")
            read_all(peer)
    counted = re.findall(r'client="([^"]*)"} (\d+)', running.server.render_metrics())
    assert counted == [("127.0.0.6", "1"), ("127.0.0.7", "1"), ("127.0.0.9", "2")]


def test_a_range_of_another_content_is_not_cut(running: Running) -> None:
    for etag, status in ((running.blob, b"206"), ("sha256:other", b"200")):
        head = f'GET /v2/x/blobs/{running.blob} HTTP/1.1\r\nRange: bytes=0-9\r\nIf-Range: "{etag}"\r\nConnection: close'
        assert running.ask(f"{head}\r\n\r\n".encode())[9:12] == status


def test_a_mirror_without_threads_goes_on(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with running.connect() as peer:
            assert peer.recv(10) == b""
    assert running.is_well()


def test_a_head_has_to_come_as_a_whole_in_time(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_server, "HEAD_S", 0.5)
    with running.connect() as peer:
        started = time.monotonic()
        ended = False
        for byte in b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 100:
            try:
                peer.sendall(bytes([byte]))
            except OSError:
                ended = True
                break
            time.sleep(0.05)
        assert ended or peer.recv(10) == b""
        assert time.monotonic() - started < 5


def test_odd_requests_leave_no_trace_in_memory_and_log(running: Running) -> None:
    for number in range(300):
        method = f"M{number}" + "x" * 40
        running.ask(f"{method} /{'p' * 3000} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    forged = (
        b"GET /v2/fake/manifests/1?ns=%0a10.0.0.1%20GET%20/v2/fake%20200%1b[31m HTTP/1.1\r\nConnection: close\r\n\r\n"
    )
    running.ask(forged)
    metrics = running.server.render_metrics()
    assert len(metrics) < 4096 and 'method="other"' in metrics
    assert all(len(text) < 400 and "\n" not in text and "\x1b" not in text for text in running.said)


AMBIGUOUS = {
    "two lengths": b"GET / HTTP/1.1\r\nContent-Length: 30\r\nContent-Length: 0\r\n\r\n",
    "two equal lengths": b"GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "a bare line feed": b"GET / HTTP/1.1\r\nX: a\nContent-Length: 30\r\n\r\n",
    "a folded line": b"GET / HTTP/1.1\r\nX: a\r\n  b\r\n\r\n",
    "a blank before the colon": b"GET / HTTP/1.1\r\nContent-Length : 30\r\n\r\n",
    "a NUL": b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
    "no number": b"GET / HTTP/1.1\r\nContent-Length: +3\r\n\r\n",
    "another version": b"GET / HTTP/1.11\r\n\r\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_refused(running: Running, name: str) -> None:
    answer = running.ask(AMBIGUOUS[name] + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert re.findall(rb"HTTP/1\.1 (\d\d\d)", answer) == [b"400"]


def test_a_body_is_no_second_request(running: Running) -> None:
    second = b"GET /healthz HTTP/1.1\r\n\r\n"
    for head in (b"Content-Length: %d" % len(second), b"Transfer-Encoding: chunked"):
        answer = running.ask(b"GET / HTTP/1.1\r\n" + head + b"\r\n\r\n" + second)
        assert re.findall(rb"HTTP/1\.1 (\d\d\d)", answer) == [b"200"]


def test_a_file_that_became_shorter_ends_the_connection(running: Running, tmp_path: Path) -> None:
    catalog = running.server._store.catalog
    small = next(digest for digest, place in catalog.blobs.items() if place.size < 4096)
    path = catalog.blobs[small].path
    path.write_bytes(path.read_bytes()[:10])
    for digest in (small, running.blob):
        big = catalog.blobs[digest].path
        big.write_bytes(big.read_bytes()[:10])
        request = f"GET /v2/x/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        assert b"ok\n" not in running.ask(request.encode()), "the next answer would be taken for the rest of this one"


def test_links_and_pipes_in_a_layout_are_not_served(running: Running, tmp_path: Path) -> None:
    planted = tmp_path / "layout/blobs/sha256" / ("f" * 64)
    planted.symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "layout/blobs/sha256" / ("e" * 64))
    store = mirror_catalog.Store(LocalHost(), tmp_path / "layout", log=lambda text: None)
    assert not {f"sha256:{'f' * 64}", f"sha256:{'e' * 64}"} & set(store.catalog.blobs)
    # and one that takes a blob's place later
    path = running.server._store.catalog.blobs[running.blob].path
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert b"root:" not in running.ask(f"GET /v2/x/blobs/{running.blob} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())


def test_any_bytes_get_an_answer_or_none_and_the_next_client_its_own(running: Running) -> None:
    good = b"GET /v2/registry.k8s.io/web/manifests/1?ns=x HTTP/1.1\r\nHost: x\r\nRange: bytes=0-5\r\nConnection: close\r\n\r\n"
    for chance in cases("mirror", 200):
        with running.connect(2) as peer, contextlib.suppress(OSError):
            peer.sendall(alter_bytes(chance, good))
            peer.shutdown(socket.SHUT_WR)
            read_all(peer)
    assert running.is_well()


def test_signals_that_come_again_end_it_without_a_traceback(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", {"registry.k8s.io/web:1": {"amd64": [b"w"]}})
    words = [sys.executable, str(REPO / "kb.py"), "mirror", "serve", str(tmp_path / "layout"), "--listen", "127.0.0.1:"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        words[-1] += str(probe.getsockname()[1])
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            while "serving" not in process.stderr.readline():
                pass
            while process.poll() is None:
                process.send_signal(signal.SIGTERM)
            told = process.stderr.read()
            assert process.returncode == 143 and told in ("", "\ninterrupted by SIGTERM\n")
        finally:
            process.kill()


def test_a_transfer_may_end_when_the_mirror_is_told_to(tmp_path: Path) -> None:
    size = 40 << 20
    write_layout(tmp_path / "layout", {"registry.k8s.io/web:1": {"amd64": [os.urandom(size)]}})
    words = [
        sys.executable,
        str(REPO / "kb.py"),
        "mirror",
        "serve",
        str(tmp_path / "layout"),
        "--listen",
        "127.0.0.1:0",
    ]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words[-1] = f"127.0.0.1:{port}"
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while "serving" not in process.stderr.readline():
                pass
            found = mirror_catalog.build_catalog(
                LocalHost(), mirror_catalog.find_layouts(LocalHost(), tmp_path / "layout")
            )
            digest = next(name for name, place in found.blobs.items() if place.size == size)
            with (
                socket.create_connection(("127.0.0.1", port), timeout=20) as peer,
                socket.create_connection(("127.0.0.1", port), timeout=20) as idle,
            ):
                peer.sendall(f"GET /v2/x/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                head = peer.recv(4096)
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)
                assert idle.recv(10) == b"", "who waits for nothing is let go at once"
                body = head.partition(b"\r\n\r\n")[2] + read_all(peer)
                assert len(body) == size
            assert process.wait(20) == 143
            told = re.search(r"Traceback", process.stderr.read())
            assert told is None
        finally:
            process.kill()
