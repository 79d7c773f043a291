"""The one seam to the machine: every file, program, request and pause of kb goes through a Host.

Two kinds of verb. A look (exists, read_*, stat, list_dir, which, query, http_get, now, ...) changes nothing. A
change (write_file, make_dir, remove, symlink, run, http_send) does. LocalHost does them below a root;
DryRunHost (kubeup/machine/dry_run.py) does the looks and keeps the changes to itself. `subprocess`, `socket`, `open`
and `sleep` appear in this module alone.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import errno
import fcntl
import functools
import grp
import io
import ipaddress
import os
import pwd
import re
import resource
import shutil
import socket
import stat as stat_module
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Optional, Protocol, Union

from kubeup.addresses import bracket
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazy_import
from kubeup.machine.files import (
    Place,
    UnsafeLink,
    copy_attributes,
    is_root_s_alone,
    make_folder,
    mount_of,
    open_way,
    path_of,
    put_back,
    remove_below,
    replace_file,
    require_unplanted,
    resolve_below,
    sync_folder,
    temporary_name,
    write_all,
)
from kubeup.secret import Secret
from kubeup.trust import Anchors

if TYPE_CHECKING:
    import http.client as http_client
    import ssl
else:
    http_client = lazy_import("http.client")  # with ssl it costs more than all the rest of this module
    ssl = lazy_import("ssl")

Argv = Sequence[Union[str, Path, Secret]]
"""A program and its arguments; a Secret among them is shown as *** wherever the command is shown."""


@frozen
class FileStat:
    """What lstat says. mode holds the permission bits alone."""

    mode: int
    uid: int
    gid: int
    size: int
    is_dir: bool
    is_symlink: bool
    mtime: float
    is_regular: bool = True
    """A file with bytes in it: no folder, link, pipe, socket or device."""


@frozen
class CommandResult:
    """A program's end. code 127 and `missing` mean that there is no such program; code 124 that it ran out of time."""

    argv: tuple[str, ...]
    code: int
    stdout: str = ""
    stderr: str = ""
    missing: bool = False
    deferred: bool = False
    """The host refused to run it (--root, --dry-run) and reported it instead."""

    @property
    def ok(self) -> bool:
        return self.code == 0


@frozen
class Tls:
    """How to speak TLS: believe `ca` (None: the system's roots), show `cert_pem` with `key_pem`; server_name: the name that the
    server has to prove, where that is not its address; proxy: the http:// proxy that leads to it."""

    ca: Optional[Anchors] = None
    cert_pem: Optional[str] = None
    key_pem: Optional[Secret] = None
    server_name: str = ""
    proxy: str = ""


@frozen
class Unproven:
    """TLS with whoever answers, without any proof: for probes of this machine's own ports, and for the first question of
    discovery. It carries no credentials."""


UNPROVEN = Unproven()
AnyTls = Union[Tls, Unproven]
_CREDENTIALS = frozenset(("authorization", "cookie", "proxy-authorization"))


def require_safe(url: str, tls: Optional[AnyTls], headers: Mapping[str, str]) -> None:
    """Raise HostError (credentials-unprotected) where a request would hand credentials to whoever listens: over plain
    http, or to a server that is not asked who it is."""
    has_secret = bool(_CREDENTIALS.intersection(name.lower() for name in headers))
    is_plain = not url.startswith("https://")
    if not has_secret and not (is_plain and isinstance(tls, Tls) and tls.key_pem):
        return
    if is_plain or isinstance(tls, Unproven):
        raise HostError(
            f"kb does not send credentials to {url.partition('?')[0]}",
            cause="the connection is plain http: whoever is on the way reads them"
            if is_plain
            else "the server has not proven who it is",
            remedy="give the server's https:// address" if is_plain else "name the authority of the server",
            code="credentials-unprotected",
        )


@frozen
class HttpResponse:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    deferred: bool = False


CHUNK = 1 << 20
"""Bytes of a stream that are held at a time."""
MAX_ANSWER = 4 << 20
"""Bytes of an answer that is held whole; whoever wants more says so."""
BODY_S = 30.0
"""How much longer than its beginning a whole answer may take."""
_MIN_RATE = 1024
"""Bytes a second, on average, that a stream has to bring after its first minute: less is a server that holds on."""
_MAX_STREAM = 64 << 30
_MAX_TEXT = 64 << 20
"""Bytes of a file that is read whole as a text: the largest there are, applied manifests, have a tenth of it."""


class _Deadline:
    """A moment that every single wait of a connection counts down to: socket timeouts alone begin anew with each byte."""

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


class _TimedReader(io.RawIOBase):
    """A socket's bytes, each wait no longer than the deadline leaves."""

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
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
    """What http.client's response asks of a socket."""

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
        self._socket, self._deadline = connection, deadline

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._socket, self._deadline))


class HttpStream:
    """An answer whose body is read piece by piece. headers: names in lower case."""

    def __init__(self, url: str, answer: http_client.HTTPResponse, deadline: _Deadline, stall_s: float) -> None:
        self.url = url
        self.status = answer.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in answer.getheaders()}
        self._answer, self._deadline, self._stall_s = answer, deadline, stall_s

    def chunks(self, *, max_bytes: int = _MAX_STREAM) -> Iterator[bytes]:
        """The body. Raises Unreachable where it ends before its announced length (reset), brings nothing for a while or
        next to nothing for long (timeout), or has more than max_bytes (other)."""
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
                    raise Unreachable(self.url, "other", f"it sends more than {max_bytes} bytes")
                if came < _MIN_RATE * (time.monotonic() - started - 60):
                    raise socket.timeout("it sends too slowly")
                yield piece
        except (OSError, http_client.HTTPException, ValueError) as error:
            raise Unreachable(self.url, _reason_of(error), str(error) or type(error).__name__) from error
        if left:
            raise Unreachable(self.url, "reset", f"{left} bytes are missing at the end")

    def read(self, *, max_bytes: int = MAX_ANSWER) -> bytes:
        return b"".join(self.chunks(max_bytes=max_bytes))


