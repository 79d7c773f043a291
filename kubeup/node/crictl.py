"""Talks to the runtime through crictl, or through containerd's ctr if there is no crictl, so that kb needs no gRPC.

This module builds the command lines, and parses their output and error messages.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kubeup.machine.host import Host


def socket_path(socket: str) -> Path:
    """The path in `unix:///run/x.sock`, `unix:/run/x.sock` or `/run/x.sock`."""
    return Path(re.sub(r"^(?i:unix):(//)?(?=/)", "", socket.strip()))


def crictl_argv(socket: str, *words: str) -> list[str]:
    """A crictl command that depends only on the socket: /etc/crictl.yaml is ignored."""
    endpoint = f"unix://{socket_path(socket)}"
    options = ["--config", "/dev/null", "--timeout", "10s"]
    return ["crictl", *options, "--runtime-endpoint", endpoint, "--image-endpoint", endpoint, *words]


def ctr_argv(socket: str, *words: str) -> list[str]:
    return ["ctr", "--connect-timeout", "5s", "-a", str(socket_path(socket)), "-n", "k8s.io", *words]


UNITS = ("containerd", "crio")
"""The services of the runtimes that kb knows."""


def unit_of(socket: str) -> str:
    """The name of the service that listens on the socket."""
    return "crio" if "crio" in socket_path(socket).name else "containerd"


def find_unit(host: Host) -> str:
    """The name of this machine's runtime service, for a text of somebody who knows no socket."""
    return "crio" if host.which("crio") and not host.which("containerd") else "containerd"


def data_folder(unit: str) -> str:
    """Where a runtime has images and containers, unless it is configured otherwise."""
    return "/var/lib/containers" if unit == "crio" else "/var/lib/containerd"


def install_command(host: Host, deb: str, rpm: str = "", *, apk: str = "") -> str:  # noqa: PLR0917
    """The command with which this node's package manager installs a package."""
    if host.which("apk"):
        return f"apk add {apk or deb}"
    for program, package in (("apt-get", deb), ("dnf", rpm or deb), ("yum", rpm or deb), ("zypper", rpm or deb)):
        if host.which(program):
            return f"{program} install {package}"
    return f"install the package {deb}"


def last_words(stderr: str) -> str:
    """The final error message of a program without log prefixes: the msg of crictl's `time=... level=fatal msg="..."`, or the last
    line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for line in reversed(lines):
        match = re.search(r'level=(?:fatal|error) msg="((?:[^"\\]|\\.)*)"', line)
        if match:
            text = match.group(1).replace('\\"', '"').replace("\\\\", "\\")
            return text.rpartition(" desc = ")[2] or text
    return lines[-1] if lines else "it said nothing"


def split_json(text: str) -> list[dict[str, Any]]:
    """The JSON objects in `text`, concatenated or in a list."""
    found: list[dict[str, Any]] = []
    decoder = json.JSONDecoder()
    at = 0
    while True:
        start = re.compile(r"[\[{]").search(text, at)
        if not start:
            return found
        try:
            value, at = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            return found
        found.extend(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict))
