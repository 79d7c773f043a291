"""A registry client: the OCI distribution API, with its tokens, the usual credentials, retries and resumed downloads.

Owns how an image name leads to a server, the protocol, and the meaning of refusals. Must not know what a bundle is, and
never holds a blob in memory. Mirrors no part of kubeadm, which leaves pulling to the runtime.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from kubeup.airgap.oci_layout import INDEX_TYPES, MANIFEST_TYPES, MAX_DOCUMENT, digest_of, is_digest
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json, parse_json_object
from kubeup.machine.host import Host
from kubeup.machine.http import MAX_ANSWER, HttpResponse, HttpStream, Tls, Unreachable, require_safe
from kubeup.machine.local_host import LocalHost
from kubeup.machine.redirects import REDIRECTS, follow_redirect
from kubeup.secret import Secret

ATTEMPTS = 5
_FIRST_PAUSE_S = 1.0
_WORTH_WHILE = 64 * 1024
"""The number of bytes that an attempt must transfer to count as progress: with one byte each time it would never
end."""
_ACCEPT = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))
_SERVERS = {"docker.io": "registry-1.docker.io"}
"""Registries whose API has another host name."""
_AUTH_KEYS = {"docker.io": "https://index.docker.io/v1/"}


@frozen
class Ref:
    """The parts of an image name: `registry.k8s.io`, `coredns/coredns`, `v1.13.1`, or a digest."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The full name, as a runtime stores it."""
        return (
            f"{self.registry}/{self.repository}"
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest else "")
        )

    @property
    def reference(self) -> str:
        """The reference to request: the digest if there is one."""
        return self.digest or self.tag


_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def parse_ref(text: str) -> Ref:
    """`busybox` -> docker.io/library/busybox:latest. Raises HostError (image-name-invalid)."""
    rest, _, digest = text.partition("@")
    first, slash, tail = rest.partition("/")
    if not slash or ("." not in first and ":" not in first and first != "localhost"):
        first, tail = "docker.io", rest if slash else f"library/{rest}"
    repository, colon, tag = tail.rpartition(":")
    if not colon:
        repository, tag = tail, "" if digest else "latest"
    is_good = (
        _REPOSITORY.fullmatch(repository) and (not tag or _TAG.fullmatch(tag)) and (not digest or is_digest(digest))
    )
    if not is_good:
        raise HostError(
            f"{text!r} is not an image name",
            cause="an image is named REGISTRY/REPOSITORY:TAG or ...@sha256:DIGEST, the repository in lower case",
            remedy="correct the name; for example registry.k8s.io/pause:3.10.1",
            code="image-name-invalid",
        )
    return Ref(first, repository, tag, digest)


# ---- credentials


def read_credentials(host: Host, registry: str) -> Optional[tuple[str, Secret]]:
    """(user, password) for a registry from docker's configuration; the user is "<token>" for an identity token."""
    environ = host.environ()
    folder = environ.get("DOCKER_CONFIG") or f"{environ.get('HOME', '/root')}/.docker"
    path = Path(folder) / "config.json"
    if not host.exists(path):
        return None
    try:
        config = parse_json_object(host.read_bytes(path), "it")
        helpers, auths = (_mapping_of(config, name) for name in ("credHelpers", "auths"))
    except ValueError as error:
        raise HostError(
            f"{path} is not a docker configuration",
            cause=str(error),
            remedy="correct it, or log in again: docker login, skopeo login",
            code="docker-config-invalid",
        ) from error
    key = _AUTH_KEYS.get(registry, registry)
    helper = helpers.get(registry) or config.get("credsStore")
    if helper:
        found = _ask_helper(host, str(helper), key=key)
        if found:
            return found
    entry = next(
        (auths[name] for name in (key, registry, f"https://{registry}", f"https://{registry}/v2/") if name in auths),
        None,
    )
    return _parse_auth(entry) if isinstance(entry, dict) else None


def _mapping_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no mapping")
    return found


def _parse_auth(entry: Mapping[str, Any]) -> Optional[tuple[str, Secret]]:
    if entry.get("identitytoken"):
        return "<token>", Secret(str(entry["identitytoken"]))
    if entry.get("auth"):
        try:
            user, _, password = base64.b64decode(str(entry["auth"])).decode().partition(":")
        except ValueError:
            return None
        return user, Secret(password.rstrip("\0"))
    if entry.get("username"):
        return str(entry["username"]), Secret(str(entry.get("password", "")))
    return None


