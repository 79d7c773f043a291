"""kubeup/commands/upgrade_back.py: from the command line to a node that is as it was before its upgrade."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kubeup.commands import mirror_upkeep
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths
from kubeup.phases import renewed_certs, upgrade_rollback
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.swap import store
from kubeup.upgrade import kept
from tests.fake_control_plane import FORMER, WANTED, ControlPlane, Gone, as_files, make_control_plane, manifests_of
from tests.fuzz.node import Ended, call
from tests.unit.swap.swap_case import Stage, set_stage

PATHS = Paths()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return set_stage(monkeypatch)


def kb(host: ControlPlane, *words: str) -> Ended:
    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    ended = call(list(words), make, limit_s=120)
    assert not ended.bug, ended.bug
    return ended


def upgraded(status: str = kept.DONE, **fields: Any) -> ControlPlane:
    """A control plane that runs the wanted manifests, and has kept the former ones."""
    host = make_control_plane(**fields)
    host.files.update({f"/root/{name}.yaml": text.encode() for name, text in WANTED.items()})
    assert kb(host, "reconfigure", "static-pods", *(f"/root/{name}.yaml" for name in WANTED), "--yes").status == 0
    kept.begin(host, PATHS, former="v1.35.6", wanted="v1.35.7")  # type: ignore[arg-type]
    paths = {name: PATHS.manifest(name) for name in FORMER}
    for name, path in paths.items():
        host.files[str(kept.copy_of(PATHS, path))] = FORMER[name].encode()
    found = kept.load(host, PATHS)  # type: ignore[arg-type]
    assert found is not None
    files = {str(path): True for path in paths.values()}
    ended = f"{host.now():%Y-%m-%dT%H:%M:%SZ}" if status == kept.DONE else ""
    kept.save(host, PATHS, kept.Kept(found.former, found.wanted, status, found.began, ended, files))  # type: ignore[arg-type]
    return host


def test_the_former_static_pods_come_back(stage: Stage) -> None:
    host = upgraded()
    assert manifests_of(host) == as_files(WANTED)
    ended = kb(host, "upgrade", "rollback", "--yes")
    assert ended.status == 0, ended.err
    assert manifests_of(host) == as_files(FORMER)
    assert "the former one, so that was not kept" in ended.err, "there is none here"
    again = kb(host, "upgrade", "rollback", "--yes")
    assert again.status == 0 and "already" in again.err


def test_why_etcd_stays_is_said(stage: Stage) -> None:
    host = upgraded()
    copy = str(kept.copy_of(PATHS, PATHS.manifest("etcd")))
    host.files[copy] = re.sub(rb"(image: \S*etcd:)\S+", rb"\g<1>3.3.10-0", host.files[copy])
    assert b"etcd:3.3.10-0" in host.files[copy]
    ended = kb(host, "upgrade", "rollback", "--yes")
    assert ended.status == 0 and "etcd stays as it is" in ended.err, ended.err
    assert manifests_of(host)["etcd.yaml"] == WANTED["etcd"]


def test_a_worker_goes_back_as_a_worker(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kubelet may not list other nodes and pods, and there is no API server of its own to take out of the load balancers."""
    host = upgraded()
    for path in map(PATHS.manifest, FORMER):
        del host.files[str(path)]
    seen: list[bool] = []

    def read_facts(ctx: UpgradeRun) -> upgrade_rollback.Facts:
        seen.append(ctx.config.is_control_plane)
        return upgrade_rollback.Facts()

    monkeypatch.setattr(upgrade_rollback, "read_facts", read_facts)
    ended = kb(host, "upgrade", "rollback", "--yes")
    assert seen == [False], ended.err


