"""The journal: what kb is about to make or change is in the state before it is on the disk."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from kubeup.engine import undo
from kubeup.engine.journal import JournalHost, remove_leftovers
from kubeup.engine.state import PhaseState, State, load_state
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths

A = Path("/etc/kubernetes/pki/a.key")


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    return LocalHost(tmp_path)


def begin(host: LocalHost, *, created: tuple[str, ...] = ()) -> tuple[JournalHost, State, PhaseState]:
    state, entry = State(host, Paths()), PhaseState("running", created=list(created))
    state.phases["init/x"] = entry
    return JournalHost(host, state, key="init/x", entry=entry), state, entry


def on_disk(host: LocalHost) -> Any:
    return json.loads(host.read_text(Paths.state))["phases"]["init/x"]


def test_a_new_file_and_its_folders_are_registered_before_they_are_there(host: LocalHost, tmp_path: Path) -> None:
    journal, _, _ = begin(host)
    (tmp_path / "etc").write_text("in the way: no folder can be made below it")
    with pytest.raises(Exception, match="etc"):
        journal.write_file(A, "key", mode=0o600)
    assert on_disk(host)["created"] == ["/etc/kubernetes", "/etc/kubernetes/pki", str(A)]


def test_a_file_of_somebody_else_is_copied_once_with_mode_and_owner(host: LocalHost, tmp_path: Path) -> None:
    host.write_file(A, "theirs", mode=0o640)
    journal, state, _ = begin(host)
    journal.write_file(A, "first")
    journal.write_file(A, "second")
    journal.remove(A)
    (backup,) = on_disk(host)["backups"]
    assert (backup["path"], backup["mode"]) == (str(A), "0640")
    assert backup["owner"] == f"{tmp_path.stat().st_uid}:{tmp_path.stat().st_gid}"
    copy = host.stat(Path(backup["copy"]))
    assert host.read_text(Path(backup["copy"])) == "theirs" and copy is not None and copy.mode == 0o600
    assert str(A) not in state.created_paths()


def test_which_lines_of_a_file_are_kb_s_is_known_before_they_are_in_it(host: LocalHost, tmp_path: Path) -> None:
    host.write_file(Path("/etc/containerd/real"), "theirs\n")
    (tmp_path / "etc/hosts").symlink_to("containerd/real")
    journal, _, _ = begin(host)
    journal.mark_lines(Path("/etc/hosts"), "# kb")
    journal.mark_lines(Path("/etc/new"), "# kb")
    state = load_state(host, Paths())
    assert state.marks == {"/etc/containerd/real": "# kb", "/etc/new": "# kb"}
    assert undo.plan_undo(state).is_empty, "nothing was written yet"


def test_the_same_content_is_neither_registered_nor_copied(host: LocalHost) -> None:
    host.write_file(A, "same")
    journal, _, entry = begin(host)
    assert not journal.write_file(A, "same")
    assert entry.created == [] and entry.backups == [] and journal.changed_files == []


def test_what_was_planned_and_not_made_is_struck_out(host: LocalHost, tmp_path: Path) -> None:
    """Also what an earlier run planned: killed before it made the file, it must not claim a later one of the admin's."""
    journal, _, entry = begin(host, created=("/etc/gone",))
    journal.expect([A, Path("/etc/b"), Path("/etc/link")])
    assert entry.created == ["/etc/gone", str(A), "/etc/b", "/etc/link"]
    journal.write_file(A, "key")
    (tmp_path / "etc/link").symlink_to("/nowhere")  # what a command of the phase made
    journal.forget_unmade()
    assert entry.created == [str(A), "/etc/link", "/etc", "/etc/kubernetes", "/etc/kubernetes/pki"]


def test_half_written_files_of_a_killed_run_are_removed(host: LocalHost, tmp_path: Path) -> None:
    journal, state, _ = begin(host)
    journal.write_file(A, "key")
    state.save()
    rubbish = [
        tmp_path / "etc/kubernetes/pki/.a.key.kb-812-7f01",
        tmp_path / "etc/kubernetes/.admin.conf.kb-9-a",
        tmp_path / "var/lib/kb/.state.json.kb-812-7f01",
    ]
    kept = [tmp_path / "etc/kubernetes/pki/.a.key.swp", tmp_path / "etc/kubernetes/pki/a.kb-812-7f01"]
    for place in [*rubbish, *kept]:
        place.write_text("PRIVATE KEY")
    found = remove_leftovers(host, load_state(host, Paths()))
    assert sorted(str(path) for path in found) == sorted("/" + str(place.relative_to(tmp_path)) for place in rubbish)
    assert [place.exists() for place in rubbish] == [False] * 3
    assert [place.exists() for place in kept] == [True] * 2


def test_a_trial_file_is_no_change(host: LocalHost) -> None:
    host.write_file(Path("/etc/kept"), "old")
    journal, _, _ = begin(host)
    journal.write_file(Path("/etc/trial"), "x")
    journal.remove(Path("/etc/trial"))
    assert journal.changed_files == []
    journal.remove(Path("/etc/kept"))
    assert journal.changed_files == ["/etc/kept"]


def test_large_files_are_registered_too_but_for_kb_s_own_folder(host: LocalHost) -> None:
    journal, _, _ = begin(host)
    journal.write_stream(Paths.state_dir / "staging/kubelet", [b"x"])
    assert journal.changed_files == [] and "/var/lib/kb/staging/kubelet" not in on_disk_or_empty(host)
    journal.move_file(Paths.state_dir / "staging/kubelet", Path("/usr/local/bin/kubelet"))
    journal.write_stream(Path("/opt/big"), [b"a", b"b"])
    assert host.read_bytes(Path("/opt/big")) == b"ab"
    assert journal.changed_files == ["/usr/local/bin/kubelet", "/opt/big"]
    assert {"/usr/local/bin/kubelet", "/opt/big"} <= set(on_disk(host)["created"])