def _ask_helper(host: Host, helper: str, *, key: str) -> Optional[tuple[str, Secret]]:
    answer = host.query([f"docker-credential-{helper}", "get"], stdin=key)
    try:
        found = parse_json_object(answer.stdout, "what the helper says") if answer.ok else {}
    except ValueError:
        return None
    return (str(found["Username"]), Secret(str(found.get("Secret", "")))) if found.get("Username") else None


# ---- the client


class Refused(HostError):
    """A registry answered, but not with what was requested."""

    def __init__(self, what: str, status: int, *, text: str, remedy: str) -> None:
        super().__init__(what, cause=f"it answered with status {status}{text}", remedy=remedy, code="registry-refused")
        self.status = status


@dataclass
class Registry:
    """One server. base: `https://registry.k8s.io` or `http://127.0.0.1:5000/prefix`; upstream: the name of the registry
    that this one mirrors, if any, sent as `?ns=`."""

    host: Host
    base: str
    credentials: Optional[tuple[str, Secret]] = None
    upstream: str = ""
    tls: Optional[Tls] = None
    tell: Callable[[str], None] = lambda text: None
    _tokens: dict[str, str] = field(default_factory=dict)

    def get_manifest(self, repository: str, reference: str) -> tuple[str, bytes]:
        """(media type, bytes); the digest is verified if the request was for one. Raises Refused, Unreachable,
        HostError (manifest-damaged)."""
        answer = self._ask(f"{repository}/manifests/{reference}", f"repository:{repository}:pull")
        if answer.status != 200:
            raise self._refused(f"{repository}:{reference}", answer.status, body=answer.body)
        found = digest_of(answer.body)
        wanted = reference if is_digest(reference) else answer.headers.get("docker-content-digest", found)
        if found != wanted or len(answer.body) > MAX_DOCUMENT:
            raise HostError(
                f"the manifest of {repository}:{reference} is damaged",
                cause=f"{self.base} gave {len(answer.body)} bytes with digest {found} for {wanted}",
                remedy="try again; if it happens again, the registry or a proxy in front of it changes the content",
                code="manifest-damaged",
            )
        kind = answer.headers.get("content-type", "").partition(";")[0].strip()
        return _media_type(kind, answer.body), answer.body

    def fetch_blob(self, local: LocalHost, repository: str, *, digest: str, size: int, into: Path) -> None:
        """Download the blob to `into`; an interrupted transfer in `into`.part is resumed.

        Raises Refused, Unreachable (after ATTEMPTS), HostError (download-damaged, disk-full).
        """
        target = f"{repository}/blobs/{digest}"

        def open_from(offset: int) -> Iterator[bytes]:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            return self._stream(target, f"repository:{repository}:pull", headers=headers, offset=offset)

        fetch_resumed(
            local,
            open_from,
            into=into,
            digest=digest,
            size=size,
            name=f"blob {digest[7:19]} of {repository}",
            tell=self.tell,
        )

    def has_blob(self, repository: str, digest: str) -> bool:
        return (
            self._send("HEAD", f"{repository}/blobs/{digest}", scope=f"repository:{repository}:pull,push").status == 200
        )

    def push_blob(self, local: LocalHost, repository: str, *, digest: str, size: int, content: Iterable[bytes]) -> None:
        """Upload a blob in one piece. Raises Refused, Unreachable."""
        scope = f"repository:{repository}:pull,push"
        begun = self._send("POST", f"{repository}/blobs/uploads/", scope=scope)
        if begun.status != 202:
            raise self._refused(f"an upload to {repository}", begun.status, body=begun.body)
        place = follow_redirect(f"{self.base}/", begun.headers.get("location", ""))
        url = f"{place}{'&' if '?' in place else '?'}digest={urllib.parse.quote(digest)}"
        done = local.http_upload(url, content, size=size, **self._proof_for(url, scope))
        if done.status != 201:
            raise self._refused(f"blob {digest} for {repository}", done.status, body=done.body)

    def push_manifest(self, repository: str, reference: str, *, media_type: str, data: bytes) -> None:
        scope = f"repository:{repository}:pull,push"
        done = self._send(
            "PUT", f"{repository}/manifests/{reference}", scope=scope, body=data, headers={"Content-Type": media_type}
        )
        if done.status != 201:
            raise self._refused(f"the manifest {repository}:{reference}", done.status, body=done.body)

    # ---- requests

    def _url(self, target: str) -> str:
        query = f"?ns={self.upstream}" if self.upstream else ""
        prefix, _, path = self.base.partition("://")
        server, _, folder = path.partition("/")
        folder = f"{folder.strip('/')}/" if folder.strip("/") else ""
        return f"{prefix}://{server}/v2/{folder}{target}{query}"

    def _ask(self, target: str, scope: str) -> HttpResponse:
        def once() -> HttpResponse:
            return self._with_redirects(target, scope, headers={"Accept": _ACCEPT})

        return _patiently(self.host, once, tell=self.tell, what=self._url(target))

    def _with_redirects(self, target: str, scope: str, *, headers: Mapping[str, str]) -> HttpResponse:
        url, sent = self._url(target), {**headers, **self._authorization(scope)}
        answer = self.host.http_get(url, tls=self.tls, headers=sent, timeout_s=30)
        if answer.status == 401 and self._log_in(answer.headers, scope):
            sent = {**headers, **self._authorization(scope)}
            answer = self.host.http_get(url, tls=self.tls, headers=sent, timeout_s=30)
        for _ in range(5):
            if answer.status not in REDIRECTS or "location" not in answer.headers:
                break
            url = follow_redirect(url, answer.headers["location"])
            own = self.tls if self._is_own(url) else None
            answer = self.host.http_get(url, tls=own, headers=dict(headers), timeout_s=30)
        return answer

    def _send(
        self, method: str, target: str, *, scope: str, body: bytes = b"", headers: Optional[Mapping[str, str]] = None
    ) -> HttpResponse:
        for attempt in (1, 2):
            sent = {**(headers or {}), **self._authorization(scope), **({} if body else {"Content-Length": "0"})}
            answer = self.host.http_send(method, self._url(target), body=body, tls=self.tls, headers=sent, timeout_s=60)
            if answer.status != 401 or attempt == 2 or not self._log_in(answer.headers, scope):
                break
        return answer

    def _stream(self, target: str, scope: str, *, headers: Mapping[str, str], offset: int) -> Iterator[bytes]:
        """The body from `offset` on. Redirects (to a CDN) get no credentials."""
        url, sent = self._url(target), {**headers, **self._authorization(scope)}
        has_logged_in = False
        for _ in range(8):
            with self.host.http_open(
                url, tls=self.tls if self._is_own(url) else None, headers=sent, timeout_s=60
            ) as stream:
                # ignore the challenge of a server that this one redirects to: it does not speak for this registry
                is_asked = stream.status == 401 and not has_logged_in and self._is_own(url)
                if is_asked and self._log_in(stream.headers, scope):
                    has_logged_in, sent = True, {**headers, **self._authorization(scope)}
                    continue
                if stream.status in REDIRECTS and "location" in stream.headers:
                    url, sent = follow_redirect(url, stream.headers["location"]), dict(headers)
                    continue
                yield from _from_offset(
                    stream, offset, refused=lambda status, body: self._refused(target, status, body=body)
                )
                return
        raise self._refused(target, 310, body=b"too many redirects")

    def _is_own(self, url: str) -> bool:
        """Whether a URL belongs to this registry: its credentials and its CA are used for no other host."""
        return urllib.parse.urlsplit(url)[:2] == urllib.parse.urlsplit(self.base)[:2]

    def _proof_for(self, url: str, scope: str) -> dict[str, Any]:
        """The arguments `tls` and `headers` for a request to a Location given by the registry."""
        return {"tls": self.tls, "headers": self._authorization(scope)} if self._is_own(url) else {}

    def _authorization(self, scope: str) -> dict[str, str]:
        return {"Authorization": self._tokens[scope]} if scope in self._tokens else {}

    def _log_in(self, headers: Mapping[str, str], scope: str) -> bool:
        """Answer a challenge, with Basic credentials or with a token from the realm that it names; return whether a
        retry may help. A challenge received over plain http may come from anybody."""
        scheme, _, rest = headers.get("www-authenticate", "").partition(" ")
        if self.credentials and scheme and not self.base.startswith("https://"):
            require_safe(self.base, None, headers={"Authorization": scheme})
        basic = ""
        if self.credentials and self.credentials[0] != "<token>":
            user, password = self.credentials
            basic = "Basic " + base64.b64encode(f"{user}:{password.reveal()}".encode()).decode()
        if scheme.lower() == "basic" and basic:
            self._tokens[scope] = basic
            return True
        words = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if scheme.lower() != "bearer" or "realm" not in words:
            return False
        if self.credentials and self.credentials[0] == "<token>":
            form = {"grant_type": "refresh_token", "refresh_token": self.credentials[1].reveal(), "client_id": "kb",
                    "service": words.get("service", ""), "scope": scope}  # fmt: skip
            told = {"Content-Type": "application/x-www-form-urlencoded"}
            body = urllib.parse.urlencode(form).encode()
            if not words["realm"].startswith("https://"):
                raise self._unsafe_realm(words["realm"])
            own = self.tls if self._is_own(words["realm"]) else None
            answer = self.host.http_send("POST", words["realm"], body=body, tls=own, headers=told, timeout_s=30)
        else:
            query = urllib.parse.urlencode({"service": words.get("service", ""), "scope": scope})
            url = f"{words['realm']}{'&' if '?' in words['realm'] else '?'}{query}"
            if basic and not url.startswith("https://"):
                raise self._unsafe_realm(words["realm"])
            own = self.tls if self._is_own(url) else None
            answer = self.host.http_get(url, tls=own, headers={"Authorization": basic} if basic else {}, timeout_s=30)
        try:
            found = parse_json_object(answer.body, words["realm"]) if answer.status == 200 else {}
        except ValueError:
            found = {}
        token = found.get("token") or found.get("access_token")
        if not token:
            raise self._refused("a token", answer.status, body=answer.body)
        self._tokens[scope] = f"Bearer {token}"
        return True

    def _unsafe_realm(self, realm: str) -> HostError:
        return HostError(
            f"{self.base.partition('://')[2]} asks for the login to be sent to {realm[:200]!a}",
            cause="that is plain http: anybody on the network path can read the password",
            remedy="have the registry name an https realm, or log out of it: docker logout",
            code="credentials-unprotected",
        )

    def _refused(self, what: str, status: int, *, body: bytes) -> Refused:
        server = self.base.partition("://")[2]
        remedies = {
            401: f"log in: docker login {server} (kb reads docker's config.json)",
            403: f"log in as a user with access: docker login {server}",
            404: f"check the name: skopeo list-tags docker://{server}/REPOSITORY",
            429: "wait a while, or log in: registries limit anonymous pulls",
        }
        return Refused(
            f"{server} does not give {what}",
            status,
            text=_error_text(body),
            remedy=remedies.get(status, f"see what it says: curl -v {self.base}/v2/"),
        )


