"""kubeup/upgrade/kept.py: what was there comes back as it was, whenever kb was cut off."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from kubeup.errors import HostError
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths
from kubeup.upgrade import kept
from tests.fake_host import FakeHost
from tests.unit.node.test_kept_images import OLD, SOCKET, Images

PATHS = Paths()
KUBELET, ABSENT = Path("/usr/bin/kubelet"), Path("/var/lib/kubelet/instance-config.yaml")


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    made = LocalHost(tmp_path)
    made.write_file(KUBELET, "former", mode=0o755)
    return made


def begin(host: LocalHost, wanted: str = "v1.36.3") -> kept.Kept:
    return kept.begin(host, PATHS, former="v1.35.6", wanted=wanted)


def test_files_come_back_with_their_modes_and_new_ones_go(host: LocalHost) -> None:
    begin(host)
    kept.keep(host, PATHS, files=[KUBELET, ABSENT])
    host.write_file(KUBELET, "new", mode=0o700)
    host.write_file(ABSENT, "new")
    assert kept.put_back(host, PATHS, files=[KUBELET, ABSENT, Path("/etc/other")]) == [KUBELET, ABSENT]
    found = host.stat(KUBELET)
    assert host.read_text(KUBELET) == "former" and found and found.mode == 0o755
    assert not host.exists(ABSENT)
    kept.put_back(host, PATHS, files=[KUBELET, ABSENT])  # again, by a run that was cut off
    assert host.read_text(KUBELET) == "former"


def test_a_run_that_goes_on_does_not_take_the_new_file_for_the_former_one(host: LocalHost) -> None:
    begin(host)
    kept.keep(host, PATHS, files=[KUBELET])
    host.write_file(KUBELET, "new", mode=0o755)
    assert begin(host).files == {str(KUBELET): True}
    kept.keep(host, PATHS, files=[KUBELET, ABSENT])
    kept.put_back(host, PATHS, files=[KUBELET])
    assert host.read_text(KUBELET) == "former"


def test_a_removal_that_is_cut_off_leaves_no_record_of_copies_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost(files={str(KUBELET): b"former"})
    found = kept.begin(host, PATHS, former="v1.35.6", wanted="v1.36.3")
    found = kept.keep(host, PATHS, files=[KUBELET])
    assert kept.find_lost(host, PATHS, found) == []

    def die(path: Path) -> bool:
        raise SystemExit

    monkeypatch.setattr(host, "remove_tree", die)
    with pytest.raises(SystemExit):
        kept.finish(host, PATHS)
    assert kept.load(host, PATHS) is None


def test_the_next_upgrade_keeps_what_is_there_then(host: LocalHost) -> None:
    begin(host)
    kept.keep(host, PATHS, files=[KUBELET])
    kept.end(host, PATHS, status=kept.DONE)
    host.write_file(KUBELET, "1.36", mode=0o755)
    assert begin(host, "v1.37.0").files == {}
    kept.keep(host, PATHS, files=[KUBELET])
    assert host.read_text(kept.copy_of(PATHS, KUBELET)) == "1.36"


def test_steps_and_notes_are_remembered(host: LocalHost) -> None:
    kept.note_done(host, PATHS, step="programs")
    assert kept.load(host, PATHS) is None
    begin(host)
    kept.note_done(host, PATHS, step="programs", source="bundle")
    kept.note_done(host, PATHS, step="programs")
    found = kept.load(host, PATHS)
    assert found and found.steps == ("programs",) and found.notes == {"source": "bundle"}
    assert found.has_done("programs") and not found.has_done("kubelet")


def test_it_is_kept_for_seven_days(host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(host)
    kept.keep(host, PATHS, files=[KUBELET])
    assert not kept.drop_expired(host, PATHS), "it has not ended"
    kept.end(host, PATHS, status=kept.DONE)
    now = host.now()
    monkeypatch.setattr(host, "now", lambda: now + datetime.timedelta(days=6))
    assert not kept.drop_expired(host, PATHS)
    monkeypatch.setattr(host, "now", lambda: now + datetime.timedelta(days=8))
    assert kept.drop_expired(host, PATHS) and kept.load(host, PATHS) is None
    assert not kept.finish(host, PATHS)


def test_an_upgrade_that_never_ended_is_given_up_after_thirty_days(
    host: LocalHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(host)
    now = host.now()
    monkeypatch.setattr(host, "now", lambda: now + datetime.timedelta(days=29))
    assert not kept.drop_expired(host, PATHS)
    monkeypatch.setattr(host, "now", lambda: now + datetime.timedelta(days=31))
    assert kept.drop_expired(host, PATHS)


def test_only_root_may_read_it(host: LocalHost) -> None:
    begin(host)
    for path in (kept.folder(PATHS), kept.folder(PATHS) / "upgrade.json"):
        found = host.stat(path)
        assert found and found.mode & 0o077 == 0


def test_a_full_disk_is_told_before_anything_is_copied() -> None:
    host = FakeHost(free=1 << 20, files={str(KUBELET): b"x" * 100})
    kept.begin(host, PATHS, former="v1.35.6", wanted="v1.36.3")  # type: ignore[arg-type]
    with pytest.raises(HostError) as caught:
        kept.keep(host, PATHS, files=[KUBELET])  # type: ignore[arg-type]
    assert caught.value.code == "disk-full"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 2}', '{"schema": 1, "former": "a", "wanted": "b", "status": "x", "began": ""}']
)
def test_a_damaged_record_is_named(host: LocalHost, text: str) -> None:
    begin(host)
    host.write_file(kept.folder(PATHS) / "upgrade.json", text)
    with pytest.raises(HostError) as caught:
        kept.load(host, PATHS)
    assert caught.value.code == "upgrade-unreadable"


def test_images_are_kept_as_long_as_the_record() -> None:
    images = Images(OLD)
    host = images.host()
    assert kept.keep_images(host, PATHS, socket=SOCKET, images=[OLD]) == "" and not images.pinned(), "no upgrade"
    kept.begin(host, PATHS, former="v1.35.6", wanted="v1.36.3")
    assert kept.keep_images(host, PATHS, socket=SOCKET, images=[OLD]) == ""
    assert kept.list_images(host, PATHS) == (OLD,)
    kept.begin(host, PATHS, former="v1.35.6", wanted="v1.36.3")  # the same upgrade goes on
    assert images.pinned() == {OLD}
    kept.begin(host, PATHS, former="v1.36.3", wanted="v1.37.0")
    assert not images.pinned()
    kept.keep_images(host, PATHS, socket=SOCKET, images=[OLD])
    kept.end(host, PATHS, status=kept.DONE)
    assert images.pinned() == {OLD}
    kept.end(host, PATHS, status=kept.TAKEN_BACK)  # the node runs with them again
    assert not images.pinned() and kept.list_images(host, PATHS) == ()
    kept.keep_images(host, PATHS, socket=SOCKET, images=[OLD])
    kept.finish(host, PATHS)
    assert not images.pinned() and kept.list_images(host, PATHS) == ()
