"""The mirror: a bundle as a registry, straight from its tar or folder.

Speaks the pull half of the OCI distribution API and hands out the bundle's files. One thread a connection; what is large
goes from the file to the connection inside the kernel (sendfile). It writes nothing to disk and takes no pushes. Must not
know a cluster: init installs it as a unit, and whoever wants runs it by hand (`kb mirror serve FILE`).

    /v2/...            the distribution API; ?ns=REGISTRY, or the registry as the first part of the name;
                       the bundle's files are the artifact kb/files:VERSION
    /files/            the bundle's files as JSON; /files/TITLE one of them
    /ca.crt            the authority of its own certificate; /healthz; /metrics
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import select
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup.airgap import bundle, oci_layout, registry_client
from kubeup.airgap.oci_layout import Layout, Place
from kubeup.errors import HostError, KbError, shown
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazy_import
from kubeup.machine.host import Host
from kubeup.machine.http import Tls
from kubeup.machine.local_host import LocalHost
from kubeup.machine.process import raise_descriptor_limit

if TYPE_CHECKING:
    import socket
    import ssl
else:
    ssl = lazy_import("ssl")

FILES_REPOSITORY = "kb/files"
MAX_CONNECTIONS = 512
MAX_CLIENTS = 5000
"""How many addresses are counted apart; whoever asked longest ago is forgotten first."""
MAX_PER_CLIENT = 384
"""Of one address: behind it can be a whole network, and yet others get their turn."""
MAX_HEAD = 32 * 1024
HEAD_S = 10.0
"""How long the first request of a connection may take to come as a whole, a TLS handshake included."""
IDLE_S = 90.0
"""How long a connection may stay without another request: containerd's closes its own after 90 seconds."""
DRAIN_S = 25.0
"""How long transfers may go on when the mirror is told to end."""
STALL_S = 60.0
"""How long a client may take nothing of an answer."""
_SPARE_DESCRIPTORS = 96
"""For files, and for what is being closed."""
_MIN_RATE = 1024
"""Bytes a second, on average, that a client has to take after the first minute."""
_FAIR_RATE = 64 * 1024
"""Bytes a second that keep a transfer its place when all places are taken."""
LATE_S = 5.0
"""By how much a transfer may be behind that rate then."""
LOOK_AGAIN_S = 1.0
RETRY_S = 30.0
"""When what could not be read is tried again, though nothing has changed."""
_PIECE = 256 * 1024
_WITH_HEAD = 64 * 1024
"""How much of a file goes with the head of an answer; every client that does not read holds as much of this process' memory."""
_MAX_OPEN = 64
"""Files that are kept open."""
_SENDFILE_MAX = 0x7FFF0000
"""The most that Linux sends in one call."""

Log = Callable[[str], None]
LeaveOut = Callable[[str, str], None]
"""Is told what is left out, and why."""


# ---- what is there


@frozen
class Manifest:
    digest: str
    media_type: str
    size: int


@dataclass
class Catalog:
    """Everything that is served, of all layouts together. repositories: full name -> tag -> manifest."""

    repositories: dict[str, dict[str, Manifest]] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    blobs: dict[str, Place] = field(default_factory=dict)
    files: dict[str, bundle.FileEntry] = field(default_factory=dict)
    """Of the newest Kubernetes version of each; kb.pyz is the newest kb's."""
    files_of: dict[str, dict[str, bundle.FileEntry]] = field(default_factory=dict)
    """The same by the Kubernetes version that a bundle is for (`v1.35.6`)."""
    short_names: dict[str, list[str]] = field(default_factory=dict)
    """Repository without its registry -> the full names."""

    def find_repository(self, name: str, namespace: str) -> Optional[str]:
        """The full name that is meant: with `ns`, with the registry in the name, or without it where only one is so."""
        if namespace and f"{namespace}/{name}" in self.repositories:
            return f"{namespace}/{name}"
        if name in self.repositories and not (namespace and name == FILES_REPOSITORY):
            return name
        full = self.short_names.get(name) or []
        return full[0] if len(full) == 1 and not namespace else None


