"""A machine made of a dict: files, scripted commands and answers, recorded changes. Tests mock nothing else.

A look that no test scripted finds nothing; a change that no test scripted fails the test, so that a misspelled command
cannot count as done.
"""

from __future__ import annotations

import contextlib
import datetime
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn, Optional, Union

import pytest

from kubeup.machine.host import Argv, CommandResult, FileStat, shown_argv
from kubeup.machine.http import AnyTls, HttpResponse, HttpStream, Tls, Unreachable

Answer = Union[str, CommandResult, Callable[[tuple[str, ...]], CommandResult]]
KUBELET_STARTS = frozenset(
    f"systemctl {words}" for words in ("stop kubelet", "daemon-reload", "enable --no-reload kubelet", "restart kubelet")
)
"""What starting the kubelet with new files takes."""


def refuse_unscripted(change: str, how: str) -> NoReturn:
    """Fail the test. kb cannot take it for an error of the machine: pytest's failure is no Exception."""
    __tracebackhide__ = True
    pytest.fail(f"kb makes a change that the test does not script: {change!r}. If it is meant: {how}")


TOUCH = ("touch", "-c")
"""A change of no content, which succeeds."""


def find_answer(answers: Mapping[str, Answer], argv: tuple[str, ...], *, is_change: bool) -> Optional[CommandResult]:
    """The answer of the longest prefix of the words. What a prefix says as data holds for a look at anything below it,
    and not for a change: that has to be named word for word, or judged by a function."""
    for length in range(len(argv), 0, -1):
        answer = answers.get(" ".join(argv[:length]))
        if callable(answer):
            return answer(argv)
        if answer is not None and not (is_change and length < len(argv)):
            return CommandResult(argv, 0, answer) if isinstance(answer, str) else answer
    return None


