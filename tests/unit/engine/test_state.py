"""state.json: whole or not at all, and refused where it cannot be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubeup import __version__
from kubeup.engine.state import SCHEMA, PhaseState, State, load_state
from kubeup.errors import HostError
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths

PHASE: dict[str, Any] = {"status": "done", "started": "", "ended": "", "inputs": {}, "created": ["/a"], "backups": [], "outputs": {}, "error": None}  # fmt: skip
GOOD: dict[str, Any] = {"schema": SCHEMA, "kb": __version__, "machine_id": "m1", "node": "cp1", "cluster": "kubernetes", "cri_socket": "", "adopted": [], "phases": {"init/a": PHASE}}  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    host = LocalHost(tmp_path)
    host.write_file(Path("/etc/machine-id"), "m1\n")
    return host


def put(host: LocalHost, text: str) -> None:
    host.write_file(Paths.state, text, mode=0o600)


def refusal(host: LocalHost, text: str) -> HostError:
    put(host, text)
    with pytest.raises(HostError) as caught:
        load_state(host, Paths())
    assert host.read_text(Paths.state) == text
    return caught.value


def test_there_and_back(host: LocalHost) -> None:
    state = State(host, Paths(), node="cp1", cluster="c", machine_id="m1", phases={"init/a": PhaseState("running")})
    state.save()
    found = host.stat(Paths.state)
    assert found is not None and found.mode == 0o600
    assert load_state(host, Paths()).as_dict() == state.as_dict()


def test_nothing_is_written_where_nothing_changed(host: LocalHost, tmp_path: Path) -> None:
    put(host, json.dumps(GOOD, indent=1, sort_keys=True) + "\n")
    state = load_state(host, Paths())
    (tmp_path / "var/lib/kb/state.json").unlink()
    state.save()
    assert not host.exists(Paths.state)


def test_without_a_file_it_is_empty_and_of_this_machine(host: LocalHost) -> None:
    state = load_state(host, Paths())
    assert state.phases == {} and state.machine_id == "m1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"x"',
        "{}",
        json.dumps(GOOD)[:100],
        json.dumps({"schema": SCHEMA}),
        json.dumps({**GOOD, "phases": []}),
        json.dumps({**GOOD, "phases": {"x": {"nonsense": 1}}}),
        json.dumps({**GOOD, "phases": {"x": {**PHASE, "status": "perhaps"}}}),
        json.dumps({**GOOD, "phases": {"x": {**PHASE, "created": None}}}),
        json.dumps({**GOOD, "phases": {"x": {**PHASE, "created": ["etc/passwd"]}}}),
        json.dumps({**GOOD, "phases": {"x": {**PHASE, "backups": [{"path": "/a"}]}}}),
        json.dumps({**GOOD, "phases": {"x": {**PHASE, "inputs": []}}}),
        "\0" * 512,  # what a file system without journal leaves after a power loss
    ],
)
def test_a_damaged_file_is_refused(host: LocalHost, text: str) -> None:
    error = refusal(host, text)
    assert (error.code, error.status) == ("state-damaged", 4)
    assert f"mv {Paths.state} {Paths.state}.damaged" in error.remedy


BACKUP = {"path": "/etc/hosts", "copy": "/var/lib/kb/backups/x/0-hosts", "mode": "0644", "owner": "0:0"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("backups[0].mode", mode) for mode in ("", "9", "77777", "-644", "0o644", " 644", "rw-r--r--")),
        *(
            ("backups[0].owner", owner)
            for owner in ("", "root", "-1:0", "0:99999999999", "4294967295:0", "1_0:0", "0:0:0")
        ),
        *(
            ("backups[0].copy", copy)
            for copy in ("", "x", "/etc/shadow", "/var/lib/kb/backups", "/var/lib/kb/backups/../x", "/a\0b")
        ),
        *(
            ("backups[0].path", path)
            for path in ("", "etc/hosts", "//etc/hosts", "/etc/../root", "/etc/hosts/", "/a\0b")
        ),
        *(
            ("created[0]", path)
            for path in ("", "etc/hosts", "//etc/hosts", "/etc/../root", "/etc/hosts/", "/a\0b", 5, None)
        ),
        ("inputs", []),
        ("error", "x"),
        ("status", "perhaps"),
        ("started", 5),
    ],
)
def test_a_field_that_undo_goes_by_is_refused_by_its_name(host: LocalHost, field: str, value: Any) -> None:
    phase = json.loads(json.dumps({**PHASE, "backups": [BACKUP]}))
    if field.startswith("backups"):
        phase["backups"][0][field.partition(".")[2]] = value
    else:
        phase[field.partition("[")[0]] = [value] if "[" in field else value
    error = refusal(host, json.dumps({**GOOD, "phases": {"init/a": phase}}))
    assert error.code == "state-damaged" and f'phases["init/a"].{field}' in error.cause


@pytest.mark.parametrize("field", ["adopted", "folders"])
def test_every_list_of_paths_is_looked_at(host: LocalHost, field: str) -> None:
    for value in (["/etc/../x"], "x", [5]):
        error = refusal(host, json.dumps({**GOOD, field: value}))
        assert error.code == "state-damaged" and field in error.cause


@pytest.mark.parametrize(
    "value",
    [[], {"x": "# kb"}, {"/etc/../x": "# kb"}, {"/etc/x": ""}, {"/etc/x": 5}, {"/etc/x": "a\nb"}],
)
def test_marks_of_lines_are_looked_at(host: LocalHost, value: Any) -> None:
    error = refusal(host, json.dumps({**GOOD, "marks": value}))
    assert error.code == "state-damaged" and "marks" in error.cause


def test_a_newer_kb_s_is_refused_with_its_version(host: LocalHost) -> None:
    error = refusal(host, json.dumps({"schema": SCHEMA + 1, "kb": "9.9.9", "whatever": 1}))
    assert error.code == "state-too-new" and "kb 9.9.9 wrote it" in error.cause


def test_another_machine_s_is_refused(host: LocalHost) -> None:
    error = refusal(host, json.dumps({**GOOD, "machine_id": "m2"}))
    assert error.code == "state-foreign"
    assert error.cause == "it was written on machine m2, this one is m1: the disk was cloned"


def test_a_machine_without_an_id_takes_its_file(host: LocalHost) -> None:
    host.remove(Path("/etc/machine-id"))
    put(host, json.dumps(GOOD))
    assert load_state(host, Paths()).created_paths() == {"/a"}
