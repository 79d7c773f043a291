"""Nodes as an older kb left them (tests/fixtures/before) are read and gone on with: what runs, failed, is done or was adopted."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path
from typing import Optional

import pytest

from kubeup.engine.runner import RunResult
from kubeup.engine.state import load_state
from kubeup.engine.undo import plan_undo
from kubeup.machine.host import CommandResult
from kubeup.machine.own_copy import plan_command
from kubeup.paths import Paths
from tests.fake_cluster import ClusterHost, FakeCluster
from tests.fixtures.trees import Tree, load_tree

from .scenario import SKIPPED, run_init, run_reset, snapshot

CONFIG_FILE = Path("/root/init.yaml")
UNFINISHED = ("init-running", "init-running-late", "init-failed")
MADE_BY_KB = (*UNFINISHED, "init-done")
JOINED_BY_KB = ("join-done", "join-running", "join-failed", "join-control-plane-done", "join-control-plane-running")
ALL = (*MADE_BY_KB, "init-adopted", *JOINED_BY_KB, "join-adopted")


def lay(folder: Path, tree: Tree) -> ClusterHost:
    """The node as it was left; where its cluster runs, the services do too."""
    version = max((int(obj["metadata"]["resourceVersion"]) for obj in tree.objects.values()), default=0)
    cluster = FakeCluster(objects=dict(tree.objects), version=version, is_up=bool(tree.objects))
    host = ClusterHost(folder / "root", cluster)
    host.clock = datetime.datetime.fromisoformat(tree.now)
    tree.lay(host.root, kb=plan_command(host, None, paths=Paths()))
    if "/etc/systemd/system/multi-user.target.wants/kb-routes.service" in tree.links:
        host.answers["systemctl is-active kb-routes.service"] = lambda argv: CommandResult(argv, 0, "active\n")
    return host


def init(host: ClusterHost, *, config_file: Path = CONFIG_FILE, log: Optional[io.StringIO] = None) -> RunResult:
    """Without the timer that renews certificates, which no kb of before has: a node gets it with its next init."""
    return run_init(host, flags={}, config_file=config_file, log=log, skip=(*SKIPPED, "auto-renewal"))


def paths_below(host: ClusterHost) -> set[str]:
    """Every path of the node with its mode: without /proc, which a reset leaves to the next boot, and without the record of
    what was applied, which no kb of before has."""
    places = [place for place in host.root.rglob("*") if place.relative_to(host.root).parts[0] != "proc"]
    modes = {f"/{place.relative_to(host.root)}": place.lstat().st_mode & 0o7777 for place in places}
    return {f"{path} {mode:04o}" for path, mode in modes.items() if not path.startswith(str(Paths.records))}


def keys_of(host: ClusterHost) -> dict[str, bytes]:
    return {path: data for path, data in snapshot(host).items() if path.endswith(".key")}


def objects_of(host: ClusterHost) -> set[str]:
    """The names of what the cluster holds; a token's is random."""
    return {"token" if "bootstrap-token-" in path else path for path in host.cluster.objects}


@pytest.mark.parametrize("name", ALL)
def test_its_state_is_read_and_not_written_again(tmp_path: Path, name: str) -> None:
    host = lay(tmp_path, load_tree(name))
    before = host.read_bytes(Paths.state)
    state = load_state(host, Paths())
    state.save()
    assert host.read_bytes(Paths.state) == before
    assert state.as_dict() == json.loads(before)


def test_a_done_node_stays_as_it_is(tmp_path: Path) -> None:
    host = lay(tmp_path, load_tree("init-done"))
    files, objects, before = snapshot(host), json.dumps(host.cluster.objects), json.loads(host.read_text(Paths.state))
    log = io.StringIO()
    result = init(host, log=log)
    assert {outcome.status for outcome in result.phases} == {"unchanged", "skipped"}, log.getvalue()
    assert "drift" not in log.getvalue()
    assert result.changes == 0
    assert snapshot(host) == files
    assert json.dumps(host.cluster.objects) == objects
    assert host.commands == []
    after = json.loads(host.read_text(Paths.state))
    for state in (before, after):
        state["phases"].pop("init/show-join-command")  # it tells something in every run
    assert {name: phase["status"] for name, phase in after["phases"].items()} == {
        name: phase["status"] for name, phase in before["phases"].items()
    }


