"""The mirror: serves a bundle as a registry, straight from its tar or folder.

Implements the pull half of the OCI distribution API and serves the bundle's files. One thread per connection; large
content is sent inside the kernel (sendfile). It writes nothing to disk and accepts no pushes. Must not know about
clusters: init installs it as a unit, and anybody can run it by hand (`kb mirror serve FILE`).

    /v2/...            the distribution API; ?ns=REGISTRY, or the registry as the first part of the name;
                       the bundle's files are the artifact kb/files:VERSION
    /files/            the bundle's files as JSON; /files/TITLE one of them
    /bundles/          the bundles as JSON; /bundles/NAME one of them, as a tar
    /ca.crt            the CA of its own certificate; /healthz; /metrics
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from kubeup.airgap.mirror_answers import REASONS, Answer, Request, answer_request, cut_range, parse_request, refusal
from kubeup.airgap.mirror_catalog import RETRY_S, Log, OpenFile, Serving, Store
from kubeup.airgap.oci_layout import Place
from kubeup.errors import HostError, KbError, shown
from kubeup.lazy_modules import lazily
from kubeup.machine.process import raise_descriptor_limit

with lazily:
    import ssl

if TYPE_CHECKING:
    import socket


MAX_CONNECTIONS = 512
MAX_CLIENTS = 5000
"""The number of addresses that are counted separately; the one whose last request is oldest is forgotten first."""
MAX_PER_CLIENT = 384
"""The limit per address: a whole network can be behind one, but others must get their turn."""
MAX_HEAD = 32 * 1024
HEAD_S = 10.0
"""How long the complete first request of a connection may take, including a TLS handshake."""
IDLE_S = 90.0
"""How long a connection may stay idle: containerd closes its own after 90 seconds."""
DRAIN_S = 25.0
"""How long transfers may continue after the mirror is told to stop."""
STALL_S = 60.0
"""How long a client may read nothing of an answer."""
_SPARE_DESCRIPTORS = 96
"""Reserved for files, and for connections that are closing."""
_MIN_RATE = 1024
"""The average number of bytes per second that a client must read after the first minute."""
_FAIR_RATE = 64 * 1024
"""The bytes per second with which a transfer keeps its place when all places are taken."""
LATE_S = 5.0
"""How far a transfer may fall behind that rate, in seconds."""
LOOK_AGAIN_S = 1.0
_PIECE = 256 * 1024
_WITH_HEAD = 64 * 1024
"""How much of a file is sent with an answer's head; every client that does not read holds this much of the process's
memory."""
_SENDFILE_MAX = 0x7FFF0000
"""The most that Linux sends in one call."""


@dataclass(eq=False)
class _Line:
    """One connection: its client, and since when it has been waiting for a request (None while one is answered)."""

    connection: socket.socket
    peer: str
    waiting_since: Optional[float]
    _started: float = 0.0
    _taken: int = 0
    _due: float = 0.0
    """When a client reading at _FAIR_RATE would have received as much as this one has."""

    def begin_answer(self) -> None:
        self._started = self._due = time.monotonic()
        self._taken, self.waiting_since = 0, None
        self.connection.settimeout(STALL_S)

    @property
    def late_s(self) -> float:
        return time.monotonic() - self._due

    def send(self, data: bytes) -> None:
        """Raises OSError if the client reads nothing for STALL_S, or next to nothing for long."""
        view = memoryview(data)
        while view:
            sent = self.connection.send(view[:_PIECE])
            view = view[sent:]
            self._note(sent)

    def send_file(self, descriptor: int, offset: int, *, count: int) -> int:
        """Send some bytes of a file with sendfile; return how many. Raises OSError like send."""
        room = select.poll()
        room.register(self.connection, select.POLLOUT)
        while True:
            try:
                sent = os.sendfile(self.connection.fileno(), descriptor, offset, min(count, _SENDFILE_MAX))
            except BlockingIOError:
                if not room.poll(STALL_S * 1000):
                    raise OSError("the client reads nothing") from None
                continue
            self._note(sent)
            return sent

    def _note(self, count: int) -> None:
        now = time.monotonic()
        self._taken += count
        self._due = min(now, self._due + count / _FAIR_RATE)
        if self._taken < _MIN_RATE * (now - self._started - 60):
            raise OSError("the client reads next to nothing")

    def hang_up(self) -> None:
        """Wake the thread that reads from the connection or sends to it."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)


