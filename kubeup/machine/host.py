"""The one interface to the machine: every file, program, request and pause of kb goes through a Host.

This module only defines the protocol and its values. It has two kinds of verb. Looks (exists, read_*, stat, list_dir, which, query,
http_get, now, ...) change nothing. Changes (write_file, make_dir, remove, symlink, run, http_send) do. LocalHost
(kubeup/machine/local_host.py) carries both out, on this machine or below a root. DryRunHost (kubeup/machine/dry_run.py) carries out
the looks, and only records the changes.
"""

from __future__ import annotations

import contextlib
import datetime
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Optional, Protocol, Union

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.http import MAX_ANSWER, AnyTls, HttpResponse, HttpStream, Tls
from kubeup.secret import Secret

Argv = Sequence[Union[str, Path, Secret]]
"""A program and its arguments. Wherever the command is shown, a Secret among them appears as ***."""


@frozen
class FileStat:
    """The result of lstat. `mode` holds only the permission bits."""

    mode: int
    uid: int
    gid: int
    size: int
    is_dir: bool
    is_symlink: bool
    mtime: float
    is_regular: bool = True
    """A regular file: no folder, link, pipe, socket or device."""
    ctime: float = 0.0
    """When the content, the mode, the owner or the name changed last; no program can set it, as cp -p sets mtime."""


@frozen
class CommandResult:
    """The result of a program. Code 127 and `missing` mean that there is no such program; code 124 means that it timed out."""

    argv: tuple[str, ...]
    code: int
    stdout: str = ""
    stderr: str = ""
    missing: bool = False
    deferred: bool = False
    """The host did not run the program (--root, --dry-run), but reported it."""

    @property
    def ok(self) -> bool:
        return self.code == 0


class Host(Protocol):
    """Everything that a phase may do to a machine. Paths are absolute, as the node sees them."""

    is_live: bool
    """Whether changes reach a running system: False with --root and --dry-run."""
    mode: str
    """live | root (--root: a folder represents the node) | dry-run (looks are real, changes are only planned)"""

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
    def http_ask(
        self,
        url: str,
        body: bytes,
        *,
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
    ) -> HttpResponse: ...
    def http_open(
        self,
        url: str,
        *,
        body: bytes = b"",
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 30,
    ) -> contextlib.AbstractContextManager[HttpStream]: ...
    def port_holder(self, port: int, address: str = "") -> Optional[str]: ...
    def resolve(self, name: str) -> list[str]: ...
    def udp_exchange(self, address: str, port: int, *, payload: bytes, timeout_s: float = 2) -> Optional[bytes]: ...
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


def shown_argv(argv: Argv) -> tuple[str, ...]:
    """The command for display: secrets appear as ***."""
    return tuple(str(part) for part in argv)


def shown_request(method: str, url: str) -> str:
    """A request for display: without its query, and unquoted."""
    return f"{method} {urllib.parse.unquote(url.partition('?')[0])}"


def encode_text(text: str, what: object) -> bytes:
    """The bytes of a text for a file. Raises HostError (text-unwritable) if the text contains half a character (a lone surrogate),
    which JSON and YAML can express but no file can hold."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise HostError(
            f"{what} cannot hold this text",
            cause=f"{text[error.start : error.end][:8]!a} in it is half a character",
            remedy="look for it in the configuration, and write the whole character",
            code="text-unwritable",
        ) from error
