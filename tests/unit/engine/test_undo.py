"""Reading the journal backwards: what goes, what comes back, what stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.engine.state import PhaseState, State
from kubeup.engine.undo import plan_undo, remove_remains, restore_and_remove, take_away
from kubeup.errors import HostError
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    return LocalHost(tmp_path)


def state_of(host: LocalHost, *created: str, backups: tuple[dict[str, str], ...] = (), **fields: Any) -> State:
    phases = {"init/a": PhaseState("done", created=list(created), backups=list(backups))}
    return State(host, Paths(), phases=phases, **fields)


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
    state = state_of(host, "/etc/kubernetes/pki/ca.crt", "/var/lib/kb/state.json", "/var/lib/kb", "/etc/cni/x")
    state.adopted = ["/etc/kubernetes/pki/ca.crt"]
    assert [str(path) for path in plan_undo(state).removals] == ["/etc/cni/x"]


def test_done_twice_is_done_once(host: LocalHost) -> None:
    host.write_file(Path("/etc/cni/x"), "x")
    plan = plan_undo(state_of(host, "/etc/cni/x"))
    assert restore_and_remove(host, plan) == restore_and_remove(host, plan) == []
    assert plan_undo(state_of(host)).is_empty


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "/home/user/x", "/boot/vmlinuz", "/usr/bin/python3", "/srv/pki/ca.key"]
)
def test_what_lies_where_kb_never_works_stays(host: LocalHost, name: str) -> None:
    """A state that was copied, or mangled, costs no file of others."""
    host.write_file(Path(name), "theirs")
    copy = "/var/lib/kb/backups/x/0-x"
    host.write_file(Path(copy), "something else")
    for state in (state_of(host, name), state_of(host, backups=({"path": name, "copy": copy},))):
        plan = plan_undo(state)
        assert plan.is_empty
        (told,) = restore_and_remove(host, plan)
        assert told.startswith(f"{name} stays as it is")
        assert host.read_text(Path(name)) == "theirs"


def test_a_copy_that_is_lost_is_told_and_the_rest_comes_back(host: LocalHost) -> None:
    known, hidden, made = Path("/etc/sysctl.d/x"), Path("/etc/containerd/config.toml"), Path("/etc/cni/net.d/x")
    for path in (known, hidden, made):
        host.write_file(path, "kb's")
    host.write_file(Path("/var/lib/kb/backups/0-x"), "theirs")
    backups = tuple(
        {"path": str(path), "copy": f"/var/lib/kb/backups/0-{path.name}", "mode": "0640", "owner": "0:0"}
        for path in (hidden, known)
    )
    (told,) = restore_and_remove(host, plan_undo(state_of(host, str(made), backups=backups)))
    assert "config.toml stays as kb left it: its backup is lost" in told
    assert host.read_text(known) == "theirs" and host.read_text(hidden) == "kb's" and not host.exists(made)


def test_what_the_machine_refuses_does_not_keep_the_rest(host: LocalHost, tmp_path: Path) -> None:
    """The state stays then, with the copies: reset can be run again."""
    (tmp_path / "etc/hosts").mkdir(parents=True)  # no file can come back there
    host.write_file(Path("/var/lib/kb/backups/0-hosts"), "theirs")
    host.write_file(Path("/etc/cni/net.d/x"), "kb's")
    backups = ({"path": "/etc/hosts", "copy": "/var/lib/kb/backups/0-hosts"},)
    with pytest.raises(HostError) as caught:
        restore_and_remove(host, plan_undo(state_of(host, "/etc/cni/net.d/x", backups=backups)))
    assert caught.value.code == "undo-incomplete" and "/etc/hosts" in caught.value.cause
    assert not host.exists(Path("/etc/cni/net.d/x"))


# ---- lines of kb's in a file of others

CONF, COPY, MARK = Path("/etc/containerd/lines"), "/var/lib/kb/backups/0-lines", "# of kb"
OWN = f"own {MARK}\n"


@pytest.mark.parametrize("is_stripped", [False, True])
@pytest.mark.parametrize("since", ["", "new\n"])
@pytest.mark.parametrize("before", ["theirs\n", "no end", "", None])
def test_of_a_file_of_others_only_the_marked_lines_go(
    host: LocalHost, before: Optional[str], since: str, is_stripped: bool
) -> None:
    """Whether they are in it still, or a phase, or a reset that was cut off, took them out. Where nobody else wrote, all of it is as
    before, to the byte and with its mode."""
    backups: tuple[dict[str, str], ...] = ()
    if before is not None:
        host.write_file(Path(COPY), before, mode=0o600)
        backups = ({"path": str(CONF), "copy": COPY, "mode": "0640"},)
    head = before or ""
    joint = "\n" if head and not head.endswith("\n") else ""
    host.write_file(CONF, head + joint + ("" if is_stripped else OWN) + since, mode=0o600)
    state = state_of(host, *([] if backups else [str(CONF)]), backups=backups, marks={str(CONF): MARK})
    for _ in range(2):
        assert restore_and_remove(host, plan_undo(state)) == []
        found = host.stat(CONF)
        if since:
            assert host.read_text(CONF) == head + joint + since
            assert found is not None and found.mode == 0o600
        elif before is None:
            assert found is None
        else:
            assert host.read_text(CONF) == before and found is not None and found.mode == 0o640


def test_marked_lines_go_also_where_the_copy_is_lost_and_a_file_that_is_gone_stays_gone(host: LocalHost) -> None:
    state = state_of(host, backups=({"path": str(CONF), "copy": COPY},), marks={str(CONF): MARK})
    host.write_file(CONF, "theirs\n" + OWN)
    assert restore_and_remove(host, plan_undo(state)) == []
    assert host.read_text(CONF) == "theirs\n"
    host.write_file(Path(COPY), "theirs\n")
    host.remove(CONF)
    assert restore_and_remove(host, plan_undo(state)) == []
    assert not host.exists(CONF)


def test_a_marked_file_that_became_a_link_to_nowhere_is_no_obstacle(host: LocalHost, tmp_path: Path) -> None:
    state = state_of(host, backups=({"path": str(CONF), "copy": COPY},), marks={str(CONF): MARK})
    host.write_file(Path(COPY), "theirs\n")
    (tmp_path / CONF.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / CONF.relative_to("/")).symlink_to("/nowhere/conf")
    assert restore_and_remove(host, plan_undo(state)) == []
    assert host.read_text(CONF) == "theirs\n"


@pytest.mark.parametrize("is_linked", [False, True])
def test_the_line_in_etc_hosts_of_a_state_without_marks(host: LocalHost, tmp_path: Path, is_linked: bool) -> None:
    """As kb wrote it before it wrote down by what it knows its lines."""
    hosts, real = Path("/etc/hosts"), Path("/etc/containerd/hosts" if is_linked else "/etc/hosts")
    line = "127.0.0.1 kb-api.cluster.local # kb: the API servers, through this node's load balancer\n"
    host.write_file(real, f"127.0.0.1 localhost\n{line}10.0.0.8 new\n")
    host.write_file(Path(COPY), "127.0.0.1 localhost\n")
    if is_linked:
        (tmp_path / "etc/hosts").symlink_to("containerd/hosts")
    state = state_of(host, backups=({"path": str(real), "copy": COPY},))
    assert not plan_undo(state).is_empty
    restore_and_remove(host, plan_undo(state))
    assert host.read_text(hosts) == "127.0.0.1 localhost\n10.0.0.8 new\n"
    assert (host.read_link(hosts) is not None) is is_linked


# ---- kb's own folder


def fill(host: LocalHost) -> None:
    for name in (
        "state.json",
        "lock",
        "backups/init-x/0-hosts",
        "mirror/b.tar",
        ".state.json.kb-1-a",
        "adopted-join.yaml",
    ):
        host.write_file(Paths.state_dir / name, "x")


def test_kb_s_own_folder_goes(host: LocalHost) -> None:
    fill(host)
    assert take_away(host, Paths()) == take_away(host, Paths()) == []
    assert not host.exists(Paths.state_dir)


def test_a_linked_folder_stays_with_what_others_have_there(host: LocalHost, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/kb").symlink_to("/data")
    fill(host)
    (tmp_path / "data/customer.db").write_text("rows")
    (told,) = take_away(host, Paths())
    assert told == "/var/lib/kb holds files that kb did not make: customer.db"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["customer.db"]
    (tmp_path / "data/customer.db").unlink()
    assert take_away(host, Paths()) == [] and host.read_link(Paths.state_dir) == "/data"


def test_the_state_goes_last(host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed half way, reset finds it and goes on."""
    fill(host)
    gone: list[str] = []
    real = LocalHost.remove

    def remove(self: LocalHost, path: Path) -> bool:
        gone.append(path.name)
        return real(self, path)

    monkeypatch.setattr(LocalHost, "remove", remove)
    take_away(host, Paths())
    assert gone[-3:] == ["state.json", "lock", "kb"]


def test_what_an_upgrade_keeps_goes_too(host: LocalHost) -> None:
    host.write_file(Path("/var/lib/kb/upgrade/former/usr/bin/kubelet"), "x")
    assert take_away(host, Paths()) == []
    assert not host.exists(Path("/var/lib/kb"))


@pytest.mark.parametrize("names", [(), ("lock",)])
def test_what_a_reset_left_that_was_killed_at_its_very_end_goes(host: LocalHost, names: tuple[str, ...]) -> None:
    host.make_dir(Path("/var/lib"))
    host.make_dir(Paths.state_dir)
    for name in names:
        host.write_file(Paths.state_dir / name, "")
    remove_remains(host, Paths())
    assert not host.exists(Paths.state_dir)


def test_a_folder_with_anything_else_is_left_alone(host: LocalHost) -> None:
    for name in ("lock", "mirror"):
        host.write_file(Paths.state_dir / name, "")
    remove_remains(host, Paths())
    assert host.list_dir(Paths.state_dir) == ["lock", "mirror"]