@frozen
class Fence:
    """What kb may connect to when it must stay inside (--air-gapped). hosts: names and addresses; networks: CIDRs."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[str, ...] = ()

    def allows(self, host: str) -> bool:
        if host in self.hosts or host in ("localhost", ""):
            return True
        try:
            address = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return False
        nets = (ipaddress.ip_network(text, strict=False) for text in self.networks)
        return address.is_loopback or any(address.version == net.version and address in net for net in nets)


class Unreachable(HostError):
    """No answer came from a URL. `reason`: refused | timeout | dns | tls | reset | other."""

    def __init__(self, url: str, reason: str, text: str) -> None:
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


class Host(Protocol):
    """What a phase may do to a machine. Paths are absolute, as the node sees them."""

    is_live: bool
    """Whether changes reach a running system: false under --root and --dry-run."""
    mode: str
    """live | root (--root: a folder stands for the node) | dry-run (looks are real, changes are only planned)"""

    # looks
    def exists(self, path: Path) -> bool: ...
    def is_dir(self, path: Path) -> bool: ...
    def stat(self, path: Path) -> Optional[FileStat]: ...
    def read_bytes(self, path: Path) -> bytes: ...
    def read_text(self, path: Path) -> str: ...
    def open_read(self, path: Path, *, follows: bool = True) -> BinaryIO: ...
    def list_dir(self, path: Path) -> list[str]: ...
    def real_path(self, path: Path) -> Path: ...
    def read_link(self, path: Path) -> Optional[str]: ...
    def free_bytes(self, path: Path) -> int: ...
    def mounts_below(self, path: Path) -> list[Path]: ...
    def which(self, program: str) -> Optional[Path]: ...
    def query(
        self, argv: Argv, *, timeout_s: float = 30, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult: ...
    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = MAX_ANSWER,
    ) -> HttpResponse: ...
    def http_ask(self, url: str, body: bytes, *, tls: Optional[Tls] = None, timeout_s: float = 10) -> HttpResponse: ...
    def http_open(
        self, url: str, *, tls: Optional[Tls] = None, headers: Optional[Mapping[str, str]] = None, timeout_s: float = 30
    ) -> contextlib.AbstractContextManager[HttpStream]: ...
    def port_holder(self, port: int, address: str = "") -> Optional[str]: ...
    def resolve(self, name: str) -> list[str]: ...
    def udp_exchange(self, address: str, port: int, payload: bytes, *, timeout_s: float = 2) -> Optional[bytes]: ...
    def served_cert(self, address: str, port: int, *, timeout_s: float = 3) -> Optional[str]: ...
    def hostname(self) -> str: ...
    def environ(self) -> Mapping[str, str]: ...
    def is_root_user(self) -> bool: ...
    def cpu_count(self) -> int: ...
    def now(self) -> datetime.datetime: ...
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...

    # changes
    def write_file(
        self,
        path: Path,
        data: Union[bytes, str],
        *,
        mode: int = 0o644,
        owner: Optional[tuple[int, int]] = None,
        keeps: bool = False,
    ) -> bool: ...
    def write_stream(self, path: Path, chunks: Iterable[bytes], *, mode: int = 0o644) -> None: ...
    def move_file(self, source: Path, path: Path) -> None: ...
    def make_dir(self, path: Path, *, mode: int = 0o755) -> bool: ...
    def remove(self, path: Path) -> bool: ...
    def remove_tree(self, path: Path) -> bool: ...
    def copy_attributes(self, source: Path, path: Path) -> None: ...
    def put_back(self, path: Path) -> bool: ...
    def symlink(self, path: Path, target: str) -> bool: ...
    def run(
        self, argv: Argv, *, timeout_s: float = 300, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult: ...
    def http_send(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
    ) -> HttpResponse: ...


REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5


def follow_redirect(url: str, location: str) -> str:
    """Where a server sends on to. Raises Unreachable where that leaves https, or is no web address: what came from there
    would be anybody's."""
    target = urllib.parse.urljoin(url, location)
    if not target.startswith(("https://", "http://")) or (url.startswith("https://") and target.startswith("http://")):
        raise Unreachable(url, "other", f"it sends on to {target[:200]!a}, which is not https")
    return target


def get_page(host: Host, url: str, *, timeout_s: float = 10) -> tuple[str, HttpResponse]:
    """GET a URL as a browser does: dl.k8s.io and github.com send on to where their files lie. Returns the place that
    answered last, and its answer, whatever status that has. Raises Unreachable where no answer came."""
    answer = host.http_get(url, timeout_s=timeout_s)
    for _ in range(_MAX_REDIRECTS):
        location = answer.headers.get("location")
        if answer.status not in REDIRECTS or not location:
            break
        url = follow_redirect(url, location)
        answer = host.http_get(url, timeout_s=timeout_s)
    return url, answer


