"""A node whose kubelet, runtime and containers say what a test wants."""

from __future__ import annotations

import json
from typing import Any, Optional

from kubeup.diagnosis import chain, signs
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from tests.fake_host import FakeHost

SOCKET = "unix:///var/run/containerd/containerd.sock"
UNIT = "LoadState=loaded\nActiveState={active}\nSubState={sub}\nNRestarts={restarts}\nExecMainStatus={code}\n"
READY = json.dumps({"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}})
MOUNTS = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpuset cgroup ro,cpuset 0 0\n"


def make_host(
    *, active: str = "active", sub: str = "running", restarts: int = 0, code: int = 0, kubelet_log: str = ""
) -> FakeHost:
    """A node whose kubelet is in that state, with a runtime that is well and has no containers."""
    host = FakeHost(
        files={"/var/run/containerd/containerd.sock": b"", "/proc/mounts": MOUNTS.encode()},
        programs={"crictl", "systemctl"},
        urls={"http://127.0.0.1:10248/healthz": HttpResponse(200, b"ok")},
        ticks=1000.0,
    )
    since = "ActiveEnterTimestampMonotonic=900000000\nInvocationID=abc\nMainPID=42\n"
    unit = UNIT.format(active=active, sub=sub, restarts=restarts, code=code) + since
    host.answers["systemctl show kubelet -p"] = unit
    host.answers["journalctl"] = kubelet_log
    host.answers["ip -o addr show scope global"] = "2: eth0    inet 10.0.0.11/24 brd 10.0.0.255 scope global eth0\\n"
    run_containers(host)
    return host


def run_containers(host: FakeHost, *rows: dict[str, Any], logs: Optional[dict[str, list[str]]] = None) -> None:
    """Let crictl tell of these containers: {"name", "state", "attempt", "exitCode", "reason", "sandbox", "is_gone"}; logs by name.
    is_gone: the pod was deleted, so that its sandbox is stopped."""
    shown, ends = [], {}
    ready = [row["sandbox"] for row in rows if "sandbox" in row and not row.get("is_gone")]
    for number, row in enumerate(rows):
        identity = f"{row['name']}-{number}"
        shown.append(
            {
                "id": identity,
                "metadata": {"name": row["name"], "attempt": row.get("attempt", 0)},
                "state": f"CONTAINER_{row['state'].upper()}",
                "createdAt": str(row.get("created", number + 1)),
                "podSandboxId": row.get("sandbox", ""),
                "labels": {"io.kubernetes.pod.name": f"{row['name']}-{row.get('sandbox', '')}"},
            }
        )
        path = f"/var/log/{identity}.log"
        lines = (logs or {}).get(row["name"], [])
        host.files[path] = "".join(f"2026-01-01T00:00:00Z stderr F {line}\n" for line in lines).encode()
        end = {
            "id": identity,
            "exitCode": row.get("exitCode", 1),
            "logPath": path,
            "reason": row.get("reason", "Error"),
        }
        ends[identity] = {"status": end}

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        if "pods" in argv:
            return CommandResult(argv, 0, "".join(f"{sandbox}\n" for sandbox in ready))
        if "ps" in argv:
            return CommandResult(argv, 0, json.dumps({"containers": shown}))
        if "inspect" in argv:
            return CommandResult(argv, 0, json.dumps([ends[word] for word in argv if word in ends]))
        return CommandResult(argv, 0, READY if "info" in argv else "{}")

    host.answers["crictl"] = crictl


def find(host: FakeHost, *components: str, **unhealthy: str) -> Optional[signs.BrokenLink]:
    seen = {name.replace("_", "-"): text for name, text in unhealthy.items()}
    return chain.find_broken_link(host, SOCKET, components=components, unhealthy=seen)


def make_openrc_host(status: str, code: int, log: str = "") -> FakeHost:
    """The same of a node that OpenRC runs: no program of systemd is there."""
    host = make_host()
    host.programs = {"crictl", "openrc", "rc-service", "rc-update", "apk"}
    host.answers = {"crictl": host.answers["crictl"]}
    host.answers["rc-service kubelet status"] = CommandResult(("rc-service",), code, status)
    if log:
        host.files["/var/log/kubelet/kubelet.log"] = log.encode()
        host.answers["tail -n 300 /var/log/kubelet/kubelet.log"] = log
    return host


# ---- containers

ETCD_BIND = (
    '{"level":"error","ts":"2026-01-01T00:00:00Z","caller":"embed/etcd.go:586","msg":"creating peer listener failed","error":'
    '"listen tcp 10.0.0.99:2380: bind: cannot assign requested address","stacktrace":"go.etcd.io/x\\n\\tmain"}'
)
