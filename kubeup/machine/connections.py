"""HTTP connections: TLS, proxies, timeouts, and a pool per server and identity.

This module sends the requests of kubeup/machine/http.py. Only LocalHost uses it, after its fence has allowed the request.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import os
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional, Union

from kubeup.addresses import bracket
from kubeup.lazy_modules import lazily
from kubeup.machine.http import (
    MAX_ANSWER,
    AnyTls,
    Deadline,
    HttpResponse,
    HttpStream,
    Tls,
    Unproven,
    Unreachable,
    reason_of,
    require_safe,
)
from kubeup.secret import Secret

with lazily:
    import ssl
    from http import client as http_client


BODY_S = 30.0
"""How many seconds the body of an answer may take after its head."""
KEPT_S = 60.0
"""For how many seconds a connection is used again. Behind a load balancer it leads to the same server for as long as both live, and an API
server that has lost its etcd goes on answering from its cache: a keeper that asks every ten seconds would never hear of the others."""


class _TimedReader(io.RawIOBase):
    """Reads from a socket; no read waits longer than the deadline allows."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._socket, self._deadline = connection, deadline
        self._raw = connection.makefile("rb", buffering=0)  # keeps the socket open while an answer is read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Optional[int]:
        self._socket.settimeout(self._deadline.left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedSocket:
    """The part of a socket that http.client's response uses."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._socket, self._deadline = connection, deadline

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._socket, self._deadline))


class Connections:
    """A pool of HTTP connections per server, identity and thread. A TLS handshake with a client key costs more than most of kb's
    requests."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._contexts: dict[AnyTls, ssl.SSLContext] = {}

    def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes,
        tls: Optional[AnyTls],
        headers: Mapping[str, str],
        timeout_s: float,
        max_bytes: int = MAX_ANSWER,
    ) -> HttpResponse:
        require_safe(url, tls, headers=headers)
        parts = urllib.parse.urlsplit(url)
        key = (parts.scheme, parts.netloc, tls)
        pool: dict[object, tuple[http_client.HTTPConnection, float]] = self._local.__dict__.setdefault("pool", {})
        for attempt in (1, 2):
            connection, ends = _take(pool.pop(key, None))
            is_reused = connection is not None
            deadline = Deadline(timeout_s)
            try:
                if connection is None:
                    connection = self._connect(parts, tls or Tls())
                answer = _ask(connection, method, parts=parts, body=body, headers=headers, deadline=deadline)
                deadline.extend(BODY_S)
                content = answer.read(max_bytes + 1)
                if len(content) > max_bytes:
                    connection.close()
                    raise Unreachable(url, "other", text=f"it sends more than {max_bytes} bytes")
            except (OSError, http_client.HTTPException, ValueError) as error:
                if connection is not None:
                    connection.close()
                # a server may close an idle connection at any time, so try a new one
                if is_reused and attempt == 1 and not isinstance(error, socket.timeout):
                    continue
                raise Unreachable(url, reason_of(error), text=str(error) or type(error).__name__) from error
            if not answer.will_close:
                pool[key] = connection, ends
            else:
                connection.close()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return HttpResponse(answer.status, content, found)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        url: str,
        *,
        body: Optional[Iterable[bytes]],
        tls: Optional[Tls],
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> Iterator[HttpStream]:
        """Send a request over a new connection, which is closed afterwards: after a partly read body it cannot be reused.
        timeout_s: the time until the answer begins, and between its pieces."""
        require_safe(url, tls, headers=headers)
        parts = urllib.parse.urlsplit(url)
        connection: Optional[http_client.HTTPConnection] = None
        try:
            deadline = Deadline(timeout_s)
            try:
                connection = self._connect(parts, tls or Tls())
                answer = _ask(connection, method, parts=parts, body=body, headers=headers, deadline=deadline)
            except (OSError, http_client.HTTPException, ValueError) as error:
                raise Unreachable(url, reason_of(error), text=str(error) or type(error).__name__) from error
            yield HttpStream(url, answer, deadline=deadline, stall_s=timeout_s)
        finally:
            if connection is not None:
                connection.close()

    def _connect(self, parts: urllib.parse.SplitResult, tls: AnyTls) -> http_client.HTTPConnection:
        host, port = parts.hostname or "", parts.port
        if parts.scheme != "https":
            return http_client.HTTPConnection(host, port)
        if isinstance(tls, Unproven) or not (tls.proxy or tls.server_name):
            return http_client.HTTPSConnection(host, port, context=self._context(tls))
        return _connect_by_way(host, port or 443, tls=tls, context=self._context(tls))

    def _context(self, tls: AnyTls) -> ssl.SSLContext:
        if tls not in self._contexts:
            self._contexts[tls] = _tls_context(tls)
        return self._contexts[tls]


