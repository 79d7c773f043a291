"""Plan against record against node: what differs, who did it, and what is done about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.engine.compare import NOT_RUNNING, OTHER_START, WANTED_NO_MORE, Applier, look_at
from kubeup.engine.items import File, Folder, MarkedLines, MovedAside
from kubeup.engine.plan import Difference, Group, Later, Part, Plan, Waiting, Yielded
from kubeup.engine.records import StepRecord
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.local_host import LocalHost
from tests.unit.engine.engine_case import Bench, Program

CONF, OTHER = Path("/etc/a.yaml"), Path("/etc/b.conf")
POD = "apiVersion: v1\nspec:\n  containers:\n  - name: etcd\n    command:\n    - etcd\n    - --name={name}\n"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(LocalHost(tmp_path))


def pod(name: str = "cp1", mode: int = 0o600) -> File:
    return File(CONF, POD.format(name=name), mode=mode, has_mode=True)


def apply(bench: Bench, *parts: Part, recorded: StepRecord | None = None, **words: object) -> StepRecord:
    applier = Applier(bench, recorded=recorded, **words)  # type: ignore[arg-type]
    applier.apply(Plan(*parts))
    return applier.record


def test_what_is_applied_differs_no_more_and_is_recorded(bench: Bench) -> None:
    plan = Plan(Folder(Path("/var/lib/etcd"), 0o700), pod())
    assert [str(found) for found in look_at(plan, bench, recorded=None).differences] == [
        "/var/lib/etcd is not there",
        "/etc/a.yaml is not there",
    ]
    record = apply(bench, *plan.parts)
    assert look_at(plan, bench, recorded=record).differences == ()
    assert record == {
        "/var/lib/etcd": {"kind": "folder"},
        "/etc/a.yaml": {"content": POD.format(name="cp1"), "mode": "0600"},
    }


def test_what_somebody_changed_is_drift_and_told_by_field(bench: Bench) -> None:
    record = apply(bench, pod())
    bench.host.write_file(CONF, POD.format(name="other"), mode=0o644)
    seen = look_at(Plan(pod()), bench, recorded=record)
    assert [str(found) for found in seen.drifted] == [
        "/etc/a.yaml: spec.containers[etcd].command --name is other, not cp1",
        "/etc/a.yaml: mode is 0644, not 0600",
    ]
    assert seen.configured == ()


def test_what_is_wanted_otherwise_is_no_drift(bench: Bench) -> None:
    record = apply(bench, pod())
    seen = look_at(Plan(pod("cp2")), bench, recorded=record)
    assert seen.drifted == ()
    assert [found.field for found in seen.configured] == ["spec.containers[etcd].command --name"]


def test_without_a_record_nobody_knows_who_did_it(bench: Bench) -> None:
    bench.host.write_file(CONF, "apiVersion: v1\n", mode=0o600)
    seen = look_at(Plan(pod()), bench, recorded=None)
    assert seen.differences and not seen.is_known and not seen.drifted and not seen.configured


def test_another_spelling_is_the_same_file_and_stays(bench: Bench) -> None:
    text = '{"spec": {"containers": [{"command": ["etcd", "--name=cp1"], "name": "etcd"}]}, "apiVersion": "v1"}'
    bench.host.write_file(CONF, text, mode=0o600)
    assert look_at(Plan(pod()), bench, recorded=None).differences == ()
    apply(bench, pod())
    assert bench.host.read_text(CONF) == text
    apply(bench, pod(), is_forced=True)
    assert bench.host.read_text(CONF) == POD.format(name="cp1")


def test_several_documents_are_compared_whole(bench: Bench) -> None:
    bench.host.write_file(CONF, "a: 1\n---\nb: 1\n")
    apply(bench, File(CONF, "a: 1\n---\nb: 2\n"))
    assert bench.host.read_text(CONF) == "a: 1\n---\nb: 2\n"


def test_a_field_of_others_is_kept(bench: Bench) -> None:
    def keep_name(found: str, wanted: str) -> str:
        return wanted.replace("--name=cp1", "--name=theirs") if "theirs" in found else wanted

    item = File(CONF, POD.format(name="cp1") + "status: {}\n", keeps=keep_name)
    bench.host.write_file(CONF, POD.format(name="theirs"))
    assert {found.field for found in look_at(Plan(item), bench, recorded=None).differences} == {"status"}
    record = apply(bench, item)
    assert "--name=theirs" in bench.host.read_text(CONF)
    assert look_at(Plan(item), bench, recorded=record).differences == ()


def test_a_secret_is_never_told_nor_recorded(bench: Bench) -> None:
    item = File(OTHER, "apiVersion: v1\ntoken: hush\n", mode=0o600, is_secret=True)
    record = apply(bench, item)
    assert "hush" not in str(record) and "digest" in record[str(OTHER)]
    bench.host.write_file(OTHER, "apiVersion: v1\ntoken: louder\n")
    seen = look_at(Plan(item), bench, recorded=record)
    assert [str(found) for found in seen.drifted] == ["/etc/b.conf: its content differs"]


# ---- a program that reads what is written


def group(program: Program, *items: File) -> Group:
    return Group(items or (File(CONF, "one\n"), File(OTHER, "two\n")), guard=program)


def test_a_program_is_stopped_before_its_files_change_and_started_after(bench: Bench) -> None:
    program = Program((CONF, OTHER), is_up=True)
    record = apply(bench, group(program))
    assert program.calls == ["stop", "start", "settle"] and program.read == {str(CONF): "one\n", str(OTHER): "two\n"}
    program.calls.clear()
    apply(bench, group(program), recorded=record)
    assert program.calls == ["settle"]


def test_a_program_that_runs_from_contents_of_before_is_seen(bench: Bench) -> None:
    """The run was killed between the writing and the start, and somebody else started it in the middle."""
    program = Program((CONF,))
    record = apply(bench, group(program, File(CONF, "old\n")))
    bench.host.write_file(CONF, "new\n")
    wanted = group(program, File(CONF, "new\n"))
    seen = look_at(Plan(wanted), bench, recorded=record)
    assert [found.field for found in seen.differences] == [OTHER_START]
    apply(bench, wanted, recorded=record)
    assert program.read == {str(CONF): "new\n"}


def test_after_a_run_that_was_cut_off_without_a_record_it_is_started_again(bench: Bench) -> None:
    program = Program((CONF,), is_up=True, read={str(CONF): "old\n"})
    bench.host.write_file(CONF, "new\n")
    apply(bench, group(program, File(CONF, "new\n")), was_begun=True)
    assert program.read == {str(CONF): "new\n"}


def test_a_program_that_does_not_run_differs(bench: Bench) -> None:
    program = Program((CONF, OTHER))
    record = apply(bench, group(program))
    program.is_up = False
    assert [found.field for found in look_at(Plan(group(program)), bench, recorded=record).differences] == [NOT_RUNNING]
    apply(bench, group(program), recorded=record)
    assert program.is_up


def test_a_failed_start_leaves_nothing_that_looks_done(bench: Bench) -> None:
    class Broken(Program):
        def start(self, run: object) -> None:
            raise RuntimeError("no")

    applier = Applier(bench)
    with pytest.raises(RuntimeError):
        applier.apply(Plan(group(Broken((CONF,)))))
    assert "unit program" not in applier.record


# ---- what is not known yet, or not kb's now


def test_what_is_known_later_has_no_fingerprint_and_is_made_when_it_is(bench: Bench) -> None:
    known: list[str] = []

    def wait(run: object) -> str:
        known.append("10.244.0.0/24")
        return known[0]

    later = Later(
        "podCIDR",
        read=lambda run: known[0] if known else None,
        wait=wait,
        then=lambda value: (File(CONF, f"{value}\n"),),
    )
    plan = Plan(File(OTHER, "x\n"), later)
    assert plan.fingerprint() == "" and plan.resolve(bench).is_open
    assert [str(found) for found in look_at(plan, bench, recorded=None).differences] == [
        f"{OTHER} is not there",
        "podCIDR: it is not known yet",
    ]
    record = apply(bench, *plan.parts)
    assert bench.host.read_text(CONF) == "10.244.0.0/24\n" and str(CONF) in record
    assert plan.resolve(bench).fingerprint() != ""


def test_a_dry_run_says_what_is_known_later(tmp_path: Path) -> None:
    host = DryRunHost(LocalHost(tmp_path))

    def wait(run: object) -> str:
        raise AssertionError("a dry run waits for nothing")

    apply(Bench(host), Later("podCIDR", read=lambda run: None, wait=wait, then=lambda value: ()))
    assert [(step.kind, step.what) for step in host.plan] == [("later", "podCIDR")]


def test_what_gave_way_or_waits_is_neither_missed_nor_forgotten(bench: Bench) -> None:
    record = apply(bench, pod())
    bench.host.remove(CONF)
    for part in (Yielded("pod network", "/etc/cni/net.d/05-other.conflist came"), Waiting("kubeconfigs", "cp2 first")):
        assert look_at(Plan(part), bench, recorded=record).differences == ()
        assert apply(bench, part, recorded=record) == record
    assert "05-other.conflist came" in bench.told
    assert Plan(Waiting("kubeconfigs", "cp2 first")).fingerprint() == ""


def test_what_is_wanted_no_more_goes_if_it_is_kb_s_and_untouched(bench: Bench) -> None:
    items = (File(CONF, "one\n"), File(OTHER, "two\n"))
    record = apply(bench, *items)
    bench.host.write_file(OTHER, "edited\n")
    apply(bench, recorded=record, made=(str(CONF), str(OTHER)))
    assert not bench.host.exists(CONF) and bench.host.read_text(OTHER) == "edited\n"
    assert f"{OTHER} is no longer needed, but was changed" in bench.told


def test_what_kb_did_not_make_stays_though_nothing_wants_it(bench: Bench) -> None:
    bench.host.write_file(CONF, "one\n")
    record = apply(bench, File(CONF, "one\n"))
    apply(bench, recorded=record, made=())
    assert bench.host.exists(CONF)


def test_a_program_is_started_again_when_one_of_its_files_goes(bench: Bench) -> None:
    program = Program((CONF,))
    record = apply(bench, Group((File(CONF, "one\n"), File(OTHER, "two\n")), guard=program))
    program.calls.clear()
    apply(bench, group(program, File(CONF, "one\n")), recorded=record, made=(str(OTHER),))
    assert program.calls == ["stop", "start", "settle"] and not bench.host.exists(OTHER)


def test_what_is_needed_for_the_first_start_alone_may_be_gone_later(bench: Bench) -> None:
    program = Program((CONF,))
    first = Group((File(CONF, "one\n"),), guard=program, once=(File(OTHER, "apiVersion: v1\n", is_secret=True),))
    record = apply(bench, first)
    assert bench.host.exists(OTHER)
    bench.host.remove(OTHER)
    program.calls.clear()
    apply(bench, group(program, File(CONF, "one\n")), recorded=record, made=(str(OTHER),))
    assert program.calls == ["settle"]


def test_what_is_needed_for_the_first_start_alone_is_not_taken_away_later(bench: Bench) -> None:
    """A CA that is there when the program starts again is wanted by no plan: it is not missing."""
    program = Program((CONF,))
    record = apply(bench, Group((File(CONF, "one\n"),), guard=program, once=(File(OTHER, "a CA\n"),)))
    apply(bench, group(program, File(CONF, "new\n")), recorded=record, made=(str(OTHER),))
    assert bench.host.read_text(OTHER) == "a CA\n"


def test_a_line_in_a_file_of_others(bench: Bench) -> None:
    def edit(text: str) -> str:
        return "".join(line for line in text.splitlines(keepends=True) if "# kb" not in line) + "127.0.0.1 api # kb\n"

    item = MarkedLines(CONF, "# kb", edit)
    bench.host.write_file(CONF, "127.0.0.1 localhost\n127.0.0.2 api # kb\n")
    record = apply(bench, item)
    assert bench.host.read_text(CONF) == "127.0.0.1 localhost\n127.0.0.1 api # kb\n"
    assert look_at(Plan(item), bench, recorded=record).differences == ()
    bench.host.write_file(CONF, "10.0.0.9 other\n")
    assert [found.field for found in look_at(Plan(item), bench, recorded=record).drifted] == ["lines"]
    assert record == {str(CONF): {"lines": "127.0.0.1 api # kb\n"}}


def test_what_is_anothers_is_moved_aside_and_no_further(bench: Bench) -> None:
    bench.host.write_file(CONF, "theirs\n")
    item = MovedAside(CONF, Path("/etc/of-before"), lambda run: run.host.exists(CONF), "moved")
    assert look_at(Plan(item), bench, recorded=None).differences
    apply(bench, item)
    assert bench.host.read_text(Path("/etc/of-before")) == "theirs\n" and "moved" in bench.told
    assert look_at(Plan(item), bench, recorded=None).differences == ()


def test_what_is_wanted_no_more_is_seen_too(bench: Bench) -> None:
    record = apply(bench, File(CONF, "one\n"), File(OTHER, "two\n"))
    plan = Plan(File(CONF, "one\n"))
    seen = look_at(plan, bench, recorded=record, made=(str(OTHER),))
    assert [str(found) for found in seen.differences] == [f"{OTHER}: {WANTED_NO_MORE}"]
    assert look_at(plan, bench, recorded=record, made=()).differences == ()
    bench.host.write_file(OTHER, "edited\n")  # it stays, and is no reason to work
    assert look_at(plan, bench, recorded=record, made=(str(OTHER),)).differences == ()


def test_what_a_program_reads_that_is_not_in_the_plan_stays(bench: Bench) -> None:
    """Another pod network is asked for: the keeper of kb's own still runs, and steps aside by itself when the other one comes."""
    record = apply(bench, group(Program((CONF,)), File(CONF, "one\n")))
    apply(bench, File(OTHER, "x\n"), recorded=record, made=(str(CONF),))
    assert bench.host.exists(CONF)


