"""What is read of a node that kubeadm made, and what kb's state says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import kb
from kubeup.commands import adopt, launcher
from kubeup.config.load_init import load_init_config
from kubeup.doctor import foreign_node
from kubeup.engine import state
from kubeup.engine.run import Run
from kubeup.engine.undo import plan_undo
from kubeup.errors import ClusterError, HostError
from kubeup.machine.dry_run import DryRunHost
from kubeup.paths import Paths
from kubeup.report import Report
from kubeup.yaml_files import is_same_yaml
from tests.fake_cluster import ClusterHost
from tests.fake_host import FakeHost
from tests.scenarios.scenario import run_init, snapshot

PATHS = Paths()
FLAGS: dict[str, Any] = {
    "apiserver-advertise-address": "10.0.0.11",
    "kubernetes-version": "v1.35.6",
    "pod-network-cidr": "10.244.0.0/16",
    "pod-network": "none",
    "soak": "0s",
}


@pytest.fixture
def node(tmp_path: Path) -> ClusterHost:
    """A control plane whose account of what was done is gone: as good as made by another tool."""
    host = ClusterHost(tmp_path)
    run_init(host, flags=FLAGS)
    host.remove_tree(PATHS.state_dir)
    return host


def look(host: ClusterHost) -> tuple[Run, list[adopt.Looked]]:
    found = foreign_node.look_at_node(host, PATHS)
    looking = DryRunHost(host)
    looking.write_file(PATHS.adopted("init"), found.text)
    config = load_init_config(looking, config_file=PATHS.adopted("init"), flags={})
    ctx = launcher.make_run(looking, config, paths=PATHS, report=Report())
    phases = [phase for phase in kb.INIT if phase.name != "preflight" and phase.live != "cluster"]
    return ctx, adopt.look_at_phases(ctx, phases)


def test_the_documents_are_the_cluster_s_own(node: ClusterHost) -> None:
    found = foreign_node.look_at_node(node, PATHS)
    assert (found.role, found.node) == ("control plane", "cp1")
    kinds = [document["kind"] for document in yaml.safe_load_all(found.text)]
    assert kinds == [
        "InitConfiguration", "ClusterConfiguration", "KubeletConfiguration", "KubeProxyConfiguration", "KbConfiguration",
    ]  # fmt: skip
    assert "token" not in found.text


def test_looking_changes_nothing_and_finds_all_done(node: ClusterHost) -> None:
    before = snapshot(node)
    _, looked = look(node)
    assert {item.phase.name: item.why for item in looked if item.why} == {}
    assert snapshot(node) == before and not node.exists(PATHS.state_dir)


def test_what_differs_is_not_adopted(node: ClusterHost) -> None:
    path = PATHS.manifest("kube-scheduler")
    node.write_file(path, node.read_text(path).replace("--leader-elect=true", "--leader-elect=false"), mode=0o600)
    ctx, looked = look(node)
    assert [item.phase.name for item in looked if item.why] == ["control-plane/scheduler"]
    made = adopt.render_state(ctx, node, paths=PATHS, workflow="init", looked=looked)
    assert "init/control-plane/scheduler" not in made.phases
    assert made.phases["init/control-plane/apiserver"].adopted


def test_adopted_files_are_known_and_never_undone(node: ClusterHost) -> None:
    ctx, looked = look(node)
    made = adopt.render_state(ctx, node, paths=PATHS, workflow="init", looked=looked)
    made.save()
    read = state.load_state(node, PATHS)
    assert read.has_run("init") and not read.has_run("join") and not read.has_changed_files()
    assert "/etc/kubernetes/pki/ca.key" in read.known_paths() and not read.created_paths()
    assert plan_undo(read).is_empty
    assert json.loads(node.read_text(PATHS.state))["phases"]["init/certs/ca"]["adopted"] is True


def test_a_state_from_before_adoption_is_read(tmp_path: Path) -> None:
    host = ClusterHost(tmp_path)
    run_init(host, flags=FLAGS)
    document = json.loads(host.read_text(PATHS.state))
    assert all("adopted" not in entry for entry in document["phases"].values())
    assert state.load_state(host, PATHS).has_run("init")


def test_a_machine_that_is_no_node_is_told_so() -> None:
    with pytest.raises(HostError) as caught:
        foreign_node.look_at_node(FakeHost(), PATHS)
    assert caught.value.code == "nothing-to-adopt"


def test_a_cluster_that_does_not_know_its_configuration(node: ClusterHost) -> None:
    (path,) = [path for path in node.cluster.objects if path.endswith("/configmaps/kubeadm-config")]
    del node.cluster.objects[path]
    with pytest.raises(ClusterError) as caught:
        foreign_node.look_at_node(node, PATHS)
    assert caught.value.code == "not-kubeadms-cluster"


def test_taints_are_read_from_the_kubelet_s_flag() -> None:
    assert foreign_node.parse_taint("a/b=c:NoSchedule") == {"key": "a/b", "value": "c", "effect": "NoSchedule"}
    assert foreign_node.parse_taint("a:NoExecute") == {"key": "a", "effect": "NoExecute"}


@pytest.mark.parametrize(
    ("text", "other", "is_same"),
    [("a: 1\nb: x\n", "b: 'x'\na: 1", True), ("a: 1", "a: 2", False), ("a: [", "a: 1", False), ("a: [", "a: [", True)],
)
def test_the_same_document_in_another_spelling(text: str, other: str, is_same: bool) -> None:
    assert is_same_yaml(text, other) is is_same
