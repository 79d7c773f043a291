"""Every error is complete, and docs/errors.md lists it."""

from __future__ import annotations

import pytest

from kubeup.errors import ClusterError, KbError
from tests.make_docs import REPO, read_codes, render_errors


def test_an_error_without_a_remedy_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="needs its remedy"):
        KbError("what", cause="cause", remedy="", code="x")


def test_exit_statuses_follow_the_class() -> None:
    assert ClusterError("w", cause="c", remedy="r", code="x").status == 5


def test_the_page_of_errors_is_up_to_date() -> None:
    assert (REPO / "docs/errors.md").read_text() == render_errors(), "run: make docs"


def test_codes_are_kebab_case_and_of_one_class() -> None:
    for code, rows in read_codes().items():
        assert code == code.lower() and " " not in code
        assert len({name for name, _, _ in rows}) == 1, f"{code} is raised with several classes: {rows}"
