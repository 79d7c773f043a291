"""Any words on the command line, found from kb's own tables: a flag that is new is fuzzed from its first day. Whatever stands
there, kb does it or says what is wrong with it; what it does, it does to a node below a folder."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.cli import program
from kubeup.config.flag_table import BY_NAME, Flag
from kubeup.yaml_files import dump_yaml, load_all_yaml
from tests.fuzz import ODD_TEXTS, alter_bytes, alter_value, cases
from tests.fuzz.node import CONFIG, JOIN, Ended, Node, Site, call

REAL = ("/proc/self/mem", "/proc/self/maps", "/dev/null", "/dev/full", "/dev/zero", "/dev/stdin", "/dev/fd/0")
"""What is this machine's own, however deep the node lies: to be read as far as that goes, and never replaced."""
FILES = (
    "/odd/fifo", "/odd/folder", "/odd/socket", "/odd/loop", "/odd/dangling", "/odd/empty", "/odd/bytes", "/odd/deep", "/odd/utf16", "/odd/closed",
    "/odd/closed/file", "/etc/kb.yaml", "/etc/kb.yaml/x", "/etc/kubernetes/admin.conf", "/etc/kubernetes/pki", "/etc/kubernetes/pki/ca.key", "kb.yaml", ".",
    "..", "../../../etc/kb.yaml", "~", "/", "//", "/etc//kb.yaml", "./", "-", "/var/lib/kb/state.json", "/nowhere/file", "a" * 300, "/odd/" + "d/" * 2100, *REAL,
)  # fmt: skip
TEXTS = (
    *ODD_TEXTS, "x" * 100_000, "\udc80\udcff", "a\0b", "--config=x", "-o", "-", "==", "a=", "=b", ",", ",,", "a,,b", "a=b=c", "a,b=c,d", "\t", "\r\n", "\x9b31m",
    "\u202e", "\u0661", "٣", "²", "-1", "0", "65536", "99999999999999999999", "1.5", "0x10", "1_000", "inf", "true", "True", "10.0.0.11", "10.0.0.11:6443",
    "10.0.0.0/33", "::", "::1", "[::1]:6443", "fe80::1%eth0", "[fe80::1%25eth0]:1", "::ffff:1.2.3.4", "[", "[]", "[::", "]:1", "10.0.0.0/8,fd00::/64", "0.0.0.0/0",
    "::/0", "1.2.3.4:99999", "a:b:c", ":1", "a:", "http://", "https://[", "http://[::1", "https://u:p@h:1/p?q#f", "http://h:99999", "file:///etc/kb.yaml", "ftp://x",
    "http://\n", "https://é", "//h", "unix:///run/x", "unix:/x", "unix://", "npipe:////x", "v1.35.6", "1.35", "stable", "latest", "v1.99.0", "v1.35.6+x", "v1.35.6-rc.0",
    "v١.35.6", "24h", "1h1h", "-1s", "9" * 30 + "h", "1ns", "0.000000001s", "h", "abcdef.0123456789abcdef", "abcdef", "ABCDEF.0", "sha256:" + "a" * 64, "sha256:" + "g" * 64,
    "sha512:x", "a" * 64, "é" * 64, "RootlessControlPlane=true", "x=true", "all", "preflight", "certs/all", "a/b/c", "json", "yaml", "system:masters", "cp1", "CP1", "-a", "a.",
    "a" * 254, "registry/é", "r/a@sha256:x", "r/a:b:c", "linux/amd64", "amd64", "official", "containerd=2.1.4", "*", "?", "$(x)", "`x`", ";", "\\", "%00", "%",
)  # fmt: skip
BASES: dict[str, tuple[str, tuple[str, ...]]] = {
    # on which node a command is run, and with which words besides chance's; all others: on a control plane, without
    "init": ("empty", ("--dry-run", "--ignore-preflight-errors=all")),
    "init phase": ("empty", ("certs/ca", "--dry-run")),
    "join": ("joining", ("PIN", *JOIN[1:], "--dry-run")),
    "join phase": ("joining", ("preflight", "PIN", *JOIN[1:], "--dry-run")),
    "reconfigure endpoint": ("control-plane", ("api.example.org:6443", "--dry-run")),
    "reset": ("control-plane", ("--force", "--dry-run")),
    "adopt": ("control-plane of kubeadm's", ()),
    "routes": ("control-plane", ("--once",)),
    "load-balancer": ("control-plane", ("--once",)),
    "config validate": ("control-plane", ("--config=/etc/kb.yaml",)),
    "config migrate": ("control-plane", ("--old-config=/etc/kb.yaml",)),
    "kubeconfig user": ("control-plane", ("--client-name=x",)),
    "bundle create": ("control-plane", ("--output-file=/x.tar", "--from=/odd/folder")),
    "bundle verify": ("control-plane", ("/odd/bytes",)),
    "bundle show": ("control-plane", ("/odd/bytes",)),
    "bundle diff": ("control-plane", ("/odd/bytes", "/odd/folder")),
    "mirror serve": ("control-plane", ("/odd/folder",)),
    "mirror add": ("control-plane", ("/odd/bytes",)),
    "mirror sync": ("control-plane", ("/odd/folder", "--to=http://10.0.0.11")),
    "token create": ("control-plane", ("--print-join-command",)),
    "token delete": ("control-plane", ("abcdef",)),
    "etcd remove": ("control-plane", ("1", "--force")),
    "certs renew": ("control-plane", ("all",)),
    "certs add-san": ("control-plane", ("api.example.org", "--dry-run")),
    "certs rotate-sa": ("control-plane", ("--dry-run",)),
    "certs rotate-ca": ("control-plane", ("front-proxy", "--dry-run")),
    "certs auto": ("control-plane", ("on",)),
    "certs generate-csr": ("control-plane", ("--kubeconfig-dir=/csr", "--cert-dir=/csr")),
    "completion": ("control-plane", ("bash",)),
}  # fmt: skip
DOCUMENTS = [
    *load_all_yaml(CONFIG),
    {
        "apiVersion": "kb/v1alpha1", "kind": "KbConfiguration", "podNetwork": {"plugin": "manifest", "manifest": "/odd/bytes"},
        "loadBalancer": {"type": "local"}, "mirror": {"endpoint": "http://10.0.0.11:5000", "caHash": ""}, "packages": {"source": "none"},
    },
    {
        "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "JoinConfiguration", "nodeRegistration": {"name": "w1", "taints": [{"key": "a", "effect": "NoSchedule"}]},
        "discovery": {"bootstrapToken": {"token": "abcdef.0123456789abcdef", "apiServerEndpoint": "10.0.0.11:6443", "unsafeSkipCAVerification": True}},
        "patches": {"directory": "/odd/folder"}, "timeouts": {"discovery": "5m0s"},
    },
    {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "clusterDNS": ["10.96.0.10"]},
]  # fmt: skip


