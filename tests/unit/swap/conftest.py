"""What every test of a swap needs."""

from __future__ import annotations

import pytest

from tests.unit.swap.swap_case import Stage, set_stage


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return set_stage(monkeypatch)
