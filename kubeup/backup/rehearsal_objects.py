"""Reads every object of a rehearsed API server, kind by kind, and one Secret in full.

Lists ask for metadata alone, which is small; to give it, the API server reads and decrypts each object. Knows neither backups nor images.
"""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Optional

from kubeup.backup.rehearsal_pod import APISERVER_URL
from kubeup.cluster.etcd import Etcd
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.machine import waiting
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
_DISCOVERY_S = 15.0
"""How long an API server that is ready may take until it offers every kind of custom object."""
_DEFINITIONS = "apiextensions.k8s.io/customresourcedefinitions"
_NOT_STORED = frozenset(("componentstatuses",))
_RESOURCES = {"resources": [{"name!": str, "kind": str, "verbs": [str]}]}
_VERSION = {"groupVersion!": str}
_GROUPS = {"groups": [{"name!": str, "preferredVersion!": _VERSION, "versions!": [_VERSION]}]}
_LIST = {"metadata!": {"continue!": str}, "items!": [object]}


@frozen
class Counted:
    """kinds: how many objects there are of each resource (pods, deployments.apps); keys: of etcd, below the API server's prefix.

    secret: read | none | unreadable: ... | not proven: ...; unread: the resources that could not be listed, and why; unproven: those that
    nothing here could read, since it takes a KMS plugin or a conversion webhook; uncounted: the custom resources of which etcd holds
    more than the API server lists, and how many of how many."""

    kinds: Mapping[str, int] = field(default_factory=dict)
    keys: int = 0
    secret: str = ""
    unread: Mapping[str, str] = field(default_factory=dict)
    unproven: Mapping[str, str] = field(default_factory=dict)
    uncounted: Mapping[str, str] = field(default_factory=dict)

    @property
    def objects(self) -> int:
        return sum(self.kinds.values())


class Caller:
    """Requests to the rehearsed API server, whose certificate it has made itself: it lies in a file that only root can read."""

    def __init__(self, host: Host, cert: Path, *, token: Secret) -> None:
        self.host, self._cert, self._token = host, cert, token
        self._tls: Optional[Tls] = None

    def get(self, path: str, *, accept: str = "application/json") -> HttpResponse:
        """Raises Unreachable, HostError (file-unreadable) before there is a certificate."""
        if self._tls is None:
            self._tls = Tls(Anchors.given(self.host.read_text(self._cert)))
        headers = {"Authorization": f"Bearer {self._token.reveal()}", "Accept": accept}
        return self.host.http_get(
            APISERVER_URL + path, tls=self._tls, headers=headers, timeout_s=_TIMEOUT_S, max_bytes=_MAX_ANSWER
        )

    def probe(self, path: str) -> str:
        """What is wrong, in words; "" if it answers 200."""
        if not self.host.exists(self._cert):
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


@frozen
class Keys:
    """What etcd holds below the API server's prefix. total: the number of keys; custom: how many there are of each custom resource
    (widgets.example.com) that has any."""

    total: int
    custom: Mapping[str, int] = field(default_factory=dict)


def count_keys(client: Etcd, prefix: str) -> Keys:
    """prefix: the API server's, without a slash at its end. Raises EtcdRefused, Unreachable.

    A custom object lies at PREFIX/GROUP/PLURAL/..., and its definition is named PLURAL.GROUP.
    Source: apiextensions-apiserver/pkg/apiserver/customresource_handler.go, ResourcePrefix
    """
    custom = {}
    for name in client.list_keys(f"{prefix}/{_DEFINITIONS}/"):
        plural, _, group = name.partition(".")
        custom[name] = client.count_keys(f"{prefix}/{group}/{plural}/")
    return Keys(client.count_keys(f"{prefix}/"), {name: count for name, count in custom.items() if count})


def count_objects(caller: Caller, *, keys: Keys, kms: tuple[str, ...]) -> Counted:
    """List everything. kms: the plugins that are not there, whose objects stay unread. Raises ClusterError (rehearsal-unread) if
    the API server does not say which kinds it has."""
    _wait_for_discovery(caller, keys.custom)
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
    uncounted = {
        name: f"{kinds.get(name, 0)} of {held}"
        for name, held in sorted(keys.custom.items())
        if kinds.get(name, 0) < held and name not in unread and name not in unproven
    }
    return Counted(dict(sorted(kinds.items())), keys.total, secret, unread, unproven, uncounted)


def _wait_for_discovery(caller: Caller, names: Iterable[str]) -> None:
    """A definition is served some time after the API server is ready. One that serves no version never is: that is seen afterwards."""
    wanted = set(names)

    def look() -> str:
        return ", ".join(sorted(wanted - {name for name, _ in find_resources(caller)})) if wanted else ""

    waiting.watch(caller.host, look, timeout_s=_DISCOVERY_S, poll_s=0.5)


def find_resources(caller: Caller) -> Iterator[tuple[str, str]]:
    """Each stored resource that can be listed, and its path. Groups of other API servers, which are not here, are left out."""
    yield from _resources_of(caller, "/api/v1", group="")
    groups = fit(caller.get_table("/apis"), _GROUPS, what="the answer")["groups"]
    for row in groups:
        if row["name"] != "events.k8s.io":  # the same objects as in /api/v1
            yield from _resources_in_group(caller, row)


def _resources_in_group(caller: Caller, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each once: a group's preferred version does not have to serve every resource of the group."""
    seen: set[str] = set()
    versions = dict.fromkeys(one["groupVersion"] for one in (row["preferredVersion"], *row["versions"]))
    for version in filter(None, versions):
        try:
            found = list(_resources_of(caller, f"/apis/{version}", group=row["name"]))
        except ClusterError:
            continue
        yield from (one for one in found if one[0] not in seen)
        seen.update(name for name, _ in found)


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