def _media_type(told: str, data: bytes) -> str:
    """The manifest's own media type, if the server says nothing better than "JSON"."""
    if told in (*INDEX_TYPES, *MANIFEST_TYPES):
        return told
    try:
        found = parse_json(data, "the manifest", max_bytes=MAX_DOCUMENT)
    except ValueError:
        return told
    if not isinstance(found, dict):
        return told
    return str(found.get("mediaType") or (INDEX_TYPES[0] if "manifests" in found else MANIFEST_TYPES[0]))


def _error_text(body: bytes) -> str:
    """`: MANIFEST_UNKNOWN manifest unknown`, from an error in the specification's form."""
    try:
        errors = parse_json_object(body, "the answer")["errors"]
        return ": " + "; ".join(f"{item.get('code', '')} {item.get('message', '')}".strip() for item in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


# ---- retries


def _patiently(host: Host, once: Callable[[], HttpResponse], *, tell: Callable[[str], None], what: str) -> HttpResponse:
    """Retry if nobody answers, or the server reports an internal error or overload."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            answer = once()
        except Unreachable as error:
            if attempt == ATTEMPTS or error.reason in ("dns", "tls"):
                raise
            tell(f"{what}: {error.cause}; attempt {attempt} of {ATTEMPTS}")
        else:
            if attempt == ATTEMPTS or (answer.status < 500 and answer.status != 429):
                return answer
            tell(f"{what}: status {answer.status}; attempt {attempt} of {ATTEMPTS}")
        host.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def fetch_resumed(
    local: LocalHost,
    open_from: Callable[[int], Iterator[bytes]],
    *,
    into: Path,
    digest: str,
    name: str,
    size: int = -1,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Download to `into` through `into`.part. open_from(offset) yields the bytes from there, or everything (see
    _from_offset). An attempt with enough progress does not count as a failure. digest "": nothing to compare with.
    size: bytes beyond it are not read. Existing bytes are hashed before they are used: they may be somebody else's, or
    damaged by a power loss.

    Raises Unreachable, HostError (download-damaged).
    """
    if local.exists(into):
        if digest and sum_file(local, into) == digest:
            return
        local.remove(into)
    part = into.with_name(into.name + ".part")
    failures = 0
    while True:
        failures = _fill_part(local, open_from, part=part, name=name, size=size, failures=failures, tell=tell)
        got = sum_file(local, part)
        if not digest or got == digest:
            local.rename(part, into)
            return
        local.remove(part)
        failures += 1
        if failures >= 2:
            raise HostError(
                f"{name} is damaged",
                cause=f"the download has the digest {got}, not {digest}, twice",
                remedy="if it happens again, a proxy on the way changes the content: try another network or mirror",
                code="download-damaged",
            )


def _fill_part(
    local: LocalHost,
    open_from: Callable[[int], Iterator[bytes]],
    *,
    part: Path,
    name: str,
    size: int,
    failures: int,
    tell: Callable[[str], None],
) -> int:
    """Append to `part` until it is complete; return the number of consecutive failures. Raises Unreachable, Refused."""
    while True:
        found = local.stat(part)
        offset = found.size if found else 0
        if size >= 0 and offset > size:
            local.remove(part)
            offset = 0
        if offset == size and found is not None:
            return failures
        try:
            tell(f"fetching {name}" + (f", from byte {offset}" if offset else ""))
            _append_from(local, part, open_from=open_from, offset=offset, size=size)
            return failures
        except (Unreachable, Refused) as error:
            grown = local.stat(part)
            has_grown = grown is not None and grown.size >= offset + _WORTH_WHILE
            failures = 1 if has_grown else failures + 1
            heals = isinstance(error, Unreachable) or error.status >= 500 or error.status in (416, 429)
            if isinstance(error, Refused) and error.status == 416:
                local.remove(part)
            if failures >= ATTEMPTS or not heals:
                raise
        local.sleep(_FIRST_PAUSE_S * 2 ** (failures - 1))


def _append_from(
    local: LocalHost, part: Path, *, open_from: Callable[[int], Iterator[bytes]], offset: int, size: int
) -> None:
    pieces = open_from(offset)
    first = next(pieces, b"")
    if first is RESTART:
        local.remove(part)
        offset, first = 0, next(pieces, b"")
    whole = itertools.chain((first,), pieces)
    local.append(part, _no_more_than(size - offset, whole) if size >= 0 else whole)


def _no_more_than(count: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces, up to one byte too many: that is enough to know that it is not the announced file."""
    for piece in pieces:
        yield piece[: count + 1]
        count -= len(piece)
        if count < 0:
            return


RESTART = bytes(bytearray(b"restart"))
"""A marker (compared by identity): the server ignored the range, the whole file follows."""


def _from_offset(stream: HttpStream, offset: int, *, refused: Callable[[int, bytes], Refused]) -> Iterator[bytes]:
    """The bytes from `offset` on: a 206 as it arrives; a server without ranges sends everything, which RESTART
    signals."""
    if stream.status == 206 and offset:
        told = re.match(r"bytes (\d+)-", stream.headers.get("content-range", ""))
        if told and int(told.group(1)) == offset:
            yield from stream.chunks()
            return
    if stream.status != 200:
        raise refused(stream.status, stream.read()[:4096])
    if offset:
        yield RESTART
    yield from stream.chunks()


def open_url(host: Host, url: str, *, offset: int, tls: Optional[Tls] = None) -> Iterator[bytes]:
    """A plain download from `offset` on, following redirects. tls: for that server only."""
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    server = urllib.parse.urlsplit(url)[:2]
    for _ in range(6):
        own = tls if urllib.parse.urlsplit(url)[:2] == server else None
        with host.http_open(url, tls=own, headers=headers, timeout_s=60) as stream:
            if stream.status in REDIRECTS and "location" in stream.headers:
                url = follow_redirect(url, stream.headers["location"])
                continue
            yield from _from_offset(stream, offset, refused=functools.partial(_url_refused, url))
            return
    raise _url_refused(url, 310)


def read_url(host: Host, url: str, *, max_bytes: int = MAX_ANSWER) -> bytes:
    """A small file, following redirects. Raises Refused, Unreachable (also if it is too large)."""
    found = bytearray()
    for piece in open_url(host, url, offset=0):
        found += piece
        if len(found) > max_bytes:
            raise Unreachable(url, "other", text=f"it sends more than {max_bytes} bytes")
    return bytes(found)


def _url_refused(url: str, status: int, _body: bytes = b"") -> Refused:
    return Refused(f"{url} is not available", status, text="", remedy=f"check it: curl -fIL {url}")


def sum_file(host: Host, path: Path) -> str:
    """`sha256:...` of a file, read in pieces."""
    summed = hashlib.sha256()
    with host.open_read(path) as file:
        while piece := file.read(1 << 20):
            summed.update(piece)
    return f"sha256:{summed.hexdigest()}"


def server_of(registry: str) -> str:
    """The base URL of a registry from its name in images; loopback addresses use plain HTTP, as everywhere."""
    name = registry.partition(":")[0]
    scheme = "http" if name in ("localhost", "127.0.0.1") else "https"
    return f"{scheme}://{_SERVERS.get(registry, registry)}"