def test_a_secret_that_is_wanted_no_more_is_left_to_who_uses_it_up(bench: Bench) -> None:
    record = apply(bench, File(CONF, "apiVersion: v1\n", is_secret=True))
    apply(bench, recorded=record, made=(str(CONF),))
    assert bench.host.exists(CONF) and "was changed" not in bench.told


def test_a_link_in_the_place_of_a_file_that_is_wanted_no_more_stays(bench: Bench) -> None:
    record = apply(bench, File(CONF, "one\n"))
    bench.host.move_file(CONF, OTHER)
    bench.host.symlink(CONF, str(OTHER))
    apply(bench, recorded=record, made=(str(CONF),))
    assert bench.host.read_link(CONF) is not None and "was changed" in bench.told


# ---- what lies in a file's place


def test_a_link_is_looked_at_and_written_through(bench: Bench) -> None:
    """An admin who keeps a manifest elsewhere is left in peace: its mode is that of what the link leads to."""
    bench.host.write_file(OTHER, "one\n", mode=0o600)
    bench.host.symlink(CONF, str(OTHER))
    item = File(CONF, "one\n", mode=0o600, has_mode=True)
    assert look_at(Plan(item), bench, recorded=None).differences == ()
    bench.host.write_file(OTHER, "two\n", mode=0o644)
    fields = [found.field for found in look_at(Plan(item), bench, recorded=None).differences]
    assert len(fields) == 2 and "mode" in fields
    apply(bench, item)
    assert bench.host.read_link(CONF) == str(OTHER) and bench.host.read_text(OTHER) == "one\n"
    assert look_at(Plan(item), bench, recorded=None).differences == ()


