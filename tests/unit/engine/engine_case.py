"""A machine in a folder, and a program that reads files, for the tests of plans."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from kubeup.cluster.api import Api
from kubeup.engine.plan import Ground
from kubeup.engine.run import NoPromises, Promises
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.report import Report


@dataclass
class Bench:
    """What items work on: no cluster unless one is given."""

    host: Host
    paths: Paths = field(default_factory=Paths)
    report: Report = field(default_factory=lambda: Report(io.StringIO(), verbosity=1))
    cluster: Optional[Api] = None
    owned_paths: frozenset[str] = frozenset()
    promises: Promises = field(default_factory=NoPromises)

    @property
    def api(self) -> Api:
        assert self.cluster is not None, "this plan asks a cluster"
        return self.cluster

    @property
    def told(self) -> str:
        stream = self.report.stream
        assert isinstance(stream, io.StringIO)
        return stream.getvalue()


@dataclass
class Program:
    """A guard that remembers what it was told, and with which contents it was started."""

    files: tuple[Path, ...]
    is_up: bool = False
    calls: list[str] = field(default_factory=list)
    read: dict[str, str] = field(default_factory=dict)
    name: str = "program"
    places: tuple[Path, ...] = ()

    def is_running(self, run: Ground) -> bool:
        return self.is_up

    def stop(self, run: Ground) -> None:
        self.calls.append("stop")
        self.is_up = False

    def start(self, run: Ground) -> None:
        self.calls.append("start")
        self.read = {str(path): run.host.read_text(path) for path in self.files}
        self.is_up = True

    def settle(self, run: Ground) -> None:
        self.calls.append("settle")
