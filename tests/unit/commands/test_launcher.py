"""How commands start: one machine for all of them, root where it is needed, one lock, one state, one end."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kb
from kubeup.commands import launcher
from kubeup.errors import UsageError
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths
from tests.fake_cluster import ClusterHost
from tests.fake_host import FakeHost

INIT = (
    "init", "--apiserver-advertise-address=10.0.0.11", "--kubernetes-version=v1.35.6", "--pod-network-cidr=10.244.0.0/16",
    "--soak=1s", "--token=abcdef.0123456789abcdef", "--skip-phases=preflight", "--node-name=cp1",
)  # fmt: skip


class Machine(ClusterHost):
    """A node below a folder, of an ordinary user's or of root's."""

    is_root = True

    def is_root_user(self) -> bool:
        return self.is_root


def run(host: LocalHost, *words: str, asked: list[Path] | None = None) -> int:
    def make_host(root: Path) -> LocalHost:
        if asked is not None:
            asked.append(root)
        return host

    return kb.main(list(words), make_host=make_host)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_whole_command_line_runs_on_the_machine_that_is_given(machine: Machine, capsys: Any) -> None:
    assert run(machine, *INIT) == 0
    assert "kb.pyz join 10.0.0.11:6443" in capsys.readouterr().out
    assert machine.exists(Paths.state) and machine.exists(Paths().pki / "ca.crt")
    assert run(machine, *INIT, "-o", "json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["changes"] == 0 and again["server"] == "10.0.0.11:6443" and again["caCertHashes"]
    assert run(machine, "status") == 0
    assert "node cp1 of cluster kubernetes" in capsys.readouterr().out
    assert run(machine, "reset", "--force") == 0
    assert not machine.exists(Paths().pki / "ca.crt")


def test_a_dry_run_of_any_command_changes_nothing_and_takes_no_lock(machine: Machine, capsys: Any) -> None:
    assert run(machine, *INIT, "--dry-run") == 0
    assert not machine.exists(Paths.state_dir)
    assert run(machine, *INIT) == 0
    before = {path: machine.read_bytes(path) for path in machine.files()}
    for words in (("reset", "--force"), INIT, ("token", "create"), ("token", "delete", "abcdef")):
        assert run(machine, *words, "--dry-run") == 0, words
    assert {path: machine.read_bytes(path) for path in machine.files()} == before


def test_the_name_kubeadm_starts_by_the_same_launcher_and_keeps_no_state(machine: Machine, capsys: Any) -> None:
    words = [word for word in INIT if not word.startswith("--soak")]
    assert run(machine, *words, "--as-kubeadm") == 0
    assert "[addons] Applied essential addon: CoreDNS" in capsys.readouterr().out
    assert not machine.exists(Paths.state_dir) and machine.exists(Paths().pki / "ca.crt")
    assert run(machine, "reset", "--force", "--as-kubeadm") == 0
    assert not machine.exists(Paths().pki / "ca.crt")
    assert "Deleting contents of directories" in capsys.readouterr().out


def test_the_folder_of_root_is_asked_for(machine: Machine, tmp_path: Path) -> None:
    asked: list[Path] = []
    machine.mode, machine.is_live = "root", False
    assert run(machine, "init", "phase", "certs/ca", f"--root={tmp_path}", asked=asked) == 0
    assert asked == [tmp_path, Path("/")]  # and this machine, whether it has the programs


@pytest.mark.parametrize("name", launcher.NEED_ROOT)
def test_what_needs_root_says_so_before_anything_is_changed(machine: Machine, name: str, capsys: Any) -> None:
    assert any(command.name == name for command in kb.COMMANDS)
    assert run(machine, *INIT) == 0
    before = {path: machine.read_bytes(path) for path in machine.files()}
    capsys.readouterr()
    machine.is_root = False
    words = {
        "init": INIT, "join": JOIN, "certs renew": ("certs", "renew", "all"), "certs auto": ("certs", "auto", "on"),
        "certs add-san": ("certs", "add-san", "x.test"), "certs rotate-ca": ("certs", "rotate-ca", "front-proxy"),
        "drift schedule": ("drift", "schedule", "on"),
        "mirror add": ("mirror", "add", "x"),
    }  # fmt: skip
    assert run(machine, *words.get(name, tuple(name.split()))) == 4
    told = capsys.readouterr().err
    assert "not-root" in told and f"sudo kb {name}" in told and launcher.NEED_ROOT[name] in told
    assert {path: machine.read_bytes(path) for path in machine.files()} == before


JOIN = ("join", "10.0.0.11:6443", "--token=abcdef.0123456789abcdef", "--discovery-token-unsafe-skip-ca-verification")


def test_who_is_not_root_may_ignore_the_check(machine: Machine) -> None:
    machine.is_root = False
    assert run(machine, *INIT, "--ignore-preflight-errors=IsPrivilegedUser") == 0


def test_a_second_kb_waits_for_the_first_or_is_refused(machine: Machine, capsys: Any) -> None:
    with machine.lock(Paths.lock, "kb reset"):
        assert run(machine, *INIT) == 4
    assert "kb reset" in capsys.readouterr().err
    assert not machine.exists(Paths().pki / "ca.crt")


def test_every_kind_of_planned_change_is_told() -> None:
    """What follows from something that is known later too, with its name."""
    told: list[str] = []

    class Call:
        def print(self, text: str) -> None:
            told.append(text)

    host = DryRunHost(FakeHost(files={"/etc/a": b"x"}, dirs={"/etc/b"}, programs={"true"}))
    host.write_file(Path("/etc/new/c"), "x")
    host.remove(Path("/etc/a"))
    host.symlink(Path("/etc/d"), "/etc/c")
    host.run(["true"])
    host.http_send("POST", "https://10.0.0.11:6443/api")
    host.plan_later("podCIDR")
    launcher.print_plan(Call(), host.plan)  # type: ignore[arg-type]
    assert {step.kind for step in host.plan} == {"write", "mkdir", "remove", "link", "run", "send", "later"}
    assert told[-2:] == [
        "would make, once it is known, what follows from: podCIDR",
        f"{len(host.plan)} changes planned; nothing was changed",
    ]


@pytest.mark.parametrize("answer", ["y\n", "n\n", ""])
def test_what_is_asked_does_not_get_into_the_answer_for_a_program(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, answer: str
) -> None:
    """Standard output may be a file while standard input is a terminal."""
    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", stdin)
    call = SimpleNamespace(flags={}, command=SimpleNamespace(name="etcd defrag"), words=[])
    with contextlib.suppress(UsageError) if answer != "y\n" else contextlib.nullcontext():
        launcher.agree(call, "The API pauses.")  # type: ignore[arg-type]
    shown = capsys.readouterr()
    assert shown.out == "" and "The API pauses.\nGo on? [y/N] " in shown.err


def test_a_configuration_of_before_an_upgrade_does_not_take_the_node_back(machine: Machine, capsys: Any) -> None:
    assert run(machine, *INIT) == 0
    path = Paths().manifest("kube-apiserver")
    machine.write_file(path, machine.read_text(path).replace(":v1.35.6", ":v1.36.3"), mode=0o600)
    capsys.readouterr()
    assert run(machine, *INIT) == 4
    told = capsys.readouterr().err
    assert "this node runs Kubernetes v1.36.3" in told
    assert "--kubernetes-version v1.36.3" in told
    assert ":v1.36.3" in machine.read_text(path)
