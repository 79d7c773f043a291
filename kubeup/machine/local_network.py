"""LocalNetwork: the network connections of this machine.

It enforces --air-gapped: every connection is checked against the fence first. Below another root nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Optional

from kubeup.errors import HostError
from kubeup.lazy_modules import lazily
from kubeup.machine.connections import Connections
from kubeup.machine.fence import Fence
from kubeup.machine.host import shown_request
from kubeup.machine.http import MAX_ANSWER, AnyTls, HttpResponse, HttpStream, Tls, Unreachable

with lazily:
    import ssl


class LocalNetwork:
    """HTTP requests, name resolution and ports of this machine."""

    is_live: bool
    deferred: list[str]

    def __init__(self) -> None:
        self.fence: Optional[Fence] = None
        """Set by --air-gapped: connections to any other host are refused."""
        self._connections = Connections()

    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = MAX_ANSWER,
    ) -> HttpResponse:
        """GET a URL. timeout_s: the time until the answer begins; its body may take BODY_S longer. Any HTTP status is an answer.
        Raises Unreachable if there is no answer, or one of more than max_bytes. Raises HostError (credentials-unprotected), like
        every request here."""
        if not self.is_live:
            raise Unreachable(url, "other", text="--root writes a node's files, it has no running system")
        self._require_way(url, tls)
        return self._connections.request(
            "GET", url, body=b"", tls=tls, headers=headers or {}, timeout_s=timeout_s, max_bytes=max_bytes
        )

    def http_ask(
        self,
        url: str,
        body: bytes,
        *,
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
    ) -> HttpResponse:
        """POST a read-only JSON request to an API that has no GET for it. Raises the same errors as http_get."""
        if not self.is_live:
            raise Unreachable(url, "other", text="--root writes a node's files, it has no running system")
        self._require_way(url, tls)
        return self._connections.request(
            "POST",
            url,
            body=body,
            tls=tls,
            headers={**(headers or {}), "Content-Type": "application/json"},
            timeout_s=timeout_s,
        )

    @contextlib.contextmanager
    def http_open(
        self,
        url: str,
        *,
        body: bytes = b"",
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 30,
    ) -> Iterator[HttpStream]:
        """GET a URL whose answer is too large for memory; with a body, POST that: a read-only JSON request to an API that has no GET
        for it. Raises Unreachable if there is no answer."""
        if not self.is_live:
            raise Unreachable(url, "other", text="--root writes a node's files, it has no running system")
        self._require_way(url, tls)
        told = {
            **(headers or {}),
            **({"Content-Type": "application/json", "Content-Length": str(len(body))} if body else {}),
        }
        with self._connections.open(
            "POST" if body else "GET",
            url,
            body=(body,) if body else None,
            tls=tls,
            headers=told,
            timeout_s=timeout_s,
        ) as stream:
            yield stream

    def http_upload(
        self,
        url: str,
        body: Iterable[bytes],
        *,
        size: int,
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 300,
    ) -> HttpResponse:
        """PUT a body of `size` bytes in pieces. Raises Unreachable."""
        self._require_way(url, tls)
        told = {"Content-Type": "application/octet-stream", **(headers or {}), "Content-Length": str(size)}
        with self._connections.open("PUT", url, body=body, tls=tls, headers=told, timeout_s=timeout_s) as stream:
            return HttpResponse(stream.status, stream.read(), stream.headers)

    def _require_way(self, url: str, tls: Optional[AnyTls]) -> None:
        """Check that the fence allows the server, and the proxy to it."""
        self.require_inside(urllib.parse.urlsplit(url).hostname or "", url)
        if isinstance(tls, Tls) and tls.proxy:
            self.require_inside(urllib.parse.urlsplit(tls.proxy).hostname or "", f"the proxy to {url}")

    def require_inside(self, name: str, what: str) -> None:
        """Raise HostError (air-gap) if --air-gapped forbids a connection to `name`."""
        if self.fence is None or self.fence.allows(name):
            return
        inside = ", ".join(sorted(self.fence.hosts)) or "this node"
        raise HostError(
            f"kb was about to connect to {name} ({what})",
            cause=f"--air-gapped restricts it to the cluster and the mirror: {inside}",
            remedy="bring what is missing with the bundle (kb bundle verify --config FILE says what), or leave --air-gapped out",
            code="air-gap",
        )

    def port_holder(self, port: int, address: str = "") -> Optional[str]:
        """None if the TCP port is free on `address` ("": all addresses), else who listens: "kubelet (pid 812)", or "another process"
        if unknown."""
        if not self.is_live:
            return None
        family = socket.AF_INET6 if (":" in address or (not address and socket.has_ipv6)) else socket.AF_INET
        try:
            probe = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            family = socket.AF_INET
            probe = socket.socket(family, socket.SOCK_STREAM)
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and not address:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((address or ("::" if family == socket.AF_INET6 else "0.0.0.0"), port))
            probe.listen(1)
        except OverflowError:
            return None  # there is no such port
        except OSError:
            return _listener_name(port) or "another process"
        finally:
            probe.close()
        return None

    def resolve(self, name: str) -> list[str]:
        """The addresses of a host name; [] if it does not resolve."""
        if not self.is_live:
            return []
        self.require_inside(name, f"to look up the name {name}")
        try:
            return sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
        except (OSError, UnicodeError):
            return []

    def udp_exchange(self, address: str, port: int, *, payload: bytes, timeout_s: float = 2) -> Optional[bytes]:
        """Send one datagram and return the answer; None if there is none in time."""
        if not self.is_live:
            return None
        self.require_inside(address, f"udp port {port}")
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.settimeout(timeout_s)
                probe.connect((address, port))
                probe.send(payload)
                return probe.recv(65535)
        except OSError:
            return None

    def served_cert(self, address: str, port: int, *, timeout_s: float = 3) -> Optional[str]:
        """The certificate (PEM) that a TLS server presents, whoever signed it; None if no server answers."""
        if not self.is_live:
            return None
        self.require_inside(address, f"port {port}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            with (
                socket.create_connection((address, port), timeout=timeout_s) as plain,
                context.wrap_socket(plain) as tls,
            ):
                shown = tls.getpeercert(binary_form=True)
        except (OSError, ValueError):
            return None
        return ssl.DER_cert_to_PEM_cert(shown) if shown else None

    def http_send(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
    ) -> HttpResponse:
        """Send a request that changes something (POST, PUT, PATCH, DELETE). Below another root it is deferred. Raises Unreachable."""
        if not self.is_live:
            self.deferred.append(shown_request(method, url))
            return HttpResponse(200, body, deferred=True)
        self._require_way(url, tls)
        return self._connections.request(method, url, body=body, tls=tls, headers=headers or {}, timeout_s=timeout_s)

    def listen(self, address: str, port: int) -> socket.socket:
        """A listening TCP socket. Its connections block, send small answers at once, and time out if the peer accepts nothing for a
        minute. Raises HostError (cannot-listen)."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM)
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # every accepted connection inherits these; seconds and microseconds
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                server.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 60, 0))
            server.bind((address, port))
            server.listen(128)
        except OSError as error:
            server.close()
            holder = self.port_holder(port, address) or "another process"
            raise HostError(
                f"cannot listen on {address}:{port}",
                cause=f"{error.strerror}: {holder} has it" if error.errno == 98 else str(error.strerror or error),
                remedy="choose another address or port: --listen ADDRESS:PORT",
                code="cannot-listen",
            ) from error
        return server


def _listener_name(port: int) -> Optional[str]:
    """The process that listens on a TCP port, from /proc: "NAME (pid N)"; None if unknown."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                rows = file.read().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            cells = row.split()
            if cells[3] == "0A" and int(cells[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{cells[9]}]")
    if not inodes:
        return None
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if inodes & _open_files(pid):
                with open(f"/proc/{pid}/comm") as file:
                    return f"{file.read().strip()} (pid {pid})"
    return None


def _open_files(pid: str) -> set[str]:
    """The open files of a process, as named in /proc. Raises OSError if kb may not see them."""
    found = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            found.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return found
