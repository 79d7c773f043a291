"""The containers of the runtime: their exits, their logs, and the removal of pods."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine.host import Host
from kubeup.node.crictl import crictl_argv, ctr_argv, last_words, socket_path, split_json
from kubeup.shapes import fit_what_does


@frozen
class ContainerInfo:
    """One container, running or exited."""

    id: str
    name: str
    state: str
    """created | running | exited | unknown"""
    attempt: int = 0
    created_ns: int = 0
    image: str = ""
    pod: str = ""
    namespace: str = ""
    exit_code: Optional[int] = None
    """Known only for the newest exited container of each name."""
    reason: str = ""
    """`Error`, `OOMKilled`, `StartError`, ...; known for the same containers."""
    message: str = ""
    log_path: str = ""
    sandbox: str = ""
    """The ID of its pod's sandbox; "" if the client does not report it."""
    pod_uid: str = ""


def list_containers(host: Host, socket: str, *, name: str = "", has_exits: bool = True) -> list[ContainerInfo]:
    """The runtime's containers, newest first; [] if the runtime cannot be asked. `name`: only containers of this name. has_exits: with what
    is said of ContainerInfo.exit_code, which takes a second call; not needed to see whether one runs.

    Never raises, because it is called when something is already broken.
    """
    return ask_containers(host, socket, name=name, has_exits=has_exits) or []


def ask_containers(host: Host, socket: str, *, name: str = "", has_exits: bool = True) -> Optional[list[ContainerInfo]]:
    """The same, but None if the runtime cannot be asked, for whoever must not take that for "there are none". Never raises."""
    if not host.which("crictl"):
        return _list_through_ctr(host, socket, name=name)
    words = ("ps", "-a", "-o", "json", *(("--name", f"^{re.escape(name)}$") if name else ()))
    answer = host.query(crictl_argv(socket, *words), timeout_s=15)
    if not answer.ok:
        return None
    rows = fit_what_does(as_table(answer.stdout).get("containers"), [{"metadata": {"attempt": int}}])
    found = sorted((_container_of(row) for row in rows), key=lambda item: -item.created_ns)
    return _with_exits(host, socket, containers=found) if has_exits else found


def _container_of(row: Mapping[str, Any]) -> ContainerInfo:
    metadata, labels = as_table(row.get("metadata")), as_table(row.get("labels"))
    return ContainerInfo(
        id=str(row.get("id", "")),
        name=str(metadata.get("name", "")),
        state=str(row.get("state", "")).replace("CONTAINER_", "").lower(),
        attempt=int(metadata.get("attempt") or 0),
        created_ns=_nanoseconds(row.get("createdAt")),
        image=str(
            as_table(row.get("image")).get("userSpecifiedImage") or as_table(row.get("image")).get("image") or ""
        ),
        pod=str(labels.get("io.kubernetes.pod.name", "")),
        namespace=str(labels.get("io.kubernetes.pod.namespace", "")),
        sandbox=str(row.get("podSandboxId", "")),
        pod_uid=str(labels.get("io.kubernetes.pod.uid", "")),
    )


def list_ready_sandboxes(host: Host, socket: str) -> Optional[frozenset[str]]:
    """The IDs of the sandboxes that are up; None if the runtime cannot be asked. The kubelet stops the sandbox of a deleted pod, and
    keeps that of a pod whose containers exit."""
    listed = host.query(crictl_argv(socket, "pods", "--state", "ready", "-q"), timeout_s=15)
    return frozenset(listed.stdout.split()) if listed.ok else None


def _nanoseconds(value: Any) -> int:
    """Parse a time from crictl: nanoseconds as text."""
    text = str(value or "0")
    return int(text) if text.isdecimal() and len(text) < 20 else 0


def _with_exits(host: Host, socket: str, *, containers: list[ContainerInfo]) -> list[ContainerInfo]:
    newest: dict[tuple[str, str, str], str] = {}
    for item in containers:
        if item.state == "exited":
            newest.setdefault((item.namespace, item.pod, item.name), item.id)
    if not newest:
        return containers
    answer = host.query(crictl_argv(socket, "inspect", *newest.values()), timeout_s=15)
    ends = {
        str(as_table(end.get("status")).get("id")): as_table(end.get("status")) for end in split_json(answer.stdout)
    }
    return [_with_end(item, ends[item.id]) if item.id in ends else item for item in containers]


def _with_end(item: ContainerInfo, end: Mapping[str, Any]) -> ContainerInfo:
    return replace(
        item,
        exit_code=fit_what_does(end.get("exitCode"), int),
        reason=str(end.get("reason") or ""),
        message=str(end.get("message") or ""),
        log_path=str(end.get("logPath") or ""),
    )


def _list_through_ctr(host: Host, socket: str, *, name: str) -> Optional[list[ContainerInfo]]:
    """List the containers with ctr; None if it cannot be asked. containerd stores the CRI's record of a container as an extension of
    its own."""
    tasks = host.query(ctr_argv(socket, "tasks", "ls"), timeout_s=15) if host.which("ctr") else None
    listed = host.query(ctr_argv(socket, "containers", "ls", "-q"), timeout_s=15) if tasks and tasks.ok else None
    if tasks is None or listed is None or not listed.ok:
        return None
    states = {}
    for line in tasks.stdout.splitlines()[1:]:
        cells = line.split()
        if len(cells) == 3:
            states[cells[0]] = "running" if cells[2] == "RUNNING" else "exited"
    found = []
    for container_id in listed.stdout.split():
        record = as_table(host.query(ctr_argv(socket, "containers", "info", container_id), timeout_s=15).stdout)
        labels = as_table(record.get("Labels"))
        own_name = str(labels.get("io.kubernetes.container.name", ""))
        if not own_name or (name and own_name != name):
            continue
        extra = _cri_record(record)
        found.append(
            ContainerInfo(
                id=container_id,
                name=own_name,
                state=states.get(container_id, "exited"),
                attempt=fit_what_does(as_table(as_table(extra.get("Config")).get("metadata")).get("attempt"), int),
                image=str(record.get("Image", "")),
                pod=str(labels.get("io.kubernetes.pod.name", "")),
                namespace=str(labels.get("io.kubernetes.pod.namespace", "")),
                pod_uid=str(labels.get("io.kubernetes.pod.uid", "")),
                log_path=str(extra.get("LogPath") or ""),
            )
        )
    # without a creation time, the attempt tells which is newer
    return [replace(item, created_ns=item.attempt) for item in sorted(found, key=lambda item: -item.attempt)]