def build_catalog(host: Host, layouts: Sequence[Layout], *, leave_out: Optional[LeaveOut] = None) -> Catalog:
    """Index the layouts; later ones win where they name the same. What cannot be used is told to `leave_out` and left out;
    without one it raises HostError."""
    found = Catalog()
    for item in layouts:
        found.blobs.update(item.blobs)
    whole = [replace(item, blobs=found.blobs) for item in layouts]
    for item in whole:
        for name, entry in item.names.items():
            with _leaving_out(leave_out, f"image {shown(name)} of {item.path}"):
                ref = registry_client.parse_ref(name)
                top = _add_manifests(host, item, entry, found)
                if top is not None:
                    tags = found.repositories.setdefault(f"{ref.registry}/{ref.repository}", {})
                    if ref.tag:
                        tags[ref.tag] = top
    for full in found.repositories:
        found.short_names.setdefault(full.partition("/")[2], []).append(full)
    usable = []
    for item in whole:
        with _leaving_out(leave_out, f"the files of {item.path}"):
            files = bundle.read_files(host, item)
            _add_artifacts(host, item, found)
            usable.append(files)
    found.files_of = bundle.files_by_version(usable)
    found.files = bundle.choose_files(usable)
    return found


@contextlib.contextmanager
def _leaving_out(leave_out: Optional[LeaveOut], what: str) -> Iterator[None]:
    try:
        yield
    except KbError as error:
        if leave_out is None:
            raise
        leave_out(shown(what), f"{error}")


def _add_artifacts(host: Host, item: Layout, found: Catalog) -> None:
    """The files as an artifact that an OCI client can name: its tag is the Kubernetes version that they are for."""
    for entry in bundle.list_artifacts(item):
        made = _add_manifests(host, item, entry, found)
        told = (oci_layout.read_json_blob(host, item, str(entry["digest"])) or {}).get("annotations") or {}
        if made is not None and told.get(bundle.KUBERNETES):
            # a tag has no +, and kubeadm writes _ for it too
            tag = str(told[bundle.KUBERNETES]).replace("+", "_")
            found.repositories.setdefault(FILES_REPOSITORY, {})[tag] = made


def _add_manifests(host: Host, item: Layout, entry: Mapping[str, Any], found: Catalog) -> Optional[Manifest]:
    for descriptor, document in bundle.walk_manifests(host, item, dict(entry), set()):
        digest = str(descriptor["digest"])
        if document is not None:
            kind = str(descriptor.get("mediaType") or document.get("mediaType") or oci_layout.OCI_MANIFEST)
            found.manifests[digest] = Manifest(digest, kind, found.blobs[digest].size)
    return found.manifests.get(str(entry["digest"]))


def find_layouts(host: Host, path: Path, *, leave_out: Optional[LeaveOut] = None) -> list[Layout]:
    """The layout that `path` is, or all tars and layouts in the folder that it is, by name. Raises HostError
    (bundle-unreadable) where there is none. leave_out: is told of those that cannot be read, which else raise."""
    if oci_layout.is_layout(host, path):
        return [oci_layout.open_layout(host, path)]
    names = [name for name in host.list_dir(path) if not name.startswith(".")]
    chosen = [path / name for name in names if name.endswith(".tar") or host.exists(path / name / "oci-layout")]
    found = []
    for place in chosen:
        with _leaving_out(leave_out, str(place)):
            found.append(oci_layout.open_layout(host, place))
    if not chosen:
        raise HostError(
            f"{path} holds no bundle",
            cause="there is no .tar and no OCI image layout in it" if host.is_dir(path) else "there is no such file",
            remedy="give the file that kb bundle create wrote, or a folder with such files",
            code="bundle-unreadable",
        )
    return found


