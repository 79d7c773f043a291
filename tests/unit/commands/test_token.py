"""kubeup/commands/token.py: kubeadm's forms, and whom the commands speak as."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.airgap import containerd_hosts
from kubeup.cli import parser, program
from kubeup.cluster import api as kubeapi
from kubeup.cluster import tokens
from kubeup.commands import token as commands_token
from kubeup.config import token_text
from kubeup.config.types import BootstrapToken
from kubeup.errors import ClusterError, UsageError
from kubeup.machine.http import Tls
from kubeup.machine.local_host import LocalHost
from kubeup.node import ca_pins
from kubeup.secret import Secret
from tests.fake_cluster import ClusterHost, FakeCluster
from tests.fake_departure import Departure, make_departure
from tests.fake_host import FakeHost
from tests.fuzz.node import call

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
TOKEN = "abcdef.0123456789abcdef"


def parse(*words: str) -> program.Invocation:
    return parser.parse_command_line(kb.COMMANDS, ("token", *words))


def fake_api(tmp_path: Path) -> tuple[kubeapi.Api, FakeCluster]:
    cluster = FakeCluster()
    return kubeapi.Api(ClusterHost(tmp_path, cluster), kubeapi.Identity("https://10.0.0.11:6443", Tls())), cluster


def wanted(*words: str, host: Any = None) -> list[BootstrapToken]:
    return commands_token.read_wanted_tokens(parse("create", *words), host or FakeHost())


# ---- create


def test_a_token_by_flags() -> None:
    (token,) = wanted(TOKEN, "--ttl", "2h", "--description", "rack 7", "--usages", "authentication",
                      "--groups=system:bootstrappers:a,system:bootstrappers:b")  # fmt: skip
    assert (token.token, token.ttl_s, token.description) == (Secret(TOKEN), 7200, "rack 7")
    assert token.usages == ("authentication",)
    assert token.groups == ("system:bootstrappers:a", "system:bootstrappers:b")


def test_defaults() -> None:
    (token,) = wanted()
    assert token_text.is_token(token.token.reveal()) and token.ttl_s == 86400 and token.is_generated
    assert token.usages == ("signing", "authentication")
    assert wanted("--ttl", "0")[0].ttl_s is None


def test_tokens_of_a_file() -> None:
    text = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n"
    text += f"bootstrapTokens:\n- token: {TOKEN}\n  ttl: 1h\n- description: second\n"
    first, second = wanted("--config", "init.yaml", host=FakeHost(files={"init.yaml": text.encode()}))
    assert (first.token, first.ttl_s, second.description) == (Secret(TOKEN), 3600, "second")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["abc"], "invalid-config"),
        ([TOKEN, "--groups", "me"], "invalid-config"),
        ([TOKEN, "--usages", "cooking"], "invalid-config"),
        (["--ttl", "soon"], "invalid-duration"),
        ([TOKEN, "more"], "usage"),
        (["--config", "x", "--ttl", "1h"], "mixed-flags"),
        ([TOKEN, "--config", "x"], "mixed-flags"),
    ],
)
def test_what_cannot_be(words: list[str], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        wanted(*words)
    assert caught.value.code == code
    assert "0123456789abcdef" not in str(caught.value.as_dict())


def test_a_key_alone_prints_nothing() -> None:
    with pytest.raises(UsageError) as caught:
        commands_token.create(parse("create", "--certificate-key", "ab" * 32))
    assert caught.value.code == "certificate-key-alone"
    with pytest.raises(UsageError) as caught:
        commands_token.create(parse("create", "--control-plane"))
    assert caught.value.code == "certificate-key-alone" and "--control-plane" in caught.value.what


def test_an_id_that_is_taken(tmp_path: Path) -> None:
    api, cluster = fake_api(tmp_path)
    (token,) = wanted(TOKEN)
    commands_token.create_token(api, token, now=NOW)
    secret = cluster.by_kind("Secret")["bootstrap-token-abcdef"]
    assert base64.b64decode(secret["data"]["expiration"]) == b"2026-01-02T00:00:00Z"
    with pytest.raises(ClusterError) as caught:
        commands_token.create_token(api, token, now=NOW)
    assert (caught.value.what, caught.value.code) == ('a token with id "abcdef" already exists', "token-exists")


def test_the_join_command_names_the_mirror_that_this_node_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    host = make_departure()
    monkeypatch.setattr(ca_pins, "ca_cert_hashes", lambda _: ("sha256:aa",))

    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    def told(*words: str) -> str:
        ended = call(["token", "create", "--print-join-command", *words], make, limit_s=60)
        assert ended.status == 0 and not ended.bug, ended.err
        return ended.out.partition("sha256:aa ")[2].strip()

    assert told() == ""
    point_to(host, "registry.k8s.io", is_only=False)
    assert told() == "--mirror https://10.0.0.13:5000"
    point_to(host, containerd_hosts.DEFAULT, is_only=True)
    assert told() == "--mirror https://10.0.0.13:5000 --air-gapped"
    assert told("--certificate-key", "ab" * 32) == (
        f"--mirror https://10.0.0.13:5000 --air-gapped --control-plane --certificate-key {'ab' * 32}"
    )
    host.root_user = False  # who may not read what the node has is not refused a token
    assert told() == ""


def point_to(host: Departure, registry: str, *, is_only: bool) -> None:
    text = containerd_hosts.render_hosts(registry, containerd_hosts.Mirror("https://10.0.0.13:5000"), is_only=is_only)
    host.files[f"/etc/containerd/certs.d/{registry}/hosts.toml"] = text.encode()


# ---- list


def test_the_table() -> None:
    found = [
        BootstrapToken(Secret(TOKEN), expires="2026-01-01T23:00:00Z"),
        BootstrapToken(Secret("bbbbbb." + "0" * 16), "words", None, None, usages=(), groups=()),
    ]
    gap = " " * 45
    assert commands_token.render_table(found, NOW).splitlines() == [
        "TOKEN                     TTL         EXPIRES                USAGES                   "
        f"DESCRIPTION   {gap}EXTRA GROUPS",
        "abcdef.0123456789abcdef   23h         2026-01-01T23:00:00Z   authentication,signing   "
        f"<none>        {gap}system:bootstrappers:kubeadm:default-node-token",
        f"bbbbbb.0000000000000000   <forever>   <never>   <none>                   words         {gap}<none>",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "<invalid>"), (0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86399, "23h"), (86400 * 3, "3d")],
)  # fmt: skip
def test_ttls(seconds: int, shown: str) -> None:
    assert commands_token.describe_ttl(NOW + datetime.timedelta(seconds=seconds), NOW) == shown


def test_what_is_no_token_is_not_listed(tmp_path: Path) -> None:
    api, cluster = fake_api(tmp_path)
    for text in ("bbbbbb.0123456789abcdef", TOKEN):
        commands_token.create_token(api, BootstrapToken(Secret(text)), now=NOW)
    path = "/api/v1/namespaces/kube-system/secrets/bootstrap-token-cccccc"
    cluster.objects[path] = {"metadata": {"name": "bootstrap-token-cccccc"}, "type": tokens.SECRET_TYPE, "data": {}}
    assert [token.token_id for token in commands_token.read_tokens(api)] == ["abcdef", "bbbbbb"]


def test_the_object() -> None:
    shown = commands_token.describe_token(BootstrapToken(Secret(TOKEN), expires="2026-01-01T23:00:00Z"))
    assert shown == {
        "apiVersion": "output.kubeadm.k8s.io/v1alpha3",
        "kind": "BootstrapToken",
        "token": TOKEN,
        "expires": "2026-01-01T23:00:00Z",
        "usages": ["authentication", "signing"],
        "groups": ["system:bootstrappers:kubeadm:default-node-token"],
    }


# ---- delete


def test_ids() -> None:
    assert commands_token.parse_token_id("abcdef") == commands_token.parse_token_id(TOKEN) == "abcdef"
    for word in ("abc", "abcdef.0123", "ABCDEF"):
        with pytest.raises(UsageError) as caught:
            commands_token.parse_token_id(word)
        assert caught.value.code == "bad-token" and "0123" not in str(caught.value.as_dict())


def test_nothing_named() -> None:
    with pytest.raises(UsageError) as caught:
        commands_token.delete(parse("delete"))
    assert caught.value.code == "no-token"


# ---- who asks


def test_the_kubeconfig_is_looked_for_as_kubectl_does() -> None:
    host = FakeHost(env={"HOME": "/root"})
    assert commands_token.find_kubeconfig(parse("list"), host) == Path("/etc/kubernetes/admin.conf")
    host.files["/root/.kube/config"] = b""
    assert commands_token.find_kubeconfig(parse("list"), host) == Path("/root/.kube/config")
    host.env["KUBECONFIG"] = "/none:/some"
    host.files["/some"] = b""
    assert commands_token.find_kubeconfig(parse("list"), host) == Path("/some")
    assert commands_token.find_kubeconfig(parse("list", "--kubeconfig", "/x"), host) == Path("/x")
