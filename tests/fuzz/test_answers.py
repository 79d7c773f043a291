"""What a program, a server or a file of the node says may be anything: whole commands are run on a node that is well but for
one answer. Whatever that is, the command ends with a word of its own, and with no bug of kb's."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any, BinaryIO, Optional

import pytest

from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse, Unreachable
from tests.fuzz import ODD_TEXTS, alter_bytes, alter_value, cases
from tests.fuzz.node import JOIN, KEY, Node, Site, call

INIT = ("init", "--config=/etc/kb.yaml", "--ignore-preflight-errors=all", "--soak=0")
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    # what is run: on which node, in which words
    "doctor": ("control-plane", ("doctor",)),
    "doctor as json": ("control-plane", ("doctor", "-o", "json")),
    "doctor of a worker": ("worker", ("doctor",)),
    "status": ("control-plane", ("status",)),
    "support-bundle": ("control-plane", ("support-bundle", "--to=/bundle.tar.gz")),
    "token list": ("control-plane", ("token", "list")),
    "token create": ("control-plane", ("token", "create", "--print-join-command", "--control-plane")),
    "token delete": ("control-plane", ("token", "delete", "abcdef")),
    "etcd members": ("control-plane", ("etcd", "members")),
    "etcd remove": ("control-plane", ("etcd", "remove", "1", "--force")),
    "etcd defrag": ("control-plane", ("etcd", "defrag", "--yes")),
    "etcd compact": ("control-plane", ("etcd", "compact", "7")),
    "etcd alarm": ("control-plane", ("etcd", "alarm", "disarm", "--yes")),
    "etcd leader": ("control-plane", ("etcd", "leader", "1")),
    "certs check-expiration": ("control-plane", ("certs", "check-expiration")),
    "certs renew": ("control-plane", ("certs", "renew", "all")),
    "certs recover": ("control-plane", ("certs", "recover")),
    "certs recover of a worker": ("worker", ("certs", "recover", "--token=abcdef.0123456789abcdef")),
    "certs generate-csr": ("control-plane", ("certs", "generate-csr", "--cert-dir=/csr", "--kubeconfig-dir=/csr")),
    "adopt": ("control-plane of kubeadm's", ("adopt",)),
    "adopt a worker": ("worker of kubeadm's", ("adopt",)),
    "reconfigure": ("control-plane", ("reconfigure", "endpoint", "k8s.example.org:6443")),
    "reconfigure with a balancer": ("control-plane", ("reconfigure", "endpoint", "api.example.org:8443", "--load-balancer=local")),
    "reset": ("control-plane", ("reset", "--force")),
    "reset of a worker": ("worker", ("reset", "--force")),
    "routes": ("control-plane", ("routes", "--once")),
    "load-balancer": ("control-plane", ("load-balancer", "--once")),
    "init": ("empty", INIT),
    "init again": ("control-plane", INIT),
    "init --fix": ("empty", (*INIT, "--fix", "--dry-run")),
    "init --load-balancer": ("empty", ("init", "--kubernetes-version=v1.35.6", "--pod-network-cidr=10.244.0.0/16", "--control-plane-endpoint=api.example.org:8443", "--load-balancer=local", "--ignore-preflight-errors=all", "--dry-run")),
    "join": ("joining", (*JOIN, "PIN")),
    "join again": ("worker", (*JOIN, "PIN")),
    "join --control-plane": ("joining", (*JOIN, "PIN", "--control-plane", f"--certificate-key={KEY}")),
    "config images pull": ("control-plane", ("config", "images", "pull", "--config=/etc/kb.yaml")),
    "kubeconfig user": ("control-plane", ("kubeconfig", "user", "--client-name=x", "--config=/etc/kb.yaml")),
    "init as kubeadm": ("empty", ("--as-kubeadm", *INIT[:-1])),
    "join as kubeadm": ("joining", ("--as-kubeadm", *JOIN[:-1], "PIN")),
    "reset as kubeadm": ("control-plane", ("--as-kubeadm", "reset", "--force")),
    "token list as kubeadm": ("control-plane", ("--as-kubeadm", "token", "list")),
}  # fmt: skip


class OddNode(Node):
    """A node on which one question gets an odd answer. heard: every question that was asked."""

    odd: str = ""
    chance: random.Random = random.Random(0)
    heard: dict[str, None]

    def asks(self, question: str) -> bool:
        if not hasattr(self, "heard"):
            self.heard = {}
        self.heard.setdefault(question)
        return question == self.odd

    # programs

    def query(self, argv: Any, **rest: Any) -> CommandResult:
        found = super().query(argv, **rest)
        return self.alter(found) if self.asks("query " + " ".join(found.argv)) else found

    def run(self, argv: Any, **rest: Any) -> CommandResult:
        found = super().run(argv, **rest)
        return self.alter(found) if self.asks("run " + " ".join(found.argv)) else found

    def alter(self, found: CommandResult) -> CommandResult:
        chance = self.chance
        if chance.random() < 0.2:
            code = chance.choice((1, 2, 124, 126, 127, -9, 255))
            return CommandResult(found.argv, code, "", chance.choice(ODD_TEXTS), missing=code == 127)
        text = alter_text(chance, found.stdout.encode()).decode(errors="replace")  # as _execute reads a program
        return CommandResult(found.argv, chance.choice((0, 0, 0, 1)), text, chance.choice(ODD_TEXTS))

    # servers

    def http_get(self, url: str, **rest: Any) -> HttpResponse:
        found = super().http_get(url, **rest)
        return self.alter_answer(url, found) if self.asks("get " + url) else found

    def http_ask(self, url: str, body: bytes, **rest: Any) -> HttpResponse:
        found = super().http_ask(url, body, **rest)
        return self.alter_answer(url, found) if self.asks("ask " + url) else found

    def http_send(self, method: str, url: str, **rest: Any) -> HttpResponse:
        found = super().http_send(method, url, **rest)
        return self.alter_answer(url, found) if self.asks(f"send {method} {url}") else found

    def alter_answer(self, url: str, found: HttpResponse) -> HttpResponse:
        chance = self.chance
        if chance.random() < 0.1:
            raise Unreachable(url, chance.choice(("refused", "timeout", "dns", "tls", "reset", "other")), text="odd")
        status = chance.choice((found.status,) * 8 + (200, 201, 204, 304, 400, 401, 403, 404, 409, 422, 429, 500, 999))
        headers = {name: chance.choice(ODD_TEXTS) for name in ("date", "content-type", "location")}
        return HttpResponse(status, alter_text(chance, found.body), headers)

    def udp_exchange(self, address: str, port: int, *, payload: bytes, **rest: Any) -> Optional[bytes]:
        found = super().udp_exchange(address, port, payload=payload, **rest)
        if not self.asks(f"udp {address} {port}"):
            return found
        return self.chance.choice((None, b"", alter_bytes(self.chance, found or b"x"), self.chance.randbytes(40)))

    def served_cert(self, address: str, port: int, **rest: Any) -> Optional[str]:
        found = super().served_cert(address, port, **rest)
        if not self.asks(f"cert {address} {port}"):
            return found
        return self.chance.choice(
            (None, "", alter_bytes(self.chance, (found or "x").encode()).decode(errors="replace"))
        )

    # files

    def read_bytes(self, path: Path) -> bytes:
        return self.alter_file(path, super().read_bytes(path))

    def read_text(self, path: Path) -> str:
        return self.alter_file(path, super().read_text(path).encode()).decode(errors="replace")

    def alter_file(self, path: Path, found: bytes) -> bytes:
        if not self.asks(f"file {path}"):
            return found
        if self.chance.random() < 0.15:
            raise HostError(f"cannot read {path}", cause="Input/output error", remedy="look", code="file-unreadable")
        return alter_text(self.chance, found)

    def open_read(self, path: Path, *, follows: bool = True) -> BinaryIO:
        if self.odd == f"file {path}":
            return io.BytesIO(self.read_bytes(path))
        return super().open_read(path, follows=follows)

    def list_dir(self, path: Path) -> list[str]:
        found = super().list_dir(path)
        if not self.asks(f"folder {path}"):
            return found
        odd = [text for text in ODD_TEXTS if text and "/" not in text and "\0" not in text and len(text) < 200]
        return sorted({*found[1:], *self.chance.sample([*odd, "\udcff.yaml", "a b.conf", "-x"], 3)})


def alter_text(chance: random.Random, data: bytes) -> bytes:
    """What was said, altered as a value where it is JSON, and as bytes; or something that has nothing to do with it."""
    kind = chance.random()
    if kind < 0.1:
        other = (
            b"",
            b"null",
            b"[]",
            b"{}",
            b"5",
            b"[null]",
            b"\0",
            b"\xff\xfe",
            b"[" * 200_000,
            b'{"a":' * 200_000,
            b"x" * 2_000_000,
            b"- " * 100_000,
            b"a: &a [*a]",
        )
        return chance.choice(other)
    if kind < 0.15:
        return data.decode(errors="replace").encode("utf-16")
    try:
        value = json.loads(data)
    except ValueError:
        return alter_bytes(chance, data)
    if kind < 0.9:
        return json.dumps(alter_value(chance, value)).encode(errors="surrogatepass")
    return alter_bytes(chance, data)


def run(site: Site, what: str, odd: str, chance: random.Random) -> tuple[Any, list[str]]:
    kind, words = COMMANDS[what]
    node = site.clone(kind, make=OddNode)
    node.odd, node.chance = odd, chance
    if odd.startswith("gone "):
        node.at(Path(odd[5:])).unlink()
    ended = call(
        [f"--discovery-token-ca-cert-hash={site.pin}" if word == "PIN" else word for word in words],
        lambda: node,
        site.folder,
    )
    site.drop(node)
    return ended, list(getattr(node, "heard", {}))


@pytest.mark.parametrize("what", COMMANDS)
def test_one_answer_is_odd(site: Site, what: str) -> None:
    well, questions = run(site, what, "", random.Random(0))
    assert not well.bug, well.bug
    assert questions
    for chance in cases(f"answers to {what}", 6):
        odd = chance.choice(questions)
        ended, _ = run(site, what, odd, chance)
        assert not ended.bug, f"{odd}\n{ended.bug}"
