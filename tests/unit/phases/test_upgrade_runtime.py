"""kubeup/phases/upgrade_runtime.py: program and configuration of containerd change together, and both come back if that does not work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kubeup.errors import ClusterError, HostError
from kubeup.machine.host import Argv, CommandResult, shown_argv
from kubeup.node import containers, runtime
from kubeup.phases import upgrade_runtime
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.upgrade import kept
from tests.fake_drain import make_pod
from tests.fake_node import PATHS
from tests.unit.phases.test_upgrade_kubelet import MANAGED, Killed, Worker, make_run, make_worker, node_of

OLD, NEW = "1.6.20~ds1", "2.1.9+unknown"
FOLDER = "/usr/bin"
CONFIG = "/etc/containerd/config.toml"
FORMER_TEXT = 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "registry.k8s.io/pause:3.10.1"\n'
NEW_TEXT = (
    "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = 'registry.k8s.io/pause:3.10.1'\n"
)
OWN = upgrade_runtime.own_paths(PATHS)


@dataclass
class Machine(Worker):
    """A node with a containerd. A program's content is its version; breaks: what the new containerd does not do."""

    broken: str = ""
    is_containerd_running: bool = True

    def query(self, argv: Argv, **more: Any) -> CommandResult:
        words = shown_argv(argv)
        if words[:3] == ("systemctl", "show", "containerd"):
            return CommandResult(words, 0, "{ path=/usr/bin/containerd ; argv[]=/usr/bin/containerd ; }\n")
        if words[-2:] == ("config", "dump"):
            text = self.files[words[2]].decode()
            if self.broken == "refuses":
                return CommandResult(words, 1, "", "containerd: invalid plugin config: no such field")
            means = "other" if self.broken == "means" and text == NEW_TEXT else "registry.k8s.io/pause:3.10.1"
            return CommandResult(words, 0, f"version = 3\n[plugins.'x'.pinned_images]\n  sandbox = '{means}'\n")
        if words[-2:] == ("config", "migrate"):
            return CommandResult(words, 0, NEW_TEXT)
        text = self.files.get(words[0], b"").decode()
        if words[0].endswith("/containerd") and words[1:] == ("--version",):
            return CommandResult(words, 0, f"containerd github.com/containerd/containerd {text}\n")
        return super().query(argv, **more)

    def run(self, argv: Argv, **more: Any) -> CommandResult:
        words = shown_argv(argv)
        if words == ("systemctl", "stop", "containerd"):
            self.is_containerd_running = False
        if words == ("systemctl", "start", "containerd"):
            self.is_containerd_running = True
        return super().run(argv, **more)

    @property
    def containerd(self) -> str:
        return self.files[f"{FOLDER}/containerd"].decode()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Machine:
    plain = make_worker(make_pod("web"))
    given = {item.name: getattr(plain, item.name) for item in dataclasses.fields(plain)}
    made = Machine(**given)
    made.accepts = {*MANAGED, "systemctl stop containerd", "systemctl start containerd"}
    made.files |= {f"{FOLDER}/{name}": OLD.encode() for name in upgrade_runtime.NAMES}
    made.files[CONFIG] = FORMER_TEXT.encode()
    made.modes |= {f"{FOLDER}/{name}": 0o755 for name in upgrade_runtime.NAMES}

    def probe(at: Machine, socket: str) -> runtime.RuntimeStatus:
        works = at.is_containerd_running and not (at.broken == "silent" and at.containerd == NEW)
        return runtime.RuntimeStatus(
            socket, "containerd", at.containerd, works, "" if works else "refused", "it refuses"
        )

    monkeypatch.setattr(runtime, "probe_runtime", probe)
    monkeypatch.setattr(containers, "list_containers", lambda at, socket: [])
    return made


def fetched(host: Machine, version: str = NEW) -> UpgradeRun:
    for name in upgrade_runtime.NAMES:
        host.files[str(kept.programs_folder(OWN) / name)] = version.encode()
    return make_run(host, command="kb upgrade runtime")


def change(run: UpgradeRun) -> None:
    ready = upgrade_runtime.prepare(run)
    assert ready is not None
    upgrade_runtime.RuntimeChange(run, ready).carry_out()


