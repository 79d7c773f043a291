"""A real etcd of some members on loopback, without TLS: $KB_E2E_BIN/<minor>/etcd."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from kubeup.cluster import etcd
from kubeup.machine.http import HttpResponse, Tls
from kubeup.machine.local_host import LocalHost
from kubeup.releases import RELEASES

BIN = Path(os.environ.get("KB_E2E_BIN", "/nonexistent"))
PROGRAM = next((path for minor in sorted(RELEASES, reverse=True) if (path := BIN / f"1.{minor}/etcd").exists()), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PatientHost(LocalHost):
    """A machine on which every second that kb waits at most lasts ten: for tests of what happens, not of how long it takes, on a machine
    where something else has the processors."""

    TIMES = 10

    def monotonic(self) -> float:
        return super().monotonic() / self.TIMES

    def http_ask(self, url: str, body: bytes, *, timeout_s: float = 5, **more: Any) -> HttpResponse:
        return super().http_ask(url, body, timeout_s=timeout_s * self.TIMES, **more)

    def http_send(self, method: str, url: str, *, timeout_s: float = 5, **more: Any) -> HttpResponse:
        return super().http_send(method, url, timeout_s=timeout_s * self.TIMES, **more)


@dataclass
class One:
    """A member: its name, ports and data folder, and its process if it runs."""

    name: str
    data_dir: Path
    client_port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    process: Optional[subprocess.Popen[bytes]] = None
    more: tuple[str, ...] = ()
    """More flags."""

    @property
    def client_url(self) -> str:
        return f"http://127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    def start(self, rows: Sequence[tuple[str, str]], *, state: str = "new") -> None:
        """Start it with these members (name, peer URL), and do not wait."""
        assert PROGRAM is not None
        flags = {
            "name": self.name,
            "data-dir": self.data_dir,
            "listen-client-urls": self.client_url,
            "advertise-client-urls": self.client_url,
            "listen-peer-urls": self.peer_url,
            "initial-advertise-peer-urls": self.peer_url,
            "initial-cluster": ",".join(f"{name}={url}" for name, url in rows),
            "initial-cluster-state": state,
            "log-level": "error",
        }
        argv = [str(PROGRAM), *(f"--{name}={value}" for name, value in flags.items()), *self.more]
        with self.data_dir.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

    def stop(self, *, kill: bool = False) -> None:
        if self.process is None:
            return
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(20)
        self.process = None

    def call(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.client_url}/v3/{verb}", data, timeout=60) as answer:
            return dict(json.loads(answer.read()))

    def put(self, key: str, value: str) -> None:
        self.call("kv/put", {"key": _coded(key), "value": _coded(value)})

    def read(self, key: str) -> str:
        found = self.call("kv/range", {"key": _coded(key)}).get("kvs") or [{}]
        return base64.b64decode(found[0].get("value", "")).decode()


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Cluster:
    """Members named cp1, cp2, ... that run, and serve."""

    def __init__(self, folder: Path, size: int, *, more: tuple[str, ...] = ()) -> None:
        self.members = [One(f"cp{n}", folder / f"cp{n}", more=more) for n in range(1, size + 1)]
        self.rows = [(one.name, one.peer_url) for one in self.members]
        for one in self.members:
            one.start(self.rows)
        for one in self.members:
            self.wait_for(one)

    def client(self, *ones: One, host: Optional[LocalHost] = None) -> etcd.Etcd:
        return etcd.Etcd(host or LocalHost(), [one.client_url for one in ones or self.members], tls=Tls())

    def row_of(self, one: One) -> etcd.Member:
        return next(row for row in self.client().list_members(is_sure=False) if row.name == one.name)

    def wait_for(self, one: One, *, timeout_s: float = 120) -> None:
        """Wait until it answers a read that needs a quorum."""
        deadline = time.monotonic() + timeout_s
        while (trouble := self.client(one).probe_read(one.client_url)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not trouble, f"{trouble}: {one.data_dir.with_suffix('.log').read_text()[-2000:]}"

    def leader(self) -> One:
        rows = {row.member_id: row.name for row in self.client().list_members(is_sure=False)}
        living = next(one for one in self.members if one.process)
        name = rows[self.client().read_status(living.client_url).leader]
        return next(one for one in self.members if one.name == name)

    def stop(self) -> None:
        for one in self.members:
            one.stop(kill=True)
