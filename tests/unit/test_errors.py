"""Every error is complete, and docs/errors.md lists it."""

from __future__ import annotations

import re

import pytest

from kubeup.errors import ClusterError, KbError, shown
from tests.make_docs import REPO, read_codes, render_errors, render_phases


def test_an_error_without_a_remedy_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="needs its remedy"):
        KbError("what", cause="cause", remedy="", code="x")


def test_exit_statuses_follow_the_class() -> None:
    assert ClusterError("w", cause="c", remedy="r", code="x").status == 5


def test_the_page_of_errors_is_up_to_date() -> None:
    assert (REPO / "docs/errors.md").read_text() == render_errors(), "run: make docs"


def test_the_page_of_phases_is_up_to_date() -> None:
    assert (REPO / "docs/phases.md").read_text() == render_phases(), "run: make docs"


def test_what_the_pages_link_to_is_there() -> None:
    for page in (REPO / "README.md", REPO / "CONTRIBUTING.md", *(REPO / "docs").glob("*.md")):
        places = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
        assert [place for place in places if not (page.parent / place).exists()] == [], page


def test_codes_are_kebab_case_and_of_one_class() -> None:
    for code, rows in read_codes().items():
        assert code == code.lower() and " " not in code
        assert len({name for name, _, _ in rows}) == 1, f"{code} is raised with several classes: {rows}"


def test_every_test_that_the_page_of_security_names_is_there() -> None:
    text = (REPO / "docs/security.md").read_text()
    named = set(re.findall(r"tests/[\w/]+(?:\.py)?", text))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (REPO / name).exists()] == []


def test_control_characters_of_others_do_not_reach_a_terminal() -> None:
    error = KbError("a\x1b[31m", cause="b\rc\x00", remedy="d\x9b", code="x", details=["e\x07"])
    assert (error.what, error.cause, error.remedy, error.details) == (
        "a\\x1b[31m",
        "b\\x0dc\\x00",
        "d\\x9b",
        ("e\\x07",),
    )
    assert shown("a\nb\tc\udce9") == "a\\nb\\tc\\udce9"
