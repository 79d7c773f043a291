"""Reading the journal backwards: what goes, what comes back, what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.host import LocalHost
from kubeup.paths import Paths
from kubeup.state import PhaseState, State
from kubeup.undo import plan_undo, restore_and_remove


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    return LocalHost(tmp_path)


def state_of(host: LocalHost, *created: str, backups: tuple[dict[str, str], ...] = ()) -> State:
    phases = {"init/a": PhaseState("done", created=list(created), backups=list(backups))}
    return State(host, Paths(), phases=phases)


def test_children_go_before_their_folder_and_shared_folders_stay(host: LocalHost, tmp_path: Path) -> None:
    made = [
        "/etc",
        "/etc/kubernetes",
        "/etc/kubernetes/pki",
        "/etc/kubernetes/pki/ca.key",
        "/etc/kubernetes/admin.conf",
    ]
    for name in made[3:]:
        host.write_file(Path(name), "x")
    plan = plan_undo(state_of(host, *made))
    assert [str(path) for path in plan.removals] == [made[3], made[2], made[4], made[1]]
    assert restore_and_remove(host, plan) == []
    assert [path.name for path in tmp_path.iterdir()] == ["etc"] and list((tmp_path / "etc").iterdir()) == []


def test_a_folder_with_files_of_others_stays_and_is_named(host: LocalHost) -> None:
    host.write_file(Path("/etc/kubernetes/mine"), "x")
    (left,) = restore_and_remove(host, plan_undo(state_of(host, "/etc/kubernetes")))
    assert left == "/etc/kubernetes holds files that kb did not make: mine"
    assert host.read_text(Path("/etc/kubernetes/mine")) == "x"


def test_the_oldest_copy_comes_back_with_its_mode(host: LocalHost) -> None:
    path = Path("/etc/sysctl.d/90-kb.conf")
    for name, text in (("old", "the admin's"), ("new", "kb's first")):
        host.write_file(Path(f"/var/lib/kb/backups/{name}"), text, mode=0o600)
    host.write_file(path, "kb's second")
    backups = tuple({"path": str(path), "copy": f"/var/lib/kb/backups/{name}", "mode": "0640", "owner": "0:0"} for name in ("old", "new"))  # fmt: skip
    plan = plan_undo(state_of(host, str(path), backups=backups))
    assert plan.removals == ()
    restore_and_remove(host, plan)
    found = host.stat(path)
    assert host.read_text(path) == "the admin's" and found is not None and found.mode == 0o640


def test_adopted_files_and_the_journal_itself_are_not_touched(host: LocalHost) -> None:
    state = state_of(host, "/etc/kubernetes/pki/ca.crt", "/var/lib/kb/state.json", "/var/lib/kb", "/etc/x")
    state.adopted = ["/etc/kubernetes/pki/ca.crt"]
    assert [str(path) for path in plan_undo(state).removals] == ["/etc/x"]


def test_done_twice_is_done_once(host: LocalHost) -> None:
    host.write_file(Path("/etc/x"), "x")
    plan = plan_undo(state_of(host, "/etc/x"))
    assert restore_and_remove(host, plan) == restore_and_remove(host, plan) == []
    assert plan_undo(state_of(host)).is_empty
