"""What is wrong with the kubelet: its service, its exit, its connection to the API server, its own health."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from kubeup.diagnosis.checks.facts import read_or_empty
from kubeup.diagnosis.log_lines import last_error_line, shorten
from kubeup.diagnosis.signs import (
    KUBELET_SIGNS,
    SETTLED_S,
    THEN,
    BrokenLink,
    match_signs,
    say_missing_unit,
    say_unit_change,
)
from kubeup.frozen_values import frozen
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.http import Unreachable
from kubeup.yaml_files import YAMLError, load_yaml

RECENT_S = 90.0
"""A kubelet repeats what is still wrong; an older message may no longer be true."""


@frozen
class KubeletUnit:
    """What systemd reports about kubelet.service."""

    load: str
    active: str
    sub: str
    restarts: int
    exit_code: int
    invocation: str = ""
    active_since_s: float = 0.0
    """On the monotonic clock; 0 if it does not run."""
    pid: int = 0

    @property
    def is_ending(self) -> bool:
        """Whether it has exited, and systemd has given up or is about to restart it."""
        return self.active == "failed" or self.sub == "auto-restart"


def read_kubelet_unit(host: Host) -> Optional[KubeletUnit]:
    """The kubelet's unit; None if there is neither systemd nor OpenRC to query."""
    if services.spoken_of(host) is services.OPENRC:
        return _read_openrc_service(host)
    fields = (
        "LoadState,ActiveState,SubState,NRestarts,ExecMainStatus,InvocationID,ActiveEnterTimestampMonotonic,MainPID"
    )
    answer = host.query(["systemctl", "show", "kubelet", "-p", fields])
    if not answer.ok:
        return None
    found = dict(line.partition("=")[::2] for line in answer.stdout.splitlines())
    active = found.get("ActiveState", "")
    return KubeletUnit(
        found.get("LoadState", ""),
        active,
        found.get("SubState", ""),
        _number(found.get("NRestarts")),
        _number(found.get("ExecMainStatus")),
        found.get("InvocationID", ""),
        _number(found.get("ActiveEnterTimestampMonotonic")) / 1e6 if active == "active" else 0.0,
        _number(found.get("MainPID")),
    )


def _number(text: Optional[str]) -> int:
    return int(text) if text and text.isdecimal() and len(text) < _DIGITS else 0


_DIGITS = 20
"""Of systemd's largest number, 64 bits."""


def _read_openrc_service(host: Host) -> KubeletUnit:
    """The same from OpenRC, which reports only whether it runs."""
    state = services.read_state(host, "kubelet")
    return KubeletUnit("not-found" if state == "unknown" else "loaded", state, "", restarts=0, exit_code=0)


def read_kubelet_log(host: Host, *, lines: int = 200, since: str = "", invocation: str = "") -> list[str]:
    """The last lines of the kubelet's journal, oldest first; with `invocation`, of that start only. OpenRC's log file
    has no times, so none of its lines counts as recent."""
    if services.spoken_of(host) is services.OPENRC:
        return [] if since else services.read_log(host, "kubelet", lines=lines)
    words = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else ["-u", "kubelet"]
    words += ["--since", since] if since else []
    answer = host.query(["journalctl", *words, "-n", str(lines), "-o", "cat", "--no-pager"])
    return answer.stdout.splitlines() if answer.ok else []


def read_present_log(host: Host, *, lines: int = 200, since_s: float = RECENT_S) -> list[str]:
    """What the running kubelet logged in the last `since_s` seconds: an earlier problem may be fixed by now."""
    unit = read_kubelet_unit(host)
    return read_kubelet_log(host, lines=lines, since=f"-{since_s:g}s", invocation=unit.invocation if unit else "")


def read_denial(host: Host, pod: str) -> str:
    """Why the running kubelet has refused the static pod of this name, which it says once and then never tries again; "" if it has not.
    Source: pkg/kubelet/allocation, HandlePodAdditions"""
    unit = read_kubelet_unit(host)
    lines = read_kubelet_log(host, lines=2000, invocation=unit.invocation if unit else "")
    found = [line for line in lines if '"Pod admission denied"' in line and f"/{pod}-" in line]
    said = re.search(r' message="(.*)"$', found[-1]) if found else None
    return shorten(said[1].replace('\\"', '"')) if said else ""


def find_kubelet_trouble(host: Host) -> Optional[BrokenLink]:
    """Whether the kubelet's unit exists and the kubelet stays up."""
    unit = read_kubelet_unit(host)
    if unit is None:
        return None
    if unit.load in ("not-found", "masked"):
        return BrokenLink(
            "the kubelet is not running",
            f"{services.spoken_of(host).name_unit('kubelet')} is {'masked' if unit.load == 'masked' else 'not there'}",
            "systemctl unmask kubelet" if unit.load == "masked" else say_missing_unit(host),
            is_final=True,
            link="kubelet-unit",
        )
    is_young = unit.active == "active" and host.monotonic() - unit.active_since_s < SETTLED_S
    if unit.is_ending or (is_young and unit.restarts >= 2):
        return _describe_kubelet_end(host, unit)
    if unit.active == "inactive":
        return BrokenLink(
            "the kubelet is not running",
            "it is stopped",
            f"{services.spoken_of(host).say('start', 'kubelet')}, {THEN}",
            link="kubelet-unit",
        )
    return None


