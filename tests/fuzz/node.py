"""A node below a folder on which any command of kb can be run as often as chance wants: whatever LocalHost() would be this
machine is that folder, its programs and its API server answer as a healthy node's do, and what would still reach this machine
(a file written elsewhere, a connection, a program) ends the test.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

import kb
from kubeup.cli import entry
from kubeup.cluster import tokens
from kubeup.cluster.etcd import CLIENT_URLS_ANNOTATION
from kubeup.errors import HostError
from kubeup.machine import http, local_host
from kubeup.machine.filters import ProgramFailed
from kubeup.machine.host import CommandResult
from kubeup.machine.local_host import LocalHost
from kubeup.node import ca_pins
from kubeup.secret import Secret
from tests.fake_cluster import ClusterHost, FakeCluster

REAL_HOST = LocalHost
LIMIT_S = 20.0
"""How long one command may take before it counts as hanging."""


class Escaped(BaseException):
    """kb was about to touch this machine."""


class Hung(BaseException):
    """A command did not end."""


# ---- the fence


@dataclass
class _Fence:
    allowed: tuple[str, ...] = ()
    is_installed: bool = False


_FENCE = _Fence()
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    # of an event's arguments: (path, the folder's descriptor that it is relative to)
    "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),), "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)), "os.symlink": ((1, 2),),
    "os.link": ((1, 3),), "os.chmod": ((0, 2),), "os.chown": ((0, 3),), "os.truncate": ((0, 9),), "os.utime": ((0, 3),), "os.setxattr": ((0, 9),),
}  # fmt: skip
_NEVER = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "socket.connect", "socket.bind", "os.kill")
_HARMLESS = ("/dev/null", "/dev/full")


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if not _FENCE.allowed:
        return
    if event in _NEVER and not (event.startswith("socket.") and getattr(args[0], "family", 0) == socket.AF_UNIX):
        raise Escaped(f"{event} {args!r}"[:300])
    if event == "open" and isinstance(args[2], int) and args[2] & _WRITES:
        # a relative name is by the descriptor of a folder, which the event does not tell
        _require_inside(event, args[0] if os.path.isabs(_name(args[0])) else None, -1)
    for path, folder in _CHANGES.get(event, ()):
        _require_inside(event, args[path], args[folder] if folder < len(args) else -1)


def _name(path: object) -> str:
    return os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""


def _require_inside(event: str, path: object, folder: object) -> None:
    name = _name(path)
    if not name:
        return
    parent = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
    full = os.path.join(parent, name) if parent else name
    place = os.path.join(os.path.realpath(os.path.dirname(full)), os.path.basename(full))
    if place not in _HARMLESS and not f"{place}/".startswith(_FENCE.allowed):
        raise Escaped(f"{event} {place!a}"[:300])


@contextlib.contextmanager
def fenced(*folders: Path) -> Iterator[None]:
    """Within, nothing but these folders may be changed, no program run and nobody connected to."""
    if not _FENCE.is_installed:
        sys.addaudithook(_watch)
        _FENCE.is_installed = True
    _FENCE.allowed = tuple(f"{os.path.realpath(folder)}/" for folder in folders)
    try:
        yield
    finally:
        _FENCE.allowed = ()


@contextlib.contextmanager
def limited(seconds: float = LIMIT_S) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hung(f"no end within {seconds:.0f} s")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    old = signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # kb leaves it alone where nohup has it ignored
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- one command


@dataclass
class Ended:
    """How a command ended. bug: the traceback that its user would not see, "" where there was none."""

    status: int
    out: str
    err: str
    bug: str = ""


class _Stream(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)

    def text(self) -> str:
        raw: io.BytesIO = self.buffer  # type: ignore[assignment]
        return raw.getvalue().decode(errors="replace")


@contextlib.contextmanager
def as_this_machine(make: Callable[[], LocalHost]) -> Iterator[None]:
    """Within, LocalHost() is what `make` gives; another root is a folder as ever."""

    def choose(root: Path = Path("/")) -> LocalHost:
        return make() if os.path.realpath(root).strip("/") == "" else REAL_HOST(root)

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("kubeup") and vars(module).get("LocalHost") is REAL_HOST:
                patch.setattr(module, "LocalHost", choose)
        patch.setattr(local_host, "LocalHost", choose)
        yield


def call(words: Sequence[str], make: Callable[[], LocalHost], *folders: Path, limit_s: float = LIMIT_S) -> Ended:
    """Run kb with these words on the machine that `make` gives; only `folders` may be changed."""
    found: list[str] = []

    def keep(trace: Any, *args: Any, **kwargs: Any) -> Any:
        found.append("".join(traceback.format_tb(trace)))
        return traceback.extract_tb(trace, *args, **kwargs)

    out, err = _Stream(), _Stream()
    with pytest.MonkeyPatch.context() as patch, as_this_machine(make), limited(limit_s), fenced(*folders):
        patch.setattr(entry, "traceback", types.SimpleNamespace(extract_tb=keep, print_exc=traceback.print_exc))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(sys, "stdin", io.StringIO(""))
        patch.setattr(os, "fsync", lambda descriptor: None)
        try:
            status = kb.main(list(words))
        except KeyboardInterrupt:  # of another's: the test's own
            raise
        except Exception as error:  # none may pass main
            status, trace = 70, traceback.format_exc()
            found.append(f"{trace}\n{error}")
    ended = Ended(status, out.text(), err.text())
    if status == 70 or "Traceback (most" in ended.out + ended.err:
        ended.bug = f"{ended.err[-600:]}\n{(found or [''])[-1]}"
    return ended


# ---- the node


KEY = "ab" * 32
CONFIG = f"""\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{advertiseAddress: 10.0.0.11}}
nodeRegistration: {{name: cp1}}
bootstrapTokens: [{{token: abcdef.0123456789abcdef}}]
certificateKey: {KEY}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.35.6
encryptionAlgorithm: ECDSA-P256
controlPlaneEndpoint: api.example.org:6443
networking: {{podSubnet: 10.244.0.0/16}}
"""

FILES = {
    "/etc/kb.yaml": CONFIG,
    "/etc/os-release": 'ID=debian\nVERSION_ID="12"\nID_LIKE="debian"\n',
    "/etc/hosts": "127.0.0.1 localhost\n10.0.0.11 cp1\n",
    "/etc/resolv.conf": "nameserver 10.0.0.2\nsearch example.org\n",
    "/etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n/dev/sda2 none swap sw 0 0\n",
    "/etc/containerd/config.toml": """version = 2
