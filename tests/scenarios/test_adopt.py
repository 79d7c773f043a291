"""kb adopt as a whole: nodes as kubeadm makes them are looked at, written down, and gone on with; nothing else is changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubeup.paths import Paths
from tests.fake_join import SYSTEM, Machine, Site

from .scenario import (
    changed_by,
    cut_off,
    expect_refusal,
    run_adopt,
    run_control_plane_join,
    run_join,
    run_kb,
    take_back,
    tree_of,
)


@pytest.fixture
def site(founded_by_kubeadm: Site, tmp_path: Path) -> Site:
    return founded_by_kubeadm.clone(tmp_path / "site")


def others_of(machine: Machine) -> dict[str, str]:
    """All but kb's own folder."""
    return {path: text for path, text in tree_of(machine).items() if not f"{path}/".startswith("var/lib/kb/")}


NODES = {
    # role, what makes such a node, and what it lacks of what kb would leave: kb keeps the kernel's settings itself, and what the
    # cluster holds of its pod network is the first control plane's to store
    "cp1": ("control plane", "init", ("install/sysctls", "pod-network")),
    "cp2": ("control plane", "join", ("install/sysctls",)),
    "w1": ("worker", "join", ("install/sysctls",)),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_of_kubeadm_s_is_adopted_and_gone_on_with(site: Site, name: str) -> None:
    machine, (role, workflow, left) = site.machine(name), NODES[name]
    before = others_of(machine)
    ended, changed = changed_by(site, lambda: run_adopt(machine))
    assert ended.status == 0, ended.err
    assert f"node {name}, {role} of cluster kubernetes, is adopted; nothing but /var/lib/kb was written" in ended.out
    rows = [line.partition(" ") for line in ended.out.splitlines() if "  " in line]
    told = [phase for phase, _, why in rows if why.strip() != "as kb would leave it"]
    assert tuple(told) == left
    assert f"kb {workflow} would do: {', '.join(left)}; see it first: kb {workflow} --dry-run" in ended.out
    assert (others_of(machine), changed) == (before, 0)
    state = json.loads(machine.text(str(Paths.state)))
    assert state["node"] == name and "/var/lib/kubelet/config.yaml" in state["adopted"]
    assert all(phase["adopted"] and not phase["created"] for phase in state["phases"].values())
    objects = set(site.cluster.objects)
    done = run_kb(machine, workflow)
    assert done.status == 0, done.err
    assert f"using /var/lib/kb/adopted-{workflow}.yaml" in done.err
    assert {path for path, text in others_of(machine).items() if before.get(path) != text} == {
        "etc/sysctl.d/90-kb.conf"
    }
    made = {path.rpartition("/")[2] for path in set(site.cluster.objects) - objects}
    assert made == ({"kb-config", "kb:nodes-kb-config"} if workflow == "init" else set())
    again, changed = changed_by(site, lambda: run_kb(machine, workflow))
    assert changed == 0 and "nothing to do" in again.err
    pods = set(machine.pods)
    asked = run_kb(machine, "reset")
    expect_refusal(asked, "not-confirmed", 2)
    assert f"kb reset undoes what kb did on node {name} since it was adopted; the node keeps running." in asked.err
    ended = take_back(machine)
    assert ended.status == 0, ended.err
    assert ended.out == (
        f"what kb did on node {name} since it was adopted is undone; the node, which another tool set up, keeps running in cluster kubernetes\n"
    )
    assert machine.kubelet_since and set(machine.pods) == pods
    assert others_of(machine) == before


def test_a_folder_that_kubeadm_makes_none_of_leaves_its_phase_adopted(site: Site) -> None:
    """kubeadm's workers have no folder of static pods; the kubelet stands as kb would leave it all the same."""
    machine = site.machine("w1")
    machine.remove_tree(Paths.manifests)
    started = machine.kubelet_since
    ended = run_adopt(machine, "-o", "json")
    assert list(json.loads(ended.out)["left"]) == ["install/sysctls"], ended.err
    done = run_kb(machine, "join")
    assert done.status == 0 and machine.is_dir(Paths.manifests), done.err
    assert machine.kubelet_since == started
    assert "nothing to do" in run_kb(machine, "join").err


def test_an_adopted_node_is_none_that_reset_takes_away(site: Site) -> None:
    machine = site.machine("w1")
    assert run_adopt(machine).status == 0
    before = tree_of(machine)
    expect_refusal(take_back(machine), "nothing-to-reset", 4)
    assert tree_of(machine) == before and machine.kubelet_since


def test_adopt_killed_before_any_change_is_done_again(site: Site, tmp_path: Path) -> None:
    machine = site.machine("cp1")
    before = others_of(machine)
    cuts = cut_off(machine, lambda: run_adopt(machine), tmp_path / "cuts")
    assert len(cuts) >= 3
    wanted = set(tree_of(machine))
    for what, found in cuts:
        other = found.machine("cp1")
        assert others_of(other) == before, f"killed before {what}"
        ended = run_adopt(other)
        assert ended.status == 0, f"killed before {what}: {ended.err}"
        assert set(tree_of(other)) == wanted, f"killed before {what}"
        assert json.loads(other.text(str(Paths.state)))["phases"]["init/certs/ca"]["adopted"]


def test_a_dry_run_of_adopt_leaves_no_trace(site: Site) -> None:
    machine = site.machine("w1")
    before = tree_of(machine)
    ended = run_adopt(machine, "--dry-run")
    assert ended.status == 0, ended.err
    assert "would be adopted; nothing was written" in ended.out
    assert (tree_of(machine), machine.changes) == (before, [])


def test_what_is_different_is_told_and_is_what_init_does(site: Site) -> None:
    """A manifest that somebody edited: named, left alone, and done by init."""
    machine = site.machine("cp1")
    manifest = "/etc/kubernetes/manifests/kube-scheduler.yaml"
    wanted = machine.text(manifest)
    machine.put(manifest, wanted.replace("--leader-elect=true", "--leader-elect=false"), 0o600)
    before = others_of(machine)
    ended = run_adopt(machine, "-o", "json")
    assert ended.status == 0, ended.err
    told = json.loads(ended.out)
    option = "spec.containers[kube-scheduler].command --leader-elect"
    assert told["left"] == {
        "install/sysctls": "/etc/sysctl.d/90-kb.conf is not there",
        "control-plane/scheduler": f"{manifest}: {option} is false, not true",
        "pod-network": "ConfigMap kube-system/kb-config is not there (and 2 more)",
    }
    assert "etcd/local" in told["adopted"] and told["role"] == "control plane"
    assert others_of(machine) == before
    planned = run_kb(machine, "init", "--dry-run")
    assert planned.status == 0, planned.err
    assert f"would write: {manifest}" in planned.out and others_of(machine) == before
    done = run_kb(machine, "init")
    assert done.status == 0, done.err
    changed = {path for path, text in others_of(machine).items() if before.get(path) != text}
    assert changed == {"etc/kubernetes/manifests/kube-scheduler.yaml", "etc/sysctl.d/90-kb.conf"}
    assert machine.text(manifest) == wanted
    assert "nothing to do" in run_kb(machine, "init").err
    assert take_back(machine).status == 0  # what kb itself has done since: the edited manifest comes back
    assert others_of(machine) == before


@pytest.mark.parametrize("words", [("join", "--control-plane"), ("join",)])
def test_an_adopted_control_plane_is_gone_on_with_by_join(site: Site, words: tuple[str, ...]) -> None:
    """--control-plane says again what the node is: it is what kb itself names as the way on."""
    machine = site.machine("cp2")
    assert run_adopt(machine).status == 0
    ended, changed = changed_by(site, lambda: run_kb(machine, *words))
    assert ended.status == 0, ended.err
    assert changed == 0 and "\n1 change\n" in ended.err  # the kernel's settings
    assert "nothing to do" in run_kb(machine, *words).err


def test_an_adopted_worker_is_not_made_a_control_plane(site: Site) -> None:
    machine = site.machine("w1")
    assert run_adopt(machine).status == 0
    before = tree_of(machine)
    expect_refusal(run_kb(machine, "join", "--control-plane"), "node-is-worker", 4)
    assert tree_of(machine) == before


def test_what_is_no_node_of_kubeadm_s_is_not_adopted(site: Site, founded: Site, tmp_path: Path) -> None:
    empty = Machine(tmp_path / "w9", site, name="w9", address="10.0.0.29")
    before = tree_of(empty)
    expect_refusal(run_adopt(empty), "nothing-to-adopt", 4)
    assert tree_of(empty) == before
    own = founded.clone(tmp_path / "own").machine("cp1")
    before = tree_of(own)
    ended = run_adopt(own)
    expect_refusal(ended, "nothing-to-adopt", 4)
    assert "node cp1 already belongs to kb" in ended.err
    assert tree_of(own) == before
    unknown = site.machine("cp1")
    del site.cluster.objects[f"{SYSTEM}/configmaps/kubeadm-config"]
    expect_refusal(run_adopt(unknown), "not-kubeadms-cluster", 5)
    assert not unknown.has("/var/lib/kb")


def test_a_new_machine_joins_a_cluster_of_kubeadm_s(site: Site, tmp_path: Path) -> None:
    """No kb has been there: its network is its operator's, and kb adds none."""
    fresh = Machine(tmp_path / "w9", site, name="w9", address="10.0.0.29")
    before = tree_of(fresh)
    ended = run_join(fresh)
    assert ended.status == 0, ended.err
    assert "node w9 has joined and is not Ready yet" in ended.err
    assert not fresh.has("/etc/systemd/system/kb-routes.service")
    assert take_back(fresh).status == 0
    assert tree_of(fresh) == before
    third = Machine(tmp_path / "cp3", site, name="cp3", address="10.0.0.13")
    ended = run_control_plane_join(third)
    assert ended.status == 0, ended.err
    assert [member["name"] for member in site.members] == ["cp1", "cp2", "cp3"]
