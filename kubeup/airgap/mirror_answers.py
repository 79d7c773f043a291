"""The answers of a mirror, as values: the pull side of the OCI distribution API, and files.

Pure functions: they turn a request and a catalog into an answer. No sockets.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from kubeup.airgap import bundle, oci_layout
from kubeup.airgap.mirror_catalog import Catalog, describe
from kubeup.airgap.oci_layout import Place
from kubeup.frozen_values import frozen


@dataclass
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    keeps_alive: bool = True


@frozen
class Answer:
    """The answer to send: `body`, or the part of a file at `place`."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    place: Optional[Place] = None

    @property
    def length(self) -> int:
        return self.place.size if self.place else len(self.body)


REASONS = {200: "OK", 206: "Partial Content", 304: "Not Modified", 400: "Bad Request", 404: "Not Found",
            405: "Method Not Allowed", 416: "Range Not Satisfiable", 500: "Internal Server Error"}  # fmt: skip
BUNDLES = "/bundles/"
"""Where the bundles are served as files, for a mirror that moves."""
_JSON = {"Content-Type": "application/json"}
_TEXT = {"Content-Type": "text/plain; charset=utf-8"}
_V2 = {"Docker-Distribution-Api-Version": "registry/2.0"}


def answer_request(request: Request, catalog: Catalog, *, ca_pem: str = "", metrics: Callable[[], str] = str) -> Answer:
    """The catalog's answer to a request; a pure function. A place is returned whole; the caller cuts the range."""
    if request.method not in ("GET", "HEAD"):
        return refusal(
            405, "UNSUPPORTED", message="this mirror is read-only: push to a registry, or give it another bundle"
        )
    path = request.path
    if path.startswith("/v2/") or path == "/v2":
        return _answer_v2(request, catalog)
    if path.startswith("/files"):
        title = urllib.parse.unquote(path[len("/files") :].strip("/"))
        return _answer_file(title, catalog, version=request.query.get("version", ""))
    if path.startswith(BUNDLES):
        return _answer_bundle(urllib.parse.unquote(path[len(BUNDLES) :]), catalog)
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
        return _paged(request, "repositories", items=sorted(catalog.repositories), more={})
    match = _TARGET.fullmatch(urllib.parse.unquote(request.path))
    if match is None:
        return refusal(404, "UNSUPPORTED", message="no such endpoint")
    kind, reference = match["kind"], match["reference"]
    if kind == "blobs":
        return _answer_blob(reference, catalog)
    name = catalog.find_repository(match["name"], request.query.get("ns", ""))
    if name is None:
        return refusal(
            404, "NAME_UNKNOWN", message=f"the bundle has no repository {request.query.get('ns', '')} {match['name']}"
        )
    if kind == "tags":
        return _paged(request, "tags", items=sorted(catalog.repositories[name]), more={"name": match["name"]})
    if kind == "referrers":
        empty = {"schemaVersion": 2, "mediaType": oci_layout.OCI_INDEX, "manifests": []}
        return Answer(200, {"Content-Type": oci_layout.OCI_INDEX, **_V2}, oci_layout.as_json(empty))
    found = (
        catalog.manifests.get(reference)
        if oci_layout.is_digest(reference)
        else catalog.repositories[name].get(reference)
    )
    if found is None:
        return refusal(404, "MANIFEST_UNKNOWN", message=f"the bundle has no {name}:{reference}")
    told = {"Content-Type": found.media_type, "Docker-Content-Digest": found.digest, "Etag": f'"{found.digest}"', **_V2}
    return Answer(200, told, place=catalog.blobs[found.digest])


def _answer_blob(digest: str, catalog: Catalog) -> Answer:
    place = catalog.blobs.get(digest)
    if place is None:
        code = "BLOB_UNKNOWN" if oci_layout.is_digest(digest) else "DIGEST_INVALID"
        return refusal(404, code, message=f"the bundle has no blob {digest}")
    told = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest, "Etag": f'"{digest}"', **_V2}
    return Answer(200, told, place=place)


def _answer_file(title: str, catalog: Catalog, *, version: str) -> Answer:
    """version: of Kubernetes, `v1.35.6`; "" for the newest. There is one kb for all versions."""
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


def _answer_bundle(name: str, catalog: Catalog) -> Answer:
    """A bundle as it lies there; "" for the list of all."""
    if not name:
        rows = [{"name": name, "size": place.size} for name, place in sorted(catalog.bundles.items())]
        return Answer(200, _JSON, json.dumps({"bundles": rows}).encode() + b"\n")
    place = catalog.bundles.get(name)
    if place is None:
        return Answer(404, _TEXT, b"no such bundle\n")
    return Answer(200, {"Content-Type": "application/x-tar"}, place=place)


def _paged(request: Request, key: str, *, items: Sequence[str], more: Mapping[str, str]) -> Answer:
    """Pages with ?n= and ?last= as in the specification."""
    last, count = request.query.get("last", ""), request.query.get("n", "")
    if count and not re.fullmatch(r"[0-9]{1,18}", count):
        return refusal(400, "PAGINATION_NUMBER_INVALID", message="n is no number")
    rest = [item for item in items if item > last] if last else list(items)
    page = rest[: int(count)] if count else rest
    headers = {**_JSON, **_V2}
    if page and len(page) < len(rest):
        query = urllib.parse.urlencode({"n": count, "last": page[-1]})
        headers["Link"] = f'<{urllib.parse.quote(request.path)}?{query}>; rel="next"'
    return Answer(200, headers, json.dumps({**more, key: page}).encode())


def refusal(status: int, code: str, *, message: str) -> Answer:
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Answer(status, {**_JSON, **_V2, **({"Allow": "GET, HEAD"} if status == 405 else {})}, body)


def cut_range(answer: Answer, wanted: str) -> Answer:
    """The part that `Range: bytes=...` requests. Several ranges, another unit, or an invalid range get the whole file
    (RFC 9110, section 14.2)."""
    match = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", wanted.strip())
    if answer.place is None or match is None or match.group(0) == "bytes=-":
        return answer
    size = answer.place.size
    # a number with more digits than any file size is as good as this one
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
    """Parse the request line and headers. None if they are not HTTP/1, or are ambiguous (RFC 9112, sections 2.2, 5.1
    and 6.3): a proxy in front of this server might read them differently."""
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