_PASSING = re.compile(r"I\d{4} ")
"""klog's level of what is no failure: a kubelet that ends says there, among others, that it has found no CRI-O."""


def _describe_kubelet_end(host: Host, unit: KubeletUnit) -> BrokenLink:
    what = f"the kubelet does not stay up (restarted {unit.restarts} times, exit code {unit.exit_code})"
    if services.spoken_of(host) is services.OPENRC:
        what = "the kubelet does not stay up (OpenRC: crashed)"
    told = read_kubelet_log(host, invocation=unit.invocation if unit.is_ending else "", lines=300)
    lines = [line for line in told if not _PASSING.match(line)]
    found = match_signs(host, KUBELET_SIGNS, lines=lines, what=what, link="kubelet-log")
    if found:
        return found
    return BrokenLink(
        what,
        last_error_line(lines) or "its log shows no error",
        f"fix the cause, {THEN} (the whole log: {services.say_log(host, 'kubelet', lines=200)})",
        is_final=unit.restarts >= 2,
        link="kubelet-log",
    )


def find_request_trouble(host: Host) -> Optional[BrokenLink]:
    """Why the certificate signing request of a running kubelet does not reach the API server, from its log."""
    lines = read_present_log(host)
    if any(_REFUSED.search(line) for line in lines):
        return BrokenLink(
            "the API server does not accept the kubelet's certificate",
            f"the kubelet says Unauthorized: {_CLIENT_PEM} is from another cluster, or from a previous CA, and the kubelet "
            "presents it as long as it exists",
            f"mv {_CLIENT_PEM} {_CLIENT_PEM}.off && {services.spoken_of(host).say('restart', 'kubelet')} (the command then continues)",
            link="kubelet-log",
        )
    for line in reversed(lines):
        found = _REQUEST_FAILED.search(line.replace('\\"', "'"))
        if not found:
            continue
        is_proxy = "proxyconnect" in found[0]
        return BrokenLink(
            "the kubelet cannot ask for its certificate",
            shorten(found[0]) + ("; its unit sets that proxy, and nothing else here uses it" if is_proxy else ""),
            f"name the API server in NO_PROXY, or remove the proxy: {say_unit_change(host)}; {THEN}"
            if is_proxy
            else f"see what the kubelet says: {services.say_log(host, 'kubelet')}",
            link="kubelet-log",
        )
    return None


def find_registration_trouble(host: Host) -> Optional[BrokenLink]:
    """Why a running kubelet does not register its node, from its log."""
    found = find_request_trouble(host)
    if found:
        return found
    for line in reversed(read_present_log(host)):
        told = _NOT_REGISTERED.search(line.replace('\\"', "'"))
        if told:
            remedy = f"see what the kubelet says: {services.say_log(host, 'kubelet')}"
            return BrokenLink("the kubelet cannot register its node", shorten(told["why"]), remedy, link="kubelet-log")
    return None


_CLIENT_PEM = "/var/lib/kubelet/pki/kubelet-client-current.pem"
_REFUSED = re.compile(
    r'Unable to register node with API server" err="Unauthorized"|"Failed to ensure lease exists.* err="Unauthorized"'
)
_NOT_REGISTERED = re.compile(r'Unable to register node with API server" err="(?P<why>[^"]+)"')
_REQUEST_FAILED = re.compile(r"cannot create certificate signing request: [^\"]*[^\"\s]")


def find_healthz_trouble(host: Host) -> Optional[BrokenLink]:
    """Whether a kubelet that has run for a while answers on its health port."""
    unit = read_kubelet_unit(host)
    config = _load_mapping(host, Path("/var/lib/kubelet/config.yaml"))
    port = config.get("healthzPort", 10248)
    if unit is None or unit.active != "active" or not port or host.monotonic() - unit.active_since_s < SETTLED_S:
        return None
    url = f"http://127.0.0.1:{port}/healthz"
    try:
        answer = host.http_get(url, timeout_s=3)
    except Unreachable as error:
        seen = error.cause
    else:
        if answer.status == 200:
            return None
        seen = f"HTTP {answer.status}: {answer.body[:200].decode(errors='replace').strip()}"
    line = last_error_line(read_present_log(host))
    return BrokenLink(
        f"the kubelet runs but is not healthy: {seen}",
        line or f"{url} does not answer with 200, and its log shows no error",
        f"see its log: {services.say_log(host, 'kubelet')}",
        link="kubelet-healthz",
    )


def _load_mapping(host: Host, path: Path) -> Mapping[str, object]:
    try:
        found = load_yaml(read_or_empty(host, path) or "{}")
    except YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
