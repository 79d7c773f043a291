"""The values of HTTP requests: TLS settings, answers, streams, and the error if there is no answer.

This module also limits the size and duration of answers, and ensures that credentials are sent only to a verified server.
Connections are made only in kubeup/machine/connections.py.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Optional, Union

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.files import (
    CHUNK,
)
from kubeup.secret import Secret
from kubeup.trust import Anchors

with lazily:
    import ssl
    from http import client as http_client  # together with ssl it takes longer to import than the rest of this module


@frozen
class Tls:
    """How to use TLS: trust `ca` (None: the system's roots) and authenticate with `cert_pem` and `key_pem`.

    server_name: the name to verify in the server's certificate, if it differs from the address; proxy: the http:// proxy to use."""

    ca: Optional[Anchors] = None
    cert_pem: Optional[str] = None
    key_pem: Optional[Secret] = None
    server_name: str = ""
    proxy: str = ""


@frozen
class Unproven:
    """TLS without verification: for probes of this machine's own ports, and for the first request of discovery. Carries no
    credentials."""


UNPROVEN = Unproven()
AnyTls = Union[Tls, Unproven]
_CREDENTIALS = frozenset(("authorization", "cookie", "proxy-authorization"))


def require_safe(url: str, tls: Optional[AnyTls], *, headers: Mapping[str, str]) -> None:
    """Raise HostError (credentials-unprotected) if a request would expose credentials: over plain http, or to a server that is not
    verified."""
    has_secret = bool(_CREDENTIALS.intersection(name.lower() for name in headers))
    is_plain = not url.startswith("https://")
    if not has_secret and not (is_plain and isinstance(tls, Tls) and tls.key_pem):
        return
    if is_plain or isinstance(tls, Unproven):
        raise HostError(
            f"kb does not send credentials to {url.partition('?')[0]}",
            cause="the connection is plain http: anybody on the way can read them"
            if is_plain
            else "the server is not verified",
            remedy="give the server's https:// address" if is_plain else "name the server's CA",
            code="credentials-unprotected",
        )


@frozen
class HttpResponse:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    deferred: bool = False


MAX_ANSWER = 4 << 20
"""The default limit, in bytes, of an answer that is kept in memory."""
_MIN_RATE = 1024
"""The average bytes per second that a stream must deliver after its first minute. A slower server only holds the connection open."""
_MAX_STREAM = 64 << 30


class Deadline:
    """A point in time that limits every wait of a connection. Socket timeouts alone would start again with each byte."""

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    def extend(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        left = self.at - time.monotonic()
        if left <= 0:
            raise socket.timeout("it sends too slowly")
        return left


class HttpStream:
    """An answer whose body is read in pieces. headers: names in lower case."""

    def __init__(self, url: str, answer: http_client.HTTPResponse, *, deadline: Deadline, stall_s: float) -> None:
        self.url = url
        self.status = answer.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in answer.getheaders()}
        self._answer, self._deadline, self._stall_s = answer, deadline, stall_s

    def chunks(self, *, max_bytes: int = _MAX_STREAM) -> Iterator[bytes]:
        """The body, in pieces. Raises Unreachable if it ends before its announced length (reset), stalls or is far too slow
        (timeout), or has more than max_bytes (other)."""
        announced = self.headers.get("content-length", "")
        left = int(announced) if announced.isdigit() and len(announced) < 20 else None
        started, came = time.monotonic(), 0
        try:
            while True:
                self._deadline.extend(self._stall_s)
                piece = self._answer.read1(CHUNK)
                if not piece:
                    break
                came += len(piece)
                left = left - len(piece) if left is not None else None
                if came > max_bytes:
                    raise Unreachable(self.url, "other", text=f"it sends more than {max_bytes} bytes")
                if came < _MIN_RATE * (time.monotonic() - started - 60):
                    raise socket.timeout("it sends too slowly")
                yield piece
        except (OSError, http_client.HTTPException, ValueError) as error:
            raise Unreachable(self.url, reason_of(error), text=str(error) or type(error).__name__) from error
        if left:
            raise Unreachable(self.url, "reset", text=f"{left} bytes are missing at the end")

    def read(self, *, max_bytes: int = MAX_ANSWER) -> bytes:
        return b"".join(self.chunks(max_bytes=max_bytes))


class Unreachable(HostError):
    """There was no answer from a URL. `reason`: refused | timeout | dns | tls | reset | other."""

    def __init__(self, url: str, reason: str, *, text: str) -> None:
        super().__init__(
            f"no answer from {url}",
            cause=f"{_REASONS.get(reason, 'the connection failed')} ({text})",
            remedy=f"check that the server runs and that this node reaches it: curl -vk {url}",
            code="unreachable",
        )
        self.url = url
        self.reason = reason


_REASONS = {
    "refused": "nothing listens there",
    "timeout": "it did not answer in time",
    "dns": "the name does not resolve",
    "tls": "the TLS handshake failed",
    "reset": "it closed the connection",
}


def reason_of(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, socket.gaierror):
        return "dns"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, (socket.timeout, TimeoutError)):
        return "timeout"
    if isinstance(error, (ConnectionResetError, BrokenPipeError, http_client.RemoteDisconnected)):
        return "reset"
    return "other"
