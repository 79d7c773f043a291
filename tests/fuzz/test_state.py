"""state.json and the undo that goes by it: whatever stands there, kb takes it or says what is wrong with it, and touches nothing
but what it made. All of it below a folder of the test's."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from kubeup.engine import undo
from kubeup.engine.state import load_state
from kubeup.errors import KbError
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths
from tests.fuzz import alter_bytes, alter_value, cases

STATE: dict[str, Any] = {
    "schema": 1, "kb": "0.1.0", "machine_id": "", "node": "cp1", "cluster": "kubernetes", "cri_socket": "unix:///x", "adopted": ["/etc/x"],
    "folders": ["/srv/x"], "marks": {"/etc/hosts": "before"},
    "phases": {
        "init/certs/ca": {
            "status": "done", "started": "2026-01-01T00:00:00Z", "ended": "", "inputs": {"a": "b"}, "created": ["/etc/kubernetes/pki/ca.crt"],
            "backups": [{"path": "/etc/hosts", "copy": "/var/lib/kb/backups/x/0-hosts", "mode": "0644", "owner": "0:0"},
                        {"path": "/etc/l", "copy": "", "link": "hosts"}],
            "outputs": {"x": 1}, "error": {"what": "w", "cause": "c"}, "adopted": False,
        }
    },
}  # fmt: skip


def prepare(root: Path) -> LocalHost:
    host = LocalHost(root)
    for name, text in (
        ("etc/kubernetes/pki/ca.crt", "x"),
        ("etc/hosts", "now"),
        ("var/lib/kb/backups/x/0-hosts", "before"),
        ("etc/passwd", "own"),
    ):
        host.write_file(Path("/") / name, text)
    return host


def test_any_state_is_taken_or_refused(tmp_path: Path) -> None:
    host = prepare(tmp_path)
    taken = 0
    for chance in cases("state", 400):
        text = json.dumps(alter_value(chance, STATE)).encode(errors="surrogatepass")
        (tmp_path / "var/lib/kb/state.json").write_bytes(alter_bytes(chance, text) if chance.random() < 0.4 else text)
        with contextlib.suppress(KbError):
            found = load_state(host, Paths())
            taken += 1
            json.dumps(found.as_dict())
            plan = undo.plan_undo(found)
            undo.restore_and_remove(host, plan)
        assert (tmp_path / "etc/passwd").read_text() == "own"
    assert taken


def test_no_path_of_a_tampered_state_leads_elsewhere(tmp_path: Path) -> None:
    host = prepare(tmp_path)
    odd = (
        "/etc/kubernetes/../passwd", "//etc/passwd", "/etc//passwd", "/etc/./passwd", "etc/passwd", "/etc/passwd/", "/etc/pass\0wd", "", 5, None,
    )  # fmt: skip
    for value in odd:
        for place in ("created", "path", "copy"):
            state = json.loads(json.dumps(STATE))
            phase = state["phases"]["init/certs/ca"]
            if place == "created":
                phase["created"] = [value]
            else:
                phase["backups"][0][place] = value
            (tmp_path / "var/lib/kb/state.json").write_text(json.dumps(state))
            try:
                load_state(host, Paths())
            except KbError as error:
                assert error.code == "state-damaged"
            else:
                raise AssertionError((place, value))
    for mode, owner in (
        ("9", "0:0"),
        ("", "0:0"),
        ("0644", "x"),
        ("0644", "-1:0"),
        ("0644", "0:99999999999"),
        ("77777", "0:0"),
    ):
        state = json.loads(json.dumps(STATE))
        state["phases"]["init/certs/ca"]["backups"][0].update(mode=mode, owner=owner)
        (tmp_path / "var/lib/kb/state.json").write_text(json.dumps(state))
        with contextlib.suppress(KbError):
            load_state(host, Paths())
            raise AssertionError((mode, owner))