class LocalHost:
    """This machine, or a folder that stands for one (`root`): then files land below it, and whatever would touch
    the running system is not done but reported in `deferred`."""

    def __init__(self, root: Path = Path("/")) -> None:
        # `//` and `/tmp/..` are this machine too
        self.root = Path("/") if os.path.realpath(root).strip("/") == "" else root.absolute()
        self.is_live = self._is_whole = self.root == Path("/")
        self.mode = "live" if self.is_live else "root"
        self.deferred: list[str] = []
        self.fence: Optional[Fence] = None
        """Set by --air-gapped: every connection to somewhere else is refused."""
        self._connections = _Connections()

    # ---- looks

    def at(self, path: Path) -> Path:
        """Where the node's `path` itself lies on this machine, a link not followed. Raises HostError."""
        return self._place(path, follows_last=False)

    def target(self, path: Path) -> Path:
        """Where what `path` leads to lies on this machine. Raises HostError."""
        return self._place(path, follows_last=True)

    def _place(self, path: Path, *, follows_last: bool) -> Path:
        _check_path(path)
        if self._is_whole:
            return path
        try:
            return resolve_below(self.root, path, follows_last=follows_last)
        except OSError as error:
            raise _file_error(path, "read", error) from error

    @contextlib.contextmanager
    def _way(
        self, path: Path, verb: str, *, follows_last: bool = False, makes: Optional[int] = None
    ) -> Iterator[Place]:
        """Where a change of `path` is made: open_way's. Whatever OSError comes of it is told as a HostError."""
        _check_path(path)
        try:
            with open_way(self.root, path, follows_last=follows_last, makes=makes) as place:
                yield place
        except BrokenPipeError:
            raise  # whoever read it has seen enough
        except UnsafeLink as error:
            raise _unsafe_link(path, error) from error
        except OSError as error:
            raise _file_error(path, verb, error) from error

    def exists(self, path: Path) -> bool:
        """Whether there is something, a dangling link included. Raises HostError (file-unreadable) where that cannot be
        seen: what an ordinary user may not look at is not missing."""
        return self.stat(path) is not None

    def is_dir(self, path: Path) -> bool:
        try:
            return stat_module.S_ISDIR(os.stat(self.target(path)).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _file_error(path, "read", error) from error

    def stat(self, path: Path) -> Optional[FileStat]:
        try:
            found = os.lstat(self.at(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _file_error(path, "read", error) from error
        return FileStat(
            mode=stat_module.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            size=found.st_size,
            is_dir=stat_module.S_ISDIR(found.st_mode),
            is_symlink=stat_module.S_ISLNK(found.st_mode),
            mtime=found.st_mtime,
            is_regular=stat_module.S_ISREG(found.st_mode),
        )

    def _open(self, path: Path, *, follows: bool = True) -> int:
        """A descriptor of a file. Below another root it is gone to folder by folder: no link that is laid meanwhile leads out
        of it. Raises OSError, HostError."""
        _check_path(path)
        if self._is_whole:
            return _open_for_reading(path, 0 if follows else os.O_NOFOLLOW)
        with open_way(self.root, path, follows_last=follows) as place:
            return _open_for_reading(Path(place.name), os.O_NOFOLLOW, folder=place.folder)

    def read_bytes(self, path: Path) -> bytes:
        """The file's content. Raises HostError (file-unreadable) where it cannot be read or is not there."""
        try:
            with open(self._open(path), "rb") as file:
                return file.read()
        except OSError as error:
            raise _file_error(path, "read", error) from error

    def read_text(self, path: Path) -> str:
        """A file's text; what is no UTF-8 in it is replaced. Raises HostError (file-unreadable), also for one that is larger
        than any text of a node."""
        try:
            with open(self._open(path), "rb") as file:
                # in pieces: a file of /proc/sys gives none to a reader who asks for more than a few MiB at once
                data = b""
                while len(data) <= _MAX_TEXT and (piece := file.read(CHUNK)):
                    data += piece
        except OSError as error:
            raise _file_error(path, "read", error) from error
        if len(data) > _MAX_TEXT:
            raise _file_error(path, "read", OSError(errno.EFBIG, f"it has more than {_MAX_TEXT >> 20} MiB"))
        return data.decode("utf-8", errors="replace")

    def open_read(self, path: Path, *, follows: bool = True) -> BinaryIO:
        """A file to be read piece by piece; whoever opens it closes it. follows: a link, too. Raises HostError
        (file-unreadable), its read and seek too."""
        try:
            return _OpenFile(self._open(path, follows=follows), path)  # type: ignore[return-value]
        except OSError as error:
            raise _file_error(path, "read", error) from error

    def list_dir(self, path: Path) -> list[str]:
        """The names in a folder, sorted; [] where there is no such folder."""
        try:
            return sorted(os.listdir(self.target(path)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _file_error(path, "read", error) from error

    def real_path(self, path: Path) -> Path:
        """Where `path` leads to through links, as the node sees it."""
        if self._is_whole:
            _check_path(path)
            return Path(os.path.realpath(path))
        return Path("/") / self.target(path).relative_to(self.root)

    def read_link(self, path: Path) -> Optional[str]:
        """What a symbolic link says; None where `path` is none."""
        try:
            return os.readlink(self.at(path))
        except OSError:
            return None

    def free_bytes(self, path: Path) -> int:
        """Free space on the file system that holds `path` or its nearest existing parent, for an ordinary user."""
        place = self.target(path)
        while not place.exists() and place != place.parent:
            place = place.parent
        found = os.statvfs(place)
        return found.f_bavail * found.f_frsize

    def mounts_below(self, path: Path) -> list[Path]:
        """The mount points strictly below `path`, whatever links lead there, deepest first, by their real paths, as
        /proc/self/mountinfo has them."""
        if not self.is_live:
            return []
        return _mounts_below(os.path.realpath(path))

    def which(self, program: str) -> Optional[Path]:
        """Where `program` lies in PATH (sbin folders included, which a plain `su` leaves out)."""
        folders = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        if self.is_live:
            found = shutil.which(program, path=folders)
            return Path(found) if found else None
        for folder in folders.split(":"):
            if folder.startswith("/") and os.access(self.target(Path(folder) / program), os.X_OK):
                return Path(folder) / program
        return None

    def query(
        self, argv: Argv, *, timeout_s: float = 30, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult:
        """Run a program that only looks. Never raises: the code tells, 127 for a missing program, 124 for a
        timeout. Below another root nothing is asked: the machine at hand is not the one that is written."""
        if not self.is_live:
            return CommandResult(shown_argv(argv), 127, missing=True, deferred=True)
        return _execute(argv, timeout_s, env, stdin)

    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = MAX_ANSWER,
    ) -> HttpResponse:
        """GET a URL. timeout_s: until the answer begins; the whole may take BODY_S longer. Raises Unreachable where no
        answer came, or one of more than max_bytes; any HTTP status is an answer. Raises HostError
        (credentials-unprotected), as every request here."""
        if not self.is_live:
            raise Unreachable(url, "other", "--root writes a node's files, it has no running system")
        self._require_way(url, tls)
        return self._connections.request("GET", url, b"", tls, headers or {}, timeout_s, max_bytes)

    def http_ask(self, url: str, body: bytes, *, tls: Optional[Tls] = None, timeout_s: float = 10) -> HttpResponse:
        """POST a JSON question that changes nothing, of an API that has no GET for it. Raises as http_get does."""
        if not self.is_live:
            raise Unreachable(url, "other", "--root writes a node's files, it has no running system")
        self._require_way(url, tls)
        return self._connections.request("POST", url, body, tls, {"Content-Type": "application/json"}, timeout_s)

    @contextlib.contextmanager
    def http_open(
        self, url: str, *, tls: Optional[Tls] = None, headers: Optional[Mapping[str, str]] = None, timeout_s: float = 30
    ) -> Iterator[HttpStream]:
        """GET a URL whose body is too large to hold. Raises Unreachable where no answer came."""
        if not self.is_live:
            raise Unreachable(url, "other", "--root writes a node's files, it has no running system")
        self._require_way(url, tls)
        with self._connections.open("GET", url, None, tls, headers or {}, timeout_s) as stream:
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
        """PUT a body of `size` bytes piece by piece. Raises Unreachable."""
        self._require_way(url, tls)
        told = {"Content-Type": "application/octet-stream", **(headers or {}), "Content-Length": str(size)}
        with self._connections.open("PUT", url, body, tls, told, timeout_s) as stream:
            return HttpResponse(stream.status, stream.read(), stream.headers)

    def _require_way(self, url: str, tls: Optional[AnyTls]) -> None:
        """The server, and the proxy that leads to it."""
        self.require_inside(urllib.parse.urlsplit(url).hostname or "", url)
        if isinstance(tls, Tls) and tls.proxy:
            self.require_inside(urllib.parse.urlsplit(tls.proxy).hostname or "", f"the proxy to {url}")

    def require_inside(self, name: str, what: str) -> None:
        """Raise HostError (air-gap) where --air-gapped keeps kb from connecting to `name`."""
        if self.fence is None or self.fence.allows(name):
            return
        inside = ", ".join(sorted(self.fence.hosts)) or "this node"
        raise HostError(
            f"kb was about to connect to {name} ({what})",
            cause=f"--air-gapped keeps it to the cluster and the mirror: {inside}",
            remedy="bring what is missing with the bundle (kb bundle verify --config FILE says what), or leave --air-gapped out",
            code="air-gap",
        )

    def port_holder(self, port: int, address: str = "") -> Optional[str]:
        """None where the TCP port is free on `address` ("" for every address), otherwise who listens, as far as
        can be told: "kubelet (pid 812)" or "another process"."""
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
        """The addresses of a host name; [] where it does not resolve."""
        if not self.is_live:
            return []
        self.require_inside(name, f"to look up the name {name}")
        try:
            return sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
        except (OSError, UnicodeError):
            return []

    def udp_exchange(self, address: str, port: int, payload: bytes, *, timeout_s: float = 2) -> Optional[bytes]:
        """Send one datagram and return the answer; None where none came in time."""
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
        """The certificate (PEM) that a TLS server shows, whoever signed it; None where no server answers."""
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

    def hostname(self) -> str:
        return socket.gethostname()

    def environ(self) -> Mapping[str, str]:
        return dict(os.environ)

    def is_root_user(self) -> bool:
        return os.geteuid() == 0

    def cpu_count(self) -> int:
        """The processors that this process may use."""
        return len(os.sched_getaffinity(0))

    def now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.timezone.utc)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    # ---- changes

    def write_file(
        self,
        path: Path,
        data: Union[bytes, str],
        *,
        mode: int = 0o644,
        owner: Optional[tuple[int, int]] = None,
        keeps: bool = False,
    ) -> bool:
        """Make `path` hold `data` with `mode` and owner (uid, gid); return whether anything changed.

        keeps: it is somebody else's file, which keeps its mode, owner and attributes; `mode` is for one that is new.
        Compares first. A link stays, and what it leads to is written. The new content is whole on disk before it takes the
        name (temporary file, fsync, rename, fsync of the folder), and a private file is private from its first byte. The
        parent must exist or is made 0755. Raises HostError (disk-full, file-unwritable, link-not-followed); the old
        content is then intact.
        """
        wanted = encode_text(data, path) if isinstance(data, str) else data
        uid_gid = owner if owner is not None and (self.is_live or os.geteuid() == 0) else None
        if self._holds(path, wanted, None if keeps else mode, None if keeps else uid_gid):
            return False
        self._replace(path, (wanted,), mode=mode, owner=uid_gid, keeps=keeps)
        return True

    def write_stream(self, path: Path, chunks: Iterable[bytes], *, mode: int = 0o644) -> None:
        """Like write_file, for what is too large to hold. Where `chunks` raises, `path` is as it was before.
        Raises HostError (disk-full, file-unwritable)."""
        self._replace(path, chunks, mode=mode)

    def _replace(
        self,
        path: Path,
        chunks: Iterable[bytes],
        *,
        mode: int,
        owner: Optional[tuple[int, int]] = None,
        keeps: bool = False,
    ) -> None:
        """Put the new content whole on disk, private, and only then under its name."""
        with self._way(path, "write", follows_last=True, makes=0o755) as place:
            replace_file(place, chunks, mode=mode, owner=owner, keeps=keeps)

    def append(self, path: Path, chunks: Iterable[bytes]) -> int:
        """Add to a file, whatever came before a failure included; returns its size. A link is not followed: the files that
        grow are kb's own. Raises HostError as write_stream."""
        with self._way(path, "write", makes=0o755) as place:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(place.name, flags, 0o644, dir_fd=place.folder)
            try:
                for piece in chunks:
                    write_all(descriptor, piece)
                os.fsync(descriptor)
                return os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name on the same file system. Raises HostError."""
        with self._way(path, "write") as source, self._way(target, "write") as place:
            os.rename(source.name, place.name, src_dir_fd=source.folder, dst_dir_fd=place.folder)
            sync_folder(place.folder)

    def copy_attributes(self, source: Path, path: Path) -> None:
        """Give a file the extended attributes (SELinux' label, an ACL) of another. Raises HostError."""
        with self._way(source, "read") as found, self._way(path, "write") as place:
            copy_attributes(found, place)

    def put_back(self, path: Path) -> bool:
        """Give a mounted file back what it held: `path` is what lay beside it while kb wrote into it, and was killed. Returns
        whether it was. Raises HostError."""
        with self._way(path, "write") as place:
            return put_back(place)

    def write_output(self, target: str, chunks: Iterable[bytes], *, mode: int = 0o644, is_secret: bool = False) -> None:
        """Write what a user asked for to where he said: "-" is standard output; a device, a pipe or a socket is written into; a
        file is replaced whole, with its mode and owner kept. The folder must exist. is_secret: nobody else may read the file,
        whatever its mode was. Raises HostError (output-folder-missing, file-unwritable, disk-full, link-not-followed)."""
        number = given_descriptor(target)
        path = Path(target).absolute()
        if number is not None:
            _write_to(number, chunks)
            return
        try:
            has_folder = self.is_dir(path.parent)
        except HostError:
            has_folder = True  # what keeps kb from looking is told on the way
        if not has_folder:
            raise HostError(
                f"cannot write {path}",
                cause=f"there is no folder {path.parent}",
                remedy=f"make it: mkdir -p {path.parent}",
                code="output-folder-missing",
            )
        with self._way(path, "write", follows_last=True) as place:
            require_unplanted(place)
            try:
                found: Optional[os.stat_result] = os.lstat(place.name, dir_fd=place.folder)
            except FileNotFoundError:
                found = None
            if found is not None and stat_module.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            if found is not None and not stat_module.S_ISREG(found.st_mode):
                _write_through(place, found.st_mode, chunks)
                return
            owner = (found.st_uid, found.st_gid) if found and is_secret else None
            replace_file(place, chunks, mode=0o600 if is_secret else mode, owner=owner, keeps=not is_secret)

    def make_private_dir(self, path: Path) -> None:
        """A folder for what must be kb's own while it grows. Raises HostError (spool-not-private) where the folder is there
        already and another user could have made it, or can write to it."""
        with self._way(path, "make") as place:
            with contextlib.suppress(FileExistsError):
                os.mkdir(place.name, 0o700, dir_fd=place.folder)
            found = os.lstat(place.name, dir_fd=place.folder)
        # what a stick's file system makes of the mode is fine, as long as nobody else can write
        is_own = stat_module.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        if not is_own:
            raise HostError(
                f"{path} is not this user's alone",
                cause="it is there already, and somebody else made it, or can write to it: what lies in it cannot be trusted",
                remedy=f"look at it (ls -ld {path}), remove it, or write to a folder that is yours",
                code="spool-not-private",
            )

    def move_file(self, source: Path, path: Path) -> None:
        """Give a finished file its place, over what lies there, on whichever file system. Raises HostError."""
        with self._way(source, "read") as found, self._way(path, "write", makes=0o755) as place:
            try:
                os.rename(found.name, place.name, src_dir_fd=found.folder, dst_dir_fd=place.folder)
                sync_folder(place.folder)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                mode = stat_module.S_IMODE(os.lstat(found.name, dir_fd=found.folder).st_mode)
                with self.open_read(source) as file:
                    replace_file(place, iter(lambda: file.read(CHUNK), b""), mode=mode)
                os.unlink(found.name, dir_fd=found.folder)

    def _holds(self, path: Path, wanted: bytes, mode: Optional[int], owner: Optional[tuple[int, int]]) -> bool:
        try:
            found = os.stat(self.target(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _file_error(path, "read", error) from error
        if not stat_module.S_ISREG(found.st_mode) or found.st_size != len(wanted):
            return False
        if mode is not None and mode != stat_module.S_IMODE(found.st_mode):
            return False
        if owner is not None and owner != (found.st_uid, found.st_gid):
            return False
        return self.read_bytes(path) == wanted

    def make_dir(self, path: Path, *, mode: int = 0o755) -> bool:
        """Make a folder and its parents (those 0755); an existing one keeps its mode. Returns whether it was made."""
        if self.is_dir(path):
            return False
        with self._way(path, "make", follows_last=True, makes=0o755) as place:
            try:
                make_folder(place, mode)
            except FileExistsError:
                if not self.is_dir(path):
                    raise
                return False
        return True

    def remove(self, path: Path) -> bool:
        """Remove a file, a link, or an empty folder; return whether there was one."""
        if self.stat(path) is None:
            return False
        with self._way(path, "remove") as place:
            try:
                os.unlink(place.name, dir_fd=place.folder)
            except FileNotFoundError:
                return False
            except (IsADirectoryError, PermissionError):
                os.rmdir(place.name, dir_fd=place.folder)
            sync_folder(place.folder)
        return True

    def remove_tree(self, path: Path) -> bool:
        """Remove a folder with all that is in it; return whether there was one. A mount point (the folder itself)
        is emptied and stays. Raises HostError (mount-in-the-way) where anything is mounted below it: what is
        mounted is not the folder's to lose."""
        found = self.stat(path)
        if found is None or not found.is_dir:
            return False
        with self._way(path, "remove") as place:
            if place.name == ".":
                raise OSError(errno.EINVAL, "it is the root of this machine", str(path))
            descriptor = os.open(place.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place.folder)
            try:
                real = path_of(descriptor)
                mounts = _mounts_below(real)
                if mounts:
                    raise _mounted(path, mounts)
                try:
                    remove_below(descriptor)
                except OSError as error:
                    if error.errno == errno.EBUSY and error.filename:
                        raise _mounted(path, [Path(real, error.filename)]) from error
                    raise
                if mount_of(descriptor) == mount_of(place.folder):
                    os.rmdir(place.name, dir_fd=place.folder)
                    sync_folder(place.folder)
            finally:
                os.close(descriptor)
        return True

    def symlink(self, path: Path, target: str) -> bool:
        """Make `path` a symbolic link to `target`, over a file or a link that lies there; return whether anything changed."""
        if self.read_link(path) == target:
            return False
        with self._way(path, "link", makes=0o755) as place:
            temporary = temporary_name(place.name)
            try:
                os.symlink(target, temporary, dir_fd=place.folder)
                os.rename(temporary, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
                sync_folder(place.folder)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=place.folder)
        return True

    def run(
        self, argv: Argv, *, timeout_s: float = 300, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult:
        """Run a program that changes the machine. Never raises, like query. Below another root it is deferred."""
        if not self.is_live:
            shown = shown_argv(argv)
            self.deferred.append(" ".join(shown))
            return CommandResult(shown, 0, deferred=True)
        return _execute(argv, timeout_s, env, stdin)

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
        """A request that changes something (POST, PUT, PATCH, DELETE). Raises Unreachable; deferred below a root."""
        if not self.is_live:
            self.deferred.append(shown_request(method, url))
            return HttpResponse(200, body, deferred=True)
        self._require_way(url, tls)
        return self._connections.request(method, url, body, tls, headers or {}, timeout_s)

    def listen(self, address: str, port: int) -> socket.socket:
        """A listening TCP socket whose connections block, send small answers at once, and give up on a peer that
        takes nothing for a minute. Raises HostError (port-in-use)."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM)
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # inherited by every accepted connection; seconds and microseconds
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

    @contextlib.contextmanager
    def lock(self, path: Path, holder: str) -> Iterator[None]:
        """Hold `path` for one process at a time; `holder` is what a second one is told ("kb init (pid 812, ...)").

        The lock is the kernel's: it ends with the process, so a killed kb leaves none behind. Raises HostError
        (locked) that says who holds it since when.
        """
        self.make_dir(path.parent, mode=0o700)
        with self._way(path, "write") as place:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(place.name, flags, 0o600, dir_fd=place.folder)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                other = os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "another kb"
                raise HostError(
                    "this node is being worked on",
                    cause=f"{other} holds {path}",
                    remedy="wait until it has ended, then run the command again",
                    code="locked",
                ) from error
            # on a full disk the lock still locks: only its holder's name is missing
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                text = f"{holder} (pid {os.getpid()}, since {self.now():%Y-%m-%dT%H:%M:%SZ})"
                os.pwrite(descriptor, text.encode(), 0)
            yield
        finally:
            os.close(descriptor)


def shown_argv(argv: Argv) -> tuple[str, ...]:
    """The command as people may see it: secrets are ***."""
    return tuple(str(part) for part in argv)


def shown_request(method: str, url: str) -> str:
    """A request as people may see it: no query, nothing quoted."""
    return f"{method} {urllib.parse.unquote(url.partition('?')[0])}"


def _execute(argv: Argv, timeout_s: float, env: Optional[Mapping[str, str]], stdin: str) -> CommandResult:
    shown = shown_argv(argv)
    real = [part.reveal() if isinstance(part, Secret) else str(part) for part in argv]
    environment = {**os.environ, "LC_ALL": "C", **(env or {})}
    environment["PATH"] = environment.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    try:
        done = subprocess.run(
            real, input=stdin, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=environment
        )
    except FileNotFoundError:
        return CommandResult(shown, 127, stderr=f"{shown[0]}: not found in PATH", missing=True)
    except subprocess.TimeoutExpired:
        return CommandResult(shown, 124, stderr=f"{shown[0]}: did not end within {timeout_s:.0f} s")
    except OSError as error:
        return CommandResult(shown, 126, stderr=f"{shown[0]}: {error.strerror}")
    except ValueError as error:  # a NUL, or half a character, among its words
        return CommandResult(shown, 126, stderr=f"{shown[0]}: {error}")
    return CommandResult(shown, done.returncode, done.stdout, done.stderr)


class _OpenFile(io.FileIO):
    """A file whose disk may fail while it is read."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "rb")
        self._path = path

    def read(self, size: Optional[int] = -1, /) -> bytes:
        try:
            return super().read(size) or b""
        except OSError as error:
            raise _file_error(self._path, "read", error) from error

    def seek(self, place: int, whence: int = 0, /) -> int:
        try:
            return super().seek(place, whence)
        except OSError as error:
            raise _file_error(self._path, "read", error) from error


def _open_for_reading(place: Path, more: int = 0, *, folder: Optional[int] = None) -> int:
    """A descriptor of a file that does not wait for whoever writes into a pipe. What a process substitution or standard input
    gives (/dev/fd/63, /dev/stdin) is waited for. Raises OSError."""
    descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | more, dir_fd=folder)
    found = os.fstat(descriptor)
    is_given = str(place).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/"))
    if stat_module.S_ISDIR(found.st_mode) or (not stat_module.S_ISREG(found.st_mode) and not is_given):
        os.close(descriptor)
        code = errno.EISDIR if stat_module.S_ISDIR(found.st_mode) else errno.EINVAL
        text = os.strerror(code) if code == errno.EISDIR else "it is no regular file, but a pipe, a socket or a device"
        raise OSError(code, text, str(place))
    os.set_blocking(descriptor, True)
    return descriptor


def given_descriptor(target: str) -> Optional[int]:
    """The number of the descriptor of this process that `-`, `/dev/stdout`, `/dev/fd/63` and their like name: to open such a
    name again would begin at the file's start, or ask for rights that the descriptor has already."""
    if target in ("-", "/dev/stdout", "/dev/stderr"):
        return 2 if target == "/dev/stderr" else 1
    found = re.fullmatch(r"(?:/dev/fd|/proc/self/fd)/([0-9]{1,9})", target)
    return int(found[1]) if found else None


def is_stream(target: str) -> bool:
    """Whether output to it goes into a descriptor or a device: no file system holds it, and nothing lies beside it."""
    return given_descriptor(target) is not None or target.startswith("/dev/")


def _write_to(number: int, chunks: Iterable[bytes]) -> None:
    """Into a descriptor that was given to this process. Raises BrokenPipeError where nobody reads it any more, HostError."""
    try:
        if sys.stdout:
            sys.stdout.flush()
        for piece in chunks:
            write_all(number, piece)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError(
            "standard output takes no more" if number == 1 else f"descriptor {number} cannot be written",
            cause=str(error.strerror),
            remedy="make space where it leads to, or name a file, then run the command again",
            code="disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "file-unwritable",
        ) from error


def _write_through(place: Place, mode: int, chunks: Iterable[bytes]) -> None:
    """Into a device, a pipe or a socket."""
    if stat_module.S_ISSOCK(mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.connect(f"/proc/self/fd/{place.folder}/{place.name}")
            for piece in chunks:
                peer.sendall(piece)
        return
    descriptor = os.open(place.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.folder)
    try:
        for piece in chunks:
            write_all(descriptor, piece)
    finally:
        os.close(descriptor)


def _mounts_below(real: str) -> list[Path]:
    """What is mounted strictly below a real path of this machine, deepest first."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        points = [line.split(" ")[4] for line in file]
    # a folder that is mounted over twice stands there twice, and has to be unmounted twice
    plain = [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point) for point in points]
    below = [Path(point) for point in plain if point.startswith(f"{real.rstrip('/')}/")]
    return sorted(below, key=lambda place: len(place.parts), reverse=True)


def _mounted(path: Path, mounts: Sequence[Path]) -> HostError:
    return HostError(
        f"{path} is not removed",
        cause=f"something is mounted below it: {', '.join(str(mount) for mount in mounts[:3])}",
        remedy=f"find out what uses it and unmount it: umount {mounts[0]}",
        code="mount-in-the-way",
    )


def encode_text(text: str, what: object) -> bytes:
    """A text as it goes into a file. Raises HostError (text-unwritable) where half a character stands in it, as JSON and YAML
    can write one: no file can hold it."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise HostError(
            f"{what} cannot hold the text that is to go there",
            cause=f"{text[error.start : error.end][:8]!a} in it is half a character",
            remedy="look for it in the configuration, and write the character whole",
            code="text-unwritable",
        ) from error


def _check_path(path: Path) -> None:
    """Raise HostError (path-impossible) where no file can have that path."""
    text = str(path)
    try:
        os.fsencode(text)
        is_whole = True
    except UnicodeEncodeError:
        is_whole = False
    if is_whole and "\0" not in text:
        return
    raise HostError(
        f"{text!a} cannot be a path",
        cause="it holds a NUL character" if is_whole else "half a character stands in it",
        remedy="correct the path",
        code="path-impossible",
    )


def _unsafe_link(path: Path, error: OSError) -> HostError:
    return HostError(
        f"cannot write {path}",
        cause=str(error.strerror),
        remedy=f"name the file itself, or one in a folder that nobody else can write to: ls -l {error.filename}",
        code="link-not-followed",
    )


def _file_error(path: Path, verb: str, error: OSError) -> HostError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostError(
            f"cannot {verb} {path}",
            cause="the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up",
            remedy=f"make space on the file system of {path.parent} (df -h {path.parent}), then run the command again",
            code="disk-full",
        )
    lacks_rights = error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0
    return HostError(
        f"cannot {verb} {path}",
        cause=error.strerror or str(error),
        remedy="run the command as root: sudo"
        if lacks_rights
        else f"look at it and its folder: ls -ld {path} {path.parent}",
        code="file-unreadable" if verb == "read" else "file-unwritable",
    )


def _listener_name(port: int) -> Optional[str]:
    """Who listens on a TCP port: "NAME (pid N)", from /proc; None where that cannot be told."""
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
        try:
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") in inodes:
                    with open(f"/proc/{pid}/comm") as file:
                        return f"{file.read().strip()} (pid {pid})"
        except OSError:
            continue
    return None


@functools.lru_cache(maxsize=1)
def find_root_python() -> str:
    """The Python that a service of root's may run: this one, the one that a virtual environment was made of, or the system's;
    whichever nobody but root can change. Raises HostError (no-root-python)."""
    base = str(getattr(sys, "_base_executable", "") or "")
    for name in (sys.executable, base, "/usr/bin/python3", "/usr/local/bin/python3", "/usr/libexec/platform-python"):
        is_fit = bool(name) and os.access(name, os.X_OK) and is_root_s_alone(Path(name))
        version = re.search(r"python3\.(\d+)$", os.path.realpath(name)) if name else None
        if is_fit and (version is None or int(version[1]) >= 9) and not _is_virtual(Path(name)):
            return name
    raise HostError(
        "no Python here is root's alone",
        cause=f"a service that runs as root would run {sys.executable}, which somebody else can change",
        remedy="install the system's own: apt-get install python3, or dnf install python3; then run the command again",
        code="no-root-python",
    )


def _is_virtual(python: Path) -> bool:
    """Whether this is the Python of a virtual environment, which goes when that goes."""
    return (python.parent.parent / "pyvenv.cfg").exists()


def find_read_only_mount(host: Host, path: Path) -> str:
    """The mount point that keeps anything from being made at `path`; "" where nothing does."""
    try:
        rows = [line.split() for line in host.read_text(Path("/proc/mounts")).splitlines()]
    except HostError:
        return ""
    options = {
        row[1]: row[3].split(",") for row in rows if len(row) > 3
    }  # of mounts upon each other the last one counts
    above = [point for point in options if path == Path(point) or Path(point) in path.parents]
    nearest = max(above, key=len, default="")
    return nearest if "ro" in options.get(nearest, ()) else ""


def raise_descriptor_limit() -> int:
    """Allow this process as many open files as it may have; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def owner_ids(user: str, group: str) -> tuple[int, int]:
    """The ids of a user and a group of this machine. Raises KeyError for an unknown name."""
    return pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid


class _Connections:
    """HTTP connections, kept open per server and identity and per thread: a TLS handshake with client keys costs
    more than most of kb's requests."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._contexts: dict[AnyTls, ssl.SSLContext] = {}

    def request(
        self,
        method: str,
        url: str,
        body: bytes,
        tls: Optional[AnyTls],
        headers: Mapping[str, str],
        timeout_s: float,
        max_bytes: int = MAX_ANSWER,
    ) -> HttpResponse:
        require_safe(url, tls, headers)
        parts = urllib.parse.urlsplit(url)
        key = (parts.scheme, parts.netloc, tls)
        pool: dict[object, http_client.HTTPConnection] = self._local.__dict__.setdefault("pool", {})
        for attempt in (1, 2):
            connection = pool.pop(key, None)
            is_reused = connection is not None
            deadline = _Deadline(timeout_s)
            try:
                if connection is None:
                    connection = self._connect(parts, tls or Tls())
                answer = _ask(connection, method, parts, body, headers, deadline)
                deadline.extend(BODY_S)
                content = answer.read(max_bytes + 1)
                if len(content) > max_bytes:
                    connection.close()
                    raise Unreachable(url, "other", f"it sends more than {max_bytes} bytes")
            except (OSError, http_client.HTTPException, ValueError) as error:
                if connection is not None:
                    connection.close()
                # a server may close an idle connection at any time: that says nothing about the request
                if is_reused and attempt == 1 and not isinstance(error, socket.timeout):
                    continue
                raise Unreachable(url, _reason_of(error), str(error) or type(error).__name__) from error
            if not answer.will_close:
                pool[key] = connection
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
        body: Optional[Iterable[bytes]],
        tls: Optional[Tls],
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> Iterator[HttpStream]:
        """A connection of its own: a body that is read half way leaves none that could be used again. timeout_s: until the
        answer begins, and until each piece of it comes."""
        require_safe(url, tls, headers)
        parts = urllib.parse.urlsplit(url)
        connection: Optional[http_client.HTTPConnection] = None
        try:
            deadline = _Deadline(timeout_s)
            try:
                connection = self._connect(parts, tls or Tls())
                answer = _ask(connection, method, parts, body, headers, deadline)
            except (OSError, http_client.HTTPException, ValueError) as error:
                raise Unreachable(url, _reason_of(error), str(error) or type(error).__name__) from error
            yield HttpStream(url, answer, deadline, timeout_s)
        finally:
            if connection is not None:
                connection.close()

    def _connect(self, parts: urllib.parse.SplitResult, tls: AnyTls) -> http_client.HTTPConnection:
        host, port = parts.hostname or "", parts.port
        if parts.scheme != "https":
            return http_client.HTTPConnection(host, port)
        if isinstance(tls, Unproven) or not (tls.proxy or tls.server_name):
            return http_client.HTTPSConnection(host, port, context=self._context(tls))
        return _connect_by_way(host, port or 443, tls, self._context(tls))

    def _context(self, tls: AnyTls) -> ssl.SSLContext:
        if tls not in self._contexts:
            self._contexts[tls] = _tls_context(tls)
        return self._contexts[tls]


class _NamedConnection(http_client.HTTPConnection):
    """https to a server that proves a name of its own, through a proxy or not."""

    default_port = 443

    def __init__(self, host: str, port: int, context: ssl.SSLContext, server_name: str) -> None:
        super().__init__(host, port)
        self.context, self.server_name = context, server_name

    def connect(self) -> None:
        super().connect()
        self.sock = self.context.wrap_socket(self.sock, server_hostname=self.server_name)


def _connect_by_way(host: str, port: int, tls: Tls, context: ssl.SSLContext) -> http_client.HTTPConnection:
    name = tls.server_name or host
    if not tls.proxy:
        return _NamedConnection(host, port, context, name)
    proxy = urllib.parse.urlsplit(tls.proxy)
    connection = _NamedConnection(proxy.hostname or "", proxy.port or 80, context, name)
    who = urllib.parse.unquote(f"{proxy.username}:{proxy.password or ''}") if proxy.username else ""
    headers = {"Proxy-Authorization": f"Basic {base64.b64encode(who.encode()).decode()}"} if who else {}
    connection.set_tunnel(bracket(host), port, headers)
    return connection


_PARTIAL_CHAIN = 0x80000
"""X509_V_FLAG_PARTIAL_CHAIN: ssl names it from Python 3.10 on, and sets it from 3.13 on."""


def _ask(
    connection: http_client.HTTPConnection,
    method: str,
    parts: urllib.parse.SplitResult,
    body: Union[bytes, Iterable[bytes], None],
    headers: Mapping[str, str],
    deadline: _Deadline,
) -> http_client.HTTPResponse:
    """Send a request and read the head of its answer, both before the deadline. The body of a request has as long again
    for each piece."""
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


def _read_answer(deadline: _Deadline, connection: socket.socket, *args: Any, **kwargs: Any) -> http_client.HTTPResponse:
    return http_client.HTTPResponse(_TimedSocket(connection, deadline), *args, **kwargs)  # type: ignore[arg-type]


def _tls_context(tls: AnyTls) -> ssl.SSLContext:
    if isinstance(tls, Unproven):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context = ssl.create_default_context(cadata=tls.ca.pem) if tls.ca else ssl.create_default_context()
    # kubeadm's CAs carry no path length and older ones no key identifier: RFC 5280 to the letter refuses them
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    # an intermediate that stands alone is believed, as Go believes whatever is in its pool
    context.verify_flags |= _PARTIAL_CHAIN
    if tls.cert_pem and tls.key_pem:
        _load_identity(context, tls.cert_pem, tls.key_pem)
    return context


def _load_identity(context: ssl.SSLContext, cert_pem: str, key_pem: Secret) -> None:
    """ssl takes an identity from a file only: give it one that has no name and lies in memory."""
    descriptor = os.memfd_create("kb-identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, f"{cert_pem}\n{key_pem.reveal()}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _reason_of(error: Exception) -> str:
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
