"""A snapshot of etcd's data: its stream, and the hash at its end.

A member sends a consistent copy of its database while it serves, then the SHA-256 of what it sent, as `etcdctl snapshot save` stores
it. The gateway sends it as one JSON message a line, which is decoded here piece by piece: a database is larger than memory may be.
Must not know where the snapshot is kept. Source: Snapshot in server/etcdserver/api/v3rpc/maintenance.go; hasChecksum in
etcdutl/snapshot/v3_snapshot.go
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from kubeup.cluster.etcd import Etcd, EtcdRefused
from kubeup.errors import ClusterError
from kubeup.json_text import parse_json
from kubeup.machine.http import HttpStream, Unreachable

_HASH = 32
"""The bytes of a SHA-256."""
_PAGE = 512
"""A database has a multiple of this size (bbolt's smallest page), so a hash at its end can be told by the size."""
_MAX_LINE = 1 << 20
"""The limit, in bytes, of a message. etcd sends 32 KiB of the database in each, in base64."""
_STALL_S = 30.0


def stream_snapshot(client: Etcd) -> Iterator[bytes]:
    """The database of the first member that answers, then its hash, in pieces. Raises Unreachable; also after some pieces,
    EtcdRefused, and ClusterError: (snapshot-cut-off) if it ends early, (snapshot-damaged) if its hash is another."""
    last = Unreachable("/v3/maintenance/snapshot", "other", text="no etcd endpoint is known")
    for endpoint in client.endpoints:
        with contextlib.ExitStack() as stack:
            url = f"{endpoint}/v3/maintenance/snapshot"
            opened = client.host.http_open(url, body=b"{}", tls=client.tls, timeout_s=_STALL_S)
            try:
                stream = stack.enter_context(opened)
            except Unreachable as error:
                last = error
                continue
            try:
                yield from check_hash(_read_blobs(stream, endpoint=endpoint), endpoint=endpoint)
            except Unreachable as error:
                raise _cut_off(endpoint, error.cause) from error
            return
    raise last


def check_hash(pieces: Iterable[bytes], *, endpoint: str) -> Iterator[bytes]:
    """The pieces, which have to end with the SHA-256 of all before. Raises ClusterError: snapshot-cut-off, snapshot-damaged."""
    digest, tail, size = hashlib.sha256(), b"", 0
    for piece in pieces:
        size += len(piece)
        tail += piece
        digest.update(tail[:-_HASH])
        tail = tail[-_HASH:]
        yield piece
    if size % _PAGE != _HASH:
        raise _cut_off(endpoint, f"there is no hash at its end, after {size} bytes")
    if digest.digest() != tail:
        raise ClusterError(
            f"etcd's snapshot of {size} bytes is damaged",
            cause=f"its SHA-256 is not the one that {endpoint} sent with it",
            remedy="try it once more; if it stays so, suspect this machine's memory: journalctl -k",
            code="snapshot-damaged",
        )


def _cut_off(endpoint: str, cause: str) -> ClusterError:
    return ClusterError(
        f"the snapshot that {endpoint} sends ends early",
        cause=cause,
        remedy="see whether that etcd was restarted: crictl ps -a --name etcd, and its log; then try it once more",
        code="snapshot-cut-off",
    )


def _read_blobs(stream: HttpStream, *, endpoint: str) -> Iterator[bytes]:
    if stream.status != 200:
        message = stream.read()[:200].decode(errors="replace").strip()
        raise EtcdRefused("maintenance snapshot", endpoint, message=message or f"HTTP {stream.status}")
    for line in _split_lines(stream.chunks(), endpoint=endpoint):
        try:
            value: Any = parse_json(line, "it")
            result = value.get("result") if isinstance(value, dict) else None
            if not isinstance(result, dict):
                raise ValueError("it has no result")
            blob = base64.b64decode(str(result.get("blob") or ""), validate=True)
        except ValueError as error:
            raise EtcdRefused("maintenance snapshot", endpoint, message=_find_message(line, str(error))) from error
        if blob:
            yield blob


def _split_lines(chunks: Iterable[bytes], *, endpoint: str) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)
        if len(rest) > _MAX_LINE:
            raise EtcdRefused("maintenance snapshot", endpoint, message=f"a message has more than {_MAX_LINE} bytes")
    if rest.strip():
        yield rest


def _find_message(line: bytes, otherwise: str) -> str:
    """What etcd says in place of a result: {"error": {"message": ...}}"""
    try:
        value: Any = parse_json(line, "it")
        told = value.get("error", value)
        return str((told if isinstance(told, str) else told.get("message")) or otherwise)
    except (ValueError, AttributeError):
        return otherwise
