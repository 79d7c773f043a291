"""What is wrong with a container that exited, or that runs and is unhealthy."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Optional

from kubeup.diagnosis.log_lines import last_error_line, last_lines
from kubeup.diagnosis.pod_trouble import find_pod_trouble
from kubeup.diagnosis.signs import CONTAINER_SIGNS, MANIFESTS, SETTLED_S, THEN, BrokenLink, match_signs, source_words
from kubeup.errors import HostError
from kubeup.json_text import as_table
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.node import containers as node_containers
from kubeup.yaml_files import containers_of_pod, load_mapping

_LAST_WORDS_S = 1.0
_EXCHANGED_S = 30
"""By this time a kubelet has replaced a static pod with the one from its changed manifest."""


def find_container_trouble(
    host: Host,
    cri_socket: str,
    *,
    component: str,
    containers: Sequence[node_containers.ContainerInfo],
    unhealthy: str = "",
) -> Optional[BrokenLink]:
    """Why a component does not run, or runs and is unhealthy (`unhealthy`: what its probe reports)."""
    all_own = sorted((item for item in containers if item.name == component), key=lambda item: -item.created_ns)
    own = [item for item in all_own if not _is_replaced(host, item)]
    if all_own and not own:
        return _find_stuck_exchange(host, component)
    own = _without_deleted(host, cri_socket, own=own)
    if not own:
        return find_pod_trouble(host, cri_socket, component=component)
    newest = own[0]
    if newest.state == "running":
        return _find_running_trouble(host, cri_socket, own=own, unhealthy=unhealthy)
    if newest.state != "exited":
        return find_pod_trouble(host, cri_socket, component=component)
    return describe_exit(host, cri_socket, ended=newest)


def _find_stuck_exchange(host: Host, component: str) -> Optional[BrokenLink]:
    """Find a kubelet that does not start the changed pod. A kubelet that backs off a crashing pod may not start the pod
    of the changed manifest (seen with 1.35, for minutes); a restarted kubelet starts it at once."""
    manifest = host.stat(MANIFESTS / f"{component}.yaml")
    age_s = host.now().timestamp() - manifest.mtime if manifest else 0.0
    if age_s < _EXCHANGED_S:
        return None
    return BrokenLink(
        f"the kubelet does not start {component} from its changed manifest",
        f"{MANIFESTS}/{component}.yaml was changed {age_s:.0f} s ago, and the previous pod, which exited, is still in its place",
        f"restart the kubelet so that it looks again: {services.spoken_of(host).say('restart', 'kubelet')}, {THEN}",
        is_final=True,
        link="container",
    )


def _is_replaced(host: Host, item: node_containers.ContainerInfo) -> bool:
    """Whether an exited container was created from the static pod's manifest before its last change."""
    manifest = host.stat(MANIFESTS / f"{item.name}.yaml")
    is_dated = item.created_ns > 10**9  # in nanoseconds; ctr reports the number of the attempt instead
    return item.state == "exited" and is_dated and manifest is not None and item.created_ns / 1e9 < manifest.mtime


def _without_deleted(
    host: Host, cri_socket: str, *, own: list[node_containers.ContainerInfo]
) -> list[node_containers.ContainerInfo]:
    """Without what exited in pods that were deleted: a pod that moved to another node leaves its container behind for a while. The pod
    of a manifest on this node is never deleted."""
    if not own or own[0].state != "exited" or host.exists(MANIFESTS / f"{own[0].name}.yaml"):
        return own
    ready = node_containers.list_ready_sandboxes(host, cri_socket)
    if ready is None:
        return own
    return [item for item in own if item.state != "exited" or not item.sandbox or item.sandbox in ready]


def _find_running_trouble(
    host: Host, cri_socket: str, *, own: Sequence[node_containers.ContainerInfo], unhealthy: str
) -> Optional[BrokenLink]:
    """For a running container: its own log if it is unhealthy, or the reason why its predecessor exited if it is
    young."""
    newest = own[0]
    ended = next((item for item in own if item.state == "exited"), None)
    if ended is not None and newest.attempt >= 1 and unhealthy:
        found = describe_exit(host, cri_socket, ended=ended)
        if found.is_final:
            return found
    if not unhealthy:
        return None
    log = node_containers.container_logs(host, cri_socket, container_id=newest.id, lines=60)
    what = f"{newest.name} runs but is not healthy ({unhealthy})"
    found_sign = match_signs(host, CONTAINER_SIGNS, lines=log, what=what, link="probe", words=source_words(newest.name))
    if found_sign and found_sign.is_final:
        # it may have logged its last words before the runtime notices its exit
        host.sleep(_LAST_WORDS_S)
        again = (item for item in node_containers.list_containers(host, cri_socket) if item.id == newest.id)
        ended = next((item for item in again if item.state == "exited"), None)
        if ended is not None:
            return describe_exit(host, cri_socket, ended=ended)
    if found_sign:
        return replace(found_sign, details=last_lines(log))
    line = last_error_line(log)
    age_s = host.now().timestamp() - newest.created_ns / 1e9
    if not line or age_s < SETTLED_S or unhealthy == "timeout":
        return None  # a starting component complains about what is not there yet; one that hangs wrote its last error before
    return BrokenLink(
        what,
        f"its last word: {line}",
        f"read the whole log: crictl logs {newest.id[:13]}",
        details=last_lines(log),
        link="probe",
    )


