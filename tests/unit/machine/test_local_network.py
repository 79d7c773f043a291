"""LocalNetwork against a server on loopback."""

from __future__ import annotations

import http.server
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest

from kubeup.machine import connections
from kubeup.machine.http import UNPROVEN, Unreachable
from kubeup.machine.local_host import LocalHost


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connections: set[tuple[str, int]]

    def do_GET(self) -> None:
        self.server.seen.add(self.client_address)  # type: ignore[attr-defined]
        body = self.path.encode()
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    made.seen = set()  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


class TestHttp:
    def test_any_status_is_an_answer(self, server: http.server.ThreadingHTTPServer) -> None:
        url = f"http://127.0.0.1:{server.server_port}"
        live = LocalHost()
        assert live.http_get(url + "/a?b=c").body == b"/a?b=c"
        assert live.http_get(url + "/none").status == 404

    def test_a_connection_is_used_again(self, server: http.server.ThreadingHTTPServer) -> None:
        live = LocalHost()
        for _ in range(3):
            live.http_get(f"http://127.0.0.1:{server.server_port}/")
        assert len(server.seen) == 1  # type: ignore[attr-defined]

    def test_a_connection_is_not_kept_for_ever(
        self, server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Behind a load balancer it leads to the same server for as long as both live."""
        live, now = LocalHost(), [1000.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        for waits, seen in ((0, 1), (30, 1), (31, 2), (59, 2), (2, 3)):
            now[0] += waits
            live.http_get(f"http://127.0.0.1:{server.server_port}/")
            assert len(server.seen) == seen, "its age counts, not when it was used last"  # type: ignore[attr-defined]

    def test_an_unproven_connection_reads_no_authorities(self) -> None:
        """It verifies nothing, and reading the system's takes 20 ms of CPU time in each join."""
        context = connections._tls_context(UNPROVEN)
        assert context.verify_mode is ssl.CERT_NONE and not context.check_hostname
        assert context.cert_store_stats()["x509"] == 0

    def test_nothing_listens(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(Unreachable) as caught:
            LocalHost().http_get(f"http://127.0.0.1:{port}/")
        assert caught.value.reason == "refused"

    def test_the_holder_of_a_port_is_named(self, server: http.server.ThreadingHTTPServer) -> None:
        holder = LocalHost().port_holder(server.server_port)
        assert holder is not None and f"(pid {os.getpid()})" in holder