root = "/var/lib/containerd"
disabled_plugins = []
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.6"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = ""
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = false
""",
    "/proc/mounts": "/dev/sda1 / ext4 rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n",
    "/proc/meminfo": "MemTotal:        8000000 kB\nMemAvailable:    6000000 kB\n",
    "/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 1024 0 -2\n",
    "/proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t1\t1\n",
    "/proc/net/route": "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\nx\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\n",
    "/proc/net/ipv6_route": "0" * 32 + " 00 " + "0" * 32 + " 00 " + "0" * 32 + " ffffffff 1 0 200 lo\n",
    "/proc/self/status": "CapBnd:\t000001ffffffffff\n",
    "/proc/sys/kernel/ostype": "Linux\n",
    "/proc/sys/kernel/osrelease": "6.1.0-9-amd64\n",
    "/proc/sys/net/ipv4/ip_forward": "1\n",
    "/proc/sys/net/ipv6/conf/default/forwarding": "1\n",
    "/proc/42/cmdline": "/usr/bin/kubelet\0--hostname-override=cp1\0--v=2\0",
    "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids\n",
    "/var/log/etcd.log": '2026-01-01T00:00:00Z stderr F {"level":"fatal","msg":"no"}\n',
    "/usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet\n",
    "/var/lib/kubelet/pki/kubelet.crt": "",
    "/root/.docker/config.json": '{"auths": {"registry.k8s.io": {"auth": "dTpw"}}, "credHelpers": {"a": "b"}}',
}  # fmt: skip
_CONTAINERS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "haproxy")
_STATUS = {
    "id": "etcd-1", "exitCode": 1, "logPath": "/var/log/etcd.log", "reason": "Error", "state": "CONTAINER_EXITED",
    "metadata": {"name": "etcd", "attempt": 2}, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z",
    "image": {"image": "registry.k8s.io/etcd:3.6.6-0"},
}  # fmt: skip
_SHOWN: dict[str, Any] = {
    "crictl info": {
        "cniconfig": {"PluginDirs": ["/opt/cni/bin"], "Networks": [{"Config": {"Name": "x"}}]},
        "config": {
            "containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc": {"options": {"SystemdCgroup": True}}}},
            "containerdRootDir": "/var/lib/containerd", "registry": {"configPath": "", "mirrors": None},
            "restrictOOMScoreAdj": False, "sandboxImage": "registry.k8s.io/pause:3.6",
        },
        "status": {"conditions": [{"type": "RuntimeReady", "status": True}, {"type": "NetworkReady", "status": False, "message": "m", "reason": "r"}]},
    },
    "crictl images": {"images": [{"id": "i", "repoTags": ["registry.k8s.io/pause:3.6"], "repoDigests": ["r@sha256:0"], "pinned": True}]},
    "crictl ps": {"containers": [
        {"id": f"{name}-1", "podSandboxId": "p", "metadata": {"name": name, "attempt": 2}, "state": "CONTAINER_RUNNING" if name != "etcd" else "CONTAINER_EXITED",
         "createdAt": "1767225600000000000", "image": {"image": "x"}, "imageRef": "x", "labels": {"io.kubernetes.container.name": name, "io.kubernetes.pod.name": f"{name}-cp1", "io.kubernetes.pod.namespace": "kube-system"}}
        for name in _CONTAINERS
    ]},
    "crictl pods": {"items": [
        {"id": "p", "metadata": {"name": "etcd-cp1", "namespace": "kube-system", "uid": "u", "attempt": 0}, "state": "SANDBOX_READY",
         "createdAt": "1767225600000000000", "labels": {"component": "etcd"}, "annotations": {}}
    ]},
    "crictl inspect": {"status": _STATUS, "info": {"pid": 4711, "runtimeSpec": {"mounts": []}}},
    "crictl inspectp": {"status": {"id": "p", "network": {"ip": "10.244.0.9"}}, "info": {"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "/run/netns/x"}]}}}},
    "ip -json link show master": [{"ifname": "veth1", "link_netnsid": 0}],
    "ip -json netns": [{"name": "cni-1", "id": 0}],
    "ip -json route": [{"dst": "10.244.1.0/24", "gateway": "10.0.0.12", "dev": "eth0", "protocol": "129", "metric": 5}],
    "ip -json -4 route": [{"dst": "default", "gateway": "10.0.0.1", "dev": "eth0", "protocol": "129", "flags": []}],
    "ip -json -6 route": [],
    "ip -json -details link": [{"ifname": "kb-vxlan", "mtu": 1450, "linkinfo": {"info_kind": "vxlan", "info_data": {"id": 1, "port": 8472, "local": "10.0.0.11"}}}],
    "ip -json neighbour": [{"dst": "10.244.1.0", "lladdr": "0e:00:00:00:00:01", "state": ["PERMANENT"]}],
    "ip -json address": [
        {"ifindex": 2, "ifname": "eth0", "mtu": 1500, "flags": ["UP"], "operstate": "UP", "addr_info": [
            {"family": "inet", "local": "10.0.0.11", "prefixlen": 24, "scope": "global"},
            {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"}]},
        {"ifindex": 3, "ifname": "cbr0", "mtu": 1450, "flags": ["UP"], "addr_info": [{"family": "inet", "local": "10.244.0.1", "prefixlen": 24, "scope": "global"}]},
        {"ifindex": 4, "ifname": "kb-vxlan", "mtu": 1450, "flags": ["UP"], "addr_info": []},
    ],
    "ip -json addr": [{"ifindex": 2, "ifname": "eth0", "flags": ["UP"], "addr_info": [{"family": "inet", "local": "10.0.0.11", "prefixlen": 24, "scope": "global"}]}],
    "bridge -json": [{"mac": "0e:00:00:00:00:01", "dst": "10.0.0.12", "ifname": "kb-vxlan", "state": "permanent"}],
    "nft -j": {"nftables": [{"metainfo": {}}, {"chain": {"family": "inet", "table": "filter", "name": "forward", "hook": "forward", "policy": "drop"}}]},
}  # fmt: skip
_SAID = {
    "crictl version": "Version:  0.1.0\nRuntimeName:  containerd\nRuntimeVersion:  2.1.4\nRuntimeApiVersion:  v1\n",
    "crictl runtime-config": "cgroup driver:   SYSTEMD\n",
    "crictl --version": "crictl version v1.35.0\n",
    "crictl logs": "I0101 00:00:00.000000 1 x.go:1] hello\nE0101 fatal: no\n",
    "crictl pods -q": "p\n",
    "crictl ps -q": "etcd-1\n",
    "systemctl is-active": "active\n",
    "systemctl is-enabled": "enabled\n",
    "systemctl show-environment": "PATH=/usr/bin\nHTTP_PROXY=http://proxy:3128\n",
    "systemctl show kubelet --property Environment": "NO_PROXY=10.0.0.0/8\n",
    "systemctl show": "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\nNRestarts=3\nExecMainStatus=1\nResult=success\n"
    "InvocationID=abc\nActiveEnterTimestampMonotonic=900000000\nMainPID=42\nExecStart={ path=/usr/bin/kubelet ; argv[]=/usr/bin/kubelet }\n",
    "systemctl cat": "[Service]\nExecStart=/usr/bin/kubelet\n",
    "journalctl": "I0101 00:00:00.0 1 x.go:1] started\nE0101 00:00:00.0 1 x.go:1] failed\n",
    "ip -o addr": "2: eth0    inet 10.0.0.11/24 brd 10.0.0.255 scope global eth0\\n",
    "ip route get": "10.96.0.1 via 10.0.0.1 dev eth0 src 10.0.0.11 uid 0\n",
    "nft list": "table ip kb { chain post { masquerade } }\n",
    "nft -a": 'table inet filter { # handle 1\n\tchain forward { # handle 2\n\t\tct state established accept # handle 3\n\t\tdrop # handle 4\n\t}\n}\n',
    "iptables": "-P FORWARD DROP\n-A FORWARD -j REJECT\n",
    "ip6tables": "",
    "containerd --version": "containerd github.com/containerd/containerd v2.1.4 0123\n",
    "containerd config": FILES["/etc/containerd/config.toml"],
    "containerd --config": FILES["/etc/containerd/config.toml"],
    "ctr": "NAME\tPID\tSTATUS\netcd-1\t42\tRUNNING\n",
    "kubelet --version": "Kubernetes v1.35.6\n",
    "kubectl": '{"clientVersion": {"gitVersion": "v1.35.6"}}',
    "runc --version": "runc version 1.3.0\n",
    "uname -m": "x86_64\n",
    "uname": "Linux cp1 6.1.0 x86_64\n",
    "firewall-cmd": "6443/tcp\n",
    "docker-credential-b": '{"Username": "u", "Secret": "s"}',
    "losetup": "", "df": "x\n", "ps": "x\n", "free": "x\n", "date": "x\n", "uptime": "x\n", "mount": "x\n", "ss": "x\n", "dmesg": "x\n",
}  # fmt: skip
_REFUSED = ("iptables -w 10 -t filter -C", "ip6tables -w 10 -t filter -C", "systemctl is-failed")


def play(words: tuple[str, ...]) -> CommandResult:
    """What a program says on a node that is well."""
    line = " ".join(words)
    if words[0] == "crictl" and "--image-endpoint" in words:
        line = " ".join(("crictl", *words[words.index("--image-endpoint") + 2 :]))
    if line.startswith(_REFUSED):
        return CommandResult(words, 1, stderr="no")
    by_length = sorted((*_SHOWN, *_SAID), key=len, reverse=True)
    found = next((head for head in by_length if line == head or line.startswith(head + " ")), None)
    if found is None:
        return CommandResult(words, 127, stderr=f"{words[0]}: not found", missing=True)
    if found == "crictl inspect":
        many = [_SHOWN[found] for word in words if word.rpartition("-")[0] in _CONTAINERS]
        return CommandResult(words, 0, json.dumps(many if len(many) != 1 else many[0]))
    return CommandResult(words, 0, json.dumps(_SHOWN[found]) if found in _SHOWN else _SAID[found])


class Node(ClusterHost):
    """A node below a folder, well and alive. ready: the names of the nodes whose kubelet gets its certificate at once."""

    def __init__(self, root: Path, cluster: FakeCluster, *, name: str = "cp1", address: str = "10.0.0.11") -> None:
        super().__init__(root, cluster, name=name)
        self.answers = {}
        self.address = address
        self.env: dict[str, str] = {"HOME": "/root"}
        self.kubelet_runs = (root / "var/lib/kubelet/config.yaml").exists()
        self.has_no_pods = False
        self.restarts: dict[str, int] = {}
        """How often a component's container was stopped: the kubelet starts another one at once."""
        self.members: list[dict[str, Any]] = [
            {"ID": "1", "name": "cp1", "peerURLs": ["https://10.0.0.11:2380"], "clientURLs": ["https://10.0.0.11:2379"]}
        ]
        self.identity = b""
        """The kubeconfig that its kubelet gets from the cluster."""

    def query(self, argv: Any, **_: Any) -> CommandResult:
        words = tuple(str(word) for word in argv)
        self.sleep(0.05)
        if "pods" in words and self.has_no_pods:
            return CommandResult(words, 0, '{"items": []}' if "-o" in words else "")
        if words[:2] == ("systemctl", "is-active") and words[2:] in (("kb-routes.service",), ("kb-certs.timer",)):
            return self._keeper_state(words)
        if words[:3] == ("systemctl", "is-active", "kubelet") and not self.kubelet_runs:
            return CommandResult(words, 3, "inactive\n")
        found = play(words)
        text = found.stdout.replace("10.0.0.11", self.address)
        for name, count in self.restarts.items():
            text = text.replace(f'"{name}-1"', f'"{name}-{1 + count}"')
        return CommandResult(words, found.code, text, found.stderr, found.missing)

    def run(self, argv: Any, **rest: Any) -> CommandResult:
        self.sleep(0.05)
        words = tuple(str(word) for word in argv)
        if words[:1] == ("systemctl",) and any("kubelet" in word for word in words[2:3]):
            self.kubelet_runs = words[1] in ("start", "restart") or (self.kubelet_runs and words[1] != "stop")
        if words[:1] == ("crictl",) and "stop" in words:
            for name in {word.rpartition("-")[0] for word in words} & set(_CONTAINERS):
                self.restarts[name] = self.restarts.get(name, 0) + 1
        was_up = self.cluster.is_up
        done = super().run(argv, **rest)
        if was_up and self.name != "cp1":
            self.cluster.is_up = True  # its kubelet carries none of the cluster
        self.has_no_pods = self.has_no_pods or "rmp" in done.argv
        return done

    def answer_change(self, argv: tuple[str, ...]) -> CommandResult:
        """Any command is taken: chance has made the words of many."""
        said = play(argv)
        return CommandResult(argv, said.code if not said.missing else 0, said.stdout)

    def _boot(self) -> None:
        own = Path("/etc/kubernetes/kubelet.conf")
        if self.exists(Path("/etc/kubernetes/bootstrap-kubelet.conf")) and not self.exists(own):
            self.write_file(own, self.identity, mode=0o600)
        super()._boot()

    def _etcd(self, url: str, body: bytes) -> http.HttpResponse:
        """The gateway of an etcd with one member more than nodes have joined."""
        verb, wanted = url.partition("/v3/")[2], json.loads(body)
        own = next((member for member in self.members if member["name"] == ""), None)
        if own is not None and self.exists(Path("/etc/kubernetes/manifests/etcd.yaml")):
            own.update(name=self.name, clientURLs=[f"https://{self.address}:2379"])
        if verb == "cluster/member/add":
            self.members.append(
                {"ID": "9", "name": "", "peerURLs": wanted["peerURLs"], "clientURLs": [], "isLearner": True}
            )
        if verb == "cluster/member/promote":
            self.members[-1]["isLearner"] = False
        if verb == "cluster/member/remove":
            self.members = [member for member in self.members if member["ID"] != wanted["ID"]]
        found: dict[str, Any] = (
            {"members": self.members} if verb.startswith("cluster/") else {"header": {}, "errors": []}
        )
        return http.HttpResponse(200, json.dumps(found).encode())

    def http_ask(self, url: str, body: bytes, **rest: Any) -> http.HttpResponse:
        return self._etcd(url, body) if "/v3/" in url else super().http_ask(url, body, **rest)

    def http_send(self, method: str, url: str, *, body: bytes = b"", **rest: Any) -> http.HttpResponse:
        return self._etcd(url, body) if "/v3/" in url else super().http_send(method, url, body=body, **rest)

    def environ(self) -> dict[str, str]:
        return self.env

    def hostname(self) -> str:
        return self.name

    def resolve(self, name: str) -> list[str]:
        return ["10.0.0.11"]

    def port_holder(self, port: int, address: str = "") -> Optional[str]:
        return None

    def served_cert(self, address: str, port: int, *, timeout_s: float = 3) -> Optional[str]:
        place = Path("/etc/kubernetes/pki/apiserver.crt")
        return self.read_text(place) if self.exists(place) else None

    def mounts_below(self, path: Path) -> list[Path]:
        return []

    def free_bytes(self, path: Path) -> int:
        return 100 << 30

    @contextlib.contextmanager
    def http_open(self, url: str, **rest: Any) -> Iterator[Any]:
        raise http.Unreachable(url, "refused", text="a node of tests streams nothing")
        yield  # pragma: no cover

    def filter(self, argv: Any, chunks: Any) -> Iterator[bytes]:
        raise ProgramFailed(argv[0], status=1, said="no such recipient")
        yield b""

    def http_upload(self, url: str, body: Any, **rest: Any) -> http.HttpResponse:
        raise http.Unreachable(url, "refused", text="a node of tests streams nothing")

    def listen(self, address: str, port: int) -> Any:
        raise HostError("cannot listen", cause="a test", remedy="look", code="cannot-listen")


