"""Which phases of install run: only what was asked for."""

from __future__ import annotations

import pytest

import kb
from kubeup.config.types import Mirror, Packages
from tests.fake_host import FakeHost
from tests.unit.phases.wishes_case import URL, context


@pytest.mark.parametrize(
    ("wishes", "names"),
    [
        ({}, set()),
        ({"bundle": "/x.tar"}, {"bundle", "packages", "mirror", "registries"}),
        ({"bundle": "/x.tar", "packages": Packages("none")}, {"bundle", "mirror", "registries"}),
        ({"mirror": Mirror(URL)}, {"packages", "registries"}),
        ({"packages": Packages("download")}, {"packages"}),
        ({"packages": Packages("auto", "ustc")}, {"registries"}),
    ],
)
def test_only_what_was_asked_for_runs(wishes: dict[str, object], names: set[str]) -> None:
    config = context(FakeHost(), **wishes).config
    chosen = {phase.name for phase in kb.INIT if phase.when is not None and phase.when(config)}
    assert chosen == {f"install/{name}" for name in names}
