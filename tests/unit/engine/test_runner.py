"""The Runner: select, skip, resume, drift, journal, record."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.config.types import BootstrapToken, ClusterConfiguration, LocalAPIEndpoint, NodeConfig, NodeRegistration
from kubeup.engine.items import File, Gone
from kubeup.engine.plan import Ground, Item, Part, Plan, Yielded
from kubeup.engine.records import load_records
from kubeup.engine.run import Results, Run, Selection
from kubeup.engine.runner import Runner, RunResult
from kubeup.engine.state import State, load_state
from kubeup.engine.step import Phase, fingerprint_spec, plan_skips, select_phases
from kubeup.errors import ClusterError, HostError, UsageError
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.host import Host
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.secret import Secret

CONFIG = NodeConfig(
    cluster=ClusterConfiguration(kubernetes_version="v1.35.6"),
    node=NodeRegistration(name="cp1"),
    local_api_endpoint=LocalAPIEndpoint("10.0.0.11"),
)
A, B = Path("/etc/kubernetes/a"), Path("/etc/kubernetes/b")


def write(path: Path, text: str = "x") -> Callable[[Run], None]:
    def run(ctx: Run) -> None:
        ctx.host.write_file(path, text)

    return run


def phases(**more: Any) -> tuple[Phase, ...]:
    return (
        Phase("one/a", does="a", act=write(A), probe=lambda ctx: ctx.host.exists(A)),
        Phase("one/b", does="b", act=write(B), spec=lambda ctx: ctx.config.node.name),
        Phase("two", does="t", act=lambda ctx: Results(token_ids=["abcdef"], certificate_key=Secret("s3cret")), **more),
    )


def run(
    host: Host, steps: tuple[Phase, ...], config: NodeConfig = CONFIG, **options: Any
) -> tuple[RunResult, State, str]:
    text = io.StringIO()
    node_state = load_state(host, Paths())
    ctx = Run(host=host, paths=Paths(), config=config, release=RELEASES[35], report=Report(text))
    result = Runner("init", steps, state=node_state).run(ctx, **options)
    return result, node_state, text.getvalue()


def statuses(result: RunResult) -> dict[str, str]:
    return {phase.name: phase.status for phase in result.phases}


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    made = LocalHost(tmp_path)
    made.is_live, made.mode = True, "live"
    made.at = lambda path: tmp_path / path.relative_to("/")  # type: ignore[method-assign]
    return made


def test_a_second_run_is_a_no_op(host: LocalHost) -> None:
    first, _, _ = run(host, phases())
    assert statuses(first) == {"one/a": "done", "one/b": "done", "two": "done"}
    before = host.read_bytes(Paths.state)
    second, _, _ = run(host, phases())
    assert statuses(second) == {"one/a": "unchanged", "one/b": "unchanged", "two": "unchanged"}
    assert second.changes == 0
    assert second.results.token_ids == ["abcdef"]
    assert host.read_bytes(Paths.state) == before


def test_the_probe_beats_the_state_and_drift_is_said(host: LocalHost) -> None:
    run(host, phases())
    host.remove(A)
    result, _, text = run(host, phases())
    assert statuses(result)["one/a"] == "done"
    assert "one/a: drift" in text


def test_a_changed_input_is_named_and_the_phase_runs_again(host: LocalHost) -> None:
    run(host, phases())
    renamed = dataclasses.replace(CONFIG, node=NodeRegistration(name="cp2"))
    result, _, text = run(host, phases(), renamed)
    assert "one/b: its configuration changed since the last run" in text
    assert statuses(result)["one/a"] == "unchanged"


def test_no_secret_reaches_the_state(host: LocalHost) -> None:
    result, _, _ = run(host, phases())
    assert result.results.certificate_key == Secret("s3cret")
    assert "s3cret" not in host.read_text(Paths.state)
    stat = host.stat(Paths.state)
    assert stat is not None and stat.mode == 0o600


def test_the_undo_is_registered_before_the_change(host: LocalHost) -> None:
    seen: list[Any] = []

    def crash(ctx: Run) -> None:
        ctx.promises.expect([Path("/etc/kubernetes/c")])
        ctx.host.write_file(B, "new")
        seen.append(json.loads(host.read_text(Paths.state))["phases"]["init/two"])
        raise KeyboardInterrupt

    host.write_file(B, "the admin's")
    with pytest.raises(KeyboardInterrupt):
        run(host, (Phase("two", does="t", act=crash),))
    entry = seen[0]
    assert entry["status"] == "running"
    assert entry["created"] == ["/etc/kubernetes/c"]
    assert host.read_text(Path(entry["backups"][0]["copy"])) == "the admin's"
    assert load_state(host, Paths()).phases["init/two"].status == "failed"


def test_kb_s_own_file_is_not_backed_up(host: LocalHost) -> None:
    run(host, (Phase("two", does="t", act=write(B, "1")),))
    _, node_state, _ = run(host, (Phase("two", does="t", act=write(B, "2")),), only="two")
    assert node_state.phases["init/two"].backups == []
    assert str(B) in node_state.phases["init/two"].created


def test_a_failure_says_its_phase_and_what_was_changed(host: LocalHost) -> None:
    def fail(ctx: Run) -> None:
        raise ClusterError("w", cause="c", remedy="r", code="x")

    steps = (*phases()[:2], Phase("bad", does="b", act=fail))
    with pytest.raises(ClusterError) as caught:
        run(host, steps)
    assert caught.value.phase == "bad"
    assert caught.value.changed == "2 files were changed"
    entry = load_state(host, Paths()).phases["init/bad"]
    assert entry.status == "failed" and entry.error and entry.error["code"] == "x"


def test_a_failed_phase_runs_again_and_the_done_ones_do_not(host: LocalHost) -> None:
    outcomes = iter([HostError("w", cause="c", remedy="r", code="x"), None])

    def sometimes(ctx: Run) -> None:
        error: Optional[Exception] = next(outcomes)
        if error:
            raise error

    steps = (*phases()[:2], Phase("bad", does="b", act=sometimes))
    with pytest.raises(HostError):
        run(host, steps)
    result, _, _ = run(host, steps)
    assert statuses(result) == {"one/a": "unchanged", "one/b": "unchanged", "bad": "done"}


def test_a_dry_run_changes_nothing_and_plans_everything(host: LocalHost, tmp_path: Path) -> None:
    dry = DryRunHost(host)
    result, _, text = run(dry, phases())
    assert list(tmp_path.iterdir()) == []
    assert {step.what for step in dry.plan if step.kind == "write" and "kb" not in step.what} == {
        f"{A} (0644)",
        f"{B} (0644)",
    }
    assert "would change 1 file" in text
    assert statuses(result)["one/a"] == "done"


def test_below_a_root_live_phases_are_deferred(tmp_path: Path) -> None:
    result, _, _ = run(LocalHost(tmp_path), phases(live="cluster"))
    assert statuses(result) == {"one/a": "done", "one/b": "done", "two": "deferred"}


def test_select_and_skip() -> None:
    steps = phases(needs=("one/b",))
    assert [phase.name for phase in select_phases(steps, "one")] == ["one/a", "one/b"]
    assert [phase.name for phase in select_phases(steps, "one/all")] == ["one/a", "one/b"]
    assert [phase.name for phase in select_phases(steps, "one a")] == ["one/a"]
    with pytest.raises(UsageError) as caught:
        select_phases(steps, "one/c")
    assert "did you mean one/" in caught.value.remedy
    assert plan_skips(steps, ["one/a"]) == {"one/a"}
    with pytest.raises(UsageError) as caught:
        plan_skips(steps, ["one"])
    assert str(caught.value) == 'unresolved dependencies:: missing [one/b] phase(s) needed by "two" phase'
    assert plan_skips(steps, ["one", "two"]) == {"one/a", "one/b", "two"}


def test_one_selection_says_which_phases_run(host: LocalHost) -> None:
    seen: list[Selection] = []

    def look(ctx: Run) -> None:
        seen.append(ctx.selection)

    steps = (
        *phases()[:2],
        Phase("look", does="l", act=look, always=True),
        Phase("unasked", does="u", act=look, when=lambda config: False),
    )
    run(host, steps, skip=("one/a",))
    run(host, steps, only="look", skip=("one",))
    whole, alone = seen
    assert whole == Selection(
        will_run=frozenset({"one/b", "look"}),
        planned=frozenset({"one/b", "look"}),
        skipped=frozenset({"one/a"}),
        unfinished=frozenset({"one/a", "one/b", "look", "unasked"}),
    )
    assert alone == Selection(
        will_run=frozenset({"look"}),
        planned=frozenset({"one/a", "one/b", "look"}),
        skipped=frozenset({"one/a", "one/b"}),
        unfinished=frozenset({"one/a", "unasked"}),
    )


def test_what_nobody_takes_back_goes_by_the_machine_itself(host: LocalHost) -> None:
    seen: list[Any] = []
    run(host, (Phase("look", does="l", act=lambda ctx: seen.append(ctx)),))
    assert seen[0].machine is host and seen[0].host is not host


def test_a_generated_token_does_not_count_as_a_change() -> None:
    def config(text: str, *, is_generated: bool) -> NodeConfig:
        token = BootstrapToken(Secret(text), is_generated=is_generated)
        return dataclasses.replace(CONFIG, bootstrap_tokens=(token,))

    def prints(text: str, *, is_generated: bool) -> dict[str, str]:
        phase = Phase("a", does="a", spec=lambda found: found.bootstrap_tokens)
        return fingerprint_spec(phase, config(text, is_generated=is_generated))

    assert prints("a.b", is_generated=True) == prints("c.d", is_generated=True)
    assert prints("a.b", is_generated=False) != prints("c.d", is_generated=False)


class TestState:
    def test_damaged_newer_and_foreign_files_are_refused(self, host: LocalHost) -> None:
        run(host, phases())
        good = json.loads(host.read_text(Paths.state))
        host.write_file(Path("/etc/machine-id"), "bbb\n")
        for text, code in (
            ("{", "state-damaged"),
            ("[]", "state-damaged"),
            (json.dumps({**good, "phases": {"x": {"nonsense": 1}}}), "state-damaged"),
            (json.dumps({**good, "schema": 99}), "state-too-new"),
            (json.dumps({**good, "machine_id": "aaa"}), "state-foreign"),
        ):
            host.write_file(Paths.state, text)
            with pytest.raises(HostError) as caught:
                load_state(host, Paths())
            assert caught.value.code == code


# ---- what is wanted no more


def plan_of(*items: Part) -> Callable[[Run], Plan]:
    return lambda ctx: Plan(*items)


def after_a_run(host: LocalHost, *items: Item, more: tuple[Phase, ...] = ()) -> Callable[..., RunResult]:
    """A step that has made these, and the run after it, with other items."""
    run(host, (Phase("one/a", does="a", plan=plan_of(*items)), *more))

    def again(*wanted: Item, is_forced: bool = True) -> RunResult:
        steps = (Phase("one/a", does="a", plan=plan_of(*wanted)), *more)
        return run(host, steps, only="one/a" if is_forced else "")[0]

    return again


@pytest.mark.parametrize("is_forced", [True, False])
def test_a_file_that_a_plan_names_no_more_goes(host: LocalHost, is_forced: bool) -> None:
    again = after_a_run(host, File(A, "a"), File(B, "b"))
    result = again(File(A, "a"), is_forced=is_forced)
    assert (result.changes, host.exists(A), host.exists(B)) == (1, True, False)
    assert statuses(again(File(A, "a"), is_forced=False)) == {"one/a": "unchanged"}


def test_a_record_does_not_say_that_a_file_outside_of_kb_s_workplaces_may_go(host: LocalHost) -> None:
    """Neither does a state: whoever can write one of them cannot have kb remove a file of others."""
    victim = Path("/srv/data")
    host.write_file(victim, "precious")
    again = after_a_run(host, File(A, "a"))
    records = load_records(host, Paths.records)
    records.put("init/one/a", {str(A): {"content": "a"}, str(victim): {"content": "precious"}})
    records.save()
    node_state = load_state(host, Paths())
    node_state.phases["init/one/a"].created.append(str(victim))
    node_state.save()
    again()
    assert host.exists(victim) and not host.exists(A)


@pytest.mark.parametrize("how", ["another plan", "an act", "adopted"])
def test_a_file_that_something_else_needs_stays(host: LocalHost, how: str) -> None:
    more = {
        "another plan": (Phase("one/b", does="b", plan=plan_of(File(B, "b"))),),
        "an act": (Phase("one/b", does="b", act=write(B)),),
        "adopted": (),
    }[how]
    again = after_a_run(host, File(A, "a"), File(B, "b"), more=more)
    node_state = load_state(host, Paths())
    node_state.adopted = [str(B)] if how == "adopted" else []
    node_state.save()
    again(File(A, "a"))
    assert host.exists(B)


def test_a_step_of_another_name_takes_along_what_it_may_remove(host: LocalHost) -> None:
    after_a_run(host, File(A, "a"), File(B, "b"))
    renamed = Phase("two", does="a", plan=plan_of(File(A, "a")), formerly="one/a")
    run(host, (renamed,))
    assert host.exists(A) and not host.exists(B)


def test_what_a_step_takes_away_is_no_drift_of_the_step_that_made_it(host: LocalHost) -> None:
    def take_away(ground: Ground) -> None:
        ground.host.remove(A)

    gone = Gone("a", lambda ground: [str(A)] if host.exists(A) else [], take_away, made_by=("one/a",))
    makes = Phase("one/a", does="a", plan=plan_of(File(A, "a")))
    idles = Phase("one/a", does="a", plan=lambda ctx: Plan(Yielded("a", "it goes later")))
    removes = Phase("one/b", does="b", plan=plan_of(gone), always=True)
    run(host, (makes,))
    for steps in ((idles, removes), (makes,)):
        result, _, told = run(host, steps)
        assert result.changes and "drift" not in told, told
        assert (load_records(host, Paths.records).of("init/one/a") is None) == (not host.exists(A))


# ---- what fails beside a step


def test_a_record_that_cannot_be_written_fails_no_step(host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file = host.write_file

    def fill(path: Path, *words: Any, **more: Any) -> bool:
        if Paths.records in path.parents:
            raise HostError(f"{path} cannot be written", cause="No space left", remedy="make room", code="disk-full")
        return write_file(path, *words, **more)

    steps = (Phase("one/a", does="a", plan=plan_of(File(A, "a"))), Phase("one/b", does="b", plan=plan_of(File(B, "b"))))
    monkeypatch.setattr(host, "write_file", fill)
    result, node_state, told = run(host, steps)
    assert statuses(result) == {"one/a": "done", "one/b": "done"} and told.count("could not be recorded") == 1
    assert {phase.status for phase in node_state.phases.values()} == {"done"}
    monkeypatch.undo()
    host.write_file(A, "edited")
    result, _, told = run(host, steps)
    assert statuses(result) == {"one/a": "done", "one/b": "unchanged"} and load_records(host, Paths.records).of(
        "init/one/a"
    )


@pytest.mark.parametrize("what", ["a file", "a link to a file", "a folder of a generation's name"])
def test_what_lies_in_the_place_of_the_records_fails_no_step(host: LocalHost, what: str) -> None:
    if what == "a folder of a generation's name":
        host.make_dir(Paths.records / "000001.json" / "x")
    else:
        place = Paths.records if what == "a file" else Paths.state_dir / "elsewhere"
        host.make_dir(Paths.state_dir)
        host.write_file(place, "x")
        if place != Paths.records:
            host.symlink(Paths.records, str(place))
    steps = (Phase("one/a", does="a", plan=plan_of(File(A, "a"))),)
    assert statuses(run(host, steps)[0]) == {"one/a": "done"}
    assert statuses(run(host, steps)[0]) == {"one/a": "unchanged"}


def test_a_plan_that_cannot_be_made_in_a_second_run_is_told_as_in_a_first(host: LocalHost) -> None:
    def fail(ctx: Run) -> Plan:
        raise UsageError("the patches", cause="are wrong", remedy="correct them", code="patch-failed")

    first = Phase("one/a", does="a", plan=plan_of(File(A, "a")))
    second = Phase("one/b", does="b", plan=plan_of(File(B, "b")))
    run(host, (first, second))
    told = io.StringIO()
    ctx = Run(host=host, paths=Paths(), config=CONFIG, release=RELEASES[35], report=Report(told))
    steps = (dataclasses.replace(first, plan=plan_of(File(A, "b"))), dataclasses.replace(second, plan=fail))
    with pytest.raises(UsageError) as caught:
        Runner("init", steps, state=load_state(host, Paths())).run(ctx)
    assert (caught.value.phase, caught.value.changed) == ("one/b", "1 files were changed")
    assert "one/b  b  failed" in told.getvalue()
    assert statuses(run(host, (first, second))[0])["one/b"] == "unchanged"


# ---- acts


def test_what_an_older_kb_did_is_done_and_a_change_is_seen_from_then_on(host: LocalHost) -> None:
    """Its state says of which inputs; this kb knows an act by what it is about."""
    run(host, phases())
    node_state = load_state(host, Paths())
    node_state.phases["init/one/b"].inputs = {"node.name": "5f3c5f3c5f3c5f3c"}
    node_state.save()
    assert statuses(run(host, phases())[0])["one/b"] == "unchanged"
    renamed = dataclasses.replace(CONFIG, node=NodeRegistration(name="cp2"))
    assert "one/b: its configuration changed" in run(host, phases(), renamed)[2]


def test_a_dry_run_foretells_what_an_act_would_do(host: LocalHost) -> None:
    done: list[str] = []
    step = Phase("a", does="a", act=lambda ctx: done.append("done"), foretell=lambda ctx: done.append("foretold"))
    run(DryRunHost(host), (step,))
    run(host, (step,))
    assert done == ["foretold", "done"]
