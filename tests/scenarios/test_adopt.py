"""kb adopt as a whole: nodes as kubeadm makes them are looked at, written down, and gone on with; nothing else is changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubeup.paths import Paths
from tests.fake_join import SYSTEM, Machine, Site

from .scenario import (
    changed_by,
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


NODES = {"cp1": ("control plane", "init"), "cp2": ("control plane", "join"), "w1": ("worker", "join")}


@pytest.mark.parametrize("name", NODES)
def test_a_node_of_kubeadm_s_is_adopted_and_gone_on_with(site: Site, name: str) -> None:
    machine, (role, workflow) = site.machine(name), NODES[name]
    before = others_of(machine)
    ended, changed = changed_by(site, lambda: run_adopt(machine))
    assert ended.status == 0, ended.err
    assert f"node {name}, {role} of cluster kubernetes, is adopted; nothing but /var/lib/kb was written" in ended.out
    # what the cluster holds of its pod network is kb's own, and the first control plane's to store
    left = "would do: pod-network; see it first: kb init --dry-run" if workflow == "init" else "would change nothing"
    assert ended.out.endswith(f"\nkb {workflow} {left}\n")
    assert (others_of(machine), changed) == (before, 0)
    state = json.loads(machine.text(str(Paths.state)))
    assert state["node"] == name and "/var/lib/kubelet/config.yaml" in state["adopted"]
    assert all(phase["adopted"] and not phase["created"] for phase in state["phases"].values())
    objects = set(site.cluster.objects)
    for is_again in (False, True):
        done, changed = changed_by(site, lambda: run_kb(machine, workflow))
        assert done.status == 0, done.err
        assert f"going by /var/lib/kb/adopted-{workflow}.yaml" in done.err
        if workflow == "join" or is_again:
            assert changed == 0 and "nothing to do: all is as it should be" in done.err
    assert {path.rpartition("/")[2] for path in set(site.cluster.objects) - objects} == (
        {"kb-config", "kb:nodes-kb-config"} if workflow == "init" else set()
    )
    assert others_of(machine) == before
    expect_refusal(take_back(machine), "nothing-to-reset", 4)
    assert others_of(machine) == before


def test_a_dry_run_of_adopt_leaves_no_trace(site: Site) -> None:
    machine = site.machine("w1")
    before = tree_of(machine)
    ended = run_adopt(machine, "--dry-run")
    assert ended.status == 0, ended.err
    assert "would be adopted; nothing was written" in ended.out
    assert (tree_of(machine), machine.changes) == (before, [])


def test_what_is_different_is_told_and_is_what_init_does(site: Site) -> None:
    """A manifest that somebody edited, a setting of the kernel's that nobody keeps: named, left alone, and done by init."""
    machine = site.machine("cp1")
    manifest = "/etc/kubernetes/manifests/kube-scheduler.yaml"
    wanted = machine.text(manifest)
    machine.put(manifest, wanted.replace("--leader-elect=true", "--leader-elect=false"), 0o600)
    machine.at(Path("/etc/sysctl.d/90-kb.conf")).unlink()
    before = others_of(machine)
    ended = run_adopt(machine, "-o", "json")
    assert ended.status == 0, ended.err
    told = json.loads(ended.out)
    assert told["left"] == dict.fromkeys(
        ("install/sysctls", "control-plane/scheduler", "pod-network"), "not as kb would leave it"
    )
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
    assert changed == 0 and "nothing to do" in ended.err


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
    assert "node cp1 is kb's already" in ended.err
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