class Store:
    """The catalog of a path, made anew when the files there change. A file that cannot be read is told and left out: one bad
    file in the folder does not take the others away. It is looked at again later, as its disk may have failed for a moment."""

    def __init__(self, host: LocalHost, path: Path, log: Log) -> None:
        self.host, self._path, self._log = host, path, log
        self._built = time.monotonic()
        self._left_out: dict[str, str] = {}
        self._stamp = self._read_stamp()
        self.catalog = self._build()
        self._files = self._open_bundles(self.catalog)

    def look_again(self) -> None:
        """Take up what has changed. Never raises: what was there before is served on."""
        try:
            self._look_again()
        except Exception as error:
            self._log(f"{self._path} cannot be looked at ({shown(str(error))}): serving what was there before")

    def _read_stamp(self) -> tuple[object, ...]:
        host, path = self.host, self._path
        names = [path, *((path / name) for name in (host.list_dir(path) if host.is_dir(path) else ()))]
        stats = [(str(name), host.stat(host.real_path(name))) for name in names if not name.name.startswith(".")]
        return tuple((name, stat.mtime, stat.size) for name, stat in stats if stat is not None)

    def _build(self) -> Catalog:
        """Raises KbError where nothing is there at all."""
        left_out: dict[str, str] = {}
        found = find_layouts(self.host, self._path, leave_out=left_out.__setitem__)
        catalog = build_catalog(self.host, found, leave_out=left_out.__setitem__)
        for what, why in left_out.items():
            if what not in self._left_out:  # a file that is being copied is told once
                self._log(f"{what} is left out: {why}")
        self._left_out, self._built = left_out, time.monotonic()
        return catalog

    def _look_again(self) -> None:
        stamp = self._read_stamp()
        is_due = bool(self._left_out) and time.monotonic() - self._built > RETRY_S
        if stamp == self._stamp and not is_due:
            return
        self._stamp, before = stamp, (self.catalog, set(self._left_out))
        catalog = self._build()
        self.catalog, self._files = catalog, self._open_bundles(catalog)
        if (self.catalog, set(self._left_out)) != before:
            self._log(f"{self._path} has changed: {describe(self.catalog)}")

    def _open_bundles(self, catalog: Catalog) -> dict[Path, _OpenFile]:
        """The tars, at once: a file that takes such a name later has other bytes in these places."""
        counted = collections.Counter(place.path for place in catalog.blobs.values())
        found: dict[Path, _OpenFile] = {}
        for path, count in counted.most_common(_MAX_OPEN):
            if count > 1:
                with contextlib.suppress(KbError):
                    found[path] = _OpenFile(self.host, path)
        return found

    def open_file(self, path: Path) -> _OpenFile:
        """The file, opened once for all threads: every read has an offset of its own."""
        found = self._files.get(path)
        if found is None:
            found = _OpenFile(self.host, path)
            if len(self._files) < _MAX_OPEN:
                self._files[path] = found
        return found


class _OpenFile:
    """A descriptor that lives as long as somebody sends from it."""

    def __init__(self, host: LocalHost, path: Path) -> None:
        self._file = host.open_read(path, follows=False)
        self.descriptor = self._file.fileno()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._file.close()


def describe(catalog: Catalog) -> str:
    images = sum(len(tags) for name, tags in catalog.repositories.items() if name != FILES_REPOSITORY)
    return f"{images} images, {len(catalog.files)} files, {len(catalog.blobs)} blobs"


# ---- answers


@dataclass
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    keeps_alive: bool = True


