"""TOML of any kind, as containerd has it and as chance makes it: read, judged and mended, or refused with a word; and what is
written of a text that was read is read again."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from kubeup.errors import KbError
from kubeup.machine.host import CommandResult
from kubeup.node import containerd_config, runtime, runtime_fix
from tests.fake_host import FakeHost
from tests.fuzz import alter_bytes, cases
from tests.fuzz.node import FILES
from tests.unit.node.runtime_case import CRICTL, DUMP_1_6, DUMP_2_1, SOCKET, crictl_host

SAMPLES = (FILES["/etc/containerd/config.toml"], DUMP_1_6, DUMP_2_1)
PIECES = (
    "[", "]", "[[a]]", "[a.b]", "[plugins]", '[plugins."io.containerd.grpc.v1.cri"]', "a = 1", "a = [", "a = {", "a.b = {c = 1}", '"" = 1', "'' = ''", 'a = """', "a = '''\n",
    "a = 0x", "a = 1e999", "a = nan", "a = 1979-05-27", "a = true", "=", "# x", "version = 2", "version = 'x'", "version = -1", "version = 99999999999999999999",
    "disabled_plugins = ['cri']", "disabled_plugins = 5", "imports = ['/etc/containerd/*.toml', '/etc/containerd/config.toml', 5]", "imports = '/'", "plugins = 5",
    "plugins.'io.containerd.grpc.v1.cri' = []", "a = '\\'", 'a = "\\ud800"', 'a = "\\u0000"', "\0", "\ufeff", "\r", "é = 1", "a" * 5000, "[" + "a." * 3000 + "b]",
    "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]", "runtimes = 5", "SystemdCgroup = 'x'", "config_path = []", "sandbox_image = {}", "default_runtime_name = 5",
)  # fmt: skip


def make_text(chance: random.Random) -> str:
    text = chance.choice(SAMPLES)
    if chance.random() < 0.5:
        text = alter_bytes(chance, text.encode()).decode(errors="replace")
    lines = text.split("\n")
    for _ in range(chance.choice((0, 1, 2, 4))):
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(PIECES))
    return "\n".join(lines)


def test_any_toml_is_read_or_refused() -> None:
    taken = 0
    for chance in cases("toml", 1500):
        text = make_text(chance)
        for read in (containerd_config.parse_toml, containerd_config.parse_dumped_toml):
            with contextlib.suppress(ValueError):
                taken += isinstance(read(text), dict)
    assert taken > 10


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "{a = " * 100_000,
        "[" * 100_000,
        "a." * 100_000 + "b = 1",
        "a = " + "9" * 100_000,
        'a = "' + "\\" * 100_001,
    ],
    ids=range(6),
)
def test_deep_and_long_toml(text: str) -> None:
    with pytest.raises(ValueError):
        containerd_config.parse_toml(text)
    for length in (1000, 30_000):
        with contextlib.suppress(ValueError):
            containerd_config.parse_toml(text[:length])


def test_any_configuration_of_containerd_is_judged_and_mended() -> None:
    for chance in cases("containerd", 200):
        texts = {"/etc/containerd/config.toml": make_text(chance), "/etc/containerd/x.toml": make_text(chance)}
        dump = make_text(chance) if chance.random() < 0.7 else texts["/etc/containerd/config.toml"]
        host = crictl_host({f"{CRICTL} info": "{}", "containerd config": dump, "containerd --config": CommandResult((), chance.choice((0, 0, 1)), dump)})  # type: ignore[misc] # fmt: skip
        host.files.update({name: text.encode() for name, text in texts.items()})
        host.accepts = {"systemctl reset-failed containerd", "systemctl restart containerd"}
        with contextlib.suppress(KbError):
            judge(host)


def judge(host: FakeHost) -> None:
    status = runtime.probe_runtime(host, SOCKET)
    for setting in ("sandbox_image", "SystemdCgroup", "config_path", "restrict_oom_score_adj"):
        assert runtime.describe_setting(status, setting, value="x", host=host)
    files = containerd_config.read_files(host, Path("/etc/containerd/config.toml"))
    assert files
    with contextlib.suppress(KbError):
        runtime_fix.fix_runtime(
            host,
            SOCKET,
            wanted=runtime_fix.Wanted("registry.k8s.io/pause:3.10", True, False, "/etc/containerd/certs.d"),
        )