def _cri_record(record: Mapping[str, Any]) -> dict[str, Any]:
    extension = as_table(as_table(record.get("Extensions")).get("io.cri-containerd.container.metadata"))
    try:
        text = base64.b64decode(str(extension.get("value") or ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return {}
    return as_table(as_table(text).get("Metadata"))


_CRI_LOG_LINE = re.compile(r"^\S+ (?:stdout|stderr) [FP] ?(.*)$")


def container_logs(host: Host, socket: str, *, container_id: str, lines: int = 20) -> list[str]:
    """The last lines that a container wrote; [] if there are none, or they cannot be read. Never raises."""
    if host.which("crictl"):
        # crictl prints the container's stderr on its own stderr: read the log file, which keeps the order
        answer = host.query(crictl_argv(socket, "inspect", container_id), timeout_s=15)
        status = as_table(next(iter(split_json(answer.stdout)), {}).get("status"))
        path = str(status.get("logPath") or "")
    else:
        path = next((item.log_path for item in list_containers(host, socket) if item.id == container_id), "")
    try:
        text = host.read_text(Path(path)) if path.startswith("/") else ""
    except HostError:
        text = ""
    if not text and host.which("crictl"):
        answer = host.query(crictl_argv(socket, "logs", "--tail", str(lines), container_id), timeout_s=15)
        return (answer.stdout + answer.stderr).splitlines()[-lines:] if answer.ok else []
    return [_text_of(line) for line in text.splitlines()[-lines:]]


def _text_of(line: str) -> str:
    match = _CRI_LOG_LINE.match(line)
    return match.group(1) if match else line


# ---- removing pods


REMOVAL_TIMEOUT_S = 60
REMOVAL_PAUSE_S = 1.0


def remove_pods(host: Host, socket: str, *, timeout_s: float = REMOVAL_TIMEOUT_S) -> list[str]:
    """Stop and remove every pod of this node; return what failed, in words. Without crictl, ctr is used, which only knows containers;
    these include the sandboxes.

    The kubelet's last requests may still be in progress: a container that is starting cannot be removed yet, and a sandbox may
    appear after the first look. So look and try again until nothing is left.
    """
    if not host.exists(socket_path(socket)) and not (host.which("containerd") or host.which("crio")):
        return []
    remove = _remove_through_crictl if host.which("crictl") else _remove_through_ctr
    deadline = host.monotonic() + timeout_s
    while True:
        is_left, failures = remove(host, socket)
        if not is_left:
            return failures
        if host.monotonic() > deadline:
            return failures or ["new pods appear as fast as they are removed: another kubelet starts them"]
        if failures:
            host.sleep(REMOVAL_PAUSE_S)


def _remove_through_crictl(host: Host, socket: str) -> tuple[bool, list[str]]:
    """Try once. Returns whether anything may be left, and what failed."""
    listed = host.query(crictl_argv(socket, "pods", "-q"), timeout_s=15)
    if listed.missing:
        return False, []
    if not listed.ok:
        return True, [f"crictl pods: {last_words(listed.stderr)}"]
    pods, failures, is_deferred = listed.stdout.split(), [], False
    for pod in pods:
        for words in (("stopp", pod), ("rmp", "-f", pod)):
            done = host.run(crictl_argv(socket, *words), timeout_s=120)
        if not done.ok:
            failures.append(f"crictl rmp -f {pod[:13]}: {last_words(done.stderr)}")
        is_deferred = is_deferred or done.deferred
    return bool(pods) and not is_deferred, failures


def _remove_through_ctr(host: Host, socket: str) -> tuple[bool, list[str]]:
    listed = host.query(ctr_argv(socket, "containers", "list", "-q"), timeout_s=15)
    if listed.missing:
        return False, []
    if not listed.ok:
        return True, [f"ctr containers list: {last_words(listed.stderr)}"]
    containers, failures, is_deferred = listed.stdout.split(), [], False
    for container in containers:
        host.run(ctr_argv(socket, "tasks", "kill", "-a", "-s", "SIGKILL", container), timeout_s=30)
        host.run(ctr_argv(socket, "tasks", "rm", "-f", container), timeout_s=30)
        done = host.run(ctr_argv(socket, "containers", "rm", container), timeout_s=30)
        if not done.ok:
            failures.append(f"ctr containers rm {container[:13]}: {last_words(done.stderr)}")
        is_deferred = is_deferred or done.deferred
    return bool(containers) and not is_deferred, failures


def nudge(host: Host, manifest: Path) -> None:
    """Have the kubelet notice a file without changing when it was written, by which the kubelet's words are told from those of before it: a
    change of its attributes is enough. Source: pkg/kubelet/config/file_linux.go"""
    host.run(["touch", "-c", "-r", str(manifest), str(manifest)])