class OpenNode(Node):
    """A node through which some files of this machine can be seen."""

    def at(self, path: Path) -> Path:
        return path if str(path) in REAL else super().at(path)

    def target(self, path: Path) -> Path:
        return path if str(path) in REAL else super().target(path)

    def real_path(self, path: Path) -> Path:
        return path if str(path) in REAL else super().real_path(path)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_odd_files(node: Node, chance: random.Random) -> None:
    folder = node.root / "odd"
    (folder / "folder").mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        place = os.open(folder, os.O_PATH)  # the name of a socket has no more than 107 characters
        server.bind(f"/proc/self/fd/{place}/socket")
        os.close(place)
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("/nowhere/file")
    (folder / "empty").touch()
    (folder / "bytes").write_bytes(alter_bytes(chance, CONFIG.encode()))
    (folder / "deep").write_text("[" * 50_000)
    (folder / "utf16").write_text(CONFIG, encoding="utf-16")
    (folder / "closed").mkdir(mode=0)
    for name in ("bytes", "etcd+merge.yaml", "kubelet0.yaml"):
        (folder / "folder" / name).write_bytes(alter_bytes(chance, b"metadata: {annotations: {a: b}}\n"))


def value_for(chance: random.Random, option: Flag) -> str:
    if option.choices and chance.random() < 0.5:
        return chance.choice(option.choices)
    if chance.random() < 0.3:
        return chance.choice(FILES)
    return chance.choice(TEXTS)


def choose_words(chance: random.Random, command: program.Command) -> tuple[str, list[str]]:
    """The node, and the words."""
    kind, base = BASES.get(command.name, ("control-plane", ()))
    words = list(base)
    known = {name: BY_NAME[name] for name in command.options}
    for name in chance.sample(sorted(known), min(len(known), chance.choice((0, 1, 1, 1, 2)))):
        words = [word for word in words if not word.startswith(f"--{name}=") or name == "dry-run"]
        value = value_for(chance, known[name])
        if known[name].takes == "flag":
            words.append(chance.choice((f"--{name}", f"--{name}", f"--{name}={value}")))
        else:
            words += chance.choice(([f"--{name}={value}"], [f"--{name}={value}"], [f"--{name}", value]))
    if command.arguments and chance.random() < 0.4:
        words = [word for word in words if word.startswith("-")]
        words += [chance.choice((*TEXTS, *FILES)) for _ in range(chance.choice((1, 1, 2)))]
    if chance.random() < 0.1:
        words.insert(
            chance.randrange(len(words) + 1),
            chance.choice((*TEXTS, "--v=9", "-v", "-h", "-ojson", "-o=yaml")),
        )
    if "config" in known and chance.random() < 0.3:
        words.append("--config=/etc/kb.yaml")
    if chance.random() < 0.1:
        words.insert(0, "--as-kubeadm")
    if command.name == "init" and chance.random() < 0.2:
        words.append("--root=" + chance.choice(("/odd/node", "below", "", ".", "a/../b")))
    return kind, [*command.name.split(), *words]


def run(site: Site, command: program.Command, chance: random.Random) -> tuple[list[str], Ended]:
    kind, words = choose_words(chance, command)
    node = site.clone(kind, make=OpenNode)
    make_odd_files(node, chance)
    if chance.random() < 0.3:
        trees = [
            tree if chance.random() < 0.5 else alter_value(chance, tree)
            for tree in chance.sample(DOCUMENTS, chance.choice((1, 2, 3)))
        ]
        text: Any = "---\n".join(dump_yaml(tree) for tree in trees).encode(errors="surrogateescape")
        (node.root / "etc/kb.yaml").write_bytes(text if chance.random() < 0.8 else alter_bytes(chance, text))
    words = [f"--discovery-token-ca-cert-hash={site.pin}" if word == "PIN" else word for word in words]
    words = [
        word.replace("/odd/node", str(node.root / "odd/node")) if word.startswith("--root=") else word for word in words
    ]
    ended = call(words, lambda: node, site.folder, Path.cwd())
    site.drop(node)
    return words, ended


def test_any_words(site: Site) -> None:
    for chance in cases("command line", 300):
        words, ended = run(site, chance.choice(kb.COMMANDS), chance)
        assert not ended.bug, f"{[word[:200] for word in words]!a}\n{ended.bug}"
