"""An etcd that gives a snapshot, behind a host."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, Optional

from kubeup.machine.http import HttpResponse, HttpStream, Unreachable

DATABASE = bytes(range(256)) * 400
"""A multiple of 512 bytes, as a database is."""
SNAPSHOT = DATABASE + hashlib.sha256(DATABASE).digest()
URL = "https://10.0.0.11:2379"
_ANSWERS: dict[str, dict[str, Any]] = {
    "cluster/member/list": {
        "members": [
            {
                "ID": "10276657743932975437",
                "name": "cp1",
                "peerURLs": ["https://10.0.0.11:2380"],
                "clientURLs": [URL],
            }
        ]
    },
    "maintenance/status": {
        "header": {"revision": "812"},
        "version": "3.6.6",
        "dbSize": str(len(DATABASE)),
        "leader": "1",
    },
    "kv/range": {"count": "301"},
}


class Stream(HttpStream):
    """An answer of the gateway, in pieces that do not end where lines do."""

    def __init__(self, url: str, pieces: Iterable[bytes], *, status: int = 200) -> None:
        self.url, self.status, self.headers = url, status, {}
        self._pieces = pieces

    def chunks(self, *, max_bytes: int = 0) -> Iterator[bytes]:
        yield from self._pieces


def messages(data: bytes, *, step: int = 32 << 10) -> bytes:
    lines = []
    for start in range(0, len(data), step):
        blob = base64.b64encode(data[start : start + step]).decode()
        left = str(max(0, len(data) - start - step))
        lines.append(json.dumps({"result": {"header": {}, "remaining_bytes": left, "blob": blob}}))
    return "\n".join([*lines, ""]).encode()


def pieces_of(text: bytes, *, step: int = 7001) -> Iterator[bytes]:
    for start in range(0, len(text), step):
        yield text[start : start + step]


class EtcdAnswers:
    """For a host: answers of an etcd at any address in `answering`; the snapshot is `stream`."""

    answering: tuple[str, ...] = (URL,)
    stream: bytes = messages(SNAPSHOT)
    status = 200
    breaks_after: Optional[int] = None
    """The connection is cut after so many bytes."""
    told: dict[str, dict[str, Any]] = _ANSWERS

    def http_ask(self, url: str, body: bytes, **_: Any) -> HttpResponse:
        base, is_etcd, verb = url.partition("/v3/")
        if not is_etcd:
            return HttpResponse(**vars(super().http_ask(url, body, **_)))  # type: ignore[misc]
        if base not in self.answering:
            raise Unreachable(url, "refused", text="connection refused")
        return HttpResponse(200, json.dumps(self.told[verb]).encode())

    @contextlib.contextmanager
    def http_open(self, url: str, *, body: bytes = b"", **_: Any) -> Iterator[HttpStream]:
        base, _is_etcd, verb = url.partition("/v3/")
        if base not in self.answering:
            raise Unreachable(url, "refused", text="connection refused")
        assert (verb, body) == ("maintenance/snapshot", b"{}")
        yield Stream(url, self._pieces(url), status=self.status)

    def _pieces(self, url: str) -> Iterator[bytes]:
        yield from pieces_of(self.stream[: self.breaks_after])
        if self.breaks_after is not None:
            raise Unreachable(url, "reset", text="connection reset")
