"""The record store: generations, digests, and nothing that its loss could cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubeup.doctor import support_bundle
from kubeup.engine.records import KEPT, PROGRAMS, Records, describe_program, load_records, record_programs
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths

FOLDER = Path("/var/lib/kb/records")
ITEM = {"/etc/a": {"content": "text\n", "mode": "0600"}}


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    return LocalHost(tmp_path)


def save(host: LocalHost, text: str) -> Records:
    records = load_records(host, FOLDER)
    records.put("init/a", {"/etc/a": {"content": text, "mode": "0600"}})
    records.save()
    return records


def test_what_is_put_is_there_again_and_the_content_is_kept_once(host: LocalHost) -> None:
    records = load_records(host, FOLDER)
    records.put("init/a", ITEM)
    records.put("init/b", {"/etc/b": {"content": "text\n"}, "/var/lib/etcd": {"kind": "folder"}})
    records.save()
    again = load_records(host, FOLDER)
    assert again.of("init/a") == ITEM and again.of("init/b") == records.of("init/b") and again.of("init/c") is None
    assert len(json.loads(host.read_text(FOLDER / "000001.json"))["contents"]) == 1


def test_a_save_without_a_change_writes_nothing(host: LocalHost) -> None:
    save(host, "one\n")
    save(host, "one\n")
    assert host.list_dir(FOLDER) == ["000001.json"]


def test_the_steps_of_a_run_share_a_generation(host: LocalHost) -> None:
    records = load_records(host, FOLDER)
    for step in ("init/a", "init/b"):
        records.put(step, ITEM)
        records.save()
    assert host.list_dir(FOLDER) == ["000001.json"]
    again = load_records(host, FOLDER)
    assert again.of("init/a") == again.of("init/b") == ITEM


def test_it_is_for_root_alone(host: LocalHost) -> None:
    save(host, "one\n")
    modes = [host.stat(path) for path in (FOLDER, FOLDER / "000001.json")]
    assert [found.mode for found in modes if found] == [0o700, 0o600]


def test_generations_are_pruned_and_go_on_counting(host: LocalHost) -> None:
    for number in range(KEPT + 3):
        save(host, f"{number}\n")
    assert host.list_dir(FOLDER) == [f"{number:06d}.json" for number in range(4, KEPT + 4)]


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"schema": 1}',
        '{"schema": 1, "contents": {}, "steps": {"a": {"b": {"content": "sha256:77"}}}}',
        '{"schema": 1, "contents": {}, "steps": []}',
        '{"schema": 2, "contents": {}, "steps": {}}',
    ],
)
def test_a_damaged_generation_is_passed_over(host: LocalHost, damage: str) -> None:
    save(host, "one\n")
    save(host, "two\n")
    host.write_file(FOLDER / "000002.json", damage)
    found = load_records(host, FOLDER)
    assert found.of("init/a") == {"/etc/a": {"content": "one\n", "mode": "0600"}}
    found.put("init/a", ITEM)
    found.save()
    assert load_records(host, FOLDER).of("init/a") == ITEM  # the next number, behind the damaged one


def test_a_content_that_was_changed_is_not_believed(host: LocalHost) -> None:
    save(host, "one\n")
    path = FOLDER / "000001.json"
    host.write_file(path, host.read_text(path).replace("one", "two"))
    assert load_records(host, FOLDER).of("init/a") is None


def test_names_that_are_no_generation_are_nobody_s_business(host: LocalHost) -> None:
    save(host, "one\n")
    for name in ("x.json", "000009.json.bak", "٠٠٠٠٠٩.json", "9.json"):
        host.write_file(FOLDER / name, "{}")
    assert load_records(host, FOLDER).generation == 1


def test_a_step_takes_its_record_along_to_another_name(host: LocalHost) -> None:
    records = save(host, "one\n")
    records.rename("init/new", "init/a")
    assert records.of("init/new") == {"/etc/a": {"content": "one\n", "mode": "0600"}} and records.of("init/a") is None
    records.rename("init/new", "init/gone")
    assert records.of("init/new") is not None


def test_no_support_bundle_has_it() -> None:
    """What a patch puts into a static pod stands there in full."""
    packed = [*map(Path, support_bundle.FILES), *map(Path, support_bundle.FOLDERS)]
    assert not [path for path in packed if path == Paths.records or path in Paths.records.parents]
    assert not [path for path in packed if Paths.records in path.parents]


def test_what_an_act_saved_meanwhile_is_not_lost(host: LocalHost) -> None:
    save(host, "one\n")
    of_run = load_records(host, FOLDER)
    save(host, "two\n")  # as the swap does, in the middle of a run
    of_run.put("upgrade/b", ITEM)
    of_run.save()
    of_run.put("upgrade/c", ITEM)
    of_run.save()
    again = load_records(host, FOLDER)
    assert (again.of("init/a") or {})["/etc/a"]["content"] == "two\n"
    assert again.of("upgrade/b") == again.of("upgrade/c") == ITEM


def test_what_a_run_recorded_itself_counts_more_than_what_was_saved_meanwhile(host: LocalHost) -> None:
    save(host, "one\n")
    of_run = load_records(host, FOLDER)
    save(host, "two\n")
    of_run.put("init/a", {"/etc/a": {"content": "three\n"}})
    of_run.save()
    assert load_records(host, FOLDER).of("init/a") == {"/etc/a": {"content": "three\n"}}


def test_programs_are_recorded_by_their_size_and_last_change(host: LocalHost) -> None:
    path = Path("/usr/local/bin/kubelet")
    host.write_file(path, "program", mode=0o755)
    record_programs(host, FOLDER, paths=[path, Path("/usr/local/bin/none")])
    before = load_records(host, FOLDER).of(PROGRAMS)
    assert before == {str(path): describe_program(host, path)}
    host.at(path).write_text("another")
    assert before != {str(path): describe_program(host, path)}
