"""Members of etcd behind a fake control plane: sizes, alarms, revisions, a leader. cp1 is the machine itself, at 10.0.0.11."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from kubeup.machine.http import AnyTls, HttpResponse, Unreachable
from tests.fake_control_plane import DATA, ControlPlane, make_control_plane

MIB = 1 << 20


@dataclass
class Member:
    """size, in_use: of its file, in bytes. broken: what a status says instead of serving."""

    name: str
    size: int = 100 * MIB
    in_use: int = 20 * MIB
    is_up: bool = True
    is_learner: bool = False
    comes_back: bool = True
    """Whether it serves again after it has defragmented."""


@dataclass
class EtcdPlane(ControlPlane):
    """of_etcd: index -> member; the address of index 1 is 10.0.0.11. asked: the changes, as (member, verb, body)."""

    of_etcd: dict[int, Member] = field(default_factory=dict)
    leads: int = 1
    quota: int = 0
    revision: int = 5000
    floor: int = 4000
    compacted: int = 3000
    alarms: list[tuple[str, str]] = field(default_factory=list)
    """(member ID, kind)"""
    asked: list[tuple[str, str, Any]] = field(default_factory=list)

    def _at(self, url: str) -> tuple[int, str]:
        address, _, verb = url.partition("://")[2].partition("/v3/")
        return int(address.partition(":")[0].rpartition(".")[2]) - 10, verb

    def http_ask(self, url: str, body: bytes, **more: Any) -> HttpResponse:
        index, verb = self._at(url)
        if index not in self.of_etcd or not self.of_etcd[index].is_up:
            raise Unreachable(url, "refused", text="connection refused")
        return _json(getattr(self, f"_look_{verb.replace('/', '_')}")(self.of_etcd[index]))

    def _look_cluster_member_list(self, _: Member) -> Any:
        return {
            "members": [
                {
                    "ID": str(index), "name": one.name, "isLearner": one.is_learner,
                    "peerURLs": [f"https://10.0.0.{index + 10}:2380"], "clientURLs": [f"https://10.0.0.{index + 10}:2379"],
                }
                for index, one in self.of_etcd.items()
            ]
        }  # fmt: skip

    def _look_maintenance_status(self, one: Member) -> Any:
        found: dict[str, Any] = {
            "raftAppliedIndex": "900",
            "raftIndex": "900",
            "version": "3.6.6",
            "leader": str(self.leads),
        }
        found.update(dbSize=str(one.size), dbSizeInUse=str(one.in_use))
        if self.quota:
            found["dbSizeQuota"] = str(self.quota)
        return {**found, "errors": [f"memberID:{key} alarm:{kind} " for key, kind in self.alarms]}

    def _look_maintenance_alarm(self, _: Member) -> Any:
        return {"alarms": [{"memberID": key, "alarm": kind} for key, kind in self.alarms]}

    def _look_kv_range(self, _: Member) -> Any:
        rows = [{"mod_revision": str(self.floor)}] if self.floor else []
        return {"header": {"revision": str(self.revision)}, "kvs": rows}

    def http_send(self, method: str, url: str, *, body: bytes = b"", **more: Any) -> HttpResponse:
        if "/v3/" not in url:
            return super().http_send(method, url, body=body, **more)
        index, verb = self._at(url)
        if index not in self.of_etcd or not self.of_etcd[index].is_up:
            raise Unreachable(url, "refused", text="connection refused")
        one, given = self.of_etcd[index], json.loads(body)
        self.asked.append((one.name, verb.rpartition("/")[2], given))
        if verb == "kv/compaction":
            if int(given["revision"]) <= self.compacted:
                return HttpResponse(400, b'{"message": "etcdserver: mvcc: required revision has been compacted"}')
            self.compacted = int(given["revision"])
        elif verb == "maintenance/defragment":
            one.size, one.is_up = one.in_use, one.comes_back
        elif verb == "maintenance/alarm":
            self.alarms.remove((given["memberID"], given["alarm"]))
        elif verb == "maintenance/transfer-leadership":
            assert index == self.leads, "only the leader hands over"
            self.leads = int(given["targetID"])
        return _json({})

    def done(self) -> list[str]:
        """The changes, in words: `cp2 defragment`."""
        return [f"{name} {verb}" for name, verb, _ in self.asked]


@dataclass
class LonelyPlane(EtcdPlane):
    """cp1 runs its etcd as a static pod, and the others are off. Started with --force-new-cluster, it forgets them."""

    listens: frozenset[str] = frozenset()
    """host:port of the other machines that take connections."""
    booting: frozenset[str] = frozenset()
    """host:port that refuse connections: the machine is alive."""
    has_been_restarted: bool = False
    """Whether it answers nobody until it has a quorum."""
    fails_when_forced: bool = False

    def settle(self) -> None:
        super().settle()
        self.of_etcd[1].is_up = bool(self.running("etcd")) and not (self.has_been_restarted and len(self.of_etcd) > 1)
        for one in self.running("etcd"):
            if "--force-new-cluster" in one.argv and not self.fails_when_forced:
                self.of_etcd = {1: self.of_etcd[1]}
                self.files[DATA] = b"alone"
            elif "--force-new-cluster" in one.argv:
                one.mood = "exits"
                one.stops_at = min(one.stops_at or 1e9, self.ticks + 0.4)
            if self.files.get(DATA) == b"of the former etcd" and len(self.of_etcd) == 1:
                self.of_etcd = {1: self.of_etcd[1], 2: Member("cp2", is_up=False), 3: Member("cp3", is_up=False)}

    def _blame(self, what: str) -> None:
        """Without a quorum the API server serves nobody."""
        if len(self.of_etcd) == 1 or what != "etcd stopped under a running API server":
            super()._blame(what)

    def serves(self, name: str) -> bool:
        if name != "etcd":
            return super().serves(name)
        living = sum(one.is_up for index, one in self.of_etcd.items() if index != 1) + bool(self.running("etcd"))
        return bool(self.running("etcd")) and 2 * living > len(self.of_etcd)

    def http_ask(self, url: str, body: bytes, **more: Any) -> HttpResponse:
        if url.endswith("kv/range") and not self.serves("etcd"):
            raise Unreachable(url, "timeout", text="timed out")
        return super().http_ask(url, body, **more)

    def http_get(self, url: str, *, tls: Optional[AnyTls] = None, **more: Any) -> HttpResponse:
        place = url.partition("://")[2].partition("/")[0]
        if place.startswith(("10.0.0.12:", "10.0.0.13:")):
            reason = "tls" if place in self.listens else "refused" if place in self.booting else "timeout"
            raise Unreachable(url, reason, text="it is so")
        return super().http_get(url, tls=tls, **more)

    def move_file(self, source: Path, path: Path) -> None:
        if not self.is_dir(source):
            super().move_file(source, path)
            return
        begin = f"{source}/"
        self.files = {
            (f"{path}/{name[len(begin) :]}" if name.startswith(begin) else name): data
            for name, data in self.files.items()
        }
        self.dirs = {str(path) if name == str(source) else name for name in self.dirs}
        self.changes.append(f"move {path}")
        self._changed(self.changes[-1])

    def _command(self, words: tuple[str, ...], *, is_change: bool) -> Optional[str]:
        if words[0] == "cp":
            *sources, folder = [word for word in words[1:] if not word.startswith("-")]
            for source in sources:
                for name, data in list(self.files.items()):
                    if name == source or name.startswith(f"{source}/"):
                        self.files[f"{folder}/{source.rpartition('/')[2]}{name[len(source) :]}"] = data
            return ""
        return "" if words[0] == "sync" else super()._command(words, is_change=is_change)


def make_lonely_plane(**fields: Any) -> LonelyPlane:
    host = LonelyPlane()
    host.__dict__.update(make_control_plane().__dict__)
    host.files["/var/lib/etcd/member/wal/1.wal"] = b"log"
    host.of_etcd = {1: Member("cp1"), 2: Member("cp2", is_up=False), 3: Member("cp3", is_up=False)}
    for name, value in fields.items():
        setattr(host, name, value)
    host.sleep(1)
    host.violations.clear()
    host.changes.clear()
    return host


def _json(value: object) -> HttpResponse:
    return HttpResponse(200, json.dumps(value).encode())


def make_etcd_plane(size: int = 3, **fields: Any) -> EtcdPlane:
    host = EtcdPlane()
    host.__dict__.update(make_control_plane().__dict__)
    host.of_etcd = {index: Member(f"cp{index}") for index in range(1, size + 1)}
    for name, value in fields.items():
        setattr(host, name, value)
    return host
