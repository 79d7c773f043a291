"""Where scheduled backups go: a folder, or what keeps objects by the field's own programs (rclone, aws, mc).

A backup is streamed to the program, which is ended if the backup breaks off: what it has by then does not become an object. Older ones are
removed only by their names, and only once a new one is whole. The programs have their credentials in their own files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from kubeup.errors import HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine.filters import ProgramFailed
from kubeup.machine.local_host import LocalHost
from kubeup.node.crictl import last_words

_TIMEOUT_S = 120


class Destination(Protocol):
    """names: the backups there, of all nodes. Raises HostError: destination-failed, and those of write_output."""

    def place_of(self, name: str) -> str: ...

    def names(self) -> list[str]: ...

    def write(self, name: str, chunks: Iterable[bytes]) -> None: ...

    def remove(self, name: str) -> None: ...


@frozen
class Folder:
    """A folder of this machine, perhaps a mounted one."""

    local: LocalHost
    path: Path

    def place_of(self, name: str) -> str:
        return str(self.path / name)

    def names(self) -> list[str]:
        return self.local.list_dir(self.path)

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        self.local.write_output(self.place_of(name), chunks, is_secret=True, is_steady=True)

    def remove(self, name: str) -> None:
        self.local.remove(self.path / name)


@frozen
class Objects:
    """What a program keeps. url: with a slash at its end."""

    local: LocalHost
    program: str
    url: str

    def place_of(self, name: str) -> str:
        return self.url + name

    def names(self) -> list[str]:
        words = {"rclone": ("lsf", "--files-only"), "aws": ("s3", "ls"), "mc": ("ls", "--json")}[self.program]
        answer = self.local.query([self.program, *words, self.url], timeout_s=_TIMEOUT_S)
        if not answer.ok:
            # aws and rclone say so of a folder that holds nothing yet
            if self.program == "aws" and not answer.stderr.strip():
                return []
            if "directory not found" in answer.stderr:
                return []
            raise _failed(f"{self.program} cannot list {self.url}", last_words(answer.stderr))
        lines = answer.stdout.splitlines()
        if self.program == "mc":
            return [str(as_table(line).get("key", "")) for line in lines]
        return [line.split()[-1] for line in lines if line.split()]

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        place = self.place_of(name)
        argv = {
            "rclone": ["rclone", "rcat", place],
            "aws": ["aws", "s3", "cp", "--only-show-errors", "-", place],
            "mc": ["mc", "--quiet", "pipe", place],
        }[self.program]
        try:
            for _ in self.local.filter(argv, chunks):
                pass
        except ProgramFailed as error:
            raise _failed(f"{self.program} cannot write {place}", error.cause) from error

    def remove(self, name: str) -> None:
        words = {"rclone": ("deletefile",), "aws": ("s3", "rm", "--only-show-errors"), "mc": ("rm", "--quiet")}[
            self.program
        ]
        answer = self.local.query([self.program, *words, self.place_of(name)], timeout_s=_TIMEOUT_S)
        if not answer.ok:
            raise _failed(f"{self.program} cannot remove {self.place_of(name)}", last_words(answer.stderr))


def find_destination(local: LocalHost, to: str) -> Destination:
    """The destination of --to DIR, s3://BUCKET/PATH, rclone:REMOTE:PATH or mc:ALIAS/BUCKET. Raises UsageError (usage); HostError
    (destination-missing) if its program or folder is not there."""
    scheme, _, rest = to.partition(":")
    if to.startswith("/"):
        if not local.is_dir(Path(to)):
            raise HostError(
                f"backups cannot go to {to}",
                cause="there is no such folder; if a disk is to be mounted there, it is not",
                remedy=f"make it: mkdir -p -m 0700 {to}",
                code="destination-missing",
            )
        return Folder(local, Path(to))
    programs: Mapping[str, tuple[str, ...]] = {"s3": ("aws",), "rclone": ("rclone",), "mc": ("mc",)}
    if scheme not in programs or not rest.strip("/"):
        raise UsageError(
            f"--to {to}",
            cause="it is neither a folder (from /) nor s3://BUCKET/PATH, rclone:REMOTE:PATH or mc:ALIAS/BUCKET/PATH",
            remedy="for example --to /backup, or --to rclone:vault:cluster1",
            code="usage",
        )
    program = programs[scheme][0]
    if not local.which(program):
        raise HostError(
            f"there is no {program} on this machine",
            cause=f"it is what brings backups to {to}",
            remedy=f"install and configure {program}; or name a folder: --to DIR",
            code="destination-missing",
        )
    if program == "mc" and "Midnight Commander" in local.query(["mc", "--version"], timeout_s=_TIMEOUT_S).stdout:
        raise HostError(
            f"the mc on this machine does not bring backups to {to}",
            cause="it is Midnight Commander, not MinIO's client of the same name",
            remedy="put MinIO's mc before it in root's PATH (/usr/local/bin); or use rclone: --to rclone:REMOTE:PATH",
            code="destination-missing",
        )
    url = (to if scheme == "s3" else rest).rstrip("/")
    return Objects(local, program, url if url.endswith(":") else f"{url}/")


def _failed(what: str, cause: str) -> HostError:
    return HostError(what, cause=cause, remedy="try it by hand, as root", code="destination-failed")
