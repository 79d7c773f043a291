"""Input and output of a check: the node with what is known about it, and findings."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from pathlib import Path
from typing import Optional, Union

from kubeup.config.types import NodeConfig
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.host import CommandResult, Host
from kubeup.node import runtime
from kubeup.paths import Paths
from kubeup.releases import Release, Version, parse_version

ERROR, WARNING, OK = "error", "warning", "ok"
FOLLOWS = "follows"
ROOT, NODE, IMAGES = "root", "node", "images"
INIT, JOIN, JOIN_CONTROL_PLANE, UPGRADE, RESET, DOCTOR = (
    "init", "join", "join-control-plane", "upgrade", "reset", "doctor",
)  # fmt: skip
"""Workflows. join: the checks of every joining node; join-control-plane: the additional checks after discovery."""


@frozen
class Finding:
    """The result of a check, or of one of doctor's, in one sentence with the object and its current value, and what to
    do about it.

    level: error | warning; for doctor also ok, and follows for what comes of an error above it, both without a remedy. Many have no separate cause, so it is not a Trouble; a
    Trouble that is reported as a finding becomes its sentence."""

    name: str
    level: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"[{self.level.upper()} {self.name}]: {self.text}. Remedy: {self.remedy}"


Findings = Iterable[Finding]


def not_proven(name: str, why: object) -> Finding:
    """What a check of doctor's could not find out. Without it, it would be told as well."""
    return Finding(name, OK, f"not proven: {why}", "")


def as_consequence(note: Finding, *levels: str) -> Finding:
    """A finding of one of the levels (an error, if none is named) as what comes of an error above it."""
    if note.level not in (levels or (ERROR,)):
        return note
    return dataclasses.replace(note, level=FOLLOWS, text=f"because of that: {note.text}", remedy="")


@frozen
class Node:
    """What a check examines: the machine, what it should become, and what kb has already created on it.

    Slow reads are done once; look_ahead() does them in parallel.
    """

    host: Host
    config: NodeConfig
    release: Release
    paths: Paths = field(default_factory=Paths)
    owned: frozenset[str] = frozenset()
    """Paths that kb created on this node, according to its state."""
    workflow: str = INIT
    mends: frozenset[str] = frozenset()
    """Phases of this run that fix what some checks examine; findings of those checks would be pointless."""
    skipped: frozenset[str] = frozenset()
    """Phases that the user left out of the workflow."""
    tell: Callable[[str], None] = lambda text: None
    """Receives what kb is waiting for right now."""

    @functools.cached_property
    def runtime(self) -> runtime.RuntimeStatus:
        return runtime.probe_runtime(self.host, self.config.node.cri_socket)

    @functools.cached_property
    def kubelet_answer(self) -> CommandResult:
        return self.host.query(["kubelet", "--version"], timeout_s=30)

    @property
    def kubelet_version(self) -> Optional[Version]:
        """The version of the installed kubelet; None if there is none or it does not report one."""
        match = re.search(r"Kubernetes (v\S+)", self.kubelet_answer.stdout) if self.kubelet_answer.ok else None
        return parse_version(match.group(1)) if match else None

    @functools.cached_property
    def units(self) -> Mapping[str, Mapping[str, str]]:
        """systemd's view of kubelet, firewalld and systemd-resolved; {} if systemd does not run."""
        names = ("kubelet.service", "firewalld.service", "systemd-resolved.service")
        wanted = "LoadState,ActiveState,UnitFileState"
        answer = self.host.query(["systemctl", "show", "--property", wanted, *names], timeout_s=15)
        if not answer.ok:
            return {}
        blocks = [block for block in answer.stdout.split("\n\n") if block.strip()]
        return {name: parse_pairs(block) for name, block in zip(names, blocks)}

    @functools.cached_property
    def name_addresses(self) -> Sequence[str]:
        """The addresses that the node's name resolves to. A resolver without a server would block for half a minute;
        after two seconds it is clear that the name is useless."""
        found: list[str] = []
        look = threading.Thread(target=lambda: found.extend(self.host.resolve(self.config.node.name)), daemon=True)
        look.start()
        look.join(timeout=2)
        return tuple(found)

    @functools.cached_property
    def mounts(self) -> Sequence[tuple[str, str, tuple[str, ...]]]:
        """/proc/mounts: (mount point, type, options); of several mounts on one mount point, the last one counts."""
        rows = [line.split() for line in read_or_empty(self.host, "/proc/mounts").splitlines()]
        last = {row[1]: (row[1], row[2], tuple(row[3].split(","))) for row in rows if len(row) >= 4}
        return tuple(last.values())

    def look_ahead(self) -> None:
        """Do the slow reads (programs, the resolver) in parallel."""
        with ThreadPoolExecutor(4) as pool:
            for name in ("runtime", "kubelet_answer", "units", "name_addresses"):
                pool.submit(getattr, self, name)

    def owns(self, path: Path) -> bool:
        return str(path) in self.owned

    def has_unit(self, name: str, state: str, *values: str) -> bool:
        return self.units.get(name, {}).get(state) in values

    def kubelet_setting(self, field: str, flag: str) -> object:
        """The user's setting for the kubelet, by flag (which takes precedence) or configuration; None for the
        default."""
        flags = [arg.value for arg in self.config.node.kubelet_extra_args if arg.name == flag]
        if not flags:
            return self.config.kubelet.get(field)
        return {"true": True, "false": False}.get(flags[-1], flags[-1])


def parse_pairs(text: str) -> dict[str, str]:
    """Parse lines of the form `key=value`."""
    return {key: value for key, sign, value in (line.partition("=") for line in text.splitlines()) if sign}


def read_or_empty(host: Host, path: Union[str, Path]) -> str:
    try:
        return host.read_text(Path(path))
    except HostError:
        return ""


def address_or_none(text: str) -> Optional[Union[ipaddress.IPv4Address, ipaddress.IPv6Address]]:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def network_or_none(text: str) -> Optional[Union[ipaddress.IPv4Network, ipaddress.IPv6Network]]:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
