"""Reads every object of a rehearsed API server, kind by kind, and one Secret in full.

Lists ask for metadata alone, which is small; to give it, the API server reads and decrypts each object. Knows neither backups nor images.
"""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Optional

from kubeup.backup.rehearsal_pod import APISERVER_URL
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.machine.host import Host
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from kubeup.secret import Secret
from kubeup.shapes import fit
from kubeup.trust import Anchors

_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_PAGE = 500
_MAX_ANSWER = 64 << 20
_TIMEOUT_S = 30.0
UNREADABLE = "unreadable: "
_ENCRYPTED = "identity transformer tried to read encrypted data"
"""What an API server without an encryption configuration says of what is encrypted. Source: value/encrypt/identity/identity.go"""
_CONVERSION = "conversion webhook for "
"""A custom object that was stored in another version than it is listed in. Source: apiserver/conversion/webhook_converter.go"""
_NOT_STORED = frozenset(("componentstatuses",))
_RESOURCES = {"resources": [{"name!": str, "kind": str, "verbs": [str]}]}
_GROUPS = {"groups": [{"name!": str, "preferredVersion!": {"groupVersion!": str}}]}
_LIST = {"metadata!": {"continue!": str}, "items!": [object]}


@frozen
class Counted:
    """kinds: how many objects there are of each resource (pods, deployments.apps); keys: of etcd, below the API server's prefix.

    secret: read | none | unreadable: ... | not proven: ...; unread: the resources that could not be listed, and why; unproven: those that
    nothing here could read, since it takes a KMS plugin or a conversion webhook."""

    kinds: Mapping[str, int] = field(default_factory=dict)
    keys: int = 0
    secret: str = ""
    unread: Mapping[str, str] = field(default_factory=dict)
    unproven: Mapping[str, str] = field(default_factory=dict)

    @property
    def objects(self) -> int:
        return sum(self.kinds.values())


class Caller:
    """Requests to the rehearsed API server, whose certificate it has made itself: it lies in a file that only root can read."""

    def __init__(self, host: Host, cert: Path, *, token: Secret) -> None:
        self._host, self._cert, self._token = host, cert, token
        self._tls: Optional[Tls] = None

    def get(self, path: str, *, accept: str = "application/json") -> HttpResponse:
        """Raises Unreachable, HostError (file-unreadable) before there is a certificate."""
        if self._tls is None:
            self._tls = Tls(Anchors.given(self._host.read_text(self._cert)))
        headers = {"Authorization": f"Bearer {self._token.reveal()}", "Accept": accept}
        return self._host.http_get(
            APISERVER_URL + path, tls=self._tls, headers=headers, timeout_s=_TIMEOUT_S, max_bytes=_MAX_ANSWER
        )

    def probe(self, path: str) -> str:
        """What is wrong, in words; "" if it answers 200."""
        if not self._host.exists(self._cert):
            return "it has made no certificate yet"
        try:
            answer = self.get(path)
        except Unreachable as error:
            self._tls = None  # the file may have been half written
            return error.cause
        return "" if answer.status == 200 else answer.body[-300:].decode(errors="replace")

    def get_table(self, path: str, *, accept: str = "application/json") -> dict[str, Any]:
        """Raises ClusterError (rehearsal-unread) with what the API server says."""
        try:
            answer = self.get(path, accept=accept)
            value = parse_json_object(answer.body, "the answer", max_bytes=_MAX_ANSWER)
        except (Unreachable, ValueError) as error:
            raise _unread(path, str(error)) from error
        if answer.status != 200:
            raise _unread(path, str(value.get("message") or f"HTTP {answer.status}"))
        return value


def _unread(path: str, cause: str) -> ClusterError:
    return ClusterError(
        f"the API server that was booted from the backup does not answer GET {path}",
        cause=cause,
        remedy="take another backup",
        code="rehearsal-unread",
    )


def count_objects(caller: Caller, *, keys: int, kms: tuple[str, ...]) -> Counted:
    """List everything. kms: the plugins that are not there, whose objects stay unread. Raises ClusterError (rehearsal-unread) if
    the API server does not say which kinds it has."""
    kinds: dict[str, int] = {}
    unread: dict[str, str] = {}
    unproven: dict[str, str] = {}
    for name, path in find_resources(caller):
        try:
            count = sum(len(page["items"]) for page in _pages(caller, path))
        except ClusterError as error:
            takes_others = _CONVERSION in error.cause or (kms and _ENCRYPTED in error.cause)
            (unproven if takes_others else unread)[name] = error.cause
            continue
        if count:
            kinds[name] = count
    secret = f"not proven: {', '.join(kms)} encrypts" if kms else _read_secret(caller)
    return Counted(dict(sorted(kinds.items())), keys, secret, unread, unproven)


def find_resources(caller: Caller) -> Iterator[tuple[str, str]]:
    """Each stored resource that can be listed, and its path. Groups of other API servers, which are not here, are left out."""
    yield from _resources_of(caller, "/api/v1", group="")
    groups = fit(caller.get_table("/apis"), _GROUPS, what="the answer")["groups"]
    for row in groups:
        version = row["preferredVersion"]["groupVersion"]
        if row["name"] == "events.k8s.io" or not version:  # the same objects as in /api/v1
            continue
        try:
            yield from _resources_of(caller, f"/apis/{version}", group=row["name"])
        except ClusterError:
            continue


def _resources_of(caller: Caller, prefix: str, *, group: str) -> Iterator[tuple[str, str]]:
    for row in fit(caller.get_table(prefix), _RESOURCES, what="the answer").get("resources", ()):
        name = row["name"]
        if "/" not in name and "list" in row.get("verbs", ()) and name not in _NOT_STORED:
            yield (f"{name}.{group}" if group else name), f"{prefix}/{name}"


def _pages(caller: Caller, path: str) -> Iterator[Mapping[str, Any]]:
    rest = ""
    while True:
        query = urllib.parse.urlencode({"limit": _PAGE, **({"continue": rest} if rest else {})})
        try:
            page = fit(caller.get_table(f"{path}?{query}", accept=_METADATA), _LIST, what="the answer")
        except ValueError as error:
            raise _unread(path, str(error)) from error
        yield page
        rest = page["metadata"]["continue"]
        if not rest:
            return


def _read_secret(caller: Caller) -> str:
    """Whether one Secret, decrypted, has the form of one."""
    try:
        rows = caller.get_table("/api/v1/secrets?limit=1").get("items") or []
        if not rows:
            return "none"
        for value in (rows[0].get("data") or {}).values():
            base64.b64decode(value, validate=True)
    except ClusterError as error:
        return f"{UNREADABLE}{error.cause}"
    except (ValueError, AttributeError, TypeError) as error:
        return f"{UNREADABLE}it is no Secret: {error}"
    return "read"
