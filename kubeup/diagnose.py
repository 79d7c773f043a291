"""Evidence -> cause -> remedy: which link broke when a node does not come up.

Walks the chain kubelet unit -> its log -> container runtime -> sandbox -> container -> exit code -> last log line,
and names the first broken link. Looks only; changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

from kubeup import runtime
from kubeup.host import Host

_LOG_PREFIX = re.compile(r"^[EWIF]\d{4} [\d:.]+\s+\d+ (?P<where>[\w.-]+:\d+)\] ?")
_COMPONENT_SOURCE = {
    "kube-apiserver": "apiServer.extraArgs",
    "kube-controller-manager": "controllerManager.extraArgs",
    "kube-scheduler": "scheduler.extraArgs",
    "etcd": "etcd.local.extraArgs",
}
_SANDBOX_TROUBLE = (
    "Failed to create pod sandbox",
    "CreatePodSandbox",
    "failed to pull image",
    "Failed to pull image",
    "ErrImagePull",
    "failed to get sandbox image",
    "cgroup",
)


@dataclass(frozen=True)
class BrokenLink:
    """The first link that broke: what, why, the remedy, and whether waiting longer can heal it."""

    what: str
    cause: str
    remedy: str
    is_final: bool = False
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class KubeletUnit:
    """What systemd says of kubelet.service."""

    load: str
    active: str
    sub: str
    restarts: int
    exit_code: int


def read_kubelet_unit(host: Host) -> Optional[KubeletUnit]:
    """None where there is no systemd to ask."""
    fields = "LoadState,ActiveState,SubState,NRestarts,ExecMainStatus"
    answer = host.query(["systemctl", "show", "kubelet", "-p", fields])
    if not answer.ok:
        return None
    found = dict(line.partition("=")[::2] for line in answer.stdout.splitlines())
    return KubeletUnit(
        found.get("LoadState", ""),
        found.get("ActiveState", ""),
        found.get("SubState", ""),
        int(found.get("NRestarts") or 0),
        int(found.get("ExecMainStatus") or 0),
    )


def read_kubelet_log(host: Host, *, lines: int = 200) -> list[str]:
    """The last lines of the kubelet's journal, oldest first."""
    answer = host.query(["journalctl", "-u", "kubelet", "-n", str(lines), "-o", "cat", "--no-pager"])
    return answer.stdout.splitlines() if answer.ok else []


def find_broken_link(host: Host, cri_socket: str, *, components: tuple[str, ...] = ()) -> Optional[BrokenLink]:
    """The first broken link on the way to a running control plane; None where all that can be seen is well."""
    return find_kubelet_trouble(host) or _find_container_trouble(host, cri_socket, components)


def find_kubelet_trouble(host: Host) -> Optional[BrokenLink]:
    """Is the kubelet's unit there, and does the kubelet stay up?"""
    unit = read_kubelet_unit(host)
    if unit is None:
        return None
    if unit.load == "not-found":
        return BrokenLink(
            "the kubelet is not running",
            "systemd has no unit kubelet.service",
            "run kb init phase kubelet-start, which writes the unit",
            is_final=True,
        )
    if unit.active == "failed" or unit.sub == "auto-restart" or unit.restarts >= 2:
        line = last_error_line(read_kubelet_log(host))
        return BrokenLink(
            f"the kubelet does not stay up (restarted {unit.restarts} times, exit code {unit.exit_code})",
            line or "its log names no error",
            "mend the cause, then: kb init (the whole log: journalctl -xeu kubelet)",
            is_final=unit.restarts >= 3,
        )
    if unit.active == "inactive":
        return BrokenLink(
            "the kubelet is not running",
            "its unit is stopped",
            "systemctl start kubelet, then: kb init",
            is_final=False,
        )
    return None


def _find_container_trouble(host: Host, cri_socket: str, components: tuple[str, ...]) -> Optional[BrokenLink]:
    containers = runtime.list_containers(host, cri_socket)
    for component in components:
        own = [container for container in containers if container.name == component]
        if not own:
            continue
        newest = max(own, key=lambda container: container.created_ns)
        if newest.state == "running":
            continue
        attempts = newest.attempt + 1
        log = runtime.container_logs(host, cri_socket, newest.id, lines=30)
        line = last_error_line(log) or (log[-1].strip() if log else "it wrote no log")
        is_usage = any(
            mark in line for mark in ("unknown flag", "unknown shorthand", "invalid argument", "flag provided")
        )
        source = _COMPONENT_SOURCE.get(component, "its configuration")
        exits = f"{component} exited {attempts} time{'s' * (attempts != 1)} (code {newest.exit_code})"
        return BrokenLink(
            exits,
            f"its last word: {line}" + (f" (its flags come from {source})" if is_usage else ""),
            f"correct {source}, then: kb init" if is_usage else f"read the whole log: crictl logs {newest.id[:13]}",
            is_final=is_usage or attempts >= 4,
            details=tuple(log[-5:]),
        )
    missing = [name for name in components if not any(container.name == name for container in containers)]
    if missing:
        trouble = [text for text in read_kubelet_log(host) if any(mark in text for mark in _SANDBOX_TROUBLE)]
        if trouble:
            return BrokenLink(
                f"no container of {', '.join(missing)} was started",
                clean_log_line(trouble[-1]),
                "mend what the cause names, then: kb init (the whole log: journalctl -xeu kubelet)",
                details=tuple(clean_log_line(line) for line in trouble[-3:]),
            )
    return None


def last_error_line(lines: list[str]) -> str:
    """The last line that tells of a failure: klog's E and F lines, etcd's fatal JSON, `Error: ...`."""
    for line in reversed(lines):
        text = line.strip()
        if (
            re.match(r"^[EF]\d{4} ", text)
            or text.startswith(("Error:", "error:", "panic:"))
            or '"level":"fatal"' in text
        ):
            return clean_log_line(text)
    for line in reversed(lines):
        if re.search(r"(?i)\b(err(or)?|fail(ed|ure)?|fatal|refused|denied)\b", line):
            return clean_log_line(line)
    return ""


def clean_log_line(line: str) -> str:
    """A log line without klog's stamp, at most 400 characters."""
    text = _LOG_PREFIX.sub("", line.strip())
    return text if len(text) <= 400 else text[:397] + "..."


def container_error(host: Host, cri_socket: str, name: str) -> str:
    """The last error in the log of the newest container called `name`; "" where there is none."""
    own = [container for container in runtime.list_containers(host, cri_socket) if container.name == name]
    if not own:
        return "no container of it was started"
    newest = max(own, key=lambda container: container.created_ns)
    return last_error_line(runtime.container_logs(host, cri_socket, newest.id, lines=50))
