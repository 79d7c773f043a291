"""What a renewal replaced is kept for root alone, for the last few renewals, and can be put back."""

from __future__ import annotations

import datetime
from pathlib import Path

from kubeup.engine import undo
from kubeup.node import former_certs
from kubeup.paths import Paths
from tests.fake_host import FakeHost

PATHS = Paths()
CERT, KEY, CONF = PATHS.pki / "etcd/server.crt", PATHS.pki / "etcd/server.key", PATHS.kubeconfig("scheduler.conf")
FILES = {str(CERT): b"a cert", str(KEY): b"a key", str(CONF): b"a conf"}


def make() -> FakeHost:
    return FakeHost(files=dict(FILES), modes={str(CERT): 0o644, str(KEY): 0o600, str(CONF): 0o600})


def test_copies_are_for_root_alone() -> None:
    host = make()
    former = former_certs.keep_former(host, PATHS, files=[CERT, KEY, CONF, PATHS.kubeconfig("super-admin.conf")])
    assert former.files == (CERT, KEY, CONF), "what does not exist is not copied"
    assert former.folder == Path("/var/lib/kb/former-certs/20260101T000000Z")
    assert {path: host.read_bytes(former.copy_of(Path(path))) for path in FILES} == FILES
    assert {host.modes[str(former.copy_of(Path(path)))] for path in FILES} == {0o600}
    folders = [name for name in host.dirs if name.startswith("/var/lib/kb")]
    assert len(folders) == 7 and {host.modes[name] for name in folders} == {0o700}


def test_they_are_put_back_with_the_mode_of_what_is_there() -> None:
    host = make()
    former = former_certs.keep_former(host, PATHS, files=[CERT, KEY, CONF])
    for path in FILES:
        host.files[path] = b"new"
    assert former_certs.put_back(host, former, files=[CERT, KEY]) == [KEY, CERT], "the key comes first"
    assert host.files[str(CERT)] == b"a cert" and host.files[str(CONF)] == b"new" and host.modes[str(CERT)] == 0o644
    assert former_certs.put_back(host, former, files=[Path("/etc/other")]) == []


def test_the_last_three_renewals_stay_and_what_is_not_kb_s() -> None:
    host = make()
    host.files["/var/lib/kb/former-certs/mine/x"] = b"mine"
    seen = []
    for number in range(12):
        host.clock += datetime.timedelta(seconds=number == 11)
        seen.append(former_certs.keep_former(host, PATHS, files=[CONF]).folder.name)
    assert seen[1] == "20260101T000000Z.2"
    assert host.list_dir(PATHS.former_certs) == ["20260101T000000Z.10", "20260101T000000Z.11", seen[-1], "mine"]


def test_reset_removes_them(tmp_path: Path) -> None:
    host = make()
    former_certs.keep_former(host, PATHS, files=[CONF])
    assert undo.take_away(host, PATHS) == [] and not host.exists(PATHS.state_dir)
