"""LocalHost: this machine, or a folder that represents one.

`subprocess`, `socket`, `open` and `sleep` are used only in this folder, and in kb's daemons (mirror, keepers).
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Optional

from kubeup import moments
from kubeup.errors import HostError
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Argv, CommandResult, shown_argv
from kubeup.machine.local_files import LocalFiles
from kubeup.machine.local_network import LocalNetwork
from kubeup.secret import Secret

with lazily:
    from kubeup.machine import filters


class LocalHost(LocalFiles, LocalNetwork):
    """This machine, or a folder that represents one (`root`). With a folder, files are written below it, and whatever would change
    the running system is only recorded in `deferred`."""

    def __init__(self, root: Path = Path("/")) -> None:
        LocalFiles.__init__(self, root)
        LocalNetwork.__init__(self)
        self.mode = "live" if self.is_live else "root"
        self.deferred: list[str] = []

    def which(self, program: str) -> Optional[Path]:
        """The path of `program`, from PATH and the sbin folders, which are missing in PATH after a plain `su`."""
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
        """Run a program that changes nothing. Never raises: the code is 127 for a missing program and 124 for a timeout. Below
        another root nothing is run, because this machine is not the one that is being set up."""
        if not self.is_live:
            return CommandResult(shown_argv(argv), 127, missing=True, deferred=True)
        return _execute(argv, timeout_s, env=env, stdin=stdin)

    def hostname(self) -> str:
        return socket.gethostname()

    def environ(self) -> Mapping[str, str]:
        return dict(os.environ)

    def is_root_user(self) -> bool:
        return os.geteuid() == 0

    def cpu_count(self) -> int:
        """The number of CPUs that this process may use."""
        return len(os.sched_getaffinity(0))

    def now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.timezone.utc)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def run(
        self, argv: Argv, *, timeout_s: float = 300, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult:
        """Run a program that changes the machine. Never raises, like query. Below another root it is deferred."""
        if not self.is_live:
            shown = shown_argv(argv)
            self.deferred.append(" ".join(shown))
            return CommandResult(shown, 0, deferred=True)
        return _execute(argv, timeout_s, env=env, stdin=stdin)

    def give_way(self) -> None:
        """Have this process, and the programs that it starts from here on, give way to others on this machine."""
        os.nice(10)

    def filter(self, argv: Argv, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass a stream through a program that changes nothing: what it writes, in pieces. An error of `chunks` is raised here. Raises
        ProgramFailed, a HostError (program-failed)."""
        return filters.filter_through(_real_argv(argv), chunks, env=_environment())

    @contextlib.contextmanager
    def lock(self, path: Path, holder: str) -> Iterator[None]:
        """Hold the lock file `path`, for one process at a time. A second process reports `holder` ("kb init (pid 812, ...)").

        It is a kernel lock, which ends with the process, so a killed kb leaves none behind. Raises HostError (locked), which says
        who has held the lock since when.
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
            # on a full disk the lock still works; only its holder's name is missing
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                text = f"{holder} (pid {os.getpid()}, since {moments.show(self.now())})"
                os.pwrite(descriptor, text.encode(), 0)
            yield
        finally:
            os.close(descriptor)


def _real_argv(argv: Argv) -> list[str]:
    return [part.reveal() if isinstance(part, Secret) else str(part) for part in argv]


def _environment(more: Optional[Mapping[str, str]] = None) -> dict[str, str]:
    environment = {**os.environ, "LC_ALL": "C", **(more or {})}
    environment["PATH"] = environment.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return environment


def _execute(argv: Argv, timeout_s: float, *, env: Optional[Mapping[str, str]], stdin: str) -> CommandResult:
    shown = shown_argv(argv)
    try:
        running = subprocess.Popen(
            _real_argv(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            env=_environment(env), start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        return CommandResult(shown, 127, stderr=f"{shown[0]}: not found in PATH", missing=True)
    except OSError as error:
        return CommandResult(shown, 126, stderr=f"{shown[0]}: {error.strerror}")
    except ValueError as error:  # a NUL or half a character in an argument
        return CommandResult(shown, 126, stderr=f"{shown[0]}: {error}")
    with running:
        try:
            stdout, stderr = running.communicate(stdin, timeout_s)
        except BaseException as error:
            _kill_all(running)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return CommandResult(shown, 124, stderr=f"{shown[0]}: did not end within {timeout_s:.0f} s")
    return CommandResult(shown, running.returncode, stdout, stderr)


def _kill_all(running: subprocess.Popen[str]) -> None:
    """End a program with those that it started: a shell's own program would go on, and do later what kb has given up on by then."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