def expect(host: Machine, version: str, text: str) -> None:
    assert host.containerd == version and host.files[CONFIG].decode() == text
    assert host.is_containerd_running and host.is_running
    assert "unschedulable" not in node_of(host)["spec"]


def test_program_and_configuration_change_together_on_a_drained_node(host: Machine) -> None:
    change(fetched(host))
    expect(host, NEW, NEW_TEXT)
    assert host.evicted == ["web"]
    steps = [step for step in host.steps if "kubelet" in step or "containerd" in step]
    order = [step for step in steps if step.startswith("systemctl") or step == f"write {CONFIG}"]
    assert order == [
        "systemctl stop kubelet", "systemctl stop containerd", f"write {CONFIG}", "systemctl start containerd",
        "systemctl reset-failed kubelet", "systemctl restart kubelet",
    ]  # fmt: skip
    assert host.files["/usr/bin/ctr"] == NEW.encode()
    assert upgrade_runtime.prepare(fetched(host)) is None


def test_without_a_drain_no_pod_leaves(host: Machine) -> None:
    change(dataclasses.replace(fetched(host), drains=False))
    expect(host, NEW, NEW_TEXT)
    assert host.evicted == []


def test_one_that_does_not_answer_is_taken_back(host: Machine) -> None:
    host.broken = "silent"
    with pytest.raises(ClusterError) as caught:
        change(fetched(host))
    assert caught.value.code == "runtime-not-upgraded" and "it refuses" in caught.value.cause
    expect(host, OLD, FORMER_TEXT)


def test_the_former_one_comes_back_on_request(host: Machine) -> None:
    run = fetched(host)
    change(run)
    upgrade_runtime.take_back(run)
    expect(host, OLD, FORMER_TEXT)
    found = kept.load(host, OWN)
    assert found and found.status == kept.TAKEN_BACK


def test_a_configuration_that_it_refuses_is_named_before_anything_stops(host: Machine) -> None:
    host.broken = "refuses"
    with pytest.raises(HostError) as caught:
        upgrade_runtime.prepare(fetched(host))
    assert caught.value.code == "containerd-config-refused" and "no such field" in caught.value.cause
    assert not [step for step in host.steps if step.startswith("systemctl")]


def test_a_migration_that_means_something_else_is_not_used(host: Machine) -> None:
    host.broken = "means"
    change(fetched(host))
    expect(host, NEW, FORMER_TEXT)


@pytest.mark.parametrize(
    ("version", "source", "code"),
    [("1.6.8", "bundle", "runtime-older"), ("", "none", "no-source"), ("", "apt", "no-source")],
)
def test_what_is_refused(host: Machine, version: str, source: str, code: str) -> None:
    run = fetched(host, version) if version else make_run(host, source=source, command="kb upgrade runtime")
    with pytest.raises(HostError) as caught:
        upgrade_runtime.prepare(run)
    assert caught.value.code == code
    assert not [step for step in host.steps if step.startswith("systemctl")]


def test_a_mirror_of_images_alone_is_no_source(host: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubeup.phases.upgrade_programs.find_source", lambda run: "mirror")
    monkeypatch.setattr("kubeup.phases.install_programs.offer_programs", lambda run, source, *, names, arch: {})
    run = make_run(host, source="auto", command="kb upgrade runtime")
    with pytest.raises(HostError) as caught:
        upgrade_runtime.prepare(run)
    assert caught.value.code == "no-source" and "--bundle FILE" in caught.value.remedy
    assert not [step for step in host.steps if step.startswith("systemctl")]


@pytest.mark.parametrize("at", ["systemctl stop containerd", f"write {CONFIG}", "systemctl start containerd"])
def test_killed_in_the_middle_the_same_command_goes_on(host: Machine, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fetched(host)
    host.dies_at = at
    with monkeypatch.context() as killed:
        killed.setattr(upgrade_runtime, "take_back", lambda run: None)
        killed.setattr("kubeup.cluster.eviction.uncordon", lambda api, node: False)
        with pytest.raises(Killed):
            change(run)
    assert upgrade_runtime.find_cut_off(host, PATHS)
    change(make_run(host, command="kb upgrade runtime"))
    expect(host, NEW, NEW_TEXT)
    upgrade_runtime.take_back(run)
    expect(host, OLD, FORMER_TEXT)
    assert Path(CONFIG).name == "config.toml"
