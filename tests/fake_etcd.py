"""Members of etcd behind a fake control plane: sizes, alarms, revisions, a leader. cp1 is the machine itself, at 10.0.0.11."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from kubeup.machine.http import HttpResponse, Tls, Unreachable
from tests.fake_control_plane import ControlPlane, make_control_plane

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

    def http_send(
        self, method: str, url: str, *, body: bytes = b"", tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None, timeout_s: float = 10,
    ) -> HttpResponse:  # fmt: skip
        if "/v3/" not in url:
            return super().http_send(method, url, body=body, tls=tls, headers=headers, timeout_s=timeout_s)
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


def _json(value: object) -> HttpResponse:
    return HttpResponse(200, json.dumps(value).encode())


def make_etcd_plane(size: int = 3, **fields: Any) -> EtcdPlane:
    host = EtcdPlane()
    host.__dict__.update(make_control_plane().__dict__)
    host.of_etcd = {index: Member(f"cp{index}") for index in range(1, size + 1)}
    for name, value in fields.items():
        setattr(host, name, value)
    return host
