"""Plans in tests: make it so, and is it so."""

from __future__ import annotations

from typing import Any, Callable

from kubeup.engine.compare import is_there, make_so
from kubeup.engine.plan import Plan


def do(plan: Callable[[Any], Plan], run: Any) -> None:
    make_so(plan(run), run)


def is_done(plan: Callable[[Any], Plan], run: Any) -> bool:
    return is_there(plan(run), run)
