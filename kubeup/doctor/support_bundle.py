"""kb support-bundle: logs, states and configuration of a node in one file, with every secret removed.

Owns what is collected (the tables COMMANDS, FILES and FOLDERS). All content passes through redact.py, including the
output of kb's own checks. Files in a folder of keys that are not known to be public are listed but not read. Changes
nothing. kubeadm has no equivalent.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from kubeup import __version__
from kubeup.doctor import node_files
from kubeup.doctor.looks import table
from kubeup.errors import HostError
from kubeup.machine.host import Host
from kubeup.node import containers, crictl
from kubeup.redact import MARK, redact

MAX_BYTES = 2 * 2**20
"""The limit for one file or output: the end of a log tells more than its start."""

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
    "kb/certs-journal.txt": "journalctl -u kb-certs -n 500 --no-pager -o short-iso",
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
"""Secrets are never fetched: what is not read cannot leak."""
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
_KEY_FILE = re.compile(r"\.(key|p12|pfx|jks)$|(^|/)(id_\w+|.*-key\.pem)$|^/etc/kubernetes/pki/(?!.*\.(crt|pub)$)")
"""Private keys, and everything beside them that is neither a certificate nor a public key."""
_ID = re.compile(r"\"(?:id|uid|podSandboxId)\": ?\"([0-9a-f]{32,64})\"")

# ---- collecting


def collect(patient: node_files.Patient) -> dict[str, str]:
    """Name in the bundle -> redacted text. Content that cannot be read is replaced by the reason."""
    host = patient.host
    found: dict[str, str] = {"README.txt": _render_readme()}
    notes = table.examine(patient)
    found["doctor.json"] = json.dumps([table.as_dict(note) for note in notes], indent=1)
    for name, command in COMMANDS.items():
        found[name] = _output(host, command.split())
    for name, words in CRI_COMMANDS.items():
        found[name] = _output(host, crictl.crictl_argv(patient.config.node.cri_socket, *words))
    if host.exists(patient.paths.admin_conf):
        for name, command in KUBECTL_COMMANDS.items():
            argv = ["kubectl", f"--kubeconfig={patient.paths.admin_conf}", "--request-timeout=5s", *command.split()]
            found[name] = _output(host, argv)
    for path in [*map(Path, FILES), *_list_files(host, FOLDERS)]:
        if host.exists(path):
            found[f"files{path}"] = _file(host, path)
    found.update(_container_logs(patient))
    known = _container_ids(host, patient.config.node.cri_socket)
    return {name: redact(text, known) for name, text in found.items()}


def _container_ids(host: Host, socket: str) -> frozenset[str]:
    """The IDs of containers, sandboxes and static pods: logs are full of them, and they look like keys."""
    answers = (host.query(crictl.crictl_argv(socket, *words, "-o", "json")) for words in (("ps", "-a"), ("pods",)))
    return frozenset(found for answer in answers for found in _ID.findall(answer.stdout))


def _end_of(text: str) -> str:
    """The last MAX_BYTES of a text, starting at the beginning of a line."""
    return text if len(text) <= MAX_BYTES else text[-MAX_BYTES:].partition("\n")[2]


def _render_readme() -> str:
    return (
        f"A support bundle of kb {__version__}. doctor.json has what kb doctor reports; the rest is what it examined.\n"
        f"{MARK} stands for every value of a private name (password, token, ...) and for every word that is not known to be\n"
        "harmless. Names and addresses of machines are in it: read it before you share it.\n"
    )


def _output(host: Host, argv: list[str]) -> str:
    answer = host.query(argv, timeout_s=20)
    if answer.missing:
        return f"({argv[0]} is not on this node)\n"
    tail = f"\n(exit status {answer.code})\n{answer.stderr}" if answer.code else ""
    return _end_of(answer.stdout) + tail


def _list_files(host: Host, folders: Iterable[str]) -> list[Path]:
    paths = [Path(folder) / name for folder in folders for name in host.list_dir(Path(folder))]
    return [path for path in paths if not host.is_dir(path)]


def _file(host: Host, path: Path) -> str:
    if _KEY_FILE.search(str(path)):
        return f"({path} is a private key, or lies next to private keys: it exists on the node, but was not read)\n"
    try:
        return _end_of(host.read_text(path))
    except HostError as error:
        return f"({error})\n"


def _container_logs(patient: node_files.Patient) -> dict[str, str]:
    """The last lines of the two newest containers of each name in kube-system."""
    socket = patient.config.node.cri_socket
    counted: dict[str, int] = {}
    logs = {}
    for item in sorted(containers.list_containers(patient.host, socket), key=lambda item: -item.created_ns):
        if item.namespace != "kube-system" or counted.get(item.name, 0) == 2:
            continue
        counted[item.name] = counted.get(item.name, 0) + 1
        lines = containers.container_logs(patient.host, socket, container_id=item.id, lines=1000)
        logs[f"containers/{item.name}-{item.attempt}-{item.state}.log"] = _end_of("\n".join(lines)) + "\n"
    return logs


def pack(files: Mapping[str, str], *, prefix: str) -> bytes:
    """Pack the files into a .tar.gz, inside one folder."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name in sorted(files):
            data = files[name].encode(errors="replace")
            entry = tarfile.TarInfo(f"{prefix}/{name}")
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), mtime=0)