@dataclass
class Site:
    """Machines as templates, and a folder in which copies of them are used up."""

    folder: Path
    objects: dict[str, Any] = field(default_factory=dict)
    count: int = 0
    identity: bytes = b""
    pin: str = ""
    """Of the cluster's authority."""

    def clone(self, kind: str, *, make: Callable[..., Any] = Node, **fields: Any) -> Any:
        """A machine of its own: `empty` (without a cluster), `joining`, `control-plane` or `worker`, or one of the latter
        without a file of kb's own."""
        kind, others = kind.partition(" of ")[::2]
        self.count += 1
        root = self.folder / "work" / str(self.count)
        shutil.copytree(self.folder / kind.replace("joining", "empty"), root, symlinks=True)
        if others:
            shutil.rmtree(root / "var/lib/kb")
        objects = {} if kind == "empty" else self.objects
        cluster = FakeCluster(json.loads(json.dumps(objects)), version=1000, is_up=kind != "empty")
        names = {
            "worker": {"name": "w1", "address": "10.0.0.21"},
            "joining": {"name": "n2", "address": "10.0.0.22"},
        }.get(kind, {})
        made = make(root, cluster, **{**names, **fields})
        made.identity = self.identity
        return made

    def drop(self, node: Node) -> None:
        shutil.rmtree(node.root, ignore_errors=True)