def on_disk_or_empty(host: LocalHost) -> list[str]:
    return list(on_disk(host)["created"]) if host.exists(Paths.state) else []


def test_a_mode_alone_comes_back(host: LocalHost) -> None:
    place = Path("/etc/cni/net.d/10-x.conflist")
    host.write_file(place, "same", mode=0o640)
    journal, _, _ = begin(host)
    journal.write_file(place, "same", keeps=True)
    assert not host.exists(Paths.backups), "its mode stays as it was"
    journal.write_file(place, "same", mode=0o600)
    found = host.stat(place)
    assert found is not None and found.mode == 0o600
    undo.restore_and_remove(host, undo.plan_undo(load_state(host, Paths())))
    found = host.stat(place)
    assert found is not None and found.mode == 0o640


def test_what_a_configuration_moved_elsewhere_is_taken_back_too(host: LocalHost, tmp_path: Path) -> None:
    """Folders where kb does not work by itself are written into the state before they are worked in."""
    (tmp_path / "srv").mkdir()
    host.write_file(Path("/srv/conf/theirs"), "theirs")
    journal, _, _ = begin(host)
    journal.make_dir(Path("/srv/kb/pki"))
    journal.write_file(Path("/srv/kb/pki/ca.crt"), "x")
    journal.write_file(Path("/srv/conf/theirs"), "kb's")
    state = load_state(host, Paths())
    assert state.folders == ["/srv/kb/pki", "/srv/conf"]
    assert undo.restore_and_remove(host, undo.plan_undo(state)) == []
    assert host.list_dir(Path("/srv")) == ["conf"] and host.read_text(Path("/srv/conf/theirs")) == "theirs"


@pytest.mark.parametrize("change", ["write_file", "symlink", "remove"])
def test_attributes_come_back_and_open_no_copy(host: LocalHost, tmp_path: Path, change: str) -> None:
    """An ACL too, by which another user may read the file: not the copy of it."""
    place, real = Path("/etc/cni/x"), tmp_path / "etc/cni/x"
    host.write_file(place, "theirs", mode=0o640)
    # version 2; owner rw-, user 65534 r--, group r--, mask r--, other ---
    entries = ((1, 6, -1), (2, 4, 65534), (4, 4, -1), (16, 4, -1), (32, 0, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *one) for one in entries)
    try:
        os.setxattr(real, "user.note", b"x")
        os.setxattr(real, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("no extended attributes or ACLs here")
    journal, _, _ = begin(host)
    if change == "write_file":
        journal.write_file(place, "kb's", mode=0o600)
    elif change == "symlink":
        journal.symlink(place, "/etc/elsewhere")
    else:
        journal.remove(place)
    (backup,) = on_disk(host)["backups"]
    copy = host.stat(Path(backup["copy"]))
    assert copy is not None and copy.mode == 0o600
    assert undo.restore_and_remove(host, undo.plan_undo(load_state(host, Paths()))) == []
    assert os.getxattr(real, "user.note") == b"x" and os.getxattr(real, "system.posix_acl_access") == acl
    assert real.read_text() == "theirs" and real.stat().st_mode & 0o777 == 0o640


# ---- links


def test_what_a_link_leads_to_is_kept_and_the_link_stays(host: LocalHost) -> None:
    """A configuration that an admin keeps elsewhere, and links to."""
    config, real = Path("/etc/containerd/config.toml"), Path("/srv/conf/containerd.toml")
    host.write_file(real, "theirs", mode=0o640)
    host.symlink(config, "/srv/conf/containerd.toml")
    journal, state, _ = begin(host)
    journal.write_file(config, "kb's", keeps=True)
    assert host.read_link(config) == str(real) and host.read_text(real) == "kb's"
    (backup,) = on_disk(host)["backups"]
    assert backup["path"] == str(real)
    undo.restore_and_remove(host, undo.plan_undo(load_state(host, Paths())))
    assert host.read_link(config) == str(real) and host.read_text(real) == "theirs"
    found = host.stat(real)
    assert found is not None and found.mode == 0o640
    assert state.phases


@pytest.mark.parametrize("what", ["file", "link"])
@pytest.mark.parametrize("change", ["symlink", "move_file", "write_stream", "remove"])
def test_what_is_overwritten_comes_back(host: LocalHost, what: str, change: str) -> None:
    place, elsewhere = Path("/usr/local/bin/kubelet"), Path("/opt/theirs")
    host.write_file(elsewhere, "theirs", mode=0o755)
    if what == "file":
        host.write_file(place, "theirs", mode=0o750)
    else:
        host.symlink(place, "/opt/theirs")
    host.write_file(Path("/staged"), "new")
    journal, _, _ = begin(host)
    if change == "symlink":
        journal.symlink(place, "/staged")
    elif change == "move_file":
        journal.move_file(Path("/staged"), place)
    elif change == "write_stream":
        journal.write_stream(place, [b"new"])
    else:
        journal.remove(place)
    assert change == "remove" or host.read_text(place) == "new"
    undo.restore_and_remove(host, undo.plan_undo(load_state(host, Paths())))
    assert host.read_text(place) == "theirs" and host.read_text(elsewhere) == "theirs"
    assert (host.read_link(place) is None) is (what == "file")


def test_a_change_without_a_word_in_the_journal_is_refused(host: LocalHost) -> None:
    journal, _, _ = begin(host)
    for verb in ("append", "rename", "write_output", "make_private_dir", "put_back", "copy_attributes"):
        with pytest.raises(AttributeError):
            getattr(journal, verb)