def test_a_link_into_nowhere_becomes_the_file(bench: Bench) -> None:
    bench.host.symlink(CONF, "/etc/nowhere.yaml")
    item = File(CONF, "one\n", mode=0o600, has_mode=True)
    assert look_at(Plan(item), bench, recorded=None).differences
    apply(bench, item)
    assert look_at(Plan(item), bench, recorded=None).differences == () and bench.host.read_text(CONF) == "one\n"


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", "spec: \u2028\u00e4\n".encode(), b"a: [1\n", b"\x00" * 9])
def test_what_is_no_text_of_kb_s_is_replaced(bench: Bench, data: bytes) -> None:
    bench.host.write_file(CONF, data)
    record = apply(bench, File(CONF, "a: 1\n"))
    assert bench.host.read_text(CONF) == "a: 1\n"
    bench.host.write_file(CONF, data)
    seen = look_at(Plan(File(CONF, "a: 1\n")), bench, recorded=record)
    assert seen.drifted and str(seen.drifted[0])


def test_a_folder_is_a_workplace_and_the_one_round_it_is_not() -> None:
    """What a step is to make is registered ahead by the file; a folder is registered when it is made."""
    assert Plan(Folder(Path("/data/etcd")), File(CONF, "")).places() == [CONF]


@pytest.mark.parametrize(
    ("field", "value", "is_shown"),
    [
        ("spec.containers[kube-apiserver].image", "registry.k8s.io/kube-apiserver:v1.35.6", True),
        ("spec.containers[kube-apiserver].command --token-auth-file", "/etc/kubernetes/tokens.csv", True),
        ("spec.containers[kube-apiserver].command --secure-port", "6443", True),
        ("spec.containers[kube-apiserver].env[VAULT_TOKEN].value", "hunter2", False),
        ("spec.containers[kube-apiserver].command --password", "hunter2", False),
        ("spec.containers[x].env[X].value", "ghp_0123456789abcdefghijklmnopqrstuvwxyz", False),
        ("line 4", "password: hunter2", False),
    ],
)
def test_no_secret_is_told_in_a_difference(field: str, value: str, is_shown: bool) -> None:
    for told in (str(Difference("/x", field, value, "")), str(Difference("/x", field, "", value))):
        assert (value in told) == is_shown and ("[redacted]" in told) != is_shown


@pytest.mark.parametrize("held", [{}, {"mode": "0600"}, {"kind": "folder"}, {"content": "x"}, {"digest": "x"}])
def test_a_record_of_another_kind_is_none(bench: Bench, held: dict[str, str]) -> None:
    """Of another kb, or of who edited it: nobody knows who did it then."""
    bench.host.write_file(CONF, "b: 1\n")
    item = File(CONF, "a: 1\n", mode=0o600, has_mode=True)
    seen = look_at(Plan(item), bench, recorded={item.name: held})
    assert seen.differences and (seen.drifted, seen.configured) == ((), ())


def test_what_was_started_with_a_record_of_nonsense_is_started_again(bench: Bench) -> None:
    program = Program((CONF,))
    apply(bench, group(program))
    program.calls.clear()
    apply(bench, group(program), recorded={"unit program": {"started_with": "x"}})
    assert program.calls == ["stop", "start", "settle"]
