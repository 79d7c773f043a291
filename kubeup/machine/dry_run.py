"""DryRunHost: reads are real; changes go to an overlay that later reads see, and to the printed plan.

So no phase needs a dry-run branch. Nothing here changes the machine.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union
from urllib.parse import urlsplit

from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.machine.host import Argv, CommandResult, FileStat, Host, encode_text, shown_argv, shown_request
from kubeup.machine.http import MAX_ANSWER, AnyTls, HttpResponse, HttpStream, Tls, Unreachable
from kubeup.redact import redact
from kubeup.yaml_files import covers, dump_yaml, pick_like

_SECRET_MARKS = (b"PRIVATE KEY", b"client-key-data", b"client-certificate-data", b"token:", b'"token-secret"')
"""The content of files with these marks is never shown."""


@frozen
class Planned:
    """A change that was planned but not made. kind: write | mkdir | remove | link | run | send | later."""

    kind: str
    what: str
    """The path, the command, or the request."""
    diff: str = ""
    """For files: the unified diff without secrets (redact.py); "" if the content is binary or secret as a whole."""


class DryRunHost:
    """A host whose changes are only planned (`plan`)."""

    is_live = False

    def __init__(self, inner: Host, *, waits: bool = False) -> None:
        """waits: whether sleep really sleeps, for a command that only looks: what others do on the machine takes time."""
        self.inner = inner
        self.mode = "look" if waits else "dry-run"
        self._waits = waits
        self.plan: list[Planned] = []
        self._files: dict[Path, Optional[tuple[bytes, int]]] = {}
        self._dirs: set[Path] = set()
        self._objects: dict[str, bytes] = {}
        self._slept_s = 0.0

    # ---- looks: first the overlay, then the machine

    def exists(self, path: Path) -> bool:
        if path in self._files:
            return self._files[path] is not None
        return path in self._dirs or self.inner.exists(path)

    def is_dir(self, path: Path) -> bool:
        return path in self._dirs or (path not in self._files and self.inner.is_dir(path))

    def stat(self, path: Path) -> Optional[FileStat]:
        if path in self._files:
            held = self._files[path]
            return held and FileStat(held[1], 0, 0, len(held[0]), False, False, self.now().timestamp())
        if path in self._dirs:
            return FileStat(0o755, 0, 0, 0, True, False, self.now().timestamp())
        return self.inner.stat(path)

    def read_bytes(self, path: Path) -> bytes:
        held = self._files.get(path)
        return held[0] if held else self.inner.read_bytes(path)

    def read_text(self, path: Path) -> str:
        held = self._files.get(path)
        return held[0].decode("utf-8", errors="replace") if held else self.inner.read_text(path)

    def open_read(self, path: Path, *, follows: bool = True) -> BinaryIO:
        held = self._files.get(path)
        return io.BytesIO(held[0]) if held else self.inner.open_read(path, follows=follows)

    def list_dir(self, path: Path) -> list[str]:
        names = set(self.inner.list_dir(path))
        for changed, held in self._files.items():
            if changed.parent == path:
                (names.add if held else names.discard)(changed.name)
        names.update(made.name for made in self._dirs if made.parent == path)
        return sorted(names)

    def real_path(self, path: Path) -> Path:
        return self.inner.real_path(path)

    def read_link(self, path: Path) -> Optional[str]:
        return None if path in self._files else self.inner.read_link(path)

    def free_bytes(self, path: Path) -> int:
        return self.inner.free_bytes(path)

    def mounts_below(self, path: Path) -> list[Path]:
        return self.inner.mounts_below(path)

    def which(self, program: str) -> Optional[Path]:
        return self.inner.which(program)

    def query(
        self, argv: Argv, *, timeout_s: float = 30, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult:
        return self.inner.query(argv, timeout_s=timeout_s, env=env, stdin=stdin)

    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = MAX_ANSWER,
    ) -> HttpResponse:
        planned = self._objects.get(url.partition("?")[0])
        if planned is not None:
            return HttpResponse(200, planned)
        return self.inner.http_get(url, tls=tls, headers=headers, timeout_s=timeout_s, max_bytes=max_bytes)

    def http_ask(
        self,
        url: str,
        body: bytes,
        *,
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
    ) -> HttpResponse:
        return self.inner.http_ask(url, body, tls=tls, headers=headers, timeout_s=timeout_s)

    def http_open(
        self,
        url: str,
        *,
        body: bytes = b"",
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 30,
    ) -> contextlib.AbstractContextManager[HttpStream]:
        return self.inner.http_open(url, body=body, tls=tls, headers=headers, timeout_s=timeout_s)

    def port_holder(self, port: int, address: str = "") -> Optional[str]:
        return self.inner.port_holder(port, address)

    def resolve(self, name: str) -> list[str]:
        return self.inner.resolve(name)

    def udp_exchange(self, address: str, port: int, *, payload: bytes, timeout_s: float = 2) -> Optional[bytes]:
        return self.inner.udp_exchange(address, port, payload=payload, timeout_s=timeout_s)

    def served_cert(self, address: str, port: int, *, timeout_s: float = 3) -> Optional[str]:
        return self.inner.served_cert(address, port, timeout_s=timeout_s)

    def hostname(self) -> str:
        return self.inner.hostname()

    def environ(self) -> Mapping[str, str]:
        return self.inner.environ()

    def is_root_user(self) -> bool:
        return self.inner.is_root_user()

    def cpu_count(self) -> int:
        return self.inner.cpu_count()

    def now(self) -> datetime.datetime:
        return self.inner.now()

    def monotonic(self) -> float:
        return self.inner.monotonic() + self._slept_s

    def sleep(self, seconds: float) -> None:
        """Advance only the clock, so that every wait ends at once: planned changes do not come true by waiting."""
        if self._waits:
            self.inner.sleep(seconds)
        else:
            self._slept_s += seconds

    # ---- changes: planned

    def write_file(
        self,
        path: Path,
        data: Union[bytes, str],
        *,
        mode: int = 0o644,
        owner: Optional[tuple[int, int]] = None,
        keeps: bool = False,
    ) -> bool:
        wanted = encode_text(data, path) if isinstance(data, str) else data
        found = self.stat(self.real_path(path)) or self.stat(path)
        mode = found.mode if keeps and found else mode
        before = self.read_bytes(path) if found and not found.is_dir and not found.is_symlink else b""
        if found and before == wanted and found.mode == mode:
            return False
        self.make_dir(path.parent)
        self._files[path] = (wanted, mode)
        self.plan.append(Planned("write", f"{path} ({mode:04o})", _diff(path, before, after=wanted)))
        return True

    def write_stream(self, path: Path, chunks: Iterable[bytes], *, mode: int = 0o644) -> None:
        """Plan to write the file without reading the chunks: large content is not fetched for a plan."""
        self._files[path] = (b"", mode)
        self.plan.append(Planned("write", f"{path} ({mode:04o})"))

    def move_file(self, source: Path, path: Path) -> None:
        self.write_stream(path, ())

    def make_dir(self, path: Path, *, mode: int = 0o755) -> bool:
        if self.is_dir(path):
            return False
        if path.parent != path:
            self.make_dir(path.parent)
        self._dirs.add(path)
        self.plan.append(Planned("mkdir", f"{path} ({mode:04o})"))
        return True

    def remove(self, path: Path) -> bool:
        if not self.exists(path):
            return False
        self._dirs.discard(path)
        self._files[path] = None
        self.plan.append(Planned("remove", str(path)))
        return True

    def remove_tree(self, path: Path) -> bool:
        if not self.is_dir(path):
            return False
        self.plan.append(Planned("remove", f"{path} and all that is in it"))
        return True

    def copy_attributes(self, source: Path, path: Path) -> None:
        """Nothing to do: this is part of a change that is already planned."""

    def plan_later(self, what: str) -> None:
        """Plan a change that depends on something not known yet."""
        self.plan.append(Planned("later", what))

    def put_back(self, path: Path) -> bool:
        self.plan.append(Planned("write", f"what {path} holds, where it belongs"))
        return True

    def symlink(self, path: Path, target: str) -> bool:
        self.plan.append(Planned("link", f"{path} -> {target}"))
        return True

    def run(
        self, argv: Argv, *, timeout_s: float = 300, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult:
        shown = shown_argv(argv)
        self.plan.append(Planned("run", " ".join(shown)))
        return CommandResult(shown, 0, deferred=True)

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
        plain = url.partition("?")[0]
        found = self._read_object(plain, tls, headers=headers, timeout_s=timeout_s) if method == "PATCH" else None
        wanted = json.loads(body) if body else {}
        if found is not None and isinstance(wanted, dict) and covers(found, wanted):
            return HttpResponse(200, json.dumps(found).encode(), deferred=True)  # nothing would change
        before = dump_yaml(pick_like(found, wanted)).encode() if found is not None else b""
        is_secret = isinstance(wanted, dict) and wanted.get("kind") == "Secret"
        diff = (
            ""
            if is_secret
            else _diff(Path(urlsplit(plain).path), before, after=dump_yaml(wanted).encode() if wanted else b"")
        )
        self.plan.append(Planned("send", shown_request(method, url), diff))
        if method in ("PATCH", "PUT"):
            self._objects[plain] = body
        return HttpResponse(200, body, deferred=True)

    def _read_object(
        self, url: str, tls: Optional[Tls], *, headers: Optional[Mapping[str, str]], timeout_s: float
    ) -> Optional[dict[str, Any]]:
        """The object as planned, or as it is in the cluster; None if there is no such object or no cluster."""
        look = {name: value for name, value in (headers or {}).items() if name != "Content-Type"}
        try:
            answer = self.http_get(url, tls=tls, headers=look, timeout_s=timeout_s)
            return parse_json_object(answer.body, "it") if answer.status == 200 else None
        except (Unreachable, ValueError):
            return None


def _diff(path: Path, before: bytes, *, after: bytes) -> str:
    """The unified diff. Secrets are redacted before the two are compared."""
    if any(mark in text for mark in _SECRET_MARKS for text in (before, after)):
        return ""
    try:
        old, new = redact(before.decode()).splitlines(), redact(after.decode()).splitlines()
    except UnicodeDecodeError:
        return ""
    if len(new) + len(old) > 2000:
        return ""
    lines = difflib.unified_diff(old, new, f"{path} (now)" if before else "/dev/null", str(path), lineterm="")
    return "\n".join(lines)