def _take(
    kept: Optional[tuple[http_client.HTTPConnection, float]],
) -> tuple[Optional[http_client.HTTPConnection], float]:
    """The connection that was kept, unless its time is over; and until when it, or the one to be made, is used."""
    now = time.monotonic()
    if kept is not None and now >= kept[1]:
        kept[0].close()
        kept = None
    return kept if kept is not None else (None, now + KEPT_S)


class _NamedConnection(http_client.HTTPConnection):
    """An https connection that verifies a given server name, with or without a proxy."""

    default_port = 443

    def __init__(self, host: str, port: int, *, context: ssl.SSLContext, server_name: str) -> None:
        super().__init__(host, port)
        self.context, self.server_name = context, server_name

    def connect(self) -> None:
        super().connect()
        self.sock = self.context.wrap_socket(self.sock, server_hostname=self.server_name)


def _connect_by_way(host: str, port: int, *, tls: Tls, context: ssl.SSLContext) -> http_client.HTTPConnection:
    name = tls.server_name or host
    if not tls.proxy:
        return _NamedConnection(host, port, context=context, server_name=name)
    proxy = urllib.parse.urlsplit(tls.proxy)
    connection = _NamedConnection(proxy.hostname or "", proxy.port or 80, context=context, server_name=name)
    who = urllib.parse.unquote(f"{proxy.username}:{proxy.password or ''}") if proxy.username else ""
    headers = {"Proxy-Authorization": f"Basic {base64.b64encode(who.encode()).decode()}"} if who else {}
    connection.set_tunnel(bracket(host), port, headers)
    return connection


_PARTIAL_CHAIN = 0x80000
"""X509_V_FLAG_PARTIAL_CHAIN. The ssl module defines it since Python 3.10, and sets it by default since 3.13."""


def _ask(
    connection: http_client.HTTPConnection,
    method: str,
    *,
    parts: urllib.parse.SplitResult,
    body: Union[bytes, Iterable[bytes], None],
    headers: Mapping[str, str],
    deadline: Deadline,
) -> http_client.HTTPResponse:
    """Send a request and read the head of its answer before the deadline. For each piece of the request's body the timeout starts
    again."""
    connection.timeout = deadline.left_s
    if connection.sock is not None:
        connection.sock.settimeout(deadline.left_s)
    connection.response_class = functools.partial(_read_answer, deadline)  # type: ignore[assignment]
    connection.request(
        method, urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, "")), body or None, dict(headers)
    )
    if not isinstance(body, (bytes, type(None))):
        deadline.extend(BODY_S)
    return connection.getresponse()


def _read_answer(deadline: Deadline, connection: socket.socket, *args: Any, **kwargs: Any) -> http_client.HTTPResponse:
    return http_client.HTTPResponse(_TimedSocket(connection, deadline), *args, **kwargs)  # type: ignore[arg-type]


def _tls_context(tls: AnyTls) -> ssl.SSLContext:
    if isinstance(tls, Unproven):
        # not create_default_context, which reads the system's CAs: 20 ms of CPU time for certificates that verify nothing here
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context = ssl.create_default_context(cadata=tls.ca.pem) if tls.ca else ssl.create_default_context()
    # kubeadm's CAs have no path length, and older ones no key identifier, so strict RFC 5280 checks reject them
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    # trust an intermediate CA without its root, as Go trusts every certificate in its pool
    context.verify_flags |= _PARTIAL_CHAIN
    if tls.cert_pem and tls.key_pem:
        _load_identity(context, tls.cert_pem, key_pem=tls.key_pem)
    return context


def _load_identity(context: ssl.SSLContext, cert_pem: str, *, key_pem: Secret) -> None:
    """Load a client certificate and key. ssl reads them only from a file, so pass them in an anonymous file in memory."""
    descriptor = os.memfd_create("kb-identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, f"{cert_pem}\n{key_pem.reveal()}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
