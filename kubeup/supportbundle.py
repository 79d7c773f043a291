"""kb support-bundle: logs, states and configuration of a node in one file, with every secret taken out.

Owns what is collected (the tables COMMANDS and FILES) and what counts as a secret (REDACTIONS). Everything that goes in
passes through redact(), the output of kb's own looks too; files that are secrets as a whole (private keys) are named and
not read. Changes nothing. kubeadm has no like of it.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Union

from kubeup import __version__, doctor, runtime
from kubeup.errors import HostError
from kubeup.host import Host

MARK = "[redacted]"
MAX_BYTES = 2 * 2**20
"""Of one file or output: the end of a log tells more than its start."""

COMMANDS: Mapping[str, str] = {
    "system/uname.txt": "uname -a",
    "system/processes.txt": "ps axfo pid,ppid,stat,etime,args",
    "system/disks.txt": "df -h",
    "system/memory.txt": "free -m",
    "system/mounts.txt": "cat /proc/mounts",
    "system/time.txt": "timedatectl",
    "system/units.txt": "systemctl list-units --failed --no-pager",
    "network/addresses.txt": "ip addr",
    "network/routes.txt": "ip route show table all",
    "network/listeners.txt": "ss -ltnp",
    "network/iptables.txt": "iptables-save",
    "network/nftables.txt": "nft list ruleset",
    "kubelet/unit.txt": "systemctl status kubelet --no-pager -l",
    "kubelet/unit-files.txt": "systemctl cat kubelet",
    "kubelet/journal.txt": "journalctl -u kubelet -n 5000 --no-pager -o short-iso",
    "runtime/unit.txt": "systemctl status containerd --no-pager -l",
    "runtime/journal.txt": "journalctl -u containerd -n 3000 --no-pager -o short-iso",
    "runtime/config-effective.toml": "containerd config dump",
    "kb/routes-journal.txt": "journalctl -u kb-routes -n 500 --no-pager -o short-iso",
    "kernel/dmesg.txt": "dmesg",
}
CRI_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "runtime/info.json": ("info",),
    "runtime/pods.txt": ("pods",),
    "runtime/containers.txt": ("ps", "-a"),
    "runtime/images.txt": ("images",),
}
KUBECTL_COMMANDS: Mapping[str, str] = {
    "cluster/nodes.yaml": "get nodes -o yaml",
    "cluster/pods.txt": "get pods -A -o wide",
    "cluster/kube-system.yaml": "-n kube-system get pods,daemonsets,deployments,services,configmaps -o yaml",
    "cluster/events.txt": "get events -A --sort-by=.lastTimestamp",
    "cluster/csrs.txt": "get certificatesigningrequests",
}
"""Secrets are never asked for: what is not read cannot leak."""
FILES: tuple[str, ...] = (
    "/var/lib/kb/state.json",
    "/var/lib/kubelet/config.yaml",
    "/var/lib/kubelet/instance-config.yaml",
    "/var/lib/kubelet/kubeadm-flags.env",
    "/etc/default/kubelet",
    "/etc/containerd/config.toml",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/os-release",
    "/etc/fstab",
    "/proc/swaps",
    "/proc/meminfo",
    "/etc/kubernetes/admin.conf",
    "/etc/kubernetes/kubelet.conf",
    "/etc/kubernetes/controller-manager.conf",
    "/etc/kubernetes/scheduler.conf",
)
FOLDERS: tuple[str, ...] = (
    "/etc/kubernetes/manifests",
    "/etc/kubernetes/pki",
    "/etc/kubernetes/pki/etcd",
    "/etc/cni/net.d",
    "/etc/containerd/conf.d",
    "/etc/systemd/system/kubelet.service.d",
    "/etc/systemd/system/containerd.service.d",
)
_KEY_FILE = re.compile(r"\.(key|p12|pfx)$|(^|/)(id_\w+|.*-key\.pem)$")

# ---- redaction

_PRIVATE_NAME = (
    r"[\w.-]*(?:passw(?:or)?d|passphrase|secret(?!s\b|Name|Ref|KeyRef)|token(?!s\b|-?ttl|Usages?)|credential|api[-_]?key|"
    r"private[-_]?key|certificate[-_]?key|key-data|keydata|identitytoken|(?<![\w-])auth)[\w.-]*"
)
_PLAIN_VALUES = frozenset({"true", "false", "null", "~", "none", "{}", "[]", '""', "''", "|", ">", "|-", MARK})

Replacement = Union[str, Callable[["re.Match[str]"], str]]


def _hide_value(match: re.Match[str]) -> str:
    """`name: value` with the value gone; a value that says nothing (true, a path of a file) stays."""
    value = match["value"].strip().strip(",")
    bare = value.strip("\"'")
    if value.lower() in _PLAIN_VALUES or not bare or bare.startswith(("/", "[redacted", "{", "[")) or bare.isdigit():
        return match[0]
    return f"{match['name']}{match['sign']}{MARK}" + ("," if match["value"].rstrip().endswith(",") else "")


REDACTIONS: tuple[tuple[str, re.Pattern[str], Replacement], ...] = (
    (
        "private keys",
        re.compile(r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL),
        f"-----BEGIN PRIVATE KEY----- {MARK} -----END PRIVATE KEY-----",
    ),
    (
        "web tokens",
        re.compile(r"\beyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*"),
        MARK,
    ),
    ("bootstrap tokens", re.compile(r"\b([a-z0-9]{6})\.[a-z0-9]{16}\b"), rf"\1.{MARK}"),
    (
        "authorization headers",
        re.compile(r"(?i)\b(authorization\\?[\"']?[ \t]*[:=][ \t]*\\?[\"']?)(?:bearer |basic |digest )?[^\s\"',\\]+"),
        rf"\1{MARK}",
    ),
    ("bearer tokens", re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{MARK}"),
    ("passwords in addresses", re.compile(r"(\w+://[^/\s:@\"']*):[^/\s@\"']+@"), rf"\1:{MARK}@"),
    (
        "flags",
        re.compile(rf"(?i)(?P<name>--{_PRIVATE_NAME})(?P<sign>=|\s+)(?P<value>[^\s\"',]+)"),
        _hide_value,
    ),
    (
        "fields with a block of text",
        re.compile(
            rf"(?im)^(?P<indent>[ \t]*)(?P<name>[^\n]*?\b{_PRIVATE_NAME}[\"']?):[ \t]*[|>][-+0-9]*\n(?:(?:(?P=indent)[ \t]+[^\n]*)?\n)*(?:(?P=indent)[ \t]+[^\n]*)?"
        ),
        rf"\g<indent>\g<name>: {MARK}\n",
    ),
    (
        "fields",
        re.compile(
            rf"(?im)(?P<name>[\"']?\b{_PRIVATE_NAME})(?P<sign>\\*[\"']?[ \t]*[:=][ \t]*)"
            r"(?P<value>\\+\"[^\"\n]*\"|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|[^\s{\[][^\n]*)"
        ),
        _hide_value,
    ),
    (
        "named values of a container's environment",
        re.compile(
            rf"(?im)(?P<name>name[\"']?:[ \t]*[\"']?{_PRIVATE_NAME}[\"']?[ \t]*,?[ \t]*\n?[ \t]*[\"']?value[\"']?)(?P<sign>:[ \t]*)(?P<value>[^\n]+)"
        ),
        _hide_value,
    ),
)
"""In this order. What is public (certificates, hashes of public keys, the id of a bootstrap token) stays: it tells much."""


def redact(text: str) -> str:
    """The text with every secret that kb knows the look of replaced by [redacted]; keys in base64 too."""
    text = _hide_encoded_keys(text)
    for _, pattern, replacement in REDACTIONS:
        text = pattern.sub(replacement, text)
    return text


def _hide_encoded_keys(text: str) -> str:
    """Base64 of a PEM private key, as kubeconfigs and Secrets hold it."""

    def judge(match: re.Match[str]) -> str:
        try:
            plain = base64.b64decode(match[0] + "=" * (-len(match[0]) % 4))
        except (binascii.Error, ValueError):
            return match[0]
        return MARK if b"PRIVATE KEY" in plain else match[0]

    return re.sub(r"\b[A-Za-z0-9+/]{64,}={0,2}", judge, text)


# ---- collecting


def collect(patient: doctor.Patient) -> dict[str, str]:
    """Name in the bundle -> redacted text. What cannot be had says why, in its own place."""
    host = patient.host
    found: dict[str, str] = {"README.txt": _render_readme()}
    notes = doctor.examine(patient)
    found["doctor.json"] = json.dumps([note.as_dict() for note in notes], indent=1)
    for name, command in COMMANDS.items():
        found[name] = _output(host, command.split())
    for name, words in CRI_COMMANDS.items():
        found[name] = _output(host, runtime.crictl_argv(patient.config.node.cri_socket, *words))
    if host.exists(patient.paths.admin_conf):
        for name, command in KUBECTL_COMMANDS.items():
            argv = ["kubectl", f"--kubeconfig={patient.paths.admin_conf}", "--request-timeout=5s", *command.split()]
            found[name] = _output(host, argv)
    for path in [*map(Path, FILES), *_list_files(host, FOLDERS)]:
        if host.exists(path):
            found[f"files{path}"] = _file(host, path)
    found.update(_container_logs(patient))
    return {name: redact(text) for name, text in found.items()}


def _render_readme() -> str:
    return (
        f"A support bundle of kb {__version__}. doctor.json has what kb doctor sees; the rest is what it saw it in.\n"
        f"Secrets are replaced by {MARK}: private keys, tokens, passwords, authorization headers. Names and addresses of\n"
        "machines are in it: look through it before you hand it on.\n"
    )


def _output(host: Host, argv: list[str]) -> str:
    answer = host.query(argv, timeout_s=20)
    if answer.missing:
        return f"({argv[0]} is not on this node)\n"
    tail = f"\n(exit status {answer.code})\n{answer.stderr}" if answer.code else ""
    return answer.stdout[-MAX_BYTES:] + tail


def _list_files(host: Host, folders: Iterable[str]) -> list[Path]:
    paths = [Path(folder) / name for folder in folders for name in host.list_dir(Path(folder))]
    return [path for path in paths if not host.is_dir(path)]


def _file(host: Host, path: Path) -> str:
    if _KEY_FILE.search(str(path)):
        return f"({path} is a private key: it is here on the node, and not read)\n"
    try:
        return host.read_text(path)[-MAX_BYTES:]
    except HostError as error:
        return f"({error})\n"


def _container_logs(patient: doctor.Patient) -> dict[str, str]:
    """The last lines of the newest two containers of each name in kube-system."""
    socket = patient.config.node.cri_socket
    counted: dict[str, int] = {}
    logs = {}
    for item in sorted(runtime.list_containers(patient.host, socket), key=lambda item: -item.created_ns):
        if item.namespace != "kube-system" or counted.get(item.name, 0) == 2:
            continue
        counted[item.name] = counted.get(item.name, 0) + 1
        lines = runtime.container_logs(patient.host, socket, item.id, lines=1000)
        logs[f"containers/{item.name}-{item.attempt}-{item.state}.log"] = "\n".join(lines)[-MAX_BYTES:] + "\n"
    return logs


def pack(files: Mapping[str, str], *, prefix: str) -> bytes:
    """A .tar.gz with the files below one folder."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name in sorted(files):
            data = files[name].encode(errors="replace")
            entry = tarfile.TarInfo(f"{prefix}/{name}")
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), mtime=0)