@dataclass
class FakeHost:
    """files: path -> bytes; dirs: paths; programs: names that `which` finds; answers: command prefix -> output;
    accepts: whole commands that succeed.

    A look is answered by the longest prefix of its words in `answers` ("crictl version"); otherwise it is missing
    (127). A change is answered by the whole command in `answers` or `accepts`, or by a function in `answers`; otherwise
    the test fails. A URL is answered by `urls[url]`; otherwise nothing listens there.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    dirs: set[str] = field(default_factory=set)
    programs: set[str] = field(default_factory=set)
    answers: dict[str, Answer] = field(default_factory=dict)
    accepts: Collection[str] = frozenset()
    urls: dict[str, HttpResponse] = field(default_factory=dict)
    mounts: list[str] = field(default_factory=list)
    ports: dict[int, str] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    datagrams: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    served: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    host_name: str = "node1"
    cpus: int = 4
    root_user: bool = True
    free: int = 100 * 2**30
    clock: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    ticks: float = 0.0
    is_live: bool = True
    mode: str = "live"
    mtimes: dict[str, float] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    """Every change, in order: "write /a/b", "run systemctl restart kubelet", "POST https://..."."""
    links: dict[str, str] = field(default_factory=dict)
    stdins: list[str] = field(default_factory=list)
    """What looks were given on stdin, in order."""

    def exists(self, path: Path) -> bool:
        return str(path) in self.files or self.is_dir(path)

    def is_dir(self, path: Path) -> bool:
        prefix = str(path).rstrip("/") + "/"
        return str(path) in self.dirs or any(name.startswith(prefix) for name in (*self.files, *self.dirs))

    def stat(self, path: Path) -> Optional[FileStat]:
        if str(path) in self.files:
            mode, mtime = self.modes.get(str(path), 0o644), self.mtimes.get(str(path), 0.0)
            return FileStat(mode, 0, 0, len(self.files[str(path)]), False, False, mtime, ctime=mtime)
        if not self.is_dir(path):
            return None
        return FileStat(self.modes.get(str(path), 0o755), 0, 0, 0, True, False, self.mtimes.get(str(path), 0.0))

    def read_bytes(self, path: Path) -> bytes:
        from kubeup.errors import HostError

        if str(path) not in self.files:
            raise HostError(f"cannot read {path}", cause="No such file", remedy="look", code="file-unreadable")
        return self.files[str(path)]

    def read_text(self, path: Path) -> str:
        return self.read_bytes(path).decode()

    def open_read(self, path: Path, *, follows: bool = True) -> BinaryIO:
        return io.BytesIO(self.read_bytes(path))

    def list_dir(self, path: Path) -> list[str]:
        prefix = str(path).rstrip("/") + "/"
        found = {name[len(prefix) :].split("/")[0] for name in (*self.files, *self.dirs) if name.startswith(prefix)}
        return sorted(name for name in found if name)

    def read_link(self, path: Path) -> Optional[str]:
        return self.links.get(str(path))

    def real_path(self, path: Path) -> Path:
        return path

    def free_bytes(self, path: Path) -> int:
        return self.free

    def mounts_below(self, path: Path) -> list[Path]:
        below = [Path(mount) for mount in self.mounts if mount.startswith(f"{path}/")]
        return sorted(below, key=lambda place: len(place.parts), reverse=True)

    def which(self, program: str) -> Optional[Path]:
        return Path("/usr/bin") / program if program in self.programs else None

    def query(
        self, argv: Argv, *, timeout_s: float = 30, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult:
        shown = shown_argv(argv)
        self.stdins += [stdin] if stdin else []
        found = find_answer(self.answers, shown, is_change=False)
        return found or CommandResult(shown, 127, stderr=f"{shown[0]}: not found", missing=True)

    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = 4 << 20,
    ) -> HttpResponse:
        if url not in self.urls:
            raise Unreachable(url, "refused", text="connection refused")
        return self.urls[url]

    def http_ask(
        self,
        url: str,
        body: bytes,
        *,
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
    ) -> HttpResponse:
        if url not in self.urls:
            raise Unreachable(url, "refused", text="connection refused")
        return self.urls[url]

    @contextlib.contextmanager
    def http_open(
        self,
        url: str,
        *,
        body: bytes = b"",
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 30,
    ) -> Iterator[HttpStream]:
        raise Unreachable(url, "refused", text="a FakeHost streams nothing")
        yield  # pragma: no cover

    def port_holder(self, port: int, address: str = "") -> Optional[str]:
        return self.ports.get(port)

    def resolve(self, name: str) -> list[str]:
        return self.names.get(name, [])

    def udp_exchange(self, address: str, port: int, *, payload: bytes, timeout_s: float = 2) -> Optional[bytes]:
        answer = self.datagrams.get(f"{address}:{port}")
        return answer(payload) if answer else None

    def served_cert(self, address: str, port: int, *, timeout_s: float = 3) -> Optional[str]:
        return self.served.get(f"{address}:{port}")

    def hostname(self) -> str:
        return self.host_name

    def environ(self) -> Mapping[str, str]:
        return self.env

    def is_root_user(self) -> bool:
        return self.root_user

    def cpu_count(self) -> int:
        return self.cpus

    def now(self) -> datetime.datetime:
        return self.clock

    def monotonic(self) -> float:
        return self.ticks

    def sleep(self, seconds: float) -> None:
        self.ticks += seconds
        self.clock += datetime.timedelta(seconds=seconds)

    def write_file(
        self,
        path: Path,
        data: Union[bytes, str],
        *,
        mode: int = 0o644,
        owner: Optional[tuple[int, int]] = None,
        keeps: bool = False,
    ) -> bool:
        wanted = data.encode(errors="surrogateescape") if isinstance(data, str) else data
        mode = self.modes.get(str(path), mode) if keeps else mode
        if self.files.get(str(path)) == wanted and self.modes.get(str(path)) == mode:
            return False
        self.files[str(path)] = wanted
        self.modes[str(path)] = mode
        self.changes.append(f"write {path}")
        return True

    def write_stream(self, path: Path, chunks: Iterable[bytes], *, mode: int = 0o644) -> None:
        self.write_file(path, b"".join(chunks), mode=mode)

    def move_file(self, source: Path, path: Path) -> None:
        self.files[str(path)] = self.files.pop(str(source))
        self.modes[str(path)] = self.modes.get(str(source), 0o644)
        self.changes.append(f"move {path}")

    def make_dir(self, path: Path, *, mode: int = 0o755) -> bool:
        if self.is_dir(path):
            return False
        self.dirs.add(str(path))
        self.modes[str(path)] = mode
        self.changes.append(f"mkdir {path}")
        return True

    def remove(self, path: Path) -> bool:
        if str(path) in self.files:
            del self.files[str(path)]
        elif str(path) in self.dirs:
            self.dirs.remove(str(path))
        else:
            return False
        self.changes.append(f"remove {path}")
        return True

    def copy_attributes(self, source: Path, path: Path) -> None:
        pass

    def put_back(self, path: Path) -> bool:
        return False

    def remove_tree(self, path: Path) -> bool:
        if not self.is_dir(path):
            return False
        self.files = {name: data for name, data in self.files.items() if not name.startswith(f"{path}/")}
        self.dirs = {name for name in self.dirs if name != str(path) and not name.startswith(f"{path}/")}
        self.changes.append(f"remove {path}")
        return True

    def symlink(self, path: Path, target: str) -> bool:
        return self.write_file(path, f"-> {target}")

    def run(
        self, argv: Argv, *, timeout_s: float = 300, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult:
        shown = shown_argv(argv)
        command = " ".join(shown)
        self.changes.append(f"run {command}")
        found = find_answer(self.answers, shown, is_change=True)
        if found is None and command not in self.accepts and shown[:2] != TOUCH:
            refuse_unscripted(command, "name it in FakeHost.accepts, or give it an answer in FakeHost.answers")
        return found or CommandResult(shown, 0)

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
        self.changes.append(f"{method} {url}")
        if f"{method} {url}" not in self.urls:
            refuse_unscripted(f"{method} {url}", "give it an answer in FakeHost.urls")
        return self.urls[f"{method} {url}"]
