"""A Kubernetes API made of a dict, as far as kb talks to one: get, list, create, replace, patch, apply, delete.

It knows who owns which field (tests/fake_fields.py), so that an apply takes away what its manager applied before, and tells
conflicts. The resourceVersion changes with content and owners only. Defaulting and admission are left out, and managedFields
are kept beside the objects: a get of one object shows them. `ClusterHost` is a folder (LocalHost below a root) that is joined to it: files
are real, the programs and the network are scripted.
"""

from __future__ import annotations

import copy
import datetime
import json
import struct
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from kubeup.machine.host import Argv, CommandResult, shown_argv
from kubeup.machine.http import AnyTls, HttpResponse, Tls, Unreachable
from kubeup.machine.local_host import LocalHost
from tests import fake_fields
from tests.fake_fields import BEFORE, Owners
from tests.fake_host import KUBELET_STARTS, TOUCH, Answer, find_answer, refuse_unscripted

Object = dict[str, Any]


@dataclass
class FakeCluster:
    """objects: path -> object. `on_change` is called with (method, path) after each change."""

    objects: dict[str, Object] = field(default_factory=dict)
    version: int = 0
    requests: list[str] = field(default_factory=list)
    is_up: bool = True
    memory: Optional[Path] = None
    """A file that keeps the objects while processes come and go, as etcd does."""
    owners: dict[str, Owners] = field(default_factory=dict)
    """path -> who owns which of its fields."""
    versions: dict[str, str] = field(default_factory=dict)
    """host:port of an API server -> the version that it reports."""
    admits: Callable[[Object], HttpResponse] = field(default=lambda value: _ok(value))
    """What admission answers to a dry run."""

    def __post_init__(self) -> None:
        if self.memory and self.memory.exists():
            self.objects, self.version, self.is_up, owners = json.loads(self.memory.read_text())
            self.owners = {
                path: {manager: {tuple(found) for found in fields} for manager, fields in managers.items()}
                for path, managers in owners.items()
            }

    def remember(self) -> None:
        if self.memory:
            fresh = self.memory.with_suffix(".new")
            fresh.write_text(json.dumps([self.objects, self.version, self.is_up, self.owners], default=sorted))
            fresh.rename(self.memory)

    def answer(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> HttpResponse:
        if not self.is_up:
            raise Unreachable(url, "refused", text="connection refused")
        parts = urllib.parse.urlsplit(url)
        path = urllib.parse.unquote(parts.path)
        self.requests.append(f"{method} {path}")
        if path in ("/livez", "/readyz", "/healthz"):
            return HttpResponse(200, b"ok")
        if path == "/version" and parts.netloc in self.versions:
            return _ok({"gitVersion": self.versions[parts.netloc]})
        if method == "GET":
            return self._get(path, urllib.parse.parse_qs(parts.query))
        if method == "DELETE":
            gone = self.objects.pop(path, None)
            self.owners.pop(path, None)
            self.remember()
            return _ok(gone) if gone else _status(404, "NotFound", f"{path} not found")
        value = json.loads(body)
        if path.startswith("/v3/"):  # etcd's gateway: the one member of a single node
            return _ok(
                {"members": [{"ID": "1", "name": "cp1", "peerURLs": [], "clientURLs": [url.partition("/v3/")[0]]}]}
            )
        if method == "POST" and path.endswith("reviews"):  # who asks is an admin, and so may ask for others
            return _ok({**value, "status": {"allowed": True}})
        if method == "POST":
            path = f"{path}/{value['metadata']['name']}"
            if "dryRun=All" in parts.query:
                return self.admits(value)
            if path in self.objects:
                return _status(409, "AlreadyExists", f"{path} already exists")
        return self._change(method, path, value, urllib.parse.parse_qs(parts.query), headers)

    def _change(
        self, method: str, path: str, value: Any, query: Mapping[str, list[str]], headers: Mapping[str, str]
    ) -> HttpResponse:
        before, kind = self.objects.get(path), headers.get("Content-Type", "")
        manager = query.get("fieldManager", [""])[0]
        stale = value.get("metadata", {}).get("resourceVersion") if isinstance(value, dict) else None
        if before is not None and stale not in (None, "", before["metadata"].get("resourceVersion")):
            return _status(409, "Conflict", f"{path}: the object has been modified")
        if method == "PATCH" and "apply-patch" in kind:
            if not manager:
                return _status(400, "BadRequest", "fieldManager is required for apply patch")
            owners = self._owners_of(path)
            try:
                made = fake_fields.apply(
                    before or {}, value, owners, manager=manager, force=query.get("force") == ["true"]
                )
            except fake_fields.Conflict as conflict:
                return _status(409, "Conflict", str(conflict))
            return self._keep(path, made, owners)
        if method == "PATCH" and "json-patch" in kind and before is not None:
            patched = _patch(before, value)
            refused = _status(422, "Invalid", f"{path}: the test of the patch failed")
            return refused if patched is None else self._store(path, patched, manager)
        if method == "PATCH" and "merge-patch" not in kind:
            return _status(415, "UnsupportedMediaType", f"this API takes no {kind!r}")
        if before is None and method != "POST":
            return _status(404, "NotFound", f"{path} not found")
        made = _merge(before, value) if method == "PATCH" else value
        return self._store(path, made, manager or headers.get("User-Agent", "unknown").partition("/")[0])

    def _owners_of(self, path: str) -> Owners:
        if path not in self.objects:
            return {}
        if path not in self.owners:
            return {BEFORE: set(fake_fields.lay_out(self.objects[path]))}
        return dict(self.owners[path])

    def _get(self, path: str, query: Mapping[str, list[str]]) -> HttpResponse:
        if path in self.objects:
            return _ok(self._show(path))
        if path in ("/api/v1/namespaces/kube-system", "/api/v1/namespaces/kube-public"):  # the API server makes them
            return _ok({"kind": "Namespace", "metadata": {"name": path.rpartition("/")[2]}})
        if path.rpartition("/")[2] not in _PLURALS:
            return _status(404, "NotFound", f"{path} not found")
        items = [obj for name, obj in self.objects.items() if name.rpartition("/")[0] == path]
        for pair in ",".join(query.get("labelSelector", [])).split(","):
            key, has_value, value = pair.partition("=")
            if key:
                labels = [item["metadata"].get("labels", {}) for item in items]
                items = [i for i, own in zip(items, labels) if key in own and (not has_value or own[key] == value)]
        for pair in ",".join(query.get("fieldSelector", [])).split(","):
            key, _, value = pair.partition("=")
            if key:
                items = [item for item in items if _dig(item, key) == value]
        return _ok({"kind": "List", "items": items})

    def _show(self, path: str) -> Object:
        """With the fields of those who wrote it, as the API server tells them."""
        shown = []
        for owner, fields in self.owners.get(path, {}).items():
            manager, _, operation = owner.rpartition(" ")
            shown.append({"manager": manager, "operation": operation, "fieldsV1": fake_fields.nest(fields)})
        obj = self.objects[path]
        return {**obj, "metadata": {**obj["metadata"], "managedFields": shown}} if shown else obj

    def _store(self, path: str, value: Object, manager: str = "kubelet") -> HttpResponse:
        """Write it as whoever is no applier does."""
        owners = self._owners_of(path)
        fake_fields.update(self.objects.get(path, {}), value, owners, manager=manager)
        return self._keep(path, value, owners)

    def _keep(self, path: str, value: Object, owners: Owners) -> HttpResponse:
        old, new = copy.deepcopy(self.objects.get(path)), copy.deepcopy(value)
        meta = new.setdefault("metadata", {})
        meta.pop("managedFields", None)
        owners = {manager: fields for manager, fields in owners.items() if fields}
        for name in ("annotations", "labels"):
            if not meta.get(name, True):
                del meta[name]  # an object of the server's has no empty maps there
        if old is not None:
            meta["resourceVersion"] = old["metadata"].get("resourceVersion", "0")
            meta["uid"] = old["metadata"].get("uid", "uid")
        else:
            meta["uid"] = f"uid-{len(self.objects)}"
        if new != old or owners != self._owners_of(path):
            self.version += 1
            meta["resourceVersion"] = str(self.version)
        self.objects[path], self.owners[path] = new, owners
        self.remember()
        return _ok(new)

    def by_kind(self, kind: str) -> dict[str, Object]:
        """name -> object."""
        return {obj["metadata"]["name"]: obj for obj in self.objects.values() if obj.get("kind") == kind}


_PLURALS = [
    "certificatesigningrequests",
    "configmaps",
    "nodes",
    "pods",
    "events",
    "secrets",
    "services",
    "serviceaccounts",
    "daemonsets",
    "deployments",
    "clusterroles",
    "clusterrolebindings",
    "roles",
    "rolebindings",
    "namespaces",
    "validatingwebhookconfigurations",
    "mutatingwebhookconfigurations",
    "apiservices",
    "customresourcedefinitions",
]


def _merge(old: Any, new: Any) -> Any:
    """RFC 7386."""
    if not isinstance(new, dict):
        return copy.deepcopy(new)
    merged = copy.deepcopy(old) if isinstance(old, dict) else {}
    for key, value in new.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _patch(old: Object, steps: list[dict[str, Any]]) -> Optional[Object]:
    """RFC 6902, as far as kb uses it: test and replace; None if a test fails."""
    made = copy.deepcopy(old)
    for step in steps:
        *folders, last = step["path"].strip("/").split("/")
        place: Any = made
        for folder in folders:
            place = place[int(folder)] if isinstance(place, list) else place[folder]
        if step["op"] == "test" and place[last] != step["value"]:
            return None
        place[last] = step["value"]
    return made


def _dig(obj: Object, dotted: str) -> Any:
    value: Any = obj
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _ok(value: Any) -> HttpResponse:
    return HttpResponse(200, json.dumps(value).encode(), {"content-type": "application/json"})


def _status(code: int, reason: str, message: str) -> HttpResponse:
    return HttpResponse(code, json.dumps({"kind": "Status", "reason": reason, "message": message}).encode())


_LINKS = json.dumps(
    [{"ifname": "eth0", "mtu": 1500, "addr_info": [{"local": "10.0.0.11", "prefixlen": 24, "scope": "global"}]}]
)


WANTS = "etc/systemd/system/multi-user.target.wants"
NODE_CHANGES = KUBELET_STARTS | {
    "modprobe br_netfilter",
    "sysctl -w net.ipv4.ip_forward=1",
    "systemctl enable --no-reload kb-routes.service",
    "systemctl restart kb-routes.service",
    "systemctl disable --now kb-routes.service",
    "systemctl enable --no-reload kb-certs.timer",
    "systemctl restart kb-certs.timer",
    "systemctl disable --now kb-certs.timer",
    "systemctl disable --now kb-certs.service",
    "systemctl clean --what=state kb-certs.timer",
    "systemctl reset-failed kb-*",
    "ip netns add kb-probe",
    "ip netns delete kb-probe",
    "/opt/cni/bin/bridge",
    "ip link delete cbr0",
    "ip link delete kube-ipvs0",
}
"""The commands with which init, join and reset change a node that has containerd and kb's own pod network."""


class ClusterHost(LocalHost):
    """A node below a folder whose kubelet "works": starting it registers the node and its static pods."""

    def __init__(self, root: Path, cluster: Optional[FakeCluster] = None, *, name: str = "cp1") -> None:
        super().__init__(root)
        self.is_live, self.mode = True, "live"
        self.cluster = cluster or FakeCluster(is_up=False)
        self.name = name
        self.commands: list[str] = []
        self.answers: dict[str, Answer] = {
            "ip -json address show": _LINKS,
            "ip": "",
            "bridge": "",
            "systemctl is-active kb-routes.service": self._keeper_state,
            "systemctl is-active kb-certs.timer": self._keeper_state,
            "systemctl show kb-routes.service": self._loaded,
            "systemctl show kb-certs.timer kb-certs.service": self._loaded,
        }
        self.accepts = set(NODE_CHANGES)
        if self.cluster.is_up:
            self.answers["systemctl is-active kubelet"] = "active\n"
        self.clock = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
        self.before_write: Optional[Callable[[Path], None]] = None
        """Called before each file write: a test kills the run there by raising."""
        for folder in ("etc", "usr/bin", "proc", "opt/cni/bin", "run/systemd/system"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for plugin in ("bridge", "host-local", "loopback", "portmap"):
            (root / "opt/cni/bin" / plugin).touch()
        (root / "var/run/containerd").mkdir(parents=True, exist_ok=True)
        (root / "var/run/containerd/containerd.sock").touch()
        (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
        for folder in (WANTS, WANTS.replace("multi-user", "timers")):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def which(self, program: str) -> Optional[Path]:
        return Path("/usr/bin") / program

    def query(self, argv: Argv, **_: Any) -> CommandResult:
        shown = shown_argv(argv)
        return find_answer(self.answers, shown, is_change=False) or CommandResult(shown, 127, missing=True)

    def run(self, argv: Argv, **_: Any) -> CommandResult:
        shown = shown_argv(argv)
        self.commands.append(" ".join(shown))
        answer = self.answer_change(shown)
        if shown[:2] == ("sysctl", "-w"):
            name, text = shown[2].split("=", 1)
            super().write_file(Path("/proc/sys") / name.replace(".", "/"), text + "\n")
        if shown[:2] in (("systemctl", "restart"), ("systemctl", "start")) and "kubelet" in shown[2]:
            self._boot()
        if shown[0] == "systemctl":
            self._systemctl(*shown[1:])
        return answer

    def answer_change(self, argv: tuple[str, ...]) -> CommandResult:
        """What the command says. One that no test names fails the test."""
        found = find_answer(self.answers, argv, is_change=True)
        command = " ".join(argv)
        if found is None and command not in self.accepts and argv[:2] != TOUCH:
            refuse_unscripted(command, "add it to ClusterHost.accepts, or give it an answer in ClusterHost.answers")
        return found or CommandResult(argv, 0)

    def _keeper_state(self, argv: tuple[str, ...]) -> CommandResult:
        runs = f"systemctl restart {argv[-1]}" in self.commands
        return CommandResult(argv, 0 if runs else 3, "active\n" if runs else "inactive\n")

    def _loaded(self, argv: tuple[str, ...]) -> CommandResult:
        """systemd reads a unit when it first meets it."""
        return CommandResult(argv, 0, "LoadState=loaded\nNeedDaemonReload=no\n" * (argv.index("--property") - 2))

    def _systemctl(self, verb: str, *words: str) -> None:
        """Enabling is a link, as systemd has it."""
        unit = words[-1] if words else ""
        folder = WANTS.replace("multi-user", "timers") if unit.endswith(".timer") else WANTS
        link = Path("/") / folder / (unit if "." in unit else f"{unit}.service")
        if verb == "enable" and not self.exists(link):
            self.at(link).symlink_to(f"/etc/systemd/system/{link.name}")
        if verb == "disable" and self.exists(link):
            self.at(link).unlink()
        if verb == "stop" and unit == "kubelet":
            self.cluster.is_up = False
            self.cluster.remember()
            self.answers.pop("systemctl is-active kubelet", None)

    def _boot(self) -> None:
        self.cluster.is_up = True
        self.cluster.remember()
        self.answers.setdefault("systemctl is-active kubelet", "active\n")
        path = f"/api/v1/nodes/{self.name}"
        if path not in self.cluster.objects:
            node = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}},
                "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.11"}],
                },
            }
            self.cluster._store(path, node)
        self._run_static_pods()
        self.cluster._store("/api/v1/namespaces/kube-system/pods/coredns-1", self._pod("coredns"))

    def _run_static_pods(self) -> None:
        """What a kubelet does that runs: it watches the folder."""
        for component in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
            path = f"/api/v1/namespaces/kube-system/pods/{component}-{self.name}"
            if self.exists(Path(f"/etc/kubernetes/manifests/{component}.yaml")) and path not in self.cluster.objects:
                self.cluster._store(path, self._pod(component))

    def _pod(self, component: str) -> Object:
        labels = {"component": component, "tier": "control-plane"}
        if component == "coredns":
            labels = {"k8s-app": "kube-dns"}
        running = {
            "containerID": f"containerd://{component}",
            "restartCount": 0,
            "ready": True,
            "state": {"running": {"startedAt": "2025-12-31T00:00:00Z"}},
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{component}-{self.name}", "namespace": "kube-system", "labels": labels},
            "spec": {"nodeName": self.name},
            "status": {
                "podIP": "10.244.0.2",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [running],
            },
        }

    def http_ask(self, url: str, body: bytes, **_: Any) -> HttpResponse:
        return self.cluster.answer("POST", url, body, {})

    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = 4 << 20,
    ) -> HttpResponse:
        return self.cluster.answer("GET", url, b"", headers or {})

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
        return self.cluster.answer(method, url, body, headers or {})

    def udp_exchange(self, address: str, port: int, *, payload: bytes, timeout_s: float = 2) -> Optional[bytes]:
        head = payload[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
        return (
            head
            + payload[12:]
            + b"\xc0\x0c"
            + struct.pack(">HHIH", 1, 1, 30, 4)
            + bytes([*map(int, address.split(".")[:3]), 1])
        )

    def write_file(self, path: Path, data: Any, **more: Any) -> bool:
        if self.before_write:
            self.before_write(path)
        is_changed = super().write_file(path, data, **more)
        if path.parent == Path("/etc/kubernetes/manifests") and self.cluster.is_up:
            self._run_static_pods()
        return is_changed

    def port_holder(self, port: int, address: str = "") -> Optional[str]:
        return None

    def resolve(self, name: str) -> list[str]:
        return ["10.0.0.11"]

    def hostname(self) -> str:
        return self.name

    def environ(self) -> Mapping[str, str]:
        return {}

    def is_root_user(self) -> bool:
        return True

    def now(self) -> datetime.datetime:
        return self.clock

    def monotonic(self) -> float:
        return self.clock.timestamp()

    def sleep(self, seconds: float) -> None:
        self.clock += datetime.timedelta(seconds=seconds)

    def files(self) -> Iterator[Path]:
        """Every file below the root, as the node sees it."""
        for place in sorted(self.root.rglob("*")):
            if place.is_file():
                yield Path("/") / place.relative_to(self.root)