@pytest.mark.parametrize("status", [kept.RUNNING, kept.DONE])
def test_a_renewal_that_the_upgrade_was_cut_off_in_is_put_right_first(
    status: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate and a key that do not belong together would be refused by the trials."""
    asked: list[bool] = []
    monkeypatch.setattr(renewed_certs, "put_torn_right", lambda ctx: asked.append(True))
    host = upgraded(status)
    assert kb(host, "upgrade", "rollback", "--yes").status == 0
    assert asked == ([True] if status == kept.RUNNING else [])


def test_the_kubelet_alone_leaves_the_static_pods(stage: Stage) -> None:
    host = upgraded()
    ended = kb(host, "upgrade", "rollback", "--kubelet-only")
    assert ended.status == 0, ended.err
    assert manifests_of(host) == as_files(WANTED)
    found = kept.load(host, PATHS)  # type: ignore[arg-type]
    assert found is not None and (found.status, found.ended) == (kept.RUNNING, "")
    ended = kb(host, "upgrade", "rollback", "--yes")
    assert ended.status == 0 and manifests_of(host) == as_files(FORMER), "they can go back later"


def test_without_an_upgrade_there_is_no_way_back() -> None:
    ended = kb(make_control_plane(), "upgrade", "rollback")
    assert ended.status == 4 and "code:   nothing-kept\n" in ended.err


def test_finish_removes_what_is_kept_and_asks_in_the_middle(stage: Stage) -> None:
    host = upgraded(kept.RUNNING)
    refused = kb(host, "upgrade", "finish")
    assert refused.status == 2 and "has not ended" in refused.err
    assert host.exists(Path("/var/lib/kb/upgrade"))
    assert kb(host, "upgrade", "finish", "--yes").status == 0
    assert not host.exists(Path("/var/lib/kb/upgrade"))
    assert "nothing is kept" in kb(host, "upgrade", "finish").err


def test_finish_names_what_the_mirror_could_do_without(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    spare = "remove what no node needs: kb mirror remove v1.34 (790 MiB)"
    monkeypatch.setattr(mirror_upkeep, "say_spare", lambda launch: spare)
    assert kb(upgraded(), "upgrade", "finish").out == f"in the mirror of this node: {spare}\n"


def test_the_next_command_removes_what_was_kept_for_long_enough(stage: Stage) -> None:
    host = upgraded()
    found = kept.load(host, PATHS)  # type: ignore[arg-type]
    assert found is not None
    kept.save(host, PATHS, dataclasses.replace(found, ended="2020-01-01T00:00:00Z"))  # type: ignore[arg-type]
    assert "nothing is kept" in kb(host, "upgrade", "finish").err
    assert not host.exists(PATHS.upgrade)


# ---- what was changed since


def scheduler_of(host: ControlPlane) -> str:
    return host.files[str(PATHS.manifest("kube-scheduler"))].decode()


def test_a_change_since_the_upgrade_needs_a_word(stage: Stage) -> None:
    host = upgraded()
    host.files["/root/kube-scheduler.yaml"] = (
        WANTED["kube-scheduler"].replace("--v=4", "--v=4\n    - --profiling=false").encode()
    )
    assert kb(host, "reconfigure", "static-pods", "/root/kube-scheduler.yaml", "--yes").status == 0
    for name in FORMER:
        host.files[str(kept.after_of(PATHS, PATHS.manifest(name)))] = WANTED[name].encode()
    refused = kb(host, "upgrade", "rollback", "--yes")
    assert refused.status == 4 and "code:   hand-edits\n" in refused.err
    assert "--profiling is false" in refused.err and "since" not in scheduler_of(host)
    assert "kb upgrade rollback --hand-edits keep" in refused.err
    ended = kb(host, "upgrade", "rollback", "--yes", "--hand-edits", "keep")
    assert ended.status == 0, ended.err
    assert "--profiling=false" in scheduler_of(host) and "--v=4" not in scheduler_of(host)
    assert manifests_of(host)["etcd.yaml"] == FORMER["etcd"]


def test_or_it_is_dropped(stage: Stage) -> None:
    """Here what the upgrade put in is known by the swap."""
    host = upgraded()
    path = str(PATHS.manifest("kube-scheduler"))
    host.files[path] = WANTED["kube-scheduler"].replace("--v=4", "--v=5").encode()
    assert kb(host, "upgrade", "rollback", "--yes").status == 4
    assert kb(host, "upgrade", "rollback", "--yes", "--hand-edits", "drop").status == 0
    assert manifests_of(host) == as_files(FORMER)


# ---- what was cut off


def test_a_way_back_that_was_killed_in_its_swap_is_continued_and_other_commands_name_it(stage: Stage) -> None:
    host = upgraded()
    ended = 0
    for after in range(3, 60, 7):
        host.dies_after = len(host.changes) + after
        killed = False
        try:
            kb(host, "upgrade", "rollback", "--yes")
        except Gone:
            killed = True
        host.revive()
        if not killed:
            break
        if store.load_cut_off(host, PATHS):  # type: ignore[arg-type]
            refused = kb(host, "certs", "renew", "all")
            assert refused.status == 4 and "kb upgrade rollback" in refused.err, refused.err
            ended += 1
        again = kb(host, "upgrade", "rollback", "--yes")
        assert again.status == 0, again.err
        assert manifests_of(host) == as_files(FORMER)
        host = upgraded()
    assert ended > 2


def test_while_the_kubelet_of_an_upgrade_may_be_stopped_other_commands_refuse(stage: Stage) -> None:
    host = make_control_plane()
    phases = {"upgrade-apply@v1.36.3/kubelet-config": {"status": "running", "started": "2026-11-30T07:00:00Z"}}
    host.files["/var/lib/kb/state.json"] = json.dumps(
        {
            "schema": 1,
            "kb": "0.1.0",
            "machine_id": "",
            "node": "cp1",
            "cluster": "kubernetes",
            "cri_socket": "",
            "adopted": [],
            "phases": phases,
        }
    ).encode()
    refused = kb(host, "certs", "renew", "all")
    assert refused.status == 4 and "code:   upgrade-cut-off\n" in refused.err, refused.err
    assert "continue it: kb upgrade apply v1.36.3; or take it back: kb upgrade rollback" in refused.err
