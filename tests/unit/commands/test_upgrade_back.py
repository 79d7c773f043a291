"""kubeup/commands/upgrade_back.py: from the command line to a node that is as it was before its upgrade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths
from kubeup.upgrade import kept
from tests.fake_control_plane import FORMER, WANTED, ControlPlane, as_files, make_control_plane, manifests_of
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


def test_the_kubelet_alone_leaves_the_static_pods(stage: Stage) -> None:
    host = upgraded()
    ended = kb(host, "upgrade", "rollback", "--kubelet-only")
    assert ended.status == 0, ended.err
    assert manifests_of(host) == as_files(WANTED)


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
