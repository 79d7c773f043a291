"""kb.py and kubeup/day_two.py are read from top to bottom by people who know no Python."""

from __future__ import annotations

import ast
from pathlib import Path

import kb
from kubeup import day_two
from kubeup.engine.step import Phase
from kubeup.engine.story import Act, act, control_planes_only, step, story
from tests import make_docs

STORIES = (Path(kb.__file__), Path(day_two.__file__))
WORKFLOWS = {"INIT": kb.INIT, "JOIN": kb.JOIN, "RESET": kb.RESET, "RESTORE": day_two.find_story("restore", init=kb.INIT), "MIRROR_MOVE": day_two.find_story("mirror-move", init=kb.INIT), "MIRROR_USE": day_two.find_story("mirror-use", init=kb.INIT), "RECONFIGURE": day_two.RECONFIGURE, "RECONFIGURE_ENDPOINT": day_two.find_story("reconfigure-endpoint", init=kb.INIT),
             "RECONFIGURE_STATIC_PODS": day_two.RECONFIGURE_STATIC_PODS, "CERTS_AUTO": day_two.CERTS_AUTO, "BACKUP_SCHEDULE": day_two.BACKUP_SCHEDULE,
             "CERTS_ADD_SAN": day_two.CERTS_ADD_SAN, "CERTS_ROTATE": day_two.CERTS_ROTATE, "UPGRADE_APPLY": day_two.UPGRADE_APPLY, "UPGRADE_NODE": day_two.UPGRADE_NODE,
             "READDRESS": day_two.READDRESS,
             "NODE_REMOVE": day_two.NODE_REMOVE, "NODE_REBOOT": day_two.NODE_REBOOT, "NODE_RETURN": day_two.NODE_RETURN, "DRIFT_SCHEDULE": day_two.DRIFT_SCHEDULE, "RECONFIGURE_BACK": day_two.RECONFIGURE_BACK, "UPGRADE_ROLLBACK": day_two.UPGRADE_ROLLBACK, "UPGRADE_SELF": day_two.UPGRADE_SELF}  # fmt: skip


def lines_of_steps() -> list[ast.Call]:
    calls = [node for path in STORIES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("step", "act")]


def test_a_story_is_short() -> None:
    assert all(len(path.read_text().splitlines()) <= 250 for path in STORIES)


def test_no_story_is_left_out() -> None:
    told = {name: value for name, value in vars(day_two).items() if name.isupper() and isinstance(value, tuple)}
    assert set(told.values()) == set(day_two.STORIES.values())
    assert set(told) <= set(WORKFLOWS)


def test_a_step_is_one_line_and_is_said_once() -> None:
    steps = lines_of_steps()
    assert all(call.lineno == call.end_lineno for call in steps)
    told = [tuple(ast.unparse(arg) for arg in call.args) for call in steps]
    assert len(set(told)) == len(told), "a step that two stories share stands above both"
    assert {phase.name for phases in WORKFLOWS.values() for phase in phases} == {
        ast.literal_eval(row[0]) for row in told
    }


def test_nothing_that_runs_is_hidden_from_readers() -> None:
    page = make_docs.render_phases()
    assert set(make_docs._TABLES) == set(WORKFLOWS)
    for phases in WORKFLOWS.values():
        assert all(f"| `{phase.name}` |" in page for phase in phases)
    assert not any(phase.hidden for phases in WORKFLOWS.values() for phase in phases)


def test_a_group_stands_in_order_and_is_of_control_planes() -> None:
    what = Act(do=lambda run: None, live="node", always=True)
    told = story(
        act("a", "A", what), control_planes_only(act("b", "B", what), act("c", "C", what)), act("d", "D", what)
    )
    assert [(phase.name, phase.on) for phase in told] == [
        ("a", ""),
        ("b", "control-plane"),
        ("c", "control-plane"),
        ("d", ""),
    ]


def test_what_an_act_says_reaches_its_phase() -> None:
    what = Act(
        do=lambda run: None,
        probe=lambda run: True,
        live="node",
        always=True,
        needs=("x",),
        when=lambda config: False,
        spec=str,
        foretell=print,
    )
    assert act("a", "A", what) == Phase(
        name="a",
        does="A",
        act=what.do,
        probe=what.probe,
        live="node",
        always=True,
        needs=("x",),
        when=what.when,
        spec=str,
        foretell=print,
    )


def test_a_step_that_needs_the_cluster_says_so() -> None:
    def plan(run: object) -> object:
        raise AssertionError

    assert step("a", "A", plan, live="cluster") == Phase("a", "A", plan=plan, live="cluster")  # type: ignore[arg-type]