def test_a_done_node_gets_the_timer_and_nothing_else(tmp_path: Path) -> None:
    host = lay(tmp_path, load_tree("init-done"))
    files = snapshot(host)
    result = run_init(host, flags={}, config_file=CONFIG_FILE)
    assert [one.name for one in result.phases if one.status == "done"] == ["auto-renewal"]
    assert {path: content for path, content in snapshot(host).items() if "kb-certs" not in path} == files


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_node_comes_to_the_same_end(tmp_path: Path, name: str) -> None:
    tree = load_tree(name)
    host, done = lay(tmp_path, tree), lay(tmp_path / "done", load_tree("init-done"))
    statuses = {key.partition("/")[2]: phase["status"] for key, phase in tree.state()["phases"].items()}
    assert set(statuses.values()) == {"done", "failed" if name == "init-failed" else "running"}
    keys = keys_of(host)
    assert keys
    if statuses.get("kubelet-start") == "done":
        host._boot()  # the kubelet runs; what it waited for has come
    result = init(host)
    outcomes = {outcome.name: outcome.status for outcome in result.phases}
    # what was done is found done: by today's look at the node, not by the old kb's word
    again = {phase for phase, status in statuses.items() if status == "done" and outcomes[phase] != "unchanged"}
    assert again == set()
    assert {path: content for path, content in keys_of(host).items() if path in keys} == keys
    assert paths_below(host) == paths_below(done)
    assert objects_of(host) == objects_of(done)
    assert {phase.status for phase in load_state(host, Paths()).phases.values()} == {"done"}
    assert {outcome.status for outcome in init(host).phases} == {"unchanged", "skipped"}


@pytest.mark.parametrize("name", MADE_BY_KB)
def test_reset_takes_it_back(tmp_path: Path, name: str) -> None:
    """What the state of before names goes, and nothing else: the folders and files of a machine without kb stay."""
    host = lay(tmp_path, load_tree(name))
    bare = lay(tmp_path / "bare", load_tree("init-running"))
    run_reset(bare)
    mine = Path("/etc/kubernetes/audit.yaml")
    host.write_file(mine, "mine")
    run_reset(host)
    assert host.read_text(mine) == "mine"
    host.remove_tree(mine.parent)
    assert not any("kube" in path or "kb" in path for path in paths_below(bare))
    assert paths_below(host) == paths_below(bare)
    assert not host.exists(Paths.state)


def test_what_was_adopted_stays_adopted(tmp_path: Path) -> None:
    """init adds what is kb's own and touches nothing of kubeadm's; reset takes back what init added."""
    tree = load_tree("init-adopted")
    host = lay(tmp_path, tree)
    before, objects = snapshot(host), set(host.cluster.objects)
    adopted = {key for key, phase in tree.state()["phases"].items() if phase.get("adopted")}
    assert len(adopted) > 25
    result = init(host, config_file=Paths().adopted("init"))
    outcomes = {outcome.name: outcome.status for outcome in result.phases}
    assert {outcomes[key.partition("/")[2]] for key in adopted} == {"unchanged"}
    assert {path: data for path, data in snapshot(host).items() if path in before} == before
    assert objects <= set(host.cluster.objects)
    phases = load_state(host, Paths()).phases
    assert {key for key, phase in phases.items() if phase.adopted} == adopted
    run_reset(host)
    after = snapshot(host)
    assert {path: after.get(path) for path in tree.state()["adopted"] if path in before} == {
        path: before[path] for path in tree.state()["adopted"] if path in before
    }
    assert not host.exists(Paths.state)


# ---- nodes that joined: real ones, whose cluster is gone


@pytest.mark.parametrize("name", JOINED_BY_KB)
def test_reset_takes_a_join_back(tmp_path: Path, name: str) -> None:
    """All that the state of before names goes, with what the kubelet wrote; what was there before kb stays."""
    tree = load_tree(name)
    host = lay(tmp_path, tree)
    made = {path for phase in tree.state()["phases"].values() for path in phase["created"]}
    mine = Path("/etc/systemd/system/mine.service")
    host.write_file(mine, "mine")
    run_reset(host)
    assert {path for path in made if host.exists(Path(path))} == set()
    assert {path for path in snapshot(host) if path.startswith(("/etc/kubernetes/", "/var/lib/kubelet/"))} == set()
    assert host.exists(mine) and host.exists(Path("/etc/machine-id"))
    assert not host.exists(Paths.state)


def test_a_worker_that_was_adopted_stays_adopted(tmp_path: Path) -> None:
    """The state says so of every phase but kb's own, and there is nothing that reset would take back."""
    tree = load_tree("join-adopted")
    state = load_state(lay(tmp_path, tree), Paths())
    assert state.has_run("join") and not state.has_changed_files()
    assert {phase.adopted for phase in state.phases.values()} == {True}
    assert plan_undo(state).is_empty
    assert {"/etc/kubernetes/kubelet.conf", "/var/lib/kubelet/config.yaml"} <= state.known_paths()