class Server:
    """Accepts connections until it is told to stop.

    One thread serves each connection. When all places are taken, a new connection replaces the one that has been idle
    longest; if none is idle, it replaces the transfer that is furthest behind. So a client that sends nothing or only a
    byte now and then, or does not read its answer, keeps nobody out.
    """

    def __init__(
        self,
        store: Store,
        listener: socket.socket,
        *,
        log: Log,
        log_access: Optional[Log] = None,
        tls: Optional[ssl.SSLContext] = None,
        ca_pem: str = "",
    ) -> None:
        """log_access: receives each request; default: log."""
        self._store, self._listener, self._log, self._tls, self._ca_pem = store, listener, log, tls, ca_pem
        self._log_access = log_access or log
        self._most = raise_descriptor_limit() - _SPARE_DESCRIPTORS
        self._lines: set[_Line] = set()
        self._is_ending = False
        self._counts: dict[tuple[str, int], int] = {}
        self._clients: dict[str, int] = {}
        self._bytes = 0
        self._started = time.time()
        self._lock = threading.Lock()
        self._has_room = threading.Condition(self._lock)

    def serve(self) -> None:
        """Serve until a signal raises an exception. Then transfers have DRAIN_S to finish; a second signal stops at
        once."""
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            self._accept()
        finally:
            self._drain()

    def _watch(self) -> None:
        """Runs in its own thread, because examining thousands of files takes time."""
        while not self._is_ending:
            started = time.monotonic()
            self._store.look_again()
            self._store.host.sleep(max(LOOK_AGAIN_S, min(RETRY_S, 20 * (time.monotonic() - started))))

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                continue
            except OSError as error:
                # for example, no descriptors left: ending connections release theirs
                self._log(f"cannot accept: {error.strerror}")
                self._make_room("")
                self._store.host.sleep(0.1)
                continue
            line = _Line(connection, str(peer[0]), time.monotonic())
            if not self._make_room(line.peer):
                connection.close()
                continue
            with self._lock:
                self._lines.add(line)
            try:
                threading.Thread(target=self._attend, args=(line,), daemon=True).start()
            except RuntimeError as error:  # no thread is available right now
                self._log(f"{line.peer}: {error}")
                self._end(line)

    def _make_room(self, peer: str) -> bool:
        """Make a place for a connection from `peer`; False if that address already has too many."""
        with self._has_room:
            own = [line for line in self._lines if line.peer == peer]
            most = max(1, min(MAX_CONNECTIONS, self._most))
            if peer and len(own) >= min(MAX_PER_CLIENT, max(1, most * 3 // 4)):
                return self._give_up_one(own)
            while not peer or len(self._lines) >= most:
                if self._give_up_one(self._lines) or not peer:
                    return True
                self._has_room.wait(0.2)  # all of them are transfers that make progress
            return True

    def _give_up_one(self, lines: Iterable[_Line]) -> bool:
        """Close the connection that has been idle longest, else the transfer that is furthest behind."""
        chosen = min(
            lines, key=lambda line: (line.waiting_since is None, line.waiting_since or -line.late_s), default=None
        )
        if chosen is None or (chosen.waiting_since is None and chosen.late_s < LATE_S):
            return False
        self._lines.discard(chosen)
        chosen.hang_up()
        return True

    def _end(self, line: _Line) -> None:
        with contextlib.suppress(OSError):
            line.connection.close()
        with self._has_room:
            self._lines.discard(line)
            self._has_room.notify()

    def _drain(self) -> None:
        self._is_ending = True
        with contextlib.suppress(OSError):
            self._listener.close()
        deadline = time.monotonic() + DRAIN_S
        with self._has_room:
            for line in list(self._lines):
                if line.waiting_since is not None:
                    line.hang_up()
                    self._lines.discard(line)
            while self._lines and time.monotonic() < deadline:
                self._has_room.wait(0.2)

    def _attend(self, line: _Line) -> None:
        try:
            line.connection.settimeout(HEAD_S)
            if self._tls is not None:
                # in two steps, so that a hang-up reaches it from the first step on
                line.connection = self._tls.wrap_socket(
                    line.connection, server_side=True, do_handshake_on_connect=False
                )
                line.connection.do_handshake()
            self._talk(line)
        except ssl.SSLError as error:
            self._log(f"{line.peer} TLS: {error.reason or error}")
        except KbError as error:
            self._log(f"{line.peer}: {error}")
        except (OSError, ValueError):
            pass  # the client disconnected, read too slowly, or was closed to make room
        finally:
            self._end(line)

    def _talk(self, line: _Line) -> None:
        rest, patience_s = b"", HEAD_S
        while not self._is_ending:
            line.waiting_since = time.monotonic()
            head, rest = _read_head(line.connection, rest, patience_s=patience_s)
            if not head:
                return
            line.begin_answer()
            patience_s = IDLE_S
            started = time.perf_counter()
            request = parse_request(head)
            if request is None:
                self._send(
                    line,
                    Request("GET", "", {}, {}, keeps_alive=False),
                    answer=refusal(400, "UNSUPPORTED", message="no HTTP/1.1 request"),
                    serving=self._store.serving,
                )
                return
            request.keeps_alive = request.keeps_alive and not self._is_ending
            serving = self._store.serving  # one for both: it may change at any moment
            answer = self._answer(request, serving)
            sent = 0
            try:
                sent = self._send(line, request, answer=answer, serving=serving)
            finally:
                self._note(line.peer, request, answer=answer, sent=sent, seconds=time.perf_counter() - started)
            if not request.keeps_alive:
                return

    def _answer(self, request: Request, serving: Serving) -> Answer:
        if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
            request.keeps_alive = False  # its body is not read
        try:
            answer = answer_request(request, serving.catalog, ca_pem=self._ca_pem, metrics=self.render_metrics)
        except Exception as error:
            self._log(f"{shown(request.path[:200])}: {type(error).__name__}: {shown(str(error))}")
            return refusal(500, "UNKNOWN", message="see the mirror's log")
        if request.headers.get("if-none-match", "-") == answer.headers.get("Etag"):
            return Answer(304, {"Etag": answer.headers["Etag"]})
        wanted = request.headers.get("range")
        is_same = request.headers.get("if-range") in (None, answer.headers.get("Etag"))
        return cut_range(answer, wanted) if wanted and is_same and answer.place else answer

    def _send(self, line: _Line, request: Request, *, answer: Answer, serving: Serving) -> int:
        told = {**answer.headers, "Content-Length": str(answer.length)}
        if answer.place is not None:
            told["Accept-Ranges"] = "bytes"
        told["Connection"] = "keep-alive" if request.keeps_alive else "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        head = f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, '')}\r\n{lines}\r\n".encode("latin-1")
        if request.method == "HEAD":
            line.send(head)
            return 0
        if answer.place is None:
            line.send(head + answer.body)
            return len(answer.body)
        return self._send_place(line, head, place=answer.place, file=serving.open_file(answer.place.path))

    def _send_place(self, line: _Line, head: bytes, *, place: Place, file: OpenFile) -> int:
        piece = os.pread(file.descriptor, min(_WITH_HEAD, place.size), place.offset)
        if len(piece) < min(_WITH_HEAD, place.size):
            raise OSError("the file has become shorter")  # raise before sending a head that says otherwise
        line.send(head + piece)
        offset, end = place.offset + len(piece), place.offset + place.size
        while offset < end:
            if self._tls is None:
                sent = line.send_file(file.descriptor, offset, count=end - offset)
            else:
                piece = os.pread(file.descriptor, min(_PIECE, end - offset), offset)
                line.send(piece)
                sent = len(piece)
            if not sent:
                raise OSError("the file has become shorter")
            offset += sent
        return place.size

    # ---- log and metrics

    def _note(self, peer: str, request: Request, *, answer: Answer, sent: int, seconds: float) -> None:
        with self._lock:
            key = (request.method if request.method in ("GET", "HEAD") else "other", answer.status)
            self._counts[key] = self._counts.get(key, 0) + 1
            self._bytes += sent
            if request.path.startswith("/v2/"):
                self._clients[peer] = self._clients.pop(peer, 0) + 1  # keep the newest last
                if len(self._clients) > MAX_CLIENTS:
                    del self._clients[next(iter(self._clients))]
        namespace = request.query.get("ns")
        target = shown(f"{request.path}{f'?ns={namespace}' if namespace else ''}"[:200])
        cut = "" if sent == answer.length or request.method == "HEAD" else " (broken off)"
        self._log_access(f"{peer} {request.method[:16]} {target} {answer.status} {sent} {seconds:.3f}s{cut}")

    def render_metrics(self) -> str:
        """Prometheus' text form."""
        with self._lock:
            rows = [
                f'kb_mirror_requests_total{{method="{method}",code="{code}"}} {count}'
                for (method, code), count in sorted(self._counts.items())
            ]
            clients = [
                f'kb_mirror_client_requests_total{{client="{client}"}} {count}'
                for client, count in sorted(self._clients.items())
            ]
            served, connections = self._bytes, len(self._lines)
        return "\n".join([
            "# HELP kb_mirror_requests_total Requests answered.",
            "# TYPE kb_mirror_requests_total counter",
            *rows,
            "# HELP kb_mirror_client_requests_total Requests for images, by who asked.",
            "# TYPE kb_mirror_client_requests_total counter",
            *clients,
            "# HELP kb_mirror_sent_bytes_total Bytes of bodies sent.",
            "# TYPE kb_mirror_sent_bytes_total counter",
            f"kb_mirror_sent_bytes_total {served}",
            "# HELP kb_mirror_connections Connections that are open.",
            "# TYPE kb_mirror_connections gauge",
            f"kb_mirror_connections {connections}",
            "# HELP kb_mirror_start_time_seconds When it started.",
            "# TYPE kb_mirror_start_time_seconds gauge",
            f"kb_mirror_start_time_seconds {self._started:.0f}",
            "",
        ])  # fmt: skip


def _read_head(connection: socket.socket, rest: bytes, *, patience_s: float) -> tuple[bytes, bytes]:
    """(the head of the next request, the bytes after it); (b"", b"") if no further request comes. patience_s: for all
    of it. Raises OSError (timeout)."""
    deadline = time.monotonic() + patience_s
    while True:
        rest = rest.lstrip(b"\r\n")
        end = rest.find(b"\r\n\r\n")
        if end >= 0:
            return rest[:end], rest[end + 4 :]
        if len(rest) > MAX_HEAD:
            return b"", b""
        left_s = deadline - time.monotonic()
        if rest and left_s > HEAD_S:
            deadline, left_s = time.monotonic() + HEAD_S, HEAD_S  # it has begun: the whole head is due now
        if left_s <= 0:
            return b"", b""
        connection.settimeout(left_s)
        more = connection.recv(16384)
        if not more:
            return b"", b""
        rest += more


def make_tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Raises HostError (mirror-certificate) if the pair cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ValueError) as error:
        raise HostError(
            f"the mirror's certificate {cert} cannot be used",
            cause=str(error),
            remedy="give a certificate and its key: --tls-cert FILE --tls-key FILE",
            code="mirror-certificate",
        ) from error
    return context


def parse_listen(text: str) -> tuple[str, int]:
    """`:5000`, `10.0.0.11:5000`, `[::]:5000` -> address and port. Raises HostError (listen-invalid)."""
    address, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) < 6) or not 0 < int(port) < 65536:
        raise HostError(
            f"--listen {text}",
            cause="it must be ADDRESS:PORT",
            remedy="for example --listen 0.0.0.0:5000, or [::]:5000",
            code="listen-invalid",
        )
    return address.strip("[]") or "0.0.0.0", int(port)
