"""The load balancer for real: haproxy runs the file that kb writes, in front of TLS servers on the loopback."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import pytest

from kubeup.network import load_balancer
from kubeup.network.load_balancer import Settings
from tests.fake_node import PATHS, finished_node

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin") or ""

pytestmark = [pytest.mark.component, pytest.mark.skipif(not HAPROXY, reason="needs the program haproxy")]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Answers(http.server.BaseHTTPRequestHandler):
    """Says with the server's address that it is ready."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        host, port = self.connection.getsockname()
        text = f"{host}:{port}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def serve(folder: Path) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "apiserver.crt", folder / "apiserver.key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@dataclass
class Balancer:
    settings: Settings
    config: Path
    process: subprocess.Popen[bytes]

    def load(self, *servers: str, drained: tuple[str, ...] = ()) -> None:
        """Write the file and have haproxy read it, as the keeper does."""
        text = load_balancer.render_config(self.settings, servers, drained=drained)
        self.config.write_text(text)
        wait_for_digest(self.settings, load_balancer.parse_config(text)[1], process=self.process)

    def connect(self) -> http.client.HTTPSConnection:
        context = ssl._create_unverified_context()
        return http.client.HTTPSConnection("127.0.0.1", self.settings.port, context=context, timeout=10)


def ask(connection: http.client.HTTPSConnection) -> str:
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def wait_for_digest(settings: Settings, digest: str, *, process: Optional[subprocess.Popen[bytes]] = None) -> None:
    """Until haproxy runs with that file. A master that has just started loses the signal, so it is sent again, as by the keeper."""
    for attempt in range(100):
        if process and attempt % 20 == 0:
            process.send_signal(signal.SIGUSR2)
        with contextlib.suppress(OSError, http.client.HTTPException):
            health = http.client.HTTPConnection("127.0.0.1", settings.health_port, timeout=2)
            health.request("GET", "/")
            if health.getresponse().read().decode().strip() == digest:
                return
        time.sleep(0.1)
    pytest.fail("haproxy does not run with the file that was written last")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[http.server.ThreadingHTTPServer]]:
    node = finished_node()
    for name in ("apiserver.crt", "apiserver.key"):
        (tmp_path / name).write_bytes(node.read_bytes(PATHS.pki / name))
    found = [serve(tmp_path) for _ in range(2)]
    yield found
    for server in found:
        server.shutdown()
        server.server_close()


@pytest.fixture
def balancer(tmp_path: Path, servers: list[http.server.ThreadingHTTPServer]) -> Iterator[Balancer]:
    settings = Settings(f"x:{free_port()}", free_port(), "")
    config = tmp_path / "haproxy.cfg"
    text = load_balancer.render_config(settings, [address_of(server) for server in servers])
    config.write_text(text)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [HAPROXY, "-W", "-db", "-f", str(config)], stdout=log, stderr=log, start_new_session=True
        )
    wait_for_digest(settings, load_balancer.parse_config(text)[1])
    yield Balancer(settings, config, process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def address_of(server: http.server.ThreadingHTTPServer) -> str:
    return f"127.0.0.1:{server.server_address[1]}"


def test_a_drained_server_keeps_what_is_open_and_gets_nothing_new(
    balancer: Balancer, servers: list[http.server.ThreadingHTTPServer]
) -> None:
    every = [address_of(server) for server in servers]
    kept = balancer.connect()
    first = ask(kept)
    (other,) = set(every) - {first}
    balancer.load(*every, drained=(first,))
    assert {ask(balancer.connect()) for _ in range(12)} == {other}
    assert ask(kept) == first
    balancer.load(*every)
    assert {ask(balancer.connect()) for _ in range(12)} == set(every)
    assert ask(kept) == first


def test_a_drained_server_serves_where_no_other_is_ready(
    balancer: Balancer, servers: list[http.server.ThreadingHTTPServer]
) -> None:
    drained, gone = servers
    balancer.load(*map(address_of, servers), drained=(address_of(drained),))
    gone.shutdown()
    gone.server_close()
    time.sleep(5)  # haproxy looks every three seconds
    assert {ask(balancer.connect()) for _ in range(6)} == {address_of(drained)}