def build_site(folder: Path) -> Site:
    """Run init and join once each."""
    for kind in ("empty", "control-plane", "worker"):
        made = Node(folder / kind, FakeCluster(is_up=False))
        for name, text in FILES.items():
            made.write_file(Path(name), text)
        for name in ("var/lib", "usr/local/lib", "etc/cni/net.d"):
            made.at(Path("/") / name).mkdir(parents=True, exist_ok=True)
    site = Site(folder)
    first = Node(folder / "control-plane", FakeCluster(is_up=False))
    ended = call(
        [
            "init",
            "--config=/etc/kb.yaml",
            "--ignore-preflight-errors=all",
            "--soak=0",
            "--upload-certs",
        ],
        lambda: first,
        folder,
    )
    assert ended.status == 0, ended
    site.objects = first.cluster.objects
    info = site.objects["/api/v1/namespaces/kube-public/configmaps/cluster-info"]["data"]
    info[tokens.jws_key("abcdef")] = tokens.compute_jws(info["kubeconfig"], Secret("abcdef.0123456789abcdef"))
    etcd = site.objects["/api/v1/namespaces/kube-system/pods/etcd-cp1"]
    etcd["metadata"]["annotations"] = {CLIENT_URLS_ANNOTATION: "https://10.0.0.11:2379"}
    pin = ca_pins.ca_cert_hashes(first.read_text(Path("/etc/kubernetes/pki/ca.crt")))[0]
    site.identity = first.read_bytes(Path("/etc/kubernetes/kubelet.conf"))
    worker = Node(folder / "worker", first.cluster, name="w1", address="10.0.0.21")
    worker.identity = site.identity
    ended = call([*JOIN, f"--discovery-token-ca-cert-hash={pin}"], lambda: worker, folder)
    assert ended.status == 0, ended
    site.pin = pin
    return site


JOIN = (
    "join",
    "10.0.0.11:6443",
    "--token=abcdef.0123456789abcdef",
    "--ignore-preflight-errors=all",
    "--soak=0",
)
