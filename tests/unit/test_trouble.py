"""kubeup/trouble.py: an error and what was found without one are told in the same words."""

from __future__ import annotations

import pytest

from kubeup.diagnosis.signs import BrokenLink
from kubeup.errors import HostError, KbError
from kubeup.trouble import Trouble, advise

WORDS = ("etcd exited 1 time (code 1)", "its disk is full", "make space")


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble(*WORDS),
        BrokenLink(*WORDS, link="container"),
        HostError(WORDS[0], cause=WORDS[1], remedy=WORDS[2], code="x"),
        BrokenLink(*WORDS, link="container").as_error(),
    ],
)
def test_all_are_told_alike(trouble: Trouble | KbError) -> None:
    assert str(trouble) == "etcd exited 1 time (code 1): its disk is full"
    assert advise(trouble) == "etcd exited 1 time (code 1): its disk is full. Remedy: make space"
    assert (trouble.what, trouble.cause, trouble.remedy) == WORDS


def test_the_error_of_a_broken_link_has_all_that_was_found() -> None:
    error = BrokenLink(*WORDS, details=("its last line",), link="container").as_error()
    assert (error.code, error.status, error.details) == ("not-healthy", 5, ("its last line",))