@frozen
class Answer:
    """What is sent: `body`, or the part of a file at `place`."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    place: Optional[Place] = None

    @property
    def length(self) -> int:
        return self.place.size if self.place else len(self.body)


_REASONS = {200: "OK", 206: "Partial Content", 304: "Not Modified", 400: "Bad Request", 404: "Not Found",
            405: "Method Not Allowed", 416: "Range Not Satisfiable", 500: "Internal Server Error"}  # fmt: skip
_JSON = {"Content-Type": "application/json"}
_TEXT = {"Content-Type": "text/plain; charset=utf-8"}
_V2 = {"Docker-Distribution-Api-Version": "registry/2.0"}


def answer_request(request: Request, catalog: Catalog, *, ca_pem: str = "", metrics: Callable[[], str] = str) -> Answer:
    """Pure: what the catalog has for a request. A place is answered whole; the range is cut by the caller."""
    if request.method not in ("GET", "HEAD"):
        return _error(405, "UNSUPPORTED", "this mirror is read-only: push to a registry, or give it another bundle")
    path = request.path
    if path.startswith("/v2/") or path == "/v2":
        return _answer_v2(request, catalog)
    if path.startswith("/files"):
        title = urllib.parse.unquote(path[len("/files") :].strip("/"))
        return _answer_file(title, catalog, request.query.get("version", ""))
    if path in ("/healthz", "/livez", "/readyz"):
        return Answer(200, _TEXT, b"ok\n")
    if path == "/metrics":
        return Answer(200, {"Content-Type": "text/plain; version=0.0.4"}, metrics().encode())
    if path == "/ca.crt" and ca_pem:
        return Answer(200, {"Content-Type": "application/x-pem-file"}, ca_pem.encode())
    if path == "/":
        return Answer(200, _TEXT, f"kb mirror: {describe(catalog)}\n/v2/ /files/ /healthz /metrics\n".encode())
    return Answer(404, _TEXT, b"no such page\n")


_TARGET = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|tags|referrers)/(?P<reference>[^/]+)")


def _answer_v2(request: Request, catalog: Catalog) -> Answer:
    if request.path in ("/v2", "/v2/"):
        return Answer(200, {**_JSON, **_V2}, b"{}")
    if request.path == "/v2/_catalog":
        return _paged(request, "repositories", sorted(catalog.repositories), {})
    match = _TARGET.fullmatch(urllib.parse.unquote(request.path))
    if match is None:
        return _error(404, "UNSUPPORTED", "no such endpoint")
    kind, reference = match["kind"], match["reference"]
    if kind == "blobs":
        return _answer_blob(reference, catalog)
    name = catalog.find_repository(match["name"], request.query.get("ns", ""))
    if name is None:
        return _error(
            404, "NAME_UNKNOWN", f"the bundle has no repository {request.query.get('ns', '')} {match['name']}"
        )
    if kind == "tags":
        return _paged(request, "tags", sorted(catalog.repositories[name]), {"name": match["name"]})
    if kind == "referrers":
        empty = {"schemaVersion": 2, "mediaType": oci_layout.OCI_INDEX, "manifests": []}
        return Answer(200, {"Content-Type": oci_layout.OCI_INDEX, **_V2}, oci_layout.as_json(empty))
    found = (
        catalog.manifests.get(reference)
        if oci_layout.is_digest(reference)
        else catalog.repositories[name].get(reference)
    )
    if found is None:
        return _error(404, "MANIFEST_UNKNOWN", f"the bundle has no {name}:{reference}")
    told = {"Content-Type": found.media_type, "Docker-Content-Digest": found.digest, "Etag": f'"{found.digest}"', **_V2}
    return Answer(200, told, place=catalog.blobs[found.digest])


def _answer_blob(digest: str, catalog: Catalog) -> Answer:
    place = catalog.blobs.get(digest)
    if place is None:
        code = "BLOB_UNKNOWN" if oci_layout.is_digest(digest) else "DIGEST_INVALID"
        return _error(404, code, f"the bundle has no blob {digest}")
    told = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest, "Etag": f'"{digest}"', **_V2}
    return Answer(200, told, place=place)


def _answer_file(title: str, catalog: Catalog, version: str) -> Answer:
    """version: of Kubernetes, `v1.35.6`; "" for the newest. kb itself is one for all versions."""
    fit = bundle.choose_version(catalog.files_of, version) if version else ""
    files = catalog.files_of.get(fit, {}) if version else catalog.files
    files = {**files, **{name: entry for name, entry in catalog.files.items() if name == bundle.KB_FILE}}
    if not title:
        rows = [
            {"title": e.title, "digest": e.digest, "size": e.size, "mode": f"{e.mode:04o}", "version": e.version}
            for _, e in sorted(files.items())
        ]
        listing = {"files": rows, "versions": sorted(catalog.files_of)}
        return Answer(200, _JSON, json.dumps(listing, indent=1).encode() + b"\n")
    entry = files.get(title)
    if entry is None or entry.digest not in catalog.blobs:
        return Answer(404, _TEXT, f"the bundle has no file {title}\n".encode())
    told = {
        "Content-Type": "application/octet-stream",
        "Etag": f'"{entry.digest}"',
        "Docker-Content-Digest": entry.digest,
    }
    return Answer(200, told, place=catalog.blobs[entry.digest])


def _paged(request: Request, key: str, items: Sequence[str], more: Mapping[str, str]) -> Answer:
    """?n= and ?last= as the specification has them."""
    last, count = request.query.get("last", ""), request.query.get("n", "")
    if count and not re.fullmatch(r"[0-9]{1,18}", count):
        return _error(400, "PAGINATION_NUMBER_INVALID", "n is no number")
    rest = [item for item in items if item > last] if last else list(items)
    page = rest[: int(count)] if count else rest
    headers = {**_JSON, **_V2}
    if page and len(page) < len(rest):
        query = urllib.parse.urlencode({"n": count, "last": page[-1]})
        headers["Link"] = f'<{urllib.parse.quote(request.path)}?{query}>; rel="next"'
    return Answer(200, headers, json.dumps({**more, key: page}).encode())


def _error(status: int, code: str, message: str) -> Answer:
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Answer(status, {**_JSON, **_V2, **({"Allow": "GET, HEAD"} if status == 405 else {})}, body)


def cut_range(answer: Answer, wanted: str) -> Answer:
    """The part that `Range: bytes=...` asks for. Several ranges, another unit, or what is no range get the whole (RFC 9110,
    section 14.2)."""
    match = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", wanted.strip())
    if answer.place is None or match is None or match.group(0) == "bytes=-":
        return answer
    size = answer.place.size
    # a number of more digits than any file has bytes is as good as this one
    first, last = (text if len(text) < 19 else "9" * 18 for text in match.groups())
    if first and last and int(last) < int(first):
        return answer
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start > end or start >= size:
        return Answer(416, {**_TEXT, "Content-Range": f"bytes */{size}"})
    told = {**answer.headers, "Content-Range": f"bytes {start}-{end}/{size}"}
    return Answer(206, told, place=Place(answer.place.path, answer.place.offset + start, end - start + 1))


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def parse_request(head: bytes) -> Optional[Request]:
    """The request line and headers; None where they are no HTTP/1, or could be read in two ways (RFC 9112, sections 2.2, 5.1
    and 6.3): somebody before this server might read them in the other."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0") or not _TOKEN.fullmatch(words[0]):
        return None
    if any(_CONTROL.search(line) for line in lines):
        return None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            return None
        name, value = name.lower(), value.strip(" \t")
        if name in ("content-length", "transfer-encoding", "host") and name in headers:
            return None
        headers[name] = value
    if not re.fullmatch(r"[0-9]*", headers.get("content-length", "")):
        return None
    target = words[1]
    if target.startswith("http://") or target.startswith("https://"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("?")
    connection = headers.get("connection", "").lower()
    keeps_alive = "close" not in connection if words[2] == "HTTP/1.1" else "keep-alive" in connection
    return Request(words[0], path, dict(urllib.parse.parse_qsl(query)), headers, keeps_alive)


# ---- the server


@dataclass(eq=False)
class _Line:
    """One connection: whose it is, and since when it has been waiting for a request (None while one is answered)."""

    connection: socket.socket
    peer: str
    waiting_since: Optional[float]
    _started: float = 0.0
    _taken: int = 0
    _due: float = 0.0
    """The moment at which a client of _FAIR_RATE would have had what this one has."""

    def begin_answer(self) -> None:
        self._started = self._due = time.monotonic()
        self._taken, self.waiting_since = 0, None
        self.connection.settimeout(STALL_S)

    @property
    def late_s(self) -> float:
        return time.monotonic() - self._due

    def send(self, data: bytes) -> None:
        """Raises OSError: it took nothing for STALL_S, or next to nothing for long."""
        view = memoryview(data)
        while view:
            sent = self.connection.send(view[:_PIECE])
            view = view[sent:]
            self._note(sent)

    def send_file(self, descriptor: int, offset: int, count: int) -> int:
        """Some bytes of a file, sent by the kernel; returns how many. Raises OSError as send."""
        room = select.poll()
        room.register(self.connection, select.POLLOUT)
        while True:
            try:
                sent = os.sendfile(self.connection.fileno(), descriptor, offset, min(count, _SENDFILE_MAX))
            except BlockingIOError:
                if not room.poll(STALL_S * 1000):
                    raise OSError("the client takes nothing") from None
                continue
            self._note(sent)
            return sent

    def _note(self, count: int) -> None:
        now = time.monotonic()
        self._taken += count
        self._due = min(now, self._due + count / _FAIR_RATE)
        if self._taken < _MIN_RATE * (now - self._started - 60):
            raise OSError("the client takes next to nothing")

    def hang_up(self) -> None:
        """Wakes the thread that reads from it, or sends to it."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)


class Server:
    """Accepts connections until it is told to end.

    A thread attends each. When all places are taken, the connection that has waited longest for a request gives its place to
    a new one, and where none waits the transfer that is most behind: who sends nothing, or a byte now and then, or does not
    read what he asked for, keeps nobody out.
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
        """log_access: is told of each request; log where it is not given."""
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
        """Until a signal's exception; then transfers have DRAIN_S to end, and a second signal ends at once."""
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            self._accept()
        finally:
            self._drain()

    def _watch(self) -> None:
        """Beside the answers: to look at thousands of files takes its time."""
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
                # out of descriptors, say: those that end give theirs back
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
            except RuntimeError as error:  # no thread is to be had, for now
                self._log(f"{line.peer}: {error}")
                self._end(line)

    def _make_room(self, peer: str) -> bool:
        """Have a place for a connection of `peer`; False where that address has too many already."""
        with self._has_room:
            own = [line for line in self._lines if line.peer == peer]
            most = max(1, min(MAX_CONNECTIONS, self._most))
            if peer and len(own) >= min(MAX_PER_CLIENT, max(1, most * 3 // 4)):
                return self._give_up_one(own)
            while not peer or len(self._lines) >= most:
                if self._give_up_one(self._lines) or not peer:
                    return True
                self._has_room.wait(0.2)  # all of them are transfers that get on
            return True

    def _give_up_one(self, lines: Iterable[_Line]) -> bool:
        """Have the one end that waits longest for a request, else the transfer that is most behind."""
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
                # in two steps: from the first on a hang-up reaches it
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
            pass  # it went away, took too little, or was asked to make room
        finally:
            self._end(line)

    def _talk(self, line: _Line) -> None:
        rest, patience_s = b"", HEAD_S
        while not self._is_ending:
            line.waiting_since = time.monotonic()
            head, rest = _read_head(line.connection, rest, patience_s)
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
                    _error(400, "UNSUPPORTED", "no HTTP/1.1 request"),
                )
                return
            request.keeps_alive = request.keeps_alive and not self._is_ending
            answer = self._answer(request)
            sent = 0
            try:
                sent = self._send(line, request, answer)
            finally:
                self._note(line.peer, request, answer, sent, time.perf_counter() - started)
            if not request.keeps_alive:
                return

    def _answer(self, request: Request) -> Answer:
        if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
            request.keeps_alive = False  # its body is not read
        try:
            answer = answer_request(request, self._store.catalog, ca_pem=self._ca_pem, metrics=self.render_metrics)
        except Exception as error:
            self._log(f"{shown(request.path[:200])}: {type(error).__name__}: {shown(str(error))}")
            return _error(500, "UNKNOWN", "see the mirror's log")
        if request.headers.get("if-none-match", "-") == answer.headers.get("Etag"):
            return Answer(304, {"Etag": answer.headers["Etag"]})
        wanted = request.headers.get("range")
        is_same = request.headers.get("if-range") in (None, answer.headers.get("Etag"))
        return cut_range(answer, wanted) if wanted and is_same and answer.place else answer

    def _send(self, line: _Line, request: Request, answer: Answer) -> int:
        told = {**answer.headers, "Content-Length": str(answer.length)}
        if answer.place is not None:
            told["Accept-Ranges"] = "bytes"
        told["Connection"] = "keep-alive" if request.keeps_alive else "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        head = f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, '')}\r\n{lines}\r\n".encode("latin-1")
        if request.method == "HEAD":
            line.send(head)
            return 0
        if answer.place is None:
            line.send(head + answer.body)
            return len(answer.body)
        return self._send_place(line, head, answer.place)

    def _send_place(self, line: _Line, head: bytes, place: Place) -> int:
        file = self._store.open_file(place.path)
        piece = os.pread(file.descriptor, min(_WITH_HEAD, place.size), place.offset)
        if len(piece) < min(_WITH_HEAD, place.size):
            raise OSError("the file has become shorter")  # before a head that says otherwise
        line.send(head + piece)
        offset, end = place.offset + len(piece), place.offset + place.size
        while offset < end:
            if self._tls is None:
                sent = line.send_file(file.descriptor, offset, end - offset)
            else:
                piece = os.pread(file.descriptor, min(_PIECE, end - offset), offset)
                line.send(piece)
                sent = len(piece)
            if not sent:
                raise OSError("the file has become shorter")
            offset += sent
        return place.size

    # ---- what people see

    def _note(self, peer: str, request: Request, answer: Answer, sent: int, seconds: float) -> None:
        with self._lock:
            key = (request.method if request.method in ("GET", "HEAD") else "other", answer.status)
            self._counts[key] = self._counts.get(key, 0) + 1
            self._bytes += sent
            if request.path.startswith("/v2/"):
                self._clients[peer] = self._clients.pop(peer, 0) + 1  # the newest stands last
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


def _read_head(connection: socket.socket, rest: bytes, patience_s: float) -> tuple[bytes, bytes]:
    """(the head of the next request, what came after it); (b"", b"") where no further one comes. patience_s: for all of it.
    Raises OSError (timeout)."""
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
            deadline, left_s = time.monotonic() + HEAD_S, HEAD_S  # it has begun: now the whole of it is due
        if left_s <= 0:
            return b"", b""
        connection.settimeout(left_s)
        more = connection.recv(16384)
        if not more:
            return b"", b""
        rest += more


def make_tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Raises HostError (mirror-certificate) where the pair cannot be used."""
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
            cause="it wants ADDRESS:PORT",
            remedy="for example --listen 0.0.0.0:5000, or [::]:5000",
            code="listen-invalid",
        )
    return address.strip("[]") or "0.0.0.0", int(port)


# ---- into a registry that is there


def sync(
    local: LocalHost,
    layouts: Sequence[Layout],
    base: str,
    *,
    prefix: str = "",
    tls: Optional[Tls] = None,
    tell: Log = lambda text: None,
) -> Iterator[str]:
    """Push every image to a registry, under its name without the registry (and below `prefix`); gives each as it is
    done. Of an image index only what the layout has can be pushed: an index with missing children is refused by many
    registries, so the one manifest goes under the tag instead, where there is only one.

    Raises registry.Refused, Unreachable, HostError (blob-damaged).
    """
    blobs: dict[str, Place] = {}
    for item in layouts:
        blobs.update(item.blobs)
    credentials = registry_client.read_credentials(local, base.partition("://")[2].partition("/")[0])
    server = registry_client.Registry(local, base, credentials, tls=tls, tell=tell)
    for item in layouts:
        whole = Layout(item.path, item.index, item.index_bytes, blobs, item.signature, item.names)
        for name, entry in sorted(item.names.items()):
            ref = registry_client.parse_ref(name)
            repository = f"{prefix.strip('/')}/{ref.repository}".lstrip("/")
            _push_image(local, whole, server, repository=repository, reference=ref.tag or ref.digest, entry=entry)
            yield f"{server.base.partition('://')[2]}/{repository}:{ref.tag or ref.digest}"


def _push_image(
    local: LocalHost,
    whole: Layout,
    server: registry_client.Registry,
    *,
    repository: str,
    reference: str,
    entry: Mapping[str, Any],
) -> None:
    """Blobs before manifests, manifests before the indexes that name them, each once: an index can name another twice, and that
    one the next."""
    document, children = _read_index(local, whole, entry)
    while "manifests" in document and len(children) == 1:
        entry = children[0]
        document, children = _read_index(local, whole, entry)
    waiting, seen = [(entry, False)], set()
    while waiting:
        descriptor, are_children_there = waiting.pop()
        digest = str(descriptor["digest"])
        if not are_children_there:
            if digest not in seen:
                seen.add(digest)
                waiting.append((descriptor, True))
                waiting += [(child, False) for child in _read_index(local, whole, descriptor)[1]]
            continue
        document, children = _read_index(local, whole, descriptor)
        for part in [*([document["config"]] if "config" in document else []), *(document.get("layers") or [])]:
            name, place = str(part["digest"]), whole.blobs.get(str(part["digest"]))
            if place is not None and name not in seen and not server.has_blob(repository, name):
                server.push_blob(local, repository, name, place.size, oci_layout.read_checked(local, place, name))
            seen.add(name)
        data, kind = (
            oci_layout.read_document(local, whole.blobs[digest], digest),
            descriptor.get("mediaType") or document.get("mediaType"),
        )
        if descriptor is entry and len(children) < len(document.get("manifests") or []):
            data = oci_layout.as_json({**document, "manifests": children})  # what the bundle has of it
        server.push_manifest(repository, reference if descriptor is entry else digest, str(kind), data)


def _read_index(
    local: LocalHost, whole: Layout, entry: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A document, and those that it names and the layout has."""
    document = oci_layout.read_json_blob(local, whole, str(entry["digest"])) or {}
    return document, [child for child in document.get("manifests") or [] if child["digest"] in whole.blobs]