_KILLED = 137
"""128 + SIGKILL."""


def _find_memory_limit(host: Host, name: str) -> str:
    """What a static pod may take at most; "" if it has no manifest here, or no limit, as kubeadm's have none."""
    path = MANIFESTS / f"{name}.yaml"
    try:
        pod = load_mapping(host.read_text(path), str(path)) if host.exists(path) else {}
    except HostError:
        return ""
    rows = [row for row in containers_of_pod(pod) if row.get("name") == name]
    limits = as_table(as_table(rows[0].get("resources")).get("limits")) if rows else {}
    return str(limits.get("memory") or "")


def describe_exit(host: Host, cri_socket: str, *, ended: node_containers.ContainerInfo) -> BrokenLink:
    """Why a container exited: the first error that it logged which is known, or its last word."""
    log = node_containers.container_logs(host, cri_socket, container_id=ended.id, lines=60)
    attempts = ended.attempt + 1
    code = "?" if ended.exit_code is None else ended.exit_code
    what = f"{ended.name} exited {attempts} time{'s' * (attempts != 1)} (code {code})"
    limit = _find_memory_limit(host, ended.name)
    told = f"{limit}: resources.limits.memory in {MANIFESTS}/{ended.name}.yaml"
    if ended.reason == "OOMKilled":
        return BrokenLink(
            f"{what}: it ran out of memory and was killed",
            f"its limit is too small for it ({told})"
            if limit
            else "the machine or the container's limit has too little memory (OOMKilled)",
            "see what uses it (free -m; dmesg | grep -i oom), give the machine more, " + THEN,
            is_final=attempts >= 3,
            link="container",
        )
    words = source_words(ended.name)
    found = match_signs(host, CONTAINER_SIGNS, lines=[*log, ended.message], what=what, link="container", words=words)
    if found:
        return replace(found, details=last_lines(log))
    line = last_error_line(log) or (log[-1].strip() if log else ended.message or "it wrote no log")
    if limit and ended.exit_code == _KILLED:  # not every runtime notices why
        cause = f"it was killed: it needs more memory than its limit ({told}), or did not end in time when its probes failed; its last word: {line}"
        remedy = f"take the limit away or raise it; if that is not it, read the whole log: crictl logs {ended.id[:13]}"
        return BrokenLink(what, cause, remedy, is_final=attempts >= 3, details=last_lines(log), link="container")
    return BrokenLink(
        what,
        f"its last word: {line}",
        f"read the whole log: crictl logs {ended.id[:13]}",
        is_final=attempts >= 3,
        details=last_lines(log),
        link="container",
    )


PROXY_GRACE_S = 40
"""kube-proxy checks its iptables rules every 30 seconds. It does not notice missing nftables rules until its next full
sync."""


def find_lost_rules(host: Host, cri_socket: str) -> Optional[BrokenLink]:
    """Find a kube-proxy that runs without any of its rules, because something emptied the kernel's tables (a restarted
    firewall, `nft flush ruleset`). None if there are rules of any of its modes, or if it has just started."""
    own = [item for item in node_containers.list_containers(host, cri_socket) if item.name == "kube-proxy"]
    newest = max(own, key=lambda item: item.created_ns, default=None)
    if newest is None or newest.state != "running" or host.now().timestamp() - newest.created_ns / 1e9 < PROXY_GRACE_S:
        return None
    tables = host.query(["nft", "list", "tables"])
    if not tables.ok:
        return None  # cannot be checked without nft
    has_rules = (
        re.search(r"^table ip6? kube-proxy$", tables.stdout, re.MULTILINE)
        or any(host.query([program, "-t", "nat", "-S", "KUBE-SERVICES"]).ok for program in ("iptables", "ip6tables"))
        or host.query(["ip", "link", "show", "dev", "kube-ipvs0"]).ok
    )
    if has_rules:
        return None
    return BrokenLink(
        "kube-proxy runs, but its rules are not on this node",
        "something emptied the kernel's tables (nft flush ruleset, systemctl restart nftables), and kube-proxy does not notice: "
        "no Service is reached",
        "make kube-proxy write them again: crictl stop $(crictl ps -q --name kube-proxy); and stop the firewall from flushing "
        "tables of others",
        link="proxy-rules",
    )


def container_error(host: Host, cri_socket: str, *, name: str) -> str:
    """The last error in the log of the newest container called `name`, if it is a minute old at most: what goes on being wrong is said again. "" if
    there is none."""
    own = [container for container in node_containers.list_containers(host, cri_socket) if container.name == name]
    if not own:
        return "no container of it was started"
    newest = max(own, key=lambda container: container.created_ns)
    told = node_containers.container_logs(host, cri_socket, container_id=newest.id, lines=50)
    return last_error_line([line for line in told if not _is_old(line, host.now())])


_KLOG_TIME = re.compile(r"[IWEF](\d{4} \d\d:\d\d:\d\d)")
_OLD_S = 90


def _is_old(line: str, now: datetime.datetime) -> bool:
    """By klog's stamp, which has no year and is in the container's time zone, UTC in those of Kubernetes; False without one."""
    found = _KLOG_TIME.match(line)
    if not found:
        return False
    try:
        moment = datetime.datetime.strptime(f"{now.year}{found[1]} +0000", "%Y%m%d %H:%M:%S %z")
    except ValueError:
        return False
    return (now - moment).total_seconds() > _OLD_S
